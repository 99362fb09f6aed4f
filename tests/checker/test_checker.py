"""The outside checker: storms that leave nothing lost or doubled, and daemons that it finds out."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import pytest

from tests.checker.comparer import Final, compare
from tests.checker.journal import Journal, Kind, Told, read
from tests.checker.mutants import MUTANTS
from tests.checker.storm import storm

GOOD = [
    Told(Kind.SUBMITTED, "ant", pid="p", token="t", began=1, at=2),
    Told(Kind.SEEN, "ant", pid="p", value="0", began=2, at=3),
    Told(Kind.ASSIGNED, "ant", who="w", pid="p", token="t", value="T1", began=3, at=4),
    Told(Kind.LOGGED, "ant", pid="p", value="line", began=4, at=5),
    Told(Kind.CLOSING, "ant", who="w", pid="p", value="t!", began=5, at=5),
    Told(Kind.CLOSED, "ant", who="w", pid="p", value="t!", began=5, at=6),
    Told(Kind.SEEN, "ant", pid="p", value="2", began=6, at=7),
]
END = Final("p", "t", "2", "t!", ("line",))


def test_a_good_journal_has_no_faults() -> None:
    assert compare(GOOD, {"ant": {"p": END}}) == []
    assert compare(GOOD, {}) == [], "a colony that says nothing is not judged"


def test_an_answer_that_was_lost_leaves_no_fault() -> None:
    """Neither of a submission, nor of a hand-out or a close: what is there is right by itself."""
    adopted = [
        Told(Kind.ADOPTED, "ant", who="w", pid="p", began=3, at=4),
        Told(Kind.CLOSING, "ant", who="w", pid="p", value="t!", began=5, at=5),
    ]
    assert compare(adopted, {"ant": {"p": Final("p", "t", "2", "t!")}}) == []


@pytest.mark.parametrize(
    ("more", "final", "fault"),
    [
        ([], {}, "is lost"),
        ([], {"p": Final("p", "u", "2", "u!", ("line",))}, "t became u"),
        ([], {"p": END, "q": Final("q", "t", "2", "t!")}, "is there 2 times"),
        ([Told(Kind.SUBMITTED, "ant", pid="q", token="t", at=9)], {"p": END}, "two ids"),
        ([], {"p": Final("p", "t", "1", "", ("line",))}, "is in state 1"),
        ([], {"p": Final("p", "t", "0", "", ("line",))}, "it has not ended"),
        ([], {"p": Final("p", "t", "3", "", ("line",))}, "it did not succeed"),
        ([], {"p": Final("p", "t", "2", "u!", ("line",))}, "its output is 'u!'"),
        ([], {"p": Final("p", "t", "2", "t!")}, "is there 0 times"),
        ([], {"p": Final("p", "t", "2", "t!", ("line",) * 2)}, "is there 2 times"),
        (
            [Told(Kind.ASSIGNED, "ant", who="v", pid="p", value="T1", began=3, at=8)],
            {"p": END},
            "handed to w and then to v",
        ),
        (
            [Told(Kind.ADOPTED, "ant", who="v", pid="p", began=3, at=4)],
            {"p": END},
            "was with v and w",
        ),
        (
            [Told(Kind.ADOPTED, "ant", who="w", pid="p", began=8, at=9)],
            {"p": END},
            "after it was closed",
        ),
        (
            [Told(Kind.REFUSED, "ant", who="w", pid="p", value="no", began=5, at=6)],
            {"p": END},
            "may not close it: no",
        ),
        (
            [Told(Kind.SEEN, "ant", pid="p", value="1", began=8, at=9)],
            {"p": END},
            "seen in state 1 after state 2",
        ),
        (
            [Told(Kind.SEEN, "ant", pid="p", value="3", began=8, at=9)],
            {"p": END},
            "was seen in state 3",
        ),
    ],
)
def test_each_fault_is_found(more: list[Told], final: dict[str, Final], fault: str) -> None:
    found = compare([*GOOD, *more], {"ant": final})
    assert any(fault in each for each in found), found


def test_an_end_that_nobody_made_is_found() -> None:
    handed = [Told(Kind.ASSIGNED, "ant", who="w", pid="p", value="T", began=3, at=4)]
    assert "nobody closed it" in compare(handed, {"ant": {"p": END}})[0]


def test_a_reader_whose_answer_was_on_its_way_is_not_believed() -> None:
    late = Told(Kind.SEEN, "ant", pid="p", value="1", began=5, at=9)
    assert compare([*GOOD, late], {"ant": {"p": END}}) == []


@pytest.mark.parametrize(
    "there", [Final("q", "t", "3", ""), Final("q", "t", "2", "u!"), Final("q", "t", "1", "")]
)
def test_colonies_that_disagree_are_found(there: Final) -> None:
    found = compare(GOOD, {"ant": {"p": END}, "bee": {"q": there}})
    assert any("bee says state" in each for each in found), found


def test_a_forward_that_ran_twice_is_found() -> None:
    there = {pid: Final(pid, "t", "2", "t!") for pid in "qr"}
    assert "bee: t is there 2 times" in compare(GOOD, {"ant": {"p": END}, "bee": there})


async def test_a_journal_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal(path) as journal:
        await journal.note(Kind.SUBMITTED, "ant", pid="p", token="ü\n", began=1.5)
        await journal.note(Kind.NEMESIS, "ant", value="kill")
    first, second = read(path)
    assert (first.kind, first.pid, first.token, first.began) == (Kind.SUBMITTED, "p", "ü\n", 1.5)
    assert second.began == second.at >= first.at > 1.5


def seeds(count: int) -> list[int]:
    """Of storms; COLONYD_TEST_SEED repeats one."""
    if given := os.environ.get("COLONYD_TEST_SEED"):
        return [int(given)]
    return [random.SystemRandom().randrange(2**32) for _ in range(count)]


@pytest.mark.slow
async def test_storms_lose_and_double_nothing(tmp_path: Path) -> None:
    for number, seed in enumerate(seeds(2)):
        print(f"COLONYD_TEST_SEED={seed}")
        place = tmp_path / str(number)
        place.mkdir()
        report = await storm(place, seed, 30)
        print(report, *report.left, sep="\n")
        assert report.faults == []
        assert report.processes > 20
        assert report.befell


NOTICED = {
    "losing_submission": "is lost",
    "second_hand_out": "and then to",
    "forgotten_close": "closed with",
    "wrong_output": "its output is 'another'",
    "forgotten_line": "is there 0 times",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MUTANTS))
async def test_a_daemon_that_does_wrong_is_found_out(tmp_path: Path, name: str) -> None:
    program = [sys.executable, "-m", "tests.checker.mutants", name]
    report = await storm(tmp_path, 1, 8, nemeses=(), names=("ant",), program=program, calm=5)
    assert any(NOTICED[name] in fault for fault in report.faults), report
