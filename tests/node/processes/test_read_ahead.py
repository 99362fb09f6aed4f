"""Assignments from a deep queue: what the store is asked for."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio

from node.etcd.client import EtcdClient, KeyValue, TxnResult
from node.etcd.errors import EtcdUnavailable
from node.etcd.txn import Txn
from node.model.types import Process, State
from node.processes.service import Processes
from tests.node.processes.support import ADA, BOB, CANDIDATE, Scene, Store
from tests.support.processes import make

DEEP = 100


class Counting(Store):
    """A store that counts what is read of it."""

    async def commit(self, txn: Txn) -> TxnResult:
        self.gets += not txn.compare
        return await super().commit(txn)


async def deep(client: EtcdClient, executortypes: tuple[str, ...] = ("cli",)) -> Scene:
    """A daemon that has just started, with a deep queue: it remembers no process."""
    scene = Scene(client)
    scene.use(Counting(client))
    for number in range(DEEP):
        kind = executortypes[number % len(executortypes)]
        await scene.other.submit(make(executortype=kind), b"")
    items, _ = await client.range_all("/colonyd/")
    live = [kv for kv in items if "/queue/" in kv.key]
    assert len(live) == DEEP
    listed(scene.one, live)
    return scene


def listed(processes: Processes, live: Sequence[KeyValue]) -> None:
    """Let a daemon list its store."""
    processes.begin_listing(len(live), live[0].mod_revision)
    processes.list_some([(kv.key, kv.value, kv.mod_revision) for kv in live])
    processes.end_listing()


async def test_processes_are_read_many_at_a_time(client: EtcdClient) -> None:
    scene = await deep(client)
    order = [entry.processid for entry in scene.one.queue.in_order("dev")]
    got = [(await scene.poll()).processid for _ in range(DEEP)]
    assert got == order
    assert scene.store.gets <= DEEP // 20
    assert scene.store.writes == DEEP


async def test_polls_at_the_same_time_share_a_read(client: EtcdClient) -> None:
    scene = await deep(client, ("cli", "other"))
    got: list[str] = []

    async def poll() -> None:
        got.append((await scene.poll()).processid)

    async with trio.open_nursery() as nursery:
        for _ in range(16):
            nursery.start_soon(poll)
    assert len(set(got)) == 16
    assert scene.store.gets <= 2


async def test_what_changed_since_it_was_read_is_read_again(client: EtcdClient) -> None:
    scene = await deep(client)
    first = await scene.poll()
    order = [entry.processid for entry in scene.one.queue.in_order("dev")]
    await scene.other.cancel("dev", order[0])
    theirs = await taken(scene, order[1])
    second = await scene.poll(BOB)
    assert second.processid == order[2], "the one before is another's, the one before that ended"
    assert {first.state, second.state, theirs.state} == {State.RUNNING}
    assert await scene.stored(theirs) == theirs


async def taken(scene: Scene, processid: str) -> Process:
    """A process that the other daemon assigns; the first has not heard of it."""
    items, _ = await scene.client.range_all("/colonyd/")
    mine = [kv for kv in items if kv.key.endswith(processid) and "/queue/" in kv.key]
    listed(scene.other, mine)
    process = await scene.other_handout.assign(CANDIDATE, ADA, 0)
    assert process.processid == processid
    return process


async def test_a_store_that_is_away_fails_the_polls_and_nothing_else(client: EtcdClient) -> None:
    scene = await deep(client)
    scene.store.away = True
    failed: list[EtcdUnavailable] = []

    async def poll() -> None:
        with pytest.raises(EtcdUnavailable) as raised:
            await scene.poll()
        failed.append(raised.value)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(poll)
    assert len(failed) == 3
    scene.store.away = False
    assert len(scene.one.queue.entries) == DEEP
    await scene.poll()


async def test_processes_in_parts_are_read_alone_and_leave_no_parts(client: EtcdClient) -> None:
    """Many of them together would fill the memory of a small host."""
    scene = Scene(client)
    scene.use(Counting(client))
    for number in range(6):
        process = make()
        process.spec.args = ["x" * (400_000 if number % 2 else 10)]
        await scene.other.submit(process, b"")
    items, _ = await client.range_all("/colonyd/")
    listed(scene.one, [kv for kv in items if "/queue/" in kv.key])
    # As a daemon that has just started: it has seen no stub.
    scene.one.client.known._refs.clear()
    for number in range(6):
        process = await scene.poll()
        assert len((process.spec.args or [""])[0]) == (400_000 if number % 2 else 10)
        assert scene.one.cache.held < 100_000
    items, _ = await client.range_all("/colonyd/part/")
    assert len({kv.key.split("/")[3] for kv in items}) == 3, "one set of parts for each"
