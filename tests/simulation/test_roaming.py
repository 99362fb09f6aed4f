"""Colonies that move, hide behind routers, die and come back; docs/scale.md has 1,000 of them."""

from __future__ import annotations

from functools import cache

import pytest

from federation.dht.lookups import Lookups
from tests.simulation import roaming
from tests.simulation.internet import DhtCost
from tests.simulation.roaming import Roaming, roam
from tests.simulation.runner import main
from tests.simulation.world import Broken

FOUND = 120.0  # seconds from a colony's announcement until its peers have it again
# Connections a minute that lies can cause in one colony: 16 look-ups, which hand over addresses
# twice, and have at most 16 tried each time.
MOST_FALSE = 512


@cache
def world(colonies: int) -> Roaming:
    return roam(colonies)


def sure(world: Roaming) -> Roaming:
    """All work ended right, which the witness saw, and all peers found each other in time."""
    assert world.successful == world.submitted > 0
    assert world.moves > 0
    assert world.deaths > 0
    assert world.alone.at(1.0) < FOUND
    assert world.together.at(1.0) < FOUND
    assert 0 < world.most_strayed < MOST_FALSE
    return world


@pytest.mark.slow
def test_colonies_that_move_hide_and_die_find_each_other_again() -> None:
    """A hundred, a third of them behind routers; a tenth of the DHT lies."""
    large = sure(world(100))
    assert large.together.seconds, "without two that move at once, nobody needs the DHT"
    assert large.kinds["mailboxes"].exchanges > 5, "a third is reached by mailboxes alone"


@pytest.mark.slow
def test_a_larger_world_costs_each_colony_no_more() -> None:
    small, large = sure(world(20)), sure(world(100))
    assert large.total.exchanges < 1.25 * small.total.exchanges
    assert large.total.kilobytes < 1.25 * small.total.kilobytes
    # A look-up takes a round more for each doubling, and no other part of the cost grows.
    rounds = DhtCost.announcement(100) / DhtCost.announcement(20)
    assert large.dht.exchanges < 1.25 * rounds * small.dht.exchanges


@pytest.mark.slow
def test_a_dht_half_of_which_lies_costs_bounded_connections_and_no_work() -> None:
    sure(roam(20, hostile=0.5))


@pytest.mark.slow
def test_without_look_ups_two_that_move_at_once_lose_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The world that shows that the others show something."""
    monkeypatch.setattr(Lookups, "want", lambda self, lost, pressing, now: None)
    monkeypatch.setattr(roaming, "_PATIENCE", 300.0)
    try:
        lost = roam(10).together.at(1.0)
    except* Broken:  # work waits for one of them
        lost = float("inf")
    assert lost > FOUND


@pytest.mark.slow
def test_the_command_prints_a_row_for_each_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--roam", "5,10", "--minutes", "1"]) == 0
    head, line, *rows = capsys.readouterr().out.splitlines()
    assert head.startswith("| colonies | hello | capabilities |")
    assert line == "|" + "---:|" * head.count(" | ") + "---:|"
    assert [row.split(" | ")[0] for row in rows] == ["| 5", "| 10"]
