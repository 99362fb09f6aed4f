"""Several servers at choice: no call's patience ends another call, and who serves nothing is left.

The servers are real ones; members of a cluster that die are in `tests.node.daemon.test_cluster`.
"""

from __future__ import annotations

import signal
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from node.etcd.client import EtcdClient, open_client
from node.etcd.errors import EtcdDenied, EtcdUnavailable
from node.etcd.transport.dial import Access
from node.etcd.watch import WatchBatch, watch
from tests.node.etcd.support import Store, start_store
from tests.support.cluster import members, serving


async def give_up_at_once(client: EtcdClient) -> None:
    """A call without any patience, on the same connection; now and then etcd is faster still."""
    hasty = EtcdClient(client._channel, 0.0)
    with suppress(EtcdUnavailable):
        while True:
            await hasty.put("hasty", b"")


async def test_a_call_out_of_patience_ends_no_other(store: Store, nursery: trio.Nursery) -> None:
    async with open_client(Access((store.target,) * 2), timeout=60) as client:
        sender, receiver = trio.open_memory_channel[WatchBatch](100)
        await nursery.start(partial(watch, client, "p/", sender, heartbeat=60.0))
        assert (await receiver.receive()).snapshot
        for turn in range(5):
            async with trio.open_nursery() as writers:
                for number in range(20):
                    writers.start_soon(client.put, f"p/{turn}/{number}", b"v" * 10_000)
                await give_up_at_once(client)
        written = set[str]()
        with trio.fail_after(60):
            while len(written) < 100:
                batch = await receiver.receive()
                assert not batch.snapshot, "the watch was cut"
                written |= {event.key for event in batch.events}


async def test_a_server_that_says_nothing_any_more_is_left(
    nursery: trio.Nursery, store: Store, tmp_path: Path
) -> None:
    """Sooner than its silence alone would be noticed: another may serve."""
    other = await start_store(nursery, tmp_path / "other")
    async with open_client(Access((store.target, other.target)), timeout=60) as client:
        await client.put("k", b"first")
        store.signal(signal.SIGSTOP)
        try:
            await give_up_at_once(client)
            with trio.fail_after(15):
                assert await client.get("k") is None, "that one never heard of it"
        finally:
            store.signal(signal.SIGCONT)


async def test_a_refusal_is_proof_enough(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user that may not read the key of the question is as well served as any other."""
    async with open_client(Access((store.target,) * 2), timeout=60) as client:
        await client.put("k", b"")
        wire = client._channel._wire
        assert wire is not None

        async def refuse(path: str, message: bytes, timeout: float) -> bytes:
            raise EtcdDenied("permission denied")

        monkeypatch.setattr(client._channel, "call", refuse)
        wire.doubt("a test")
        await trio.testing.wait_all_tasks_blocked()
        assert not wire.doubted.is_set()
        assert client._channel._wire is wire


@pytest.mark.slow
async def test_a_member_without_its_cluster_is_left(
    nursery: trio.Nursery, store: Store, tmp_path: Path
) -> None:
    """It answers pings and refuses no connection, and no call gets anything from it."""
    with members(tmp_path, 3) as three:
        async with open_client(three[0].endpoint) as client:
            await serving(client)
        access = Access((three[0].endpoint, store.target))
        async with open_client(access, timeout=60) as client:
            await client.put("k", b"first")
            for member in three[1:]:
                member.stop()
            with trio.fail_after(60):
                with pytest.raises(EtcdUnavailable):
                    await EtcdClient(client._channel, 1.0).put("k", b"last")
                assert await client.get("k") is None
