"""Processes of the colonies hosted here: submit, hand out, renew, close, and read.

The shell around `store.processes` and `scheduler`: it runs transactions, keeps the indexes in
step and wakes who waits. Who may ask is decided by the caller.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import trio

from node.codec import unpack
from node.errors import RpcError, bad, conflict, denied, missing
from node.etcd.client import EtcdClient
from node.etcd.errors import EtcdError
from node.etcd.transactions import Compare, Get, Op, Put, Txn
from node.hooks import Hooks
from node.model import Attribute, Executor, Process, Running, State, Waiting
from node.reads import Reads
from node.scheduler import Candidate, Entry, Queue, RunningSet, matches
from node.store import keys
from node.store import processes as store

# A lost race is tried again with fresh values; this many in a row means something is wrong.
_TRIES = 8
_CACHE = 2048


@dataclass(eq=False)
class _Waiter:
    candidate: Candidate
    woken: trio.Event = field(default_factory=trio.Event)


def _ignore(process: Process) -> None:
    """The observer of who needs none."""


@dataclass
class Processes:
    """`now` gives Unix nanoseconds."""

    client: EtcdClient
    now: Callable[[], int]
    hooks: Hooks = field(default_factory=Hooks)
    queue: Queue = field(default_factory=Queue)
    running: RunningSet = field(default_factory=RunningSet)
    paused: set[str] = field(default_factory=set)
    reads: Reads = field(init=False)
    changed: Callable[[Process], None] = _ignore
    _waiters: dict[tuple[str, str], dict[_Waiter, None]] = field(default_factory=dict)
    _cache: OrderedDict[str, tuple[Process, int]] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        self.reads = Reads(self.client)

    # -- the indexes ---------------------------------------------------------------------

    def apply(self, key: str, value: bytes | None, revision: int) -> None:
        """Take in one change of a live key (queue or running)."""
        if key.startswith(keys.QUEUE):
            if value is None:
                self.queue.remove(keys.parse_queue(key)[3], revision)
            elif not self.queue.is_old(key.rpartition("/")[2], revision):
                self._enqueue(_entry(key, value, revision))
        else:
            colony, processid = keys.parse_running(key)
            if value is None:
                self.running.remove(processid, revision)
            elif not self.running.is_old(processid, revision):
                self.running.add(colony, processid, unpack(value, Running), revision)

    def replace(self, items: list[tuple[str, bytes, int]]) -> None:
        """The store was listed anew: (key, value, revision) of every live key."""
        entries: dict[str, Entry] = {}
        running: dict[str, tuple[str, Running, int]] = {}
        for key, value, revision in items:
            if key.startswith(keys.QUEUE):
                entry = _entry(key, value, revision)
                entries[entry.processid] = entry
            else:
                colony, processid = keys.parse_running(key)
                running[processid] = (colony, unpack(value, Running), revision)
        self.queue.replace(entries)
        self.running.replace(running)
        for waiters in self._waiters.values():
            for waiter in waiters:
                waiter.woken.set()

    def _enqueue(self, entry: Entry) -> None:
        if self.queue.add(entry):
            self._wake(entry)

    def _wake(self, entry: Entry) -> None:
        """Wake the first waiter that may have the process; each looks again for itself."""
        for waiter in self._waiters.get((entry.colony, entry.executortype), {}):
            if not waiter.woken.is_set() and matches(waiter.candidate, entry.waiting):
                waiter.woken.set()
                return

    def _remember(self, process: Process, revision: int) -> None:
        self._cache[process.processid] = (process, revision)
        self._cache.move_to_end(process.processid)
        if len(self._cache) > _CACHE:
            self._cache.popitem(last=False)

    # -- reading -------------------------------------------------------------------------

    async def load(self, colony: str, processid: str) -> tuple[Process, int] | None:
        """The process and its revision as the store has it, or None."""
        found = await self.reads.get(keys.process(colony, processid))
        if found is None:
            self._cache.pop(processid, None)
            return None
        process = unpack(found.value, Process)
        self._remember(process, found.mod_revision)
        return process, found.mod_revision

    async def _recall(self, colony: str, processid: str) -> tuple[Process, int] | None:
        """Like `load`, from memory if it is there; only for transactions that compare."""
        known = self._cache.get(processid)
        if known is not None and known[0].colonyname == colony:
            return known
        return await self.load(colony, processid)

    async def load_many(self, colony: str, processids: Sequence[str]) -> list[Process]:
        """The processes that still exist, in the order of the ids."""
        found: list[Process] = []
        for start in range(0, len(processids), 50):
            part = processids[start : start + 50]
            gets = [Get(keys.process(colony, processid)) for processid in part]
            result = await self.client.commit(Txn([], gets))
            found.extend(unpack(kv.value, Process) for kvs in result.responses for kv in kvs)
        return found

    # -- changing ------------------------------------------------------------------------

    async def submit(
        self, process: Process, submission: bytes, extra: Sequence[Op] = ()
    ) -> Process:
        """Store a new process; returns the one already there if the id is taken."""
        addition = list(extra)
        if process.peer:
            addition.extend(self.hooks.forwarding(process).ops)
        try:
            step = store.submit(process, submission, addition)
        except ValueError as error:
            raise bad(f"spec.conditions: {error}") from None
        result = await self.client.commit(step.txn)
        if not result.succeeded:
            return unpack(result.responses[0][0].value, Process)
        self.committed_submit(process, result.revision)
        return process

    def committed_submit(self, process: Process, revision: int) -> None:
        """A submission is in the store (perhaps in a wider transaction): update the indexes."""
        self._remember(process, revision)
        self.changed(process)
        if process.peer:
            self.hooks.submitted(process)
            return
        spec = process.spec.conditions
        self._enqueue(
            Entry(
                process.colonyname,
                spec.executortype,
                process.prioritytime,
                process.processid,
                store.waiting_of(process),
                revision,
            )
        )

    async def assign(self, candidate: Candidate, executor: Executor, timeout: float) -> Process:
        """Hand the first matching process to an executor, waiting up to `timeout` seconds.

        Raises RpcError 404 when there is none in time, 408 or 503 when assignment is paused.
        """
        deadline = trio.current_time() + max(timeout, 0)
        place = (candidate.colony, candidate.executortype)
        while True:
            waiter = _Waiter(candidate)
            line = self._waiters.setdefault(place, {})
            line[waiter] = None
            try:
                if candidate.colony not in self.paused:
                    # Shielded: a hand-out under way ends as assigned or not at all.
                    with trio.CancelScope(shield=True):
                        process = await self._take(candidate, executor)
                    if process is not None:
                        await self._hand_over(process)
                        return process
                if timeout <= 0:
                    break
                with trio.move_on_at(deadline) as patience:
                    await waiter.woken.wait()
                if patience.cancelled_caught:
                    break
            finally:
                line.pop(waiter, None)
                if not line:
                    self._waiters.pop(place, None)
                elif waiter.woken.is_set():
                    self._pass_on(candidate)
        if candidate.colony in self.paused:
            raise RpcError(408 if timeout > 0 else 503, "assignments are paused in this colony")
        raise missing("no process is waiting that this executor may have")

    async def _hand_over(self, process: Process) -> None:
        """Put the process back if its caller left while the transaction ran."""
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
        except trio.Cancelled:

            def step(now_is: Process, revision: int) -> store.Step | None:
                if now_is.state != State.RUNNING or now_is.attempt != process.attempt:
                    return None
                return store.requeue(now_is, revision, self.now(), counts=False)

            # Bounded by the timeout of each call to the store.
            with trio.CancelScope(shield=True):
                await self._change_quietly(process.colonyname, process.processid, step)
            raise

    def resume(self, colony: str) -> None:
        """Assignments of a colony go on: every waiter looks again."""
        self.paused.discard(colony)
        for (name, _), line in self._waiters.items():
            if name == colony:
                for waiter in line:
                    waiter.woken.set()

    def _pass_on(self, candidate: Candidate) -> None:
        """A woken waiter leaves: whatever woke it may be for the next one."""
        for waiter in self._waiters.get((candidate.colony, candidate.executortype), {}):
            if not waiter.woken.is_set():
                if self.queue.find(waiter.candidate) is not None:
                    waiter.woken.set()
                return

    async def _take(self, candidate: Candidate, executor: Executor) -> Process | None:
        while (entry := self.queue.find(candidate)) is not None:
            self.queue.take(entry)
            try:
                process = await self._hand_out(entry, executor)
            except (EtcdError, RpcError):
                self.queue.give_back(entry)
                raise
            if process is not None:
                return process
        return None

    async def _hand_out(self, entry: Entry, executor: Executor) -> Process | None:
        known = await self._recall(entry.colony, entry.processid)
        if known is not None and known[0].state != State.WAITING:
            # The watch may be ahead of the answer to our own requeue: the store's word is final.
            known = await self.load(entry.colony, entry.processid)
        for _ in range(_TRIES):
            if known is None or known[0].state != State.WAITING:
                return None
            step = store.assign(known[0], known[1], executor, self.now())
            result = await self.client.commit(step.txn)
            if result.succeeded:
                self._settle(step.process, result.revision)
                return step.process
            known = await self.load(entry.colony, entry.processid)
        return None

    def _settle(self, process: Process, revision: int) -> None:
        """A transition is in the store: bring memory in step before the watch does."""
        self._remember(process, revision)
        self.changed(process)
        if process.state == State.RUNNING:
            running = store.running_of(process)
            self.running.add(process.colonyname, process.processid, running, revision)
            return
        self.running.end(process.processid, revision)
        if process.state != State.WAITING:
            entry = self.queue.entries.get(process.processid)
            if entry is not None:
                self.queue.take(entry)
            self.hooks.closed(process)
        elif not process.peer:
            spec = process.spec.conditions
            self._enqueue(
                Entry(
                    process.colonyname,
                    spec.executortype,
                    process.prioritytime,
                    process.processid,
                    store.waiting_of(process),
                    revision,
                )
            )

    async def change(
        self, colony: str, processid: str, step: Callable[[Process, int], store.Step | None]
    ) -> Process:
        """Run a transition until it wins: `step` sees the current value and decides anew.

        `step` returns None when nothing is to be done, and raises RpcError to refuse.
        Raises RpcError 404 when the process does not exist.
        """
        known = await self._recall(colony, processid)
        for _ in range(_TRIES):
            if known is None:
                raise missing(f"process {processid} is not in colony {colony}")
            try:
                taken = step(*known)
            except RpcError:
                # Refused on remembered values: only the store's own word is final.
                fresh = await self.load(colony, processid)
                if fresh is None or fresh[1] == known[1]:
                    raise
                known = fresh
                continue
            if taken is None:
                return known[0]
            result = await self.client.commit(taken.txn)
            if result.succeeded:
                self._settle(taken.process, result.revision)
                return taken.process
            known = await self.load(colony, processid)
        raise conflict(f"process {processid} changes too fast; try again")

    async def close(
        self,
        colony: str,
        processid: str,
        identity: str,
        state: State,
        *,
        output: list[object] | None = None,
        errors: list[str] | None = None,
    ) -> Process:
        """End a process as its assigned executor. Repeating the same close is a success."""

        def step(process: Process, revision: int) -> store.Step | None:
            if process.assignedexecutorid != identity:
                raise denied("the process is not assigned to this executor")
            if process.state == state and process.output == (output or []):
                return None
            if process.state == state and state == State.FAILED:
                return None
            if process.state != State.RUNNING:
                raise bad(f"the process is {process.state.name.lower()}, not running")
            return store.close(process, revision, state, self.now(), output=output, errors=errors)

        return await self.change(colony, processid, step)

    async def cancel(self, colony: str, processid: str) -> Process:
        """End a waiting or running process. Raises RpcError 400 when it is closed already."""

        def step(process: Process, revision: int) -> store.Step | None:
            if process.closed:
                raise bad(f"the process is already {process.state.name.lower()}")
            extra: Sequence[Op] = ()
            compare: Sequence[Compare] = ()
            if process.peer:
                addition = self.hooks.cancelling(process)
                extra, compare = addition.ops, addition.compare
            return store.close(
                process, revision, State.CANCELLED, self.now(), extra=extra, compare=compare
            )

        process = await self.change(colony, processid, step)
        if process.peer:
            self.hooks.submitted(process)
        return process

    async def release(self, colony: str, executorid: str) -> None:
        """Put the running processes of a removed executor back, without a retry counted."""

        def step(process: Process, revision: int) -> store.Step | None:
            if process.state != State.RUNNING or process.assignedexecutorid != executorid:
                return None
            return store.requeue(process, revision, self.now(), counts=False)

        for processid in self.running.of_executor(colony, executorid):
            await self.change(colony, processid, step)

    async def set_output(
        self, colony: str, processid: str, identity: str, output: list[object]
    ) -> Process:
        """Keep output of a running process before it closes."""

        def step(process: Process, revision: int) -> store.Step:
            require_assigned(process, identity)
            process = _copy(process)
            process.output = output
            return store.update(process, revision)

        return await self.change(colony, processid, step)

    async def add_attribute(self, identity: str, attribute: Attribute) -> Attribute:
        """Attach an attribute to a running process. Raises RpcError 400 for a second one."""

        def step(process: Process, revision: int) -> store.Step:
            require_assigned(process, identity)
            if any(known.attributeid == attribute.attributeid for known in process.attributes):
                raise bad(f"attribute.key: {attribute.key!r} exists already with this type")
            if len(process.attributes) >= 100:
                raise bad("attribute: a process has at most 100 attributes")
            process = _copy(process)
            process.attributes = [*process.attributes, attribute]
            key = keys.attribute(process.colonyname, attribute.attributeid)
            return store.update(process, revision, [Put(key, process.processid.encode())])

        await self.change(attribute.targetcolonyname, attribute.targetid, step)
        return attribute

    async def remove(self, colony: str, processid: str) -> None:
        """Delete a process that is not running. Raises RpcError 400, 404 or 409."""
        found = await self.load(colony, processid)
        if found is None:
            raise missing(f"process {processid} is not in colony {colony}")
        process, revision = found
        if process.state == State.RUNNING or (process.peer and not process.closed):
            raise bad("the process is running; cancel it first")
        reason = self.hooks.removable(process)
        if reason:
            raise conflict(reason)
        if not (await self.client.commit(store.remove(process, revision))).succeeded:
            raise conflict(f"process {processid} changed meanwhile; try again")
        self._cache.pop(processid, None)
        self.queue.remove(processid)

    # -- deadlines -----------------------------------------------------------------------

    async def expire(self) -> None:
        """Deal with every deadline that has passed: fail, or requeue while retries are left."""
        now = self.now()
        for entry in self.queue.overdue(now):
            try:
                await self._change_quietly(entry.colony, entry.processid, self._wait_step)
            except EtcdError:
                self.queue.again(entry)
                raise
        for colony, processid, running in self.running.overdue(now):
            try:
                await self._change_quietly(colony, processid, self._exec_step)
            except EtcdError:
                self.running.again(processid, running)
                raise

    async def _change_quietly(
        self, colony: str, processid: str, step: Callable[[Process, int], store.Step | None]
    ) -> None:
        try:
            await self.change(colony, processid, step)
        except RpcError as error:
            if error.status != 404:
                raise

    def _wait_step(self, process: Process, revision: int) -> store.Step | None:
        now = self.now()
        if process.state != State.WAITING or not 0 < process.waitdeadline < now:
            return None
        errors = ["Maximum waiting time limit exceeded"]
        return store.close(process, revision, State.FAILED, now, errors=errors)

    def _exec_step(self, process: Process, revision: int) -> store.Step | None:
        now = self.now()
        if process.state != State.RUNNING or not 0 < process.execdeadline < now:
            return None
        if -1 < process.spec.maxretries <= process.retries:
            errors = ["Maximum execution time limit exceeded"]
            return store.close(process, revision, State.FAILED, now, errors=errors)
        return store.requeue(process, revision, now, counts=True)


def require_assigned(process: Process, identity: str) -> None:
    """Raise RpcError unless the process runs and is assigned to `identity`."""
    if process.assignedexecutorid != identity:
        raise denied("the process is not assigned to this executor")
    if process.state != State.RUNNING:
        raise bad(f"the process is {process.state.name.lower()}, not running")


def _copy(process: Process) -> Process:
    return copy.copy(process)


def _entry(key: str, value: bytes, revision: int) -> Entry:
    colony, executortype, prioritytime, processid = keys.parse_queue(key)
    waiting = unpack(value, Waiting)
    return Entry(colony, executortype, prioritytime, processid, waiting, revision)
