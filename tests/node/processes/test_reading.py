"""A daemon that serves while it still reads its queue, which an earlier one left to it."""

from __future__ import annotations

import time
from typing import Any, cast

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from node.etcd.client import EtcdClient, Range
from node.handlers.colonies import colony_statistics
from node.host.clock import Clock
from node.model.errors import TimedOut, Unavailable
from node.model.types import Process
from node.processes import reading
from node.processes.service import Processes
from node.rpc.calls import Caller
from node.rpc.requests import ColonyOnly
from node.runtime import feeds
from node.runtime.feeds import follow
from node.runtime.node import Node
from node.store import keys
from node.streams.subscriptions import SubscriptionFilter
from tests.node.processes.test_assignment_races import ADA, CANDIDATE
from tests.support.daemons import until
from tests.support.interleaved import Meddled
from tests.support.processes import enlist, make

FIRST = 8  # keys of the first page of a listing
WAITING = 3 * FIRST


class Slow(Meddled):
    """A store that gives out the first page of the queue at once, and the others when told to."""

    def __init__(self, client: EtcdClient) -> None:
        super().__init__(client)
        self.go_on = trio.Event()

    async def range(self, prefix: str, *, start: str | None = None, **how: Any) -> Range:
        if prefix == keys.QUEUE and start not in (None, prefix):
            await self.go_on.wait()
        return await self._client.range(prefix, start=start, **how)


@pytest.fixture
async def waiting(client: EtcdClient) -> list[Process]:
    """Processes in the store, in their order."""
    earlier = Processes(client, Clock(time.time_ns))
    return [await earlier.submit(make(), b"") for _ in range(WAITING)]


@pytest.fixture
async def started(
    client: EtcdClient,
    nursery: trio.Nursery,
    waiting: list[Process],
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[Node, Slow]:
    """A daemon that has read the first page of its queue."""
    monkeypatch.setattr(feeds, "_WHOLE", 0.0)
    store = Slow(client)
    node = Node.build(cast(EtcdClient, store), "dev", Clock(time.time_ns))
    with trio.fail_after(30):
        await nursery.start(follow, node, keys.LIVE)
    enlist(node, ADA)
    return node, store


async def read_on(node: Node, store: Slow) -> None:
    store.go_on.set()
    with trio.fail_after(30):
        await node.processes.reading.ended()


async def test_it_starts_after_the_first_page(started: tuple[Node, Slow]) -> None:
    node, store = started
    assert node.processes.queue.count("dev") == FIRST
    assert str(node.processes.reading) == f"reading the queue: {FIRST} of {WAITING}"
    await read_on(node, store)
    assert node.processes.queue.count("dev") == WAITING


async def test_what_was_submitted_alike_is_in_memory_once(started: tuple[Node, Slow]) -> None:
    node, store = started
    await node.processes.submit(make(), b"")
    await read_on(node, store)
    entries = list(node.processes.queue.entries.values())
    assert len(entries) == WAITING + 1
    assert len({id(entry.waiting) for entry in entries}) == 1
    assert len({id(entry.colony) for entry in entries}) == 1
    assert len({id(entry.executortype) for entry in entries}) == 1


async def test_what_is_first_is_handed_out_and_what_may_not_be_first_waits(
    started: tuple[Node, Slow], waiting: list[Process]
) -> None:
    node, store = started
    late = await node.processes.submit(make(), b"")
    wanted = [process.processid for process in waiting]
    got = [(await node.assigner.assign(CANDIDATE, ADA, 0)).processid for _ in range(FIRST)]
    assert got == wanted[:FIRST]
    with pytest.raises(Unavailable, match=f"reading the queue: {FIRST} of {WAITING}"):
        await node.assigner.assign(CANDIDATE, ADA, 0)
    with pytest.raises(TimedOut, match="reading the queue"):
        await node.assigner.assign(CANDIDATE, ADA, 0.01)

    async def poll() -> None:
        got.append((await node.assigner.assign(CANDIDATE, ADA, 30)).processid)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(poll)
        await wait_all_tasks_blocked()
        await read_on(node, store)
    while len(got) <= WAITING:
        await poll()
    assert got == [*wanted, late.processid]


async def test_what_was_cancelled_before_it_was_read_is_gone(
    client: EtcdClient, started: tuple[Node, Slow], waiting: list[Process]
) -> None:
    node, store = started
    await node.processes.cancel("dev", waiting[-1].processid)
    await read_on(node, store)
    last = await Processes(client, Clock(time.time_ns)).submit(make(), b"")

    async def told() -> bool:
        return last.processid in node.processes.queue.entries

    await until(30, told)
    assert waiting[-1].processid not in node.processes.queue.entries
    assert node.processes.queue.count("dev") == WAITING


async def test_a_listing_waits_for_the_whole_queue(
    started: tuple[Node, Slow], monkeypatch: pytest.MonkeyPatch
) -> None:
    node, store = started
    asked = Caller(ADA.executorid, "dev"), ColonyOnly("dev")
    with monkeypatch.context() as patience:
        patience.setattr(reading, "_PATIENCE", 0.01)
        with pytest.raises(Unavailable, match="reading the queue"):
            await colony_statistics(node, *asked)
    await read_on(node, store)
    assert (await colony_statistics(node, *asked))["waitingprocesses"] == WAITING


async def test_a_subscriber_is_told_nothing_of_what_is_read(started: tuple[Node, Slow]) -> None:
    node, store = started
    anything = SubscriptionFilter(frozenset({"dev"}), 0, executortype="cli")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.remote_changes.run)
        with node.subscriptions.open(anything) as events:
            await read_on(node, store)
            new = await node.processes.submit(make(), b"")
            with trio.fail_after(30):
                assert (await events.receive()).processid == new.processid
        nursery.cancel_scope.cancel()


async def test_what_ran_before_is_told_apart_from_what_was_assigned_meanwhile(
    client: EtcdClient, started: tuple[Node, Slow]
) -> None:
    node, store = started
    await node.assigner.assign(CANDIDATE, ADA, 0)
    await read_on(node, store)
    assert not node.assigner.silent("dev", {ADA.executorid})
