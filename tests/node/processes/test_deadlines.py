"""Deadlines: many at once, and across kills; every process meets its end once, for its reason."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from colonyd.rpc import RpcError, encode
from node.etcd.errors import EtcdUnavailable
from node.model.types import Conditions, FunctionSpec, Running, Waiting
from node.processes.deadlines import expire
from node.processes.queue import QueueEntry
from node.processes.spec import build_process
from tests.node.workflows.support import Party, kill_at, party, patient, post
from tests.support.clocked import ANN, World, world
from tests.support.daemons import Daemon, seeded_dice, until

Make = Callable[..., Daemon]


@pytest.mark.slow
async def test_deadlines_hold_across_kills(make_daemon: Make) -> None:
    """Some wait in vain, some are handed out to an executor that never closes them."""
    dice = seeded_dice()
    daemon = make_daemon("dev", COLONYD_FEDERATION__ENABLED="false").start()
    async with daemon.client() as client:
        me = await party(daemon, client)
        waiting = [await _submit(me, me.kind + "-nobody", maxwaittime=1) for _ in range(10)]
        running = [
            await _submit(me, me.kind, maxwaittime=-1, maxexectime=1, maxretries=1)
            for _ in range(10)
        ]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_take_and_forget, me)
            for _ in range(3):
                await kill_at(daemon, dice.random() * 1.5, below=dice.random() < 0.4)

            async def all_ended() -> bool:
                listing = encode("getcolonystatsmsg", {"colonyname": "dev"}, me.user)
                counts = await patient(client, "getcolonystatsmsg", listing)
                return bool(counts["failedprocesses"] == len(waiting) + len(running))

            await until(60, all_ended)
            nursery.cancel_scope.cancel()
        for processid in waiting:
            process = await me.call("getprocessmsg", processid=processid)
            assert process["errors"] == ["Maximum waiting time limit exceeded"]
            assert process["retries"] == 0
        for processid in running:
            process = await me.call("getprocessmsg", processid=processid)
            assert process["errors"] == ["Maximum execution time limit exceeded"]
            assert process["retries"] == 1
        counts = await me.call("getcolonystatsmsg")
        assert (counts["waitingprocesses"], counts["runningprocesses"]) == (0, 0)


async def _submit(me: Party, kind: str, **limits: int) -> str:
    spec: dict[str, Any] = {
        "funcname": "f",
        "conditions": {"colonyname": "dev", "executortype": kind},
        **limits,
    }
    return str((await me.call("submitfuncspecmsg", spec=spec))["processid"])


async def _take_and_forget(me: Party) -> None:
    while True:
        body = encode("assignprocessmsg", {"colonyname": "dev", "timeout": 2}, me.key)
        try:
            await post(me.client, "assignprocessmsg", body)
        except (httpx.TransportError, RpcError):
            await trio.sleep(0.05)


@pytest.fixture
async def dev(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        made.steady = 10**12
        await made.start()
        yield made


async def test_late_runs_go_before_late_waits_and_several_end_at_the_same_time(
    dev: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run is late from the start, another becomes late while many waits are ended."""
    node, ended = dev.node, list[str]()
    runs = [await _make(dev, f"run {seconds}", maxexectime=seconds) for seconds in (60, 100)]
    assert {(await dev.assign()).processid for _ in runs} == {*runs}
    waits = [await _make(dev, f"wait {number}", maxwaittime=50) for number in range(200)]
    dev.advance(70)
    under_way = most = 0
    change = node.processes.change_quietly

    async def counting(colony: str, processid: str, step: Any) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await change(colony, processid, step)
        under_way -= 1
        ended.append(processid)
        if len(ended) == 20:
            dev.advance(40)

    monkeypatch.setattr(node.processes, "change_quietly", counting)
    await expire(node.processes, node.assigner)
    assert sorted(ended) == sorted(runs + waits)
    assert most > 1
    assert ended.index(runs[0]) < 2 * most
    assert ended.index(runs[1]) < 20 + 2 * most
    for processid, reason in [(runs[1], "execution"), (waits[-1], "waiting")]:
        found = await node.processes.load("dev", processid)
        assert found is not None
        assert found[0].errors == [f"Maximum {reason} time limit exceeded"]


async def _make(dev: World, name: str, **limits: Any) -> str:
    conditions = Conditions("dev", executortype="cli")
    spec = FunctionSpec(funcname="f", conditions=conditions, **limits)
    process = build_process(
        spec, processid=name, initiatorid=ANN, initiatorname="ann", colonyname="dev", now=dev.now
    )
    return (await dev.node.processes.submit(process, b"")).processid


@pytest.mark.parametrize("late", ["wait", "run"])
async def test_a_store_that_is_away_ends_the_round_and_what_is_left_comes_up_again(
    dev: World, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    """So it is if another failure follows, and if more is late than one step looks at."""
    node, tried, kept = dev.node, list[str](), list[Any]()
    ids = [f"{number:064}" for number in range(3000)]
    for number, pid in enumerate(ids):
        if late == "wait":
            waiting = Waiting([], "", 0, 0, 10 + number, "", "ann")
            node.processes.queue.add(QueueEntry(number, pid, 1, "dev", "cli", waiting))
        else:
            node.processes.running.add("dev", pid, Running("x", "cli", 1, 10, "", "ann"), 1)
    dev.advance(70)

    async def failing(colony: str, processid: str, step: Any) -> None:
        tried.append(processid)
        away = len(tried) <= 8
        await trio.lowlevel.checkpoint()
        raise EtcdUnavailable("away") if away else ValueError("odd")

    monkeypatch.setattr(node.processes, "change_quietly", failing)
    for late_ones in (node.processes.queue, node.processes.running):
        monkeypatch.setattr(late_ones, "again", _noting(kept, late_ones.again))
    with pytest.raises(EtcdUnavailable):
        await expire(node.processes, node.assigner)
    assert len(tried) < 100
    assert len(kept) <= 1024 + len(tried), "it looks no further"
    ended = list[str]()

    async def ending(colony: str, processid: str, step: Any) -> None:
        await trio.lowlevel.checkpoint()
        ended.append(processid)

    monkeypatch.setattr(node.processes, "change_quietly", ending)
    await expire(node.processes, node.assigner)
    assert sorted(ended) == ids


def _noting(kept: list[Any], again: Callable[[Any], None]) -> Callable[[Any], None]:
    def note(late: Any) -> None:
        kept.append(late)
        again(late)

    return note
