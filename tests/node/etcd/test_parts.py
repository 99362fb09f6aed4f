"""Values of several requests: whole or not there, and nothing is left of what is gone."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from node.archive.backup import _dump, _load
from node.etcd import parts
from node.etcd.client import EtcdClient, open_client
from node.etcd.errors import EtcdTooLarge
from node.etcd.parts import MOST, PLACE, divide, joined, owner_of, parts_of, ref_of
from node.etcd.txn import Absent, Delete, DeletePrefix, Get, ModRevision, Put, Txn
from node.etcd.watch import WatchBatch, watch
from node.etcdserver import sweep as sweeping
from tests.node.etcd.support import start_store

KEY = "/colonyd/process/dev/a"
LARGE = os.urandom(2_500_000)
PIECES = -(-len(LARGE) // parts.PART)


async def count(client: EtcdClient) -> int:
    return await client.count(PLACE)


@given(st.lists(st.integers(0, 3_000_000), max_size=12))
def test_what_is_divided_fits_a_request_and_comes_together_again(sizes: list[int]) -> None:
    ops = [Put(f"/k/{at}", bytes([at]) * size) for at, size in enumerate(sizes)]
    whole, apart = divide(ops)
    assert sum(len(op.value) for op in whole if isinstance(op, Put)) <= parts.ROOM
    stubs = {put.key: ref for ref, put in apart}
    for before, after in zip(ops, whole, strict=True):
        assert isinstance(after, Put)
        ref = ref_of(after.value)
        assert ref == stubs.get(before.key)
        if ref is None:
            assert after == before
            continue
        pieces = list(parts_of(ref, before))
        assert all(len(piece.value) <= parts.PART for piece in pieces)
        assert joined(ref, [piece.value for piece in pieces]) == before.value
        assert joined(ref, [piece.value for piece in pieces[1:]]) is None
        assert {owner_of(piece.key) for piece in pieces} == {(ref.name, before.key)}


async def test_a_large_value_is_one_value(client: EtcdClient) -> None:
    made = await client.commit(Txn([Absent(KEY)], [Put(KEY, LARGE)], [Get(KEY)]))
    assert made.succeeded
    found = await client.get(KEY)
    assert found is not None
    assert (found.value, found.mod_revision) == (LARGE, made.revision)
    (listed,) = (await client.range("/colonyd/process/")).items
    assert listed == found
    # The loser of a race reads the winner's, and leaves nothing behind.
    lost = await client.commit(Txn([Absent(KEY)], [Put(KEY, LARGE[::-1])], [Get(KEY)]))
    assert not lost.succeeded
    assert lost.responses[0][0].value == LARGE
    assert await count(client) == PIECES
    # What is replaced, or removed, goes with it.
    after = await client.commit(Txn([ModRevision(KEY, made.revision)], [Put(KEY, LARGE[:-1])]))
    assert after.succeeded
    assert await count(client) == PIECES
    old = await client.commit(Txn([], [Get(KEY, made.revision)]))
    assert old.responses[0][0].value == LARGE
    assert (await client.commit(Txn([ModRevision(KEY, after.revision)], [Delete(KEY)]))).succeeded
    assert await count(client) == 0


async def test_what_is_overwritten_or_removed_takes_its_parts_along(client: EtcdClient) -> None:
    await client.put(KEY, LARGE)
    await client.put(KEY, LARGE[::-1])
    assert await count(client) == PIECES
    await client.put(KEY, b"small")
    assert await count(client) == 0
    for remove in (
        lambda: client.delete(KEY),
        lambda: client.delete_prefix(KEY[:-1]),
        lambda: client.commit(Txn([], [DeletePrefix(KEY[:-1])])),
    ):
        await client.put(KEY, LARGE)
        await remove()
        assert await count(client) == 0


async def test_more_than_the_store_takes_is_refused(client: EtcdClient) -> None:
    with pytest.raises(EtcdTooLarge, match=f"{MOST + 1} bytes; the store takes {MOST}"):
        await client.put(KEY, bytes(MOST + 1))
    assert await count(client) == 0


async def test_parts_that_nothing_names_are_swept(
    client: EtcdClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await client.put(KEY, LARGE)
    for key in (KEY + "b", KEY + "c"):
        await client.put(key, LARGE)
    client.known = parts.StubCache()  # as another daemon, which has not seen them
    await client.delete(KEY + "b")
    await client.put(KEY + "c", b"small")
    assert await count(client) == 3 * PIECES
    unnamed: dict[str, float] = {}
    assert await sweeping.sweep(client, unnamed) == 0
    assert await sweeping.sweep(client, unnamed) == 0  # a write under way might still name them
    monkeypatch.setattr(sweeping, "GRACE", 0.0)
    assert await sweeping.sweep(client, unnamed) == 2
    assert unnamed == {}
    assert await count(client) == PIECES
    found = await client.get(KEY)
    assert found is not None
    assert found.value == LARGE


async def test_a_watch_tells_large_values(client: EtcdClient, nursery: trio.Nursery) -> None:
    await client.put(KEY, LARGE)
    sender, receiver = trio.open_memory_channel[WatchBatch](1)
    await nursery.start(partial(watch, client, "/colonyd/process/", sender))
    assert [event.value for event in (await receiver.receive()).events] == [LARGE]
    await client.put(KEY, LARGE[::-1])
    assert [event.value for event in (await receiver.receive()).events] == [LARGE[::-1]]


async def test_a_copy_of_the_store_has_them(
    client: EtcdClient, nursery: trio.Nursery, tmp_path: Path
) -> None:
    await client.put(KEY, LARGE)
    with (tmp_path / "dump").open("w+b") as file:
        assert (await _dump(client, file))[0] == PIECES + 1
        file.seek(0)
        store = await start_store(nursery, tmp_path / "other")
        async with open_client(store.target, timeout=60) as other:
            assert await _load(other, file) == PIECES + 1
            found = await other.get(KEY)
            assert found is not None
            assert found.value == LARGE
            assert await count(other) == PIECES
