"""Addresses at which no other colony can be, with the reason: values in, values out.

`transport.dial` finds out where an address leads; this needs no connection.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

from federation.peers.owncard import own_addresses
from federation.wire.address import split_address
from node.host.config import Config


def cannot_be(address: str, own: Collection[str] = ()) -> str:
    """Return why no other colony can be at "host:port", in words that follow the address; or "".

    `own` are this colony's addresses. A loopback address is allowed: a colony may be on this host.
    """
    if address in own:
        return "is this colony's own"
    try:
        host, _ = split_address(address)
    except ValueError:
        return "is not host:port with a port from 1 to 65535"
    bare, _, zone = host.partition("%")
    try:
        parsed = ipaddress.ip_address(bare)
    except ValueError:
        return ""  # a name
    if isinstance(parsed, ipaddress.IPv6Address):
        parsed = parsed.ipv4_mapped or parsed
    if parsed.is_unspecified:
        return "stands for all addresses of a host, and names none"
    if parsed.is_multicast or str(parsed) == "255.255.255.255":
        return "is an address of groups, not of a host"
    if parsed.version == 6 and parsed.is_link_local and not zone:
        return "is of one link only, and does not say of which (add %INTERFACE)"
    return ""


def wrong_peers(config: Config) -> dict[str, str]:
    """Return the addresses under [[peers]] that cannot be another colony's, and why."""
    port = config.federation.port
    own = {f"{host}:{port}" for host in ("localhost", "127.0.0.1", "[::1]")}
    own.update(own_addresses(config.federation, port))
    reasons = {peer.url: cannot_be(peer.url, own) for peer in config.peers}
    return {url: why for url, why in reasons.items() if why}
