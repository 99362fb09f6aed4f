"""Counts that a watch keeps, on a real etcd: right whatever is written, and asked for only once."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import trio

from node.etcd import counts as module
from node.etcd.client import EtcdClient, open_client
from node.etcd.counts import Counts
from node.etcd.txn import Delete, DeletePrefix, Op, Put, Txn
from tests.node.etcd.support import Store, start_store
from tests.support.asked import Asked, counting
from tests.support.daemons import seeded_dice, until

ROOT = "/marks/"
PREFIXES = [f"{ROOT}{colony}/{state}/" for colony in ("a", "bee") for state in (2, 3)]


async def followed(client: EtcdClient, nursery: trio.Nursery) -> Counts:
    """Counts of which a watch is under way."""
    counts = Counts(client, ROOT)
    nursery.start_soon(counts.run)
    await counts.of(PREFIXES[0])
    await until(30, lambda: _begun(counts))
    return counts


async def _begun(counts: Counts) -> bool:
    return ROOT in counts.client.noted and counts._upto > 0


async def fill(client: EtcdClient, prefix: str, count: int, begin: int = 0) -> None:
    ops = [Put(f"{prefix}{number:06}", b"") for number in range(begin, begin + count)]
    for start in range(0, count, 100):
        await client.commit(Txn([], ops[start : start + 100]))


async def test_a_prefix_is_counted_once_however_many_keys_it_has(
    client: EtcdClient, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    for size in (100, 3_000):
        await fill(client, f"{ROOT}dev/{size}/", size)
    counts = await followed(client, nursery)
    asked = counting(client, monkeypatch)
    for size in (100, 3_000):
        prefix = f"{ROOT}dev/{size}/"
        asked.forget()
        assert await counts.of(prefix) == size
        assert (asked.reads, asked.counted) == (1, size)
        asked.forget()
        await fill(client, prefix, 5, size)
        assert await counts.of(prefix) == size + 5
        await client.commit(Txn([], [Delete(f"{prefix}000001")]))
        assert await counts.of(prefix) == size + 4
        assert asked == Asked(), "nothing more is asked of etcd"
        # Nothing is there below it, so that the watch has nothing to tell.
        await client.commit(Txn([], [DeletePrefix(f"{ROOT}none/")]))
        assert await counts.of(prefix) == size + 4
        await client.commit(Txn([], [DeletePrefix(prefix)]))
        assert await counts.of(prefix) == 0


async def test_counts_are_right_whatever_this_client_writes(
    client: EtcdClient, nursery: trio.Nursery
) -> None:
    counts, dice = await followed(client, nursery), seeded_dice()
    there: dict[str, set[str]] = {prefix: set() for prefix in PREFIXES}

    async def write(prefix: str) -> None:
        known = there[prefix]
        for _ in range(60):
            ops: list[Op] = []
            for key in {f"{prefix}{dice.randrange(40):03}" for _ in range(3)}:
                ops.append(Delete(key) if key in known else Put(key, b""))
                known ^= {key}
            wanted = len(known)
            await client.commit(Txn([], [*ops, Put(f"/other/{prefix}", b"")]))
            assert await counts.of(prefix) == wanted

    async with trio.open_nursery() as writers:
        for prefix in PREFIXES:
            writers.start_soon(write, prefix)
    for prefix in PREFIXES:
        assert await counts.of(prefix) == await client.count(prefix) == len(there[prefix])


async def test_what_others_write_is_counted_also_while_the_first_count_is_made(
    nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store: Store = await start_store(nursery, tmp_path / "etcd")
    async with open_client(store.target) as mine, open_client(store.target) as other:
        counts = await followed(mine, nursery)
        stop = trio.Event()

        async def write() -> None:
            number = 0
            while not stop.is_set():
                for prefix in PREFIXES:
                    await fill(other, prefix, 1, number)
                number += 1

        async with trio.open_nursery() as writers:
            writers.start_soon(write)
            for _ in range(40):
                counts._counts.clear()
                for prefix in PREFIXES:
                    low = await mine.count(prefix)
                    assert await counts.of(prefix) >= low
            stop.set()
        for prefix in PREFIXES:
            wanted = await mine.count(prefix)
            await until(10, partial(_is, counts, prefix, wanted))
        asked = counting(mine, monkeypatch)
        assert [await counts.of(prefix) for prefix in PREFIXES] == 4 * [wanted]
        assert asked == Asked()


async def _is(counts: Counts, prefix: str, wanted: int) -> bool:
    return await counts.of(prefix) == wanted


async def test_nothing_is_followed_that_nobody_asks_for(
    client: EtcdClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = client.open_calls
    monkeypatch.setattr(module, "_IDLE", 0.1)
    other = Counts(client, "/idle/")
    async with trio.open_nursery() as alone:
        alone.start_soon(other.run)
        assert await other.of("/idle/a/2/") == 0
        await until(30, lambda: _noted(other, wanted=True))
        await until(30, lambda: _noted(other, wanted=False))
        assert client.open_calls == calls
        await fill(client, "/idle/a/2/", 3)
        assert await other.of("/idle/a/2/") == 3, "counted, and followed again"
        await until(30, lambda: _noted(other, wanted=True))
        await fill(client, "/idle/a/2/", 2, 3)
        assert await other.of("/idle/a/2/") == 5
        alone.cancel_scope.cancel()


async def _noted(counts: Counts, *, wanted: bool) -> bool:
    return ("/idle/" in counts.client.noted) is wanted
