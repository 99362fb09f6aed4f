"""Colonies on virtual time over a faulty network: no invariant breaks, and a seed replays exactly.

`scripts/simulate` plays more of them; what each invariant says is in `simulation.witness`.
"""

from __future__ import annotations

import pytest

from federation.simulation.runner import run_seeds
from federation.simulation.scenario import play


def test_a_seed_replays_exactly() -> None:
    first, again = play(7, 3), play(7, 3)
    assert first.trace_hash == again.trace_hash
    assert first.problem == again.problem == ""


def test_seeds_differ() -> None:
    assert play(1, 3).trace_hash != play(2, 3).trace_hash


@pytest.mark.slow
def test_no_invariant_breaks() -> None:
    """Some dozen worlds of 3 to 8 colonies, with faults of all kinds."""
    summary = run_seeds(range(60))
    print("\n".join(summary.lines()))
    assert [(result.seed, result.problem) for result in summary.broken] == []
