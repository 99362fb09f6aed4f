"""The numbers of the overview's chart."""

from __future__ import annotations

from cli.ui.activity import SLOT, SLOTS, Activity


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def counts(waiting: int = 0, running: int = 0, done: int = 0, failed: int = 0) -> dict[str, int]:
    return {
        "waitingprocesses": waiting,
        "runningprocesses": running,
        "successfulprocesses": done,
        "failedprocesses": failed,
        "cancelledprocesses": 0,
    }


def test_an_empty_hour_has_all_its_slots() -> None:
    slots = Activity(Clock()).slots()
    assert len(slots) == SLOTS
    assert slots[-1].at == 1_000_000
    assert slots[0].at == 1_000_000 - (SLOTS - 1) * SLOT


def test_a_past_process_waited_ran_and_ended() -> None:
    clock = Clock()
    activity = Activity(clock)
    activity.recall(2, clock.now - 60, clock.now - 40, clock.now - 20)
    found = [(each.waiting, each.running, each.done) for each in activity.slots()[-7:]]
    assert found == [(1, 0, 0), (1, 0, 0), (0, 1, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0), (0, 0, 0)]


def test_a_process_of_another_hour_is_cut() -> None:
    clock = Clock()
    activity = Activity(clock)
    activity.recall(3, clock.now - 9000, clock.now - 8000, clock.now - 7000)
    activity.recall(1, clock.now - 9000, clock.now - 8000, None)
    slots = activity.slots()
    assert sum(each.failed for each in slots) == 0
    assert [each.running for each in slots] == [1] * (SLOTS - 1) + [0]


def test_the_counters_tell_what_ended_and_what_left_the_store_did_not() -> None:
    clock = Clock()
    activity = Activity(clock)
    activity.note(counts(3, 1, done=10, failed=2))
    clock.now += SLOT
    activity.note(counts(2, 2, done=12, failed=3))
    clock.now += SLOT
    activity.note(counts(1, 2, done=4, failed=3))
    found = [(e.waiting, e.running, e.done, e.failed) for e in activity.slots()[-3:]]
    assert found == [(3, 1, 0, 0), (2, 2, 2, 1), (1, 2, 0, 0)]


def test_a_slot_that_was_not_looked_at_is_as_the_one_before() -> None:
    clock = Clock()
    activity = Activity(clock)
    activity.note(counts(5, 4))
    clock.now += 3 * SLOT
    assert [(e.waiting, e.running) for e in activity.slots()[-4:]] == [(5, 4)] * 4


def test_what_is_older_than_an_hour_is_forgotten() -> None:
    clock = Clock()
    activity = Activity(clock)
    activity.note(counts(5, 4))
    clock.now += SLOTS * SLOT * 5
    activity.note(counts())
    activity.slots()
    assert len(activity._slots) == 1


def test_times_in_the_future_cost_nothing() -> None:
    """The daemon's clock may be years ahead of this one, or its times made up."""
    clock = Clock()
    activity = Activity(clock)
    activity.recall(2, clock.now - 60, clock.now + 10**11, clock.now + 2 * 10**11)
    activity.recall(1, clock.now + 10**11, clock.now + 2 * 10**11, None)
    assert [each.waiting for each in activity.slots()[-7:]] == [1] * 6 + [0]


def test_a_command_that_nobody_looks_at_keeps_no_more_than_an_hour() -> None:
    clock = Clock()
    activity = Activity(clock)
    for _ in range(3 * SLOTS):
        activity.note(counts(1))
        clock.now += SLOT
    assert len(activity._slots) <= SLOTS
