"""The choice of mailboxes, on a clock of numbers: which, how many, and when others."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from federation.reach.mailboxes import WANTED, MailboxOffer, MailboxPlan
from federation.reach.verdict import Verdict

GONE = Verdict.UNREACHABLE


class Peers(dict[str, MailboxOffer]):
    """Peers that offer a mailbox; `answer` is what happens in five seconds."""

    def __init__(self, *names: str, kind: int = 2) -> None:
        super().__init__({name: MailboxOffer(kind, 0.0) for name in names})

    def answer(self, now: float, *dead: str) -> None:
        for name, offer in self.items():
            if name not in dead:
                self[name] = MailboxOffer(offer.kind, now)


def lives(
    plan: MailboxPlan, peers: Peers, begin: float, end: float, *dead: str
) -> list[tuple[float, list[str]]]:
    """Every change of the choice, while all peers but the dead ones answer hellos and polls."""
    changes: list[tuple[float, list[str]]] = []
    now = begin
    while now <= end:
        peers.answer(now, *dead)
        chosen = plan.choose(GONE, peers, [], now)
        for name in chosen:
            if name not in dead:
                plan.answered(name, now)
        if not changes or changes[-1][1] != chosen:
            changes.append((now, chosen))
        now += 5.0
    return changes


def test_nothing_is_chosen_before_it_is_known_that_nobody_reaches_us() -> None:
    for verdict in (Verdict.UNKNOWN, Verdict.REACHABLE):
        assert MailboxPlan().choose(verdict, Peers("a", "b"), [], 10.0) == []


@pytest.mark.parametrize(("offered", "chosen"), [(0, 0), (1, 1), (2, 2), (9, WANTED)])
def test_two_or_three_of_those_that_offer_and_that_answer(offered: int, chosen: int) -> None:
    peers = Peers(*(f"{number}" for number in range(offered)), "silent")
    peers.answer(100.0, "silent")
    assert len(found := MailboxPlan().choose(GONE, peers, [], 100.0)) == chosen
    assert "silent" not in found


def test_those_of_the_owner_count() -> None:
    peers = Peers("a", "b", "c", "d")
    found = MailboxPlan().choose(GONE, peers, ["a", "b"], 10.0)
    assert len(found) == 1
    assert not {"a", "b"} & set(found)


def test_colonies_that_find_the_same_peers_do_not_all_choose_the_same() -> None:
    count: Counter[str] = Counter()
    for seed in range(300):
        peers = Peers(*"abcdefghij")
        count.update(MailboxPlan(random.Random(seed)).choose(GONE, peers, [], 1.0))
    assert len(count) == 10
    assert max(count.values()) < 2 * min(count.values())


def test_who_offers_more_than_there_is_does_not_come_first() -> None:
    count: Counter[str] = Counter()
    for seed in range(100):
        peers = Peers(*"abcdefghij")
        peers["a"] = MailboxOffer(2**40, 0.0)
        count.update(MailboxPlan(random.Random(seed)).choose(GONE, peers, [], 1.0))
    assert count["a"] < 60


def test_one_that_takes_messages_of_strangers_comes_first() -> None:
    peers = Peers("a", "b", "c", kind=1)
    plan = MailboxPlan()
    assert plan.choose(GONE, peers, [], 1.0) == ["a", "b", "c"]
    peers["d"] = MailboxOffer(2, 2.0)
    found = plan.choose(GONE, peers, [], 2.0)
    assert len(found) == WANTED
    assert "d" in found
    assert plan.choose(GONE, peers, [], 7.0) == found, "one of them is enough"


def test_they_stay_as_long_as_they_answer_whoever_else_offers() -> None:
    plan, peers = MailboxPlan(), Peers("a", "b", "c")
    assert len(lives(plan, peers, 0.0, 100.0)) == 1
    for name in "defgh":
        peers[name] = MailboxOffer(2, 100.0)
    ((_, found),) = lives(plan, peers, 105.0, 10_000.0)
    assert found == ["a", "b", "c"]


def test_one_that_has_not_answered_for_a_minute_is_replaced_and_not_taken_back_at_once() -> None:
    plan, peers = MailboxPlan(), Peers("a", "b", "c")
    lives(plan, peers, 0.0, 100.0)
    peers["d"] = MailboxOffer(2, 100.0)
    _, (when, found) = lives(plan, peers, 105.0, 300.0, "a")
    assert 160.0 < when <= 170.0
    assert found == ["b", "c", "d"]
    assert len(lives(plan, peers, 305.0, 3_000.0)) == 1, "nor when it is back"


def test_one_that_comes_and_goes_is_avoided_longer_each_time() -> None:
    """It is the only third one, answers for a minute, and is silent for two."""
    plan, peers, now = MailboxPlan(), Peers("a", "b", "c"), 0.0
    changes = 0
    for _ in range(480):
        changes += len(lives(plan, peers, now, now + 60.0)) - 1
        changes += len(lives(plan, peers, now + 65.0, now + 180.0, "a")) - 1
        now += 185.0
    assert changes < 60, "in a day"


def test_one_that_offers_now_and_now_not_is_avoided_as_well() -> None:
    """Each change of the choice is a new card for all peers."""
    plan, peers, now = MailboxPlan(), Peers("a", "b", "c"), 0.0
    changes = 0
    for _ in range(720):
        changes += len(lives(plan, peers, now, now)) - 1
        before = plan.choose(GONE, peers, [], now)
        offer = peers.pop("a")
        changes += plan.choose(GONE, peers, [], now + 5.0) != before
        peers["a"] = offer
        now += 10.0
    assert changes < 20, "in two hours"


def test_while_nobody_answers_our_own_network_is_to_blame() -> None:
    plan, peers = MailboxPlan(), Peers("a", "b", "c", "d", "e")
    (_, found), *_ = lives(plan, peers, 0.0, 100.0)
    assert lives(plan, peers, 105.0, 4_000.0, *"abcde") == [(105.0, found)]
    assert lives(plan, peers, 4_005.0, 4_500.0)[-1][1], "it goes on with some"


def test_lost_ones_are_dropped_if_others_are_left_and_taken_back_if_none_is() -> None:
    plan, peers = MailboxPlan(), Peers("a", "b")
    lives(plan, peers, 0.0, 100.0)
    assert lives(plan, peers, 105.0, 200.0, "a")[-1][1] == ["b"]
    assert lives(plan, peers, 205.0, 300.0, "b")[-1][1] == ["a"], "though it was lost"


def test_whose_trust_or_offer_ended_goes_at_once() -> None:
    plan, peers = MailboxPlan(), Peers("a", "b", "c")
    lives(plan, peers, 0.0, 10.0)
    del peers["b"]
    assert plan.choose(GONE, peers, [], 15.0) == ["a", "c"]


def test_reachable_again_we_leave_them_after_a_while() -> None:
    plan, peers = MailboxPlan(), Peers("a", "b", "c")
    assert plan.choose(GONE, peers, [], 0.0) == ["a", "b", "c"]
    now = 0.0
    for _ in range(10):
        # Now this, now that: nothing changes.
        for verdict in (Verdict.REACHABLE, Verdict.UNKNOWN, GONE):
            now += 90.0
            peers.answer(now)
            for name in peers:
                plan.answered(name, now)
            assert plan.choose(verdict, peers, [], now) == ["a", "b", "c"]
    assert plan.choose(Verdict.REACHABLE, peers, [], now) == ["a", "b", "c"]
    assert plan.choose(Verdict.REACHABLE, peers, [], now + 299.0) == ["a", "b", "c"]
    assert plan.choose(Verdict.REACHABLE, peers, [], now + 300.0) == []
