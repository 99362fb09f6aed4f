"""Tells peers what we offer them, and hears what they offer us, in one signed exchange.

What a statement says is decided in `capabilities`; who is given work because of it, in
`routing.rules`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from federation.peers.registry import Peers
from federation.routing.capabilities import LIFETIME, Board, Survey, offers, permitted, same
from federation.transport.errors import TransportError
from federation.transport.link import Link, PeerRefused
from federation.wire.envelope import Kind, Opened, Refused
from federation.wire.messages import Capabilities, Offer, load
from federation.wire.signer import Sealer
from federation.wire.sizes import MAX_BODY
from node.host.log import get_logger
from node.host.sync import Bell
from node.members.service import Members
from node.model.types import ExecutorState
from node.processes.service import Processes

_AGAIN = 25.0  # seconds after which an unchanged statement is told again
_LEAST = 3.0  # seconds between two statements to one peer
_AWAY = 60.0  # seconds until a peer is told again that was not there, and did not return
_OLD = 300.0  # ... or that knows of no statements
_FRESH = 1.0  # seconds that a survey is good for

log = get_logger("capabilities")


def _none() -> int:
    return 0


@dataclass
class Exchange:
    """`members` may be None: then we offer nothing. `first` is the first number of statements.

    `accepting` is whether we take anything from others now.
    """

    home: str
    sealer: Sealer
    peers: Peers
    processes: Processes
    board: Board
    members: Members | None = None
    first: Callable[[], int] = _none
    accepting: Callable[[], bool] = lambda: True
    chance: Callable[[], random.Random] = random.Random
    _count: int = 0
    _told: dict[str, tuple[float, Capabilities]] = field(default_factory=dict)
    _bells: dict[str, Bell] = field(default_factory=dict)
    _survey: tuple[float, Survey] = (float("-inf"), Survey(0))
    _offers: dict[str, Offer] = field(default_factory=dict)

    # -- ourselves -----------------------------------------------------------------------

    def survey(self) -> Survey:
        """What the indexes say of the home colony, at most a second old."""
        if self.board.time() - self._survey[0] >= _FRESH:
            self._survey = (self.board.time(), self._look())
            self._offers = offers(self._survey[1])
        return self._survey[1]

    def polls(self, executortype: str) -> int:
        """How many executors of a type ask for work at this moment."""
        polling = self.processes.handout.polling(self.home)
        return sum(known == executortype for known, _ in polling)

    def approved(self, executortype: str) -> bool:
        """Whether an executor of a type, there or not, may take work here."""
        roster = self.members.directory.roster(self.home).executors if self.members else {}
        return any(
            each.executortype == executortype and each.state == ExecutorState.APPROVED
            for each in roster.values()
        )

    def _look(self) -> Survey:
        members, processes, home = self.members, self.processes, self.home
        if members is None:
            return Survey(self.sealer.now())
        roster = members.directory.roster(home)
        return Survey(
            self.sealer.now(),
            [members.executor(home, name) for name in roster.executors],
            list(roster.functions.values()),
            processes.handout.polling(home),
            processes.queue.depths(home),
            [
                (running.executortype, running.executorid)
                for _, running in processes.running.in_order(home)
            ],
        )

    def statement(self, peerid: str, number: int = 0) -> Capabilities:
        """What we offer one peer now, as the statement of this number."""
        self.survey()
        policy = self.peers.policy(peerid)
        limits = {"body": policy.max_body or MAX_BODY}
        if policy.max_waiting:
            waiting = self.processes.queue.count_of(peerid)
            limits["room"] = max(0, policy.max_waiting - waiting)
        return Capabilities(
            seq=number,
            accepting=self.accepting() and self.home not in self.processes.handout.paused,
            types=permitted(self._offers, policy),
            labels=list(policy.labels),
            limits=limits,
            clock=self.sealer.seconds,
        )

    def _next(self, peerid: str) -> tuple[Capabilities, int]:
        """The next statement, and when it expires."""
        self._count += 1
        said = self.statement(peerid, (self.first() << 24) + self._count)
        return said, self.sealer.seconds + LIFETIME

    def _remember(self, peerid: str, said: Capabilities) -> None:
        self._told[peerid] = (self.board.time(), said)

    def look(self) -> None:
        """Wake what tells peers of marked changes; call it once a second or so."""
        for peerid, (at, said) in list(self._told.items()):
            if self.board.time() - at >= _LEAST and not same(said, self.statement(peerid)):
                self._bell(peerid).ring()

    # -- others --------------------------------------------------------------------------

    async def answer(self, opened: Opened, data: bytes) -> bytes:
        """A peer told us what it offers: tell it what we do. Raises Refused (malformed)."""
        self.board.take(opened.issuer, load(opened.payload, Capabilities))
        said, expires = self._next(opened.issuer)
        self._remember(opened.issuer, said)
        return self.sealer.seal(Kind.CAPABILITIES, opened.issuer, said, expires=expires)

    def forget(self, peerid: str) -> None:
        """A peer is trusted no more."""
        self.board.drop(peerid)
        self._told.pop(peerid, None)

    def _bell(self, peerid: str) -> Bell:
        return self._bells.setdefault(peerid, Bell())

    async def tell_forever(self, link: Link, back: Callable[[], trio.Event]) -> None:
        """Exchange statements with one peer, until cancelled.

        `back` gives the event of its return: without that, one that is away is left in peace.
        """
        while True:
            returned = back()
            pause = await self._tell(link)
            if pause:
                with trio.move_on_after(pause):
                    await returned.wait()
            else:
                await self._until_due(link.id)

    async def _until_due(self, peerid: str) -> None:
        """Return when there is something to tell; nothing is, to a peer that told us just now."""
        again = _AGAIN * self.chance().uniform(0.8, 1.0)
        while True:
            event = self._bell(peerid).event
            at, said = self._told.get(peerid, (float("-inf"), None))
            changed = said is None or not same(said, self.statement(peerid))
            left = at + (_LEAST if changed else again) - self.board.time()
            if left <= 0:
                return
            with trio.move_on_after(left):
                await event.wait()

    async def _tell(self, link: Link) -> float:
        """One exchange; returns 0, or how many seconds to leave the peer in peace."""
        said, expires = self._next(link.id)
        sealed = link.seal(Kind.CAPABILITIES, said, expires=expires)
        try:
            opened, _ = await link.post("/v1/capabilities", sealed, Kind.CAPABILITIES)
            self.board.take(link.id, load(opened.payload, Capabilities))
        except PeerRefused as error:
            log.info("peer tells nothing", peer=link.id, code=error.code)
            return _OLD if error.code == "not_found" else _AWAY
        except (TransportError, Refused) as error:
            log.debug("no statement", peer=link.id, error=error)
            return _AWAY
        self._remember(link.id, said)
        return 0.0
