"""Hand-outs that nobody hears of, and wake-ups that find the wrong one first.

Each is made to happen: something else is done between what a poll has read and its commit, or the
answer of the store is lost.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from colonyd.errors import RpcError
from node.etcd.client import EtcdClient, TxnResult
from node.etcd.errors import EtcdUnavailable
from node.etcd.txn import ModRevision, Txn
from node.host.clock import Clock
from node.model.types import Colony, Executor, Process, State
from node.processes import assignment
from node.processes.assignment import Assigner
from node.processes.deadlines import expire
from node.processes.extension import Hooks
from node.processes.queue import Candidate
from node.processes.service import Processes
from node.runtime.feeds import follow
from node.runtime.node import Node
from node.store import keys
from node.store.work import processes as process_store
from tests.node.processes.support import ADA, BOB, CANDIDATE, Scene, Store
from tests.support.processes import enlist, make


@pytest.fixture
async def scene(client: EtcdClient) -> Scene:
    return Scene(client)


async def test_a_hand_out_whose_answer_is_lost_is_given_back(scene: Scene) -> None:
    process = await scene.submit()
    scene.store.lost = True
    await scene.poll_in_vain()
    assert (await scene.stored(process)).state == State.RUNNING
    got: list[Process] = []

    async def wait() -> None:
        got.append(await scene.poll(BOB, 60))

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await wait_all_tasks_blocked(0.05)
            assert not got
            await expire(scene.one, scene.assigner)
    assert (got[0].processid, got[0].attempt, got[0].retries) == (process.processid, 2, 0)
    assert got[0].assignedexecutorid == BOB.executorid
    await expire(scene.one, scene.assigner)
    assert (await scene.stored(process)).state == State.RUNNING, "that one was heard of"


async def test_a_hand_out_that_lands_after_its_error_is_given_back(scene: Scene) -> None:
    process = await scene.submit()
    scene.store.slow = True
    await scene.poll_in_vain()
    scene.store.slow = False
    await expire(scene.one, scene.assigner)
    assert await scene.store.land(0)
    await expire(scene.one, scene.assigner)
    assert (await scene.stored(process)).state == State.WAITING
    assert (await scene.poll(BOB)).attempt == 2


@pytest.mark.parametrize("landing", [0, 1])
async def test_whichever_of_two_lands_is_given_back(scene: Scene, landing: int) -> None:
    process = await scene.submit()
    scene.store.slow = True
    await scene.poll_in_vain()
    after = scene.time + 5
    scene.time = after
    await scene.poll_in_vain(BOB)
    scene.store.slow = False
    assert await scene.store.land(landing)
    assert not await scene.store.land(1 - landing)
    await expire(scene.one, scene.assigner)
    assert (await scene.stored(process)).state == State.WAITING


@pytest.mark.parametrize("executor", [ADA, BOB])
async def test_a_process_handed_out_anew_is_left_alone(scene: Scene, executor: Executor) -> None:
    """Also to the same executor, in the same attempt, at the same time by a clock that stands."""
    process = await scene.submit()
    scene.store.slow = True
    await scene.poll_in_vain()
    scene.store.slow = False
    got = await scene.poll(executor)
    assert (got.processid, got.attempt) == (process.processid, 1)
    assert not await scene.store.land(0)
    await expire(scene.one, scene.assigner)
    found = await scene.stored(process)
    assert (found.state, found.assignedexecutorid) == (State.RUNNING, executor.executorid)


async def test_what_another_daemon_handed_out_is_left_alone(scene: Scene) -> None:
    process = await scene.submit()
    scene.store.slow = True
    await scene.poll_in_vain()
    scene.store.slow = False
    got = await scene.other_handout.assign(CANDIDATE, ADA, 0)
    assert (got.processid, got.attempt) == (process.processid, 1)
    await expire(scene.one, scene.assigner)
    assert (await scene.stored(process)).state == State.RUNNING


async def test_one_that_is_gone_is_forgotten(scene: Scene) -> None:
    process = await scene.submit()
    scene.store.slow = True
    await scene.poll_in_vain()
    scene.store.slow = False
    await scene.other.remove("dev", process.processid)
    for _ in range(2):  # what is remembered of it goes first
        await expire(scene.one, scene.assigner)
    before = scene.store.gets
    await expire(scene.one, scene.assigner)
    assert scene.store.gets == before, "there is nothing left to look for"


async def test_it_is_looked_for_until_its_time_is_over(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = await scene.submit()
    scene.store.slow = True
    monkeypatch.setattr(assignment, "_LANDING", -1)
    await scene.poll_in_vain()
    scene.store.slow, scene.store.away = False, True
    with pytest.raises(EtcdUnavailable):
        await expire(scene.one, scene.assigner)
    scene.store.away = False
    assert await scene.store.land(0)
    await expire(scene.one, scene.assigner)
    assert (await scene.stored(process)).state == State.WAITING, "an error does not end the search"

    scene.store.slow = True
    await scene.poll_in_vain()
    scene.store.slow = False
    await expire(scene.one, scene.assigner)
    before = scene.store.gets
    await expire(scene.one, scene.assigner)
    assert scene.store.gets == before, "there is nothing left to look for"


async def test_a_store_that_is_away_is_asked_for_no_further_hand_outs(scene: Scene) -> None:
    await scene.submit()
    scene.store.away = True
    await scene.poll_in_vain()
    before = scene.store.writes
    for _ in range(3):
        await scene.poll_in_vain()
    assert scene.store.writes == before
    scene.store.away = False
    assert (await scene.poll()).attempt == 1


async def test_no_more_are_looked_for_than_a_bound(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assignment, "_MOST_DOUBTS", 2)
    processes = [await scene.submit(executortype=kind) for kind in "tuv"]
    scene.store.slow = True
    for kind in "tuv":
        with pytest.raises(EtcdUnavailable):
            await scene.assigner.assign(Candidate("dev", kind, "ada"), ADA, 0)
    scene.store.slow = False
    for number in range(3):
        assert await scene.store.land(number)
    await expire(scene.one, scene.assigner)
    states = [(await scene.stored(process)).state for process in processes]
    assert states == [State.RUNNING, State.WAITING, State.WAITING]


async def test_what_a_caller_that_left_had_is_given_back_when_the_store_returns(
    scene: Scene,
) -> None:
    process = await scene.submit()

    async def gone() -> None:
        raise EtcdUnavailable("away")

    async def then_gone() -> None:
        scene.store.first = gone  # for the commit that gives it back

    scene.store.first = then_gone
    with trio.CancelScope() as left:
        left.cancel()
        await scene.poll()
    assert left.cancelled_caught
    assert (await scene.stored(process)).state == State.RUNNING
    scene.store.first = gone
    with pytest.raises(EtcdUnavailable):
        await expire(scene.one, scene.assigner)
    await expire(scene.one, scene.assigner)
    found = await scene.stored(process)
    assert (found.state, found.retries) == (State.WAITING, 0)
    assert (await scene.poll(BOB)).processid == process.processid


class OneAtOnce(Hooks):
    """Of each other colony, one process runs at a time."""

    def most_running(self, origin: str) -> int:
        return 1


class Workers:
    """Polls in a nursery, and what each got."""

    def __init__(self, assigner: Assigner, nursery: trio.Nursery) -> None:
        self.assigner, self.nursery = assigner, nursery
        self.got: dict[str, str] = {}
        self.served = trio.Event()

    async def poll(self, name: str, location: str = "") -> None:
        """Let another one wait."""
        candidate = Candidate("dev", "cli", name, location)
        self.nursery.start_soon(self._poll, candidate, Executor("c" * 64, "cli", name, "dev"))
        await wait_all_tasks_blocked(0.02)

    async def _poll(self, candidate: Candidate, executor: Executor) -> None:
        process = await self.assigner.assign(candidate, executor, 60)
        self.got[candidate.name] = process.processid
        self.served.set()


async def within(seconds: float, act: Callable[[trio.Nursery], Awaitable[None]]) -> None:
    """Run `act` in a nursery that must end in time."""
    with trio.fail_after(seconds):
        async with trio.open_nursery() as nursery:
            await act(nursery)


async def test_a_wake_is_passed_on_beyond_who_can_not_use_it(scene: Scene) -> None:
    first, second = make(), make(location="lab")

    async def act(nursery: trio.Nursery) -> None:
        workers = Workers(scene.assigner, nursery)

        async def others_come() -> None:
            """While the first is being handed out: who can't have the second, and who can."""
            for name in ("eve", "fay", "gil"):
                await workers.poll(name)
            await workers.poll("bob", "lab")
            await scene.one.submit(second, b"")  # wakes the one whose hand-out is under way

        await scene.one.submit(first, b"")
        scene.store.first = others_come
        candidate = Candidate("dev", "cli", "ada", "lab")
        got = await scene.assigner.assign(candidate, ADA, 0)
        assert got.processid == first.processid
        await workers.served.wait()
        assert workers.got == {"bob": second.processid}
        nursery.cancel_scope.cancel()

    await within(30, act)


async def test_a_place_that_is_free_is_for_whoever_can_use_it(scene: Scene) -> None:
    """The first process of that colony in the line is for somebody who does not ask."""
    scene.one.attach(OneAtOnce())
    running = await scene.submit(origin="peer")
    assert (await scene.poll()).processid == running.processid
    await scene.submit(origin="peer", location="hall")
    second = await scene.submit(origin="peer", location="lab")

    async def act(nursery: trio.Nursery) -> None:
        workers = Workers(scene.assigner, nursery)
        await workers.poll("eve")
        await workers.poll("bob", "lab")
        assert not workers.got
        await scene.one.close("dev", running.processid, ADA.executorid, State.SUCCESSFUL)
        await workers.served.wait()
        assert workers.got == {"bob": second.processid}
        nursery.cancel_scope.cancel()

    await within(30, act)


async def test_a_colony_that_was_removed_while_paused_is_not_paused_when_it_comes_back(
    client: EtcdClient, nursery: trio.Nursery
) -> None:
    node = Node.build(client, "home", Clock(time.time_ns))
    await nursery.start(follow, node, keys.paused(""))
    await node.members.add_colony(Colony("a" * 64, "dev"))
    await client.put(keys.paused("dev"), b"\xc3")
    node.assigner.paused.add("dev")  # as the call does
    await node.members.remove_colony("dev")
    await node.members.add_colony(Colony("c" * 64, "dev"))
    enlist(node, ADA)
    process = await node.processes.submit(make(), b"")
    got = await node.assigner.assign(CANDIDATE, ADA, 10)
    assert got.processid == process.processid
    assert await client.get(keys.paused("dev")) is None


class Changing(Store):
    """A store in which another daemon writes to a process before each of so many hand-outs."""

    def __init__(self, client: EtcdClient, other: Processes) -> None:
        super().__init__(client)
        self.other, self.rivals = other, 0

    async def commit(self, txn: Txn) -> TxnResult:
        guard = txn.compare[0] if txn.compare else None
        if self.rivals and isinstance(guard, ModRevision):
            self.rivals -= 1
            known = await self.other.load("dev", guard.key.rpartition("/")[2])
            assert known is not None
            await self._client.commit(process_store.update(*known).txn)
        return await super().commit(txn)


async def test_a_process_that_changed_at_each_try_is_handed_out_all_the_same(
    scene: Scene,
) -> None:
    """Eight races are lost in a row; nothing was wrong with the process."""
    store = Changing(scene.client, scene.other)
    scene.use(store)
    process = await scene.submit()
    store.rivals = 8
    with trio.fail_after(30):
        assert (await scene.poll(seconds=20)).processid == process.processid


async def test_after_lost_races_a_process_is_there_for_the_next_poll(scene: Scene) -> None:
    store = Changing(scene.client, scene.other)
    scene.use(store)
    process = await scene.submit()
    store.rivals = 8
    with pytest.raises(RpcError) as caught:
        await scene.poll()
    assert caught.value.status == 404
    assert (await scene.poll(BOB)).processid == process.processid
