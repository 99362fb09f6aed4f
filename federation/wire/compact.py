"""Bytes as text that people copy: base32 with a check, and compact forms of addresses.

`invitation` and `cardlink` say what the bytes mean.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress

from federation.wire.address import split_address

_CHECK = 4  # bytes at the end, against typing mistakes
_HOST, _V4, _V6 = 0, 4, 6
_ALPHABET = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567")
# It has none of these, so each can be replaced.
_SLIPS = str.maketrans({"0": "O", "1": "I", "8": "B"})


class NoCode(ValueError):
    """Text that is no base32, or too long."""


class Garbled(ValueError):
    """Text whose check does not fit: it is incomplete or mistyped."""


def check(body: bytes, purpose: str) -> bytes:
    """Return the bytes that end a code for a purpose."""
    return hashlib.sha256(f"colonyd/1/{purpose}".encode() + body).digest()[:_CHECK]


def write_code(body: bytes, purpose: str) -> str:
    """Return bytes as base32 text with a check."""
    return base64.b32encode(body + check(body, purpose)).decode().rstrip("=")


def read_code(text: str, purpose: str, longest: int) -> bytes:
    """Return the bytes of a text of at most `longest` characters, b"" for an empty one.

    Spaces, dashes, small letters and look-alike digits do no harm. Raises NoCode and Garbled.
    """
    letters = "".join(text.split()).replace("-", "").rstrip("=").upper().translate(_SLIPS)
    if not letters:
        return b""
    if len(letters) > longest or not _ALPHABET.issuperset(letters):
        raise NoCode("not base32")
    try:
        data = base64.b32decode(letters + "=" * (-len(letters) % 8))
    except binascii.Error:
        raise Garbled("letters are missing") from None
    body, end = data[:-_CHECK], data[-_CHECK:]
    if not hmac.compare_digest(check(body, purpose), end):
        raise Garbled("the check does not fit")
    return body


def pack_address(address: str) -> bytes:
    """Return "host:port" as bytes. Raises ValueError."""
    host, port = split_address(address)
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        ip = None
    if ip is None or "%" in host:
        name = host.encode()
        if len(name) > 255:
            raise ValueError(f"{address[:80]!r} is too long") from None
        return bytes((_HOST, len(name))) + name + port.to_bytes(2, "big")
    return bytes((_V4 if ip.version == 4 else _V6,)) + ip.packed + port.to_bytes(2, "big")


class ByteReader:
    """Takes pieces off the front of some bytes. Every method raises ValueError at the end."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        if count > len(self.data):
            raise ValueError("too short")
        piece, self.data = self.data[:count], self.data[count:]
        return piece

    def number(self, size: int) -> int:
        """Return the next `size` bytes as a number."""
        return int.from_bytes(self.take(size), "big")

    def address(self) -> str:
        """Return the next address as "host:port"."""
        kind = self.number(1)
        if kind == _HOST:
            host = self.take(self.number(1)).decode()
        elif kind in (_V4, _V6):
            host = str(ipaddress.ip_address(self.take(4 if kind == _V4 else 16)))
        else:
            raise ValueError("kind of address")
        address = f"[{host}]" if ":" in host else host
        address += f":{self.number(2)}"
        split_address(address)
        return address
