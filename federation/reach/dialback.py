"""Dial-back: trusted peers are asked to connect to us, which tells whether others can reach us.

A peer connects only to the address that the request came from, so nobody can have it connect to a
third one. `verdict` keeps what they told. `wire.messages` has `Dial` and `Dialled`.
"""

from __future__ import annotations

import ipaddress
import math
import secrets
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial

import msgspec
import trio

from colonyd.errors import RpcError
from federation.dht.wide import WideLookup
from federation.network.addresses import problem_of
from federation.network.monitor import NetworkMonitor
from federation.peers.context import Context
from federation.peers.owncard import OwnCard
from federation.peers.policy import TokenBucket
from federation.peers.registry import TRUSTED
from federation.reach.verdict import Reach, Verdict
from federation.transport.connection import PeerConnection
from federation.transport.dial import fetch_card
from federation.transport.endpoint import Endpoint
from federation.transport.errors import RemoteRefusal, TransportError
from federation.wire.address import host_of, is_public, source_of
from federation.wire.card import Card
from federation.wire.envelope import Kind, Rejected, VerifiedMessage
from federation.wire.messages import Dial, Dialled, load
from federation.wire.refusals import BROUGHT, Refusal
from node.etcd.errors import EtcdError
from node.host.log import get_logger
from node.tasks.sync import WakeUp, WakeUps, gather

_LIMIT = 8.0  # seconds that we try to reach a peer that asks
_RATE, _AT_ONCE = 60, 8  # dial-backs for all peers: a minute, at once
_ASKED = 3  # peers that are asked at once
_ENOUGH = 2  # answers without success after which we count as unreachable
_AGAIN = 300.0  # seconds between rounds when the verdict is clear
_LOOK = 5.0  # ... and looks for a peer to ask when it is not
_SETTLE = 2.0  # seconds after a change of the network
_PAUSE = 20.0  # seconds until the same peer is asked again
_AWAY = 60.0  # ... after no answer that counts
_OLD = 3600.0  # ... of a peer that does not dial back
_STALE = 900.0  # seconds for which a verdict holds without another answer
_NONCES = 64

# Returns the card at an address, as `transport.dial.fetch_card`.
CardReader = Callable[..., Awaitable[tuple[Card, bytes]]]
log = get_logger("reach")


class ReachStatus(msgspec.Struct, frozen=True):
    """The state of dial-back, for people.

    `by` are names of the peers whose answers made the `verdict`, `at` is when (Unix seconds, 0 for
    never), `port` the port that they tried, `problem` why one of them did not reach us.
    """

    verdict: str
    address: str
    by: list[str]
    at: int
    port: int
    problem: str


def _alike(one: str, other: str) -> bool:
    """Return whether both are addresses of IPv6, or neither is."""
    return (":" in one) == (":" in other)


@dataclass
class DialBack:
    """Asks peers over `connections`, and answers peers that ask. `port` is where we are reached.

    `lookup` maps the port at routers, and does so again when no peer comes through.
    Without `wide` (`federation.global`), peers that ask are refused, and `run` is not to be called.
    With `private`, in a DHT of our own, addresses of private networks count as well. With
    `loopback`, our port is for this machine alone, and so are our peers.
    """

    context: Context
    own_card: OwnCard
    reach: Reach
    monitor: NetworkMonitor
    connections: Mapping[str, PeerConnection]
    probes: WakeUps
    port: Callable[[], int]
    wide: bool = True
    lookup: WideLookup | None = None
    private: bool = False
    loopback: bool = False
    fetch: CardReader = fetch_card
    _wakeup: WakeUp = field(default_factory=WakeUp)
    _due: dict[str, float] = field(default_factory=dict)  # when a peer may be asked again
    _failures: int = 0
    _concluded: float = -math.inf
    _by: tuple[str, ...] = ()
    _at: int = 0
    _problem: str = ""
    _shown: OrderedDict[str, bool] = field(default_factory=OrderedDict)  # nonces sent, seen here?
    _bucket: TokenBucket = field(default_factory=TokenBucket)
    _under_way: int = 0

    def status(self) -> ReachStatus:
        """Return the state of dial-back."""
        by = [self.context.peers.name(each) for each in self._by]
        reach = self.reach
        return ReachStatus(
            reach.verdict.value, reach.address, by, self._at, self.port(), self._problem
        )

    # -- for peers -------------------------------------------------------------------------

    def endpoints(self) -> list[Endpoint]:
        """Return the endpoint at which peers ask to be connected to."""
        return [Endpoint("/v1/dial", Kind.DIAL, None, placed=self.answer)]

    async def answer(self, opened: VerifiedMessage, remote: str) -> bytes:
        """Connect to a peer at its address, and return whether its card is there.

        Raises Refusal (not_found, dial_source, dial_rate) or Rejected (malformed).
        """
        if not self.wide:
            raise Refusal(404, "not_found", "this colony has federation.global off")
        wish = load(opened.payload, Dial)
        network = self.monitor.network
        if remote.startswith(BROUGHT):
            raise Refusal(403, "dial_source", "a mailbox brought the request: ask directly")
        problem = problem_of(remote, network, loopback=self.loopback)
        if not (problem or self.private or self.loopback or is_public(remote)):
            problem = "is of a private network, and tells nothing of the Internet"
        if problem:
            raise Refusal(403, "dial_source", f"your address {remote} {problem}")
        wait = self._bucket.take(_RATE, trio.current_time())
        if wait or self._under_way >= _AT_ONCE:
            message = f"at most {_RATE} a minute, {_AT_ONCE} at once, for all peers"
            raise Refusal(429, "dial_rate", message, again=math.ceil(wait) or 1)
        self._under_way += 1
        try:
            problem = await self._try(opened.issuer, remote, wish)
        finally:
            self._under_way -= 1
        log.debug("dialled back", peer=opened.issuer, host=remote, port=wish.port, problem=problem)
        answer = Dialled(wish.nonce, not problem, remote, problem)
        return self.context.signer.seal(Kind.DIALLED, opened.issuer, answer)

    async def _try(self, peerid: str, host: str, wish: Dial) -> str:
        """Return why the card of a peer is not at its address, or ""."""
        entry, root = self.context.peers.get(peerid), self.context.peers.index.root
        address = f"[{host}]:{wish.port}" if ":" in host else f"{host}:{wish.port}"
        try:
            with trio.fail_after(_LIMIT):
                card, _ = await self.fetch(
                    address,
                    self.context.clock,
                    pinned=entry.peer.fingerprint if entry is not None else "",
                    nonce=wish.nonce.hex(),
                )
        except trio.TooSlowError:
            return f"{address}: no card within {_LIMIT:g} s"
        except TransportError as error:
            return str(error)[:200]
        return "" if root(card.id) == peerid else f"{address}: another colony lives there"

    # -- what we ask -----------------------------------------------------------------------

    def shown(self, nonce: str) -> None:
        """Note that the card was fetched with a nonce of ours."""
        if nonce in self._shown:
            self._shown[nonce] = True

    async def run(self) -> None:
        """Ask peers until cancelled, and keep the address in our card as the verdict has it."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow)
            nursery.start_soon(self._publish)
            if self.lookup is not None:
                nursery.start_soon(self._ask_mapped, self.lookup.mapped)
            while True:
                event = self._wakeup.event
                pause = await self._round()
                with trio.move_on_after(pause):
                    await event.wait()

    async def _follow(self) -> None:
        """Ask anew after each change of the network; the old verdict is of another network."""
        event, network = self.monitor.wakeup.event, self.monitor.network
        while True:
            await event.wait()
            event = self.monitor.wakeup.event
            if self.monitor.network != network:
                network = self.monitor.network
                self._failures, self._problem = 0, ""
                self._conclude(Verdict.UNKNOWN)
            await trio.sleep(_SETTLE)
            self._due.clear()
            self._wakeup.wake()

    async def _ask_mapped(self, mapped: WakeUp) -> None:
        """Ask at once whether a new port of the router leads to us."""
        while True:
            await mapped.event.wait()
            self._due.clear()
            self._wakeup.wake()

    async def _publish(self) -> None:
        while True:
            event = self.reach.changed.event
            try:
                if await self.own_card.reached(self.reach.address):
                    self.probes.wake()
            except (EtcdError, RpcError) as error:
                log.warning("card not renewed", error=error)  # it is renewed within a minute
            await event.wait()

    def _candidates(self) -> list[PeerConnection]:
        """Return connections to peers outside our network that may be asked now."""
        now, peers = trio.current_time(), self.context.peers
        self._due = {each: due for each, due in self._due.items() if due > now}
        return [
            connection
            for connection in self.connections.values()
            if connection.id not in self._due
            and peers.state(connection.id) == TRUSTED
            and not connection.entry.error
            and connection.guide.around() is None
            and self._is_outside(connection.remote)
        ]

    def _is_outside(self, host: str) -> bool:
        """Return whether a peer at this address, "" if it is not known, is outside our network."""
        network = self.monitor.network
        return self.loopback or not host or network is None or not network.is_on_link(host)

    async def _round(self) -> float:
        """Ask some peers. Return the seconds until the next round."""
        found, port = self._candidates(), self.port()
        found = self.context.chance.sample(found, min(_ASKED, len(found)))
        answers = {
            connection.id: answer
            for connection, answer in zip(
                found, await gather(partial(self._ask, port), found, _ASKED), strict=True
            )
            if answer is not None
        }
        now = trio.current_time()
        reached = {each: answer for each, answer in answers.items() if answer.reached}
        if reached:
            host = self._seen(reached.values())
            by = [each for each, answer in reached.items() if answer.host == host]
            self._failures, self._problem = 0, ""
            text = f"[{host}]" if ":" in host else host
            self._conclude(Verdict.REACHABLE, f"{text}:{port}", by)
        elif answers:
            self._failures += len(answers)
            self._problem = next(iter(answers.values())).problem
            if self.lookup is not None:
                self.lookup.remap()
            if self._failures >= _ENOUGH:
                self._conclude(Verdict.UNREACHABLE, "", list(answers))
        elif self.reach.verdict is not Verdict.UNKNOWN and now - self._concluded > _STALE:
            self._failures = 0
            self._conclude(Verdict.UNKNOWN)
        unclear = self.reach.verdict is Verdict.UNKNOWN or 0 < self._failures < _ENOUGH
        if unclear or (not answers and not self._due):
            return _LOOK
        return _AGAIN * self.context.chance.uniform(0.8, 1.0)

    def _seen(self, answers: Collection[Dialled]) -> str:
        """Return the host that most peers saw; our present one, or of its family, goes before."""
        present = host_of(self.reach.address)
        counts = Counter(each.host for each in answers)
        return max(counts, key=lambda each: (each == present, _alike(each, present), counts[each]))

    def _conclude(self, verdict: Verdict, address: str = "", by: list[str] | None = None) -> None:
        if (verdict, address) != (self.reach.verdict, self.reach.address):
            log.info("reach", verdict=verdict.value, address=address, problem=self._problem)
        self._concluded = trio.current_time()
        self._by, self._at = tuple(by or ()), self.context.clock.seconds if by else 0
        self.reach.conclude(verdict, address)

    async def _ask(self, port: int, connection: PeerConnection) -> Dialled | None:
        """Return a peer's answer, or None if there is none that counts."""
        nonce = secrets.token_bytes(16)
        self._shown[nonce.hex()] = False
        while len(self._shown) > _NONCES:
            self._shown.popitem(last=False)
        pause = _AWAY
        try:
            body = connection.seal(Kind.DIAL, Dial(port, nonce))
            opened, _ = await connection.post("/v1/dial", body, Kind.DIALLED, _LIMIT)
            answer = load(opened.payload, Dialled)
            if answer.nonce == nonce and self._counts(answer, connection.remote):
                pause = _PAUSE
                return answer
        except (TransportError, Rejected) as error:
            if isinstance(error, RemoteRefusal):
                pause = _OLD if error.code == "not_found" else max(_AWAY, error.seconds)
            log.debug("not dialled back", peer=connection.id, error=error)
        finally:
            self._due[connection.id] = trio.current_time() + pause
        return None

    def _counts(self, answer: Dialled, remote: str) -> bool:
        """Return whether an answer of the peer at `remote` counts: the peer is outside our network.

        A success counts only if a connection with its nonce came in, so no peer can make it up.
        """
        if answer.reached and not self._shown[answer.nonce.hex()]:
            return False
        try:
            seen = ipaddress.ip_address(answer.host)
        except ValueError:
            return False
        if "%" in answer.host:
            return False  # a zone can be any text, and a card with it could not be signed
        if self.loopback:
            return True
        if not self._is_outside(remote) or problem_of(answer.host, self.monitor.network):
            return False
        if source_of(answer.host) == source_of(remote):
            return False  # it is behind the same router
        return self.private or seen.is_global
