"""The clock of this colony, with the latest time that it remembers.

`peers.highwater` stores that time; `peers.clock` has the clocks of other colonies.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class SigningClock:
    """A wall clock with a floor: no message is judged by an earlier time than the floor.

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
        """Return the floor if it is ahead of the clock; else 0."""
        return int(self.floor) if int(self.floor) > self.seconds else 0

    def remember(self, latest: float) -> None:
        """Make `latest` (seconds since the epoch) the floor."""
        self.floor = latest
