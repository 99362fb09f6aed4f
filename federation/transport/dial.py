"""The dialer: tries a colony's addresses, compares certificates, fetches cards.

`transport.connection` sends the messages.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import httpx
import trio

from federation.transport.errors import TransportError, Unsent
from federation.transport.tls import TlsError, fetch_certificate, fingerprint_of, trusting
from federation.wire.address import split_address
from federation.wire.card import CARD_LIMIT, Card, open_card
from federation.wire.clock import SigningClock
from federation.wire.envelope import Rejected
from node.host.log import get_logger
from node.http.client import ask, http_client, reason_of
from node.http.pool import Pool
from node.http.stream import PromptStream

_TIMEOUT = httpx.Timeout(15.0, connect=5.0, pool=10.0)
_STAGGER = 0.3  # seconds between two tries of a peer's addresses

log = get_logger("dialing")


def _url(host: str, port: int) -> str:
    # The "%" of a scope stays: httpx hands the host to the resolver unchanged.
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def pool(der: bytes, host: str, port: int) -> Pool:
    """Return a pool of connections to `host` that accept only this certificate.

    Raises ValueError for a name that no host has.
    """
    context = trusting(der)

    async def connect() -> tuple[trio.abc.Stream, trio.socket.SocketType]:
        tcp = PromptStream(await trio.open_tcp_stream(host, port))
        stream = trio.SSLStream(tcp, context, https_compatible=True)
        try:
            await stream.do_handshake()
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return stream, tcp.socket

    named = host if host.isascii() else host.encode("idna").decode()
    return Pool(_url(named, port).removeprefix("https://"), connect)


def client(der: bytes, host: str, port: int) -> httpx.AsyncClient:
    """Return an HTTP client for `host` that accepts only this certificate. Raises InvalidURL."""
    return http_client(base_url=_url(host, port), verify=trusting(der), timeout=_TIMEOUT)


async def fetch_card(address: str, clock: SigningClock, *, pinned: str = "") -> tuple[Card, bytes]:
    """Return the verified card at an address, and its bytes.

    With `pinned`, a certificate's fingerprint, nothing is sent to a host with another certificate.
    Raises TransportError if there is no card, or the card names another certificate.
    """
    try:
        host, port = split_address(address)
        der = await fetch_certificate(host, port)
        if pinned and fingerprint_of(der) != pinned:
            raise TlsError("shows another certificate than expected")
        async with client(der, host, port) as http:
            reply = await ask(http, "GET", "/v1/card", limit=CARD_LIMIT)
        if reply.status_code != 200:
            raise Unsent(f"{address}: no card there (status {reply.status_code})")
        data = reply.content
        card = open_card(data, clock.seconds, high_water=clock.floor)
    except (TlsError, ValueError, httpx.HTTPError, httpx.InvalidURL, Rejected) as error:
        raise Unsent(f"{address}: {reason_of(error)}") from None
    if card.fingerprint != fingerprint_of(der):
        raise Unsent(f"{address}: shows another certificate than the card there promises")
    return card, data


@dataclass
class DialResult:
    """The `address` with the right certificate, or "", and what all other addresses gave."""

    address: str = ""
    der: bytes = b""
    at: str = ""  # the same with an IP address, for the connection
    # address and DER of other certificates
    others: list[tuple[str, bytes]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


async def find(
    addresses: Sequence[str],
    fingerprint: str,
    ways: Callable[[str], Awaitable[list[str]]],
) -> DialResult:
    """Try addresses, each a moment (`_STAGGER`) after the one before; the first right one wins.

    `ways` returns where an address leads; it raises Unsent if we must not go there.

    So an address that leads nowhere costs a moment, and not its timeout of five seconds: after a
    move most addresses are wrong, and any host can announce some.
    """
    found, waiting, running = DialResult(), list(addresses), 0
    send, outcome_poller = trio.open_memory_channel[tuple[str, str, bytes, str]](0)

    async def look(address: str) -> None:
        at, der, problem = address, b"", "it leads nowhere"
        try:
            for at in await ways(address):
                try:
                    der, problem = await fetch_certificate(*split_address(at)), ""
                    break
                except TlsError as error:
                    problem = reason_of(error)
        except (TransportError, ValueError) as error:
            problem = reason_of(error)
        except Exception as error:
            # Whatever goes wrong at one address, try the others.
            log.exception("address not tried", address=address)
            problem = f"{address}: {type(error).__name__}"
        await send.send((address, at, der, problem))

    async with trio.open_nursery() as nursery:
        while (waiting or running) and not found.address:
            if waiting:
                nursery.start_soon(look, waiting.pop(0))
                running += 1
            with trio.move_on_after(_STAGGER if waiting else math.inf):
                address, at, der, problem = await outcome_poller.receive()
                running -= 1
                if problem:
                    found.problems.append(problem)
                elif fingerprint_of(der) == fingerprint:
                    found.address, found.at, found.der = address, at, der
                else:
                    found.others.append((at, der))
        nursery.cancel_scope.cancel()
    return found
