"""What is asked of the store wins against what others report at the same moment.

Each race is made to happen: the other acts between what a call has read and its commit.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import msgspec
import pytest
import trio

from colonyd.errors import RpcError
from node.etcd.client import EtcdClient
from node.etcd.errors import EtcdUnavailable
from node.handlers import executors
from node.host.clock import Clock
from node.model.codec import unpack
from node.model.ids import new_id
from node.model.types import (
    Allocations,
    Colony,
    Conditions,
    Executor,
    ExecutorState,
    Function,
    FunctionSpec,
    Graph,
    Project,
    Running,
    State,
)
from node.processes.queue import Candidate
from node.processes.spec import build_process
from node.rpc import requests as req
from node.rpc.calls import Caller
from node.runtime.node import Node
from node.store import keys
from node.workflows.children import ChildRequest
from tests.support.interleaved import Meddled

BEE = "b" * 64
Act = Callable[[], Awaitable[Any]]


@dataclass
class Races:
    """Two nodes on a store; `other` may act before a guarded commit of `one`."""

    one: Node
    other: Node
    meddled: Meddled

    async def race(self, call: Act, first: Act) -> Any:
        """Make the call, with `first` before its first guarded commit."""
        self.meddled.first = first
        result = await call()
        assert self.meddled.first is None, "the race did not happen"
        return result

    async def beat(self) -> None:
        """A heartbeat of the executor."""
        await self.other.members.heard_from(Executor(BEE, "t", "w", "dev"))

    async def stored(self) -> Executor:
        """The executor as a daemon that starts now has it."""
        found = await self.other.client.get(keys.executor("dev", "w"))
        assert found is not None
        return unpack(found.value, Executor)

    async def running(self) -> tuple[Graph, str]:
        """A workflow of two nodes, of which the executor runs the first."""
        specs = [
            FunctionSpec("a", "f", conditions=Conditions("dev", executortype="t")),
            FunctionSpec("b", "f", conditions=Conditions("dev", executortype="t")),
        ]
        specs[1].conditions.dependencies = ["a"]
        graph = await self.one.workflows.submit(
            "dev", specs, graphid=new_id(), initiatorid=BEE, initiatorname="me"
        )
        candidate = Candidate("dev", "t", "w")
        executor = await self.one.members.set_state("dev", "w", ExecutorState.APPROVED)
        process = await self.one.assigner.assign(candidate, executor, 5)
        assert process.graphindex == 0
        # Nothing else is left to be written about it.
        await self.one.workflows.resolution.settle("dev", graph.processgraphid)
        return graph, process.processid

    async def grow(self, node: Node, graph: Graph, parent: str) -> None:
        """The executor adds a node."""
        spec = FunctionSpec("c", "f", conditions=Conditions("dev", executortype="t"))
        await node.workflows.children.add(graph, ChildRequest(parent, "", spec, BEE, insert=False))


@pytest.fixture
async def races(client: EtcdClient, nursery: trio.Nursery) -> Races:
    meddled = Meddled(client)
    one = Node.build(cast(EtcdClient, meddled), "dev", Clock(time.time_ns))
    other = Node.build(client, "dev", Clock(time.time_ns))
    await one.members.add_colony(Colony("a" * 64, "dev"))
    await one.members.add_executor(Executor(BEE, "t", "w", "dev"))
    await nursery.start(one.workflows.run)
    return Races(one, other, meddled)


DECISIONS = [ExecutorState.APPROVED, ExecutorState.REJECTED, ExecutorState.UNREGISTERED]


@pytest.mark.parametrize("state", DECISIONS)
async def test_a_decision_wins_against_a_heartbeat(races: Races, state: ExecutorState) -> None:
    members = races.one.members
    await races.race(partial(members.set_state, "dev", "w", state), races.beat)
    executor = await races.stored()
    assert executor.state == state
    assert executor.lastheardfromtime > 0
    assert members.executor("dev", "w").state == state


async def test_what_an_executor_reports_does_not_undo_a_decision(races: Races) -> None:
    told = Allocations({"p": Project(usedcpu=1)})
    report = partial(
        races.one.members.change_executor,
        "dev",
        "w",
        lambda e: msgspec.structs.replace(e, allocations=told),
    )
    reject = partial(races.other.members.set_state, "dev", "w", ExecutorState.REJECTED)
    await races.race(report, reject)
    executor = await races.stored()
    assert (executor.state, executor.allocations) == (ExecutorState.REJECTED, told)


async def test_an_unregistered_executor_comes_back_in_spite_of_a_heartbeat(races: Races) -> None:
    members = races.one.members
    await members.set_state("dev", "w", ExecutorState.UNREGISTERED)
    again = Executor("c" * 64, "t2", "w", "dev")
    await races.race(partial(members.add_executor, again), races.beat)
    executor = await races.stored()
    assert (executor.executorid, executor.state) == ("c" * 64, ExecutorState.PENDING)


@pytest.mark.parametrize("guarded", [1, 2])
async def test_a_removal_that_was_cut_off_is_repeated(races: Races, guarded: int) -> None:
    """With the answer of the first or second guarded write lost: the record, or what it runs."""
    node = races.one
    rows = {call.payloadtype: call for call in executors.calls.of(node)}

    async def ask(payloadtype: str, name: str = "w") -> None:
        await rows[payloadtype].handler(Caller("a" * 64), req.ExecutorNamed("dev", name))

    # Gone since, of which the watch has yet to tell: it keeps nobody from the rest.
    node.processes.running.add("dev", "gone", Running(BEE, "t", 1, 0, "", ""), 1)
    _, pid = await races.running()
    await node.members.add_function(Function("w", "dev", "f"))

    async def lose() -> None:
        races.meddled.lost = True

    async def lose_next() -> None:
        races.meddled.first = lose

    races.meddled.first = lose if guarded == 1 else lose_next
    with pytest.raises(EtcdUnavailable):
        await ask("removeexecutormsg")
    assert (await races.stored()).state == ExecutorState.UNREGISTERED
    await ask("removeexecutormsg")
    found = await races.other.processes.load("dev", pid)
    assert found is not None
    assert (found[0].state, found[0].retries) == (State.WAITING, 0)
    assert await races.other.client.count(keys.members("dev") + "function/") == 0
    await ask("removeexecutormsg")
    for decision in ("approveexecutormsg", "rejectexecutormsg"):
        with pytest.raises(RpcError, match="is unregistered; add it again") as refused:
            await ask(decision)
        assert refused.value.status == 400
    with pytest.raises(RpcError) as refused:
        await ask("removeexecutormsg", "nobody")
    assert refused.value.status == 404


async def test_one_name_is_added_once(races: Races) -> None:
    members = races.one.members
    await members.set_state("dev", "w", ExecutorState.UNREGISTERED)
    add = partial(members.add_executor, Executor("c" * 64, "t", "w", "dev"))
    other = partial(races.other.members.add_executor, Executor("d" * 64, "t", "w", "dev"))
    with pytest.raises(RpcError, match="exists already") as refused:
        await races.race(add, other)
    assert refused.value.status == 400
    assert (await races.stored()).executorid == "d" * 64


async def test_a_removal_wins_against_a_cancel(races: Races) -> None:
    spec = FunctionSpec("", "f", conditions=Conditions("dev", executortype="t"))
    process = build_process(
        spec, processid=new_id(), initiatorid=BEE, initiatorname="me", colonyname="dev",
        now=time.time_ns(), peer="",
    )  # fmt: skip
    await races.one.processes.submit(process, b"")
    pid = process.processid
    await races.race(
        partial(races.one.processes.remove, "dev", pid),
        partial(races.other.processes.cancel, "dev", pid),
    )
    assert await races.other.processes.load("dev", pid) is None
    assert await races.other.client.count(keys.ROOT + "live/") == 0


async def test_a_cancelled_workflow_takes_the_node_along_that_came_meanwhile(races: Races) -> None:
    graph, parent = await races.running()
    await races.race(
        partial(races.one.workflows.cancel, "dev", graph.processgraphid),
        partial(races.grow, races.other, graph, parent),
    )
    after = await races.one.workflows.load("dev", graph.processgraphid)
    assert after is not None
    assert [node.state for node in await races.one.workflows.nodes(after)] == [State.CANCELLED] * 3


async def test_a_node_is_added_while_its_parent_reports(races: Races) -> None:
    graph, parent = await races.running()
    await races.race(
        partial(races.grow, races.one, graph, parent),
        partial(races.other.processes.set_output, "dev", parent, BEE, ["half"]),
    )
    found = await races.other.processes.load("dev", parent)
    assert found is not None
    assert (found[0].output, found[0].children) == (["half"], [1, 2])


async def test_a_node_is_added_once_its_place_is_known(races: Races) -> None:
    graph, parent = await races.running()
    await races.race(
        partial(races.grow, races.one, graph, parent),
        partial(races.grow, races.other, graph, parent),
    )
    found = await races.other.processes.load("dev", parent)
    assert found is not None
    assert found[0].children == [1, 2, 3]


async def test_a_workflow_is_removed_while_another_daemon_settles_it(races: Races) -> None:
    graph, _ = await races.running()
    graphid = graph.processgraphid
    await races.one.workflows.cancel("dev", graphid)
    found = await races.other.client.get(keys.graph("dev", graphid))
    assert found is not None
    await races.race(
        partial(races.one.workflows.remove, "dev", graphid),
        partial(races.other.client.put, found.key, found.value),
    )
    assert await races.other.client.get(found.key) is None
    assert await races.other.client.count(keys.processes("dev")) == 0
