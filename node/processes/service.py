"""Processes of the colonies hosted here: submit, change, close, and read.

The shell around `store.work.processes` and `processes.queue`: it runs transactions, keeps the
indexes in step, and tells its observers. The caller checks rights, `processes.assignment` picks
executors, `deadlines` ends late processes.
"""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import TypeVar

import msgspec
import trio

from colonyd.errors import Conflict, Denied, Invalid, NotFound, RpcError
from node.etcd.batch import Reads, read_many
from node.etcd.client import EtcdClient, TxnResult
from node.etcd.counts import Counts
from node.etcd.errors import Compacted
from node.etcd.txn import Compare, Get, Op, Put, Txn
from node.host import clock as steps
from node.host.clock import Clock
from node.host.config import QuotasConfig
from node.model.codec import pack, unpack
from node.model.types import Attribute, Blocked, Process, Running, State, Waiting
from node.processes.extension import Hooks
from node.processes.observer import Observer
from node.processes.queue import Queue, QueueEntry, RunningSet
from node.processes.quotas import Quotas
from node.processes.reading import Reading
from node.store import keys
from node.store.work import processes as store
from node.store.work.cache import ProcessCache
from node.store.work.submissions import shrink
from node.tasks.offload import apart

T = TypeVar("T")

# Tries of one change, each with fresh values after a lost race. More mean that something is wrong.
_TRIES = 8
# Processes read along with the first of the queue.
_AHEAD = 31
# Processes read in one transaction; fewer where they are large.
_MANY = 40
_NO_NAMES: list[str] = []  # nobody changes it
# Different values of queue keys that are remembered.
_ALIKE = 1024
_SHORT = 512  # bytes, or characters, of what is remembered because many have it


@dataclass
class _Listed:
    """The ids of the processes of a listing of the store as of `revision`."""

    revision: int
    waiting: set[str] = field(default_factory=set)
    running: set[str] = field(default_factory=set)


class Processes:
    """The processes of a node. `clock` tells when deadlines have come; `limits` are the quotas."""

    def __init__(
        self,
        client: EtcdClient,
        clock: Clock,
        limits: QuotasConfig | None = None,
        *,
        queue: Queue | None = None,
    ) -> None:
        self.client = client
        self.clock = clock
        self.hooks = Hooks()
        self.queue = Queue(due_at=clock.due) if queue is None else queue
        self.running = RunningSet(due_at=clock.due)
        self.quotas = Quotas(self.queue, self.running, limits or QuotasConfig())
        self.reads = Reads(client)
        self.closed = Counts(client, keys.CLOSED)
        # The watch has reported every write before this revision. An answer that comes later must
        # not bring back an entry that the watch has removed.
        self.told = 0
        self.reading = Reading()
        # Whether a listing is under way, which a compaction of the store would break.
        self.listing = False
        # What a repeated listing has had so far; None during the first one.
        self._relisted: _Listed | None = None
        self._observers: tuple[Observer, ...] = ()
        self.cache = ProcessCache()
        # What `recall_next` is reading, by the id of the process.
        self._read_ahead_events: dict[str, trio.Event] = {}

    # Two parts need these processes and are needed by them: observers and an extension. Both are
    # made later and bound here.

    def observe(self, *observers: Observer) -> None:
        """Set the observers, which are told of each event in this order."""
        self._observers = observers

    def attach(self, hooks: Hooks) -> None:
        """Set the hooks of an extension."""
        self.hooks = hooks

    # -- the indexes ---------------------------------------------------------------------

    def apply(self, key: str, value: bytes | None, revision: int) -> None:
        """Apply one change of a live key (queue, blocked, running, step) to the indexes."""
        for observer in self._observers:
            observer.moved(key.rpartition("/")[2])
        if key.startswith(keys.QUEUE):
            if value is None:
                self.queue.remove(keys.parse_queue(key)[3], revision)
            elif not self.queue.is_old(key.rpartition("/")[2], revision):
                self._enqueue(self._entry(key, value, revision))
        elif key.startswith(keys.BLOCKED):
            if value is None:
                self.queue.remove(keys.parse_blocked(key)[1], revision)
            elif not self.queue.is_old(key.rpartition("/")[2], revision):
                self._enqueue(self._blocked_entry(key, value, revision))
        elif key.startswith(keys.STEPS):
            colony, graphid, _ = keys.parse_step(key)
            if value is not None:
                self._stepped(colony, graphid, revision)
            else:
                for observer in self._observers:
                    observer.advanced(colony, graphid)
        else:
            colony, processid = keys.parse_running(key)
            if value is None:
                origin = self.running.origin_of(processid)
                self.running.remove(processid, revision)
                self._freed(origin)
            elif not self.running.is_old(processid, revision):
                self.running.add(colony, processid, unpack(value, Running), revision)

    def begin_listing(self, total: int, revision: int) -> None:
        """Begin to fill the indexes from a listing of `total` keys as of `revision`.

        A listing is used as it comes. What the indexes have from before a break, and a repeated
        listing has not, goes at its end.
        """
        known = self.told or self.queue.entries or self.running.entries
        self._relisted = _Listed(revision) if known else None
        self.listing = True
        if not self.told:
            self.reading.begin(total, revision)

    def list_some(self, items: Sequence[tuple[str, bytes, int]]) -> None:
        """Take in (key, value, revision) of some live keys of a listing, in the order of keys."""
        listed = self._relisted
        for key, value, revision in items:
            if key.startswith(keys.STEPS):
                self._stepped(*keys.parse_step(key)[:2], revision)
                continue
            processid = key.rpartition("/")[2]
            if key.startswith(keys.RUNNING):
                if not self.running.is_old(processid, revision):
                    colony, _ = keys.parse_running(key)
                    self.running.add(colony, processid, unpack(value, Running), revision)
                if listed is not None:
                    listed.running.add(processid)
                continue
            if key.startswith(keys.QUEUE):
                self.reading.took(key)
            if not self.queue.is_old(processid, revision):
                blocked = key.startswith(keys.BLOCKED)
                make = self._blocked_entry if blocked else self._entry
                self._enqueue(make(key, value, revision))
            if listed is not None:
                listed.waiting.add(processid)
        self.reading.read += len(items)
        self._reached()

    def end_queue(self) -> None:
        """Note that a listing has had all queue keys; those of blocked processes follow."""
        self.reading.took_queue()
        self._reached()

    def _reached(self) -> None:
        for observer in self._observers:
            observer.reached()

    def end_listing(self) -> None:
        """End a listing: what it had not is gone from the store."""
        if (listed := self._relisted) is not None:
            gone = self.queue.keep(listed.waiting, listed.revision)
            gone += self.running.keep(listed.running, listed.revision)
            for colony, processid in gone:
                if processid not in listed.waiting and processid not in listed.running:
                    for observer in self._observers:
                        observer.gone(colony, processid, listed.revision)
            self._relisted = None
        self.listing = False
        self.reading.end()
        for observer in self._observers:
            observer.listed()

    def _enqueue(self, entry: QueueEntry) -> None:
        if self.queue.add(entry) and not entry.blocked:
            for observer in self._observers:
                observer.offered(entry)

    def _changed(self, process: Process, revision: int) -> None:
        for observer in self._observers:
            observer.changed(process, revision)

    def _stepped(self, colony: str, graphid: str, revision: int) -> None:
        for observer in self._observers:
            observer.stepped(colony, graphid, revision)

    def _freed(self, origin: str) -> None:
        for observer in self._observers:
            observer.freed(origin)

    def remember(self, process: Process, revision: int, size: int = 0) -> None:
        """Keep a process, as stored at `revision` with `size` bytes, for the next transaction.

        A process that lies in parts is not kept but read again: it has up to 64 MiB.
        """
        if self.client.known.has(keys.process(process.colonyname, process.processid)):
            self.cache.drop(process.processid)
        else:
            self.cache.put(process, revision, size)

    # -- reading -------------------------------------------------------------------------

    async def load(self, colony: str, processid: str) -> tuple[Process, int] | None:
        """Return a process and its revision from the store, or None."""
        found = await self.reads.get(keys.process(colony, processid))
        if found is None:
            self.cache.drop(processid)
            return None
        process = unpack(found.value, Process)
        self.remember(process, found.mod_revision, len(found.value))
        return process, found.mod_revision

    async def ended(self, colony: str, processid: str) -> tuple[Process, int] | None:
        """Return what `load` does, for a process that is probably closed.

        An end that this daemon remembers is not read again: nothing changes it.
        """
        known = self.cache.get(colony, processid)
        if known is not None and known[0].closed:
            return known
        return await self.load(colony, processid)

    async def recall(self, colony: str, processid: str) -> tuple[Process, int] | None:
        """Return a process and its revision, from memory if possible; only for transactions that
        compare the revision.
        """
        return self.cache.get(colony, processid) or await self.load(colony, processid)

    async def glance(self, colony: str, processid: str) -> Process | None:
        """Return a process as it was lately, or None: if it is not there, or large."""
        known = self.cache.get(colony, processid)
        if known is None:
            await self._read_ahead(colony, [processid])
            known = self.cache.get(colony, processid)
        return known[0] if known is not None else None

    async def recall_next(self, entry: QueueEntry) -> tuple[Process, int] | None:
        """Return what `recall` does, for a process that is about to be assigned.

        If the store has to be asked, the processes that wait behind it are read along.
        """
        colony, processid = entry.colony, entry.processid
        if (known := self.cache.get(colony, processid)) is not None:
            return known
        if (reading := self._read_ahead_events.get(processid)) is not None:
            await reading.wait()
            return await self.recall(colony, processid)
        behind = self.queue.in_order(colony, executortype=entry.executortype, after=entry)
        wanted = [processid]
        for each in islice(behind, _AHEAD):
            in_parts = self.client.known.has(keys.process(colony, each.processid))
            if not (each.blocked or in_parts or each.processid in self._read_ahead_events):
                wanted.append(each.processid)
        read = trio.Event()
        self._read_ahead_events |= dict.fromkeys(wanted, read)
        try:
            await self._read_ahead(colony, wanted)
        finally:
            for name in wanted:
                del self._read_ahead_events[name]
            read.set()
        return await self.recall(colony, processid)

    async def _read_ahead(self, colony: str, wanted: Sequence[str]) -> None:
        """Remember processes as they are in the store, without those in parts, which may be large.

        The first one is remembered last, so that it is there for its caller. Raises EtcdError.
        """
        names = [keys.process(colony, processid) for processid in wanted]
        for kv in reversed(await self.client.undivided(names)):
            self.remember(unpack(kv.value, Process), kv.mod_revision, len(kv.value))

    async def load_many(
        self, colony: str, processids: Sequence[str], *, most: int = 0, light: bool = False
    ) -> list[Process]:
        """Return the processes that still exist, in the order of the ids.

        With `light`, without arguments, input and output. Raises Invalid when they have more than
        `most` bytes together (0: any number).
        """
        loaded: list[Process] = []
        size = 0
        for start in range(0, len(processids), _MANY):
            part = processids[start : start + _MANY]
            names = [keys.process(colony, processid) for processid in part]
            for kv in await read_many(self.client, names, _MANY):
                if kv is None:
                    continue
                size += len(kv.value)
                if 0 < most < size:
                    raise Invalid(
                        f"{len(processids)} processes with more than {most} bytes together"
                    )
                process = unpack(kv.value, Process)
                loaded.append(_light(process) if light else process)
        return loaded

    async def load_at(
        self, wanted: Sequence[tuple[str, str, int]]
    ) -> list[tuple[Process, int] | None]:
        """Return processes, given by (colony, id, revision), as they were at that revision.

        Each comes with the revision of its last write. Where the store has forgotten a revision,
        the present value is returned. Raises EtcdError.
        """
        found: list[tuple[Process, int] | None] = []
        for start in range(0, len(wanted), _MANY):
            part = wanted[start : start + _MANY]
            gets = [Get(keys.process(colony, pid), revision) for colony, pid, revision in part]
            try:
                result = await self.client.commit(Txn([], gets))
            except Compacted:
                gets = [Get(get.key) for get in gets]
                result = await self.client.commit(Txn([], gets))
            for kvs in result.responses:
                found.append((unpack(kvs[0].value, Process), kvs[0].mod_revision) if kvs else None)
        return found

    # -- changing ------------------------------------------------------------------------

    async def submit(
        self, process: Process, submission: bytes, extra: Sequence[Op] = ()
    ) -> Process:
        """Store a new process; return the stored one if the id is taken.

        Raises TooMany when as many processes as may be are with other colonies.
        """
        submission = await self.prepare(process, submission)
        return await self.enqueue(process, submission, extra)

    async def enqueue(
        self, process: Process, submission: bytes, extra: Sequence[Op] = ()
    ) -> Process:
        """Store a new process that is prepared, in the queue or for its peer; see `submit`."""
        addition = list(extra)
        if process.peer:
            addition.extend(self.hooks.forwarding(process).ops)
        with invalid_conditions():
            step = store.submit(process, submission, addition)
        with self.telling(process):
            return await self.create(step)

    async def prepare(self, process: Process, submission: bytes) -> bytes:
        """Choose the peer of a new process, if it goes to one; return what is kept of `submission`.

        Raises TooMany when as many processes as may be are with other colonies.
        """
        if process.peer:
            self.require_forwards(1)
        submission = await apart(len(submission), shrink, submission, process.spec)
        process.peer = process.peer or self.hooks.route(process)
        return submission

    async def create(
        self,
        step: store.Transition,
        commit: Callable[[Txn], Awaitable[TxnResult]] | None = None,
    ) -> Process:
        """Store a new process; return the stored one if the id is taken. Raises EtcdError.

        `commit` sends the transaction, if not the client by itself.
        """
        result = await (commit or self.client.commit)(step.txn)
        if not result.succeeded:
            there = unpack(result.responses[0][0].value, Process)
            # The daemon that wrote it may have got no answer.
            self.tell(there)
            return there
        self.committed_submit(step.process, result.revision)
        return step.process

    def require_forwards(self, count: int) -> None:
        """Raise TooMany unless `count` processes more may go to other colonies."""
        whose, there = f"colony {self.hooks.home!r}", self.hooks.forwards()
        self.quotas.require("colony_forwards", whose, there, "processes with peers", count)

    def tell(self, process: Process) -> None:
        """Make the sender look at the store for a process that goes to a peer."""
        if process.peer and not process.waitforparents:
            self.hooks.submitted(process)

    @contextmanager
    def telling(self, *processes: Process) -> Iterator[None]:
        """Make the sender look at the store if the block raises: its write may have happened."""
        try:
            yield
        except BaseException:
            for process in processes:
                self.tell(process)
            raise

    def committed_submit(self, process: Process, revision: int) -> None:
        """Update the indexes after a submission is in the store, perhaps in a wider transaction."""
        if process.state == State.RUNNING:
            # Whoever follows it hears that it waited, and that it runs.
            self._changed(store.before_start(process), revision - 1)
            self.settle(process, revision)
            return
        self.remember(process, revision)
        self._changed(process, revision)
        if process.peer and not process.waitforparents:
            self.hooks.submitted(process, revision)
            return
        if revision >= self.told:
            self._enqueue(self.entry_of(process, revision))

    def settle(self, process: Process, revision: int) -> None:
        """Update memory after a transition is in the store, before the watch reports it."""
        self.remember(process, revision)
        self._changed(process, revision)
        if process.processgraphid and (process.closed or not process.parents):
            self._stepped(process.colonyname, process.processgraphid, revision)
        if (process.origin or process.peer) and not process.closed:
            self.hooks.progressed(process)
        ahead = revision >= self.told
        if process.state == State.RUNNING:
            if not ahead:
                return
            running = store.running_of(process)
            self.running.add(process.colonyname, process.processid, running, revision)
            return
        self.running.end(process.processid, revision)
        self._freed(process.origin)
        if process.state != State.WAITING:
            entry = self.queue.entries.get(process.processid)
            if entry is not None:
                self.queue.take(entry)
            self.hooks.closed(process)
        elif ahead and (process.waitforparents or not process.peer):
            self._enqueue(self.entry_of(process, revision))

    async def change(
        self, colony: str, processid: str, step: Callable[[Process, int], store.Transition | None]
    ) -> Process:
        """Run a transition until it wins; `step` decides anew on each current value.

        `step` returns None when nothing is to be done, and raises RpcError to refuse. Raises
        NotFound when the process does not exist.
        """
        return (await self.change_at(colony, processid, step))[0]

    async def change_at(
        self, colony: str, processid: str, step: Callable[[Process, int], store.Transition | None]
    ) -> tuple[Process, int]:
        """Do as `change` does. Return the process and its revision, that of all that it wrote."""
        known = await self.recall(colony, processid)
        for _ in range(_TRIES):
            if known is None:
                raise NotFound(f"process {processid} is not in colony {colony}")
            taken, refusal = None, None
            try:
                taken = step(*known)
            except RpcError as error:
                refusal = error
            if taken is None:
                # Refused, or nothing to do, by remembered values: the value in the store decides.
                fresh = await self.load(colony, processid)
                if fresh is not None and fresh[1] != known[1]:
                    known = fresh
                    continue
                if refusal is not None:
                    raise refusal
                return known
            result = await self.client.commit(taken.txn)
            if result.succeeded:
                self.settle(taken.process, result.revision)
                return taken.process, result.revision
            known = await self.load(colony, processid)
        raise Conflict(f"process {processid} changes too fast; try again")

    async def close(
        self,
        colony: str,
        processid: str,
        identity: str,
        state: State,
        *,
        output: list[object] | None = None,
        errors: list[str] | None = None,
        ended: Callable[[Process], None] | None = None,
    ) -> Process:
        """End a process as its assigned executor. Repeating the same close succeeds.

        `ended` is called with the process if this call ended it, not for a repeat.
        """
        ours: list[Process] = []

        def step(process: Process, revision: int) -> store.Transition | None:
            if process.assignedexecutorid != identity:
                raise Denied("the process is not assigned to this executor")
            same = output is None or process.output == output
            if process.state == state and same and (errors is None or process.errors == errors):
                return None
            if process.state != State.RUNNING:
                raise Invalid(f"the process is {process.state.name.lower()}, not running")
            taken = store.close(
                process, revision, state, self.clock.now(), output=output, errors=errors
            )
            ours[:] = [taken.process]
            return taken

        process = await self.change(colony, processid, step)
        if ended is not None and ours and ours[0] is process:
            ended(process)
        return process

    async def cancel(self, colony: str, processid: str, errors: Sequence[str] = ()) -> Process:
        """End a waiting or running process; `errors` tell readers why.

        Raises Invalid when it is closed already.
        """

        def step(process: Process, revision: int) -> store.Transition | None:
            if process.closed:
                raise Invalid(f"the process is already {process.state.name.lower()}")
            if process.processgraphid:
                raise Invalid("the process is part of a workflow; cancel that")
            extra: Sequence[Op] = ()
            compare: Sequence[Compare] = ()
            if process.peer:
                addition = self.hooks.cancelling(process)
                extra, compare = addition.ops, addition.compare
            return store.close(
                process,
                revision,
                State.CANCELLED,
                self.clock.now(),
                errors=list(errors) or None,
                extra=extra,
                compare=compare,
            )

        seen: list[Process] = []

        def watched(process: Process, revision: int) -> store.Transition | None:
            seen[:] = [process]
            return step(process, revision)

        try:
            return await self.change(colony, processid, watched)
        finally:
            # If there is something to send to a peer, the store has it, with or without an answer.
            for process in seen:
                self.tell(process)

    async def release(self, colony: str, executorid: str) -> None:
        """Put the running processes of a removed executor back, without a retry counted."""

        def step(process: Process, revision: int) -> store.Transition | None:
            if process.state != State.RUNNING or process.assignedexecutorid != executorid:
                return None
            return store.requeue(process, revision, self.clock.now(), counts=False)

        for processid in self.running.of_executor(colony, executorid):
            # A process that is gone must not keep the others with the removed executor.
            await self.change_quietly(colony, processid, step)

    async def set_output(
        self, colony: str, processid: str, identity: str, output: list[object]
    ) -> Process:
        """Store the output of a running process before it closes."""

        def step(process: Process, revision: int) -> store.Transition:
            require_assigned(process, identity)
            process = _copy(process)
            process.output = output
            return store.update(process, revision)

        return await self.change(colony, processid, step)

    async def add_attribute(self, identity: str, attribute: Attribute) -> Attribute:
        """Attach an attribute to a running process. Raises Invalid for a second one."""

        def step(process: Process, revision: int) -> store.Transition:
            require_assigned(process, identity)
            if any(known.attributeid == attribute.attributeid for known in process.attributes):
                raise Invalid(f"attribute.key: {attribute.key!r} exists already with this type")
            if len(process.attributes) >= 100:
                raise Invalid("attribute: a process has at most 100 attributes")
            attribute.targetprocessgraphid = process.processgraphid
            process = _copy(process)
            process.attributes = [*process.attributes, attribute]
            key = keys.attribute(process.colonyname, attribute.attributeid)
            return store.update(process, revision, [Put(key, process.processid.encode())])

        await self.change(attribute.targetcolonyname, attribute.targetid, step)
        return attribute

    async def remove(self, colony: str, processid: str) -> None:
        """Delete a process that is not running. Raises Invalid, NotFound or Conflict."""
        for _ in range(_TRIES):
            found = await self.load(colony, processid)
            if found is None:
                raise NotFound(f"process {processid} is not in colony {colony}")
            process, revision = found
            if process.processgraphid:
                raise Invalid("the process is part of a workflow; remove that")
            if process.state == State.RUNNING or (process.peer and not process.closed):
                raise Invalid("the process is running; cancel it first")
            reason = self.hooks.removable(process)
            if reason:
                raise Conflict(reason)
            if (await self.client.commit(store.remove(process, revision))).succeeded:
                self.forget(processid)
                return
            if process.notify and await self.client.get(process.notify) is not None:
                raise Conflict("the colony that it came from has not fetched the outcome yet")
        raise Conflict(f"process {processid} changes too fast; try again")

    def forget(self, processid: str) -> None:
        """Remove a process from memory that is gone from the store."""
        self.cache.drop(processid)
        self.queue.remove(processid)

    async def change_quietly(
        self, colony: str, processid: str, step: Callable[[Process, int], store.Transition | None]
    ) -> None:
        """Run a transition like `change`, but ignore a process that does not exist."""
        with suppress(NotFound):
            await self.change(colony, processid, step)

    # -- entries of the index ------------------------------------------------------------

    def _entry(self, key: str, value: bytes, revision: int) -> QueueEntry:
        colony, executortype, stored, processid = keys.parse_queue(key)
        waiting = _waiting(value)
        return self._placed(colony, executortype, stored, processid, waiting, revision)

    def _blocked_entry(self, key: str, value: bytes, revision: int) -> QueueEntry:
        colony, processid = keys.parse_blocked(key)
        mark = unpack(value, Blocked)
        return self._placed(
            colony, mark.executortype, mark.prioritytime, processid, mark.waiting, revision, True
        )

    def entry_of(self, process: Process, revision: int) -> QueueEntry:
        """Return the entry of a process whose queue key is, or would be, written at a revision."""
        return self._placed(
            process.colonyname,
            process.spec.conditions.executortype,
            process.prioritytime,
            process.processid,
            _waiting(pack(store.waiting_of(process))),
            revision,
            process.waitforparents,
        )

    def _placed(
        self,
        colony: str,
        executortype: str,
        stored: int,
        processid: str,
        waiting: Waiting,
        revision: int,
        blocked: bool = False,
    ) -> QueueEntry:
        priority = waiting.priority
        place = stored if priority is None else steps.place(stored, priority, self.clock.now())
        moved = place != stored
        return QueueEntry(
            place,
            processid,
            revision,
            _same(colony),
            _same(executortype),
            waiting,
            blocked,
            moved,
        )


@contextmanager
def invalid_conditions() -> Iterator[None]:
    """Raise Invalid for a ValueError about the conditions of a spec."""
    try:
        yield
    except ValueError as error:
        raise Invalid(f"spec.conditions: {error}") from None


def require_assigned(process: Process, identity: str) -> None:
    """Raise RpcError unless the process runs and is assigned to `identity`."""
    if process.assignedexecutorid != identity:
        raise Denied("the process is not assigned to this executor")
    if process.state != State.RUNNING:
        raise Invalid(f"the process is {process.state.name.lower()}, not running")


def _same(text: str) -> str:
    """Return `_first` of a text, unless that would keep a long one in memory."""
    return _first(text) if len(text) <= _SHORT else text


@lru_cache(maxsize=4096)
def _first(value: T) -> T:
    """Return the first of equal values: thousands of processes share a type, a label, a member."""
    return value


def _waiting(value: bytes) -> Waiting:
    """Return the value of a queue key: one object for many processes that were submitted alike, and
    one of each part for those that differ in their deadline alone.
    """
    return _alike(value) if len(value) <= _SHORT else unpack(value, Waiting)


@lru_cache(maxsize=_ALIKE)
def _alike(value: bytes) -> Waiting:
    waiting = unpack(value, Waiting)
    return Waiting(
        waiting.executornames or _NO_NAMES,
        _same(waiting.locationname),
        waiting.cpu,
        _first(waiting.mem),
        waiting.waitdeadline,
        _same(waiting.label),
        _same(waiting.initiatorname),
        _same(waiting.origin),
        waiting.maxwaittime,
        waiting.priority,
    )


def _light(process: Process) -> Process:
    spec = msgspec.structs.replace(process.spec, args=[], kwargs={})
    return msgspec.structs.replace(process, spec=spec, input=[], output=[])


def _copy(process: Process) -> Process:
    return copy.copy(process)
