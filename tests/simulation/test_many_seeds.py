"""Ten thousand worlds of three to eight colonies; what must hold in each is in the witness.

In a file of its own, which begins first and takes the processors that the other tests leave idle.
"""

from __future__ import annotations

import os

import pytest

from tests.simulation.runner import run_seeds

CORES = os.cpu_count() or 1


@pytest.mark.slow
def test_ten_thousand_seeds() -> None:
    summary = run_seeds(range(100_000, 110_000), processes=CORES, stop=5)
    print("\n".join(summary.lines()))
    assert not summary.broken, [(each.seed, each.problem) for each in summary.broken]
    assert summary.seeds == 10_000
    for fault in ("drop", "late", "duplicate", "kill", "unavailable", "split", "foe replay"):
        assert summary.faults[fault] > 100, f"hardly any {fault}"
