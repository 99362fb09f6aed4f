"""A daemon's view of its store: the calls of `EtcdClient`, each of which may fail or be the last.

What the store does with them is in `store`; what dies with the daemon, in `colony`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import trio

from node.etcd.client import EtcdClient, KeyValue, Range, TxnResult
from node.etcd.errors import EtcdUnavailable
from node.etcd.parts import StubCache
from node.etcd.pressure import Pressure
from node.etcd.txn import Delete, DeletePrefix, Get, Put, Txn
from tests.simulation.store import MemoryStore
from tests.simulation.world import Killed, World

__all__ = ["MemoryClient"]

T = TypeVar("T")
_TIMEOUT = 5.0  # seconds until a silent store is given up


class MemoryClient(EtcdClient):
    """`kill` ends the daemon at once; `frozen` tells whether the store answers nobody now."""

    def __init__(
        self,
        store: MemoryStore,
        world: World,
        name: str,
        kill: Callable[[], None],
        frozen: Callable[[], bool],
    ) -> None:
        self.store, self.world, self.name = store, world, name
        self.dead = False
        self.pressure = Pressure()  # of a store without bounds
        self.known = StubCache()
        self._kill, self._frozen = kill, frozen

    def close(self) -> None:
        """End every call."""
        self.dead = True

    def _demand_life(self) -> None:
        self.world.step()
        if self.dead:
            raise Killed(self.name)

    def _die(self, moment: str) -> Killed:
        self.world.fault("kill", self.name, moment)
        self.dead = True
        self._kill()
        return Killed(self.name)

    async def _unanswered(self) -> EtcdUnavailable:
        if self.world.chance(0.3):
            await trio.sleep(_TIMEOUT)
            self._demand_life()
        return EtcdUnavailable("simulated: no answer from the store")

    async def _reading(self, action: Callable[[], T]) -> T:
        self._demand_life()
        await self.world.pause()
        self._demand_life()
        world = self.world
        if self._frozen() or world.chance(world.faults.silent):
            world.fault("silent", self.name)
            raise await self._unanswered()
        return action()

    async def _writing(self, action: Callable[[], T]) -> T:
        self._demand_life()
        await self.world.pause()
        self._demand_life()
        world, faults = self.world, self.world.faults
        if self._frozen():
            world.fault("frozen", self.name)
            raise await self._unanswered()
        if world.chance(faults.kill):
            if world.chance(0.5):
                raise self._die("before the write")
            action()
            raise self._die("after the write")
        if world.chance(faults.unavailable):
            if happened := world.chance(0.5):
                action()
            world.fault("unavailable", self.name, "done" if happened else "not done")
            raise await self._unanswered()
        result = action()
        await self.world.pause()
        self._demand_life()
        return result

    async def get(self, key: str) -> KeyValue | None:
        """As of the moment in which the store has the request."""
        return await self._reading(lambda: self.store.get(key))

    async def range(
        self,
        prefix: str,
        *,
        limit: int = 0,
        start: str | None = None,
        end: str | None = None,
        keys_only: bool = False,
        descending: bool = False,
        revision: int = 0,
        raw: bool = False,
    ) -> Range:
        """Keys with a prefix."""
        return await self._reading(
            lambda: self.store.range(
                prefix,
                limit=limit,
                start=start,
                end=end,
                keys_only=keys_only,
                descending=descending,
                revision=revision,
            )
        )

    async def undivided(self, wanted: Sequence[str]) -> list[KeyValue]:
        """Several keys at one moment; no value is in parts here."""
        found = await self.commit(Txn([], [Get(key) for key in wanted]))
        return [kv for kvs in found.responses for kv in kvs]

    async def count(self, prefix: str) -> int:
        """How many keys have a prefix."""
        return await self._reading(lambda: self.store.range(prefix, limit=1).count)

    async def put(self, key: str, value: bytes, lease: int = 0) -> int:
        """Write one key."""
        return (await self._commit(Txn([], [Put(key, value, lease)]))).revision

    async def delete(self, key: str) -> int:
        """Remove one key."""
        there = self.store.get(key) is not None
        await self._commit(Txn([], [Delete(key)]))
        return int(there)

    async def delete_prefix(self, prefix: str) -> int:
        """Remove all keys with a prefix."""
        count = self.store.range(prefix).count
        await self._commit(Txn([], [DeletePrefix(prefix)]))
        return count

    async def commit(self, txn: Txn) -> TxnResult:
        """Run a transaction; one that only reads can't hurt and fails like a read."""
        if not any(isinstance(op, (Put, Delete)) for op in (*txn.success, *txn.failure)):
            return await self._reading(lambda: self.store.commit(txn))
        return await self._commit(txn)

    async def _commit(self, txn: Txn) -> TxnResult:
        return await self._writing(lambda: self.store.commit(txn))
