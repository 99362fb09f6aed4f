"""Network interfaces from the kernel's rtnetlink: the list, and a signal that one has changed.

Linux only. `interfaces` decides which of them matter.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys
from collections.abc import Iterator

import msgspec
import trio

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_LINK = struct.Struct("=BxHiII")  # family, hardware type, index, flags, change
_ADDRESS = struct.Struct("=BBBBI")  # family, length of prefix, flags, scope, index
_ATTRIBUTE = struct.Struct("=HH")  # length, type

_DONE, _ERROR, _NEWLINK, _GETLINK, _NEWADDR, _GETADDR = 3, 2, 16, 18, 20, 22
_REQUEST_DUMP = 0x1 | 0x300
_IFLA_IFNAME, _IFLA_MASTER = 3, 10
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_GROUPS = 0x1 | 0x10 | 0x100  # links, IPv4 addresses, IPv6 addresses
_PATIENCE = 2.0  # seconds for an answer that the kernel gives at once
_BUFFER = 1 << 16

UP, LOOPBACK, RUNNING, MULTICAST = 0x1, 0x8, 0x40, 0x1000
# An address that another host may have, or has: it cannot be bound to.
_UNUSABLE = 0x40 | 0x08
# An address that is about to go, or that changes every day for privacy.
_PASSING = 0x20 | 0x01


class NetlinkError(OSError):
    """The kernel does not answer, or not as expected."""


class Address(msgspec.Struct, frozen=True):
    """An address of an interface, and how many bits of it name the network."""

    text: str
    prefix: int
    passing: bool = False

    @property
    def parsed(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
        """Return the standard library's object."""
        return ipaddress.ip_address(self.text)


class Interface(msgspec.Struct, frozen=True):
    """One network interface. `master` is the index of the bridge that it belongs to, or 0."""

    index: int
    name: str
    flags: int
    addresses: tuple[Address, ...] = ()
    master: int = 0

    def has(self, flag: int) -> bool:
        """Return whether one of the kernel's flags is set."""
        return bool(self.flags & flag)


def interfaces() -> list[Interface]:
    """Return every interface with its usable addresses. Raises NetlinkError without rtnetlink.

    It takes some ten microseconds and never waits for the network.
    """
    return parse(_dump(_GETLINK), _dump(_GETADDR))


def watch_socket() -> trio.socket.SocketType:
    """Return a socket that gets a message whenever an interface or address changes.

    Raises NetlinkError. ENOBUFS from its `recv` means that messages were lost: read the list again.
    """
    try:
        plain = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        plain.bind((0, _GROUPS))
    except (AttributeError, OSError) as error:
        raise NetlinkError(f"no rtnetlink: {error}") from None
    return trio.socket.from_stdlib_socket(plain)


def _dump(kind: int) -> bytes:
    """Return the messages of one listing."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as asked:
            asked.settimeout(_PATIENCE)
            asked.bind((0, 0))
            body = b"\0" * 16  # every family
            asked.send(_HEADER.pack(_HEADER.size + len(body), kind, _REQUEST_DUMP, 1, 0) + body)
            told = b""
            while True:
                part = asked.recv(_BUFFER)
                told += part
                if not part or any(each in (_DONE, _ERROR) for each, _ in _messages(part)):
                    return told
    except (AttributeError, OSError) as error:
        raise NetlinkError(f"no rtnetlink: {error}") from None


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size:
            return
        yield kind, data[at + _HEADER.size : at + length]
        at += (length + 3) & ~3


def _attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            break
        found[kind] = data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    return found


def parse(link_messages: bytes, address_messages: bytes) -> list[Interface]:
    """Return the interfaces of two listings, of interfaces and of addresses."""
    addresses: dict[int, list[Address]] = {}
    for kind, body in _messages(address_messages):
        if kind == _NEWADDR and len(body) >= _ADDRESS.size:
            index, address = _address(body)
            if address is not None:
                addresses.setdefault(index, []).append(address)
    found: list[Interface] = []
    for kind, body in _messages(link_messages):
        if kind != _NEWLINK or len(body) < _LINK.size:
            continue
        _, _, index, flags, _ = _LINK.unpack_from(body)
        told = _attributes(body[_LINK.size :])
        name = told.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode("utf-8", "replace")
        master = int.from_bytes(told.get(_IFLA_MASTER, b""), sys.byteorder)
        here = sorted(addresses.get(index, ()), key=lambda each: each.text)
        found.append(Interface(index, name, flags, tuple(here), master))
    return sorted(found, key=lambda each: each.index)


def _address(body: bytes) -> tuple[int, Address | None]:
    family, prefix, flags, _, index = _ADDRESS.unpack_from(body)
    told = _attributes(body[_ADDRESS.size :])
    if len(told.get(_IFA_FLAGS, b"")) == 4:
        flags = int.from_bytes(told[_IFA_FLAGS], sys.byteorder)
    # On a point-to-point link, IFA_ADDRESS is the other end.
    packed = told.get(_IFA_LOCAL) or told.get(_IFA_ADDRESS, b"")
    if flags & _UNUSABLE or len(packed) not in (4, 16) or family not in (2, 10):
        return index, None
    text = str(ipaddress.ip_address(packed))
    return index, Address(text, prefix, bool(flags & _PASSING))
