"""Crons: when they run next, one firing for each due time, what is waited for, what is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from colonyd.errors import RpcError
from node.etcd.txn import Absent, ModRevision, Txn
from node.model.types import SECOND, Graph, Process, State
from node.store import crons as store
from node.store.crons import Cron, CronFiring
from node.timers.cronexpr import UTC
from node.timers.crons import next_run
from node.timers.election import KEY, LeaseHolder, home_identity, may_take
from node.timers.timerqueue import TimerQueue
from tests.node.timers.support import cron
from tests.support.asked import counting
from tests.support.clocked import ADA, ANN, NOON, OWNER, World, below, workflow, world
from tests.support.daemons import until

PLAIN = Cron("c" * 64, "dev", "beat", ANN, "ann", interval=10)
FRACTION = st.floats(0, 1, exclude_max=True)
TIME = st.integers(NOON, NOON + 10**18)


# -- when they run next ------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.sampled_from([{}, {"random": True}, {"interval": -1, "cronexpression": "*/7 * * * * *"}]),
    st.integers(1, 10**6),
    st.integers(0, NOON * 2),
    st.integers(0, NOON * 2),
    TIME,
    FRACTION,
)
def test_the_next_run_is_after_now(
    kind: dict[str, Any], interval: int, nextrun: int, window: int, now: int, fraction: float
) -> None:
    some = cron(**({"interval": interval, "nextrun": nextrun, "window": window} | kind))
    found, _ = next_run(some, now, UTC, lambda: fraction)
    assert found > now


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 10**6), TIME, st.lists(st.tuples(FRACTION, st.floats(0, 3)), min_size=1))
def test_random_runs_stay_in_their_intervals(
    interval: int, now: int, steps: list[tuple[float, float]]
) -> None:
    """Interval follows interval, a run in each; only what was missed is left out."""
    span = interval * SECOND
    some, start = cron(interval=interval, random=True), now
    for fraction, late in steps:
        nextrun, window = next_run(some, now, UTC, partial(float, fraction))
        assert window == start + span
        assert start < nextrun <= window
        some = cron(interval=interval, random=True, nextrun=nextrun, window=window)
        now = nextrun + int(late * span)
        start = window if now < window else now


@pytest.mark.parametrize("kind", [{}, {"interval": -1, "cronexpression": "@every 10s"}])
def test_the_beat_of_an_interval_is_kept_and_what_was_missed_is_not_made_up_for(
    kind: dict[str, Any],
) -> None:
    some = cron(**({"nextrun": NOON} | kind))

    def after(late: float) -> int:
        found, _ = next_run(some, NOON + int(late * SECOND), UTC, lambda: 0.5)
        return found

    assert after(0) == after(0.3) == after(9.9) == NOON + 10 * SECOND
    assert after(10) == NOON + 20 * SECOND
    assert after(3600) == NOON + 3610 * SECOND
    # Run by hand before it was due.
    assert after(-4) == NOON + 6 * SECOND


# -- the agenda --------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["set", "hold", "let go", "clear"]),
            st.sampled_from("abcd"),
            st.one_of(st.none(), st.integers(0, 9)),
        )
    )
)
def test_the_agenda_is_a_sorted_list(steps: list[tuple[str, str, int | None]]) -> None:
    timer_queue, moments, held = TimerQueue(), dict[str, int](), set[str]()
    for what, key, moment in steps:
        if what == "set":
            timer_queue.set(key, moment)
            moments.pop(key, None)
            moments |= {} if moment is None else {key: moment}
        elif what == "hold":
            timer_queue.hold(key)
            held.add(key)
        elif what == "let go":
            timer_queue.let_go(key)
            held.discard(key)
        else:
            timer_queue.clear()
            moments.clear()
        free = sorted((at, name) for name, at in moments.items() if name not in held)
        assert timer_queue.due(5) == [name for at, name in free if at <= 5]
        assert timer_queue.next() == (free[0][0] if free else None)


# -- on a store --------------------------------------------------------------------------


@pytest.fixture
async def dev(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        await made.start()
        await made.node.leader.elected()
        yield made


async def test_each_due_time_starts_one_workflow(dev: World) -> None:
    added = await dev.node.crons.add(cron(), workflow())
    assert (added.nextrun, added.lastrun) == (NOON + 10 * SECOND, 0)
    started = []
    for _ in range(3):
        dev.advance(10)
        process = await dev.assign()
        started.append(process.processgraphid)
        await dev.close(process)
    assert started == [store.graph_id(added.cronid, NOON + s * SECOND) for s in (10, 20, 30)]
    assert [graph.initiatorname for graph in await dev.graphs()] == ["ann"] * 3
    now = await dev.node.crons.get("dev", added.cronid)
    assert (now.lastrun, now.nextrun) == (NOON + 30 * SECOND, NOON + 40 * SECOND)
    assert now.prevprocessgraphid == started[-1]


async def test_after_a_long_time_it_runs_once(dev: World) -> None:
    added = await dev.node.crons.add(cron(), workflow())
    dev.advance(3600)
    await dev.close(await dev.assign())
    with pytest.raises(RpcError, match="no process"):
        await dev.assign(0)
    assert (await dev.node.crons.get("dev", added.cronid)).nextrun == NOON + 3610 * SECOND
    assert len(await dev.graphs()) == 1


async def test_leaves_output_is_the_next_roots_input(dev: World) -> None:
    three = workflow(below("root"), below("left", "root"), below("right", "root"))
    await dev.node.crons.add(cron(), three)
    dev.advance(10)
    for _ in range(3):
        process = await dev.assign()
        await dev.close(process, process.spec.nodename, 1)
    dev.advance(10)
    assert (await dev.assign()).input == ["left", 1, "right", 1]


async def test_it_waits_for_the_previous_workflow_however_that_ends(dev: World) -> None:
    node = dev.node
    for name in ("successful", "failed", "cancelled", "removed"):
        await node.crons.add(cron(name=name, waitforprevprocessgraph=True), workflow())
    dev.advance(10)
    first = [await dev.assign() for _ in range(4)]
    dev.advance(100)
    for known in node.crons.listing("dev", 9):
        same = await node.crons.run_now("dev", known.cronid, "t")
        assert same.lastrun == NOON + 10 * SECOND
    with pytest.raises(RpcError, match="no process"):
        await dev.assign(0)
    await dev.close(first[0])
    await dev.close(first[1], state=State.FAILED)
    await node.workflows.cancel("dev", first[2].processgraphid)
    await node.workflows.remove("dev", first[3].processgraphid, running=True)
    second = [await dev.assign() for _ in range(4)]
    assert {process.submissiontime for process in second} == {NOON + 110 * SECOND}
    assert len(await dev.graphs()) == 7


async def _waiting_crons(dev: World, count: int) -> list[Process]:
    """Crons that are due and wait for their previous workflows; return the nodes of these."""
    for number in range(count):
        name = f"waits {number}"
        await dev.node.crons.add(cron(name=name, waitforprevprocessgraph=True), workflow())
    dev.advance(10)
    running = [await dev.assign() for _ in range(count)]
    dev.advance(100)
    # A cron that need not wait is due after them: they have been looked at once it started.
    added = await dev.node.crons.add(cron(name="other"), workflow())
    dev.advance(10)
    await dev.close(await dev.assign())
    await dev.node.crons.remove("dev", added.cronid)
    return running


@pytest.mark.parametrize("count", [5, 20])
async def test_crons_that_wait_ask_nothing_until_the_workflow_ends(
    dev: World, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    running = await _waiting_crons(dev, count)
    asked: list[str] = []
    load = dev.node.workflows.load

    async def counting(colony: str, graphid: str) -> Graph | None:
        asked.append(graphid)
        return await load(colony, graphid)

    monkeypatch.setattr(dev.node.workflows, "load", counting)
    await trio.sleep(1.5)  # nothing happens that could be waited for
    assert asked == []
    await dev.close(running[0])
    again = await dev.assign()
    assert again.processgraphid != running[0].processgraphid
    assert set(asked) == {running[0].processgraphid}
    assert len(asked) < 5


async def test_the_end_that_another_daemon_wrote_is_heard(dev: World) -> None:
    first, second = await _waiting_crons(dev, 2)
    other = await dev.start()
    assert not other.node.leader.holds
    processes = other.node.processes
    await processes.close("dev", first.processid, ADA.executorid, State.SUCCESSFUL)
    await other.node.workflows.resolution.settle("dev", first.processgraphid)
    assert (await dev.assign()).submissiontime == dev.now
    await other.node.workflows.remove("dev", second.processgraphid, running=True)
    assert (await dev.assign()).submissiontime == dev.now


async def test_the_next_leader_hears_of_the_end_too(dev: World) -> None:
    first, second = await _waiting_crons(dev, 2)
    await dev.start()
    await dev.stations.pop(0).stop()
    await dev.close(first)  # while nobody leads, or at the beginning of the term
    await dev.assign()
    await dev.node.leader.elected()
    await dev.close(second)
    await dev.assign()


async def test_by_hand_it_runs_at_once_and_moves(dev: World) -> None:
    added = await dev.node.crons.add(cron(), workflow())
    dev.advance(4)
    ran = await dev.node.crons.run_now("dev", added.cronid, "token")
    assert (ran.lastrun, ran.nextrun) == (NOON + 4 * SECOND, NOON + 14 * SECOND)
    # The same request again, its answer having been lost.
    assert await dev.node.crons.run_now("dev", added.cronid, "token") == ran
    process = await dev.assign()
    assert process.processgraphid == ran.prevprocessgraphid
    await dev.close(process)
    await dev.node.crons.run_now("dev", added.cronid, "another")
    await dev.close(await dev.assign())
    assert len(await dev.graphs()) == 2


async def test_who_left_starts_nothing_and_who_is_away_does(dev: World) -> None:
    node = dev.node
    await node.crons.add(cron(), workflow())
    await node.crons.add(cron(name="owner's", initiatorid=OWNER, initiatorname="dev"), workflow())
    await node.members.remove_user("dev", "ann")
    dev.advance(10)
    assert (await dev.assign()).initiatorid == OWNER
    with pytest.raises(RpcError, match="no process"):
        await dev.assign(0)
    beat = await node.crons.find("dev", "beat")
    assert beat is not None
    assert (beat.lastrun, beat.nextrun) == (0, NOON + 20 * SECOND)


async def test_a_random_run_comes_in_its_interval(dev: World) -> None:
    added = await dev.node.crons.add(cron(random=True), workflow())
    assert NOON + 4 * SECOND < added.nextrun < NOON + 6 * SECOND
    dev.advance(7)
    await dev.close(await dev.assign())
    again = await dev.node.crons.get("dev", added.cronid)
    assert NOON + 14 * SECOND < again.nextrun < NOON + 16 * SECOND


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"interval": 0}, workflow(), "cron.interval: seconds"),
    ({"interval": -2}, workflow(), "cron.interval: seconds"),
    ({"interval": 10**12}, workflow(), "cron.interval: seconds"),
    ({"interval": -1}, workflow(), "cron.cronexpression: six fields"),
    ({"interval": -1, "cronexpression": "61 * * * * *"}, workflow(), "bad second"),
    (
        {"interval": -1, "random": True, "cronexpression": "* * * * * *"},
        workflow(),
        "cron.random",
    ),
    ({"name": ""}, workflow(), "cron.name: between"),
    ({"name": "a\nb"}, workflow(), "cron.name: between"),
    ({}, workflow(colony="other"), "cron.workflowspec.colonyname: 'other' is not"),
    ({}, "{", "cron.workflowspec: "),
    ({}, "[]", "cron.workflowspec.functionspecs: a workflow has at least one"),
    ({}, workflow(below("a", "ghost")), "cron.workflowspec.functionspecs.*ghost"),
    (
        {},
        workflow({"nodename": "a", "funcname": "f"}),
        r"cron.workflowspec.functionspecs\[0\].conditions.executortype",
    ),
    ({"colonyname": "nowhere"}, workflow(colony="nowhere"), "cron.colonyname: 'nowhere'"),
]


async def test_what_is_refused(dev: World) -> None:
    for changes, spec, words in REFUSED:
        with pytest.raises(RpcError, match=words) as refusal:
            await dev.node.crons.add(cron(**changes), spec)
        assert refusal.value.status == (404 if "nowhere" in spec else 400)
    assert dev.node.crons.listing("dev", 9) == []


async def test_a_name_is_anybodys_once_in_a_colony(dev: World) -> None:
    name = "every night / week: «ü»"
    added = await dev.node.crons.add(cron(name=name), workflow())
    with pytest.raises(RpcError, match="exists already"):
        await dev.node.crons.add(cron(name=name), workflow())
    # The same request again, its answer having been lost.
    assert await dev.node.crons.add(added, workflow()) == added
    await dev.node.crons.remove("dev", added.cronid)
    with pytest.raises(RpcError, match="no cron"):
        await dev.node.crons.remove("dev", added.cronid)
    await dev.node.crons.add(cron(name=name), workflow())
    await dev.node.members.remove_colony("dev")
    left, _ = await dev.client.range_all("/colonyd/")
    assert [kv.key for kv in left if "cron" in kv.key] == []
    dev.advance(100)
    with pytest.raises(RpcError, match="no process"):
        await dev.assign(0)


# -- firings that were interrupted -------------------------------------------------------


async def test_a_firing_that_was_written_down_is_submitted_by_whoever_leads_next(
    dev: World,
) -> None:
    added = await dev.node.crons.add(cron(), workflow())
    await dev.stations[0].stop()
    # Killed between the two transactions.
    firing = CronFiring(store.graph_id(added.cronid, added.nextrun), "", added.nextrun)
    later = added.nextrun + 10 * SECOND
    half = msgspec.structs.replace(added, nextrun=later, firing=firing)
    found = await dev.client.get(store.key("dev", added.cronid))
    assert found is not None
    assert (await dev.client.commit(store.update(half, found.mod_revision))).succeeded
    dev.advance(13)
    dev.stations.clear()
    await dev.start()
    process = await dev.assign()
    assert process.processgraphid == firing.graphid

    async def struck_out() -> bool:
        return (await dev.node.crons.get("dev", added.cronid)).firing is None

    await until(50, struck_out)
    assert len(await dev.graphs()) == 1


async def test_one_that_was_struck_out_is_never_submitted_again(dev: World) -> None:
    """A daemon that slept between its transactions, and a graph that came and went meanwhile."""
    added = await dev.node.crons.add(cron(), workflow())
    crons = dev.node.crons
    await crons.run_now("dev", added.cronid, "token")
    written = await dev.client.get(store.key("dev", added.cronid))
    assert written is not None
    process = await dev.assign()
    await dev.close(process)
    await dev.node.workflows.remove("dev", process.processgraphid)
    now = await crons.get("dev", added.cronid)
    firing = CronFiring(process.processgraphid, "", NOON)
    slow = msgspec.structs.replace(now, firing=firing)
    await crons._submit(slow, written.mod_revision - 1, ())
    assert await dev.graphs() == []
    assert (await crons.get("dev", added.cronid)) == now


@pytest.mark.parametrize(
    "kept",
    [
        b'[{"nodename": "a", "funcname": "f"}]',
        # As an older release took it.
        b'{"functionspecs": [{"nodename": "a", "funcname": "f", "fs": 5}]}',
    ],
)
async def test_a_workflow_that_is_refused_does_not_stop_the_cron(dev: World, kept: bytes) -> None:
    added = await dev.node.crons.add(cron(), workflow())
    spec = store.spec_key("dev", added.cronid)
    await dev.client.put(spec, kept)
    dev.advance(10)

    async def dealt_with() -> bool:
        now = await dev.node.crons.get("dev", added.cronid)
        return now.lastrun > 0 and now.firing is None

    await until(50, dealt_with)
    now = await dev.node.crons.get("dev", added.cronid)
    assert (now.prevprocessgraphid, now.nextrun) == ("", NOON + 20 * SECOND)
    assert "cron.workflowspec" in now.skipped
    await dev.client.put(spec, workflow().encode())
    dev.advance(10)
    await dev.assign()


# -- the leader --------------------------------------------------------------------------


def test_who_may_take_the_key() -> None:
    def take(holder: LeaseHolder | None, *, led: bool) -> Any:
        return may_take(None if holder is None else (holder, 7), "home", "start", led=led)

    for led in (True, False):
        assert take(None, led=led) == Absent(KEY)
        assert take(LeaseHolder("other", "start"), led=led) is None
        assert take(LeaseHolder("home", "start"), led=led) == ModRevision(KEY, 7)
    assert take(LeaseHolder("home", "before"), led=False) == ModRevision(KEY, 7)
    # Two homes that are copies of one must not take it from each other for ever.
    assert take(LeaseHolder("home", "twin"), led=True) is None


def test_a_home_keeps_its_identity(tmp_path: Path) -> None:
    first = home_identity(tmp_path)
    assert home_identity(tmp_path) == first
    assert (tmp_path / "daemon-id").stat().st_mode & 0o777 == 0o600
    (tmp_path / "daemon-id").write_text("")  # a power cut on a bad disk
    assert home_identity(tmp_path) != first


async def test_one_leads_and_another_follows_when_it_stops(dev: World) -> None:
    other = (await dev.start()).node
    await trio.testing.wait_all_tasks_blocked(0.05)
    assert (dev.node.leader.holds, other.leader.holds) == (True, False)
    with trio.fail_after(3):  # long before the lease runs out
        await dev.stations[0].stop()
        await other.leader.elected()


async def test_a_daemon_that_returns_takes_its_own_key_over_at_once(dev: World) -> None:
    """As after a kill -9: the old lease is alive and nobody renews it."""
    holder = dev.node.leader
    with trio.fail_after(30):
        again = (await dev.start(holder.identity)).node.leader
        await again.elected()
        await holder.deposed()
    await trio.testing.wait_all_tasks_blocked(0.1)
    assert (again.holds, holder.holds) == (True, False)


async def test_a_lost_lease_is_noticed_at_once_and_fences(dev: World) -> None:
    leader = dev.node.leader
    fence = list(leader.fence)
    assert (await dev.client.commit(Txn(fence, []))).succeeded
    found = await dev.client.get(KEY)
    assert found is not None
    with trio.fail_after(1):
        await dev.client.revoke(found.lease)
        await leader.deposed()
        # Nobody else is there.
        await leader.elected()
    assert not (await dev.client.commit(Txn(fence, []))).succeeded
    assert (await dev.client.commit(Txn(list(leader.fence), []))).succeeded


async def test_a_deposed_leader_fires_nothing(dev: World) -> None:
    added = await dev.node.crons.add(cron(), workflow())
    crons = dev.node.crons
    await dev.stations[0].stop()
    dev.now += 10 * SECOND
    await crons.act(store.key("dev", added.cronid))
    assert await dev.graphs() == []
    assert (await crons.get("dev", added.cronid)) == added


async def test_a_listing_asks_for_what_it_returns_however_many_there_are(
    dev: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, names = dev.node, [f"c{number:03}" for number in range(300)]
    asked = counting(node.client, monkeypatch)
    for name in reversed(names):
        await node.crons.add(cron(name=name, interval=10**6), workflow())
    asked.forget()
    assert [each.name for each in node.crons.listing("dev", 10)] == names[:10]
    (first,) = node.crons.listing("dev", 1)
    await node.crons.remove("dev", first.cronid)
    assert [each.name for each in node.crons.listing("dev", 9)] == names[1:10]
    assert len(node.crons.listing("dev", 1_000)) == 299
    assert node.crons.listing("dev", 0) == node.crons.listing("other", 9) == []
    assert asked.counted <= 1
