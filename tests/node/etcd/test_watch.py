"""Watches against a real etcd that is killed, frozen and compacted under them.

What the indexes of the daemon make of the batches is tested with those.
"""

from __future__ import annotations

import signal
import threading
from functools import partial

import pytest
import trio
import trio.testing

from node.etcd.client import EtcdClient
from node.etcd.errors import Compacted
from node.etcd.txn import Delete, Put, Txn
from node.etcd.watch import Event, WatchBatch, _follow, _open_stream, watch
from tests.node.etcd.support import Store, logged

Receiver = trio.MemoryReceiveChannel[WatchBatch]


async def start_watch(
    nursery: trio.Nursery, client: EtcdClient, prefix: str, *, heartbeat: float = 30.0
) -> Receiver:
    sender, receiver = trio.open_memory_channel[WatchBatch](1)
    await nursery.start(partial(watch, client, prefix, sender, heartbeat=heartbeat))
    return receiver


async def until_snapshot(receiver: Receiver, seconds: float = 60) -> WatchBatch:
    with trio.fail_after(seconds):
        while True:
            batch = await receiver.receive()
            if batch.snapshot:
                return batch


async def test_a_snapshot_then_each_change(client: EtcdClient, nursery: trio.Nursery) -> None:
    first = await client.put("p/a", b"1")
    await client.put("other", b"")
    receiver = await start_watch(nursery, client, "p/")
    batch = await receiver.receive()
    assert batch.snapshot
    assert batch.events == [Event("p/a", b"1", first)]
    assert batch.revision == first + 1
    result = await client.commit(Txn([], [Put("p/b", b"2"), Delete("p/a"), Put("q", b"")]))
    batch = await receiver.receive()
    assert not batch.snapshot
    assert batch.revision == result.revision
    assert set(batch.events) == {
        Event("p/b", b"2", result.revision),
        Event("p/a", None, result.revision),
    }


async def test_nothing_is_lost_between_listing_and_stream(
    client: EtcdClient, nursery: trio.Nursery
) -> None:
    last = 0

    async def write() -> None:
        nonlocal last
        for number in range(300):
            last = await client.put(f"p/{number:03}", b"")

    nursery.start_soon(write)
    receiver = await start_watch(nursery, client, "p/")
    seen: list[str] = []
    with trio.fail_after(120):
        while len(seen) < 300:
            batch = await receiver.receive()
            assert batch.snapshot == (not seen) or not batch.snapshot
            seen += [event.key for event in batch.events]
    assert seen == [f"p/{number:03}" for number in range(300)]


# On a slow machine a short heartbeat is missed by an etcd that is well: then a longer one decides.


async def test_a_slow_reader_loses_nothing(client: EtcdClient) -> None:
    """More changes than are read ahead, and more silence of the reader than the heartbeat."""
    for heartbeat in (0.2, 1.0, 4.0):
        snapshots, seen = await read_late(client, f"p/{heartbeat}/", heartbeat)
        if snapshots == 1:
            assert seen == [f"p/{heartbeat}/{number:03}" for number in range(400)]
            return
    raise AssertionError("the reader's silence counts as the server's")


async def read_late(client: EtcdClient, prefix: str, heartbeat: float) -> tuple[int, list[str]]:
    """The snapshots and the keys of a reader that takes nothing while 400 keys are put."""
    seen: list[str] = []
    snapshots = 0
    async with trio.open_nursery() as nursery:
        receiver = await start_watch(nursery, client, prefix, heartbeat=heartbeat)
        silent = trio.current_time()
        for number in range(400):
            await client.put(f"{prefix}{number:03}", b"")
        await trio.sleep_until(silent + 1.2 * heartbeat)
        with trio.fail_after(60):
            while len(seen) < 400:
                batch = await receiver.receive()
                snapshots += batch.snapshot
                seen += [event.key for event in batch.events]
        nursery.cancel_scope.cancel()
    return snapshots, seen


async def test_a_quiet_watch_stays_open(client: EtcdClient) -> None:
    """The heartbeat's questions are answered, so silence alone brings no new snapshot."""
    for heartbeat in (0.1, 1.0, 8.0):
        if await stays_open(client, f"p/{heartbeat}/", heartbeat):
            return
    raise AssertionError("every watch listed again")


async def stays_open(client: EtcdClient, prefix: str, heartbeat: float) -> bool:
    """Whether a watch without news is the same after ten heartbeats, or after 20 s."""
    async with trio.open_nursery() as nursery:
        receiver = await start_watch(nursery, client, prefix, heartbeat=heartbeat)
        await receiver.receive()
        relisted = False
        with trio.move_on_after(min(10 * heartbeat, 20)):
            await receiver.receive()
            relisted = True
        await client.put(f"{prefix}a", b"")
        with trio.fail_after(60):
            relisted = (await receiver.receive()).snapshot or relisted
        nursery.cancel_scope.cancel()
    return not relisted


async def test_etcd_killed_and_restarted(
    store: Store, client: EtcdClient, nursery: trio.Nursery
) -> None:
    receiver = await start_watch(nursery, client, "p/")
    assert (await receiver.receive()).snapshot
    revision = await client.put("p/a", b"before")
    assert (await receiver.receive()).events == [Event("p/a", b"before", revision)]
    store.signal(signal.SIGKILL)
    again = await until_snapshot(receiver)
    assert again.events == [Event("p/a", b"before", revision)]
    revision = await client.put("p/a", b"after")
    assert (await receiver.receive()).events == [Event("p/a", b"after", revision)]


async def test_the_revision_to_resume_from_is_compacted(
    client: EtcdClient, nursery: trio.Nursery
) -> None:
    sender, receiver = trio.open_memory_channel[WatchBatch](0)
    nursery.start_soon(watch, client, "p/", sender)
    await trio.testing.wait_all_tasks_blocked()
    with trio.fail_after(60):
        while sender.statistics().tasks_waiting_send == 0:
            await trio.testing.wait_all_tasks_blocked(0.01)
    # The listing is done, the stream is not open yet: it waits for us to take the listing.
    for number in range(5):
        revision = await client.put("p/a", b"%d" % number)
    await client.put("elsewhere", b"")
    await client.compact(revision)
    first = await receiver.receive()
    assert first.events == []
    second = await until_snapshot(receiver)
    assert second.events == [Event("p/a", b"4", revision)]


async def test_a_compacted_stream_says_so(client: EtcdClient) -> None:
    await client.put("p/a", b"")
    await client.compact(await client.put("p/a", b""))
    sender, _receiver = trio.open_memory_channel[WatchBatch](10)
    with _open_stream(client, "p/", 1) as stream:
        with trio.fail_after(60):
            with pytest.raises(Compacted):
                await _follow(client, stream, sender, 30)


async def test_a_frozen_etcd_is_noticed(
    store: Store, client: EtcdClient, nursery: trio.Nursery
) -> None:
    receiver = await start_watch(nursery, client, "p/", heartbeat=0.5)
    await receiver.receive()
    with logged("watch lists again", "watch") as noticed:
        store.signal(signal.SIGSTOP)
        try:
            # Below the time in which the connection's own pings would notice.
            with trio.fail_after(15):
                await noticed.wait()
        finally:
            store.signal(signal.SIGCONT)
    await until_snapshot(receiver)
    revision = await client.put("p/a", b"")
    with trio.fail_after(60):
        batch = await receiver.receive()
        while batch.revision < revision:
            batch = await receiver.receive()
    assert Event("p/a", b"", revision) in batch.events


async def test_a_cancelled_watch_leaves_no_call_and_no_thread(client: EtcdClient) -> None:
    threads = threading.active_count()
    async with trio.open_nursery() as nursery:
        receiver = await start_watch(nursery, client, "p/")
        await receiver.receive()
        await client.put("p/a", b"")
        await receiver.receive()
        assert client.open_calls == 1
        assert threading.active_count() == threads
        nursery.cancel_scope.cancel()
    assert client.open_calls == 0
    await client.put("p/a", b"")  # and the connection is as good as before


async def test_the_reader_is_gone(client: EtcdClient) -> None:
    sender, receiver = trio.open_memory_channel[WatchBatch](0)
    receiver.close()
    with pytest.raises(trio.BrokenResourceError):
        await watch(client, "p/", sender)
