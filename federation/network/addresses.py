"""Where others may lead us: which addresses of their cards and announcements are tried.

Who is trusted still chooses what we connect to. So addresses that mean something on this machine or
in its data centre only are left out, unless the configuration has us look there. What the owner
names, in the configuration or by a token, does not come here.
"""

from __future__ import annotations

import ipaddress

from federation.network.interfaces import Network

# Where machines in data centres get credentials and settings from.
_METADATA = frozenset(
    {"169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16", "fd00:ec2::254"}
)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine and no other can reach it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def problem_of(host: str, network: Network | None, *, loopback: bool = False) -> str:
    """Return why others may not lead us to an IP address, or "".

    `loopback`: addresses of this machine may be named, as they may when `network` has them.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "is no IP address"
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped or address.sixtofour or address.teredo:
            # The checks below would not see through it.
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
