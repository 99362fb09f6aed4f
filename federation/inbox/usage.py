"""What other colonies left in the store: counted for `limits.accounts`, forgotten in time.

What is written, and when it may be, is decided by those who write: `inbox.accept`,
`inbox.tombstones`, `outbox.channels`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from federation.forward.marker import SAID, Marker
from federation.inbox.outcomes import Owing
from federation.limits.accounts import Accounts, Pages, Stock
from federation.peers.context import Context
from node.etcd.client import KeyValue
from node.etcd.txn import Absent, Compare, Delete, ModRevision, Put, Txn
from node.model.codec import pack, unpack

_LOOKED_FOR = 10_000  # processes of crowded colonies that are looked for at a time, at most
_MANY = 40  # together


@dataclass
class Stocktaking:
    """Reads all that is there, page by page, so that nobody waits for it."""

    context: Context
    accounts: Accounts
    owing: Owing

    async def take(self, now: int) -> None:
        """Count what there is, without what is over at `now` (seconds). Raises EtcdError."""
        listed: dict[str, Stock] = {}
        self.accounts.begin()
        gone: list[tuple[KeyValue, Marker]] = []
        looked = 0
        async for items in Pages(self.context.client, self.context.keys.markers):
            for item in items:
                marker = unpack(item.value, Marker)
                issuer, pid = item.key[len(self.context.keys.markers) :].split("/")
                over = marker.expires <= now
                if over and pid not in self.owing.owed.get(issuer, ()):
                    if await self._forget(item, marker, issuer, pid):
                        continue
                elif marker.left and self.accounts.crowded(issuer) and looked < _LOOKED_FOR:
                    looked += 1
                    gone.append((item, marker))
                size = len(item.key) + len(item.value) + marker.left
                listed.setdefault(issuer, Stock()).add(1, size)
        await self._count_rest(listed)
        self.accounts.counted(listed)
        for start in range(0, len(gone), _MANY):
            await self._lighten(gone[start : start + _MANY])

    async def _forget(self, item: KeyValue, marker: Marker, issuer: str, pid: str) -> bool:
        """Delete a marker whose time is over; False while its process is open."""
        loaded = marker.localpid and await self.context.processes.load(
            self.context.home, marker.localpid
        )
        if loaded and not loaded[0].closed:
            return False
        settled: list[Compare] = [
            ModRevision(item.key, item.mod_revision),
            Absent(self.context.keys.owed(issuer, pid)),
        ]
        ops = [Delete(item.key), Delete(self.context.keys.hearing(issuer, pid))]
        return (await self.context.client.commit(Txn(settled, ops))).succeeded

    async def _count_rest(self, listed: dict[str, Stock]) -> None:
        """Count what stands beside markers: what was said in channels, and files fetched."""
        start = len(self.context.keys.hearings)
        async for items in Pages(self.context.client, self.context.keys.hearings):
            for item in items:
                issuer = item.key[start:].partition("/")[0]
                said = unpack(item.value, dict[str, int]).get(SAID, 0)
                listed.setdefault(issuer, Stock()).add(0, len(item.key) + len(item.value) + said)
        start = len(self.context.keys.fetched_all)
        async for items in Pages(self.context.client, self.context.keys.fetched_all):
            for item in items:
                issuer = item.key[start:].partition("/")[0]
                listed.setdefault(issuer, Stock()).add(1, len(item.key))

    async def _lighten(self, markers: Sequence[tuple[KeyValue, Marker]]) -> None:
        """A marker whose process left the store stands for itself only."""
        pids = [marker.localpid for _, marker in markers]
        there = {
            each.processid
            for each in await self.context.processes.load_many(self.context.home, pids, light=True)
        }
        for item, marker in markers:
            if marker.localpid in there:
                continue
            light = Put(item.key, pack(msgspec.structs.replace(marker, left=0)))
            unchanged = ModRevision(item.key, item.mod_revision)
            if (await self.context.client.commit(Txn([unchanged], [light]))).succeeded:
                issuer = item.key[len(self.context.keys.markers) :].partition("/")[0]
                self.accounts.lighten(issuer, marker.left)
