"""What SDKs written for the upstream server rely on, asked of a real daemon."""

from __future__ import annotations

from typing import Any

from tests.support import Daemon
from tests.test_workflows import Party, party


async def _submit(me: Party, **more: Any) -> dict[str, Any]:
    conditions = {"colonyname": me.colony, "executortype": me.kind}
    spec = {"funcname": "f", "conditions": conditions} | more
    return dict(await me.call("submitfuncspecmsg", spec=spec))


async def _get(me: Party, processid: str) -> dict[str, Any]:
    return dict(await me.call("getprocessmsg", processid=processid))


async def _name(me: Party) -> str:
    executor = await me.call("getexecutorbyidmsg", executorid=me.key.id)
    return str(executor["executorname"])


async def test_a_repeated_close_counts_once_in_statistics(lone_daemon: Daemon) -> None:
    async with lone_daemon.client() as client:
        me = await party(lone_daemon, client)
        name = await _name(me)
        fun = {"executorname": name, "colonyname": me.colony, "funcname": "f"}
        await me.call("addfunctionmsg", me.key, fun=fun)
        for _ in range(2):
            await _submit(me)
            process = await me.assign()
            for _ in range(3):
                await me.close(process, "out")
        (function,) = await me.call("getfunctionsmsg", executorname=name)
        assert function["counter"] == 2
