"""The check of addresses that other colonies named: which of them we try.

Cards and announcements choose what we connect to, those of trusted peers as well. So addresses that
mean something only on this machine or in its data centre are left out, unless the configuration has
us look there. Addresses that the owner named, in the configuration or by a token, are not checked.
"""

from __future__ import annotations

import ipaddress

from federation.network.interfaces import Network

# Addresses at which machines in data centres get credentials and settings.
_METADATA = frozenset(
    {"169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16", "fd00:ec2::254"}
)


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine, and no other machine can reach it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def problem_of(host: str, network: Network | None, *, loopback: bool = False) -> str:
    """Return why we do not follow another colony to an IP address, or "".

    `loopback`: addresses of this machine are allowed, as they are when `network` has them.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "is no IP address"
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped or address.sixtofour or address.teredo:
            # The checks below would not recognise it.
            return "is an IPv4 address in the guise of IPv6"
        if address.is_link_local:
            connections = network.scopes if network is not None else ()
            known = address.scope_id in {str(connection) for connection in connections}
            return "" if known else "is link-local, and on no link of ours"
    if address.is_loopback:
        if loopback or (network is not None and network.loopback):
            return ""
        return (
            "leads to this machine; to allow that, name it under [[peers]], or have "
            "federation.interfaces name 127.0.0.1"
        )
    if address.is_unspecified or address.is_multicast or address.is_reserved:
        return "is no address of a host"
    if str(address) in _METADATA:
        return "is where a data centre keeps its secrets"
    if address.is_link_local and (network is None or not network.is_on_link(host)):
        return "is link-local, and not on a link of ours"
    return ""
