"""Steps of the wall clock: noticed by a clock that has none, and what they make of deadlines.

Values in, values out, beside the reading of the clocks. Which stored times are then written anew
is decided in `timers.retime`; what federation makes of a step in `federation.network.monitor`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from node.model.types import DAY, SECOND

JUMP = 3.0  # seconds that two clocks may drift apart between two looks
SET = "clock set"
_GAP = 15.0  # seconds between two looks after which we were stopped, or starved
_ATOMIC = 0.5  # seconds that reading the clocks may take: else they are read again
_READS = 5
# What is of the future is squeezed by this into the minute before now: the order is kept to a tenth
# of a second, and 190 years have room.
_SQUEEZE = 10**8
_MINUTE = 60 * SECOND


class ClockSample(msgspec.Struct, frozen=True):
    """One instant by three clocks, in seconds: of the wall, steady, and steady through sleep."""

    wall: float
    steady: float
    awake: float


def moment() -> ClockSample:
    """Now."""
    for _ in range(_READS):
        steady = time.monotonic()
        found = ClockSample(time.time(), steady, steady_ns() / SECOND)
        if time.monotonic() - steady < _ATOMIC:
            break
    return found


def steady_ns() -> int:
    """A clock in ns that is never set, and goes on while the machine sleeps where it can."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.clock_gettime_ns(boot) if boot is not None else time.monotonic_ns()


def boot_id() -> str:
    """What tells this start of the machine from every other; "" where nothing does.

    Two readings of the steady clock can be compared when it is the same.
    """
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except (OSError, ValueError):
        return ""


def jumped(before: ClockSample, now: ClockSample) -> str:
    """What happened to the clocks between two looks that were to be a second apart, or ""."""
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
    """The wall clock (`now`, Unix ns) by the side of a steady one (`steady`, ns, never set).

    `judged` is what the wall clock would show had it not been set since `adopt`. What is judged by
    a stored time is judged by `late`: no step makes anything late before it was dealt with.
    Without a steady clock nothing is ever a step.
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
        """What the wall clock shows now is the time."""
        self.offset = self._apart()

    def resume(self, wall: int, steady: int) -> None:
        """Go on from what both showed earlier: a step since then is still to be dealt with."""
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
        """By how many ns the wall clock was set; 0 for less than a step, which is adopted."""
        if self.steady is self.now:
            return 0
        by = self._apart() - self.offset
        if abs(by) > JUMP * SECOND:
            return by
        self.offset += by
        return 0

    @property
    def judged(self) -> int:
        """Unix ns by the wall clock as it was before a step that nobody dealt with."""
        return self.steady() + self.offset

    def late(self) -> int:
        """Unix ns by which deadlines are judged: never ahead of the wall clock, nor of `judged`."""
        return min(self.now(), self.judged)

    def due(self, deadline: int, limit: int) -> int:
        """When, by the steady clock, a stored deadline (Unix ns) has come.

        `limit` is the ns that it was given for: nothing is due later than that from now. 0 is
        unknown. The answer is 0 for no deadline, and above 0 else.
        """
        if not deadline:
            return 0
        left = max(0, deadline - self.late())
        if limit > 0:
            left = min(left, limit)
        return max(1, self.steady() + left)

    def deadline(self, due: int) -> int:
        """The Unix ns that a moment of the steady clock is by the wall clock as adopted."""
        return due + self.offset


def place(prioritytime: int, priority: int, now: int) -> int:
    """The priority time (Unix ns) by which a process stands in the queue: never of the future.

    One submitted by a clock that was ahead stands in front of what is submitted from `now` on, and
    such ones keep their order. What two hosts may be apart is let be.
    """
    ahead = prioritytime + priority * DAY - now
    if ahead <= JUMP * SECOND:
        return prioritytime
    return prioritytime - ahead - _MINUTE + min(ahead // _SQUEEZE, _MINUTE)
