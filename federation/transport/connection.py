"""The connection to a peer: one pinned HTTPS connection pool each, every answer verified.

The callers decide when to send which message, and what an answer means. `service.server` serves.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
import trio

from colonyd.http import reason_of
from federation.peers.clock import ClockReading, apart, bridgeable, read, told
from federation.peers.registry import TRUSTED, PeerState
from federation.transport.dial import fetch_card, find, pool
from federation.transport.errors import Lost, Reason, RemoteRefusal, TransportError, Unsent
from federation.transport.tls import fingerprint_of
from federation.wire.address import split_address
from federation.wire.envelope import Kind, Rejected, VerifiedMessage, inspect, open_envelope
from federation.wire.messages import MOST, SIGNED, Hello, SignedRefusal, Successor, load
from federation.wire.refusals import Proof, RefusalBody
from federation.wire.signer import Signer
from federation.wire.sizes import ANSWER, ANSWERS, SIZES
from node.host.log import get_logger
from node.http.pool import NoAnswer, NoSlot, NotSent, Pool
from node.model.types import SECOND

__all__ = ["Guide", "PeerConnection", "PeerResponse", "fetch_card"]

_LARGE = 1_000_000  # bytes from which an answer is opened in a thread
_LONGEST_WAIT = 300  # seconds that a peer may have us wait
# ... and a mailbox: less than the time for which the peer's other mailboxes come first.
MAILBOX_WAIT = 10
_MOST_ADDRESSES = 16
# Seconds allowed for a message and its answer, beside the peer's own wait; and bytes a second.
_LEAST, _SLOWEST = 60.0, 16_384
_PATIENCE = 15.0  # seconds without a byte of the answer, beside the peer's own wait
_HEARD = 10  # seconds for which an answer proves that a peer is there
_TIMELY = ("not_yet_valid", "expired")

# Carries a message's body to a path at the peer, and returns the answer. The last argument is how
# long the peer may wait, in seconds.
Carrier = Callable[[str, bytes, float], Awaitable["PeerResponse"]]
log = get_logger("transport")


class PeerResponse(msgspec.Struct, frozen=True):
    """An answer as it came: HTTP status, the header `retry-after`, the body.

    `brought`: another colony carried message and answer, the `mailbox` if the peer polls it.
    """

    status: int
    retry_after: str
    data: bytes
    brought: bool = False
    mailbox: str = ""


class Guide(Protocol):
    """What a connection asks and tells about its peer; the parts that know the peer stand above it.

    The defaults are for a peer without a mailbox, whose clock and keys are as we know them.
    """

    async def renew(self, address: str) -> None:
        """Fetch the card at an address of the peer, and store it. Raises TransportError."""

    def around(self) -> Carrier | None:
        """Return a carrier that takes the place of our own connection, or None."""
        return None

    def measure(self) -> None:
        """Have the peer's clock measured: the clock is not as we thought, or the peer is back."""
        return

    async def follow(self, successors: list[Successor]) -> None:
        """Record the peer's change of keys. Raises Rejected."""
        return

    def misled(self, mailbox: str) -> None:
        """Take note of a mailbox that brought an answer which the peer did not sign."""
        return

    def headers(self, body: bytes) -> Mapping[str, str]:
        """Return HTTP headers, which the server reads before it checks the signature."""
        return {}

    @abstractmethod
    async def ways(self, address: str) -> list[str]:
        """Return the addresses that an address leads to and that we may try. Raises Unsent."""


@dataclass
class PeerConnection:
    """The connection to one peer, as its `guide` describes it."""

    entry: PeerState
    signer: Signer
    guide: Guide
    _http: Pool | None = None
    _pinned: str = ""
    _sequence: int = -1
    _greeted: bool = False
    _lock: trio.Lock = field(default_factory=trio.Lock)

    @property
    def id(self) -> str:
        """Return the id under which the peer is kept."""
        return self.entry.peer.id

    @property
    def wire(self) -> str:
        """Return the peer's present id."""
        return self.entry.peer.wire

    @property
    def remote(self) -> str:
        """Return the IP address that we are connected to, "" while we are not."""
        return self._http.remote if self._http is not None else ""

    def key_of(self, issuer: str) -> bytes | None:
        """Return the peer's key of this id, if it is valid now."""
        return self.entry.peer.key_of(issuer, self.signer.clock.seconds)

    def demand_version(self) -> None:
        """Raise Unsent if the peer's card names another version of the protocol."""
        if self.entry.peer.mismatch:
            raise Unsent(self.entry.peer.mismatch)

    async def connect(self) -> Pool | None:
        """Connect over TLS that accepts only the peer's own certificate.

        Return the pool of connections, or None if a mailbox carries the messages. Raises Unsent.
        """
        if self.guide.around() is not None:
            return None
        return await self._connected()

    async def _connected(self) -> Pool:
        async with self._lock:
            if self._http is not None and not self.stale:
                return self._http
            await self._forget()
            peer = self.entry.peer
            addresses = self.entry.addresses()[:_MOST_ADDRESSES]
            found = await find(addresses, peer.fingerprint, self.guide.ways)
            if found.address:
                return self._use(found.address, found.at, found.der)
            problems = list(found.problems)
            for address, der in found.others:
                try:
                    # Accept a new certificate once a newer card of the same colony names it.
                    await self.guide.renew(address)
                    if fingerprint_of(der) == self.entry.peer.fingerprint:
                        return self._use(address, address, der)
                    problems.append(
                        f"{address}: shows another certificate than the peer's card promises"
                    )
                except (ValueError, TransportError) as error:
                    problems.append(reason_of(error))
            self.entry.undialed = True
            raise Unsent("; ".join(problems[:3]) or "no address is known")

    @property
    def stale(self) -> bool:
        """Return whether the connections lead to a former start of the peer.

        A card with a higher number means a new start, other addresses or another certificate.
        """
        peer = self.entry.peer
        return self._http is not None and (
            self._pinned != peer.fingerprint or self._sequence != peer.sequence
        )

    def _use(self, address: str, at: str, der: bytes) -> Pool:
        host, port = split_address(at)
        self._http = pool(der, host, port)
        self._pinned, self._sequence = fingerprint_of(der), self.entry.peer.sequence
        self.entry.prove(address)
        return self._http

    @property
    def unmeasured(self) -> bool:
        """Return whether the peer's clock is not known yet, so that messages have our own times."""
        return self._translates and not self._greeted

    @property
    def unheard(self) -> bool:
        """Return whether a mailbox may keep our message for a peer that may be away."""
        quiet = self.signer.clock.seconds - self.entry.lastseen > _HEARD or bool(self.entry.error)
        return quiet and self.guide.around() is not None

    def failed(self, error: Exception) -> bool:
        """Note an error. Return whether the peer was not reached; then a probe tells of its return.

        The next answer of the peer after a noted error is that return.
        """
        if not isinstance(error, Unsent):
            return False
        self.entry.error = str(error)
        return True

    async def _forget(self) -> None:
        http, self._http = self._http, None
        if http is not None:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 2):
                await http.aclose()

    async def close(self) -> None:
        """Close the connections; the next message makes new ones."""
        await self._forget()

    async def _drop(self, used: Pool) -> None:
        if self._http is used:
            await self._forget()

    async def exchange(self, path: str, body: bytes, wait: float) -> PeerResponse:
        """Send bytes and return the answer. `wait` as for `post`. Raises Unsent or Lost.

        An answer larger than its kind allows is not read to its end.
        """
        limit = SIZES[ANSWERS[path]].bytes
        carrier = self.guide.around()
        if carrier is not None:
            return await carrier(path, body, wait)
        http = await self._connected()
        headers = {"content-type": "application/cose", **self.guide.headers(body)}
        try:
            with trio.fail_after(_LEAST + wait + (len(body) + limit) / _SLOWEST):
                answer = await http.post(
                    path,
                    body,
                    headers,
                    limit=lambda status: limit if status == 200 else ANSWER,
                    patience=_PATIENCE + wait,
                )
        except NoSlot as error:
            raise Unsent(str(error)) from None
        except NotSent as error:
            await self._drop(http)
            raise Unsent(str(error)) from None
        except (NoAnswer, trio.TooSlowError) as error:
            await self._drop(http)
            raise Lost(f"no answer: {reason_of(error)}") from None
        return PeerResponse(answer.status, answer.headers.get("retry-after", ""), answer.body)

    async def post(
        self, path: str, body: bytes, kind: Kind, wait: float = 0
    ) -> tuple[VerifiedMessage, bytes]:
        """Send an envelope. Return the verified answer of `kind`, and its bytes.

        `wait` is how long the peer may wait with its answer, in seconds. Raises TransportError.
        """
        answer = await self.exchange(path, body, wait)
        opened = await self.read(answer, path, body, kind)
        self._heard()
        return opened, answer.data

    async def read(
        self, answer: PeerResponse, path: str, body: bytes, kind: Kind
    ) -> VerifiedMessage:
        """Return the verified answer, of `kind`, to a message. Raises TransportError."""
        if answer.status != 200:
            refusal = _refusal(answer)
            raise self._failure(answer, refusal, path, body)
        try:
            return await self._open_large(answer.data, kind)
        except Rejected as error:
            self._doubt(answer)
            raise Lost(f"the answer is not valid: {error}") from None

    def _doubt(self, answer: PeerResponse) -> None:
        """Note an answer that proves nothing: a mailbox may have made it up."""
        if answer.mailbox:
            self.guide.misled(answer.mailbox)

    def _heard(self) -> None:
        """Note that the peer answered. After an error, its probe tells all that it is back."""
        failed, self.entry.error = self.entry.error, ""
        self.entry.lastseen = self.signer.clock.seconds
        if failed:
            self.guide.measure()

    # -- time, see `peers.clock` ------------------------------------------------------------

    @property
    def _translates(self) -> bool:
        return self.entry.peer.state == TRUSTED

    @property
    def seconds(self) -> int:
        """Return the present time by the clock that this peer signs with, in seconds."""
        return self.signer.clock.seconds + (self.entry.clock.issuing if self._translates else 0)

    @property
    def highest(self) -> float:
        """Return the latest time that we remember, in seconds of this peer's signing clock."""
        return self.signer.clock.floor + self.seconds - self.signer.clock.seconds

    def seal(
        self,
        kind: Kind,
        message: msgspec.Struct,
        *,
        cti: bytes | None = None,
        expires: int | None = None,
    ) -> bytes:
        """Return a signed request to this peer, with times that are valid by its clock.

        `expires` is in seconds by our clock; without it, the request lives as long as allowed.
        """
        ahead = self.entry.clock.judging if self._translates else 0
        return self.signer.seal(
            kind,
            self.wire,
            message,
            cti=cti,
            issued=self.signer.clock.seconds + ahead,
            expires=None if expires is None else expires + ahead,
        )

    async def greet(self, message: Hello) -> Hello:
        """Exchange signed hellos, and learn the peer's clock. Raises TransportError.

        The `nonce` of the message proves that the answer is fresh, whatever time it has.
        """
        body = self.seal(Kind.HELLO, message)
        sent = self.signer.clock.now() / SECOND
        answer = await self.exchange("/v1/hello", body, 0)
        received = self.signer.clock.now() / SECOND
        if answer.status != 200:
            refusal = _refusal(answer)
            denial = self._denial(refusal, "/v1/hello", body)
            if denial is not None and denial.clock:
                self._learn(read(denial.clock, denial.latest, sent, received))
            raise self._failure(answer, refusal, "/v1/hello", body)
        limit = SIZES[Kind.HELLO].bytes
        try:
            if inspect(answer.data, limit=limit).issuer not in self.entry.peer.ids:
                # The peer may have another key by now; its hello then says so.
                said = inspect(answer.data, limit=limit).payload
                await self.guide.follow(load(said, Hello).successors)
            opened = self._open_now(answer.data, Kind.HELLO)
            hello = load(opened.payload, Hello)
            self._greeted = True
            if not hello.nonce or hello.nonce != message.nonce:
                # an older release has no nonce: check its time instead
                self._open(answer.data, Kind.HELLO)
        except Rejected as error:
            self._doubt(answer)
            raise Lost(f"the answer is not valid: {error}") from None
        if hello.clock and hello.nonce == message.nonce:
            self._learn(read(hello.clock, hello.latest, sent, received))
        self._heard()
        return hello

    def _learn(self, reading: ClockReading) -> None:
        """Record the peer's clock. Raises RemoteRefusal if it is too far off to be bridged."""
        if self.entry.clock.learn(reading):
            log.info("clock of peer", peer=self.id, ahead=reading.ahead)
        if abs(reading.ahead) > MOST:
            problem = apart(reading.at + reading.ahead, reading.at)
            raise RemoteRefusal("clocks_apart", f"{problem}, at most {told(MOST)} can be bridged")

    async def _open_large(self, data: bytes, kind: Kind) -> VerifiedMessage:
        """Return the verified answer; a large one is hashed in a thread."""
        if len(data) <= _LARGE:
            return self._open(data, kind)
        return await trio.to_thread.run_sync(self._open, data, kind)

    def _open(self, data: bytes, kind: Kind) -> VerifiedMessage:
        return self._opened(data, kind, self.seconds, self.highest)

    def _open_now(self, data: bytes, kind: Kind) -> VerifiedMessage:
        """Return an answer that repeats a part of our request, which proves that it is fresh."""
        issued = inspect(data, limit=SIZES[kind].bytes).issued
        return self._opened(data, kind, issued, 0)

    def _opened(self, data: bytes, kind: Kind, now: float, high_water: float) -> VerifiedMessage:
        return open_envelope(
            data,
            kind=kind,
            audience=self.signer.ids,
            now=now,
            keys=self.key_of,
            limit=SIZES[kind].bytes,
            high_water=high_water,
        )

    # -- refusals --------------------------------------------------------------------------

    def _denial(self, refusal: RefusalBody, path: str, body: bytes) -> SignedRefusal | None:
        """Return the peer's signed refusal of this very message at this path, or None.

        The path matters: a relay could show the same bytes at another path, to have them refused.
        """
        try:
            denial = load(self._open_now(refusal.signed, Kind.REFUSAL).payload, SignedRefusal)
        except Rejected:
            return None
        about = (denial.digest, denial.path, denial.code)
        return denial if about == (hashlib.sha256(body).digest(), path, refusal.code) else None

    def _failure(
        self, answer: PeerResponse, refusal: RefusalBody, path: str, body: bytes
    ) -> TransportError:
        status, brought = answer.status, answer.brought
        code = refusal.code[:40] or f"http_{status}"
        message = refusal.message[:1000] or "no reason given"
        denial = self._denial(refusal, path, body)
        if denial is None:
            self._doubt(answer)
            proof = Proof.CARRIED if brought else Proof.NONE
        elif denial.kept:
            proof = Proof.KEPT
        else:
            # A relay may have brought the message before, and may bring it again.
            proof = Proof.SIGNED_CARRIED if brought else Proof.SIGNED
        alone = Proof.NONE if brought else proof
        if status in (408, 429) or status >= 500 or status < 400:
            after = answer.retry_after
            number = after.isascii() and after.isdigit() and len(after) < 10
            longest = MAILBOX_WAIT if brought and denial is None else _LONGEST_WAIT
            seconds = min(int(after), longest) if number else 0
            # With any other status, the peer may have accepted it all the same.
            proof = alone if status == 429 else Proof.NONE
            return RemoteRefusal(code, message, Reason.LATER, proof, seconds)
        if proof is Proof.CARRIED and path in SIGNED:
            return Lost(f"{code}: {message} (the peer did not sign this)")
        # The times may have been right when they were signed, and a clock was set since.
        if (
            code in _TIMELY
            and self._translates
            and bridgeable(refusal.clock, self.signer.clock.seconds)
        ):
            self.guide.measure()
            return RemoteRefusal(code, message, Reason.UNTIMELY, alone)
        return RemoteRefusal(code, message, Reason.FINAL, proof)


def _refusal(answer: PeerResponse) -> RefusalBody:
    try:
        return msgspec.json.decode(answer.data, type=RefusalBody)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return RefusalBody()
