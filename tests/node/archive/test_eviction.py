"""When closed work leaves a store by itself, and which: real etcd, a clock of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from node.archive.chain import records, verify
from node.host.config import AUTO, HistoryConfig, Keep
from tests.node.archive.support import Place, place
from tests.support.processes import retention as retention_of

pytestmark = pytest.mark.slow


def full(here: Place, percent: int, quota: int = 100_000) -> None:
    """Have the store's use be that much of its quota, as if etcd had said so."""
    pressure = here.client.pressure
    pressure.quota = quota
    pressure.take_in(size=quota, used=percent * quota // 100, alarm=False, counted=pressure.since)


async def forgotten(here: Place) -> None:
    """Have the store forget what was overwritten, and the daemon see that."""
    await here.client.compact((await here.client.status()).revision)


def history(tmp_path: Path) -> list[str]:
    return [it["id"] for it in records(tmp_path / "history" / "dev") if it["kind"] == "process"]


async def test_what_ended_first_leaves_a_store_that_is_half_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.archive.eviction._SOME", 4)
    monkeypatch.setattr("node.archive.eviction._SEEN", 0.0)
    async with place(tmp_path) as (here, _):
        ids = []
        for day in range(30):
            here.days = day
            ids.append((await here.closed(str(day))).processid)
        retention = retention_of(here.node, tmp_path, HistoryConfig(keep=AUTO))
        full(here, 49)
        assert await retention.evict() == 0
        full(here, 50)
        moved = await retention.evict()
        # A tenth of the quota, 10,000 bytes, and no more than one round beyond.
        assert 5 <= moved <= 20
        assert sorted(history(tmp_path)) == sorted(ids[:moved])
        # What left is in use until the store has forgotten it, and not moved for twice.
        full(here, 50)
        assert await retention.evict() == 0
        await forgotten(here)
        assert await retention.evict() == 0
        full(here, 60)
        more = await retention.evict()
        assert sorted(history(tmp_path)) == sorted(ids[: moved + more])
        assert more > moved
        assert verify(tmp_path / "history" / "dev").problems == []
        for name in ids:
            there = await here.node.processes.load("dev", name)
            assert (there is None) == (name in ids[: moved + more])


async def test_what_has_to_stay_does_not_keep_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.archive.eviction._SOME", 2)
    async with place(tmp_path) as (here, _):
        ids = []
        for day in range(20):
            here.days = day
            ids.append((await here.closed(str(day))).processid)
        hooks = here.node.processes.hooks
        stays = set(ids[:10])
        hooks.removable = (  # type: ignore[method-assign]
            lambda process: "owed" if process.processid in stays else ""
        )
        retention = retention_of(here.node, tmp_path, HistoryConfig(keep=AUTO))
        full(here, 55)
        assert await retention.evict() > 0
        assert set(history(tmp_path)) <= set(ids[10:])


async def test_the_young_leave_only_when_work_would_be_refused(tmp_path: Path) -> None:
    async with place(tmp_path) as (here, _):
        one = (await here.closed("one")).processid
        retention = retention_of(here.node, tmp_path, HistoryConfig(keep=AUTO))
        full(here, 60)
        assert await retention.evict() == 0
        assert history(tmp_path) == []
        full(here, 75)
        with trio.fail_after(30):
            assert await retention.evict() == 1
        assert history(tmp_path) == [one]


async def test_forever_is_for_ever(tmp_path: Path) -> None:
    async with place(tmp_path) as (here, _), trio.open_nursery() as nursery:
        one = (await here.closed("one")).processid
        retention = retention_of(here.node, tmp_path, HistoryConfig(keep=Keep(0)))
        here.days = 4000
        full(here, 94)
        with trio.move_on_after(1):
            await retention._sweeps()
        assert await here.node.processes.load("dev", one) is not None
        # Once the setting is another, it leaves.
        nursery.start_soon(retention._sweeps)
        retention.config = HistoryConfig(keep=AUTO)
        retention._reconfigured.set()
        with trio.fail_after(60):
            while await here.node.processes.load("dev", one) is not None:  # noqa: ASYNC110
                await trio.sleep(0.2)
        nursery.cancel_scope.cancel()
