"""Log lines on a real etcd: what a page of them and a search cost, whatever else was logged."""

from __future__ import annotations

from typing import Any

import pytest

from node.etcd.client import EtcdClient, TxnResult
from node.etcd.pages import whole
from node.etcd.txn import Put, Txn
from node.model.types import DAY, SECOND, Log
from node.store import keys
from node.streams import logs as logs
from tests.support.asked import counting

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
    asked = counting(client, monkeypatch)
    for size in (1_000, 8_000):
        colony = f"c{size}"
        await log(client, colony, size)
        prefix, last = keys.executor_logs(colony, "cam"), FIRST + 5 * SECOND + (size - 1) * APART

        async def lines(*, latest: bool, **more: Any) -> tuple[list[str], int]:
            asked.forget()
            given = {"since": 0, "now": NOW} | more
            found = await whole(logs.lines(client, prefix, 10, latest=latest, **given))  # noqa: B023
            return [line.message for line in found], asked.counted

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
            asked.forget()
            hits = await whole(
                logs.search(client, colony, text, 1, since=NOW - 2 * DAY, until=last + 1)
            )
            assert [hit.message for hit in hits] == [text]
            assert asked.counted <= many, "not of a bucket"


async def test_all_lines_are_given_page_by_page_in_few_reads(
    client: EtcdClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = counting(client, monkeypatch)
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
    assert asked.reads <= 80


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
    found = await whole(logs.search(client, "c", "at ", 1_000, since=NOW - DAY, until=NOW))
    assert [line.timestamp for line in found] == [NOW + 3 * SECOND, *times], "not what is too old"
    last = f"at {times[-1]}"
    found = await whole(logs.search(client, "c", last, 1, since=NOW - DAY, until=NOW))
    assert [line.timestamp for line in found] == [times[-1]]


async def test_a_search_reads_long_lines_a_few_at_a_time(
    client: EtcdClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(40):
        line = Log("", "c", "cam", f"line {number} " + "x" * 200_000, NOW - number * SECOND)
        await logs.write(client, line)
    commit, sizes = client.commit, list[int]()

    async def measured(txn: Txn) -> TxnResult:
        result = await commit(txn)
        sizes.append(sum(len(kv.value) for kvs in result.responses for kv in kvs))
        return result

    monkeypatch.setattr(client, "commit", measured)
    for text, wanted in (("line", 40), ("line 39 ", 1), ("nowhere", 0)):
        found = logs.search(client, "c", text, 100, since=NOW - DAY, until=NOW)
        pages = [page async for page in found]
        assert sum(map(len, pages)) == wanted
        assert max(sizes) < 2 << 20, "40 lines of 200 kB in one answer"
        assert max(map(len, pages), default=0) <= 8
