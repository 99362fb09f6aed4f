"""Addresses as text: host and port, the owner of an address, and local addresses."""

from __future__ import annotations

import ipaddress


def host_of(address: str) -> str:
    """Return the host in "host:port"."""
    return address.rpartition(":")[0].removeprefix("[").removesuffix("]")


def source_of(host: str) -> str:
    """Return the network that counts as one host: a host has a whole /64 of IPv6."""
    try:
        parsed = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    if parsed.version == 4 or mapped or parsed.is_link_local:
        return str(mapped or parsed)
    return str(ipaddress.ip_network((parsed, 64), strict=False))


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of "host:port", "[v6]:port" or an https URL. Raises ValueError."""
    text = address.removeprefix("https://").rstrip("/")
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{address!r} is not host:port")
    return host, int(port)


def is_near(host: str) -> bool:
    """Return whether an address is on this machine or a private network."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_private)


def is_public(host: str) -> bool:
    """Return whether an address is one of the Internet, and of nobody's own network.

    More than `is_near`, as addresses of providers' own networks and of VPNs (100.64.0.0/10) are
    neither.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    site = isinstance(address, ipaddress.IPv6Address) and address.is_site_local
    return address.is_global and not site
