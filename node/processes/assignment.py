"""Assignment of waiting processes to executors: the polls that wait, and which of them is woken.

`processes.queue` has the order, `store.work.processes` the transaction, `processes.service` the
indexes.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Container, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import trio
from sortedcontainers import SortedDict

from colonyd.errors import NotFound, RpcError, TimedOut, Unavailable
from node.etcd.client import TxnResult
from node.etcd.errors import EtcdError, EtcdNoSpace, EtcdUnavailable
from node.etcd.guard import GUARD, Guard
from node.etcd.parts import WHOLE
from node.etcd.txn import Txn
from node.host.log import get_logger
from node.model.types import SECOND, Executor, Process, State
from node.processes.fitting import UNLIMITED, Shelf
from node.processes.observer import Observer
from node.processes.queue import Candidate, Place, QueueEntry, places_for, places_of
from node.processes.service import Processes, invalid_conditions
from node.store import keys
from node.store.work import processes as store

log = get_logger("handout")

# Tries of one assignment, each with fresh values after a lost race. More mean that something is
# wrong.
_TRIES = 8
# Seconds for which a write without an answer may still happen.
_LANDING = 60
# Seconds that a poll must still have to get a submission: its time must not end meanwhile.
_CLAIM_LEAST = 1.0
# Seconds since its submission after which a process claims no poll. It starts when it was
# submitted: what was prepared for long, as one whose files had to come first, would lose time.
_CLAIM_LATEST = 1.0
# Processes with uncertain assignments: about as many as polls were under way when the store went.
_MOST_DOUBTS = 10_000


@dataclass(eq=False, slots=True)
class _UncertainAssignment:
    """Assignments of one process that may have happened, although their callers got an error.

    Each is known by its attempt and start time. An attempt begins once, so at most one assignment
    happened. If the process runs in this attempt with another start time, it was assigned again and
    has a working executor. The executor's id proves nothing: the same executor may have asked
    again, and may have a new id.
    """

    colony: str
    attempt: int
    starttimes: set[int]
    until: float  # trio's time after which none of them can happen any more
    new: bool = False  # the process itself may not be stored yet

    def happened(self, process: Process) -> bool:
        """Return whether the process runs by one of these assignments."""
        return (
            process.state == State.RUNNING
            and process.attempt == self.attempt
            and process.starttime in self.starttimes
        )

    def open(self, process: Process) -> bool:
        """Return whether one of these assignments happened or may still happen."""
        waits = process.state == State.WAITING and process.attempt < self.attempt
        return waits or self.happened(process)


@dataclass(eq=False, slots=True)
class PendingAssignment:
    """A process on its way to its executor, in an answer that may be lost."""

    assigner: Assigner
    process: Process

    def taken(self) -> None:
        """Note that the executor received the process."""
        self.assigner.taken(self.process)

    async def lost(self) -> None:
        """Put the process back, unless its executor has named it or a later answer carries it."""
        await self.assigner.give_back(self)


@dataclass(eq=False, slots=True)
class Claim:
    """A submission that goes straight to a waiting poll.

    `step` stores the process as assigned to the poll's executor; `commit` sends a transaction for
    two requests, this task's and that of the poll. `stored` is set to the process that the poll
    gets, `error` to why it fails; without either it goes on.
    """

    step: store.Transition
    commit: Callable[[Txn], Awaitable[TxnResult]]
    stored: Process | None = None
    error: EtcdError | RpcError | None = None
    decided: trio.Event = field(default_factory=trio.Event)


@dataclass(eq=False, slots=True)
class _Waiter:
    """A poll that waits; as an item of a shelf it takes less, the more it has to give.

    `cause` is what it was woken for: an entry, or the id of a colony that has room for another
    process here.
    """

    number: int
    candidate: Candidate
    executor: Executor
    deadline: float  # trio's time
    guard: Guard | None  # of the poll's transactions
    woken: trio.Event = field(default_factory=trio.Event)
    claim: Claim | None = None
    cause: QueueEntry | str = ""

    @property
    def cpu(self) -> int:
        """Return the CPU that it has, as a negative number."""
        return -UNLIMITED if self.candidate.cpu is None else -self.candidate.cpu

    @property
    def mem(self) -> int:
        """Return the memory that it has, as a negative number."""
        return -UNLIMITED if self.candidate.mem is None else -self.candidate.mem

    def __lt__(self, other: _Waiter) -> bool:
        """Return whether it came before another."""
        return self.number < other.number


class PollRefused(Exception):
    """The request of a claimed poll may take no effect any more, so nothing was stored."""

    def __init__(self, refusal: RpcError) -> None:
        super().__init__()
        self.refusal = refusal


class _Raced(Exception):
    """A process waits, but changed before each try to assign it."""


@dataclass
class Assigner(Observer):
    """Assigns processes to the polls of executors.

    `paused` holds the names of the colonies whose assignments are paused. `present` returns an
    executor as it is now, or raises RpcError when it may not have work.
    """

    processes: Processes
    present: Callable[[Executor], Executor]
    paused: set[str] = field(default_factory=set)
    stopping: bool = False
    _waiters: dict[tuple[str, str], dict[_Waiter, None]] = field(default_factory=dict)
    # Those that no wake-up has reached, by each shelf of the queue that they may have processes of.
    _idle: dict[Place, Shelf[_Waiter]] = field(default_factory=dict)
    _number: int = 0
    # A large process takes several times its size in memory: few are assigned at the same time.
    _large: trio.Semaphore = field(default_factory=lambda: trio.Semaphore(2))
    _starting: Counter[str] = field(default_factory=Counter)
    _doubtful: OrderedDict[str, _UncertainAssignment] = field(default_factory=OrderedDict)
    _unheard: dict[str, PendingAssignment] = field(default_factory=dict)
    # Processes without a time limit that ran when this daemon began and that no call has named
    # since: the id of the executor, by the id of the process.
    _inherited: dict[str, str] = field(default_factory=dict)
    # Ids of processes that came before the queue was read up to their keys, by these keys. They
    # wait, so there are no more than the queue has.
    _early: SortedDict[str, str] = field(default_factory=SortedDict)

    def held(self, origin: str) -> bool:
        """Return whether as many processes of a colony run here as may, assignments under way
        included.
        """
        most = self.processes.hooks.most_running(origin)
        return 0 < most <= self.processes.running.count_of(origin) + self._starting[origin]

    def freed(self, origin: str) -> None:
        """Wake a poll for the next process of the colony `origin`, which may have room now."""
        queue = self.processes.queue
        if not origin or not queue.count_of(origin) or self.held(origin):
            return
        # One of each executor type; the poll that matches the colony's first process may not exist.
        found: dict[tuple[str, str], _Waiter] = {}
        for place in queue.places_of(origin):
            for track in self._idle.get(place, Shelf()).tracks():
                vain = set[tuple[int, int]]()
                for waiter in track:
                    has = (waiter.cpu, waiter.mem)
                    if has in vain:
                        continue
                    candidate = waiter.candidate
                    if queue.offers(Candidate(*place, candidate.cpu, candidate.mem), origin):
                        found[place[:2]] = min(found.get(place[:2], waiter), waiter)
                        break
                    vain.add(has)
        for waiter in found.values():
            self._wake(waiter, origin)

    def offered(self, entry: QueueEntry) -> None:
        """Wake the first poll that may have the process; it searches the queue itself.

        While what comes before the process is not read, no poll may have it.
        """
        if not self._is_first(entry):
            self._early[_key_of(entry)] = entry.processid
        elif (waiter := self._first(entry)) is not None:
            self._wake(waiter, entry)

    def reached(self) -> None:
        """Offer the processes that came early and of which now all is read that comes before."""
        while self._early and self.processes.reading.covers(self._early.peekitem(0)[0]):
            _, processid = self._early.popitem(0)
            if (entry := self.processes.queue.entries.get(processid)) is not None:
                self.offered(entry)

    def asking(self, entry: QueueEntry) -> int:
        """Return how many waiting polls match a process, CPU and memory aside."""
        return sum(map(len, self._suited(entry)))

    def suits(self, entry: QueueEntry) -> bool:
        """Return whether a waiting poll matches a process."""
        return self._first(entry) is not None

    def _first(self, entry: QueueEntry) -> _Waiter | None:
        first: _Waiter | None = None
        for shelf in self._suited(entry):
            first = shelf.first(-entry.cpu, -entry.mem, first)
        return first

    def _suited(self, entry: QueueEntry) -> Iterator[Shelf[_Waiter]]:
        """Return shelves with the idle polls that match a process, CPU and memory aside."""
        for place in places_of(entry):
            if (shelf := self._idle.get(place)) is not None:
                yield shelf

    def _enter(self, candidate: Candidate, executor: Executor, deadline: float) -> _Waiter:
        """Let wake-ups reach a poll from now on."""
        self._number += 1
        waiter = _Waiter(self._number, candidate, executor, deadline, GUARD.get())
        self._waiters.setdefault((candidate.colony, candidate.executortype), {})[waiter] = None
        for place in places_for(candidate):
            shelf = self._idle.get(place)
            if shelf is None:
                shelf = self._idle[place] = Shelf()
            shelf.add(waiter)
        return waiter

    def _exit(self, waiter: _Waiter) -> None:
        """Let no wake-up reach a poll any more."""
        line = (waiter.candidate.colony, waiter.candidate.executortype)
        self._waiters[line].pop(waiter)
        if not self._waiters[line]:
            del self._waiters[line]
        self._leave(waiter)

    def _leave(self, waiter: _Waiter) -> None:
        for place in places_for(waiter.candidate):
            shelf = self._idle.get(place)
            if shelf is not None:
                shelf.discard(waiter)
                if not shelf:
                    del self._idle[place]

    def _wake(self, waiter: _Waiter, cause: QueueEntry | str) -> None:
        self._leave(waiter)
        waiter.cause = cause
        waiter.woken.set()

    def polling(self, colony: str) -> Counter[tuple[str, str]]:
        """Return how many polls wait in a colony, by type and name of the executor."""
        found: Counter[tuple[str, str]] = Counter()
        for (name, executortype), line in self._waiters.items():
            if name == colony:
                found.update((executortype, waiter.candidate.name) for waiter in line)
        return found

    def listed(self) -> None:
        """Note which processes ran before this daemon began, and wake every poll."""
        if not self.processes.told:
            self._inherit()
        self._early.clear()
        self.wake_all()

    def wake_all(self) -> None:
        """Wake every waiting poll; each searches the queue again."""
        for waiters in self._waiters.values():
            for waiter in waiters:
                waiter.woken.set()

    def stop(self) -> None:
        """Assign nothing more. Waiting polls are answered now; assignments under way end first."""
        self.stopping = True
        self.wake_all()

    async def assign(self, candidate: Candidate, executor: Executor, timeout: float) -> Process:
        """Assign the first matching process to an executor, waiting up to `timeout` seconds.

        Raises NotFound when no process matches in time or the node stops, TimedOut or Unavailable
        when assignment is paused.
        """
        deadline = trio.current_time() + max(timeout, 0)
        owed: list[QueueEntry | str] = []  # what it was woken for and has not searched for since
        try:
            while not self.stopping:
                if candidate.colony not in self.paused:
                    try:
                        # Shielded: an assignment under way happens as a whole or not at all.
                        with trio.CancelScope(shield=True):
                            process = await self._take(candidate, executor)
                    except _Raced:
                        await trio.lowlevel.checkpoint()
                        if trio.current_time() < deadline:
                            continue
                        break
                    if process is not None:
                        await self._hand_over(process)
                        return process
                owed.clear()
                if timeout <= 0:
                    break
                # Nothing has happened since it has searched.
                waiter = self._enter(candidate, executor, deadline)
                try:
                    with trio.move_on_at(deadline) as patience:
                        await waiter.woken.wait()
                except trio.Cancelled:
                    with suppress(EtcdError, RpcError):
                        await self._claimed(waiter)
                    raise
                finally:
                    self._exit(waiter)
                    if waiter.cause:
                        owed.append(waiter.cause)
                process = await self._claimed(waiter)
                if process is not None:
                    return process
                if patience.cancelled_caught:
                    break
        finally:
            for cause in owed:
                self._pass_on(cause)
        if self.stopping:
            raise NotFound("the server is stopping; ask again")
        if candidate.colony in self.paused:
            paused = TimedOut if timeout > 0 else Unavailable
            raise paused("assignments are paused in this colony")
        if not self.processes.reading.queue_known:
            refusal = self.processes.reading.refusal()
            raise TimedOut(refusal.message) if timeout > 0 else refusal
        raise NotFound("no process is waiting that this executor may have")

    async def submit(self, process: Process, submission: bytes) -> Process:
        """Store a new process; return the stored one if the id is taken.

        If a poll waits that may have it, it is assigned in the same transaction; what is returned
        is the process as it was submitted. Raises as `Processes.submit`.
        """
        submission = await self.processes.prepare(process, submission)
        with suppress(PollRefused), self.claiming(process, submission) as claim:
            if claim is not None:
                stored = await self.processes.create(claim.step, claim.commit)
                if stored is not claim.step.process:
                    return stored
                claim.stored = stored
                return process
        return await self.processes.enqueue(process, submission)

    @contextmanager
    def claiming(self, process: Process, submission: bytes) -> Iterator[Claim | None]:
        """Claim the first poll that may have a new process, until the block ends; None if there is
        none.

        The block stores the process by `claim.step` and `claim.commit`, and sets `claim.stored`. It
        is shielded, as an assignment is: it happens as a whole or not at all. So nothing in it may
        last longer than a call to the store. Raises Invalid for bad amounts in the conditions, and
        PollRefused.
        """
        with invalid_conditions():
            found = self._first_waiting(process)
        if found is None:
            yield None
            return
        waiter, executor = found
        step = store.submit_assigned(process, submission, executor)
        if max(len(step.value), len(submission)) > WHOLE:
            # Their parts are written first, for longer than a poll may be kept.
            yield None
            return
        claim = waiter.claim = Claim(step, self._guarded_by(waiter))
        self._leave(waiter)
        waiter.woken.set()
        self._starting[process.origin] += 1
        try:
            with trio.CancelScope(shield=True):
                yield claim
            if claim.stored is not None:
                self._doubtful.pop(process.processid, None)
        except EtcdError as error:
            if not error.refused or isinstance(error, EtcdNoSpace):
                self._doubt(step.process, new=True)
                claim.error = type(error)(*error.args)
            raise
        except PollRefused as refused:
            claim.error = refused.refusal
            raise
        finally:
            claim.decided.set()
            self._starting[process.origin] -= 1
            self.freed(process.origin)

    def _guarded_by(self, waiter: _Waiter) -> Callable[[Txn], Awaitable[TxnResult]]:
        """Return what commits a transaction for two requests: this task's, and that of a poll.

        It raises PollRefused if the poll's request may take no effect.
        """
        send = self.processes.client.commit
        if waiter.guard is None:
            return send
        guard, ours = waiter.guard, set[RpcError]()

        async def send_ours(txn: Txn) -> TxnResult:
            try:
                return await send(txn)
            except RpcError as error:
                ours.add(error)
                raise

        async def commit(txn: Txn) -> TxnResult:
            try:
                return await guard.commit(send_ours, txn)
            except RpcError as error:
                if error in ours:
                    raise
                raise PollRefused(error) from None

        return commit

    def _first_waiting(self, process: Process) -> tuple[_Waiter, Executor] | None:
        """Return the first poll that waits and may have a new process, and its executor as it is
        now; None if there is none.

        Raises ValueError for bad amounts in the process's conditions.
        """
        colony, kind = process.colonyname, process.spec.conditions.executortype
        if (colony, kind) not in self._waiters or process.peer:
            return None
        if process.origin and self.held(process.origin):
            return None
        if self.processes.clock.now() - process.submissiontime > _CLAIM_LATEST * SECOND:
            return None
        # While the queue is read, what comes before the process may not be known.
        if self.stopping or colony in self.paused or self.processes.reading.under_way:
            return None
        waiter = self._first(self.processes.entry_of(process, 0))
        if waiter is None or waiter.deadline < trio.current_time() + _CLAIM_LEAST:
            return None
        # What waits already comes first: the poll is about to be woken for it.
        if self.processes.queue.find(waiter.candidate, self.held) is not None:
            return None
        try:
            return waiter, self.present(waiter.executor)
        except RpcError:
            return None

    async def _claimed(self, waiter: _Waiter) -> Process | None:
        """Return the process of the submission that claimed a poll, if one did and it is stored.

        Raises EtcdError when that is not known, and RpcError when the poll is refused.
        """
        claim, waiter.claim = waiter.claim, None
        if claim is None:
            return None
        # Bounded by the timeout of the call to the store.
        with trio.CancelScope(shield=True):
            await claim.decided.wait()
        if claim.error is not None:
            raise claim.error
        if claim.stored is not None:
            await self._hand_over(claim.stored)
        return claim.stored

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
        """Return the delivery for an answer that carries a process.

        The latest one of a process counts.
        """
        handed = self._unheard[process.processid] = PendingAssignment(self, process)
        return handed

    def taken(self, process: Process) -> None:
        """Note that an answer with this assignment has arrived."""
        handed = self._unheard.get(process.processid)
        if handed is not None and handed.process.attempt == process.attempt:
            del self._unheard[process.processid]

    def heard(self, processid: str, executorid: str) -> None:
        """Note that an executor has named a process in a call, so it knows of it."""
        if self._inherited.get(processid) == executorid:
            del self._inherited[processid]
        handed = self._unheard.get(processid)
        if handed is not None and handed.process.assignedexecutorid == executorid:
            del self._unheard[processid]

    def _inherit(self) -> None:
        """Note the running processes without a limit.

        An earlier daemon assigned them, and may have been killed before it answered.
        """
        self._inherited = {
            processid: running.executorid
            for processid, (_, running, revision) in self.processes.running.entries.items()
            # One that was assigned while the queue was read is ours.
            if not running.execdeadline and revision <= self.processes.reading.revision
        }

    def silent(self, colony: str, executors: Container[str]) -> list[str]:
        """Return the ids of running processes that may never end because their executor may not
        know of them.

        They have no time limit, ran before this daemon began, and no call has named them since.
        Only processes of the given executors are returned.
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
        """Put back a process whose answer is lost.

        If the store does not answer, `look_again` repeats it.
        """
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

    def _doubt(self, process: Process, *, new: bool = False) -> None:
        """Note that this assignment may have happened, and that no executor works on it.

        `new` is whether the process was submitted by the same transaction.
        """
        doubt = self._doubtful.get(process.processid)
        if doubt is None or doubt.attempt != process.attempt:
            doubt = _UncertainAssignment(process.colonyname, process.attempt, set(), 0)
        doubt.starttimes.add(process.starttime)
        doubt.until, doubt.new = trio.current_time() + _LANDING, new
        self._doubtful[process.processid] = doubt
        if len(self._doubtful) > _MOST_DOUBTS:
            self._doubtful.popitem(last=False)

    def doubts(self, processid: str) -> bool:
        """Return whether an assignment of this process is uncertain."""
        return processid in self._doubtful

    async def settle(self, processid: str) -> bool:
        """Put a process back if its assignment is uncertain; return whether it was.

        To be called before its executor is shown that it runs: the executor would take it up, and
        lose it. Raises EtcdError or RpcError.
        """
        if processid not in self._doubtful:
            return False
        await self._look(processid)
        return True

    async def look_again(self) -> None:
        """Put processes with uncertain assignments back, if the store shows that they run.

        To be called every few seconds. Raises EtcdError or RpcError; the rest is tried at the next
        call.
        """
        failure: EtcdError | RpcError | None = None
        for processid in list(self._doubtful):
            try:
                await self._look(processid)
            except (EtcdError, RpcError) as error:
                failure = error
                if isinstance(error, EtcdUnavailable):
                    break  # each of the others would run into its timeout, too
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

        began = trio.current_time()
        is_open = doubt.new and began <= doubt.until
        with suppress(NotFound):
            process = await self.processes.change(doubt.colony, processid, step)
            is_open = doubt.open(process) and began <= doubt.until
        if not is_open and self._doubtful.get(processid) is doubt:
            del self._doubtful[processid]

    def resume(self, colony: str) -> None:
        """Resume the assignments of a colony, and wake each of its polls."""
        self.paused.discard(colony)
        for (name, _), line in self._waiters.items():
            if name == colony:
                for waiter in line:
                    waiter.woken.set()

    def _pass_on(self, cause: QueueEntry | str) -> None:
        """Wake another poll for what one was woken for that leaves, or got something else."""
        if isinstance(cause, str):
            self.freed(cause)
        elif (entry := self.processes.queue.entries.get(cause.processid)) is not None:
            self.offered(entry)

    async def _take(self, candidate: Candidate, executor: Executor) -> Process | None:
        while (entry := self.processes.queue.find(candidate, self.held)) is not None:
            if not self._is_first(entry):
                return None
            origin = entry.waiting.origin
            self.processes.queue.take(entry)
            self._starting[origin] += 1
            process = None
            try:
                process = await self._assign(entry, executor)
            except (EtcdError, RpcError, _Raced):
                self.processes.queue.give_back(entry)
                # Other polls may have missed the entry while it was taken.
                self.offered(entry)
                raise
            finally:
                self._starting[origin] -= 1
                # Another process may have the place; or the watch was faster than our answer, and
                # the process was counted twice for a moment.
                self.freed(origin)
            if process is not None:
                return process
        return None

    def _is_first(self, entry: QueueEntry) -> bool:
        """Return whether all that comes before an entry is known.

        Otherwise the poll waits: while the queue is read, a process that came after the start must
        not overtake one that is not read yet.
        """
        reading = self.processes.reading
        return reading.queue_known or reading.covers(_key_of(entry))

    async def _assign(self, entry: QueueEntry, executor: Executor) -> Process | None:
        key = keys.process(entry.colony, entry.processid)
        if self.processes.client.known.has(key):
            async with self._large:
                return await self._assigned(entry, executor)
        return await self._assigned(entry, executor)

    async def _assigned(self, entry: QueueEntry, executor: Executor) -> Process | None:
        """Assign the process of an entry; return None when it waits no more.

        Raises EtcdError, RpcError, and _Raced when each try lost to another write.
        """
        known = await self.processes.recall_next(entry)
        doubted = entry.processid in self._doubtful
        if known is not None and (doubted or known[0].state != State.WAITING or known[0].peer):
            # A process with an uncertain assignment may run by now: another try without an answer
            # would only add to the doubt. Without doubt, the watch may be ahead of the answer to
            # our own requeue. In both cases the value in the store decides.
            known = await self.processes.load(entry.colony, entry.processid)
        for _ in range(_TRIES):
            # A process with a peer is in this index only until the watch reports that it left.
            if known is None or known[0].state != State.WAITING or known[0].peer:
                return None
            # The poll may have waited for long: the executor may have a new id, or be gone.
            worker = self.present(executor)
            step = store.assign(known[0], known[1], worker, self.processes.clock.now())
            try:
                result = await self.processes.client.commit(step.txn)
            except EtcdError:
                self._doubt(step.process)
                raise
            if result.succeeded:
                # Earlier uncertain assignments compared an older revision: they can't happen any
                # more.
                self._doubtful.pop(entry.processid, None)
                self.processes.settle(step.process, result.revision)
                return step.process
            known = await self.processes.load(entry.colony, entry.processid)
        raise _Raced


def _key_of(entry: QueueEntry) -> str:
    """Return the key of an entry by its place here."""
    return keys.queue(entry.colony, entry.executortype, entry.prioritytime, entry.processid)
