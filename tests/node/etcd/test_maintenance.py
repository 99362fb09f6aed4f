"""Housekeeping of a real etcd: history is forgotten, a full store becomes usable again.

The calls it is made of are tested with the client.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from node.etcd.client import EtcdClient, Status, open_client
from node.etcd.errors import Compacted, EtcdNoSpace
from node.etcdserver.maintenance import Defragmenter, maintain
from tests.node.etcd.support import QUOTA, logged, start_store
from tests.support.daemons import until


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
                await client.put("k", bytes(200_000))

        async def works() -> bool:
            try:
                return await client.put("k", b"works again") > 0
            except EtcdNoSpace:
                return False  # etcd was still removing what is forgotten: there is another try

        with pytest.raises(EtcdNoSpace):
            await overwrite()
        with logged("store has room again", "etcd") as recovered:
            async with trio.open_nursery() as housekeeping:
                housekeeping.start_soon(partial(maintain, client, quota_bytes=quota))
                with trio.fail_after(60):
                    await recovered.wait()
                await until(90, works)
                housekeeping.cancel_scope.cancel()


MIB = 2**20


def state(size: int, used: int, revision: int) -> Status:
    """What a store says of itself; sizes in MiB."""
    return Status("3.4", size * MIB, used * MIB, revision, 1, 1)


@pytest.mark.parametrize(
    ("size", "used", "revisions", "written", "expected"),
    [
        (40, 10, 50, 100_000, True),
        (40, 10, 51, 0, False),  # more than ten writes a second
        (40, 10, 0, 100_001, False),  # transactions that went together are one revision
        (40, 21, 0, 0, False),  # less than half of it is free
        (20, 5, 0, 0, False),  # not worth it
        (200, 41, 0, 0, False),  # it would take longer than two seconds
        (300, 200, 10_000, 10**9, True),  # larger than the quota
        (300, 280, 0, 0, False),
    ],
)
def test_a_file_is_rewritten_when_nobody_notices(
    size: int, used: int, revisions: int, written: int, expected: bool
) -> None:
    rewriting = Defragmenter()
    if size < 256:
        assert not rewriting.due(state(size, used, 10**6), 100.0, 256 * MIB, 10**6)
    later = state(size, used, 10**6 + revisions)
    due = rewriting.due(later, 105.0, 256 * MIB, 10**6 + written)
    assert due is expected


async def test_how_long_rewriting_takes_is_measured(client: EtcdClient) -> None:
    for number in range(40):
        await client.put(f"k{number % 20}", bytes(1_000_000))
    rewriting = Defragmenter()

    async def written() -> Status | None:
        status = await client.status()
        return status if status.db_in_use > 32 * MIB else None

    status = await until(60, written)
    assert isinstance(status, Status)
    await client.compact(status.revision, physical=True)
    with logged("store is defragmented", "etcd") as said:
        await rewriting.do(client, status)
        assert said.is_set()
    assert rewriting.rate != Defragmenter().rate
    assert (await client.status()).db_size < 30 * MIB
