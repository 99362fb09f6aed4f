"""The plan of the DHT's use: what is announced and asked when, and which answers count."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from federation.dht.lookups import Announce, Ask, Contact, Lookups, Step, target
from federation.network.candidates import AddressCandidate, CandidateQueue

ME, BEE, CAT = "a1" * 32, "b2" * 32, "c3" * 32


def plan(nodes: int = 8) -> Lookups:
    lookups = Lookups(random.Random(1))
    lookups.known(nodes, 1.0)
    return lookups


def steps(lookups: Lookups, now: float) -> list[Step]:
    found: list[Step] = []
    while (step := lookups.step(now)) is not None:
        found.append(step)
    return found


def times(lookups: Lookups, kind: type, begin: float, end: float) -> list[float]:
    """When steps of a kind are due, if each is done as soon as the plan says."""
    now, found = begin, list[float]()
    while now < end:
        found += [now for step in steps(lookups, now) if isinstance(step, kind)]
        lookups.found(now)
        now += max(0.01, min(lookups.wait(now), 60.0))
    return found


def test_the_key_is_that_of_the_page() -> None:
    assert target("00" * 32).hex() == "ee5778d49ed73b0c24a1e5b526bbff9a6ad9a950"


def test_an_announcement_is_renewed_before_it_is_forgotten() -> None:
    lookups = plan()
    lookups.own([ME], 1.0)
    found = times(lookups, Announce, 1.0, 7200.0)
    pauses = [after - before for before, after in pairwise(found)]
    assert found[0] == 1.0
    assert max(pauses) < 1800
    assert len(found) < 20
    assert len(set(pauses)) > 3, "no jitter"


def test_a_client_that_comes_and_goes_is_not_announced_each_time() -> None:
    lookups, now, count = plan(), 1.0, 0
    for _ in range(120):
        lookups.own([ME, BEE], now)
        count += steps(lookups, now).count(Announce(target(BEE)))
        lookups.own([ME], now + 15.0)
        count += steps(lookups, now + 15.0).count(Announce(target(BEE)))
        now += 30.0
    assert 5 <= count < 10, "in an hour"


def test_it_is_announced_at_once_after_a_move() -> None:
    lookups = plan()
    lookups.own([ME], 1.0)
    times(lookups, Announce, 1.0, 3000.0)
    lookups.restart(3000.0)
    assert Announce(target(ME)) in steps(lookups, 3000.0)


def test_the_bootstrap_nodes_are_asked_while_none_is_known() -> None:
    lookups = plan(0)
    assert 3 <= len(times(lookups, Contact, 1.0, 90.0)) <= 6
    lookups.known(1, 90.0)
    assert not times(lookups, Contact, 90.0, 900.0)


def test_the_first_node_lets_all_go_out_again() -> None:
    """What was announced into an empty table was announced to nobody."""
    lookups = plan(0)
    lookups.own([ME], 1.0)
    times(lookups, Announce, 1.0, 500.0)
    lookups.known(3, 500.0)
    assert Announce(target(ME)) in steps(lookups, 500.0)


def test_a_lost_peer_is_looked_up_often_enough() -> None:
    """Within two minutes of its announcement, and rarely once it is long gone."""
    lookups = plan()
    lookups.want([BEE], [], 1.0)
    early = times(lookups, Ask, 1.0, 3500.0)
    assert max(after - before for before, after in pairwise(early)) < 110
    late = times(lookups, Ask, 4000.0, 4000.0 + 86_400)
    assert len(late) < 130
    lookups.want([BEE], [BEE], 100_000.0)
    assert len(times(lookups, Ask, 100_000.0, 103_600.0)) > 30, "work waits"
    lookups.want([], [], 103_600.0)
    assert not times(lookups, Ask, 103_600.0, 110_000.0)


def test_look_ups_are_bounded_for_any_number_of_peers() -> None:
    lookups = plan()
    lost = [f"{number:064x}" for number in range(1000)]
    lookups.want(lost, lost, 1.0)
    assert len(times(lookups, Ask, 1.0, 601.0)) <= 4 + 600 * 0.2 + 1


def test_a_request_goes_first_and_ends() -> None:
    lookups = plan()
    lookups.want([f"{number:064x}" for number in range(1000)], [], 1.0)
    steps(lookups, 1.0)
    assert lookups.request(CAT, 1.0)
    assert steps(lookups, 6.1)[0] == Ask(target(CAT))
    times(lookups, Ask, 6.1, 70.0)
    lookups.want([], [], 70.0)
    steps(lookups, 70.0)
    assert lookups.sought() == 0
    assert [lookups.request(f"{number:064x}", 70.0) for number in range(17)][-2:] == [True, False]


def test_requests_and_lost_peers_take_turns() -> None:
    """Whoever asks for one colony after the other does not keep lost peers from being found."""
    lookups, now, asked = plan(), 1.0, list[Step]()
    for turn in range(120):
        lookups.want([BEE], [BEE], now)
        for number in range(16):
            lookups.request(f"{turn:032x}{number:032x}", now)
        asked += [step for step in steps(lookups, now) if isinstance(step, Ask)]
        lookups.found(now)
        now += 5.0
    assert len(asked) > 100
    assert asked.count(Ask(target(BEE))) > 6, "in ten minutes"
    assert asked.count(Ask(target(BEE))) < 20


def test_what_cards_name_leaves_room_for_the_owner() -> None:
    """A peer may name mailboxes that do not exist, others with each of its cards."""
    lookups = plan()
    named = [lookups.request(f"{number:064x}", 1.0, named=True) for number in range(20)]
    assert named.count(True) == 8
    assert lookups.request(CAT, 1.0)


def test_what_cards_name_is_not_looked_up_on_and_on() -> None:
    """However often it is asked for: its room is then another's, for whom nobody asked so often."""
    lookups = plan()
    assert lookups.request(BEE, 1.0, named=True)
    for second in range(2, 61):
        steps(lookups, float(second))
        assert lookups.request(BEE, float(second), named=True)
    steps(lookups, 62.0)
    assert not lookups.is_sought(BEE)


def test_answers_that_nobody_asked_for_are_ignored() -> None:
    lookups = plan()
    lookups.heard(target(BEE), ["198.51.100.1:1"])
    lookups.want([BEE], [], 1.0)
    steps(lookups, 1.0)
    assert lookups.found(100.0) == []


def test_thousands_of_false_addresses_are_a_few() -> None:
    """What several nodes tell is tried first, and one host is tried twice at most."""
    lookups = plan()
    lookups.want([BEE], [], 1.0)
    steps(lookups, 1.0)
    chance = random.Random(2)
    for _ in range(8):
        lies = [f"198.51.{chance.randrange(256)}.{chance.randrange(256)}:1" for _ in range(1000)]
        lookups.heard(target(BEE), lies)
        lookups.heard(target(BEE), [*lies[:20], "203.0.113.7:50081"])
        lookups.heard(target(BEE), [f"192.0.2.1:{port}" for port in range(1, 1001)])
    ((found, first),) = lookups.found(3.0)
    assert (found, len(first)) == (BEE, 4)
    assert "203.0.113.7:50081" in first
    ((_, more),) = lookups.found(9.0)
    assert len(more) <= 4
    assert len([each for each in first + more if each.startswith("192.0.2.1:")]) <= 2
    assert lookups.found(90.0) == []


def test_thousands_of_false_addresses_cost_little_when_the_best_are_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All of one IPv6 /64, which is the most work: each is looked at once, when it is heard."""
    lookups = plan()
    lookups.want([BEE], [], 1.0)
    steps(lookups, 1.0)
    for turn in range(20):
        lies = [f"[2001:db8::{turn:x}:{number:x}]:1" for number in range(1, 129)]
        lookups.heard(target(BEE), lies)
    asked: list[str] = []
    monkeypatch.setattr("federation.dht.lookups.source_of", asked.append)
    ((_, best),) = lookups.found(3.0)
    assert len(best) == 2
    assert not asked


def test_a_false_address_that_all_name_gives_way_the_next_time() -> None:
    lookups = plan()
    lookups.want([BEE], [], 1.0)
    lies = [f"198.51.100.{number}:1" for number in range(1, 13)]
    tried: list[str] = []
    now = 1.0
    for _ in range(3):
        steps(lookups, now)
        for _ in range(9):
            lookups.heard(target(BEE), lies)
        lookups.heard(target(BEE), ["203.0.113.7:50081"])
        tried += [at for wait in (3.0, 9.0) for _, best in lookups.found(now + wait) for at in best]
        now += 100.0
    assert "203.0.113.7:50081" in tried[:16]


def test_what_is_sought_at_one_address_is_tried_for_each_colony() -> None:
    """A mailbox keeps the cards of many; and a node may name an address for any id."""
    queue, at = CandidateQueue(), "203.0.113.7:50081"
    bee, cat = (AddressCandidate(each, at, sought=True) for each in (BEE, CAT))
    assert queue.offer(bee, 1.0)
    assert queue.offer(cat, 1.0), "while the other one waits"
    for _ in range(2):
        found = queue.take(1.0)
        assert found is not None
        queue.done(found, 1.0, ok=False)
    assert not queue.offer(bee, 2.0)
    other = AddressCandidate(ME, at, sought=True)
    assert queue.offer(other, 2.0), "after two in vain"
    assert queue.take(2.0) == other
