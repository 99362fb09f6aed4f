"""Where others may lead us: which addresses of their cards and announcements are tried.

Who is trusted still chooses what we connect to. So addresses that mean something on this machine or
in its data centre only are left out, unless the configuration has us look there. What the owner
names, in the configuration or by a token, does not come here.
"""

from __future__ import annotations

import ipaddress
import socket

import trio

from federation.network.interfaces import Network
from federation.transport.errors import Unsent
from federation.wire.address import split_address

__all__ = ["is_loopback", "problem_of", "ways_to"]

_RESOLVE = 3.0  # seconds that a name may take
_MOST = 4  # addresses of one name
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
            links = network.scopes if network is not None else ()
            known = address.scope_id in {str(link) for link in links}
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


async def ways_to(
    address: str, network: Network | None, names: trio.CapacityLimiter, *, loopback: bool = False
) -> list[str]:
    """Return "host:port" with IP addresses for an address that others told us of.

    A name is resolved here, once, so that what is checked is what is connected to. The lookup takes
    at most 3 s, and keeps its thread of `names` for as long as the resolver hangs. Raises Unsent,
    which says why there is no way, or ValueError.
    """
    host, port = split_address(address)
    try:
        hosts = [str(ipaddress.ip_address(host))]
    except ValueError:
        hosts = await _resolve(host, port, names)
    problems = {each: problem_of(each, network, loopback=loopback) for each in hosts}
    good = [each for each, problem in problems.items() if not problem]
    if not good:
        told = "; ".join(f"{each} {problem}" for each, problem in problems.items())
        raise Unsent(f"{address} is not tried: {told}")
    return [f"[{each}]:{port}" if ":" in each else f"{each}:{port}" for each in good]


async def _resolve(host: str, port: int, names: trio.CapacityLimiter) -> list[str]:
    try:
        with trio.fail_after(_RESOLVE):
            found = await trio.to_thread.run_sync(
                lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM),
                abandon_on_cancel=True,
                limiter=names,
            )
    except trio.TooSlowError:
        raise Unsent(f"{host}: the name was not resolved within {_RESOLVE:g} s") from None
    except (OSError, UnicodeError) as error:
        raise Unsent(f"{host}: the name can't be resolved: {error}") from None
    return list(dict.fromkeys(str(each[4][0]) for each in found))[:_MOST]
