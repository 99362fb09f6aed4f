"""The choice of the machine's interfaces and addresses for discovery.

Values in, values out; `netlink` reads the kernel, `network.monitor` notices changes.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

import ifaddr
import msgspec

from federation.network.netlink import (
    LOOPBACK,
    MULTICAST,
    RUNNING,
    UP,
    Address,
    Interface,
    NetlinkError,
    interfaces,
)

# hosts that stand for all addresses, with their families
ANY = {"*": (4, 6), "0.0.0.0": (4,), "::": (6,)}
# A host of containers has hundreds, and the kernel lets a socket join 20 groups.
_MOST_INTERFACES = 16
_MOST_ADDRESSES = 12
_MOST_SCOPED = 4


class Network(msgspec.Struct, frozen=True):
    """The used part of the machine's network. Nothing has to be done anew between equal ones."""

    # As zeroconf wants them: IPv4 addresses, indexes of interfaces for IPv6.
    sockets: tuple[str | int, ...]
    # Our addresses, best first; link-local IPv6 addresses are valid on their own link only.
    addresses: tuple[str, ...]
    # The networks that these addresses are in, such as "192.0.2.0/24".
    near: tuple[str, ...]
    # Indexes of the interfaces on which link-local IPv6 addresses can be reached.
    scopes: tuple[int, ...]
    # Names and indexes: an interface that was made anew needs new sockets, even with the same
    # address.
    interfaces: tuple[tuple[str, int], ...]
    loopback: bool

    def addresses_for(self, families: Iterable[int], *, link_local: bool) -> list[str]:
        """Return the wanted addresses of IPv4 and IPv6."""
        wanted = set(families)
        return [
            text
            for text in self.addresses
            for parsed in [ipaddress.ip_address(text)]
            if parsed.version in wanted
            and (link_local or not (parsed.version == 6 and parsed.is_link_local))
        ]

    def is_on_link(self, host: str) -> bool:
        """Return whether an address is in one of our own networks."""
        try:
            address = ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            return False
        return any(address in ipaddress.ip_network(each) for each in self.near)


def survey(wanted: Sequence[str] = ()) -> Network | None:
    """Return the machine's network: interfaces `wanted` by address or name, else all usable ones.

    None while none of these is up.
    """
    try:
        found = interfaces()
    except NetlinkError:
        found = _portable()
    return network_of(found, wanted)


def network_of(found: Sequence[Interface], wanted: Sequence[str] = ()) -> Network | None:
    """Return the network of the chosen interfaces.

    Without `wanted`, these are all that can carry multicast now, but no loopback. A machine with
    nothing else still finds other colonies on itself.
    """
    chosen = [
        (interface, address)
        for interface in found
        for address in interface.addresses
        if _counts(interface, address, wanted)
    ]
    kept = {interface.index: interface for interface, _ in chosen}
    kept = dict(list(kept.items())[:_MOST_INTERFACES])
    chosen = [(interface, address) for interface, address in chosen if interface.index in kept]
    if not chosen:
        return None if wanted else network_of(found, ["127.0.0.1"])
    sockets = {
        address.text if address.parsed.version == 4 else interface.index
        for interface, address in chosen
    }
    told = _lasting([address for _, address in chosen])
    return Network(
        tuple(sorted(sockets, key=lambda each: (isinstance(each, int), each))),
        tuple(dict.fromkeys(address.text for address in told)),
        tuple(sorted({_around(address) for _, address in chosen})),
        tuple(sorted({i.index for i, address in chosen if _is_scoped(address)})),
        tuple(sorted((interface.name, index) for index, interface in kept.items())),
        any(address.parsed.is_loopback for _, address in chosen),
    )


def _counts(interface: Interface, address: Address, wanted: Sequence[str]) -> bool:
    if not interface.has(UP) or not interface.has(RUNNING):
        return False
    parsed = address.parsed
    if parsed.is_loopback and parsed.version == 6:
        return False  # it has no multicast
    if wanted:
        return bool({address.text, interface.name} & set(wanted))
    if interface.has(LOOPBACK) or parsed.is_loopback or not interface.has(MULTICAST):
        return False
    # A port of a bridge does not get the bridge's own traffic.
    return not (interface.master and _is_scoped(address))


def _lasting(addresses: list[Address]) -> list[Address]:
    """Return addresses best first, without passing ones if the family has lasting ones."""
    lasting = {
        each.parsed.version for each in addresses if not each.passing and not _is_scoped(each)
    }
    kept = [
        each
        for each in sorted(addresses, key=_rank)
        if _is_scoped(each) or not each.passing or each.parsed.version not in lasting
    ]
    scoped = [each for each in kept if _is_scoped(each)][:_MOST_SCOPED]
    return [each for each in kept if not _is_scoped(each)][:_MOST_ADDRESSES] + scoped


def _is_scoped(address: Address) -> bool:
    return address.parsed.version == 6 and address.parsed.is_link_local


def _rank(address: Address) -> tuple[bool, bool, int, str]:
    parsed = address.parsed
    return parsed.is_link_local, address.passing, parsed.version, address.text


def _around(address: Address) -> str:
    return str(ipaddress.ip_network(f"{address.text}/{address.prefix}", strict=False))


def _portable() -> list[Interface]:
    """Return interfaces without rtnetlink, as every system tells them: without states."""
    found: list[Interface] = []
    for adapter in ifaddr.get_adapters():
        addresses: list[Address] = []
        for ip in adapter.ips:
            text = ip.ip if isinstance(ip.ip, str) else ip.ip[0]
            addresses.append(Address(text, ip.network_prefix))
        loops = any(address.parsed.is_loopback for address in addresses)
        flags = UP | RUNNING | (LOOPBACK if loops else MULTICAST)
        found.append(Interface(adapter.index or 0, adapter.name, flags, tuple(addresses)))
    return found
