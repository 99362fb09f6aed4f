"""Histograms of durations: counts by a few fixed bounds, and a bounded number of them by a label.

What is measured is decided where it happens; `daemon.metrics` makes text of the counts.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

OTHERS = "others"  # the label of what comes when there is no room for more labels


@dataclass(slots=True)
class Histogram:
    """Durations in seconds. `counts[i]` of them are at most `bounds[i]` and above the bound before
    it; the last count is of those above all bounds. `total` is their sum.
    """

    bounds: tuple[float, ...]
    counts: list[int] = field(init=False)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, seconds: float) -> None:
        """Count a duration. One below zero counts as zero: the wall clock may have been set."""
        seconds = max(0.0, seconds)
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds


@dataclass(slots=True)
class Histograms:
    """Histograms by a label, `most` of them at most: later labels share the one of `OTHERS`."""

    bounds: tuple[float, ...]
    most: int
    by: dict[str, Histogram] = field(default_factory=dict)

    def add(self, label: str, seconds: float) -> None:
        """Count a duration under a label."""
        found = self.by.get(label)
        if found is None:
            if len(self.by) >= self.most:
                label = OTHERS
            found = self.by.setdefault(label, Histogram(self.bounds))
        found.add(seconds)
