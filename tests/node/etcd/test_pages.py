"""Ranges of the store read in pages, and the index of closed processes, on a real etcd."""

from __future__ import annotations

import time
from contextlib import aclosing
from typing import Any

import msgspec
import pytest

from node.etcd import pages
from node.etcd.client import EtcdClient
from node.etcd.txn import Op, Put, Txn
from node.handlers.work import listings as listings
from node.host.clock import Clock
from node.model.codec import pack
from node.model.types import SECOND, Colony, Process, State
from node.processes.backfill import IndexBackfill
from node.processes.service import Processes
from node.rpc.requests import GetProcesses
from node.store import keys
from node.store.directory import Directory
from node.store.work import processes as store
from tests.support.asked import counting
from tests.support.daemons import seeded_dice
from tests.support.processes import make

NOW = 1_700_000_000 * SECOND
LIMITS = (1, 3, 50)


def times() -> dict[str, list[int]]:
    """Times of keys, Unix ns, as clients and clocks may bring them about."""
    dice = seeded_dice()
    return {
        "none": [],
        "burst": [NOW - SECOND] * 40,
        "dense": [NOW - number * 10**6 for number in range(120)],
        "steady": [NOW - number * 7 * SECOND for number in range(60)],
        "sparse": sorted(dice.randrange(0, NOW) for _ in range(25)),
        "long ago, then now": [5, 6, 7, NOW - 3, NOW - 2, NOW - 1],
        "ahead": [NOW + number * 40 * SECOND for number in range(30)],
        "edges": [0, NOW, keys.ascending(0)],
    }


async def put(client: EtcdClient, names: list[str]) -> None:
    for start in range(0, len(names), 100):
        await client.commit(Txn([], [Put(name, b"v") for name in names[start : start + 100]]))


def names_of(found: list[Any]) -> list[str]:
    return [kv.key for kv in found]


@pytest.mark.slow
async def test_whatever_the_times_all_keys_come_once_and_in_order(client: EtcdClient) -> None:
    for number, (kind, known) in enumerate(times().items()):
        up, down = f"/up/{number}/", f"/down/{number}/"
        ups = sorted(f"{up}{when:020d}/{place:03}" for place, when in enumerate(known))
        downs = sorted(
            f"{down}{keys.descending(when)}/{place:03}" for place, when in enumerate(known)
        )
        await put(client, ups + downs)
        for limit in LIMITS:
            for since in (-1, 6, NOW - 10 * SECOND):
                wanted = [name for name in ups if pages.number_of(name, up) > since]
                found = pages.oldest_first(client, up, NOW, since, limit=limit, first=2)
                assert names_of(await pages.whole(found)) == wanted, (kind, limit, since)
                wanted = [
                    name for name in downs if keys.ascending(pages.number_of(name, down)) > since
                ]
                found = pages.newest_first(client, down, NOW, since, limit=limit)
                assert names_of(await pages.whole(found)) == wanted, (kind, limit, since)
                after = [name for name in ups if pages.number_of(name, up) > since]
                for last in (0, NOW - 90 * SECOND, 6):
                    asked = client, up, NOW, since, limit
                    begin, there = await pages.last_begin(*asked, last=last)
                    from_there = [name for name in ups if pages.number_of(name, up) >= begin]
                    assert begin > since
                    assert there == len(from_there) >= min(limit, len(after)), (kind, limit, since)
                found = pages.oldest_first(
                    client, up, NOW, since, limit=limit, begins=[5, NOW - 3, NOW - 90 * SECOND]
                )
                assert names_of(await pages.whole(found)) == after, (kind, limit, since)


async def test_pages_grow_by_what_is_in_them_and_end_where_they_should(client: EtcdClient) -> None:
    names = [f"/k/{number:03}" for number in range(30)]
    for number, name in enumerate(names):
        await client.put(name, bytes(400_000 if number < 6 else 10))
    sizes = [len(page) async for page in pages.values(client, [*names, "/k/none"])]
    assert sum(sizes) == 30
    assert sizes[0] == 8
    assert sizes[1] < 8, "large values make small pages"
    found = await pages.whole(pages.below(client, "/k/", start="/k/004", limit=20, keys_only=True))
    assert names_of(found) == names[4:24]
    async with aclosing(pages.below(client, "/k/")) as all_of_them:
        async for page in all_of_them:
            assert names_of(page) == names[:8]
            break


async def test_the_keys_that_etcd_counts_grow_with_what_is_read(
    client: EtcdClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = counting(client, monkeypatch)
    monkeypatch.setattr(pages, "_KEYS", 50)
    for size in (1_000, 4_000):
        prefix = f"/{size}/"
        names = [f"{prefix}{number * 10**9:020d}" for number in range(size)]
        await put(client, names)
        asked.forget()
        items, _ = await client.range_all(prefix, page=50)
        assert names_of(items) == names
        assert asked.counted <= 10 * size, (
            "all of one range: half the number of pages, for each key"
        )
        for keys_only in (False, True):
            asked.forget()
            found = pages.below(client, prefix, keys_only=keys_only)
            assert names_of(await pages.whole(found)) == names
            assert asked.counted <= 10 * size


def ended(label: str, now: int) -> tuple[Process, list[Op]]:
    """A closed process, and what it leaves in the store."""
    one = make()
    one.spec = msgspec.structs.replace(one.spec, label=label)
    one.state = State.RUNNING
    step = store.close(one, 0, State.FAILED, now)
    return step.process, [op for op in step.txn.success if isinstance(op, Put)]


async def test_an_index_is_completed_for_what_an_older_colonyd_closed(client: EtcdClient) -> None:
    directory = Directory()
    colony = pack(Colony("c" * 64, "dev"))
    directory.apply(keys.colony("dev"), colony, 1)
    await client.put(keys.colony("dev"), colony)
    processes = Processes(client, Clock(time.time_ns))
    now, mine = time.time_ns(), list[str]()
    for number in range(70):
        label = "rare" if number % 35 == 4 else "bulk"
        process, ops = ended(label, now - number)
        old = [Put(op.key, _older(op)) for op in ops if isinstance(op, Put)]
        await client.commit(Txn([], [op for op in old if "/closedby/" not in op.key]))
        if label == "rare":
            mine.append(process.processid)
    for fields in ({"label": "rare"}, {"label": "none"}):
        request = GetProcesses("dev", 50, State.FAILED, **fields)
        wanted = mine if fields["label"] == "rare" else []
        assert await listings.matching(processes, request, now) == wanted, "read as before"
    assert await IndexBackfill(client, directory).complete("dev") == 70
    assert await client.count(f"{keys.ROOT}closedby/dev/") == 3 * 70 + 1
    assert await IndexBackfill(client, directory).complete("dev") == 0
    request = GetProcesses("dev", 50, State.FAILED, label="rare")
    assert await listings.matching(processes, request, now) == mine
    for page in [page async for page in pages.below(client, keys.processes("dev"))]:
        for kv in page:
            there = await processes.load("dev", kv.key.rpartition("/")[2])
            assert there is not None
            assert (await client.commit(store.remove(*there))).succeeded
    assert await client.count(f"{keys.ROOT}closed/") == 0
    assert await client.count(f"{keys.ROOT}closedby/dev/") == 1, "nothing but that it is complete"


def _older(op: Put) -> bytes:
    """The value of a key as it was before it had more."""
    if "/closed/" not in op.key:
        return op.value
    return pack(["cli", "rare" if b"rare" in op.value else "bulk", "ann"])
