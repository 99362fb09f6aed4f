"""Batches of reads: several keys in one transaction, asked for together or by many tasks at once.

Each read starts after it was asked for, so its values are as fresh as those of a read alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from node.etcd.client import EtcdClient, KeyValue
from node.etcd.errors import EtcdError, EtcdTooLarge
from node.etcd.txn import Get, Txn

# Keys of one transaction: far below what etcd takes, and an answer is bounded too.
_MOST = 16
# Seconds in line after which a read goes alone: a store that hangs must not cost its timeout twice.
_PATIENCE = 0.05


async def read(client: EtcdClient, *wanted: str) -> list[KeyValue | None]:
    """Return the values of several keys at one moment."""
    result = await client.commit(Txn([], [Get(key) for key in wanted]))
    return [kvs[0] if kvs else None for kvs in result.responses]


async def read_many(client: EtcdClient, wanted: Sequence[str], page: int) -> list[KeyValue | None]:
    """Return the values of keys, `page` of them at one moment, or fewer where they are large."""
    found: list[KeyValue | None] = []
    while len(found) < len(wanted):
        try:
            part = await read(client, *wanted[len(found) : len(found) + page])
        except EtcdTooLarge:
            if page == 1:
                raise
            page = max(1, page // 4)
            continue
        found += part
    return found


@dataclass(eq=False, slots=True)
class _BatchSlot:
    """A read that waits in line.

    `called` wakes it, to lead the next batch (`leads`) or because it is `served`.
    """

    key: str
    called: trio.Event = field(default_factory=trio.Event)
    leads: bool = False
    served: bool = False
    value: KeyValue | None = None


class Reads:
    """Reads in batches: one is under way at a time; reads asked for meanwhile go together in the
    next.
    """

    def __init__(self, client: EtcdClient) -> None:
        self._client = client
        self._busy = False
        self._line: dict[_BatchSlot, None] = {}

    async def get(self, key: str) -> KeyValue | None:
        """Return the key's present value, or None. Raises EtcdError."""
        if self._busy:
            seat = _BatchSlot(key)
            self._line[seat] = None
            try:
                with trio.move_on_after(_PATIENCE):
                    await seat.called.wait()
            except trio.Cancelled:
                if seat.leads:
                    self._call_next()
                raise
            finally:
                self._line.pop(seat, None)
            if seat.served:
                return seat.value
            if not seat.leads:
                return await self._client.get(key)
        self._busy = True
        try:
            return await self._lead(key)
        finally:
            self._call_next()

    def _call_next(self) -> None:
        """Let the first read in line lead the next batch."""
        first = next(iter(self._line), None)
        self._busy = first is not None
        if first is not None:
            del self._line[first]
            first.leads = True
            first.called.set()

    async def _lead(self, key: str) -> KeyValue | None:
        if not self._line:
            return await self._client.get(key)
        others = list(self._line)[: _MOST - 1]
        for other in others:
            del self._line[other]
        began = trio.current_time()
        try:
            reads = [Get(key), *(Get(other.key) for other in others)]
            mine, *theirs = (await self._client.commit(Txn([], reads))).responses
            for other, found in zip(others, theirs, strict=True):
                other.value = found[0] if found else None
                other.served = True
            return mine[0] if mine else None
        except EtcdError:
            # Perhaps too much for one answer, or a broken connection: each read is tried again
            # alone.
            if trio.current_time() - began > _PATIENCE:
                raise
        finally:
            for other in others:
                other.called.set()
        return await self._client.get(key)
