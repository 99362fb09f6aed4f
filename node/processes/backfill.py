"""Backfill of the index of closed processes, for stores of earlier releases.

The transaction that closes a process writes its index keys itself; only processes that an earlier
colonyd closed are dealt with here.
"""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass, field

import trio

from node.etcd.client import EtcdClient, KeyValue
from node.etcd.errors import EtcdError
from node.etcd.pages import below, number_of
from node.etcd.pressure import Need
from node.etcd.txn import Present, Put, Txn
from node.host.log import get_logger
from node.model.codec import pack, unpack
from node.model.types import Closed, State
from node.store import keys
from node.store.directory import Directory
from node.store.work import processes as store

log = get_logger("index")

_AGAIN = 30.0  # seconds between two looks for colonies without an index
# Processes of one transaction: each has a comparison and at most three places.
_AT_ONCE = 30


@dataclass
class IndexBackfill:
    """Writes the missing index keys. Several daemons may do so at once: they write the same
    keys.
    """

    client: EtcdClient
    directory: Directory
    _complete: set[str] = field(default_factory=set)

    async def run(self) -> None:
        """Complete the index of each colony, until cancelled."""
        while True:
            for colony in [name for name, it in self.directory.rosters.items() if it.colony]:
                if colony in self._complete:
                    continue
                try:
                    await self.complete(colony)
                except EtcdError as error:
                    log.warning("index waits", colony=colony, error=error)
            await trio.sleep(_AGAIN)

    async def complete(self, colony: str) -> int:
        """Complete the index of one colony; return how many processes were looked at.

        Raises EtcdError: StoreFull when the store takes no more.
        """
        done, looked_at = keys.closed_by_complete(colony), 0
        if await self.client.get(done) is None:
            for state in (State.SUCCESSFUL, State.FAILED, State.CANCELLED):
                async with aclosing(below(self.client, keys.closed_prefix(colony, state))) as pages:
                    async for page in pages:
                        looked_at += len(page)
                        for start in range(0, len(page), _AT_ONCE):
                            self.client.pressure.demand(Need.GROWS)
                            await self._add(colony, state, page[start : start + _AT_ONCE])
            # Not for a colony that was removed meanwhile.
            txn = Txn([Present(keys.colony(colony))], [Put(done, pack(True))])
            if not (await self.client.commit(txn)).succeeded:
                return looked_at
            log.info("index complete", colony=colony, processes=looked_at)
        self._complete.add(colony)
        return looked_at

    async def _add(self, colony: str, state: State, marks: list[KeyValue]) -> None:
        """Write the index keys of closed processes, except of processes that are gone."""
        prefix, ops = keys.closed_prefix(colony, state), list[Put]()
        for kv in marks:
            endtime, processid = keys.ascending(number_of(kv.key, prefix)), _id(kv)
            mark = unpack(kv.value, Closed)
            places = store.closed_places(colony, state, endtime, processid, mark)
            ops += [Put(place, b"") for place in places]
        there = [Present(kv.key) for kv in marks]
        if not (await self.client.commit(Txn(there, ops))).succeeded and len(marks) > 1:
            for kv in marks:
                await self._add(colony, state, [kv])


def _id(kv: KeyValue) -> str:
    return kv.key.rpartition("/")[2]
