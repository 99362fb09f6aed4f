"""Deadlines: many at once, and across kills; every process meets its end once, for its reason."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from cli.core.client import RpcError, encode
from node.model.types import Conditions, FunctionSpec
from node.processes.deadlines import expire
from node.processes.spec import build_process
from tests.node.workflows.test_service import Party, kill_at, party, patient, post
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
