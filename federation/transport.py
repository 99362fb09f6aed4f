"""The client's end of the wire: one pinned HTTPS connection pool per peer, every answer verified.

Which message to send when, and what an answer means, is decided by the callers; `gate` serves.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import httpx
import msgspec
import trio

from federation.card import CARD_LIMIT, Card, open_card
from federation.envelope import Kind, Opened, Refused, open_envelope
from federation.messages import Sealer
from federation.peers import Known
from federation.tls import TlsError, fetch_certificate, fingerprint_of, trusting
from node.log import get_logger

__all__ = [
    "Later",
    "Link",
    "Lost",
    "PeerRefused",
    "TransportError",
    "Unsent",
    "fetch_card",
    "split_address",
]

_ANSWER_LIMIT = 8_000_000  # bytes
_REFUSAL_LIMIT = 4096
_TIMEOUT = httpx.Timeout(15.0, connect=5.0, pool=10.0)
_LIMITS = httpx.Limits(max_connections=16, max_keepalive_connections=8, keepalive_expiry=90.0)
_LONGEST_WAIT = 300

T = TypeVar("T")
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
    """The peer will never take it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message


class _Refusal(msgspec.Struct):
    code: str = ""
    message: str = ""


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of "host:port", "[v6]:port" or an https URL. Raises ValueError."""
    text = address.removeprefix("https://").rstrip("/")
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{address!r} is not host:port")
    return host, int(port)


def _url(host: str, port: int) -> str:
    return (
        f"https://[{host.replace('%', '%25')}]:{port}" if ":" in host else f"https://{host}:{port}"
    )


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


async def fetch_card(address: str, sealer: Sealer, high_water: float = 0) -> tuple[Card, bytes]:
    """Return the card shown at an address, proven, and its bytes.

    Raises TransportError when there is none, or its fingerprint is not that of the certificate.
    """
    try:
        host, port = split_address(address)
        der = await fetch_certificate(host, port)
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


@dataclass
class Link:
    """The way to one peer. `renew` takes in a card fetched at an address of the peer."""

    entry: Known
    sealer: Sealer
    renew: Callable[[str], Awaitable[None]]
    high_water: Callable[[], float]
    _http: httpx.AsyncClient | None = None
    _pinned: str = ""
    _lock: trio.Lock = field(default_factory=trio.Lock)

    @property
    def id(self) -> str:
        """The peer's id."""
        return self.entry.peer.id

    async def connect(self) -> httpx.AsyncClient:
        """Return a client that talks to the peer's own certificate only. Raises Unsent."""
        async with self._lock:
            if self._http is not None and self._pinned == self.entry.peer.fingerprint:
                return self._http
            await self._forget()
            problems: list[str] = []
            for address in self.entry.addresses():
                try:
                    return await self._try(address)
                except (TlsError, ValueError, TransportError) as error:
                    problems.append(_text(error))
            raise Unsent("; ".join(problems[:3]) or "no address is known")

    async def _try(self, address: str) -> httpx.AsyncClient:
        host, port = split_address(address)
        der = await fetch_certificate(host, port)
        shown = fingerprint_of(der)
        if shown != self.entry.peer.fingerprint:
            # A new certificate is fine once a newer card of the same colony says so.
            await self.renew(address)
        if shown != self.entry.peer.fingerprint:
            raise TlsError(f"{address}: shows another certificate than the peer's card promises")
        try:
            self._http = _client(der, host, port)
        except httpx.InvalidURL as error:
            raise TlsError(f"{address}: {error}") from None
        self._pinned = shown
        self.entry.sight(address)
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

    async def post(
        self, path: str, body: bytes, kind: Kind, wait: float = 0
    ) -> tuple[Opened, bytes]:
        """Send an envelope; return the verified answer of `kind`, and its bytes.

        `wait` is how many seconds the peer was allowed to think. Raises TransportError.
        """
        http = await self.connect()
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
        if not ok:
            raise _failure(response, data)
        try:
            opened = open_envelope(
                data,
                kind=kind,
                audience=self.sealer.key.id,
                now=self.sealer.seconds,
                keys=lambda issuer: self.entry.peer.public_key if issuer == self.id else None,
                limit=_ANSWER_LIMIT,
                high_water=self.high_water(),
            )
        except Refused as error:
            raise Lost(f"the answer is not valid: {error}") from None
        self.entry.lastseen, self.entry.error = self.sealer.seconds, ""
        return opened, data


def _failure(response: httpx.Response, data: bytes) -> TransportError:
    status = response.status_code
    try:
        refusal = msgspec.json.decode(data, type=_Refusal)
    except (msgspec.DecodeError, UnicodeDecodeError):
        refusal = _Refusal()
    code = refusal.code[:40] or f"http_{status}"
    message = refusal.message[:1000] or "no reason given"
    if status in (408, 429) or status >= 500 or status < 400:
        after = response.headers.get("retry-after", "")
        seconds = min(int(after), _LONGEST_WAIT) if after.isdigit() else 0
        return Later(f"{code}: {message}", seconds, certain=status == 429)
    return PeerRefused(code, message)
