"""A colony with a history to keep, in one process or as a daemon."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from click.testing import CliRunner, Result

from cli.main import main
from colonyd.keys import PrivateKey
from node.etcd.client import EtcdClient, open_client
from node.host.clock import Clock
from node.model.ids import new_id
from node.model.types import (
    Colony,
    Executor,
    ExecutorState,
    FunctionSpec,
    Log,
    Process,
    State,
    User,
)
from node.processes.spec import build_process
from node.runtime.node import Node
from node.store import keys
from node.store.work import processes as store
from node.streams.logs import write
from tests.node.etcd.support import Store, start_store
from tests.support.daemons import Daemon

JANUARY = 1_767_225_600 * 10**9  # 2026-01-01 in Unix ns
MONTH = 31 * 86_400 * 10**9


class Place:
    """A colony in a store, without a daemon: `days` moves its clock."""

    def __init__(self, client: EtcdClient) -> None:
        self.client = client
        self.owner, self.user = PrivateKey.generate(), PrivateKey.generate()
        self.executor = Executor(new_id(), "cli", "worker", "dev", state=ExecutorState.APPROVED)
        self.days = 0.0
        self.node = self.another(client)

    def now(self) -> int:
        return time.time_ns() + int(self.days * 86_400e9)

    def another(self, client: EtcdClient) -> Node:
        node = Node.build(client, "dev", Clock(self.now), identity="home")
        return node

    async def adopt(self, node: Node) -> Node:
        await node.members.adopt(
            Colony(self.owner.id, "dev"), User("dev", self.user.id, "u"), self.executor, new_id()
        )
        items, _ = await self.client.range_all(keys.MEMBERS)
        node.directory.replace([(i.key, i.value, i.mod_revision) for i in items])
        return node

    async def closed(self, output: str, state: State = State.SUCCESSFUL) -> Process:
        """A process that went its whole way."""
        spec = FunctionSpec(funcname="f", env={"k": "v"}, maxexectime=10)
        spec.conditions.executortype = "cli"
        process = build_process(
            spec,
            processid=new_id(),
            initiatorid=self.user.id,
            initiatorname="u",
            colonyname="dev",
            now=self.now(),
            peer="",
        )
        processes = self.node.processes
        await processes.submit(process, b"signed bytes")
        given = await processes.change(
            "dev",
            process.processid,
            lambda it, revision: _assign(it, revision, self.executor, self.now()),
        )
        return await processes.close(
            "dev", given.processid, self.executor.executorid, state, output=[output]
        )

    async def log(self, processid: str, message: str) -> None:
        line = Log(processid, "dev", "worker", message, self.node.clock.tick())
        await write(self.client, line)

    async def keys(self) -> list[str]:
        """All keys of processes and logs, without what stays."""
        items, _ = await self.client.range_all(keys.ROOT)
        kept = ("member/", "server", "history/")
        return [i.key for i in items if not i.key.removeprefix(keys.ROOT).startswith(kept)]


def _assign(it: Process, revision: int, executor: Executor, now: int) -> Any:
    return store.assign(it, revision, executor, now)


@asynccontextmanager
async def place(tmp_path: Path) -> AsyncIterator[tuple[Place, Store]]:
    async with trio.open_nursery() as nursery:
        etcd = await start_store(nursery, tmp_path / "etcd")
        async with open_client(etcd.target) as client:
            here = Place(client)
            await here.adopt(here.node)
            yield here, etcd
        nursery.cancel_scope.cancel()


def colony(daemon: Daemon, *args: str, code: int = 0) -> Result:
    command = ["--home", str(daemon.home), "--server", f"127.0.0.1:{daemon.port}", *args]
    result = CliRunner().invoke(main, command, catch_exceptions=False)
    assert result.exit_code == code, f"{args}: {result.output}"
    return result


async def hire(client: Any, owner: PrivateKey, colonyname: str = "dev") -> PrivateKey:
    worker = PrivateKey.generate()
    member = {"executorname": "w", "executorid": worker.id, "executortype": "cli"}
    member["colonyname"] = colonyname
    await client.call("addexecutormsg", {"executor": member}, owner)
    await client.call("approveexecutormsg", member, owner)
    return worker
