"""Two real colonies whose wall clocks are far apart, and one of them starts anew.

What is asked is what a user sees: a submission reaches its peer at once, not when the clocks meet.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.support.daemons import until
from tests.support.faketime_daemons import ClockedDaemon, require_faketime
from tests.support.sides import Side

AHEAD = 700  # seconds: more than a message may be from the future, and than most are valid

pytestmark = pytest.mark.slow


async def test_the_first_message_after_a_start_is_made_by_the_peers_clock(tmp_path: Path) -> None:
    """Before, it was made by our own: refused, and after a kill the same bytes until they hold."""
    require_faketime()
    ant, bee = ClockedDaemon(tmp_path, "ant", AHEAD), ClockedDaemon(tmp_path, "bee")
    try:
        async with trio.open_nursery() as nursery:
            for daemon in (ant, bee):
                nursery.start_soon(partial(trio.to_thread.run_sync, daemon.start))
        async with ant.visitor() as here, bee.visitor() as there:
            origin, far = Side(ant, here), Side(bee, there)
            await far.hire()
            await origin.find(far)
            await far.find(origin)
            await origin.trust(far)
            await far.trust(origin)
            for _ in range(2):
                await trio.to_thread.run_sync(bee.stop)
                # It waits in the outbox, so that it is what is sent first after the start.
                conditions = {"colonyname": "bee", "executortype": "cli"}
                spec = {"funcname": "f", "conditions": conditions}
                submitted = await origin.call("submitfuncspecmsg", spec=spec)
                ant.kill()
                await trio.to_thread.run_sync(bee.start)
                await trio.to_thread.run_sync(ant.start)
                assert await taken(origin, submitted["processid"]) == (1, "")
    finally:
        for daemon in (ant, bee):
            daemon.stop()


async def taken(origin: Side, pid: str) -> tuple[int, str]:
    """Wait until the peer has a process; how many tries it took, and what went wrong last."""

    async def accepted() -> Any:
        forward = await origin.patient("getforwardmsg", processid=pid)
        return forward if forward["state"] == "accepted" else None

    forward: Any = await until(60, accepted)
    return forward["attempts"], forward["lasterror"]
