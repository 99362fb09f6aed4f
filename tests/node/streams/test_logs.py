"""Log lines on a real etcd: what a page of them and a search cost, whatever else was logged."""

from __future__ import annotations

from typing import Any

import pytest

from node.etcd.client import EtcdClient, Range
from node.etcd.pages import whole
from node.etcd.txn import Put, Txn
from node.model.types import DAY, SECOND, Log
from node.store import keys
from node.streams import logs as logs

NOW = 1_700_000_000 * SECOND
FIRST = NOW - DAY
APART = SECOND


async def log(client: EtcdClient, colony: str, count: int) -> None:
    """Log a line each second, from some seconds after FIRST on."""
    ops: list[Put] = []
    for number in range(count):
        time = FIRST + 5 * SECOND + number * APART
        ops += logs.puts(Log("", colony, "cam", f"line {number}", time))
    for start in range(0, len(ops), 100):
        await client.commit(Txn([], ops[start : start + 100]))


async def test_a_page_costs_what_it_gives(
    client: EtcdClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, counted = client.range, 0

    async def counting(*args: Any, **more: Any) -> Range:
        nonlocal counted
        page = await read(*args, **more)
        counted += page.count
        return page

    monkeypatch.setattr(client, "range", counting)
    for size in (1_000, 8_000):
        colony = f"c{size}"
        await log(client, colony, size)
        prefix, last = keys.executor_logs(colony, "cam"), FIRST + 5 * SECOND + (size - 1) * APART

        async def lines(*, latest: bool, **more: Any) -> tuple[list[str], int]:
            nonlocal counted
            counted = 0
            given = {"since": 0, "now": NOW} | more
            found = await whole(logs.lines(client, prefix, 10, latest=latest, **given))  # noqa: B023
            return [line.message for line in found], counted

        newest = [f"line {number}" for number in range(size - 10, size)]
        found, cost = await lines(latest=False, begins=[FIRST])
        assert found == [f"line {number}" for number in range(10)]
        assert cost <= 100, "not of all lines"
        assert (await lines(latest=False))[0] == found, "without a hint, too"
        found, cost = await lines(latest=True, last=last + 3 * SECOND)
        assert (found, cost <= 100) == (newest, True)
        found, cost = await lines(latest=True, now=last + 1, last=FIRST)
        assert (found, cost <= 100) == (newest, True)
        assert (await lines(latest=True))[0] == newest
        found, cost = await lines(latest=False, since=last - 10 * APART)
        assert (found, cost <= 100) == (newest, True)
        for text, many in ((f"line {size - 1}", 1_100), (f"line {size - 100}", 1_500)):
            counted = 0
            hits = await logs.search(client, colony, text, 1, since=NOW - 2 * DAY, until=last + 1)
            assert [hit.message for hit in hits] == [text]
            assert counted <= many, "not of a bucket"


async def test_all_lines_are_given_page_by_page_in_few_reads(
    client: EtcdClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, reads = client.range, 0

    async def counting(*args: Any, **more: Any) -> Range:
        nonlocal reads
        reads += 1
        return await read(*args, **more)

    monkeypatch.setattr(client, "range", counting)
    await log(client, "c", 2_000)
    prefix, since, given = keys.executor_logs("c", "cam"), 0, list[str]()
    while True:
        found = await whole(
            logs.lines(client, prefix, 500, since=since, now=NOW, latest=False, begins=[FIRST])
        )
        if not found:
            break
        given += [line.message for line in found]
        since = found[-1].timestamp
    assert given == [f"line {number}" for number in range(2_000)]
    assert reads <= 80


async def test_a_search_goes_on_through_buckets_that_are_full_and_empty(
    client: EtcdClient,
) -> None:
    times = [NOW - number * 10**9 for number in (*range(300), *range(40_000, 40_300))]
    ops = [
        op
        for time in (NOW + 3 * SECOND, *times, NOW - DAY)
        for op in logs.puts(Log("", "c", f"cam{time % 7}", f"at {time}", time))
    ]
    for start in range(0, len(ops), 100):
        await client.commit(Txn([], ops[start : start + 100]))
    found = await logs.search(client, "c", "at ", 1_000, since=NOW - DAY, until=NOW)
    assert [line.timestamp for line in found] == [NOW + 3 * SECOND, *times], "not what is too old"
    found = await logs.search(client, "c", f"at {times[-1]}", 1, since=NOW - DAY, until=NOW)
    assert [line.timestamp for line in found] == [times[-1]]
