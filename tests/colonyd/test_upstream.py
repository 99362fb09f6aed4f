"""Worker and client at a server of upstream: where `COLONIES_UPSTREAM_URL` names one that runs.

`COLONIES_UPSTREAM_KEY` is the key of its owner. `scripts/bench --upstream` wants the same two.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

import anyio
import pytest

from colonyd import Client, Context, PrivateKey, ProcessFailed, Settings, Worker, Workflow, task
from colonyd.rpc import RpcClient

URL, KEY = os.environ.get("COLONIES_UPSTREAM_URL", ""), os.environ.get("COLONIES_UPSTREAM_KEY", "")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not URL, reason="COLONIES_UPSTREAM_URL names no server of upstream"),
]


async def colony_at(url: str, key: str) -> Mapping[str, str]:
    """Make a colony with a user there; return the variables that name them."""
    owner, user = PrivateKey.generate(), PrivateKey.generate()
    name = f"try-{secrets.token_hex(4)}"
    async with RpcClient(url) as client:
        colony = {"colonyid": owner.id, "name": name}
        await client.call("addcolonymsg", {"colony": colony}, PrivateKey.from_hex(key))
        member = {"colonyname": name, "userid": user.id, "name": "u", "email": "", "phone": ""}
        await client.call("addusermsg", {"user": member}, owner)
    return {
        "COLONIES_COLONY_NAME": name,
        "COLONIES_COLONY_PRVKEY": owner.hex,
        "COLONIES_PRVKEY": user.hex,
    }


def worker_of(settings: Settings, state: Path, events: list[str]) -> Worker:
    report = lambda event, details: events.append(event)  # noqa: E731
    worker = Worker("w", settings=settings, state=state, slots=4, report=report)

    @worker.function
    def add(*numbers: int) -> int:
        return sum(numbers)

    @worker.function
    async def told(context: Context) -> str:
        context.log("line")
        await context.attribute("colour", "red")
        await context.output("so far")
        return context.id

    @worker.function
    async def forever() -> None:
        await anyio.sleep_forever()

    return worker


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_worker_and_client_at_upstream(tmp_path: Path, backend: str) -> None:
    async def main() -> None:
        environ = await colony_at(URL, KEY)
        settings = Settings.find(server=URL, home=tmp_path, environ=environ)
        events: list[str] = []
        worker = worker_of(settings, tmp_path / "state", events)
        with anyio.fail_after(120):
            async with anyio.create_task_group() as group, Client(settings) as colony:
                await group.start(worker.serve)
                assert await colony.run("add", 1, 2) == 3
                with pytest.raises(ProcessFailed, match=r"numbers\[0\]: expected `int`, got `str`"):
                    await colony.run("add", "x")
                assert sum(await colony.map("add", range(100), result=int)) == 4950
                job = await colony.submit("told")
                assert await job.result() == job.id
                assert "line" in "\n".join([row.message async for row in job.logs()])
                assert await colony.attributes(job.id) == {"colour": "red"}
                one, two, both = task("add", 1, name="a"), task("add", 10, name="b"), task("add")
                one >> two
                [one, two] >> both
                run = await colony.submit(Workflow(one, two, both))
                assert await run.wait() == {"a": 1, "b": 11, "add": 12}
                job = await colony.submit("forever")
                await job.cancel()
                worker.stop()
        assert events.count("registered") == 1

    anyio.run(main, backend=backend)
