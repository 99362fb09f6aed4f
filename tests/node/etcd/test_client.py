"""The client's calls against a real etcd: results, limits, and errors.

Watches and the server's process have their own tests.
"""

from __future__ import annotations

import hashlib
import os
import signal
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from node.etcd.client import EtcdClient, open_client, prefix_end
from node.etcd.errors import (
    Compacted,
    EtcdError,
    EtcdNoSpace,
    EtcdTooLarge,
    EtcdTooManyOps,
    EtcdUnavailable,
    LeaseLost,
    error_from,
)
from node.etcd.txn import Absent, Delete, DeletePrefix, Get, ModRevision, Op, Present, Put, Txn
from tests.node.etcd.support import QUOTA, Store, start_store
from tests.support.daemons import until


def test_the_end_of_a_prefix() -> None:
    assert prefix_end(b"a/") == b"a0"
    assert prefix_end(b"a\xff\xff") == b"b"
    assert prefix_end(b"\xff") == b"\0"
    assert prefix_end(b"") == b"\0"


def test_an_unknown_status_is_not_retryable() -> None:
    error = error_from("INTERNAL", "something new")
    assert type(error) is EtcdError
    assert not error.retryable
    assert "something new" in str(error)
    assert "INTERNAL" in str(error)


async def test_put_get_delete(client: EtcdClient) -> None:
    assert await client.get("k") is None
    revision = await client.put("k", b"\x00\xff")
    found = await client.get("k")
    assert found is not None
    assert (found.key, found.value, found.lease) == ("k", b"\x00\xff", 0)
    assert found.mod_revision == found.create_revision == revision
    assert await client.delete("k") == 1
    assert await client.delete("k") == 0


async def test_create_if_absent_happens_once(client: EtcdClient) -> None:
    txn = Txn([Absent("k")], [Put("k", b"first")], [Get("k")])
    first = await client.commit(txn)
    assert first.succeeded
    assert first.responses == []
    second = await client.commit(Txn([Absent("k")], [Put("k", b"second")], [Get("k"), Get("no")]))
    assert not second.succeeded
    assert [[kv.value for kv in found] for found in second.responses] == [[b"first"], []]
    assert second.responses[0][0].mod_revision == first.revision


async def test_only_one_of_many_creates_the_key(client: EtcdClient) -> None:
    won: list[int] = []

    async def create(number: int) -> None:
        result = await client.commit(Txn([Absent("k")], [Put("k", b"%d" % number)]))
        if result.succeeded:
            won.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(create, number)
    found = await client.get("k")
    assert found is not None
    assert [found.value] == [b"%d" % number for number in won]


async def test_comparisons(client: EtcdClient) -> None:
    revision = await client.put("k", b"1")
    for compare, holds in (
        (ModRevision("k", revision), True),
        (ModRevision("k", revision - 1), False),
        (ModRevision("none", 0), True),
        (Present("k"), True),
        (Present("none"), False),
        (Absent("k"), False),
    ):
        assert (await client.commit(Txn([compare], []))).succeeded is holds, compare


async def test_a_transaction_moves_keys_at_one_revision(client: EtcdClient) -> None:
    for key in ("queue/1", "old/1", "old/2", "older"):
        await client.put(key, b"")
    ops: list[Op] = [
        Delete("queue/1"),
        DeletePrefix("old/"),
        Put("running/1", b"x"),
        Get("running/1"),
    ]
    result = await client.commit(Txn([Present("queue/1")], ops))
    assert result.responses[0][0].mod_revision == result.revision
    items, revision = await client.range_all("")
    assert [item.key for item in items] == ["older", "running/1"]
    assert revision == result.revision


async def test_a_range_is_paged_and_ordered(client: EtcdClient) -> None:
    for number in range(12):
        await client.put(f"p/{number:02}", b"v")
    await client.put("p", b"before")
    await client.put("p0", b"after")
    first = await client.range("p/", limit=5)
    assert [item.key for item in first.items] == [f"p/{n:02}" for n in range(5)]
    assert (first.more, first.count) == (True, 12)
    rest = await client.range("p/", start="p/05", keys_only=True)
    assert [item.key for item in rest.items] == [f"p/{n:02}" for n in range(5, 12)]
    assert not rest.more
    assert {item.value for item in rest.items} == {b""}
    down = await client.range("p/", limit=3, descending=True)
    assert [item.key for item in down.items] == ["p/11", "p/10", "p/09"]
    lower = await client.range("p/", limit=2, descending=True, start="p/08")
    assert [item.key for item in lower.items] == ["p/08", "p/07"]
    assert await client.count("p/") == 12
    with pytest.raises(ValueError, match="outside"):
        await client.range("p/", start="q")


async def test_a_paged_listing_is_of_one_revision(client: EtcdClient) -> None:
    for number in range(50):
        await client.put(f"p/{number:02}", b"old")
    async with trio.open_nursery() as nursery:

        async def overwrite() -> None:
            for number in reversed(range(50)):
                await client.put(f"p/{number:02}", b"new")

        nursery.start_soon(overwrite)
        items, revision = await client.range_all("p/", page=3)
    assert len(items) == 50
    assert max(item.mod_revision for item in items) <= revision
    again = await client.range("p/", revision=revision)
    assert again.items == items
    assert await client.delete_prefix("p/") == 50


async def test_more_than_128_operations_are_refused(client: EtcdClient) -> None:
    ops = [Put(f"k{number}", b"") for number in range(129)]
    with pytest.raises(EtcdTooManyOps) as caught:
        await client.commit(Txn([], ops))
    assert not caught.value.retryable
    assert await client.count("k") == 0
    assert (await client.commit(Txn([], ops[:128]))).succeeded


async def test_writing_a_key_twice_in_a_transaction_is_refused(client: EtcdClient) -> None:
    with pytest.raises(EtcdError, match="duplicate key"):
        await client.commit(Txn([], [Put("k", b""), Put("k", b"")]))


async def test_a_value_too_large_is_refused(client: EtcdClient) -> None:
    with pytest.raises(EtcdTooLarge):
        await client.put("k", bytes(70_000_000))
    assert await client.put("k", bytes(1_500_000)) > 0


async def test_reading_a_compacted_revision(client: EtcdClient) -> None:
    first = await client.put("k", b"1")
    last = await client.put("k", b"2")
    await client.compact(last)
    with pytest.raises(Compacted):
        await client.range("k", revision=first)
    with pytest.raises(Compacted):
        await client.compact(first)


async def test_a_lease_is_kept_alive_and_its_loss_is_noticed(
    client: EtcdClient, nursery: trio.Nursery
) -> None:
    lease = await client.grant(8)
    await client.put("k", b"", lease=lease)
    lost = trio.Event()

    async def keep() -> None:
        with pytest.raises(LeaseLost):
            await client.keep_alive(lease)
        lost.set()

    nursery.start_soon(keep)
    # One that nobody renews ends by itself, which shows that more than its time has passed.
    other = await client.grant(8)
    await client.put("other", b"", lease=other)
    with trio.fail_after(60):
        while await client.get("other") is not None:
            await trio.testing.wait_all_tasks_blocked(0.05)
    assert await client.get("k") is not None
    await client.revoke(lease)
    assert await client.get("k") is None
    with trio.fail_after(60):
        await lost.wait()
    with pytest.raises(LeaseLost):
        await client.revoke(lease)
    with pytest.raises(LeaseLost):
        await client.put("k", b"", lease=lease)


async def test_a_frozen_etcd_is_unavailable_in_bounded_time(
    store: Store, client: EtcdClient
) -> None:
    await client.put("k", b"1")
    # On the same connection: a new one to a frozen etcd would fail for another reason.
    hasty = EtcdClient(client._channel, 0.3)
    store.signal(signal.SIGSTOP)
    try:
        # Below the time in which the connection's own pings would notice.
        with trio.fail_after(15):
            with pytest.raises(EtcdUnavailable) as caught:
                await hasty.get("k")
        assert caught.value.retryable
    finally:
        store.signal(signal.SIGCONT)
    assert await client.get("k") is not None


async def test_a_cancelled_call_returns_at_once(store: Store, client: EtcdClient) -> None:
    store.signal(signal.SIGSTOP)
    try:
        began = trio.current_time()
        with trio.move_on_after(0.1) as scope:
            await client.put("k", b"1")
        assert scope.cancelled_caught
        assert trio.current_time() - began < 15
    finally:
        store.signal(signal.SIGCONT)
    assert await client.put("k", b"2") > 0


async def test_no_server_at_all_is_unavailable(tmp_path: Path) -> None:
    async with open_client(f"unix:{tmp_path}/nothing", timeout=0.3) as client:
        with trio.fail_after(20):
            with pytest.raises(EtcdUnavailable):
                await client.get("k")
    with pytest.raises(EtcdUnavailable, match="closed"):
        await client.get("k")


async def test_a_killed_etcd_leaves_no_half_transaction(store: Store) -> None:
    """Each write is wholly there or not at all, and what was acknowledged is there."""
    acknowledged: set[int] = set()
    failed: set[int] = set()
    slowest = 0.0
    killed = False
    enough = trio.Event()
    numbers = iter(range(10_000_000))

    async with open_client(store.target, timeout=1.0) as client:

        async def write() -> None:
            nonlocal slowest
            while True:
                number = next(numbers)
                began = trio.current_time()
                try:
                    ops = [Put(f"{side}/{number}", b"x" * 500) for side in "abc"]
                    await client.commit(Txn([Absent(f"a/{number}")], ops))
                except EtcdUnavailable:
                    if not killed:
                        continue  # merely slow: it proves nothing
                    failed.add(number)
                    return
                finally:
                    slowest = max(slowest, trio.current_time() - began)
                acknowledged.add(number)
                if len(acknowledged) > 200:
                    enough.set()

        async with trio.open_nursery() as nursery:
            for _ in range(16):
                nursery.start_soon(write)
            with trio.fail_after(120):
                await enough.wait()
            store.signal(signal.SIGKILL)
            killed = True
            with trio.move_on_after(2):
                # Those that were waiting for the connection go on when etcd is back.
                await trio.sleep_forever()
            nursery.cancel_scope.cancel()

    assert failed, "etcd was killed between two transactions: nothing was proven"
    assert slowest < 20
    async with open_client(store.target, timeout=60) as client:
        sides = []
        for side in "abc":
            items, _ = await client.range_all(f"{side}/")
            sides.append({int(item.key[2:]) for item in items})
    assert sides[0] == sides[1] == sides[2]
    assert acknowledged <= sides[0]


async def test_status_and_snapshot(client: EtcdClient, tmp_path: Path) -> None:
    revision = await client.put("k", b"v" * 1000)
    status = await client.status()
    assert status.revision == revision
    assert status.version.startswith("3.")
    assert 0 < status.db_in_use <= status.db_size
    assert status.leader == status.member != 0
    path = tmp_path / "backup.db"
    size = await client.snapshot(path)
    data = path.read_bytes()
    assert len(data) == size
    assert hashlib.sha256(data[:-32]).digest() == data[-32:]
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        await client.snapshot(path)
    assert [name for name in os.listdir(tmp_path) if "backup" in name] == ["backup.db"]


async def test_a_full_store_says_so_and_recovers(nursery: trio.Nursery, tmp_path: Path) -> None:
    store = await start_store(nursery, tmp_path / "small", quota=8 * 1024 * 1024)
    async with open_client(store.target, timeout=60) as client:

        async def fill() -> None:
            for number in range(2000):
                await client.put(f"k/{number}", bytes(200_000))

        async def works() -> bool:
            await client.defragment()
            await client.disarm()
            try:
                return await client.put("k", b"works again") > 0
            except EtcdNoSpace:
                return False  # etcd was still removing what is forgotten

        with pytest.raises(EtcdNoSpace) as caught:
            await fill()
        assert not caught.value.retryable
        with pytest.raises(EtcdNoSpace):
            await client.commit(Txn([], [Put("another", b"")]))
        assert await client.alarms() == ["NOSPACE"]
        assert await client.delete_prefix("k/") > 0
        await client.compact((await client.status()).revision)
        await until(60, works)
        assert await client.alarms() == []


async def test_a_large_listing_is_read_in_smaller_pages(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    """Pages that would be over the limit of one answer are not an error of the caller's."""
    # 70 MB of values: more than the quota of the other tests allows on a slow disk.
    store = await start_store(nursery, tmp_path / "large", quota=8 * QUOTA)
    async with open_client(store.target, timeout=120) as client:
        async with trio.open_nursery() as writers:
            for number in range(50):
                writers.start_soon(partial(client.put, f"k/{number:02}", bytes(1_400_000)))
        items, _ = await client.range_all("k/")
    assert [item.key for item in items] == [f"k/{number:02}" for number in range(50)]
