"""Gossip: trusted peers show each other the signed cards of the colonies that they trust.

A card proves itself, so an introduction adds an address and nothing else. The owner decides about
trust, unless the configuration says otherwise. `peers.introduced` keeps which peer introduced which
colony.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec
import trio

from colonyd.errors import RpcError
from federation.peers.context import Context
from federation.peers.introduced import IntroductionIndex
from federation.peers.owncard import OwnCard
from federation.peers.petnames import problem_of
from federation.peers.policy import TokenBucket
from federation.peers.registry import PENDING, TRUSTED, PeerState
from federation.transport.connection import PeerConnection
from federation.transport.endpoint import Endpoint
from federation.transport.errors import RemoteRefusal, TransportError
from federation.wire.card import Card, open_card
from federation.wire.envelope import Kind, Rejected, VerifiedMessage, inspect
from federation.wire.messages import DEEPEST, Introduction, Introductions, load
from federation.wire.refusals import Refusal
from federation.wire.sizes import SIZES
from node.etcd.errors import EtcdError
from node.host.log import get_logger
from node.store.update import update
from node.tasks.sync import WakeUp, WakeUps

MOST = 64  # cards in one exchange
_MOST_TRUSTED = 256  # colonies trusted because of an introduction alone
_RATE = 6  # exchanges a minute that one peer may start
_AGAIN = 600.0  # seconds between two exchanges without a change
_LEAST = 2.0  # ... and after a change
_AWAY = 60.0  # seconds until the next try after a failure
_GONE = 300.0  # ... at a peer that was not reached, unless a probe reaches it first
_FRAME, _EACH, _NAMED = 1024, 16, 72  # bytes of a message, of an introduction, of a name in it
_OLD = 3600.0  # ... or that has introductions turned off

log = get_logger("introductions")


def chosen(
    trusted: Iterable[PeerState],
    to: str,
    now: float,
    called: Callable[[str], str] = lambda _: "",
) -> list[Introduction]:
    """Return the peers to introduce to `to`, most recently seen first. `now` in seconds.

    Without `to` itself, expired cards, and colonies more than `DEEPEST` hops away. `called` returns
    the petname of the peer with an id, or ""; those for which the message has no room are left out.
    """
    found: list[tuple[str, Introduction]] = []
    for entry in sorted(trusted, key=lambda entry: (-entry.lastseen, entry.peer.id)):
        hops, card = entry.peer.distance + 1, entry.latest or entry.peer.card
        if entry.peer.id == to or hops > DEEPEST or not card or _expiry(card) <= now:
            continue
        found.append((entry.peer.id, Introduction(card, hops)))
        if len(found) == MOST:
            break
    spare = SIZES[Kind.INTRODUCTIONS].bytes - _FRAME
    spare -= sum(len(each.card) + _EACH for _, each in found)
    named = spare // _NAMED  # all, unless nearly all cards are of the largest size
    return [
        msgspec.structs.replace(each, called=called(peerid)) if number < named else each
        for number, (peerid, each) in enumerate(found)
    ]


def _expiry(card: bytes) -> int:
    try:
        return inspect(card, limit=len(card)).expires
    except Rejected:
        return 0


class LastIntroductions(msgspec.Struct, frozen=True):
    """The number of a peer's latest message, and the id that signed it."""

    signer: str = ""
    seq: int = -1


@dataclass
class Gossip:
    """Exchanges introductions. `mode` is "pending", "trust" or "off", as configured.

    Numbers of messages start from our card's sequence number, which is larger at each start.
    """

    context: Context
    own_card: OwnCard
    mode: str = "pending"
    _count: int = 0
    _wakeups: WakeUps = field(default_factory=WakeUps)
    # By id, and the mailbox that brought the message: it may bring an old one again and again.
    _buckets: dict[tuple[str, str], TokenBucket] = field(default_factory=dict)
    _turns: dict[str, trio.Lock] = field(default_factory=dict)
    _known: dict[str, tuple[int, str]] = field(default_factory=dict)  # hops, petnames
    introduced: IntroductionIndex = field(init=False)

    def __post_init__(self) -> None:
        self.introduced = IntroductionIndex(self.context.peers)

    # -- our introductions --------------------------------------------------------------------

    def _message(self, peerid: str) -> Introductions:
        self._count += 1
        peers = self.context.peers
        called = peers.petname if peers.petnames.shared else lambda _: ""
        known = chosen(peers.trusted(), peerid, self.context.clock.seconds, called)
        return Introductions(known, (self.own_card.sequence << 24) + self._count)

    def look(self, peerid: str) -> None:
        """Wake the exchanges with all peers if this peer is trusted anew, or no longer, or has
        another petname.
        """
        entry, said = self.context.peers.get(peerid), None
        if entry is not None and entry.peer.state == TRUSTED:
            said = entry.peer.distance, self.context.peers.petname(peerid)
        if said == self._known.get(peerid):
            return
        if said is None:
            del self._known[peerid]
        else:
            self._known[peerid] = said
        self._wakeups.wake()

    # -- introductions by peers ---------------------------------------------------------------

    def endpoints(self) -> list[Endpoint]:
        """Return the endpoint at which introductions are exchanged."""
        return [Endpoint("/v1/introductions", Kind.INTRODUCTIONS, self.answer)]

    async def answer(self, opened: VerifiedMessage, data: bytes) -> bytes:
        """Take a peer's introductions, and return ours.

        Raises Refusal (not_found, introductions_rate) or Rejected (malformed).
        """
        if self.mode == "off":
            raise Refusal(404, "not_found", "this colony introduces nobody")
        bucket = self._buckets.setdefault((opened.issuer, opened.way), TokenBucket())
        wait = bucket.take(_RATE, trio.current_time())
        if wait > 0:
            again = math.ceil(wait)
            message = f"more than {_RATE} exchanges a minute"
            raise Refusal(429, "introductions_rate", message, again=again)
        await self._hear(opened.issuer, opened.wire, load(opened.payload, Introductions))
        ours = self._message(opened.issuer)
        return self.context.signer.seal(Kind.INTRODUCTIONS, opened.issuer, ours)

    async def _hear(self, by: str, signer: str, said: Introductions) -> None:
        """Take a peer's introductions, unless a later message came before.

        A relay may keep the peer's messages and bring them again.
        """
        async with self._turns.setdefault(by, trio.Lock()):
            if await self._is_later(by, signer, said.seq):
                await self.take_in(by, said)
            else:
                log.info("old introductions not taken", by=by, number=said.seq)

    async def _is_later(self, by: str, signer: str, seq: int) -> bool:
        """Return whether a message has the highest number so far; if so, store the number."""
        key, entry = self.context.keys.introducing(by), self.context.peers.get(by)

        def latest(known: LastIntroductions | None) -> LastIntroductions | None:
            if known is None or signer == known.signer:
                later = known is None or seq > known.seq
            else:
                # With a new key the numbers start anew, and no message of the former key counts
                # again.
                later = not known.signer or (entry is not None and signer == entry.peer.wire)
            return LastIntroductions(signer, seq) if later else None

        taken, _ = await update(
            self.context.client, key, LastIntroductions, latest, what="the number"
        )
        return taken is not None

    async def take_in(self, by: str, said: Introductions) -> None:
        """Store the colonies that a peer introduces, and withdraw those that it no longer does."""
        cards: dict[str, tuple[Card, Introduction]] = {}
        for each in said.known:
            await trio.lowlevel.checkpoint()  # each costs the check of a signature
            try:
                card = open_card(
                    each.card, self.context.clock.seconds, high_water=self.context.clock.floor
                )
            except Rejected as rejected:
                log.debug("introduced card not taken", by=by, why=rejected)
                continue
            known = cards.get(card.id)
            if known is None or card.sequence > known[0].sequence:
                cards[card.id] = (card, each)
        self.introduced.dismiss(by, cards.keys())
        # Hops count from the peer that our owner trusted.
        gossip = self.context.peers.get(by)
        way = gossip.peer.distance if gossip is not None else 0
        for card, each in cards.values():
            hops = way + each.hops
            called = "" if problem_of(each.called) else each.called
            entry = await self.introduced.introduce(card, each.card, by, hops, called)
            if entry is not None and self.mode == "trust":
                await self._trust(entry, hops)

    async def _trust(self, entry: PeerState, hops: int) -> None:
        taken = sum(each.peer.distance > 0 for each in self.context.peers.trusted())
        if entry.peer.state != PENDING or taken >= _MOST_TRUSTED or hops > DEEPEST:
            return
        if self.context.peers.taken(entry.peer):
            return  # another trusted peer has its name: the owner decides
        await self.context.peers.trust(entry.peer.id, distance=hops)

    def prune(self) -> None:
        """Forget introduced colonies whose card has expired, and counts that are as new; once a
        minute is enough.
        """
        steady = trio.current_time()
        self._buckets = {at: each for at, each in self._buckets.items() if not each.is_full(steady)}
        now = self.context.clock.seconds
        for entry in list(self.context.peers.known.values()):
            if entry.peer.state != PENDING or not entry.introduced:
                continue
            if _expiry(entry.latest or entry.peer.card) <= now:
                for by in list(entry.introduced):
                    self.introduced.withdraw(by, entry)

    # -- exchanging ------------------------------------------------------------------------

    async def exchange_forever(self, connection: PeerConnection, back: WakeUp) -> None:
        """Exchange introductions with one peer, until cancelled; `back`: the peer is back."""
        if self.mode == "off":
            await trio.sleep_forever()
        wakeup = self._wakeups[connection.id]
        while True:
            returned, event = back.event, wakeup.event
            pause = await self.exchange(connection)
            if pause:
                with trio.move_on_after(pause):
                    await returned.wait()
                continue
            with trio.move_on_after(_AGAIN * self.context.chance.uniform(0.8, 1.0)):
                await event.wait()
            await trio.sleep(_LEAST)

    async def exchange(self, connection: PeerConnection) -> float:
        """Exchange introductions once. Return 0, or the seconds to wait after a failure."""
        try:
            body = connection.seal(Kind.INTRODUCTIONS, self._message(connection.id))
            opened, _ = await connection.post("/v1/introductions", body, Kind.INTRODUCTIONS)
            if self.context.peers.state(connection.id) == TRUSTED:
                await self._hear(connection.id, opened.wire, load(opened.payload, Introductions))
        except (TransportError, Rejected, EtcdError, RpcError) as error:
            if isinstance(error, RemoteRefusal) and error.final:
                log.debug("peer introduces nobody", peer=connection.id, code=error.code)
                return _OLD if error.code == "not_found" else _AWAY
            log.debug("no introductions", peer=connection.id, error=error)
            return _GONE if connection.failed(error) else _AWAY
        return 0.0

    def forget(self, peerid: str) -> None:
        """Withdraw all introductions by a peer that is no longer trusted."""
        self.introduced.dismiss(peerid, ())
        self._wakeups.pop(peerid, None)
        for place in [each for each in self._buckets if each[0] == peerid]:
            del self._buckets[place]
