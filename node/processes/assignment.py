"""Handing waiting processes to executors: who polls for which, and who is woken.

The order is `processes.queue`'s, the transaction `store.work.processes`'; the indexes are
`processes.service`'.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Container, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec
import trio

from node.etcd.errors import EtcdError, EtcdUnavailable
from node.host.log import get_logger
from node.model.errors import NotFound, RpcError, TimedOut, Unavailable
from node.model.types import Executor, Process, State
from node.processes.observer import Observer
from node.processes.queue import Candidate, QueueEntry, matches
from node.processes.service import Processes
from node.store import keys
from node.store.work import processes as store

log = get_logger("handout")

# A lost race is tried again with fresh values; this many in a row means something is wrong.
_TRIES = 8
# Seconds for which a write without an answer may still happen.
_LANDING = 60
# Processes with hand-outs in doubt: about as many as polls were under way when the store went.
_MOST_DOUBTS = 10_000


@dataclass(eq=False, slots=True)
class _UncertainAssignment:
    """Hand-outs of one process that nobody works on, if they happened: their callers were refused.

    They are told by the attempt and the start times they wrote. An attempt begins once, so at most
    one of them happened; and a process that runs in this attempt since another time was handed out
    anew, which is somebody's work. The executor is no such sign: the same one may have asked again,
    and may have another id since.
    """

    colony: str
    attempt: int
    starttimes: set[int]
    until: float  # trio's time after which none of them can happen any more

    def happened(self, process: Process) -> bool:
        """Whether one of them is what the process runs by."""
        return (
            process.state == State.RUNNING
            and process.attempt == self.attempt
            and process.starttime in self.starttimes
        )

    def open(self, process: Process) -> bool:
        """Whether one of them may have happened or still happen."""
        waits = process.state == State.WAITING and process.attempt < self.attempt
        return waits or self.happened(process)


@dataclass(eq=False, slots=True)
class PendingAssignment:
    """A process on its way to its executor, in an answer that may be lost."""

    assigner: Assigner
    process: Process

    def taken(self) -> None:
        """The executor has it."""
        self.assigner.taken(self.process)

    async def lost(self) -> None:
        """Put it back, unless its executor has spoken of it, or has been told it once more."""
        await self.assigner.give_back(self)


@dataclass(eq=False, slots=True)
class _Waiter:
    candidate: Candidate
    woken: trio.Event = field(default_factory=trio.Event)


class _Raced(Exception):
    """A process waits, and changed each time before it could be handed out."""


@dataclass
class Assigner(Observer):
    """`paused` holds the names of the colonies whose assignments are paused.

    `present` gives an executor as it is now, or raises RpcError when it may not have work.
    """

    processes: Processes
    present: Callable[[Executor], Executor]
    paused: set[str] = field(default_factory=set)
    stopping: bool = False
    _waiters: dict[tuple[str, str], dict[_Waiter, None]] = field(default_factory=dict)
    # Large processes take several times their size on the way: few go at the same time.
    _large: trio.Semaphore = field(default_factory=lambda: trio.Semaphore(2))
    _starting: Counter[str] = field(default_factory=Counter)
    _doubtful: OrderedDict[str, _UncertainAssignment] = field(default_factory=OrderedDict)
    _unheard: dict[str, PendingAssignment] = field(default_factory=dict)
    # What ran without a limit when this daemon began, of which its executor has not spoken since:
    # ids of the process and of the executor.
    _inherited: dict[str, str] = field(default_factory=dict)

    def held(self, origin: str) -> bool:
        """Whether a colony has as much running here as it may, hand-outs under way included."""
        most = self.processes.hooks.most_running(origin)
        return 0 < most <= self.processes.running.count_of(origin) + self._starting[origin]

    def freed(self, origin: str) -> None:
        """A process that came from a colony stopped running: there may be room for its next."""
        queue = self.processes.queue
        if not origin or not queue.count_of(origin) or self.held(origin):
            return
        for place in self._waiters:
            # Not who may have the first of them: in its line there may be nobody, or only others.
            self._wake_first(place, lambda candidate: queue.offers(candidate, origin))

    def offered(self, entry: QueueEntry) -> None:
        """Wake the first waiter that may have the process; each looks again for itself."""
        for waiter in self._waiters.get((entry.colony, entry.executortype), {}):
            if not waiter.woken.is_set() and matches(waiter.candidate, entry.waiting):
                waiter.woken.set()
                return

    def asking(self, entry: QueueEntry) -> int:
        """How many executors wait for work that may have a process but for CPU and memory."""
        free = msgspec.structs.replace(entry.waiting, cpu=0, mem=0)
        return sum(matches(each, free) for each in self._candidates(entry))

    def suits(self, entry: QueueEntry) -> bool:
        """Whether an executor waits for work that may have a process."""
        return any(matches(each, entry.waiting) for each in self._candidates(entry))

    def _candidates(self, entry: QueueEntry) -> Iterator[Candidate]:
        for waiter in self._waiters.get((entry.colony, entry.executortype), ()):
            yield waiter.candidate

    def polling(self, colony: str) -> Counter[tuple[str, str]]:
        """How many polls wait for work, by type and name of the executor."""
        found: Counter[tuple[str, str]] = Counter()
        for (name, executortype), line in self._waiters.items():
            if name == colony:
                found.update((executortype, waiter.candidate.name) for waiter in line)
        return found

    def listed(self) -> None:
        """Take note of what runs since before this daemon began; every waiting poll looks again."""
        if not self.processes.told:
            self._inherit()
        self.wake_all()

    def wake_all(self) -> None:
        """Everybody looks again."""
        for waiters in self._waiters.values():
            for waiter in waiters:
                waiter.woken.set()

    def stop(self) -> None:
        """Hand out nothing more: every waiting poll is answered now, those under way end first."""
        self.stopping = True
        self.wake_all()

    async def assign(self, candidate: Candidate, executor: Executor, timeout: float) -> Process:
        """Hand the first matching process to an executor, waiting up to `timeout` seconds.

        Raises NotFound when there is none in time or the node stops, TimedOut or Unavailable when
        assignment is paused.
        """
        deadline = trio.current_time() + max(timeout, 0)
        place = (candidate.colony, candidate.executortype)
        while not self.stopping:
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
                # It looks again itself: who passes the wake on as well makes two of one.
                waiter.woken = trio.Event()
            finally:
                line.pop(waiter, None)
                if not line:
                    self._waiters.pop(place, None)
                elif waiter.woken.is_set():
                    self._pass_on(candidate)
        if self.stopping:
            raise NotFound("the server is stopping; ask again")
        if candidate.colony in self.paused:
            paused = TimedOut if timeout > 0 else Unavailable
            raise paused("assignments are paused in this colony")
        raise NotFound("no process is waiting that this executor may have")

    async def _hand_over(self, process: Process) -> None:
        """Put the process back if its caller left while the transaction ran."""
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
        except trio.Cancelled:
            self._doubt(process)
            # Bounded by the timeout of each call to the store.
            with trio.CancelScope(shield=True), suppress(EtcdError, RpcError):
                await self._look(process.processid)
            raise

    def deliver(self, process: Process) -> PendingAssignment:
        """What an answer carries that tells an executor of its process; the last one counts."""
        handed = self._unheard[process.processid] = PendingAssignment(self, process)
        return handed

    def taken(self, process: Process) -> None:
        """One of the answers that told of this hand-out has arrived."""
        handed = self._unheard.get(process.processid)
        if handed is not None and handed.process.attempt == process.attempt:
            del self._unheard[process.processid]

    def heard(self, processid: str, executorid: str) -> None:
        """An executor has shown that it knows of a process."""
        if self._inherited.get(processid) == executorid:
            del self._inherited[processid]
        handed = self._unheard.get(processid)
        if handed is not None and handed.process.assignedexecutorid == executorid:
            del self._unheard[processid]

    def _inherit(self) -> None:
        """What runs now was handed out by a daemon before this one, which may have been killed."""
        self._inherited = {
            processid: running.executorid
            for processid, (_, running, _) in self.processes.running.entries.items()
            if not running.execdeadline
        }

    def silent(self, colony: str, executors: Container[str]) -> list[str]:
        """Ids of processes that would run for ever if their executors never heard of them.

        They have run since before this daemon began, without a limit; of some executors.
        """
        known = self.processes.running.entries
        for processid in [each for each in self._inherited if each not in known]:
            del self._inherited[processid]
        return [
            processid
            for processid, executorid in self._inherited.items()
            if executorid in executors
            and (known[processid][0], known[processid][1].executorid) == (colony, executorid)
        ]

    async def give_back(self, handed: PendingAssignment) -> None:
        """The answer is lost; while the store is away, `look_again` goes on."""
        process = handed.process
        if self._unheard.get(process.processid) is not handed:
            return
        del self._unheard[process.processid]
        log.warning(
            "hand-out not taken",
            processid=process.processid,
            executor=process.assignedexecutorid,
            advice="its connection broke before it had the answer; the process waits again",
        )
        self._doubt(process)
        with suppress(EtcdError, RpcError):
            await self._look(process.processid)

    def _doubt(self, process: Process) -> None:
        """This hand-out may have happened, and nobody works on it."""
        doubt = self._doubtful.get(process.processid)
        if doubt is None or doubt.attempt != process.attempt:
            doubt = _UncertainAssignment(process.colonyname, process.attempt, set(), 0)
        doubt.starttimes.add(process.starttime)
        doubt.until = trio.current_time() + _LANDING
        self._doubtful[process.processid] = doubt
        if len(self._doubtful) > _MOST_DOUBTS:
            self._doubtful.popitem(last=False)

    def doubts(self, processid: str) -> bool:
        """Whether a process may have been handed out without anybody knowing."""
        return processid in self._doubtful

    async def look_again(self) -> None:
        """Put back what was handed out without anybody knowing, as far as the store tells by now.

        To be called every few seconds. Raises EtcdError or RpcError; what is left comes up again.
        """
        failure: EtcdError | RpcError | None = None
        for processid in list(self._doubtful):
            try:
                await self._look(processid)
            except (EtcdError, RpcError) as error:
                failure = error
                if isinstance(error, EtcdUnavailable):
                    break  # each of the others would wait for its timeout, too
        if failure is not None:
            raise failure

    async def _look(self, processid: str) -> None:
        doubt = self._doubtful.get(processid)
        if doubt is None:
            return

        def step(process: Process, revision: int) -> store.Transition | None:
            if not doubt.happened(process):
                return None
            return store.requeue(process, revision, self.processes.clock.now(), counts=False)

        began, is_open = trio.current_time(), False
        with suppress(NotFound):
            process = await self.processes.change(doubt.colony, processid, step)
            is_open = doubt.open(process) and began <= doubt.until
        if not is_open and self._doubtful.get(processid) is doubt:
            del self._doubtful[processid]

    def resume(self, colony: str) -> None:
        """Assignments of a colony go on: every waiter looks again."""
        self.paused.discard(colony)
        for (name, _), line in self._waiters.items():
            if name == colony:
                for waiter in line:
                    waiter.woken.set()

    def _pass_on(self, candidate: Candidate) -> None:
        """A woken waiter leaves: whatever woke it may be for another one."""
        find = self.processes.queue.find
        place = (candidate.colony, candidate.executortype)
        self._wake_first(place, lambda other: find(other, self.held) is not None)

    def _wake_first(self, place: tuple[str, str], suits: Callable[[Candidate], bool]) -> None:
        """Wake the first waiter of a line for whom there is something; who is alike is like it."""
        vain = set[Candidate]()
        for waiter in self._waiters.get(place, {}):
            if waiter.woken.is_set() or waiter.candidate in vain:
                continue
            if suits(waiter.candidate):
                waiter.woken.set()
                return
            vain.add(waiter.candidate)

    async def _take(self, candidate: Candidate, executor: Executor) -> Process | None:
        while (entry := self.processes.queue.find(candidate, self.held)) is not None:
            origin = entry.waiting.origin
            self.processes.queue.take(entry)
            self._starting[origin] += 1
            process = None
            try:
                process = await self._assign(entry, executor)
            except (EtcdError, RpcError, _Raced) as error:
                self.processes.queue.give_back(entry)
                # Others may have looked in vain while it was taken; after lost races this poll,
                # too, may look again.
                self.offered(entry)
                if isinstance(error, _Raced):
                    return None
                raise
            finally:
                self._starting[origin] -= 1
                if process is None:
                    self.freed(origin)  # the place it held may serve another
            if process is not None:
                return process
        return None

    async def _assign(self, entry: QueueEntry, executor: Executor) -> Process | None:
        key = keys.process(entry.colony, entry.processid)
        if self.processes.client.known.has(key):
            async with self._large:
                return await self._assigned(entry, executor)
        return await self._assigned(entry, executor)

    async def _assigned(self, entry: QueueEntry, executor: Executor) -> Process | None:
        """Assign the process of an entry; None when it waits no more.

        Raises EtcdError, RpcError, and _Raced when each try lost to another write.
        """
        known = await self.processes.recall(entry.colony, entry.processid)
        doubted = entry.processid in self._doubtful
        if known is not None and (doubted or known[0].state != State.WAITING or known[0].peer):
            # In doubt it may run by now; and while the store is away, that polls go on adds nothing
            # to be looked for. Else the watch may be ahead of the answer to our own requeue: the
            # store's word is final.
            known = await self.processes.load(entry.colony, entry.processid)
        for _ in range(_TRIES):
            # One that a peer has is in our index only until the watch says that it left.
            if known is None or known[0].state != State.WAITING or known[0].peer:
                return None
            # The poll may have waited for long: the executor may have another id, or be gone.
            worker = self.present(executor)
            step = store.assign(known[0], known[1], worker, self.processes.clock.now())
            try:
                result = await self.processes.client.commit(step.txn)
            except EtcdError:
                self._doubt(step.process)
                raise
            if result.succeeded:
                # Whatever was doubted before began at a revision that is no more.
                self._doubtful.pop(entry.processid, None)
                self.processes.settle(step.process, result.revision)
                return step.process
            known = await self.processes.load(entry.colony, entry.processid)
        raise _Raced
