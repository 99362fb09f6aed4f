"""Steps of the wall clock on virtual time: what becomes of deadlines, places and crons."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli.ops.doctor import check_steps
from node.host.clock import JUMP, Clock, ClockSample, jumped, place
from node.model.codec import pack, unpack
from node.model.ids import new_id
from node.model.types import DAY, SECOND, Conditions, FunctionSpec, Process, State
from node.processes.deadlines import expire
from node.processes.spec import build_process
from node.store import clock as seen
from node.store import keys
from node.store.crons import Cron, CronFiring
from node.store.generators import Generator
from node.timers import cronexpr as schedule
from node.timers.crons import next_run
from node.timers.generators import due
from node.timers.retime import retimed_cron, retimed_generator
from tests.support.clocked import ANN, NOON, Station, World, workflow, world
from tests.support.daemons import until

HOUR, YEAR = 3600 * SECOND, 365 * DAY
SLACK = int(JUMP * SECOND)
STEP = st.one_of(st.integers(-2 * YEAR, -SLACK - 1), st.integers(SLACK + 1, 60 * YEAR))


class Hands:
    """The two clocks of a host, moved by a test."""

    def __init__(self) -> None:
        self.wall, self.steady = NOON, 10**12
        self.clock = Clock(lambda: self.wall, lambda: self.steady)

    def pass_(self, ns: int) -> None:
        self.wall, self.steady = self.wall + ns, self.steady + ns


# -- the detector --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wall", "steady", "awake", "what"),
    [
        (1.0, 1.0, 1.0, ""),
        (1.0 + JUMP, 1.0, 1.0, ""),
        (5.0, 1.0, 1.0, "clock set by +4 s"),
        (-3599.0, 1.0, 1.0, "clock set by -3600 s"),
        (101.0, 1.0, 101.0, "asleep for 100 s"),
        (20.0, 20.0, 20.0, "stopped for 20 s"),
    ],
)
def test_what_a_jump_was(wall: float, steady: float, awake: float, what: str) -> None:
    assert jumped(ClockSample(0, 0, 0), ClockSample(wall, steady, awake)) == what


@settings(deadline=None)
@given(STEP, st.integers(0, HOUR))
def test_a_step_is_told_until_it_is_dealt_with(by: int, passed: int) -> None:
    hands = Hands()
    hands.pass_(passed)
    assert hands.clock.step() == 0
    hands.wall += by
    hands.pass_(passed)
    assert hands.clock.step() == hands.clock.step() == by
    assert hands.clock.judged == hands.wall - by
    assert hands.clock.late() == min(hands.wall, hands.wall - by)
    hands.clock.adopt()
    assert hands.clock.step() == 0
    assert hands.clock.judged == hands.clock.late() == hands.wall


def test_a_clock_that_is_slewed_makes_no_step() -> None:
    """However far it goes in the end: NTP puts it right by parts of a second."""
    hands = Hands()
    for _ in range(1000):
        hands.pass_(SECOND)
        hands.wall += SECOND // 100
        assert hands.clock.step() == 0
    assert hands.clock.judged == hands.wall


@settings(deadline=None)
@given(
    st.integers(1, DAY), st.integers(0, DAY), st.integers(0, DAY), st.just(0) | STEP, st.booleans()
)
def test_a_deadline_is_due_when_its_limit_has_passed(
    limit: int, before: int, after: int, by: int, adopted: bool
) -> None:
    """Whether it is learned before a step or after it: never early, nor later than its limit."""
    hands = Hands()
    deadline = hands.wall + limit
    early = hands.clock.due(deadline, limit)
    assert early == hands.steady + limit
    hands.pass_(before)
    hands.wall += by
    late = hands.clock.due(deadline, limit)
    if adopted:
        hands.clock.adopt()
        assert hands.clock.deadline(early) == deadline + by
    assert late <= hands.steady + limit
    if before < limit:
        assert late >= early
    assert hands.clock.due(0, limit) == 0


@settings(deadline=None)
@given(st.integers(-50_000, 50_000), st.lists(st.integers(0, 60 * 365 * 86_400), max_size=5))
def test_nobody_stands_in_the_future(priority: int, ahead: list[int]) -> None:
    """By his own priority; and in the order in which they came."""
    came = sorted(NOON + seconds * SECOND for seconds in ahead)
    places = [place(at - priority * DAY, priority, NOON) for at in came]
    for at, found in zip(came, places, strict=True):
        if at <= NOON + SLACK:
            assert found == at - priority * DAY
        else:
            assert NOON - 60 * SECOND <= found + priority * DAY <= NOON
    late = [found for at, found in zip(came, places, strict=True) if at > NOON + SLACK]
    assert late == sorted(late)


# -- crons and generators ----------------------------------------------------------------------


def cron(**changes: Any) -> Cron:
    fields: dict[str, Any] = {"cronid": "c" * 64, "colonyname": "dev", "name": "beat"}
    fields |= {"initiatorid": ANN, "initiatorname": "ann", "interval": 60}
    return Cron(**(fields | changes))


KINDS: list[dict[str, Any]] = [
    {"interval": 60},
    {"interval": 86_400},
    {"interval": 60, "random": True},
    {"interval": -1, "cronexpression": "0 */5 * * * *"},
    {"interval": -1, "cronexpression": "@daily"},
    {"interval": -1, "cronexpression": "@every 90s"},
]


def furthest(value: Cron, now: int) -> int:
    """How far away a next run may be."""
    if value.interval > 0:
        return now + value.interval * SECOND * (2 if value.random else 1)
    return next_run(msgspec.structs.replace(value, nextrun=0), now, schedule.UTC, lambda: 0.5)[0]


@settings(deadline=None)
@given(st.sampled_from(KINDS), STEP, st.integers(0, DAY), st.floats(0, 1, exclude_max=True))
def test_a_cron_after_a_step(kind: dict[str, Any], by: int, passed: int, fraction: float) -> None:
    """Its next run is no further away than it may be, and what is right stays as it is."""
    made = cron(**kind)
    nextrun, window = next_run(made, NOON, schedule.UTC, lambda: fraction)
    made = msgspec.structs.replace(made, nextrun=nextrun, window=window)
    before = NOON + min(passed, nextrun - NOON - 1)
    now = before + by
    assert retimed_cron(made, before, before, 0, schedule.UTC, lambda: fraction) is None
    after = retimed_cron(made, before, now, 0, schedule.UTC, lambda: fraction) or made
    assert after.nextrun <= furthest(made, now) + SLACK
    if made.interval > 0 or made.cronexpression.startswith("@every"):
        assert after.nextrun == nextrun + by, "what was left is left"
    elif by < 0:
        assert after.nextrun > now
    again = retimed_cron(after, now, now, 0, schedule.UTC, lambda: fraction)
    assert again is None


def test_a_cron_that_was_made_by_a_clock_that_was_ahead() -> None:
    """Found at a start, when nobody knows of a step."""
    for kind in KINDS:
        made = cron(**kind)
        nextrun, window = next_run(made, NOON + YEAR, schedule.UTC, lambda: 0.5)
        made = msgspec.structs.replace(
            made, nextrun=nextrun, window=window, firing=CronFiring("g", "", NOON + YEAR)
        )
        after = retimed_cron(made, NOON, NOON, NOON + YEAR, schedule.UTC, lambda: 0.5)
        assert after is not None
        assert NOON < after.nextrun <= furthest(made, NOON)
        assert after.firing is not None
        assert after.firing.at == NOON


@pytest.mark.parametrize(("hours", "runs"), [(1, False), (13, True), (24 * 365, True)])
def test_a_moment_that_was_jumped_over(hours: int, runs: bool) -> None:
    """Noon to midnight is twelve hours: `@daily` is due once if that passed."""
    made = cron(interval=-1, cronexpression="@daily", nextrun=NOON + 12 * HOUR)
    now = NOON + hours * HOUR
    after = retimed_cron(made, NOON, now, 0, schedule.UTC, lambda: 0.5) or made
    assert (after.nextrun <= now) is runs


def test_a_moment_that_nobody_lived_through() -> None:
    """A board was off for an hour, came up in 1970 and is corrected: no midnight was missed."""
    made = cron(interval=-1, cronexpression="@daily", nextrun=DAY)
    now = NOON + HOUR
    after = retimed_cron(made, HOUR, now, NOON, schedule.UTC, lambda: 0.5)
    assert after is not None
    assert after.nextrun == NOON + 12 * HOUR
    assert retimed_cron(made, HOUR, NOON + 13 * HOUR, NOON, schedule.UTC, lambda: 0.5) is None


def generator(oldest: int, size: int = 1) -> Generator:
    return Generator("g" * 64, "dev", "g", ANN, "ann", 9, timeout=60, tail=size, oldest=oldest)


@settings(deadline=None)
@given(STEP, st.integers(0, 59 * SECOND))
def test_a_generator_after_a_step(by: int, passed: int) -> None:
    """Its oldest argument has waited for as long as it has; none is of the future."""
    made = generator(NOON)
    before = NOON + passed
    now = before + by
    after = retimed_generator(made, before, now) or made
    if by > 0 or now + SLACK < NOON:
        assert after.oldest == NOON + by
    else:
        assert after.oldest in (NOON, NOON + by), "little is left of it anyway"
    assert after.oldest <= now + SLACK
    assert retimed_generator(after, now, now) is None
    assert retimed_generator(generator(NOON, 0), before, now) is None
    at_start = retimed_generator(generator(NOON + YEAR), NOON, NOON)
    assert at_start is not None
    assert due(at_start) == NOON + 60 * SECOND


# -- nodes on a store ------------------------------------------------------------------------------


@pytest.fixture
async def dev(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


def process(now: int, name: str = "f", **limits: Any) -> Process:
    spec = FunctionSpec(funcname=name, conditions=Conditions("dev", executortype="cli"), **limits)
    return build_process(
        spec,
        processid=new_id(),
        initiatorid=ANN,
        initiatorname="ann",
        colonyname="dev",
        now=now,
    )


async def submit(dev: World, *made: Process) -> list[str]:
    for each in made:
        await dev.node.processes.submit(each, b"")
    return [each.processid for each in made]


async def get(dev: World, processid: str) -> Process:
    found = await dev.node.processes.load("dev", processid)
    assert found is not None
    return found[0]


async def order(dev: World) -> list[str]:
    return [(await dev.assign()).processid for _ in range(dev.node.processes.queue.count("dev"))]


async def mend(station: Station) -> None:
    """What `Retiming.run` does when it notices a step."""
    assert station.node.clock.step() != 0
    await station.node.retiming._look()
    assert station.node.clock.step() == 0


@pytest.mark.parametrize("by", [-YEAR, -HOUR, HOUR, YEAR])
@pytest.mark.parametrize("mended", [True, False])
async def test_deadlines_keep_what_is_left_of_them(dev: World, by: int, mended: bool) -> None:
    """Nothing ends for a step, before it is dealt with or after, and all when its time is up."""
    dev.steady = 10**12
    station = await dev.start()
    await station.node.leader.elected()
    running, waits = await submit(
        dev,
        process(dev.now, "r", maxexectime=60, maxretries=0),
        process(dev.now + 1, "w", maxwaittime=60),
    )
    assert (await dev.assign()).processid == running
    dev.advance(40)
    dev.now += by
    await expire(dev.node.processes, dev.node.assigner)
    if mended:
        await mend(station)
        assert (await get(dev, running)).execdeadline == dev.now + 20 * SECOND
        assert abs((await get(dev, waits)).waitdeadline - dev.now - 20 * SECOND) < SECOND
    dev.advance(19)
    await expire(dev.node.processes, dev.node.assigner)
    assert (await get(dev, running)).state == State.RUNNING
    assert (await get(dev, waits)).state == State.WAITING
    dev.advance(2)
    await expire(dev.node.processes, dev.node.assigner)
    assert (await get(dev, running)).errors == ["Maximum execution time limit exceeded"]
    assert (await get(dev, waits)).errors == ["Maximum waiting time limit exceeded"]


async def test_what_was_submitted_ahead_keeps_its_order_for_good(dev: World) -> None:
    """In front of what is newer, by its priority, and after another start as well."""
    dev.steady = 10**12
    station = await dev.start()
    await station.node.leader.elected()
    present = dev.now
    low = process(present + 2, "low", priority=-1)
    (older,) = await submit(dev, process(present, "older"))
    dev.now += YEAR
    await mend(station)
    ahead = await submit(dev, *(process(dev.now + number, "ahead") for number in range(5)))
    dev.now = present + 60 * SECOND
    await mend(station)
    await submit(dev, low)
    (newer,) = await submit(dev, process(dev.now, "newer"))
    await station.stop()
    dev.stations.clear()
    dev.advance(5)
    await dev.start()
    (newest,) = await submit(dev, process(dev.now, "newest"))
    assert await order(dev) == [older, *ahead, newer, newest, low.processid]


async def test_a_host_that_was_corrected_while_it_was_off(dev: World) -> None:
    """Nobody saw the step: times of the future are put right at the start, and stay so."""
    dev.now += YEAR
    station = await dev.start("host")
    await station.node.leader.elected()
    await station.node.crons.add(cron(cronid="", interval=60), workflow())
    running, waits = await submit(
        dev,
        process(dev.now, "r", maxexectime=60, maxretries=0),
        process(dev.now + 1, "w", maxwaittime=60),
    )
    assert (await dev.assign()).processid == running
    await station.node.retiming._look()
    await station.node.retiming._write()
    await station.stop()
    dev.stations.clear()
    dev.now -= YEAR
    station = await dev.start("host")
    await station.node.leader.elected()
    retiming = station.node.retiming
    assert retiming.view()["behind"] == YEAR // SECOND
    assert await retiming._rewrite() == 2
    assert await retiming._rewrite() == 0
    assert (await get(dev, running)).execdeadline <= dev.now + 60 * SECOND
    stored = await get(dev, waits)
    assert stored.waitdeadline <= dev.now + 60 * SECOND
    assert stored.prioritytime <= dev.now
    dev.advance(61)
    await until(20, dev.graphs)
    await expire(dev.node.processes, dev.node.assigner)
    assert (await get(dev, running)).state == State.FAILED
    assert (await get(dev, waits)).state == State.FAILED


async def test_a_moment_that_was_shown_before_a_step_back_is_not_due_again(dev: World) -> None:
    """Set back by a day and forward again: what ran today runs tomorrow."""
    dev.steady = 10**12
    station = await dev.start()
    await station.node.leader.elected()
    daily = cron(cronid="", interval=-1, cronexpression="0 0 11 * * *")
    await station.node.crons.add(daily, workflow())
    index = station.node.crons.index
    (key,) = index.all_keys()
    for by in (-DAY, DAY, -3 * DAY, DAY, 2 * DAY):
        dev.now += by
        await mend(station)
        known = index.get(key)
        assert known is not None
        assert known[0].nextrun > dev.now
        dev.advance(3)
    assert known is not None
    assert known[0].nextrun == NOON + 23 * HOUR
    dev.now += DAY
    await mend(station)
    await until(20, dev.graphs)


async def make_old(dev: World) -> None:
    """Let the keys of what waits be what releases without limit and priority there wrote."""
    for kv in (await dev.client.range_all(keys.QUEUE))[0]:
        await dev.client.put(kv.key, pack(unpack(kv.value, list)[:8]))


async def test_what_an_older_release_left_by_a_clock_that_was_ahead(dev: World) -> None:
    """Its keys lack the priority and the limit: the processes have them."""
    present = dev.now
    dev.now += 370 * DAY
    station = await dev.start()
    await station.node.leader.elected()
    low = process(dev.now, "low", priority=-1)
    made = [process(dev.now + number, "ahead", maxwaittime=60) for number in range(90)]
    ahead = await submit(dev, low, *made)
    await station.stop()
    dev.stations.clear()
    dev.now = present
    await make_old(dev)
    station = await dev.start()
    await station.node.leader.elected()
    (newer,) = await submit(dev, process(dev.now, "newer"))
    await station.node.retiming._look()
    assert station.node.retiming.view()["processes"] == 91
    for processid in ahead:
        stored = await get(dev, processid)
        assert stored.waitdeadline <= dev.now + 60 * SECOND
        assert stored.prioritytime <= dev.now + (DAY if processid == low.processid else 0)
    assert (await dev.assign()).processid == ahead[1]
    dev.advance(61)
    await expire(dev.node.processes, dev.node.assigner)
    assert await order(dev) == [newer, low.processid]
    assert (await get(dev, ahead[2])).errors == ["Maximum waiting time limit exceeded"]


async def test_a_step_of_one_host_is_nothing_to_a_store_of_several(dev: World) -> None:
    """Its daemon goes by its own memory; the deadlines of the others stay as they gave them."""
    dev.steady = 10**12
    dev.client.pressure.own = False
    station = await dev.start()
    await station.node.leader.elected()
    (waits,) = await submit(dev, process(dev.now, "w", maxwaittime=60))
    given = (await get(dev, waits)).waitdeadline
    dev.now += YEAR
    await mend(station)
    await expire(dev.node.processes, dev.node.assigner)
    stored = await get(dev, waits)
    assert (stored.waitdeadline, stored.state) == (given, State.WAITING)
    dev.advance(61)
    await expire(dev.node.processes, dev.node.assigner)
    assert (await get(dev, waits)).state == State.FAILED


async def test_the_clocks_are_kept_rarely(dev: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not while nothing else is written, and then not more often than once in five minutes."""
    station = await dev.start("host")
    await station.node.leader.elected()
    retiming, passed = station.node.retiming, 0.0
    await retiming._look()
    monkeypatch.setattr("node.timers.retime.trio.current_time", lambda: 1000.0 + passed)

    async def writes(seconds: float, submits: bool) -> int:
        nonlocal passed
        passed += seconds
        if submits:
            await submit(dev, process(dev.now))
        before = await dev.client.get(seen.seen("host"))
        await retiming._keep()
        after = await dev.client.get(seen.seen("host"))
        assert after is not None
        return int(before is None or after.mod_revision != before.mod_revision)

    assert await writes(0, False) == 1
    assert [await writes(100, True) for _ in range(6)] == [0, 0, 1, 0, 0, 1]
    assert await writes(10_000, False) == 0
    assert await writes(0, True) == 1


# -- what people are told ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({}, ""),
        ({"now": 10**9}, ""),
        (
            {"now": 10**9, "steppedby": -3600, "steppedat": 10**9 - 60, "crons": 2},
            "this host's was set back by 1 h at 2001-09-09 01:45:40 UTC; other times for 2 crons,"
            " 0 generators, 0 processes",
        ),
        ({"now": 10**9, "steppedby": -3600, "steppedat": 10**9 - 8 * 86_400}, ""),
        (
            {"now": 9, "behind": 7200, "processes": 4},
            "it is 2 h behind the last time that the store saw before this start; other times for"
            " 0 crons, 0 generators, 4 processes",
        ),
    ],
)
def test_doctor(told: dict[str, int], words: str) -> None:
    found = list(check_steps(told))
    assert [check.detail for check in found] == ([words] if words else [])
    assert all(check.ok is None and check.next for check in found)
