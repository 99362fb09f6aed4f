"""The exchange of capabilities: peers get our statement and answer with theirs, both signed.

`capabilities` makes statements; `routing.rules` chooses peers by them.
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
from federation.transport.endpoint import Endpoint
from federation.transport.errors import RemoteRefusal, TransportError
from federation.wire.envelope import Kind, Rejected, VerifiedMessage
from federation.wire.messages import MOST_TOGETHER, Capabilities, Offer, load
from federation.wire.sizes import MAX_BODY
from node.etcd.pressure import Need
from node.host.log import get_logger
from node.members.service import Members
from node.model.types import ExecutorState
from node.processes.assignment import Assigner
from node.tasks.sync import WakeUp, WakeUps

_AGAIN = 25.0  # seconds after which an unchanged statement is sent again
_LEAST = 3.0  # seconds between two statements to one peer
_AWAY = 60.0  # seconds until the next try after a failure
_GONE = 300.0  # ... at a peer that was not reached, unless a probe reaches it first
_OLD = 300.0  # ... or that knows no statements
_FRESH = 1.0  # seconds that a snapshot of our capacity is used

log = get_logger("capabilities")


@dataclass
class Exchange:
    """Exchanges statements. Without `members` we offer nothing; after `drain` we accept none.

    Numbers of statements start from our card's sequence number, which is larger at each start.
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

    # -- our offer ---------------------------------------------------------------------------

    def survey(self) -> CapacitySnapshot:
        """Return what the indexes say about the home colony, at most a second old."""
        if self.context.clock.steady() - self._survey[0] >= _FRESH:
            self._survey = (self.context.clock.steady(), self._look())
            self._offers = offers(self._survey[1])
        return self._survey[1]

    def polls(self, executortype: str) -> int:
        """Return how many executors of a type ask for work at this moment."""
        polling = self.assigner.polling(self.context.home)
        return sum(known == executortype for known, _ in polling)

    def approved(self, executortype: str) -> bool:
        """Return whether an executor of a type, present or not, may take work here."""
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
        """Return whether we accept processes from other colonies now."""
        full = self.context.client.pressure.refuses(Need.GROWS)
        return not full and not self.drain.is_set()

    def statement(self, peerid: str, number: int = 0) -> Capabilities:
        """Return our offer to one peer, as the statement of this number."""
        self.survey()
        policy = self.context.peers.policy(peerid)
        limits = {"body": policy.max_body or MAX_BODY, "together": MOST_TOGETHER}
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
        """Return the next statement, and when it expires."""
        self._count += 1
        said = self.statement(peerid, (self.own_card.sequence << 24) + self._count)
        return said, self.context.clock.seconds + LIFETIME

    def _remember(self, peerid: str, said: Capabilities) -> None:
        self._told[peerid] = (self.context.clock.steady(), said)

    def look(self) -> None:
        """Wake the exchanges for which our offer changed much. Call it about once a second."""
        for peerid, (at, said) in list(self._told.items()):
            if self.context.clock.steady() - at >= _LEAST and not same(
                said, self.statement(peerid)
            ):
                self._wakeups[peerid].wake()

    # -- offers of peers ---------------------------------------------------------------------

    def endpoints(self) -> list[Endpoint]:
        """Return the endpoint at which statements are exchanged."""
        return [Endpoint("/v1/capabilities", Kind.CAPABILITIES, self.answer)]

    async def answer(self, opened: VerifiedMessage, data: bytes) -> bytes:
        """Store a peer's statement, and return ours. Raises Rejected (malformed)."""
        self.capability_cache.take(opened.issuer, load(opened.payload, Capabilities))
        said, expires = self._next(opened.issuer)
        self._remember(opened.issuer, said)
        return self.context.signer.seal(Kind.CAPABILITIES, opened.issuer, said, expires=expires)

    def forget(self, peerid: str) -> None:
        """Forget the statements of a peer that is no longer trusted."""
        self.capability_cache.drop(peerid)
        self._told.pop(peerid, None)

    async def tell_forever(self, connection: PeerConnection, back: WakeUp) -> None:
        """Exchange statements with one peer, until cancelled.

        `back` wakes when the peer is back; until then, a peer that is away is asked rarely.
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
        """Return when a statement is due. None is due to a peer that just sent us its own."""
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
        """Exchange statements once. Return 0, or the seconds to wait after a failure."""
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
            return _GONE if connection.failed(error) else _AWAY
        self._remember(connection.id, said)
        return 0.0
