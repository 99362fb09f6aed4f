"""The queue hands out what a plain sorted list would, whatever the order of events."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from node.model import Running, Waiting
from node.scheduler import Candidate, Entry, Queue, RunningSet, matches
from node.store import keys

NAMES = ["ada", "bob", "cy"]
PLACES = ["", "Lab", "hall"]

waitings = st.builds(
    Waiting,
    executornames=st.lists(st.sampled_from(NAMES), max_size=2, unique=True),
    locationname=st.sampled_from(PLACES),
    cpu=st.integers(0, 3),
    mem=st.integers(0, 3),
    waitdeadline=st.integers(0, 5),
    label=st.just(""),
    initiatorname=st.just(""),
)
entries = st.builds(
    Entry,
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


def reference(waiting: list[Entry], candidate: Candidate) -> Entry | None:
    """The queue as a child would write it."""
    fitting = [
        entry
        for entry in waiting
        if (entry.colony, entry.executortype) == (candidate.colony, candidate.executortype)
        and matches(candidate, entry.waiting)
    ]
    return min(fitting, key=lambda e: (e.prioritytime, e.processid), default=None)


@given(st.lists(entries, max_size=20), st.lists(candidates, max_size=20))
def test_order_is_that_of_the_reference(start: list[Entry], asking: list[Candidate]) -> None:
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


ENTRY = Entry("dev", "cli", 0, "p", Waiting([], "", 0, 0, 7, "", ""), 5)
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
    again = Entry("dev", "cli", 0, "p", ENTRY.waiting, 9)
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
    other = Entry("dev", "cli", 1, "q", ENTRY.waiting, 6)
    queue.replace({"q": other})
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


def test_an_exec_deadline_is_told_once_and_only_while_it_runs() -> None:
    running = RunningSet()
    run = Running("x", "cli", 1, 10, "", "")
    running.add("dev", "p", run)
    running.add("dev", "q", run)
    running.remove("q")
    assert running.overdue(11) == [("dev", "p", run)]
    assert running.overdue(11) == []
    assert running.of_executor("dev", "x") == ["p"]


@given(st.lists(st.integers(-(2**62), 2**62), min_size=2))
def test_queue_keys_sort_as_their_times_do(times: list[int]) -> None:
    made = [keys.queue("dev", "cli", t, "p") for t in times]
    assert sorted(made) == [keys.queue("dev", "cli", t, "p") for t in sorted(times)]
    assert [keys.parse_queue(key) for key in made] == [("dev", "cli", t, "p") for t in times]
