"""The colony's last hour in numbers for a chart: what waited, ran and ended, a slot each 10 s."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

SLOT = 10  # seconds
SLOTS = 360
_ENDED = {2: "done", 3: "failed", 4: "failed"}


class Slot(msgspec.Struct, array_like=True):
    """One slot of the chart; `at` is its start in Unix s."""

    at: int
    waiting: int = 0
    running: int = 0
    done: int = 0
    failed: int = 0


class Activity:
    """The slots of the last hour, filled from past processes once and from the counters then."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self._slots: dict[int, Slot] = {}
        self._before: Mapping[str, Any] | None = None
        self._noted: int | None = None  # the number of the first slot that was looked at

    def slots(self) -> list[Slot]:
        """Return all slots of the last hour, the oldest first."""
        last = self._forget()
        found: list[Slot] = []
        for number in range(last - SLOTS + 1, last + 1):
            slot = self._slots.get(number) or Slot(number * SLOT)
            if number not in self._slots and self._noted is not None and number > self._noted:
                # Not looked at yet: it is as it was.
                slot.waiting, slot.running = (
                    (found[-1].waiting, found[-1].running) if found else (0, 0)
                )
            found.append(slot)
        return found

    def recall(
        self, state: int, submitted: float | None, started: float | None, ended: float | None
    ) -> None:
        """Enter one past process by its times (Unix s)."""
        now = self.clock()
        if submitted is None:
            return
        first = self._number(now) - SLOTS + 1
        # The daemon's clock may be years ahead of this one, or its times made up.
        started = None if started is None else min(started, now)
        ended = None if ended is None else min(ended, now)
        begun = started or ended or now
        for number in range(max(first, self._number(submitted)), self._number(begun)):
            self._slot(number).waiting += 1
        if started is not None:
            for number in range(max(first, self._number(started)), self._number(ended or now)):
                self._slot(number).running += 1
        if ended is not None and state in _ENDED and self._number(ended) >= first:
            self._end(self._slot(self._number(ended)), _ENDED[state], 1)

    def note(self, counts: Mapping[str, Any]) -> None:
        """Enter the counters of this moment. What left the store since the last ones is no end."""
        number = self._forget()
        slot = self._slot(number)
        self._noted = number if self._noted is None else self._noted
        slot.waiting = int(counts.get("waitingprocesses") or 0)
        slot.running = int(counts.get("runningprocesses") or 0)
        before = self._before
        self._before = counts
        if before is None:
            return
        for name, kind in (("successful", "done"), ("failed", "failed"), ("cancelled", "failed")):
            field = f"{name}processes"
            more = int(counts.get(field) or 0) - int(before.get(field) or 0)
            self._end(slot, kind, max(0, more))

    def _forget(self) -> int:
        """Drop the slots that are older than an hour; return the number of the present one."""
        last = self._number(self.clock())
        for number in [each for each in self._slots if each <= last - SLOTS]:
            del self._slots[number]
        return last

    @staticmethod
    def _end(slot: Slot, kind: str, number: int) -> None:
        if kind == "done":
            slot.done += number
        else:
            slot.failed += number

    @staticmethod
    def _number(moment: float) -> int:
        return int(moment // SLOT)

    def _slot(self, number: int) -> Slot:
        return self._slots.setdefault(number, Slot(number * SLOT))
