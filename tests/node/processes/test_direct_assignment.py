"""A submission for which a poll waits: stored and assigned by one transaction, or not at all."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress

import msgspec
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from colonyd.errors import Denied
from node.etcd.client import EtcdClient
from node.etcd.errors import EtcdError, EtcdUnavailable, error_from
from node.model.types import SECOND, Executor, Process, State
from node.processes import assignment
from node.processes.deadlines import expire
from node.processes.queue import Candidate
from node.runtime.node import Node
from node.streams.subscriptions import SubscriptionFilter
from tests.node.processes.support import ADA, BOB, Scene
from tests.node.streams.support import fed
from tests.support.daemons import until
from tests.support.processes import make

POLL = 30.0  # seconds


@pytest.fixture
def scene(client: EtcdClient) -> Scene:
    return Scene(client)


@asynccontextmanager
async def polling(
    scene: Scene, *executors: Executor, location: str = ""
) -> AsyncIterator[dict[str, Process]]:
    """Polls that wait; the processes that they get, by the executor's name."""
    got: dict[str, Process] = {}

    async def poll(executor: Executor) -> None:
        name = executor.executorname
        candidate = Candidate("dev", "cli", name, location)
        # Where the process may be assigned, or not, the executor has to ask again.
        with suppress(EtcdUnavailable):
            got[name] = await scene.assigner.assign(candidate, executor, POLL)

    with trio.fail_after(50):
        async with trio.open_nursery() as nursery:
            for executor in executors:
                nursery.start_soon(poll, executor)
                await wait_all_tasks_blocked()
            yield got
            nursery.cancel_scope.cancel()


async def settled(got: dict[str, Process]) -> None:
    """Return once a poll has got its process."""

    async def there() -> bool:
        return bool(got)

    await until(30, there)


async def test_it_takes_one_write(scene: Scene) -> None:
    async with polling(scene, ADA) as got:
        process = make()
        writes = scene.store.writes
        said = await scene.assigner.submit(process, b"signed")
        await settled(got)
        assert scene.store.writes == writes + 1
    # The submitter sees what it submitted, the executor what it got.
    assert (said.state, said.assignedexecutorid, said.attempt) == (State.WAITING, "", 0)
    mine = got["ada"]
    assert (mine.processid, mine.state, mine.attempt) == (said.processid, State.RUNNING, 1)
    assert mine.assignedexecutorid == ADA.executorid
    assert await scene.stored(process) == mine
    assert not scene.one.queue.entries
    assert scene.one.running.count("dev") == 1
    again = await scene.one.close("dev", mine.processid, ADA.executorid, State.SUCCESSFUL)
    assert again.state == State.SUCCESSFUL


async def test_the_first_poll_that_may_have_it_gets_it(scene: Scene) -> None:
    async with polling(scene, ADA, location="attic") as vain, polling(scene, BOB) as got:
        await scene.assigner.submit(make(location="cellar"), b"")
        assert len(scene.one.queue.entries) == 1, "nobody is there who may have it"
        process = await scene.assigner.submit(make(), b"")
        await settled(vain)
        assert vain["ada"].processid == process.processid
        assert not got


async def test_a_pause_or_an_executor_that_is_gone_leaves_it_in_the_queue(scene: Scene) -> None:
    async with polling(scene, ADA) as got:
        scene.assigner.paused.add("dev")
        first = await scene.assigner.submit(make(), b"")
        await wait_all_tasks_blocked()
        assert list(scene.one.queue.entries) == [first.processid]
        scene.assigner.resume("dev")
        await settled(got)

    def gone(executor: Executor) -> Executor:
        raise Denied("no longer approved")

    async with trio.open_nursery() as nursery:
        refused: list[Denied] = []

        async def poll() -> None:
            try:
                await scene.poll(BOB, POLL)
            except Denied as error:
                refused.append(error)

        nursery.start_soon(poll)
        await wait_all_tasks_blocked()
        scene.assigner.present = gone
        second = await scene.assigner.submit(make(), b"")
    assert refused
    assert list(scene.one.queue.entries) == [second.processid]


async def test_a_poll_whose_time_ends_is_not_claimed(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assignment, "_CLAIM_LEAST", POLL + 1)
    async with polling(scene, ADA) as got:
        await scene.assigner.submit(make(), b"")
        await settled(got)
        assert scene.store.writes == 2


async def test_a_large_one_is_not_written_while_a_poll_waits_for_it(scene: Scene) -> None:
    """Its parts may take longer than the poll has left."""
    process = make()
    process.spec.args = ["x" * 400_000]
    async with polling(scene, ADA) as got:
        await scene.assigner.submit(process, b"")
        await settled(got)
        assert scene.store.writes == 2
    assert got["ada"].spec.args == process.spec.args


async def test_nor_is_a_large_request(scene: Scene) -> None:
    """A peer's may be many times as long as its process."""
    async with polling(scene, ADA) as got:
        await scene.assigner.submit(make(), b"x" * 400_000)
        await settled(got)
        assert scene.store.writes == 2


async def test_what_was_prepared_for_long_keeps_its_time_to_run(scene: Scene) -> None:
    """As one of a peer whose files had to come first."""
    process = make()
    process.spec.maxexectime = 5
    process.submissiontime = scene.time - 8 * SECOND
    async with polling(scene, ADA) as got:
        await scene.assigner.submit(process, b"")
        await settled(got)
    assert got["ada"].execdeadline == scene.time + 5 * SECOND


async def test_what_the_store_refuses_leaves_the_poll_alone(scene: Scene) -> None:
    """Nothing has happened: there is nothing to doubt, and the poll goes on."""
    async with polling(scene, ADA) as got:
        scene.store.first = refuse
        process = make()
        with pytest.raises(EtcdError, match="no"):
            await scene.assigner.submit(process, b"")
        assert not scene.assigner.doubts(process.processid)
        assert not got
        second = await scene.assigner.submit(make(), b"")
        await settled(got)
        assert got["ada"].processid == second.processid


async def refuse() -> None:
    raise error_from("INVALID_ARGUMENT", "no")


async def test_an_id_that_is_taken_assigns_nothing(scene: Scene) -> None:
    first = await scene.submit()
    async with polling(scene, ADA) as got:
        await settled(got)
    async with polling(scene, BOB) as got:
        repeat = msgspec.structs.replace(first)
        said = await scene.assigner.submit(repeat, b"")
        assert (said.processid, said.assignedexecutorid) == (first.processid, ADA.executorid)
        await wait_all_tasks_blocked()
        assert not got
        # The poll goes on, and may be claimed again.
        process = await scene.assigner.submit(make(), b"")
        await settled(got)
        assert got["bob"].processid == process.processid


async def test_an_answer_that_is_lost_puts_it_back(scene: Scene) -> None:
    async with polling(scene, ADA):
        process = make()
        scene.store.lost = True
        with pytest.raises(EtcdUnavailable):
            await scene.assigner.submit(process, b"")
        assert (await scene.stored(process)).state == State.RUNNING
        assert scene.assigner.doubts(process.processid)
        await wait_all_tasks_blocked()
        assert not scene.assigner.polling("dev"), "the poll got an error, too"
        await expire(scene.one, scene.assigner)
    mine = await scene.poll(BOB)
    assert (mine.processid, mine.attempt, mine.retries) == (process.processid, 2, 0)
    assert not scene.assigner.doubts(process.processid)


async def test_a_write_that_lands_late_is_waited_for(scene: Scene) -> None:
    async with polling(scene, ADA):
        process = make()
        scene.store.slow = True
        with pytest.raises(EtcdUnavailable):
            await scene.assigner.submit(process, b"")
        scene.store.slow = False
        await expire(scene.one, scene.assigner)
        assert scene.assigner.doubts(process.processid), "it may still come"
        assert await scene.store.land(0)
        await expire(scene.one, scene.assigner)
    assert (await scene.poll(BOB)).processid == process.processid


async def test_a_repeat_that_is_served_ends_the_doubt(scene: Scene) -> None:
    async with polling(scene, BOB, ADA) as got:
        process = make()
        scene.store.slow = True
        with pytest.raises(EtcdUnavailable):
            await scene.assigner.submit(process, b"")
        scene.store.slow = False
        await scene.assigner.submit(msgspec.structs.replace(process, submissiontime=7), b"")
        await settled(got)
        assert not await scene.store.land(0)
        await expire(scene.one, scene.assigner)
        assert await scene.stored(process) == got["ada"]


async def test_a_poll_that_is_left_meanwhile_gives_it_to_another(scene: Scene) -> None:
    async with trio.open_nursery() as nursery:

        async def leaves() -> None:
            nursery.cancel_scope.cancel()

        nursery.start_soon(scene.poll, ADA, POLL)
        await wait_all_tasks_blocked()
        scene.store.first = leaves
        process = make()
        with trio.CancelScope(shield=True):
            await scene.assigner.submit(process, b"")
    stored = await scene.stored(process)
    assert (stored.state, stored.attempt, stored.retries) == (State.WAITING, 1, 0)
    assert (await scene.poll(BOB)).processid == process.processid


async def test_a_submitter_that_leaves_meanwhile_changes_nothing(scene: Scene) -> None:
    async with polling(scene, ADA) as got:
        process = make()
        with trio.CancelScope() as leaving:

            async def leaves() -> None:
                leaving.cancel()

            scene.store.first = leaves
            await scene.assigner.submit(process, b"")
        await settled(got)
        assert await scene.stored(process) == got["ada"]


async def test_a_later_change_does_not_tell_that_it_waited(client: EtcdClient) -> None:
    waits = SubscriptionFilter(frozenset({"dev"}), State.WAITING)
    async with fed(client) as (node, _):
        node.assigner.present = lambda executor: executor
        async with trio.open_nursery() as nursery:
            candidate = Candidate("dev", "cli", "ada")
            nursery.start_soon(node.assigner.assign, candidate, ADA, POLL)
            await wait_all_tasks_blocked(0.05)
            process = await node.assigner.submit(make(), b"")
        node.subscriptions._told.clear()  # as in a daemon that has started since
        with node.subscriptions.open(waits) as events:
            who = ("dev", process.processid, ADA.executorid)
            await node.processes.set_output(*who, ["half"])
            await node.processes.close(*who, State.SUCCESSFUL)
            with pytest.raises(trio.WouldBlock):
                events.receive_nowait()


async def test_either_daemon_tells_that_it_waited_and_runs(client: EtcdClient) -> None:
    wanted = [SubscriptionFilter(frozenset({"dev"}), state) for state in (0, 1)]
    async with fed(client) as (one, _), fed(client) as (other, _):
        one.assigner.present = lambda executor: executor
        with trio.fail_after(50), ExitStack() as stack:
            told = [
                stack.enter_context(node.subscriptions.open(each))
                for node in (one, other)
                for each in wanted
            ]
            async with trio.open_nursery() as nursery:
                candidate = Candidate("dev", "cli", "ada")
                nursery.start_soon(one.assigner.assign, candidate, ADA, POLL)
                await wait_all_tasks_blocked(0.05)
                process = await one.assigner.submit(make(), b"")
            for events, state in zip(told, [State.WAITING, State.RUNNING] * 2, strict=True):
                seen = await events.receive()
                assert (seen.processid, seen.state) == (process.processid, state)
                assert seen.isassigned == (state == State.RUNNING)
            # Each is told once: after the end, nothing more has come.
            who = ("dev", process.processid, ADA.executorid, State.SUCCESSFUL)
            await one.processes.close(*who)
            ended = await other.processes.load(*who[:2])
            assert ended is not None
            for node in (one, other):

                async def there(node: Node = node, revision: int = ended[1]) -> bool:
                    return node.subscriptions.told(process.processid) >= revision

                await until(30, there)
            for events in told:
                with pytest.raises(trio.WouldBlock):
                    events.receive_nowait()
