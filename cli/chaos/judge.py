"""The rules of `colony chaos`, without I/O: who may be killed, and what became of the processes.

Killing is in `cli.chaos.workers`, the workers of a run of its own in `cli.chaos.own`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from colonyd.worker.engine import STOPPED

WAITING, RUNNING, SUCCESSFUL, FAILED, CANCELLED = range(5)

LATE = 30.0  # seconds past its deadline after which a daemon should have taken a process back

T = TypeVar("T")


def bound_of(text: str, count: int) -> int:
    """Return how many of `count` workers may be down at once: '2', or '25%' of them, rounded down.

    Raises ValueError for what is no number, for none at all, and for more than there are.
    """
    number = text.strip()
    if number.endswith("%"):
        share = int(number[:-1]) if number[:-1].isdecimal() else 0
        if not 0 < share <= 100:
            raise ValueError(f"{text}: a share is from 1% to 100%")
        bound = count * share // 100
        if bound < 1:
            raise ValueError(f"{text} of {count} workers is less than one")
        return bound
    if not number.isdecimal() or int(number) < 1:
        raise ValueError(f"{text!r} is neither a number of workers nor a share such as 25%")
    return min(int(number), count)


def victim(
    up: Sequence[T], count: int, bound: int, dice: random.Random, may: Sequence[bool] | None = None
) -> T | None:
    """Return the worker to kill now, or None if one more would break the bound.

    `up` are those of `count` workers that are up; `may` tells of each whether it may be killed.
    """
    if count - len(up) >= bound:
        return None
    able = [each for number, each in enumerate(up) if may is None or may[number]]
    return dice.choice(able) if able else None


class Reading(msgspec.Struct, frozen=True):
    """A process, as the colony told it at one moment."""

    processid: str
    state: int
    assignedexecutorid: str = ""
    starttime: str = ""
    endtime: str = ""
    execdeadline: str = ""
    retries: int = 0
    out: list[Any] | None = None
    errors: list[Any] | None = None

    @property
    def ended(self) -> bool:
        """Return whether it has an end."""
        return self.state >= SUCCESSFUL

    @property
    def end(self) -> bytes:
        """Return what makes one end differ from another."""
        return msgspec.json.encode(
            (self.state, self.assignedexecutorid, self.endtime, self.out or [], self.errors or [])
        )


def read(row: Mapping[str, Any]) -> Reading:
    """Return the reading of a process of a reply. Raises msgspec.ValidationError."""
    return msgspec.convert(row, Reading)


@dataclass
class Evidence:
    """What is known of the processes of a run; only `accepted` and the counts are of workers."""

    expected: dict[str, list[Any] | None] = field(default_factory=dict)  # id → output, if known
    last: dict[str, Reading] = field(default_factory=dict)
    ends: dict[str, dict[bytes, Reading]] = field(default_factory=dict)  # id → ends that differ
    gone: set[str] = field(default_factory=set)  # the colony does not know them any more
    accepted: list[tuple[str, str]] = field(default_factory=list)  # id, executor that was thanked
    starts: Counter[str] = field(default_factory=Counter)  # id → how often its command began
    finished: Counter[str] = field(default_factory=Counter)  # id → how often it ran to its end
    orphans: set[str] = field(default_factory=set)  # running, and nobody has them in hand

    def see(self, reading: Reading) -> None:
        """Take in what the colony tells of a process."""
        self.expected.setdefault(reading.processid, None)
        self.last[reading.processid] = reading
        self.gone.discard(reading.processid)
        if reading.ended:
            self.ends.setdefault(reading.processid, {})[reading.end] = reading

    def journal(self, lines: Sequence[str]) -> None:
        """Count the lines 'start ID ...' and 'end ID ...' that the commands wrote."""
        for line in lines:
            word, _, rest = line.partition(" ")
            counter = {"start": self.starts, "end": self.finished}.get(word)
            if counter is not None and rest:
                counter[rest.split()[0]] += 1

    @property
    def open(self) -> list[str]:
        """Return the ids of the processes without an end, in the order of submission."""
        return [each for each in self.expected if each not in self.ends and each not in self.gone]


class Finding(msgspec.Struct, frozen=True):
    """A process that should not be so, and why."""

    processid: str
    why: str


class Verdict(msgspec.Struct, frozen=True):
    """What became of the processes; `good` if none is lost or doubled."""

    processes: int
    successful: int
    failed: int
    interrupted: int  # of the failed: a restarted worker closed what its predecessor ran
    cancelled: int
    open: int  # neither ended nor lost: they wait or run
    reassigned: int  # processes that a deadline took from an executor
    retries: int  # how often that happened
    restarted: int  # processes whose command began more than once
    lost: list[Finding]
    doubled: list[Finding]

    @property
    def good(self) -> bool:
        """Return whether every process has one end at most, and none is missing."""
        return not self.lost and not self.doubled


def judge(evidence: Evidence, *, over: bool) -> Verdict:
    """Return what became of the processes. `over`: each had the time to end, so an open one is
    lost.
    """
    thanked = Counter(evidence.accepted)
    by_process: dict[str, list[str]] = {}
    for (processid, executor), count in thanked.items():
        by_process.setdefault(processid, []).extend([executor] * count)
    lost, doubled, open_ = [], [], 0
    for processid in evidence.expected:
        reading = evidence.last.get(processid)
        if processid in evidence.gone:
            lost.append(Finding(processid, "the colony does not know it any more"))
        elif processid in evidence.ends and reading is not None and not reading.ended:
            doubled.append(Finding(processid, "it had an end, and runs or waits again"))
        elif processid in evidence.orphans and processid not in evidence.ends:
            lost.append(Finding(processid, "it runs in name only: its worker is another by now"))
        elif processid not in evidence.ends and over:
            lost.append(Finding(processid, "it has no end"))
        elif processid not in evidence.ends:
            open_ += 1
        if why := _twice(evidence, processid, by_process.get(processid, [])):
            doubled.append(Finding(processid, why))
    last = [r for r in evidence.last.values() if r.processid in evidence.expected]
    states = Counter(reading.state for reading in last)
    return Verdict(
        processes=len(evidence.expected),
        successful=states[SUCCESSFUL],
        failed=states[FAILED],
        interrupted=sum(_interrupted(reading) for reading in last),
        cancelled=states[CANCELLED],
        open=open_,
        reassigned=sum(reading.retries > 0 for reading in last),
        retries=sum(reading.retries for reading in last),
        restarted=sum(count > 1 for count in evidence.starts.values()),
        lost=lost,
        doubled=doubled,
    )


def _twice(evidence: Evidence, processid: str, executors: list[str]) -> str:
    """Return why a process has two results, or one that is not its own; "" if neither."""
    ends = evidence.ends.get(processid, {})
    if len(ends) > 1:
        return f"the colony told {len(ends)} ends of it that differ"
    if len(executors) > 1:
        return f"results of it were accepted from {', '.join(sorted(executors))}"
    wanted = evidence.expected[processid]
    for reading in ends.values():
        if reading.state == SUCCESSFUL and wanted is not None and (reading.out or []) != wanted:
            return "its output is not the output of its command for its arguments"
        if reading.state == SUCCESSFUL and wanted is not None and not evidence.finished[processid]:
            return "it has an output, but its command never ran to an end"
    return ""


def _interrupted(reading: Reading) -> bool:
    return reading.state == FAILED and reading.errors == [STOPPED]


def overdue(reading: Reading, deadline: float | None, now: float) -> bool:
    """Return whether a process runs longer past its `deadline` than a daemon allows (Unix s)."""
    return reading.state == RUNNING and deadline is not None and now > deadline + LATE
