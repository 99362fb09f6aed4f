"""The clock of this colony, with the latest time that it remembers.

What is remembered, and how that is stored, is in `peers.highwater`; the clocks of other colonies
are in `peers.clock`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class SigningClock:
    """A wall clock, with the time below which messages are not judged.

    `now` gives Unix ns; `steady` gives seconds of a clock that is never set. `floor` is the latest
    wall-clock time remembered, in seconds since the epoch.
    """

    now: Callable[[], int] = time.time_ns
    steady: Callable[[], float] = time.monotonic
    floor: float = 0.0

    @property
    def seconds(self) -> int:
        """Return the time as messages tell it, in seconds since the epoch."""
        return self.now() // 1_000_000_000

    @property
    def latest(self) -> int:
        """Return the floor where it is ahead of the clock, so that it is what counts; else 0."""
        return int(self.floor) if int(self.floor) > self.seconds else 0

    def remember(self, latest: float) -> None:
        """Make `latest` (seconds since the epoch) the floor."""
        self.floor = latest
