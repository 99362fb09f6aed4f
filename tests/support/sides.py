"""One colony as its people see it, and two daemons that trust each other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import trio

from colonyd.keys import PrivateKey
from colonyd.rpc import RpcClient, RpcError, Unreachable, decode
from tests.support.daemons import Daemon, until

Make = Callable[..., Daemon]


class Side:
    """One colony of a pair: its daemon, a client that survives restarts, its keys."""

    def __init__(self, daemon: Daemon, client: RpcClient) -> None:
        self.daemon = daemon
        self.client = client
        self.worker = PrivateKey.generate()

    @property
    def owner(self) -> PrivateKey:
        return self.daemon.key("colony")

    @property
    def user(self) -> PrivateKey:
        return self.daemon.key("user")

    async def call(self, kind: str, key: PrivateKey | None = None, **fields: Any) -> Any:
        return await self.client.call(kind, fields, key or self.user, 40)

    async def patient(self, kind: str, key: PrivateKey | None = None, **fields: Any) -> Any:
        """The call, repeated while the daemon or its store is away."""

        async def ask() -> Any:
            try:
                return {"reply": await self.call(kind, key, **fields)}
            except Unreachable:
                return None
            except RpcError as error:
                if error.status != 503:
                    raise
                return None

        found: Any = await until(60, ask)
        return found["reply"]

    async def peer(self, other: Side) -> dict[str, Any] | None:
        found = await self.call("getpeersmsg", self.owner)
        return next((peer for peer in found if peer["id"] == other.owner.id), None)

    async def find(self, other: Side) -> None:
        async def seen() -> bool:
            peer = await self.peer(other)
            return peer is not None and peer["state"] == "pending"

        await until(50, seen)

    async def trust(self, other: Side) -> None:
        peer = await self.call("trustpeermsg", self.owner, peer=other.owner.id)
        assert peer["state"] == "trusted"

    async def hire(self) -> None:
        new = {
            "executorid": self.worker.id,
            "executorname": "smith",
            "executortype": "cli",
            "colonyname": self.daemon.name,
        }
        name = {"colonyname": self.daemon.name, "executorname": "smith"}
        await self.call("addexecutormsg", self.owner, executor=new)
        await self.call("approveexecutormsg", self.owner, **name)

    async def submit(self, colony: str, **spec: Any) -> str:
        conditions = {"colonyname": colony, "executortype": "cli"}
        full = {"funcname": "upper", "args": ["x"], "conditions": conditions} | spec
        process = await self.call("submitfuncspecmsg", spec=full)
        return str(process["processid"])

    async def send(self, body: bytes) -> dict[str, Any]:
        """Post the same submit until there is an answer."""

        async def ask() -> Any:
            try:
                async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
                    reply = await http.post(f"{self.client.url}/api", content=body)
            except httpx.TransportError:
                return None
            return None if reply.status_code == 503 else reply

        reply: Any = await until(60, ask)
        assert reply.status_code == 200, reply.text
        process: dict[str, Any] = decode("submitfuncspecmsg", 200, reply.content)
        return process

    async def work(self, output: str, *, args: list[str] | None = None) -> dict[str, Any]:
        """Take one process and close it. A hand-out whose reply was lost is found again."""

        async def take() -> Any:
            mine = await self.patient(
                "getprocessesmsg", colonyname=self.daemon.name, count=100, state=1
            )
            if mine:
                return mine[0]
            fields = {"colonyname": self.daemon.name, "timeout": 2}
            try:
                return await self.patient("assignprocessmsg", self.worker, **fields)
            except RpcError as error:
                if error.status != 404:
                    raise
                return None

        process: Any = await until(90, take)
        if args is not None:
            assert process["spec"]["args"] == args
        done = {"processid": process["processid"], "out": [output]}
        await self.patient("closesuccessfulmsg", self.worker, **done)
        return dict(process)

    async def closed(self, processid: str, seconds: float = 40) -> dict[str, Any]:
        async def ask() -> dict[str, Any] | None:
            process: dict[str, Any] = await self.patient("getprocessmsg", processid=processid)
            return process if process["state"] >= 2 else None

        found: Any = await until(seconds, ask)
        return dict(found)

    async def forward(self, processid: str) -> dict[str, Any]:
        found: dict[str, Any] = await self.patient("getforwardmsg", processid=processid)
        return found


@asynccontextmanager
async def pair(make: Make) -> AsyncIterator[tuple[Side, Side]]:
    """Two running colonies that trust each other, with a worker in the second."""
    daemons = [make("ant"), make("bee")]
    for daemon in daemons:
        await trio.to_thread.run_sync(daemon.start)
    async with daemons[0].client() as first, daemons[1].client() as second:
        ant, bee = Side(daemons[0], first), Side(daemons[1], second)
        await ant.find(bee)
        await bee.find(ant)
        await ant.trust(bee)
        await bee.trust(ant)
        await bee.hire()
        yield ant, bee
