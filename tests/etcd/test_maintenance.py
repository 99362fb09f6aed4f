"""Housekeeping of a real etcd: history is forgotten, a full store becomes usable again.

The calls it is made of are tested with the client.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from node.etcd.client import EtcdClient, open_client
from node.etcd.errors import Compacted, EtcdNoSpace
from node.etcd.maintenance import maintain
from tests.etcd.support import QUOTA, logged, start_store


async def test_history_is_forgotten(client: EtcdClient, nursery: trio.Nursery) -> None:
    first = await client.put("k", b"old")
    async with trio.open_nursery() as writers:
        for number in range(1100):
            writers.start_soon(client.put, "k", b"%d" % number)
    assert (await client.range("k", revision=first)).items[0].value == b"old"
    nursery.start_soon(partial(maintain, client, quota_bytes=QUOTA, interval=0.1))

    async def until_forgotten() -> None:
        while True:
            await client.range("k", revision=first)

    with trio.fail_after(60):
        with pytest.raises(Compacted):
            await until_forgotten()


async def test_a_store_filled_by_history_recovers(nursery: trio.Nursery, tmp_path: Path) -> None:
    quota = 16 * 1024 * 1024
    store = await start_store(nursery, tmp_path / "small", quota=quota)
    async with open_client(store.target, timeout=60) as client:

        async def overwrite() -> None:
            while True:
                await client.put("k", bytes(1_000_000))

        with pytest.raises(EtcdNoSpace):
            await overwrite()
        with logged("store has room again", "etcd") as recovered:
            async with trio.open_nursery() as housekeeping:
                housekeeping.start_soon(partial(maintain, client, quota_bytes=quota))
                with trio.fail_after(60):
                    await recovered.wait()
                housekeeping.cancel_scope.cancel()
        assert await client.put("k", b"works again") > 0
