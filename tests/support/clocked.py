"""Nodes in this process that share one etcd and a clock of the test's, for what runs by the clock.

No test lives here.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import trio

from node.etcd.client import EtcdClient, open_client
from node.etcd.pages import whole
from node.host.clock import Clock
from node.model.types import SECOND, Colony, Executor, ExecutorState, Graph, Process, State, User
from node.processes.queue import Candidate
from node.runtime.feeds import follow
from node.runtime.node import Node
from node.store import keys
from node.timers import runner as timers
from tests.node.etcd.support import Store, start_store

ANN, OWNER = "a" * 64, "0" * 64
ADA = Executor("e" * 64, "cli", "ada", "dev", state=ExecutorState.APPROVED)
# A Monday at noon, UTC.
NOON = 1_767_614_400 * SECOND


def workflow(*specs: dict[str, Any], colony: str = "dev") -> str:
    """The JSON text of a workflow; of one node when no specs are given."""
    one = {"nodename": "a", "funcname": "f", "conditions": {"executortype": "cli"}}
    return json.dumps({"colonyname": colony, "functionspecs": list(specs) or [one]})


def below(name: str, *parents: str) -> dict[str, Any]:
    """A function spec of a workflow."""
    conditions = {"executortype": "cli", "dependencies": list(parents)}
    return {"nodename": name, "funcname": "f", "conditions": conditions}


@dataclass
class Station:
    """One daemon's worth of node, and the scope that its tasks run in."""

    node: Node
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)

    async def stop(self) -> None:
        """End its tasks."""
        self.scope.cancel()
        await self.ended.wait()


@dataclass
class World:
    """A store, the nodes on it, and the time; `steady` is a clock that is never set, if above 0.

    A test that sets the clock moves `now` alone.
    """

    store: Store
    client: EtcdClient
    nursery: trio.Nursery
    now: int = NOON
    steady: int = 0
    stations: list[Station] = field(default_factory=list)

    @property
    def node(self) -> Node:
        """The first of the nodes."""
        return self.stations[0].node

    async def start(self, identity: str | None = None) -> Station:
        """Another node, ready."""
        clock = Clock(lambda: self.now, (lambda: self.steady) if self.steady else None)
        node = Node.build(self.client, "dev", clock, identity=identity or "", dice=lambda: 0.5)
        if identity is not None:
            await node.retiming.load()
        await node.members.adopt(Colony(OWNER, "dev"), User("dev", ANN, "ann"), ADA, "s" * 64)
        responder = Station(node)
        await self.nursery.start(self._run, responder)
        self.stations.append(responder)
        return responder

    async def _run(
        self, responder: Station, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        node = responder.node
        try:
            with responder.scope:
                async with trio.open_nursery() as nursery:
                    await nursery.start(follow, node, keys.MEMBERS)
                    await nursery.start(follow, node, keys.LIVE)
                    await nursery.start(node.workflows.run)
                    await nursery.start(partial(timers.run, node.retiming))
                    task_status.started()
        finally:
            responder.ended.set()

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += int(seconds * SECOND)
        self.steady += int(seconds * SECOND) if self.steady else 0
        for responder in self.stations:
            responder.node.crons.index.timer_queue.look_again()
            responder.node.generators.index.timer_queue.look_again()

    async def assign(self, seconds: float = 50) -> Process:
        """Hand out the next process."""
        candidate = Candidate("dev", "cli", "ada")
        return await self.node.assigner.assign(candidate, ADA, seconds)

    async def close(self, process: Process, *output: Any, state: State = State.SUCCESSFUL) -> None:
        """End a process as its executor."""
        process = await self.node.processes.close(
            "dev", process.processid, ADA.executorid, state, output=list(output)
        )
        await self.node.settle(process)

    async def graphs(self) -> list[Graph]:
        """All graphs of the colony, the oldest first."""
        found: dict[str, Graph] = {}  # a graph may be listed again in its next state
        for state in range(5):
            for graph in await whole(self.node.workflows.listing("dev", state, 999)):
                found[graph.processgraphid] = graph
        return sorted(found.values(), key=lambda graph: graph.submissiontime)


@asynccontextmanager
async def world(path: Path) -> AsyncIterator[World]:
    """A store without nodes, at noon."""
    async with trio.open_nursery() as nursery:
        store = await start_store(nursery, path / "etcd")
        async with open_client(store.target, timeout=60) as client:
            made = World(store, client, nursery)
            yield made
            for responder in made.stations:
                await responder.stop()
        nursery.cancel_scope.cancel()
