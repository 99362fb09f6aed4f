"""Statistics of two daemons on one store: what a full count says, without counting each time."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import pytest
import trio

from node.etcd.client import EtcdClient, open_client
from node.handlers.colonies import statistics
from node.host.clock import Clock
from node.host.config import AUTO, HistoryConfig
from node.model.ids import new_id
from node.model.types import Colony, Conditions, FunctionSpec, State
from node.runtime.node import Node
from node.store import keys
from tests.node.etcd.support import start_store
from tests.support.asked import counting
from tests.support.daemons import until
from tests.support.processes import make
from tests.support.processes import retention as retention_of

ENDED = (State.SUCCESSFUL, State.FAILED, State.CANCELLED)


async def node_of(client: EtcdClient, nursery: trio.Nursery) -> Node:
    """A node whose counts are followed."""
    node = Node.build(client, "dev", Clock(time.time_ns))
    nursery.start_soon(node.processes.closed.run)
    nursery.start_soon(node.workflows.counts.run)
    await nursery.start(node.workflows.run)
    return node


async def counted(client: EtcdClient) -> dict[str, int]:
    """What a full count of the store says."""
    found = {
        f"{state.name.lower()}processes": await client.count(keys.closed_prefix("dev", state))
        for state in ENDED
    }
    return found | {
        f"{state.name.lower()}workflows": await client.count(keys.graph_states("dev", state))
        for state in State
    }


async def told(node: Node) -> dict[str, int]:
    """What statistics say of the same."""
    found = await statistics(node, "dev")
    return {name: found[name] for name in await counted(node.client)}


async def agrees(node: Node, wanted: dict[str, int]) -> bool:
    return await told(node) == wanted


async def end(node: Node, count: int) -> list[str]:
    """Cancel as many new processes; return their ids."""
    ids = list[str]()
    for _ in range(count):
        process = await node.processes.submit(make(), b"")
        await node.processes.cancel("dev", process.processid)
        ids.append(process.processid)
    return ids


async def workflow(node: Node) -> str:
    conditions = Conditions("dev", executortype="t")
    specs = [FunctionSpec(name, "f", conditions=conditions) for name in ("a", "b")]
    graph = await node.workflows.submit(
        "dev", specs, graphid=new_id(), initiatorid="b" * 64, initiatorname="me"
    )
    return graph.processgraphid


@pytest.mark.slow
async def test_statistics_are_what_a_full_count_says_whoever_writes(
    nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await start_store(nursery, tmp_path / "etcd")
    async with open_client(store.target) as first, open_client(store.target) as second:
        one, other = await node_of(first, nursery), await node_of(second, nursery)
        await one.members.add_colony(Colony("a" * 64, "dev"))
        sweeper = retention_of(one, tmp_path, HistoryConfig(keep=AUTO))
        kept, graphs = list[str](), list[str]()

        async def removed() -> None:
            await one.processes.remove("dev", kept.pop())

        async def cancelled() -> None:
            await one.workflows.cancel("dev", graphs[0])

        async def gone() -> None:
            await one.workflows.remove("dev", graphs[0])

        async def swept() -> None:
            assert await sweeper.sweep(time.time_ns()) > 0

        async def ended() -> None:
            kept.extend(await end(one, 3))

        async def begun() -> None:
            graphs.append(await workflow(one))

        for act in (ended, removed, begun, cancelled, gone, begun, ended, swept, ended):
            await act()
            wanted = await counted(first)
            assert await told(one) == wanted, act.__name__
            await until(10, partial(agrees, other, wanted))
        asked = [counting(each, monkeypatch) for each in (first, second)]
        for node in (one, other):
            assert (await statistics(node, "dev"))["cancelledprocesses"] == 3
        assert [each.reads for each in asked] == [0, 0]
        await one.members.remove_colony("dev")
        assert set((await told(one)).values()) == {0}
        await until(10, partial(agrees, other, await counted(first)))
