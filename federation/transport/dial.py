"""The dialer: tries a colony's addresses, compares certificates, fetches cards.

`transport.connection` sends the messages.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import httpx
import trio

from colonyd.http import ask, http_client, reason_of
from federation.dht.lookups import target
from federation.transport.errors import TransportError, Unsent
from federation.transport.tls import TlsError, fetch_certificate, fingerprint_of, trusting
from federation.wire.address import split_address
from federation.wire.card import CARD_LIMIT, Card, open_card
from federation.wire.clock import SigningClock
from federation.wire.envelope import Rejected
from node.host.log import get_logger
from node.http.pool import Pool
from node.http.stream import PromptStream

_TIMEOUT = httpx.Timeout(15.0, connect=5.0, pool=10.0)
DIAL = "colonyd-dial"  # header with the nonce of a dial-back
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


async def fetch_card(
    address: str, clock: SigningClock, *, pinned: str = "", nonce: str = ""
) -> tuple[Card, bytes]:
    """Return the verified card at an address, and its bytes.

    With `pinned`, a certificate's fingerprint, nothing is sent to a host with another certificate.
    A `nonce` goes along in the header DIAL.
    Raises TransportError if there is no card, or the card names another certificate.
    """
    host, _ = await fetch_cards(address, clock, pinned=pinned, nonce=nonce)
    return host


async def fetch_cards(
    address: str, clock: SigningClock, wanted: str = "", *, pinned: str = "", nonce: str = ""
) -> tuple[tuple[Card, bytes], tuple[Card, bytes] | None]:
    """As `fetch_card`; also return the card of the colony `wanted`, if its mailbox lives there.

    None if it is the same colony, none is wanted, or the colony at the address has no such card.
    That colony is asked by the key in the DHT: whoever made us come here learns no id.
    """
    try:
        host, port = split_address(address)
        der = await fetch_certificate(host, port)
        if pinned and fingerprint_of(der) != pinned:
            raise TlsError(f"{address}: shows another certificate than expected")
        async with client(der, host, port) as http:
            headers = {DIAL: nonce} if nonce else {}
            reply = await ask(http, "GET", "/v1/card", limit=CARD_LIMIT, headers=headers)
            if reply.status_code != 200:
                raise Unsent(f"{address}: no card there (status {reply.status_code})")
            data, kept = reply.content, b""
            card = open_card(data, clock.seconds, high_water=clock.floor)
            if card.fingerprint != fingerprint_of(der):
                raise Unsent(f"{address}: shows another certificate than the card there promises")
            if wanted and wanted != card.id:
                reply = await ask(http, "GET", f"/v1/card/{target(wanted).hex()}", limit=CARD_LIMIT)
                kept = reply.content if reply.status_code == 200 else b""
        client_card = open_card(kept, clock.seconds, high_water=clock.floor) if kept else None
    except TlsError as error:  # it names the address
        raise Unsent(reason_of(error)) from None
    except (ValueError, httpx.HTTPError, httpx.InvalidURL, Rejected) as error:
        raise Unsent(f"{address}: {reason_of(error)}") from None
    if client_card is not None and card.id not in client_card.mailboxes:
        raise Unsent(f"{address}: the colony there is no mailbox of {client_card.id[:12]}")
    return (card, data), None if client_card is None else (client_card, kept)


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
