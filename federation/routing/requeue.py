"""The requeuer: sends processes from our own queue to peers when their routes say so.

`router` decides where. Each move is one transaction that compares what was read.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import msgspec
from sortedcontainers import SortedSet

from colonyd.errors import Conflict, NotFound
from federation.forward import machine
from federation.forward.machine import FailedAttempt, Forward
from federation.limits.decoding import load_large
from federation.outbox.outbox import Outbox
from federation.peers.context import Context
from federation.routing.router import Router
from federation.routing.rules import ALWAYS, Route, RoutedProcess, RouteOption, RouteReport, matches
from federation.wire.envelope import Rejected, inspect
from federation.wire.messages import Submit
from node.etcd.batch import read
from node.etcd.txn import Put
from node.host.log import get_logger
from node.model.codec import pack, unpack
from node.model.types import SECOND, Process, State
from node.processes.queue import QueueEntry
from node.store import keys
from node.store.work import processes as store

_BATCH = 32  # processes sent in one turn: the next statements of peers should count them
_READ = 400  # processes read in one turn
_PAGE = 40
_PATIENCE = 5.0  # seconds until the next try of a process that none of its peers can take

log = get_logger("router")


@dataclass
class _QueuedProcess:
    """A process in our queue that a route may send away. `since` is Unix ns, `after` trio's.

    All fields are valid for the queue key of this `revision`. `path` are the colonies that had the
    process before it came here.
    """

    processid: str
    since: int
    revision: int
    tried: tuple[FailedAttempt, ...] = ()
    path: Collection[str] = ()
    after: float = 0.0


@dataclass
class _Class:
    """Waiting processes that differ for routes only by age, oldest first."""

    func: str
    executortype: str
    label: str
    routes: list[Route]
    order: SortedSet[tuple[int, str]] = field(default_factory=SortedSet)


@dataclass
class Requeuer:
    """The home colony's queue as routes see it; `router` decides."""

    context: Context
    outbox: Outbox
    router: Router
    _items: dict[str, _QueuedProcess | None] = field(default_factory=dict)
    _classes: dict[tuple[str, str, str], _Class] = field(default_factory=dict)
    _class_of: dict[str, _Class] = field(default_factory=dict)

    def ready(self, processid: str) -> None:
        """Forget a workflow's node that became ready, so that it is read again."""
        self._forget(processid)

    async def tick(self) -> None:
        """Send the waiting processes away that a route sends to a peer by now.

        Raises EtcdError if the store does not answer; the next call goes on.
        """
        if not self.router.routes:
            return
        await self._gather()
        room = _BATCH
        for each in list(self._classes.values()):
            if room <= 0:
                return
            room -= await self._look(each, room)

    async def _gather(self) -> None:
        """Bring the items in step with the queue's index."""
        entries = self.context.processes.queue.entries
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

    def _interesting(self, entry: QueueEntry) -> bool:
        """Return whether a route may match, by the index alone; the index has no function name."""
        if entry.colony != self.context.home or entry.blocked:
            return False
        waiting = entry.waiting
        if waiting.executornames or waiting.locationname:
            return False
        return any(
            not matches(route, RoutedProcess(route.func, entry.executortype, waiting.label))
            for route in self.router.routes
        )

    async def _read(self, processids: list[str]) -> None:
        places = [self.context.keys.proof(processid) for processid in processids]
        proofs = await read(self.context.client, *places)
        tried = {
            processid: tuple(unpack(found.value, Forward).tried)
            for processid, found in zip(processids, proofs, strict=True)
            if found
        }
        found = await self.context.processes.load_many(self.context.home, processids)
        paths = await self._paths([each for each in found if each.origin])
        for process in found:
            pid = process.processid
            entry = self.context.processes.queue.entries.get(pid)
            if entry is not None and pid not in self._items:
                self._add(process, entry.revision, tried.get(pid, ()), paths.get(pid, ()))

    async def _paths(self, foreign: Sequence[Process]) -> dict[str, list[str]]:
        """Return the earlier colonies of each process, without the one that sent it to us."""
        known: dict[str, list[str]] = {}
        for pid in (each.processid for each in foreign if not self.router.onward(each)):
            # One at a time: each may be as large as the largest answer of the store.
            sealed = await self.context.client.get(keys.submission(self.context.home, pid))
            data = sealed.value if sealed is not None else b""
            try:
                payload = inspect(data, limit=len(data)).payload
                path = (await load_large(payload, Submit)).path
            except Rejected:
                continue  # then the next colony refuses it
            known[pid] = [self.context.peers.index.root(each) for each in path]
        return known

    def _add(
        self,
        process: Process,
        revision: int,
        tried: tuple[FailedAttempt, ...],
        path: Collection[str],
    ) -> None:
        spec, processid = process.spec, process.processid
        subject = self.router.subject_of(process, 0.0)
        fitting = [route for route in self.router.routes if not matches(route, subject)]
        if subject.bound or not fitting:
            self._items[processid] = None
            return
        # A node of a workflow waits from when it is ready, which is now at the earliest.
        begun = process.submissiontime if not process.parents else self.context.clock.now()
        item = _QueuedProcess(processid, max(begun, process.endtime), revision, tried, path)
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
        """Send the due processes of one class. Return how many were tried."""
        least = self._least_age(kind)
        if least is None or not self._leads_anywhere(kind):
            return 0
        now, time = self.context.clock.now(), self.context.clock.steady()
        due: list[_QueuedProcess] = []
        for since, processid in kind.order:
            if (now - since) / SECOND <= least or len(due) >= room:
                break
            item = self._items[processid]
            # The owner took it back from a peer that has not been told yet: it stays until then.
            told = processid not in self.outbox.entries
            if item is not None and item.after <= time and told:
                due.append(item)
        for item in due:
            if not await self._send(item):
                item.after = time + _PATIENCE
        return len(due)

    def _least_age(self, kind: _Class) -> float | None:
        """Return the age (seconds) from which a process of a class may be sent; None: it stays."""
        absent = not self.router.here(kind.executortype).present
        ages = [
            route.after if route.after is not None else -1.0
            for route in kind.routes
            if route.after is not None or route.when == ALWAYS or absent
        ]
        return min(ages, default=None)

    def _leads_anywhere(self, kind: _Class) -> bool:
        """Return whether any peer could take a process of a class; if not, skip its whole queue."""
        subject = RoutedProcess(kind.func, kind.executortype, kind.label, float("inf"))
        return self.router.decision(subject).report is not None

    async def _send(self, item: _QueuedProcess) -> bool:
        """Send one process from our queue to a peer. Return False if it stays."""
        queue = self.context.processes.queue
        entry = queue.entries.get(item.processid)
        if entry is None or entry.revision != item.revision:
            self._forget(item.processid)  # it was elsewhere meanwhile
            return True
        sent: tuple[RouteReport, RouteOption] | None = None

        def step(process: Process, revision: int) -> store.Transition | None:
            nonlocal sent
            sent = None
            if process.state != State.WAITING or process.peer or process.waitforparents:
                return None
            now = self.context.clock.now()
            subject = self.router.subject_of(
                process, (now - item.since) / SECOND, item.tried, item.path
            )
            sent = self.router.choose(subject)
            if sent is None:
                return None
            route_trace = self.router.route_trace_by(subject, *sent, item.tried)
            after = msgspec.structs.replace(process, peer=sent[1].id)
            forward = machine.new_forward(after, route_trace, now)
            key = self.context.keys.forward(forward.peer, forward.processid)
            return store.move(process, revision, forward.peer, [Put(key, pack(forward))])

        # Hide it from our own executors meanwhile; the transaction keeps other daemons' away.
        queue.take(entry)
        process: Process | None = None
        try:
            process = await self.context.processes.change(self.context.home, item.processid, step)
        except (NotFound, Conflict):
            pass
        finally:
            # After an error the result is unknown: the next reader of the queue checks the store,
            # and what is to be sent is there.
            if sent is None or process is None:
                queue.give_back(entry)
                # A poll meanwhile found nothing: wake it.
                self.router.exchange.assigner.offered(entry)
            if sent is not None:
                self.outbox.look_for(item.processid, sent[1].id)
        if sent is None or process is None:
            return False
        self._forget(item.processid)
        self.router.sent(*sent, process)
        log.info("routed", process=item.processid, to=sent[1].name, by=sent[0].route.text)
        return True
