"""A real daemon whose wall clock is wrong and then corrected, while it runs and while it does not.

What is asked is what its users see: crons go on, limits hold and are not cut short, and nobody
stands behind what came later.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.node.workflows.support import Party, party, spec
from tests.support.daemons import until
from tests.support.faketime_daemons import ClockedDaemon, require_faketime

HOUR, DAY, YEAR = 3600, 86_400, 365 * 86_400
# What a board without a battery shows when it boots.
EPOCH = 1000 - int(time.time())

pytestmark = pytest.mark.slow


class Host:
    """A daemon with its clock, and somebody who uses it."""

    def __init__(self, daemon: ClockedDaemon) -> None:
        self.daemon = daemon
        self.me: Party

    @asynccontextmanager
    async def up(self) -> AsyncIterator[None]:
        """The daemon runs in this block, and stops as a host that is shut down."""
        await trio.to_thread.run_sync(self.daemon.start)
        try:
            async with self.daemon.visitor() as client:
                if hasattr(self, "me"):
                    self.me.client = client
                else:
                    self.me = await party(self.daemon, client)
                yield
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self.daemon.stop)

    def kill(self) -> None:
        """As a power cut would."""
        store = self.daemon.etcd_pid
        self.daemon.kill()
        os.kill(store, signal.SIGKILL)

    async def set_clock(self, ahead: int) -> str:
        """Set the clock; the line of the log that tells of it."""
        mark = len(self.daemon.events)
        self.daemon.set_clock(ahead)
        return await self.told("clock stepped", mark)

    async def told(self, text: str, mark: int = 0) -> str:
        wait = partial(self.daemon.await_event, text, after=mark, seconds=30)
        return await trio.to_thread.run_sync(wait)

    async def submit(self, funcname: str, kind: str = "", **limits: int) -> str:
        kind = kind or self.me.kind
        conditions = {"colonyname": "dev", "executortype": kind}
        asked = {"funcname": funcname, "conditions": conditions, **limits}
        return str((await self.me.call("submitfuncspecmsg", spec=asked))["processid"])

    async def assign(self) -> dict[str, Any]:
        found = await self.me.call("assignprocessmsg", self.me.key, timeout=10)
        return dict(found)

    async def get(self, processid: str) -> dict[str, Any]:
        return dict(await self.me.call("getprocessmsg", processid=processid))

    async def failed(self, processid: str, seconds: float = 30) -> list[str]:
        """What a process failed of, within some seconds."""

        async def ended() -> bool:
            return bool((await self.get(processid))["state"] == 3)

        await until(seconds, ended, step=0.2)
        return list((await self.get(processid))["errors"])

    async def add_cron(self, name: str, kind: str, **when: Any) -> str:
        flow = {"colonyname": "dev", "functionspecs": [spec("a", kind=kind)]}
        cron = {
            "colonyname": "dev",
            "name": name,
            "interval": -1,
            "cronexpression": "",
            "workflowspec": json.dumps(flow),
            **when,
        }
        return str((await self.me.call("addcronmsg", cron=cron))["cronid"])

    async def cron(self, cronid: str) -> dict[str, Any]:
        return dict(await self.me.call("getcronmsg", cronid=cronid))

    async def runs(self, cronid: str, graphid: str, seconds: float = 30) -> None:
        """A cron starts another workflow than this one, within some seconds."""

        async def ran() -> bool:
            return bool((await self.cron(cronid))["prevprocessgraphid"] != graphid)

        await until(seconds, ran, step=0.2)

    async def doctor(self) -> list[dict[str, Any]]:
        found = await trio.to_thread.run_sync(lambda: self.daemon.colony("doctor", "--json"))
        return [check for check in json.loads(found.stdout)["checks"] if check["name"] == "clock"]


@pytest.fixture
def make_host(tmp_path: Path) -> Callable[[int], Host]:
    require_faketime()

    def make(ahead: int) -> Host:
        daemon = ClockedDaemon(tmp_path, "dev", ahead)
        daemon.environ["COLONYD_FEDERATION__ENABLED"] = "false"
        return Host(daemon)

    return make


Make = Callable[[int], Host]


def wire(moment: str) -> float:
    """Unix seconds of a time on the wire, such as "2026-11-29T15:00:00.5Z"."""
    import datetime

    return datetime.datetime.fromisoformat(moment.replace("Z", "+00:00")).timestamp()


@pytest.mark.parametrize("ahead", [YEAR, HOUR])
@pytest.mark.parametrize(
    ("running", "reboot"),
    [(True, False), (False, False), (False, True)],
    ids=["running", "stopped", "rebooted"],
)
async def test_a_clock_that_was_ahead_is_corrected(
    make_host: Make, ahead: int, running: bool, reboot: bool
) -> None:
    """While the daemon runs, or while the host is off: what was made meanwhile is as any other."""
    host = make_host(ahead)
    async with host.up():
        every = await host.add_cron("every", "nobody", interval=2)
        minutely = await host.add_cron("minutely", "nobody", cronexpression="0/2 * * * * *")
        hourly = await host.add_cron("hourly", "nobody", cronexpression="@hourly")
        leased = await host.submit("leased", maxexectime=10, maxretries=0)
        assert (await host.assign())["processid"] == leased
        waits = await host.submit("waits", "nobody", maxwaittime=10)
        first, second = await host.submit("first"), await host.submit("second")
        if running:
            mark = len(host.daemon.events)
            await host.set_clock(0)
            assert "crons=3" in await host.told("times mended", mark)
            await host.told("crons=0 generators=0 processes=", mark)
            (_, told) = await host.doctor()
            shown = "365 d" if ahead == YEAR else "1 h"
            assert f"set back by {shown} at 20" in told["detail"], told
            assert re.search("3 crons, 0 generators, [45] processes", told["detail"]), told
            await _goes_on(host, every, minutely, hourly, leased, waits, [first, second])
    if not running:
        host.daemon.set_clock(0)
        if reboot:
            host.daemon.reboot()
        async with host.up():
            await _goes_on(host, every, minutely, hourly, leased, waits, [first, second])
    async with host.up():
        # It is as in the store: another start has nothing to mend.
        assert wire((await host.cron(hourly))["nextrun"]) <= time.time() + HOUR


async def _goes_on(
    host: Host, every: str, minutely: str, hourly: str, leased: str, waits: str, order: list[str]
) -> None:
    graphs = [(await host.cron(cronid))["prevprocessgraphid"] for cronid in (every, minutely)]
    order = [*order, await host.submit("newer")]
    assert [(await host.assign())["processid"] for _ in order] == order
    await host.runs(every, graphs[0])
    await host.runs(minutely, graphs[1])

    async def mended() -> bool:
        deadlines = [
            (await host.get(leased))["execdeadline"],
            (await host.get(waits))["waitdeadline"],
        ]
        return all(wire(moment) <= time.time() + 30 for moment in deadlines)

    await until(20, mended)
    assert wire((await host.cron(hourly))["nextrun"]) <= time.time() + HOUR
    assert await host.failed(leased, 40) == ["Maximum execution time limit exceeded"]
    assert await host.failed(waits, 40) == ["Maximum waiting time limit exceeded"]


@pytest.mark.parametrize("how", ["running", "stopped", "killed at once"])
async def test_a_jump_forward_cuts_no_lease_short(make_host: Make, how: str) -> None:
    """Neither a lease nor a wait ends for it, nor at a later start; new ones end in their time."""
    host = make_host(-YEAR)
    daily = ""
    async with host.up():
        leased = await host.submit("leased", maxexectime=HOUR, maxretries=0)
        assert (await host.assign())["processid"] == leased
        waits = await host.submit("waits", "nobody", maxwaittime=HOUR)
        daily = await host.add_cron("daily", "nobody", interval=DAY)
        if how == "running":
            await host.set_clock(0)
            await _keeps(host, leased, waits, daily)
    if how == "stopped":
        host.daemon.set_clock(0)
    for _ in range(2):
        async with host.up():
            if how == "killed at once":
                # Between the step and whoever notices it.
                host.daemon.set_clock(0)
                await trio.to_thread.run_sync(host.kill)
                how = "killed"
                continue
            await _keeps(host, leased, waits, daily)
            soon = await host.submit("soon", "nobody", maxwaittime=1)
            assert await host.failed(soon) == ["Maximum waiting time limit exceeded"]


async def _keeps(host: Host, leased: str, waits: str, daily: str) -> None:
    """What was given before the step has what was left of it, by the clock as it is now."""

    async def mended() -> bool:
        deadlines = [
            (await host.get(leased))["execdeadline"],
            (await host.get(waits))["waitdeadline"],
            (await host.cron(daily))["nextrun"],
        ]
        left = [wire(moment) - time.time() for moment in deadlines]
        return all(HOUR - 300 < seconds <= HOUR + 3 for seconds in left[:2]) and (
            DAY - 300 < left[2] <= DAY + 3
        )

    await until(30, mended, step=0.2)
    assert (await host.get(leased))["state"] == 1
    assert (await host.get(waits))["state"] == 0
    assert not (await host.cron(daily))["prevprocessgraphid"], "nobody lived through that day"


async def test_a_board_without_a_battery(make_host: Make) -> None:
    """It boots in 1970 each time and is corrected after seconds: work goes on before and after."""
    host = make_host(0)
    async with host.up():
        every = await host.add_cron("every", "nobody", interval=2)
        yearly = await host.add_cron("yearly", "nobody", cronexpression="0 0 0 1 1 ?")
        old = await host.submit("old")
        waits = await host.submit("waits", "nobody", maxwaittime=HOUR)
        next_year = (await host.cron(yearly))["nextrun"]
    host.daemon.set_clock(EPOCH)
    host.daemon.reboot()
    async with host.up():
        graph = (await host.cron(every))["prevprocessgraphid"]
        await host.runs(every, graph)
        assert wire((await host.cron(yearly))["nextrun"]) < 366 * DAY
        checks = await host.doctor()
        assert any("behind the last time that the store saw" in each["detail"] for each in checks)
        newer = await host.submit("newer")
        await host.set_clock(0)
        newest = await host.submit("newest")
        order = [old, newer, newest]
        assert [(await host.assign())["processid"] for _ in order] == order
        graph = (await host.cron(every))["prevprocessgraphid"]
        await host.runs(every, graph)
        assert (await host.cron(yearly))["nextrun"] == next_year
        assert not (await host.cron(yearly))["prevprocessgraphid"]
        assert (await host.get(waits))["state"] == 0
        left = wire((await host.get(waits))["waitdeadline"]) - time.time()
        assert HOUR - 300 < left <= HOUR + 3
        (_, told) = await host.doctor()
        assert "set forward by" in told["detail"]
        assert told["ok"] is None
