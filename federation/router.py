"""Sends waiting processes where the routes say, and elsewhere again when a peer will not run them.

What is decided is `routes`'; each change of place is one transaction that compares what was read.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import msgspec
from sortedcontainers import SortedSet

from federation import outbox
from federation.capabilities import Board, present
from federation.exchange import Exchange
from federation.ledger import Detour, Ledger
from federation.outbox import Forward, Move, Tried, Way
from federation.peers import Peers
from federation.routes import (
    ALWAYS,
    Decision,
    Here,
    Option,
    Other,
    Report,
    Route,
    Subject,
    decide,
    explain,
    matches,
    pick,
)
from node.codec import pack, unpack
from node.errors import RpcError
from node.etcd.client import EtcdClient
from node.etcd.transactions import Put
from node.log import get_logger
from node.model import SECOND, ExecutorState, FunctionSpec, Process, State
from node.processes import Processes
from node.reads import read
from node.scheduler import Entry
from node.store import processes as store

__all__ = ["Router"]

_MOST_TRIED = 16  # peers that one process is tried at
_BATCH = 32  # processes sent in one turn: what peers say next should count them
_READ = 400  # processes read in one turn
_PAGE = 40
_PATIENCE = 5.0  # seconds until a process is looked at again that none of its peers can take

log = get_logger("router")


@dataclass
class _Item:
    """A process in our queue that a route may send away. `since` in Unix ns, `after` trio's.

    What is known of it holds for the queue key of this `revision`.
    """

    processid: str
    since: int
    revision: int
    tried: tuple[Tried, ...] = ()
    after: float = 0.0


@dataclass
class _Class:
    """The waiting processes that routes can't tell apart but by age, oldest first."""

    func: str
    executortype: str
    label: str
    routes: list[Route]
    order: SortedSet[tuple[int, str]] = field(default_factory=SortedSet)


@dataclass
class Router:
    """`routes` in their order; `exchange` knows our executors, `board` what peers offer.

    `others` says why a process of another colony may not go on from here, or "".
    """

    home: str
    routes: Sequence[Route]
    client: EtcdClient
    processes: Processes
    peers: Peers
    ledger: Ledger
    board: Board
    exchange: Exchange
    chance: Callable[[], random.Random]
    onward: Callable[[Process], str] = lambda _: "it came from another colony"
    counters: dict[int, int] = field(default_factory=dict)
    _chosen: tuple[str, Way] | None = None
    _items: dict[str, _Item | None] = field(default_factory=dict)
    _classes: dict[tuple[str, str, str], _Class] = field(default_factory=dict)
    _class_of: dict[str, _Class] = field(default_factory=dict)

    # -- when a process is submitted -------------------------------------------------------

    def route(self, process: Process) -> str:
        """Id of the peer that a process goes to which is submitted or ready now, or ""."""
        self._chosen = None
        if process.parents:
            self._items.pop(process.processid, None)  # it waits no more for those
        if not self.routes or process.colonyname != self.home:
            return ""
        subject = self._subject(process, 0.0)
        found = self._choose(subject)
        if found is None:
            return ""
        report, choice = found
        self._chosen = (process.processid, self._way(subject, report, choice, ()))
        self._sent(report, choice, process)
        return choice.id

    def way(self, process: Process) -> Way | None:
        """Why `route` sent this very process to its peer; None when the process named it."""
        chosen, self._chosen = self._chosen, None
        return chosen[1] if chosen and chosen[0] == process.processid else None

    # -- deciding ----------------------------------------------------------------------------

    def subject(self, spec: FunctionSpec, age: float) -> Subject:
        """A spec submitted here as routes see it, once it waits for `age` seconds."""
        conditions = spec.conditions
        return Subject(spec.funcname, conditions.executortype, spec.label, age, _bound(spec))

    def _subject(self, process: Process, age: float, tried: Sequence[Tried] = ()) -> Subject:
        subject = self.subject(process.spec, age)
        bound = subject.bound or (self.onward(process) if process.origin else "")
        if process.input and not bound:
            bound = "the outputs of its parents would not travel with it"
        path = frozenset({process.origin} - {""})
        return replace(subject, bound=bound, path=path, tried=self._barring(tried))

    def _barring(self, tried: Sequence[Tried]) -> dict[str, str]:
        """Those tried that are not to be tried again: one not reached may be, once it speaks."""
        barring: dict[str, str] = {}
        for each in tried:
            statement = self.board.get(each.peer)
            if each.final or statement is None or statement.said.seq <= each.seq:
                barring[each.peer] = each.error
        return barring

    def here(self, executortype: str) -> Here:
        """Our own executors of a type."""
        survey = self.exchange.survey()
        there = [each for each in present(survey) if each.executortype == executortype]
        approved = [
            each
            for each in survey.executors
            if each.executortype == executortype and each.state == ExecutorState.APPROVED
        ]
        return Here(len(there) or self.exchange.polls(executortype), len(approved))

    def others(self) -> list[Other]:
        """Every colony known, with what it offers us."""
        return [
            Other(
                entry.peer.id,
                self.peers.name(entry.peer.id),
                entry.peer.state,
                self.board.get(entry.peer.id),
                self.board.age(entry.peer.id),
            )
            for entry in self.peers.known.values()
        ]

    def decision(self, subject: Subject, *, thorough: bool = False) -> Decision:
        """What the routes say of a process now."""
        here = self.here(subject.executortype)
        return decide(self.routes, subject, here, self.others(), thorough=thorough)

    def _choose(self, subject: Subject) -> tuple[Report, Option] | None:
        if subject.bound or not any(not matches(route, subject) for route in self.routes):
            return None
        report = self.decision(subject).report
        return None if report is None else (report, pick(report, self.chance()))

    def _way(self, subject: Subject, report: Report, choice: Option, tried: Sequence[Tried]) -> Way:
        """`places` counts where else it could go: other peers now, or our own queue."""
        more = len({option.id for option in report.eligible} - {choice.id})
        more += self.exchange.approved(subject.executortype)
        return Way(explain(report, choice), report.route.retry, more, tuple(tried))

    def _sent(self, report: Report, choice: Option, process: Process) -> None:
        self.board.sent(choice.id, process.spec.conditions.executortype)
        number = report.route.number
        self.counters[number] = self.counters.get(number, 0) + 1

    # -- when a peer will not run it ---------------------------------------------------------

    def elsewhere(self, process: Process, move: Move) -> Detour | None:
        """Where a process goes that its peer surely will not run; None when it has to fail.

        The next peer that a route leads to, else our own queue if an executor may take it there.
        """
        forward, now = move.forward, self.ledger.sealer.now()
        if not forward.retry or len(forward.tried) >= _MOST_TRIED:
            return None
        statement = self.board.get(forward.peer)
        refused = forward.state == outbox.REFUSED
        seq = statement.said.seq if statement else -1
        this = Tried(forward.peer, forward.lasterror, now, refused, seq)
        tried = (*(each for each in forward.tried if each.peer != forward.peer), this)
        age = (now - max(process.submissiontime, process.endtime)) / SECOND
        subject = self._subject(process, age, tried)
        found = self._choose(subject)
        if found is not None:
            report, choice = found
            way = self._way(subject, report, choice, tried)
            self._sent(report, choice, process)
            log.info("sent elsewhere", process=process.processid, to=choice.name, why=this.error)
            after = msgspec.structs.replace(process, peer=choice.id)
            return Detour(choice.id, outbox.new_forward(after, way, now))
        if self.exchange.approved(subject.executortype):
            log.info("back in the queue", process=process.processid, why=this.error)
            return Detour("", outbox.returned(forward, tried, now))
        return None

    # -- what waits here ---------------------------------------------------------------------

    async def tick(self) -> None:
        """Look at what waits in our queue; send away what a route wants elsewhere by now.

        Raises EtcdError when the store does not answer; nothing is lost by that.
        """
        if not self.routes:
            return
        await self._gather()
        room = _BATCH
        for each in list(self._classes.values()):
            if room <= 0:
                return
            room -= await self._look(each, room)

    async def _gather(self) -> None:
        """Bring the items in step with the queue's index."""
        entries = self.processes.queue.entries
        for processid in self._items.keys() - entries.keys():
            self._forget(processid)
        fresh: list[str] = []
        for processid in entries.keys() - self._items.keys():
            if self._interesting(entries[processid]):
                fresh.append(processid)
            else:
                self._items[processid] = None
        fresh = fresh[:_READ]
        for start in range(0, len(fresh), _PAGE):
            await self._read(fresh[start : start + _PAGE])

    def _interesting(self, entry: Entry) -> bool:
        """What the index already tells against it; the function is in the process only."""
        if entry.colony != self.home or entry.blocked:
            return False
        waiting = entry.waiting
        if waiting.executornames or waiting.locationname:
            return False
        return any(
            not matches(route, Subject(route.func, entry.executortype, waiting.label))
            for route in self.routes
        )

    async def _read(self, processids: list[str]) -> None:
        places = [self.ledger.keys.proof(processid) for processid in processids]
        proofs = await read(self.client, *places)
        tried = {
            processid: tuple(unpack(found.value, Forward).tried)
            for processid, found in zip(processids, proofs, strict=True)
            if found
        }
        for process in await self.processes.load_many(self.home, processids):
            entry = self.processes.queue.entries.get(process.processid)
            if entry is not None and process.processid not in self._items:
                self._add(process, entry.revision, tried.get(process.processid, ()))

    def _add(self, process: Process, revision: int, tried: tuple[Tried, ...]) -> None:
        spec, processid = process.spec, process.processid
        subject = self._subject(process, 0.0)
        fitting = [route for route in self.routes if not matches(route, subject)]
        if subject.bound or not fitting:
            self._items[processid] = None
            return
        # A node of a workflow waits from when it is ready, which is now at the earliest.
        begun = process.submissiontime if not process.parents else self.ledger.sealer.now()
        item = _Item(processid, max(begun, process.endtime), revision, tried)
        place = (spec.funcname, spec.conditions.executortype, spec.label)
        kind = self._classes.get(place)
        if kind is None:
            kind = self._classes[place] = _Class(*place, fitting)
        self._items[processid], self._class_of[processid] = item, kind
        kind.order.add((item.since, processid))

    def _forget(self, processid: str) -> None:
        item = self._items.pop(processid, None)
        kind = self._class_of.pop(processid, None)
        if item is None or kind is None:
            return
        kind.order.discard((item.since, processid))
        if not kind.order:
            self._classes.pop((kind.func, kind.executortype, kind.label), None)

    async def _look(self, kind: _Class, room: int) -> int:
        """Send away what of one class has to go; returns how many were looked at."""
        least = self._least_age(kind)
        if least is None or not self._leads_anywhere(kind):
            return 0
        now, time = self.ledger.sealer.now(), self.board.time()
        due: list[_Item] = []
        for since, processid in kind.order:
            if (now - since) / SECOND <= least or len(due) >= room:
                break
            item = self._items[processid]
            # The owner took one back from a peer that was not told yet: it stays till then.
            told = processid not in self.ledger.entries
            if item is not None and item.after <= time and told:
                due.append(item)
        for item in due:
            if not await self._send(item):
                item.after = time + _PATIENCE
        return len(due)

    def _least_age(self, kind: _Class) -> float | None:
        """From which age on (seconds) a process of a class may have to go; None: it stays."""
        absent = not self.here(kind.executortype).present
        ages = [
            route.after if route.after is not None else -1.0
            for route in kind.routes
            if route.after is not None or route.when == ALWAYS or absent
        ]
        return min(ages, default=None)

    def _leads_anywhere(self, kind: _Class) -> bool:
        """Whether any peer could take one: otherwise none of a long queue need be looked at."""
        subject = Subject(kind.func, kind.executortype, kind.label, float("inf"))
        return self.decision(subject).report is not None

    async def _send(self, item: _Item) -> bool:
        """Send one process from our queue to a peer; False when it stays."""
        queue = self.processes.queue
        entry = queue.entries.get(item.processid)
        if entry is None or entry.revision != item.revision:
            self._forget(item.processid)  # it was somewhere else since
            return True
        sent: tuple[Report, Option] | None = None

        def step(process: Process, revision: int) -> store.Step | None:
            nonlocal sent
            sent = None
            if process.state != State.WAITING or process.peer or process.waitforparents:
                return None
            now = self.ledger.sealer.now()
            subject = self._subject(process, (now - item.since) / SECOND, item.tried)
            sent = self._choose(subject)
            if sent is None:
                return None
            way = self._way(subject, *sent, item.tried)
            after = msgspec.structs.replace(process, peer=sent[1].id)
            forward = outbox.new_forward(after, way, now)
            key = self.ledger.keys.forward(forward.peer, forward.processid)
            return store.move(process, revision, forward.peer, [Put(key, pack(forward))])

        # Hidden from our own executors meanwhile; the transaction keeps others' away.
        queue.take(entry)
        process: Process | None = None
        try:
            process = await self.processes.change(self.home, item.processid, step)
        except RpcError as error:
            if error.status not in (404, 409):
                raise
        finally:
            # After an error nobody knows: whoever takes it next looks at the store's word.
            if sent is None or process is None:
                queue.give_back(entry)
        if sent is None or process is None:
            return False
        self._forget(item.processid)
        self._sent(*sent, process)
        self.ledger.touched(process)
        log.info("routed", process=item.processid, to=sent[1].name, by=sent[0].route.text)
        return True


def _bound(spec: FunctionSpec) -> str:
    """Why a process can't leave: what it names has a meaning in its own colony only."""
    names = [name for name in spec.conditions.executornames or [] if name]
    if names and "*" not in names:
        return "it names executors of this colony"
    if spec.conditions.locationname:
        return "it names a location of this colony"
    return ""
