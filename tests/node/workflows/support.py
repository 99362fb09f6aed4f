"""A colony with executors that run workflows."""

from __future__ import annotations

from typing import Any

import httpx
import trio

from colonyd.keys import PrivateKey
from colonyd.rpc import RpcClient, RpcError, decode, encode
from tests.support.daemons import Daemon


def spec(name: str, *dependencies: str, kind: str, **more: Any) -> dict[str, Any]:
    """A function spec of a workflow."""
    conditions = {"executortype": kind, "dependencies": list(dependencies)}
    return {"nodename": name, "funcname": "f", "conditions": conditions} | more


class Party:
    """A user and an approved executor of a type of its own."""

    def __init__(self, daemon: Daemon, client: RpcClient, colony: str) -> None:
        self.daemon, self.client, self.colony = daemon, client, colony
        self.user, self.owner = daemon.key("user"), daemon.key("colony")
        self.key = PrivateKey.generate()
        self.kind = f"type-{self.key.id[:12]}"

    async def join(self) -> Party:
        executor = {
            "executorname": f"ex-{self.key.id[:12]}",
            "executorid": self.key.id,
            "colonyname": self.colony,
            "executortype": self.kind,
        }
        await self.call("addexecutormsg", self.owner, executor=executor)
        name = executor["executorname"]
        await self.call("approveexecutormsg", self.owner, executorname=name)
        return self

    async def call(self, payloadtype: str, key: PrivateKey | None = None, /, **fields: Any) -> Any:
        fields.setdefault("colonyname", self.colony)
        return await self.client.call(payloadtype, fields, key or self.user)

    async def submit(self, *specs: dict[str, Any]) -> dict[str, Any]:
        workflow = {"colonyname": self.colony, "functionspecs": list(specs)}
        body = encode("submitworkflowspecmsg", {"spec": workflow}, self.user)
        return dict(await post(self.client, "submitworkflowspecmsg", body, 120))

    async def graph(self, graph: dict[str, Any]) -> dict[str, Any]:
        graphid = graph["processgraphid"]
        return dict(await self.call("getprocessgraphmsg", processgraphid=graphid))

    async def nodes(self, graph: dict[str, Any]) -> dict[str, dict[str, Any]]:
        graphid = graph["processgraphid"]
        found = await self.call("getprocessesmsg", processgraphid=graphid, state=-1)
        return {each["spec"]["nodename"]: each for each in found}

    async def states(self, graph: dict[str, Any]) -> dict[str, int]:
        return {name: node["state"] for name, node in (await self.nodes(graph)).items()}

    async def assign(self, timeout: int = 10) -> dict[str, Any]:
        return dict(await self.call("assignprocessmsg", self.key, timeout=timeout))

    async def work(self, *out: Any) -> str:
        """Take one process and close it; returns its node's name."""
        process = await self.assign()
        await self.close(process, *out)
        return str(process["spec"]["nodename"])

    async def close(self, process: dict[str, Any], *out: Any) -> None:
        pid = process["processid"]
        await self.call("closesuccessfulmsg", self.key, processid=pid, out=list(out))

    async def fail(self, process: dict[str, Any]) -> None:
        pid = process["processid"]
        await self.call("closefailedmsg", self.key, processid=pid, errors=["broken"])

    async def nothing_to_do(self) -> bool:
        try:
            await self.assign(-1)
        except RpcError as error:
            return error.status == 404
        return False


async def post(client: RpcClient, payloadtype: str, body: bytes, timeout: float = 20) -> Any:
    """Post an envelope once. Raises RpcError, or httpx.TransportError when no answer came."""
    async with httpx.AsyncClient(trust_env=False, timeout=timeout) as http:
        reply = await http.post(f"{client.url}/api", content=body)
    return decode(payloadtype, reply.status_code, reply.content)


async def party(daemon: Daemon, client: RpcClient, colony: str = "dev") -> Party:
    return await Party(daemon, client, colony).join()


async def kill_at(daemon: Daemon, moment: float, *, below: bool) -> None:
    """Kill the daemon, or the store below it, after `moment` seconds; return when it serves."""
    await trio.sleep(moment)
    if below:
        mark = len(daemon.events)
        daemon.kill_etcd()
        await trio.to_thread.run_sync(lambda: daemon.await_event('event="etcd serves"', after=mark))
    else:
        daemon.kill()
        await trio.to_thread.run_sync(daemon.start)


async def patient(client: RpcClient, payloadtype: str, body: bytes) -> Any:
    """Post until there is an answer: the same bytes, so that nothing happens twice."""
    with trio.fail_after(60):
        while True:
            try:
                return await post(client, payloadtype, body)
            except (httpx.TransportError, RpcError) as error:
                if isinstance(error, RpcError) and error.status != 503:
                    raise
                await trio.sleep(0.05)
