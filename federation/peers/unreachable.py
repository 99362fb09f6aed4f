"""Addresses at which no colony can be reached from elsewhere, and why: values in, values out.

What an address leads to is found out by `transport.dial`; here is what needs no connection to be
told.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

from federation.peers.owncard import own_addresses
from federation.wire.address import split_address
from node.host.config import Config


def cannot_be(address: str, own: Collection[str] = ()) -> str:
    """Why "host:port" can't be where another colony is, in words that follow the address; or "".

    `own` are this colony's addresses. Loopback is none of these: a colony may be on this host.
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
    """The addresses under [[peers]] that can't be another colony's, each with the reason."""
    port = config.federation.port
    own = {f"{host}:{port}" for host in ("localhost", "127.0.0.1", "[::1]")}
    own.update(own_addresses(config.federation, port))
    reasons = {peer.url: cannot_be(peer.url, own) for peer in config.peers}
    return {url: why for url, why in reasons.items() if why}
