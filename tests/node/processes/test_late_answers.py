"""Answers of the store that come after the watch told of the write and of what undid it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, cast

import msgspec
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from node.etcd.client import EtcdClient, TxnResult
from node.etcd.errors import EtcdUnavailable
from node.etcd.txn import Txn
from node.etcd.watch import Event, WatchBatch
from node.handlers.work.processes import calls
from node.host.clock import Clock
from node.model.codec import pack
from node.model.types import Colony, ExecutorState, State, User
from node.processes.extension import Hooks
from node.processes.service import Processes
from node.rpc.calls import Caller
from node.rpc.requests import GetProcesses, GetProcessHistory, ProcessById
from node.runtime.feeds import follow, take_in
from node.runtime.node import Node
from node.store import keys
from node.store.directory import Directory
from tests.node.processes.support import ADA, CANDIDATE
from tests.support.daemons import until
from tests.support.interleaved import Meddled
from tests.support.processes import enlist, make


class Tardy(Meddled):
    """A store whose answer to one write comes after something else."""

    after: Callable[[int], Awaitable[object]] | None = None

    async def commit(self, txn: Txn) -> TxnResult:
        result = await super().commit(txn)
        if txn.compare and self.after is not None:
            after, self.after = self.after, None
            await after(result.revision)
        return result


@pytest.fixture
async def tardy(client: EtcdClient, nursery: trio.Nursery) -> tuple[Node, Tardy]:
    """A daemon that hears of everything at once, except of what it wrote itself."""
    store = Tardy(client)
    node = Node.build(cast(EtcdClient, store), "dev", Clock(time.time_ns))
    for prefix in (keys.LIVE, keys.MEMBERS):
        await nursery.start(follow, node, prefix)
    enlist(node, ADA)
    return node, store


async def told(index: Processes | Directory, revision: int) -> None:
    """Return once the watch has told of a write."""

    async def there() -> bool:
        return index.told >= revision

    await until(30, there)


async def test_a_submit_that_is_answered_after_its_end_leaves_nothing_in_the_queue(
    client: EtcdClient, tardy: tuple[Node, Tardy]
) -> None:
    node, store = tardy
    other = Processes(client, Clock(time.time_ns))

    async def it_is_cancelled(revision: int) -> None:
        await told(node.processes, revision)
        await other.cancel("dev", process.processid)
        ended = await other.load("dev", process.processid)
        assert ended is not None
        await told(node.processes, ended[1])

    store.after, process = it_is_cancelled, make()
    await node.processes.submit(process, b"")
    assert not node.processes.queue.entries


async def test_a_hand_out_that_is_answered_after_its_end_does_not_run_on(
    client: EtcdClient, tardy: tuple[Node, Tardy]
) -> None:
    node, store = tardy
    other = Processes(client, Clock(time.time_ns))
    process = await node.processes.submit(make(), b"")

    async def it_is_closed(revision: int) -> None:
        await told(node.processes, revision)
        await other.cancel("dev", process.processid)
        ended = await other.load("dev", process.processid)
        assert ended is not None
        await told(node.processes, ended[1])

    store.after = it_is_closed
    await node.assigner.assign(CANDIDATE, ADA, 0)
    assert node.processes.running.count("dev") == 0


async def test_a_watch_that_is_faster_than_the_answer_keeps_nobody_waiting(
    tardy: tuple[Node, Tardy],
) -> None:
    """Of a colony's two, both may run: one is not counted twice for as long as a poll looks."""
    node, store = tardy

    class Two(Hooks):
        def most_running(self, origin: str) -> int:
            return 2

    node.processes.attach(Two())
    for _ in range(2):
        await node.processes.submit(make(origin="o"), b"")
    got: list[str] = []

    async def poll() -> None:
        got.append((await node.assigner.assign(CANDIDATE, ADA, 30)).processid)

    with trio.fail_after(50):
        async with trio.open_nursery() as nursery:

            async def another_looks(revision: int) -> None:
                await told(node.processes, revision)
                nursery.start_soon(poll)
                await wait_all_tasks_blocked()

            store.after = another_looks
            await poll()
    assert len(set(got)) == 2


@pytest.mark.parametrize("call", ["getprocessmsg", "getprocessesmsg", "getprocesshistmsg"])
async def test_an_executor_is_not_shown_what_it_will_not_keep(
    client: EtcdClient, tardy: tuple[Node, Tardy], call: str
) -> None:
    """Its poll got an error, and the process goes back: it must not take it up from a listing."""
    node, store = tardy
    await node.members.add_colony(Colony("a" * 64, "dev"))
    approved = msgspec.structs.replace(ADA, state=ExecutorState.APPROVED)
    place = keys.executor("dev", ADA.executorname)
    await told(node.directory, await client.put(place, pack(approved)))
    process = await node.processes.submit(make(), b"")
    store.lost = True
    with pytest.raises(EtcdUnavailable):
        await node.assigner.assign(CANDIDATE, ADA, 0)
    stored = await Processes(client, Clock(time.time_ns)).load("dev", process.processid)
    assert stored is not None
    assert stored[0].state == State.RUNNING
    await told(node.processes, stored[1])
    rows = {row.payloadtype: row for row in calls.of(node)}
    caller = Caller(ADA.executorid)
    if call == "getprocessmsg":
        request: Any = ProcessById(process.processid)
        assert (await rows[call].handler(caller, request))["state"] == State.WAITING
    else:
        request = GetProcesses("dev", 10, State.RUNNING)
        if call == "getprocesshistmsg":
            request = GetProcessHistory("dev", "", 3600, State.RUNNING)
        pages = await rows[call].handler(caller, request)
        assert [row async for page in pages for row in page] == []
    assert (await node.assigner.assign(CANDIDATE, ADA, 0)).processid == process.processid


async def test_a_member_that_was_removed_before_its_addition_was_answered_stays_away(
    client: EtcdClient, tardy: tuple[Node, Tardy]
) -> None:
    node, store = tardy
    await node.members.add_colony(Colony("a" * 64, "dev"))
    ann = User("dev", "d" * 64, "ann")

    async def it_is_removed(revision: int) -> None:
        await told(node.directory, revision)
        await client.delete(keys.user("dev", "ann"))
        bob = User("dev", "e" * 64, "bob")
        await told(node.directory, await client.put(keys.user("dev", "bob"), pack(bob)))

    store.after = it_is_removed
    await node.members.add_user(ann)
    assert node.directory.member("dev", ann.userid) is None


async def test_what_is_listed_anew_is_there_though_it_was_told_long_ago(
    client: EtcdClient, tardy: tuple[Node, Tardy]
) -> None:
    """As after a break of the watch."""
    node, _ = tardy
    await node.members.add_colony(Colony("a" * 64, "dev"))
    ann = await node.members.add_user(User("dev", "d" * 64, "ann"))
    process = await node.processes.submit(make(), b"")
    last = await client.put(keys.user("dev", "bob"), pack(User("dev", "e" * 64, "bob")))
    await told(node.directory, last)
    for prefix in (keys.LIVE, keys.MEMBERS):
        items, revision = await client.range_all(prefix)
        events = [Event(item.key, item.value, item.mod_revision) for item in items]
        take_in(node, prefix, WatchBatch(True, events, revision))
    assert node.directory.member("dev", ann.userid) is not None
    assert list(node.processes.queue.entries) == [process.processid]
