"""The queue hands out what a plain sorted list would, whatever the order of events."""

from __future__ import annotations

from typing import cast

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from node.etcd.batch import Reads
from node.etcd.client import EtcdClient, KeyValue, TxnResult
from node.etcd.errors import EtcdUnavailable
from node.etcd.parts import StubCache
from node.etcd.txn import Get, ModRevision, Txn
from node.host.clock import Clock
from node.model.codec import pack
from node.model.types import Conditions, Executor, FunctionSpec, Process, Running, State, Waiting
from node.processes.queue import Candidate, Deadlines, Queue, QueueEntry, RunningSet, matches
from node.processes.service import Processes
from node.store import keys
from tests.support.processes import assigning

NAMES = ["ada", "bob", "cy"]
PLACES = ["", "Lab", "hall"]

waitings = st.builds(
    Waiting,
    executornames=st.lists(st.sampled_from(NAMES), max_size=2, unique=True),
    locationname=st.sampled_from(PLACES),
    cpu=st.integers(0, 3),
    mem=st.integers(0, 3),
    waitdeadline=st.integers(0, 5),
    label=st.sampled_from(["", "a", "b"]),
    initiatorname=st.just(""),
)
entries = st.builds(
    QueueEntry,
    colony=st.sampled_from(["dev", "lab"]),
    executortype=st.sampled_from(["cli", "gpu"]),
    prioritytime=st.integers(-5, 5),
    processid=st.uuids().map(str),
    waiting=waitings,
    revision=st.just(1),
)
candidates = st.builds(
    Candidate,
    colony=st.sampled_from(["dev", "lab"]),
    executortype=st.sampled_from(["cli", "gpu"]),
    name=st.sampled_from(NAMES),
    location=st.sampled_from(["", "lab", "hall"]),
    cpu=st.none() | st.integers(0, 3),
    mem=st.none() | st.integers(0, 3),
)


def reference(waiting: list[QueueEntry], candidate: Candidate) -> QueueEntry | None:
    """The queue as a child would write it."""
    fitting = [
        entry
        for entry in waiting
        if (entry.colony, entry.executortype) == (candidate.colony, candidate.executortype)
        and matches(candidate, entry.waiting)
    ]
    return min(fitting, key=lambda e: (e.prioritytime, e.processid), default=None)


@given(st.lists(entries, max_size=20), st.lists(candidates, max_size=20))
def test_order_is_that_of_the_reference(start: list[QueueEntry], asking: list[Candidate]) -> None:
    queue = Queue()
    waiting = list(start)
    for entry in start:
        assert queue.add(entry)
    for candidate in asking:
        expected = reference(waiting, candidate)
        found = queue.find(candidate)
        assert found == expected
        if found is not None:
            queue.take(found)
            waiting.remove(found)


ENTRY = QueueEntry(0, "p", 5, "dev", "cli", Waiting([], "", 0, 0, 7, "", ""))
ANY = Candidate("dev", "cli", "ada")


def test_late_news_of_a_taken_entry_do_not_bring_it_back() -> None:
    queue = Queue()
    queue.add(ENTRY)
    queue.take(ENTRY)
    assert not queue.add(ENTRY)
    assert queue.find(ANY) is None


def test_a_requeue_at_a_higher_revision_comes_back() -> None:
    queue = Queue()
    queue.add(ENTRY)
    queue.take(ENTRY)
    again = QueueEntry(0, "p", 9, "dev", "cli", ENTRY.waiting)
    assert queue.add(again)
    assert queue.find(ANY) == again


def test_a_failed_transaction_gives_the_entry_back() -> None:
    queue = Queue()
    queue.add(ENTRY)
    queue.take(ENTRY)
    queue.give_back(ENTRY)
    assert queue.find(ANY) == ENTRY


def test_a_new_listing_replaces_all() -> None:
    queue = Queue()
    queue.add(ENTRY)
    other = QueueEntry(1, "q", 6, "dev", "cli", ENTRY.waiting)
    queue.add(other)
    queue.keep({"q"}, 6)
    assert [entry.processid for entry in queue.in_order("dev")] == ["q"]
    assert queue.count("dev") == 1


def test_a_wait_deadline_is_told_once() -> None:
    queue = Queue()
    queue.add(ENTRY)
    assert queue.overdue(7) == []
    assert queue.overdue(8) == [ENTRY]
    assert queue.overdue(8) == []
    queue.again(ENTRY)
    assert queue.overdue(8) == [ENTRY]


def test_many_that_are_due_at_once_are_told_page_by_page() -> None:
    for count in (3000, 6000):
        due, told = Deadlines(), list[str]()
        for number in range(count):
            due.set(str(number), number + 1)
        while found := due.before(count + 1):
            assert len(found) <= 1024
            told += found
        assert told == [str(number) for number in range(count)]


def test_an_exec_deadline_is_told_once_and_only_while_it_runs() -> None:
    running = RunningSet()
    run = Running("x", "cli", 1, 10, "", "")
    running.add("dev", "p", run, 1)
    running.add("dev", "q", run, 2)
    running.remove("q", 3)
    assert running.overdue(11) == [("dev", "p", run)]
    assert running.overdue(11) == []
    assert running.of_executor("dev", "x") == ["p"]


@given(
    st.lists(
        st.tuples(st.sampled_from(["set", "set", "drop", "before"]), st.integers(0, 7)), max_size=80
    ),
    st.data(),
)
def test_what_is_due_is_what_a_list_says_and_no_more_is_kept(
    steps: list[tuple[str, int]], data: st.DataObject
) -> None:
    due, expected = Deadlines(), dict[str, int]()
    for step, number in steps:
        pid = str(number)
        if step == "set":
            deadline = data.draw(st.integers(0, 20))
            due.set(pid, deadline)
            expected[pid] = deadline
            if not deadline:
                del expected[pid]
        elif step == "drop":
            due.drop(pid)
            expected.pop(pid, None)
        else:
            now = data.draw(st.integers(0, 20))
            late = sorted((when, known) for known, when in expected.items() if when < now)
            found = due.before(now)
            assert sorted(found) == sorted(known for _, known in late)
            assert [expected.pop(known) for known in found] == [when for when, _ in late]
            assert due.before(now) == []
        assert len(due) == len(expected)


def test_who_has_left_before_the_deadline_is_not_kept_until_then() -> None:
    queue, running = Queue(), RunningSet()
    for number in range(20_000):
        pid = str(number)
        queue.add(
            QueueEntry(0, pid, 1, "dev", "cli", Waiting([], "", 0, 0, 10**9 + number, "", ""))
        )
        running.add("dev", pid, Running("x", "cli", 1, 10**9 + number, "", ""), 1)
        if number % 200:  # the others stay
            queue.take(queue.entries[pid])
            running.end(pid, 2)
    assert len(queue.due) == 100
    assert len(running.due) == 100
    stay = [str(number) for number in range(0, 20_000, 200)]
    assert [entry.processid for entry in queue.overdue(2 * 10**9)] == stay
    assert [pid for _, pid, _ in running.overdue(2 * 10**9)] == stay


def test_a_deadline_that_comes_up_again_is_that_of_the_present_run() -> None:
    running = RunningSet()
    running.add("dev", "p", Running("x", "cli", 1, 10, "", ""), 1)
    assert [pid for _, pid, _ in running.overdue(11)] == ["p"]
    running.again("p")
    assert [pid for _, pid, _ in running.overdue(11)] == ["p"]
    running.end("p", 2)
    running.again("p")
    assert running.overdue(11) == []
    running.add("dev", "p", Running("x", "cli", 2, 20, "", ""), 3)
    running.again("p")
    assert running.overdue(11) == []
    assert [pid for _, pid, _ in running.overdue(21)] == ["p"]


@given(st.lists(entries, max_size=12), candidates)
def test_what_is_offered_is_what_may_be_had_of_that_colony(
    known: list[QueueEntry], candidate: Candidate
) -> None:
    queue = Queue()
    sent = [
        msgspec.structs.replace(entry.waiting, origin="ab"[number % 2])
        for number, entry in enumerate(known)
    ]
    waiting = [
        msgspec.structs.replace(entry, waiting=w) for entry, w in zip(known, sent, strict=True)
    ]
    for entry in waiting:
        queue.add(entry)
    for origin in "abc":
        fitting = reference([e for e in waiting if e.waiting.origin == origin], candidate)
        assert queue.offers(candidate, origin) == (fitting is not None)


def test_late_news_of_an_ended_run_do_not_bring_it_back() -> None:
    running = RunningSet()
    run = Running("x", "cli", 1, 10, "", "")
    running.add("dev", "p", run, 3)
    running.end("p", 5)
    running.add("dev", "p", run, 3)  # the watch tells of the start
    assert running.count("dev") == 0
    running.add("dev", "p", run, 7)  # our own next start
    running.remove("p", 5)  # the watch tells of the first end
    assert [processid for processid, _ in running.in_order("dev")] == ["p"]


actions = st.lists(
    st.tuples(st.sampled_from(["add", "take", "remove", "give back"]), st.integers(0, 19)),
    max_size=40,
)


@given(st.lists(entries, min_size=1, max_size=20, unique_by=lambda e: e.processid), actions)
def test_order_and_count_are_those_of_a_sorted_list(
    known: list[QueueEntry], steps: list[tuple[str, int]]
) -> None:
    queue, waiting, taken = Queue(), dict[str, QueueEntry](), set[str]()
    for step, number in steps:
        entry = known[number % len(known)]
        pid = entry.processid
        if step == "add":
            added = queue.add(entry)
            assert added == (pid not in waiting and pid not in taken)
            if added:
                waiting[pid] = entry
        elif step == "take" and pid in waiting:
            queue.take(waiting.pop(pid))
            taken.add(pid)
        elif step == "remove":
            queue.remove(pid)
            waiting.pop(pid, None)
            taken.discard(pid)
        elif step == "give back" and pid in taken:
            queue.give_back(entry)
            taken.discard(pid)
            waiting[pid] = entry
        for colony in ("dev", "lab"):
            mine = [e for e in waiting.values() if e.colony == colony]
            assert queue.count(colony) == len(mine)
            mine.sort(key=lambda e: (e.prioritytime, e.processid))
            assert list(queue.in_order(colony)) == mine
            for wanted in ("", "a", "b"):
                some = [e for e in mine if wanted in ("", e.waiting.label)]
                assert list(queue.in_order(colony, label=wanted)) == some
            some = [e for e in mine if e.executortype == "gpu"]
            assert list(queue.in_order(colony, executortype="gpu")) == some
            for place, last in enumerate(mine):
                assert list(queue.in_order(colony, after=last)) == mine[place + 1 :]


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.booleans()), max_size=12))
def test_runs_told_twice_and_late_end_as_the_store_says(
    writes: list[tuple[int, bool, bool]],
) -> None:
    """Each write is told by the watch; some are told by us before, ahead of all the watch's news.

    After the watch has told everything, the set is what the writes made.
    """
    running = RunningSet()
    truth: dict[str, Running] = {}
    log: list[tuple[str, Running | None, int]] = []
    for revision, (number, starts, ours) in enumerate(writes, 1):
        pid = str(number)
        if starts == (pid in truth):
            continue
        run = Running("x", "cli", revision % 3, 0, "", "") if starts else None
        log.append((pid, run, revision))
        if run is not None:
            truth[pid] = run
            if ours:
                running.add("dev", pid, run, revision)
        else:
            del truth[pid]
            if ours:
                running.end(pid, revision)
    for pid, run, revision in log:
        if run is None:
            running.remove(pid, revision)
        else:
            running.add("dev", pid, run, revision)
    expected = sorted(truth.items(), key=lambda item: (item[1].starttime, item[0]))
    assert list(running.in_order("dev")) == expected
    assert running.count("dev") == len(expected)


@given(st.lists(st.integers(-(2**62), 2**62), min_size=2))
def test_queue_keys_sort_as_their_times_do(times: list[int]) -> None:
    made = [keys.queue("dev", "cli", t, "p") for t in times]
    assert sorted(made) == [keys.queue("dev", "cli", t, "p") for t in sorted(times)]
    assert [keys.parse_queue(key) for key in made] == [("dev", "cli", t, "p") for t in times]


class SlowStore:
    """A store whose every answer takes 10 ms and says when it was read."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.broken = False

    async def get(self, key: str) -> KeyValue | None:
        began = len(self.calls)
        self.calls.append(1)
        await trio.sleep(0.01)
        return None if key == "none" else KeyValue(key, b"", began, 0, 0)

    async def commit(self, txn: Txn) -> TxnResult:
        began = len(self.calls)
        self.calls.append(len(txn.success))
        await trio.sleep(0.01)
        if self.broken:
            raise EtcdUnavailable("broken")
        wanted = [op.key for op in txn.success if isinstance(op, Get)]
        found = [[] if k == "none" else [KeyValue(k, b"", began, 0, 0)] for k in wanted]
        return TxnResult(True, 1, found)


async def _read_all(store: SlowStore, names: list[str], cancel: int = -1) -> dict[int, str | None]:
    reads = Reads(cast(EtcdClient, store))
    got: dict[int, str | None] = {}

    async def one(number: int, scope: trio.CancelScope) -> None:
        with scope:
            found = await reads.get(names[number])
            got[number] = found.key if found else None

    async with trio.open_nursery() as nursery:
        for number in range(len(names)):
            scope = trio.CancelScope()
            nursery.start_soon(one, number, scope)
            await trio.sleep(0.001)
            if number == cancel:
                nursery.start_soon(_cancel_later, scope)
    assert await reads.get("last")
    return got


async def _cancel_later(scope: trio.CancelScope) -> None:
    await trio.sleep(0.012)
    scope.cancel()


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("cancel", [-1, 0, 1, 2, 5])
def test_reads_that_come_together_share_a_transaction_and_each_gets_its_own(
    broken: bool, cancel: int
) -> None:
    store = SlowStore()
    store.broken = broken
    names = ["a", "b", "none", "c", "a", "d"]
    clock = trio.testing.MockClock(autojump_threshold=0)
    got = trio.run(_read_all, store, names, cancel, clock=clock)
    expected = {n: None if name == "none" else name for n, name in enumerate(names)}
    assert {n: got[n] for n in got if n != cancel} == {
        n: name for n, name in expected.items() if n != cancel
    }
    assert broken or cancel >= 0 or len(store.calls) == 3


class OneProcess:
    """A store with one waiting process, at revision 9; every transaction succeeds at 10."""

    def __init__(self, process: Process) -> None:
        self.process, self.known = process, StubCache()

    async def get(self, key: str) -> KeyValue | None:
        return KeyValue(key, pack(self.process), 9, 1, 0)

    async def commit(self, txn: Txn) -> TxnResult:
        return TxnResult(txn.compare == [ModRevision(txn.compare[0].key, 9)], 10, [])


def test_a_requeue_that_the_watch_tells_first_is_handed_out() -> None:
    """The watch may be ahead of the answer to our own transaction: memory still says running."""
    spec = FunctionSpec(funcname="echo", conditions=Conditions("dev", executortype="cli"))
    waiting = Process("p", "i", "ada", "dev", spec, 0, 0)
    processes = Processes(cast(EtcdClient, OneProcess(waiting)), Clock(lambda: 1))
    assigner = assigning(processes)
    ran = msgspec.structs.replace(waiting, state=State.RUNNING, assignedexecutorid="x")
    processes.remember(ran, 5)
    place = keys.queue("dev", "cli", 0, "p")
    processes.apply(place, pack(Waiting([], "", 0, 0, 0, "", "")), 9)
    executor = Executor("x", "cli", "ada", "dev")
    got = trio.run(assigner.assign, ANY, executor, -1)
    assert (got.processid, got.state, got.assignedexecutorid) == ("p", State.RUNNING, "x")


def test_late_news_of_a_hand_out_do_not_remove_a_requeue() -> None:
    queue = Queue()
    queue.add(ENTRY)
    queue.take(ENTRY)
    again = QueueEntry(0, "p", 9, "dev", "cli", ENTRY.waiting)
    queue.add(again)
    queue.remove("p", 7)
    assert queue.find(ANY) == again
    queue.remove("p", 10)
    assert queue.find(ANY) is None


def test_the_processes_of_a_member_are_found_without_those_of_others() -> None:
    queue = Queue()
    for number in range(2_000):
        whose = "rare" if number in (5, 1_999) else "ann"
        waiting = Waiting([], "", 0, 0, 0, label="", initiatorname=whose)
        queue.add(QueueEntry(number, f"p{number}", 1, "dev", "cli", waiting))
    order = list(queue.in_order("dev", initiator="rare"))
    assert [each.processid for each in order] == ["p5", "p1999"]
    assert list(queue.in_order("dev", initiator="rare", after=order[0])) == order[1:]
    queue.take(order[0])
    assert list(queue.in_order("dev", initiator="rare")) == order[1:]
    queue.remove("p1999")
    assert list(queue.in_order("dev", initiator="rare")) == []
    assert len(list(queue.in_order("dev", initiator="ann"))) == 1_998
