"""The client's end of the wire: one pinned HTTPS connection pool per peer, every answer verified.

Which message to send when, and what an answer means, is decided by the callers; `gate` serves.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import httpx
import msgspec
import trio

from federation.card import CARD_LIMIT, Card, open_card
from federation.clocks import Reading, bridgeable, read
from federation.envelope import Kind, Opened, Refused, inspect, open_envelope
from federation.messages import Denial, Hello, Sealer, Successor, load
from federation.peers import TRUSTED, Known
from federation.tls import TlsError, fetch_certificate, fingerprint_of, trusting
from node.log import get_logger
from node.model import SECOND

__all__ = [
    "Answer",
    "Later",
    "Link",
    "Lost",
    "PeerRefused",
    "TransportError",
    "Unsent",
    "Untimely",
    "fetch_card",
    "split_address",
]

_ANSWER_LIMIT = 8_000_000  # bytes
_REFUSAL_LIMIT = 4096
_TIMEOUT = httpx.Timeout(15.0, connect=5.0, pool=10.0)
_LIMITS = httpx.Limits(max_connections=16, max_keepalive_connections=8, keepalive_expiry=90.0)
_LONGEST_WAIT = 300
_STAGGER = 0.3  # seconds between two tries of a peer's addresses
_MOST_ADDRESSES = 16
_TIMELY = ("not_yet_valid", "expired")

T = TypeVar("T")
# Carries the body of a message to a path there, for as many seconds and a few, and the answer back.
Carrier = Callable[[str, bytes, float], Awaitable["Answer"]]
log = get_logger("transport")


class TransportError(Exception):
    """A message got no valid answer; what that means for it, the subclass tells."""


class Unsent(TransportError):
    """No byte of it reached the peer."""


class Lost(TransportError):
    """It may have reached the peer."""


class Later(TransportError):
    """The peer wants it later: in `seconds`, 0 when it did not say."""

    def __init__(self, message: str, seconds: float, *, certain: bool) -> None:
        super().__init__(message)
        self.seconds = seconds
        self.certain = certain  # it was turned away for certain


class PeerRefused(TransportError):
    """The peer will never take it; `signed` is whether it put its name to that."""

    def __init__(self, code: str, message: str, *, signed: bool = False) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message, self.signed = code, message, signed


class Untimely(TransportError):
    """Its times did not hold by the peer's clock; once that is measured anew, others may.

    `signed` is whether the peer put its name to that it did not take this message.
    """

    def __init__(self, message: str, *, signed: bool) -> None:
        super().__init__(message)
        self.signed = signed


class Answer(msgspec.Struct, frozen=True):
    """What came back, whatever it says: HTTP status, the header `retry-after`, the body."""

    status: int
    retry_after: str
    data: bytes


class _Refusal(msgspec.Struct):
    code: str = ""
    message: str = ""
    signed: bytes = b""  # base64 in JSON
    clock: int = 0


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of "host:port", "[v6]:port" or an https URL. Raises ValueError."""
    text = address.removeprefix("https://").rstrip("/")
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{address!r} is not host:port")
    return host, int(port)


def _url(host: str, port: int) -> str:
    # The "%" of a scope stays as it is: httpx hands the host to the resolver as it finds it.
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def _client(der: bytes, host: str, port: int) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=_url(host, port),
        verify=trusting(der),
        timeout=_TIMEOUT,
        limits=_LIMITS,
        trust_env=False,
    )


async def _read(response: httpx.Response, limit: int) -> bytes:
    parts, total = [], 0
    async for part in response.aiter_bytes():
        total += len(part)
        if total > limit:
            raise Lost(f"the answer is longer than {limit} bytes")
        parts.append(part)
    return b"".join(parts)


async def fetch_card(
    address: str, sealer: Sealer, high_water: float = 0, *, pinned: str = ""
) -> tuple[Card, bytes]:
    """Return the card shown at an address, proven, and its bytes.

    With `pinned`, a certificate's fingerprint, nothing is sent to who shows another. Raises
    TransportError when there is none, or its fingerprint is not that of the certificate.
    """
    try:
        host, port = split_address(address)
        der = await fetch_certificate(host, port)
        if pinned and fingerprint_of(der) != pinned:
            raise TlsError("shows another certificate than expected")
        async with _client(der, host, port) as client:
            async with client.stream("GET", "/v1/card") as response:
                data = await _read(response, CARD_LIMIT)
        if response.status_code != 200:
            raise Unsent(f"{address}: no card there (status {response.status_code})")
        card = open_card(data, sealer.seconds, high_water=high_water)
    except (TlsError, ValueError, httpx.HTTPError, httpx.InvalidURL, Refused) as error:
        raise Unsent(f"{address}: {_text(error)}") from None
    if card.fingerprint != fingerprint_of(der):
        raise Unsent(f"{address}: shows another certificate than the card there promises")
    return card, data


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _no_way() -> Carrier | None:
    return None


async def _nowhere(successors: list[Successor]) -> None:
    return None


def _nothing() -> None:
    return None


@dataclass
class Link:
    """The way to one peer. `renew` takes in a card fetched at an address of the peer.

    `around` gives another way than a connection of ours, while there is one to be taken. `measure`
    is called when the peer's clock turns out to be another than we thought. `follow` takes note of
    its change of keys.
    """

    entry: Known
    sealer: Sealer
    renew: Callable[[str], Awaitable[None]]
    high_water: Callable[[], float]
    around: Callable[[], Carrier | None] = _no_way
    measure: Callable[[], None] = _nothing
    follow: Callable[[list[Successor]], Awaitable[None]] = _nowhere
    _http: httpx.AsyncClient | None = None
    _pinned: str = ""
    _sequence: int = -1
    _lock: trio.Lock = field(default_factory=trio.Lock)

    @property
    def id(self) -> str:
        """The id under which the peer is kept."""
        return self.entry.peer.id

    @property
    def wire(self) -> str:
        """The id that the peer has now."""
        return self.entry.peer.wire

    def key_of(self, issuer: str) -> bytes | None:
        """The peer's key of this id, if it counts now."""
        return self.entry.peer.key_of(issuer, self.sealer.seconds)

    async def connect(self) -> httpx.AsyncClient | None:
        """See to it that a message can leave: over TLS with the peer's own certificate only.

        Returns the client for that, None when there is another way. Raises Unsent.
        """
        if self.around() is not None:
            return None
        return await self._connected()

    async def _connected(self) -> httpx.AsyncClient:
        async with self._lock:
            if self._http is not None and not self.stale:
                return self._http
            await self._forget()
            return await self._find()

    @property
    def stale(self) -> bool:
        """Whether the connections are those to where the peer was before.

        A card with a higher number means another start, other addresses or another certificate.
        """
        peer = self.entry.peer
        return self._http is not None and (
            self._pinned != peer.fingerprint or self._sequence != peer.sequence
        )

    async def _find(self) -> httpx.AsyncClient:
        """Try all addresses, each a moment after the one before, and take the first that is right.

        What another certificate is shown at is asked for a newer card only when all have failed:
        anybody can announce an address.
        """
        problems: list[str] = []
        others: list[tuple[str, bytes]] = []
        send, results = trio.open_memory_channel[tuple[str, bytes, str]](0)

        async def look(address: str) -> None:
            der, problem = b"", ""
            try:
                der = await fetch_certificate(*split_address(address))
            except (TlsError, ValueError) as error:
                problem = _text(error)
            await send.send((address, der, problem))

        waiting, running = self.entry.addresses()[:_MOST_ADDRESSES], 0
        async with trio.open_nursery() as nursery:
            while waiting or running:
                if waiting:
                    nursery.start_soon(look, waiting.pop(0))
                    running += 1
                with trio.move_on_after(_STAGGER if waiting else math.inf):
                    address, der, problem = await results.receive()
                    running -= 1
                    if problem:
                        problems.append(problem)
                    elif fingerprint_of(der) == self.entry.peer.fingerprint:
                        nursery.cancel_scope.cancel()
                        return self._use(address, der)
                    else:
                        others.append((address, der))
        for address, der in others:
            try:
                # A new certificate is fine once a newer card of the same colony says so.
                await self.renew(address)
                if fingerprint_of(der) == self.entry.peer.fingerprint:
                    return self._use(address, der)
                problem = f"{address}: shows another certificate than the peer's card promises"
            except (TlsError, ValueError, TransportError) as error:
                problem = _text(error)
            problems.append(problem)
        raise Unsent("; ".join(problems[:3]) or "no address is known")

    def _use(self, address: str, der: bytes) -> httpx.AsyncClient:
        host, port = split_address(address)
        try:
            self._http = _client(der, host, port)
        except httpx.InvalidURL as error:
            raise Unsent(f"{address}: {error}") from None
        self._pinned, self._sequence = fingerprint_of(der), self.entry.peer.sequence
        self.entry.prove(address)
        return self._http

    async def _forget(self) -> None:
        http, self._http = self._http, None
        if http is not None:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 2):
                await http.aclose()

    async def close(self) -> None:
        """Drop the connections; the next message makes new ones."""
        await self._forget()

    async def _drop(self, used: httpx.AsyncClient) -> None:
        if self._http is used:
            await self._forget()

    async def exchange(self, path: str, body: bytes, wait: float) -> Answer:
        """Carry bytes there and back. Raises Unsent or Lost; `wait` as for `post`."""
        carrier = self.around()
        if carrier is not None:
            return await carrier(path, body, wait)
        http = await self._connected()
        timeout = httpx.Timeout(15.0 + wait, connect=5.0, pool=10.0, write=15.0)
        try:
            headers = {"content-type": "application/cose"}
            async with http.stream(
                "POST", path, content=body, headers=headers, timeout=timeout
            ) as response:
                ok = response.status_code == 200
                data = await _read(response, _ANSWER_LIMIT if ok else _REFUSAL_LIMIT)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            # A pool that starves leaks (httpcore); a new one costs a handshake.
            await self._drop(http)
            raise Unsent(_text(error)) from None
        except httpx.HTTPError as error:
            await self._drop(http)
            raise Lost(f"no answer: {_text(error)}") from None
        return Answer(response.status_code, response.headers.get("retry-after", ""), data)

    async def post(
        self, path: str, body: bytes, kind: Kind, wait: float = 0
    ) -> tuple[Opened, bytes]:
        """Send an envelope; return the verified answer of `kind`, and its bytes.

        `wait` is how many seconds the peer was allowed to think. Raises TransportError.
        """
        answer = await self.exchange(path, body, wait)
        if answer.status != 200:
            refusal = _refusal(answer)
            raise self._failure(answer, refusal, body)
        try:
            opened = self._open(answer.data, kind)
        except Refused as error:
            raise Lost(f"the answer is not valid: {error}") from None
        self.entry.lastseen, self.entry.error = self.sealer.seconds, ""
        return opened, answer.data

    # -- time, see `clocks` ----------------------------------------------------------------

    @property
    def _translates(self) -> bool:
        return self.entry.peer.state == TRUSTED

    @property
    def seconds(self) -> int:
        """Now, by the clock with which the peer tells when it made a message."""
        return self.sealer.seconds + (self.entry.clock.issuing if self._translates else 0)

    @property
    def highest(self) -> float:
        """The latest time we remember, as the peer's clock tells it."""
        return self.high_water() + self.seconds - self.sealer.seconds

    def seal(
        self,
        kind: Kind,
        message: msgspec.Struct,
        *,
        cti: bytes | None = None,
        expires: int | None = None,
    ) -> bytes:
        """Seal a request to this peer, with times that hold by its clock.

        `expires` is by ours, in seconds; without one it is as late as allowed.
        """
        ahead = self.entry.clock.judging if self._translates else 0
        return self.sealer.seal(
            kind,
            self.wire,
            message,
            cti=cti,
            issued=self.sealer.seconds + ahead,
            expires=None if expires is None else expires + ahead,
        )

    async def greet(self, message: Hello) -> Hello:
        """Exchange signed hellos, and learn what the peer's clock shows. Raises TransportError.

        The `nonce` of the message makes the answer a fresh one, whatever time it tells.
        """
        body = self.seal(Kind.HELLO, message)
        sent = self.sealer.now() / SECOND
        answer = await self.exchange("/v1/hello", body, 0)
        received = self.sealer.now() / SECOND
        if answer.status != 200:
            refusal = _refusal(answer)
            denial = self._denial(refusal, body)
            if denial is not None and denial.clock:
                self._learn(read(denial.clock, denial.latest, sent, received))
            raise self._failure(answer, refusal, body)
        try:
            if inspect(answer.data, limit=_ANSWER_LIMIT).issuer not in self.entry.peer.ids:
                # It may have another key by now, and then says so.
                said = inspect(answer.data, limit=_ANSWER_LIMIT).payload
                await self.follow(load(said, Hello).successors)
            opened = self._open_now(answer.data, Kind.HELLO)
            hello = load(opened.payload, Hello)
            if not hello.nonce or hello.nonce != message.nonce:
                self._open(answer.data, Kind.HELLO)  # by an older release: its time must do
        except Refused as error:
            raise Lost(f"the answer is not valid: {error}") from None
        if hello.clock and hello.nonce == message.nonce:
            self._learn(read(hello.clock, hello.latest, sent, received))
        self.entry.lastseen, self.entry.error = self.sealer.seconds, ""
        return hello

    def _learn(self, reading: Reading) -> None:
        if self.entry.clock.learn(reading):
            log.info("clock of peer", peer=self.id, ahead=reading.ahead)

    def _open(self, data: bytes, kind: Kind) -> Opened:
        return self._opened(data, kind, self.seconds, self.highest)

    def _open_now(self, data: bytes, kind: Kind) -> Opened:
        """Open what repeats something of our own request, so that it can't be an old message."""
        return self._opened(data, kind, inspect(data, limit=_ANSWER_LIMIT).issued, 0)

    def _opened(self, data: bytes, kind: Kind, now: float, high_water: float) -> Opened:
        return open_envelope(
            data,
            kind=kind,
            audience=self.sealer.ids,
            now=now,
            keys=self.key_of,
            limit=_ANSWER_LIMIT,
            high_water=high_water,
        )

    # -- refusals --------------------------------------------------------------------------

    def _denial(self, refusal: _Refusal, body: bytes) -> Denial | None:
        """The peer's signed word that it did not take this very message."""
        try:
            denial = load(self._open_now(refusal.signed, Kind.REFUSAL).payload, Denial)
        except Refused:
            return None
        same = denial.digest == hashlib.sha256(body).digest() and denial.code == refusal.code
        return denial if same else None

    def _failure(self, answer: Answer, refusal: _Refusal, body: bytes) -> TransportError:
        status = answer.status
        code = refusal.code[:40] or f"http_{status}"
        message = refusal.message[:1000] or "no reason given"
        if status in (408, 429) or status >= 500 or status < 400:
            after = answer.retry_after
            seconds = min(int(after), _LONGEST_WAIT) if after.isdigit() else 0
            return Later(f"{code}: {message}", seconds, certain=status == 429)
        signed = self._denial(refusal, body) is not None
        if code in _TIMELY and self._translates and bridgeable(refusal.clock, self.sealer.seconds):
            self.measure()
            return Untimely(f"{code}: {message}", signed=signed)
        return PeerRefused(code, message, signed=signed)


def _refusal(answer: Answer) -> _Refusal:
    try:
        return msgspec.json.decode(answer.data, type=_Refusal)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Refusal()
