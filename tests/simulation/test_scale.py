"""How traffic grows with the number of colonies, in small; what is in docs/scale.md is larger."""

from __future__ import annotations

from functools import cache

import pytest

from federation.wire.messages import DEEPEST
from tests.simulation.runner import main
from tests.simulation.scale import ALL, Traffic, measure


def sure(traffic: Traffic, submitted: int) -> Traffic:
    """Nothing that was submitted is lost."""
    assert (traffic.submitted, traffic.successful) == (submitted, submitted)
    return traffic


@cache
def crowd(colonies: int, peers: int = 4) -> Traffic:
    """A world in which each submits 3 processes in a minute."""
    return sure(measure(colonies, peers, minutes=1), 3 * colonies)


def test_with_as_many_peers_each_a_larger_crowd_says_no_more_each() -> None:
    small, large = crowd(10), crowd(30)
    assert (small.peers, large.peers) == (4, 4)
    for kind, before in small.kinds.items():
        after = large.kinds[kind]
        assert after.exchanges <= 1.25 * before.exchanges, kind
        assert after.kilobytes <= 1.25 * before.kilobytes, kind
    assert large.total.exchanges > 20, "a crowd that says nothing shows nothing"
    assert large.bootstrap.exchanges <= 1.25 * small.bootstrap.exchanges
    assert large.known == (8, 8), "the peers, and theirs"


def test_a_newcomer_is_introduced_one_hop_far_and_at_once() -> None:
    first, *further = crowd(15).spread
    assert first is not None
    assert first < 5.0, "not only at the next turn"
    assert further == [None, None], "and no further"


def test_what_each_says_grows_with_its_peers() -> None:
    few, many = crowd(4, ALL), crowd(9, ALL)
    assert (few.peers, many.peers) == (3, 8)
    assert 2.4 < many.kinds["hello"].exchanges / few.kinds["hello"].exchanges < 2.9
    assert many.kinds["capabilities"].exchanges > 1.5 * few.kinds["capabilities"].exchanges
    assert many.kinds["submit"].exchanges == few.kinds["submit"].exchanges == 3.0


def test_trust_by_introduction_ends_after_some_hops() -> None:
    """They are counted from whom the owner trusts, however many introduce on the way."""
    wake = sure(measure(2 * DEEPEST + 7, 2, minutes=1, mode="trust"), 39)
    assert wake.peers == 2 * (DEEPEST + 1)


def test_the_command_prints_a_row_for_each_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--scale", "2,3", "--peers", "2", "--minutes", "1"]) == 0
    head, line, *rows = capsys.readouterr().out.splitlines()
    assert head.startswith("| colonies | peers | known | first minute | hello |")
    assert line == "|" + "---:|" * head.count(" | ") + "---:|"
    assert [row.split(" | ")[0] for row in rows] == ["| 2", "| 3"]
    assert [row.split(" | ")[-1] for row in rows] == ["6/6 |", "9/9 |"]
