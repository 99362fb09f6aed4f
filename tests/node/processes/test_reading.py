"""A daemon that serves while it still reads its queue, which an earlier one left to it."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from colonyd.errors import NotFound, TimedOut, Unavailable
from node.daemon.metrics import Metrics
from node.etcd.client import EtcdClient, Range, Status
from node.etcd.errors import Compacted, EtcdError, EtcdUnavailable
from node.etcdserver.maintenance import maintain
from node.handlers.colonies import colony_statistics
from node.handlers.status import status
from node.handlers.work.processes import get_many, history
from node.host.clock import Clock
from node.http.message import Request
from node.model.codec import pack
from node.model.types import Colony, Process, State
from node.processes import reading
from node.processes.queue import Candidate
from node.processes.service import Processes
from node.rpc.calls import Caller
from node.rpc.dispatch import Table
from node.rpc.requests import ColonyOnly, Empty, GetProcesses, GetProcessHistory
from node.runtime import feeds
from node.runtime.feeds import follow
from node.runtime.node import Node
from node.store import keys
from node.streams.subscriptions import SubscriptionFilter
from tests.node.etcd.support import QUOTA
from tests.node.processes.support import ADA, CANDIDATE
from tests.support.daemons import until
from tests.support.interleaved import Meddled
from tests.support.processes import enlist, make

FIRST = 8  # keys of the first page of a listing
WAITING = 3 * FIRST


def later_pages(prefix: str, start: str | None) -> bool:
    """Whether a page of the queue is not the first."""
    return prefix == keys.QUEUE and start not in (None, prefix)


class Slow(Meddled):
    """A store that gives out what `stop` says only when told to; counts listings and looks."""

    def __init__(
        self, client: EtcdClient, stop: Callable[[str, str | None], bool] = later_pages
    ) -> None:
        super().__init__(client)
        self.stop = stop
        self.go_on = trio.Event()
        self.failure: EtcdError | None = None
        self.listings = self.looks = 0

    async def range(self, prefix: str, *, start: str | None = None, **how: Any) -> Range:
        self.listings += prefix == keys.LIVE
        if self.stop(prefix, start):
            await self.go_on.wait()
            failure, self.failure = self.failure, None
            if failure is not None:
                raise failure
        return await self._client.range(prefix, start=start, **how)

    async def status(self) -> Status:
        self.looks += 1
        return await self._client.status()

    def step(self) -> None:
        """Give out what is asked for now."""
        go_on, self.go_on = self.go_on, trio.Event()
        go_on.set()


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
    return await begun(Slow(client), nursery, monkeypatch)


async def begun(
    store: Slow, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> tuple[Node, Slow]:
    """A daemon that serves while it reads."""
    monkeypatch.setattr(feeds, "_WHOLE", 0.0)
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


async def test_only_what_lists_the_queue_waits_for_it(
    started: tuple[Node, Slow], monkeypatch: pytest.MonkeyPatch
) -> None:
    node, _ = started
    process = await node.assigner.assign(CANDIDATE, ADA, 0)
    monkeypatch.setattr(reading, "_PATIENCE", 0.01)
    caller = Caller(ADA.executorid, "dev")

    async def listed(state: State) -> list[list[str]]:
        rows = [
            await get_many(node, caller, GetProcesses("dev", count=10, state=state)),
            await history(node, caller, GetProcessHistory("dev", state=state, seconds=60)),
        ]
        return [[row["processid"] async for page in each for row in page] for each in rows]

    assert await listed(State.RUNNING) == [[process.processid]] * 2
    assert await listed(State.FAILED) == [[], []]
    with pytest.raises(Unavailable, match="reading the queue"):
        await listed(State.WAITING)
    ran = GetProcessHistory("dev", executorid=ADA.executorid, state=State.WAITING, seconds=60)
    assert [page async for page in await history(node, caller, ran) if page] == []


async def test_who_asks_for_counts_is_told_that_they_are_not_all(
    started: tuple[Node, Slow],
) -> None:
    node, store = started
    node.directory.apply(keys.colony("dev"), pack(Colony("c" * 64, "dev")), 1)
    caller = Caller("c" * 64, "dev")
    numbers = Metrics(node, Table(node.directory, node.clock.now), access="open")

    async def told() -> tuple[str, int, bool]:
        numbers._until = 0.0
        reply = await status(node, caller, Empty())
        text = (await numbers.answer(Request("GET", "/metrics", "", {}, b"", ""))).body.decode()
        return reply["reading"], reply["processes"]["waiting"], "queue_unread_keys 0" in text

    assert await told() == (f"reading the queue: {FIRST} of {WAITING}", FIRST, False)
    await read_on(node, store)
    assert await told() == ("", WAITING, True)


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


# -- a first listing that breaks -------------------------------------------------------------------


async def broken(client: EtcdClient, store: Slow, cause: str) -> None:
    """The listing breaks behind its first page; the next one stops there, too."""
    if cause == "compacted":
        await client.compact((await client.status()).revision)
    else:
        store.failure = EtcdUnavailable("away")
    listings = store.listings
    store.step()

    async def again() -> bool:
        return store.listings > listings

    await until(30, again)
    await wait_all_tasks_blocked(0.05)


@pytest.mark.parametrize("cause", ["compacted", "away"])
async def test_a_first_listing_that_broke_begins_again_and_all_is_given_out(
    client: EtcdClient, started: tuple[Node, Slow], waiting: list[Process], cause: str
) -> None:
    node, store = started
    wanted = [process.processid for process in waiting]
    got = [(await node.assigner.assign(CANDIDATE, ADA, 0)).processid]
    # Another daemon ends two that are known here, and one that is not read yet.
    for process in (waiting[1], waiting[3], waiting[-1]):
        await Processes(client, Clock(time.time_ns)).cancel("dev", process.processid)
        wanted.remove(process.processid)
    await broken(client, store, cause)
    assert node.processes.reading.under_way
    while len(got) < FIRST - 2:  # what the first page had is given out meanwhile
        got.append((await node.assigner.assign(CANDIDATE, ADA, 0)).processid)
    await read_on(node, store)
    assert waiting[3].processid not in node.processes.queue.entries
    while len(got) < len(wanted):
        got.append((await node.assigner.assign(CANDIDATE, ADA, 0)).processid)
    assert got == wanted
    assert not node.processes.queue.entries
    assert not node.assigner.silent("dev", {ADA.executorid})


async def test_what_ended_while_the_first_listing_was_broken_is_told(
    client: EtcdClient, started: tuple[Node, Slow], waiting: list[Process]
) -> None:
    node, store = started
    anything = SubscriptionFilter(frozenset({"dev"}), State.CANCELLED, executortype="cli")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.remote_changes.run)
        with node.subscriptions.open(anything) as events:
            await Processes(client, Clock(time.time_ns)).cancel("dev", waiting[1].processid)
            await broken(client, store, "compacted")
            await read_on(node, store)
            with trio.fail_after(30):
                assert (await events.receive()).processid == waiting[1].processid
        nursery.cancel_scope.cancel()


async def test_nothing_is_compacted_while_a_listing_is_under_way(
    client: EtcdClient, started: tuple[Node, Slow], nursery: trio.Nursery
) -> None:
    node, store = started
    listing = partial(getattr, node.processes, "listing")
    kept = partial(
        maintain, cast(EtcdClient, store), quota_bytes=QUOTA, interval=0.1, listing=listing
    )
    async with trio.open_nursery() as writers:
        for number in range(1100):
            writers.start_soon(client.put, "k", b"%d" % number)
    nursery.start_soon(kept)

    async def looked() -> bool:
        return store.looks > 10

    await until(30, looked)
    await read_on(node, store)
    assert store.listings == 1
    first = node.processes.reading.revision

    async def compacted() -> bool:
        await client.put("k", b"more")
        try:
            await client.range("k", revision=first)
        except Compacted:
            return True
        return False

    await until(30, compacted)


# -- what came early -------------------------------------------------------------------------------


async def test_polls_get_what_came_early_once_all_before_it_is_read(
    client: EtcdClient, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = Processes(client, Clock(time.time_ns))
    for kind, count in (("aaa", FIRST + 1), ("zzz", 200)):
        for _ in range(count):
            await earlier.submit(make(executortype=kind), b"")
    node, store = await begun(Slow(client), nursery, monkeypatch)
    got = set[str]()

    async def poll() -> None:
        candidate = Candidate("dev", "mmm", "ada")
        got.add((await node.assigner.assign(candidate, ADA, 30)).processid)

    async with trio.open_nursery() as polls:
        for _ in range(2):
            polls.start_soon(poll)
        await wait_all_tasks_blocked(0.05)
        late = [await node.processes.submit(make(executortype="mmm"), b"") for _ in range(2)]
        await wait_all_tasks_blocked(0.05)
        assert not got

        async def given() -> bool:
            if node.processes.reading.upto < keys.queue("dev", "zzz", 0, ""):
                store.step()
            return len(got) == len(late)

        await until(10, given)
    assert got == {process.processid for process in late}
    assert node.processes.reading.under_way
    await read_on(node, store)


async def test_what_waits_for_others_keeps_no_process_from_a_poll(
    client: EtcdClient, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Slow(client, lambda prefix, start: prefix == keys.BLOCKED)
    node, store = await begun(store, nursery, monkeypatch)
    assert node.processes.reading.under_way
    with pytest.raises(NotFound):
        await node.assigner.assign(CANDIDATE, ADA, 0)
    late = await node.processes.submit(make(), b"")
    assert (await node.assigner.assign(CANDIDATE, ADA, 0)).processid == late.processid
    await read_on(node, store)
