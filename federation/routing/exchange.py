"""Tells peers what we offer them, and hears what they offer us, in one signed exchange.

What a statement says is decided in `capabilities`; who is given work because of it, in
`routing.rules`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from federation.peers.context import Context
from federation.peers.owncard import OwnCard
from federation.routing.capabilities import (
    LIFETIME,
    CapabilityCache,
    CapacitySnapshot,
    offers,
    permitted,
    same,
)
from federation.transport.connection import PeerConnection
from federation.transport.errors import RemoteRefusal, TransportError
from federation.wire.endpoint import Endpoint
from federation.wire.envelope import Kind, Rejected, VerifiedMessage
from federation.wire.messages import Capabilities, Offer, load
from federation.wire.sizes import MAX_BODY
from node.etcd.pressure import Need
from node.host.log import get_logger
from node.members.service import Members
from node.model.types import ExecutorState
from node.processes.assignment import Assigner
from node.tasks.sync import WakeUp, WakeUps

_AGAIN = 25.0  # seconds after which an unchanged statement is told again
_LEAST = 3.0  # seconds between two statements to one peer
_AWAY = 60.0  # seconds until a peer is told again that was not there, and did not return
_OLD = 300.0  # ... or that knows of no statements
_FRESH = 1.0  # seconds that a survey is good for

log = get_logger("capabilities")


@dataclass
class Exchange:
    """`members` may be None: then we offer nothing. Once `drain` is set we accept nothing.

    Statements are numbered from the sequence number of our card, larger at each start.
    """

    context: Context
    assigner: Assigner
    capability_cache: CapabilityCache
    own_card: OwnCard
    drain: trio.Event
    members: Members | None = None
    _count: int = 0
    _told: dict[str, tuple[float, Capabilities]] = field(default_factory=dict)
    _wakeups: WakeUps = field(default_factory=WakeUps)
    _survey: tuple[float, CapacitySnapshot] = (float("-inf"), CapacitySnapshot(0))
    _offers: dict[str, Offer] = field(default_factory=dict)

    # -- ourselves -----------------------------------------------------------------------

    def survey(self) -> CapacitySnapshot:
        """What the indexes say of the home colony, at most a second old."""
        if self.context.clock.steady() - self._survey[0] >= _FRESH:
            self._survey = (self.context.clock.steady(), self._look())
            self._offers = offers(self._survey[1])
        return self._survey[1]

    def polls(self, executortype: str) -> int:
        """How many executors of a type ask for work at this moment."""
        polling = self.assigner.polling(self.context.home)
        return sum(known == executortype for known, _ in polling)

    def approved(self, executortype: str) -> bool:
        """Whether an executor of a type, there or not, may take work here."""
        index = self.members.directory.roster(self.context.home).executors if self.members else {}
        return any(
            each.executortype == executortype and each.state == ExecutorState.APPROVED
            for each in index.values()
        )

    def _look(self) -> CapacitySnapshot:
        members, processes, home = self.members, self.context.processes, self.context.home
        if members is None:
            return CapacitySnapshot(self.context.clock.now())
        index = members.directory.roster(home)
        return CapacitySnapshot(
            self.context.clock.now(),
            [members.executor(home, name) for name in index.executors],
            list(index.functions.values()),
            self.assigner.polling(home),
            processes.queue.depths(home),
            [
                (running.executortype, running.executorid)
                for _, running in processes.running.in_order(home)
            ],
        )

    def _accepting(self) -> bool:
        """Whether we take anything from others now."""
        full = self.context.client.pressure.refuses(Need.GROWS)
        return not full and not self.drain.is_set()

    def statement(self, peerid: str, number: int = 0) -> Capabilities:
        """What we offer one peer now, as the statement of this number."""
        self.survey()
        policy = self.context.peers.policy(peerid)
        limits = {"body": policy.max_body or MAX_BODY}
        if policy.max_waiting:
            waiting = self.context.processes.queue.count_of(peerid)
            limits["room"] = max(0, policy.max_waiting - waiting)
        return Capabilities(
            seq=number,
            accepting=self._accepting() and self.context.home not in self.assigner.paused,
            types=permitted(self._offers, policy),
            labels=list(policy.labels),
            limits=limits,
            clock=self.context.clock.seconds,
        )

    def _next(self, peerid: str) -> tuple[Capabilities, int]:
        """The next statement, and when it expires."""
        self._count += 1
        said = self.statement(peerid, (self.own_card.sequence << 24) + self._count)
        return said, self.context.clock.seconds + LIFETIME

    def _remember(self, peerid: str, said: Capabilities) -> None:
        self._told[peerid] = (self.context.clock.steady(), said)

    def look(self) -> None:
        """Wake what tells peers of marked changes; call it once a second or so."""
        for peerid, (at, said) in list(self._told.items()):
            if self.context.clock.steady() - at >= _LEAST and not same(
                said, self.statement(peerid)
            ):
                self._wakeups[peerid].wake()

    # -- others --------------------------------------------------------------------------

    def endpoints(self) -> list[Endpoint]:
        """Where statements are exchanged."""
        return [Endpoint("/v1/capabilities", Kind.CAPABILITIES, self.answer)]

    async def answer(self, opened: VerifiedMessage, data: bytes) -> bytes:
        """A peer told us what it offers: tell it what we do. Raises Rejected (malformed)."""
        self.capability_cache.take(opened.issuer, load(opened.payload, Capabilities))
        said, expires = self._next(opened.issuer)
        self._remember(opened.issuer, said)
        return self.context.signer.seal(Kind.CAPABILITIES, opened.issuer, said, expires=expires)

    def forget(self, peerid: str) -> None:
        """A peer is trusted no more."""
        self.capability_cache.drop(peerid)
        self._told.pop(peerid, None)

    async def tell_forever(self, connection: PeerConnection, back: WakeUp) -> None:
        """Exchange statements with one peer, until cancelled.

        `back` rings at its return: without that, one that is away is left in peace.
        """
        while True:
            returned = back.event
            pause = await self._tell(connection)
            if pause:
                with trio.move_on_after(pause):
                    await returned.wait()
            else:
                await self._until_due(connection.id)

    async def _until_due(self, peerid: str) -> None:
        """Return when there is something to tell; nothing is, to a peer that told us just now."""
        again = _AGAIN * self.context.chance.uniform(0.8, 1.0)
        while True:
            event = self._wakeups[peerid].event
            at, said = self._told.get(peerid, (float("-inf"), None))
            changed = said is None or not same(said, self.statement(peerid))
            left = at + (_LEAST if changed else again) - self.context.clock.steady()
            if left <= 0:
                return
            with trio.move_on_after(left):
                await event.wait()

    async def _tell(self, connection: PeerConnection) -> float:
        """One exchange; returns 0, or how many seconds to leave the peer in peace."""
        said, expires = self._next(connection.id)
        sealed = connection.seal(Kind.CAPABILITIES, said, expires=expires)
        try:
            opened, _ = await connection.post("/v1/capabilities", sealed, Kind.CAPABILITIES)
            self.capability_cache.take(connection.id, load(opened.payload, Capabilities))
        except (TransportError, Rejected) as error:
            if isinstance(error, RemoteRefusal) and error.final:
                log.info("peer tells nothing", peer=connection.id, code=error.code)
                return _OLD if error.code == "not_found" else _AWAY
            log.debug("no statement", peer=connection.id, error=error)
            return _AWAY
        self._remember(connection.id, said)
        return 0.0
