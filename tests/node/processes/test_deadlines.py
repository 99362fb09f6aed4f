"""Deadlines across kills: whatever dies, every process meets its end once, for the right reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
import trio

from cli.core.client import RpcError, encode
from tests.node.workflows.test_service import Party, kill_at, party, patient, post
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
