"""Name resolution of addresses from other colonies: the checked IP address is the connected one.

`network.addresses` says which addresses are allowed.
"""

from __future__ import annotations

import ipaddress
import socket

import trio

from federation.network.addresses import problem_of
from federation.network.interfaces import Network
from federation.transport.errors import Unsent
from federation.wire.address import split_address

_RESOLVE = 3.0  # seconds that a lookup may take
_MOST = 4  # IP addresses of one name


async def ways_to(
    address: str, network: Network | None, names: trio.CapacityLimiter, *, loopback: bool = False
) -> list[str]:
    """Return "host:port" with IP addresses, for an address that another colony named.

    A name is resolved here, once, so that the checked IP address is the connected one. The lookup
    takes at most 3 s, and keeps its thread of `names` for as long as the resolver hangs. Raises
    Unsent, which says why there is no way, or ValueError.
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
