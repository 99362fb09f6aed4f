"""Two executors that want the same processes, over a store that may be meddled with."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import cast

import pytest

from node.etcd.client import EtcdClient, KeyValue, TxnResult
from node.etcd.errors import EtcdUnavailable
from node.etcd.txn import Txn
from node.host.clock import Clock
from node.model.types import Executor, Process
from node.processes.assignment import Assigner
from node.processes.queue import Candidate
from node.processes.service import Processes
from node.store import keys
from tests.support.interleaved import Meddled
from tests.support.processes import assigning, make

CANDIDATE = Candidate("dev", "cli", "ada")
ADA = Executor("a" * 64, "cli", "ada", "dev")
BOB = Executor("b" * 64, "cli", "bob", "dev")


class Store(Meddled):
    """A store that may be away, or take a write in without an answer, for later."""

    def __init__(self, client: EtcdClient) -> None:
        super().__init__(client)
        self.away = False
        self.slow = False
        self.under_way: list[Txn] = []
        self.gets = self.writes = 0

    async def get(self, key: str) -> KeyValue | None:
        self.gets += 1
        if self.away:
            raise EtcdUnavailable("away")
        return await self._client.get(key)

    async def commit(self, txn: Txn) -> TxnResult:
        self.writes += bool(txn.compare)
        if self.away:
            raise EtcdUnavailable("away")
        if self.slow and txn.compare:
            self.under_way.append(txn)
            raise EtcdUnavailable("no answer in time")
        return await super().commit(txn)

    async def land(self, number: int) -> bool:
        """One of the writes arrives; False when it lost to another."""
        return (await self._client.commit(self.under_way[number])).succeeded


@dataclass
class Scene:
    """Two daemons on a store; that of `one` can be meddled with. Their clock stands still."""

    client: EtcdClient
    time: int = field(default_factory=time.time_ns)
    store: Store = field(init=False)
    one: Processes = field(init=False)
    assignment: Assigner = field(init=False)
    other: Processes = field(init=False)
    other_handout: Assigner = field(init=False)

    def __post_init__(self) -> None:
        self.use(Store(self.client))
        other = self.time + 1
        self.other = Processes(self.client, Clock(lambda: other))
        self.other_handout = assigning(self.other)

    def use(self, store: Store) -> None:
        """Start the first daemon, on a store."""
        self.store = store
        self.one = Processes(cast(EtcdClient, store), Clock(lambda: self.time))
        self.assigner = assigning(self.one)

    async def submit(self, **changes: str) -> Process:
        """A process that both daemons know of."""
        process = make(**changes)
        await self.one.submit(process, b"")
        items, revision = await self.client.range_all(keys.LIVE)
        self.other.begin_listing(len(items), revision)
        self.other.list_some([(kv.key, kv.value, kv.mod_revision) for kv in items])
        self.other.end_listing()
        return process

    async def poll(self, executor: Executor = ADA, seconds: float = 0) -> Process:
        """What an executor gets from the first daemon."""
        candidate = Candidate("dev", "cli", executor.executorname)
        return await self.assigner.assign(candidate, executor, seconds)

    async def poll_in_vain(self, executor: Executor = ADA) -> None:
        """A poll that is told that the store is away."""
        with pytest.raises(EtcdUnavailable):
            await self.poll(executor)

    async def stored(self, process: Process) -> Process:
        """The process as a daemon that starts now has it."""
        found = await self.other.load("dev", process.processid)
        assert found is not None
        return found[0]
