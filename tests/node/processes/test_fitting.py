"""Tracks, shelves and lanes: they find what a walk over a sorted list would, in few steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.model.types import Waiting
from node.processes import fitting
from node.processes.fitting import UNLIMITED, Shelf, Track
from node.processes.queue import Candidate, Queue, QueueEntry, matches


class Thing(msgspec.Struct, frozen=True, order=True):
    """An item."""

    place: int
    cpu: int = 0
    mem: int = 0
    group: str = ""


AMOUNT = st.integers(-9, 9) | st.sampled_from([0, 127, 128, 255, UNLIMITED, -UNLIMITED])
things = st.builds(
    Thing, place=st.integers(0, 60), cpu=AMOUNT, mem=AMOUNT, group=st.sampled_from(["", "a", "b"])
)
steps = st.lists(st.tuples(st.sampled_from(["add", "add", "discard", "first"]), things))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "_MOST", 4)


@pytest.mark.usefixtures("small_blocks")
@settings(max_examples=100, deadline=None)
@given(steps)
def test_a_track_is_a_sorted_list(steps: list[tuple[str, Thing]]) -> None:
    track, known = Track[Thing](), list[Thing]()
    for step, thing in steps:
        if step == "add" and thing.place not in [each.place for each in known]:
            track.add(thing)
            known = sorted([*known, thing])
        elif step == "discard":
            track.discard(thing)
            known = [each for each in known if each != thing]
            if known:
                there = known[thing.place % len(known)]
                track.discard(there)
                known.remove(there)
        elif step == "first":
            fit = [each for each in known if each.cpu <= thing.cpu and each.mem <= thing.mem]
            assert track.first(thing.cpu, thing.mem) == next(iter(fit), None)
        assert list(track) == known
        assert len(track) == len(known)
        assert track.rank(thing) == len([each for each in known if each < thing])
        assert list(track.behind(thing)) == [each for each in known if not each < thing]
        if known:
            assert track.head() == known[0]
        for block in track._blocks:
            assert list(zip(block.cpus, block.mems, strict=True)) == _least(block.items)
    assert len(track._blocks) <= 1 + len(known)


def _least(items: list[Thing]) -> list[tuple[int, int]]:
    """Return what items take, without what is no less than what another one takes."""
    takes = {(each.cpu, each.mem) for each in items}
    return sorted(
        (cpu, mem)
        for cpu, mem in takes
        if not any(c <= cpu and m <= mem for c, m in takes - {(cpu, mem)})
    )


@pytest.mark.usefixtures("small_blocks")
@settings(max_examples=100, deadline=None)
@given(steps)
def test_a_shelf_finds_what_a_walk_in_order_finds(steps: list[tuple[str, Thing]]) -> None:
    shelf, known = Shelf[Thing](), list[Thing]()
    for step, thing in steps:
        if step == "add" and thing.place not in [each.place for each in known]:
            shelf.add(thing, thing.group)
            known = sorted([*known, thing])
        elif step == "discard" and known:
            there = known.pop(thing.place % len(known))
            shelf.discard(there, there.group)
        elif step == "first":
            may = frozenset({"", "a"} - {thing.group}).__contains__
            fit = [each for each in known if each.cpu <= thing.cpu and each.mem <= thing.mem]
            assert shelf.first(thing.cpu, thing.mem) == next(iter(fit), None)
            fit = [each for each in fit if may(each.group)]
            assert shelf.first(thing.cpu, thing.mem, may=may) == next(iter(fit), None)
            assert shelf.first(thing.cpu, thing.mem, thing) == min([*fit, thing], default=None) or (
                shelf.first(thing.cpu, thing.mem, thing, may) == min([*fit, thing])
            )
        assert sorted(each for track in shelf.tracks() for each in track) == known
        assert len(shelf) == len(known)
        assert bool(shelf) == bool(known)


NAMES, PLACES = ["ada", "bob", "cy"], ["", "Lab", "hall"]
entries = st.builds(
    QueueEntry,
    prioritytime=st.integers(-5, 5),
    processid=st.uuids().map(str),
    revision=st.integers(1, 9),
    colony=st.sampled_from(["dev", "lab"]),
    executortype=st.sampled_from(["cli", "gpu"]),
    blocked=st.booleans(),
    waiting=st.builds(
        Waiting,
        executornames=st.lists(st.sampled_from(NAMES), max_size=3),
        locationname=st.sampled_from(PLACES),
        cpu=st.integers(0, 9),
        mem=st.integers(0, 9),
        waitdeadline=st.just(0),
        label=st.sampled_from(["", "a"]),
        initiatorname=st.just("ann"),
        origin=st.sampled_from(["", "", "x", "y"]),
    ),
)
candidates = st.builds(
    Candidate,
    colony=st.sampled_from(["dev", "lab"]),
    executortype=st.sampled_from(["cli", "gpu"]),
    name=st.sampled_from(NAMES),
    location=st.sampled_from(["", "lab", "HALL"]),
    cpu=st.none() | st.integers(0, 9),
    mem=st.none() | st.integers(0, 9),
)


@pytest.mark.usefixtures("small_blocks")
@settings(max_examples=100, deadline=None)
@given(
    st.lists(entries, min_size=1, max_size=30, unique_by=lambda each: each.processid),
    st.lists(
        st.tuples(
            st.sampled_from(["add", "add", "find", "move", "complete", "remove", "give back"]),
            st.integers(0, 29),
            candidates,
            st.frozensets(st.sampled_from(["x", "y"])),
        ),
        max_size=60,
    ),
)
def test_the_queue_hands_out_what_a_walk_over_a_sorted_list_does(
    known: list[QueueEntry], steps: list[tuple[str, int, Candidate, frozenset[str]]]
) -> None:
    queue, waiting, taken = Queue(), dict[str, QueueEntry](), dict[str, QueueEntry]()
    for step, number, candidate, held in steps:
        entry = known[number % len(known)]
        pid, there = entry.processid, waiting.get(entry.processid)
        if step == "add" and pid not in taken and there is None:
            assert queue.add(entry)
            waiting[pid] = entry
        elif step == "find":
            fit = [
                each
                for each in sorted(waiting.values(), key=lambda e: (e.prioritytime, e.processid))
                if (each.colony, each.executortype) == (candidate.colony, candidate.executortype)
                and not each.blocked
                and each.waiting.origin not in held
                and matches(candidate, each.waiting)
            ]
            found = queue.find(candidate, held.__contains__)
            assert found == next(iter(fit), None)
            if found is not None:
                queue.take(found)
                taken[found.processid] = waiting.pop(found.processid)
        elif step == "move" and there is not None:
            queue.move(pid, number % 11 - 5)
            waiting[pid] = queue.entries[pid]
            assert waiting[pid].prioritytime == number % 11 - 5
        elif step == "complete" and there is not None:
            queue.complete(there, known[-1].waiting)
            waiting[pid] = msgspec.structs.replace(there, waiting=known[-1].waiting)
        elif step == "remove":
            queue.remove(pid)
            waiting.pop(pid, None)
            taken.pop(pid, None)
        elif step == "give back" and taken:
            back = taken.pop(next(iter(taken)))
            queue.give_back(back)
            waiting[back.processid] = back
        _is_like(queue, sorted(waiting.values(), key=lambda e: (e.prioritytime, e.processid)))
    for pid in waiting:
        queue.remove(pid)
    assert (queue._tracks, queue._shelves, queue._depths, queue._sent) == ({}, {}, {}, {})


def _is_like(queue: Queue, model: list[QueueEntry]) -> None:
    for colony in ("dev", "lab"):
        mine = [each for each in model if each.colony == colony]
        assert list(queue.in_order(colony)) == mine
        free = [each for each in mine if not each.blocked]
        depths = dict[str, int]()
        for each in free:
            lanes = len(set(each.waiting.executornames)) or 1
            depths[each.executortype] = depths.get(each.executortype, 0) + lanes
        assert queue.depths(colony) == depths
        for last in mine:
            newer = msgspec.structs.replace(last, revision=last.revision + 1)
            assert list(queue.in_order(colony, after=newer)) == mine[mine.index(last) + 1 :]
        for each in free:
            ahead = 0
            for name in set(each.waiting.executornames) or {""}:
                for other in free[: free.index(each)]:
                    names = set(other.waiting.executornames) or {""}
                    ahead += other.executortype == each.executortype and name in names
            assert queue.ahead(each) == ahead


# -- how much of it a search looks at ------------------------------------------------------

Shape = Callable[[int], dict[str, Any]]
SHAPES: dict[str, Shape] = {
    "for one place": lambda number: {"locationname": "nowhere"},
    "each for a place": lambda number: {"locationname": f"place {number}"},
    "for one name": lambda number: {"executornames": ["nobody"]},
    "each for a name": lambda number: {"executornames": [f"name {number}"]},
    "too large": lambda number: {"mem": 2**40},
    "too large by little": lambda number: {"mem": 6001 + number % 2000},
    "too large in one or the other": lambda number: (
        {"cpu": 64_000, "mem": 1} if number % 2 else {"cpu": 1, "mem": 2**40}
    ),
    "of one size, too large in one or the other": lambda number: (
        {"cpu": 8100, "mem": 4200} if number % 2 else {"cpu": 4200, "mem": 8100}
    ),
    "from a colony that is held": lambda number: {"origin": "held"},
    "blocked": lambda number: {"blocked": True},
}


class Counted(QueueEntry, frozen=True):
    """An entry that counts how often a search asks what it takes."""

    asked = 0

    @property
    def cpu(self) -> int:
        Counted.asked += 1
        return self.waiting.cpu


def _visits(count: int, shape: Shape) -> int:
    """Return how many entries, and heads of tracks, a search visits behind `count` others."""
    queue = Queue()
    for number in range(count + 1):
        fields: dict[str, Any] = {"executornames": [], "locationname": "", "cpu": 500, "mem": 5000}
        fields |= {"waitdeadline": 0, "label": "", "initiatorname": "ann"}
        fields |= shape(number) if number < count else {}
        blocked = bool(fields.pop("blocked", False))
        waiting = Waiting(**fields)
        queue.add(Counted(number, f"{number:064}", 1, "dev", "cli", waiting, blocked))
    candidate = Candidate("dev", "cli", "ada", "here", 8000, 6000)
    Counted.asked, heads = 0, sum(len(each._tracks) for each in queue._shelves_for(candidate))
    found = queue.find(candidate, "held".__eq__)
    assert found is not None
    assert found.prioritytime == count
    blocks = sum(
        len(track._blocks)
        for shelf in queue._shelves_for(candidate)
        for track in shelf._tracks.values()
    )
    assert blocks <= 3 + count // (fitting._MOST // 4)
    return Counted.asked + heads


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_a_search_passes_none_that_its_executor_may_not_have(shape: Shape) -> None:
    # It looks into the block of the one that fits, which may have others of that size before it.
    most = 4 + fitting._MOST * (shape is SHAPES["too large by little"])
    assert max(_visits(3000, shape), _visits(6000, shape)) <= most
