"""Steps of the wall clock: noticed by a clock that is never set, with their effect on deadlines.

Values in, values out, beside the reading of the clocks. `timers.retime` writes stored times anew
after a step; federation's reaction is in `federation.network.monitor`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from node.model.types import DAY, SECOND

JUMP = 3.0  # seconds that two clocks may drift apart between two looks
SET = "clock set"
_GAP = 15.0  # seconds between two looks after which the process was stopped, or starved
_ATOMIC = 0.5  # seconds that reading the clocks may take; otherwise they are read again
_READS = 5
# Times in the future are squeezed by this factor into the minute before now: the order is kept to a
# tenth of a second, and 190 years have room.
_SQUEEZE = 10**8
_MINUTE = 60 * SECOND


class ClockSample(msgspec.Struct, frozen=True):
    """One instant by three clocks, in seconds: the wall clock, steady, and steady through sleep."""

    wall: float
    steady: float
    awake: float


def moment() -> ClockSample:
    """Return a sample of the clocks now."""
    for _ in range(_READS):
        steady = time.monotonic()
        found = ClockSample(time.time(), steady, steady_ns() / SECOND)
        if time.monotonic() - steady < _ATOMIC:
            break
    return found


def steady_ns() -> int:
    """Return the ns of a clock that is never set, and goes on while the machine sleeps where it
    can.
    """
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.clock_gettime_ns(boot) if boot is not None else time.monotonic_ns()


def boot_id() -> str:
    """Return a text that identifies this start of the machine; "" where there is none.

    Two readings of the steady clock can be compared when it is the same.
    """
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except (OSError, ValueError):
        return ""


def jumped(before: ClockSample, now: ClockSample) -> str:
    """Return what happened to the clocks between two looks about a second apart, or ""."""
    passed = now.steady - before.steady
    slept = (now.awake - before.awake) - passed
    if slept > JUMP:
        return f"asleep for {slept:.0f} s"
    moved = (now.wall - before.wall) - passed
    if abs(moved) > JUMP:
        return f"{SET} by {moved:+.0f} s"
    if passed > _GAP:
        return f"stopped for {passed:.0f} s"
    return ""


class Clock:
    """The wall clock (`now`, Unix ns) beside a steady one (`steady`, ns, never set).

    `judged` is what the wall clock would show without the steps since `adopt`. Stored times are
    judged by `late`: no step makes anything late before the step is dealt with. Without a steady
    clock nothing is ever a step.
    """

    def __init__(self, now: Callable[[], int], steady: Callable[[], int] | None = None) -> None:
        self.now = now
        self.steady = steady or now
        self._ticked = 0
        self.adopt()

    def tick(self) -> int:
        """Return a time in Unix ns that is larger than every one that `tick` returned before."""
        self._ticked = max(self._ticked + 1, self.now())
        return self._ticked

    def adopt(self) -> None:
        """Take the present wall clock as right."""
        self.offset = self._apart()

    def resume(self, wall: int, steady: int) -> None:
        """Go on from an earlier reading of both clocks: a step since then is still to be dealt
        with.
        """
        self.offset = wall - steady

    def _apart(self) -> int:
        for _ in range(_READS):
            before = self.steady()
            wall = self.now()
            after = self.steady()
            if after - before < _ATOMIC * SECOND:
                break
        return wall - (before + after) // 2

    def step(self) -> int:
        """Return by how many ns the wall clock was set; 0 for less than a step, which is
        adopted.
        """
        if self.steady is self.now:
            return 0
        by = self._apart() - self.offset
        if abs(by) > JUMP * SECOND:
            return by
        self.offset += by
        return 0

    @property
    def judged(self) -> int:
        """Return the Unix ns by the wall clock as it was before an open step."""
        return self.steady() + self.offset

    def late(self) -> int:
        """Return the Unix ns by which deadlines are judged: never ahead of the wall clock, nor of
        `judged`.
        """
        return min(self.now(), self.judged)

    def due(self, deadline: int, limit: int) -> int:
        """Return when, by the steady clock, a stored deadline (Unix ns) has come.

        `limit` is the ns that it was given for, 0 if unknown: it comes no later than that from now.
        Returns 0 for no deadline, and a number above 0 otherwise.
        """
        if not deadline:
            return 0
        left = max(0, deadline - self.late())
        if limit > 0:
            left = min(left, limit)
        return max(1, self.steady() + left)

    def deadline(self, due: int) -> int:
        """Return the Unix ns, by the wall clock as adopted, of a moment of the steady clock."""
        return due + self.offset


def place(prioritytime: int, priority: int, now: int) -> int:
    """Return the priority time (Unix ns) of a process in the queue, which is never in the future.

    A process submitted by a clock that was ahead stands before those submitted from `now` on, and
    several of them keep their order. A difference as between two hosts is ignored.
    """
    ahead = prioritytime + priority * DAY - now
    if ahead <= JUMP * SECOND:
        return prioritytime
    return prioritytime - ahead - _MINUTE + min(ahead // _SQUEEZE, _MINUTE)
