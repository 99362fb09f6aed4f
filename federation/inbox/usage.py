"""The usage of the store by other colonies: counted for `limits.accounts`, expired in time.

`inbox.accept`, `inbox.tombstones`, `inbox.channels` and `outbox.files` write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from federation.forward.receipt import SAID, ReceiptRecord
from federation.inbox.outcomes import OutcomeQueue
from federation.limits.accounts import Pages, PeerQuotas, StorageUsage
from federation.peers.context import Context
from node.etcd.client import KeyValue
from node.etcd.txn import Absent, Compare, Delete, ModRevision, Put, Txn
from node.model.codec import pack, unpack

_LOOKED_FOR = 10_000  # processes of crowded colonies that one scan looks up, at most
_MANY = 40  # looked up in one transaction


@dataclass
class UsageScan:
    """Reads all receipt records page by page, so that no other task waits for it."""

    context: Context
    peer_quotas: PeerQuotas
    outcome_queue: OutcomeQueue

    async def take(self, now: int) -> None:
        """Count each colony's usage, without what expired at `now` (seconds). Raises EtcdError."""
        listed: dict[str, StorageUsage] = {}
        self.peer_quotas.begin()
        gone: list[tuple[KeyValue, ReceiptRecord]] = []
        looked = 0
        async for items in Pages(self.context.client, self.context.keys.markers):
            for item in items:
                receipt_record = unpack(item.value, ReceiptRecord)
                issuer, pid = item.key[len(self.context.keys.markers) :].split("/")
                over = receipt_record.expires <= now
                if over and pid not in self.outcome_queue.owed.get(issuer, ()):
                    if await self._forget(item, receipt_record, issuer, pid):
                        continue
                elif (
                    receipt_record.left
                    and self.peer_quotas.crowded(issuer)
                    and looked < _LOOKED_FOR
                ):
                    looked += 1
                    gone.append((item, receipt_record))
                size = len(item.key) + len(item.value) + receipt_record.left
                listed.setdefault(issuer, StorageUsage()).add(1, size)
        await self._count_rest(listed)
        self.peer_quotas.counted(listed)
        for start in range(0, len(gone), _MANY):
            await self._lighten(gone[start : start + _MANY])

    async def _forget(
        self, item: KeyValue, receipt_record: ReceiptRecord, issuer: str, pid: str
    ) -> bool:
        """Delete an expired receipt record. Return False while its process is open."""
        loaded = receipt_record.localpid and await self.context.processes.load(
            self.context.home, receipt_record.localpid
        )
        if loaded and not loaded[0].closed:
            return False
        settled: list[Compare] = [
            ModRevision(item.key, item.mod_revision),
            Absent(self.context.keys.owed(issuer, pid)),
        ]
        ops = [Delete(item.key), Delete(self.context.keys.hearing(issuer, pid))]
        return (await self.context.client.commit(Txn(settled, ops))).succeeded

    async def _count_rest(self, listed: dict[str, StorageUsage]) -> None:
        """Count what the store has beside receipt records: channel messages and fetched files."""
        start = len(self.context.keys.hearings)
        async for items in Pages(self.context.client, self.context.keys.hearings):
            for item in items:
                issuer = item.key[start:].partition("/")[0]
                said = unpack(item.value, dict[str, int]).get(SAID, 0)
                listed.setdefault(issuer, StorageUsage()).add(
                    0, len(item.key) + len(item.value) + said
                )
        start = len(self.context.keys.fetched_all)
        async for items in Pages(self.context.client, self.context.keys.fetched_all):
            for item in items:
                issuer = item.key[start:].partition("/")[0]
                listed.setdefault(issuer, StorageUsage()).add(1, len(item.key))

    async def _lighten(self, markers: Sequence[tuple[KeyValue, ReceiptRecord]]) -> None:
        """Reduce the usage of records whose process has left the store to the record alone."""
        pids = [receipt_record.localpid for _, receipt_record in markers]
        there = {
            each.processid
            for each in await self.context.processes.load_many(self.context.home, pids, light=True)
        }
        for item, receipt_record in markers:
            if receipt_record.localpid in there:
                continue
            light = Put(item.key, pack(msgspec.structs.replace(receipt_record, left=0)))
            unchanged = ModRevision(item.key, item.mod_revision)
            if (await self.context.client.commit(Txn([unchanged], [light]))).succeeded:
                issuer = item.key[len(self.context.keys.markers) :].partition("/")[0]
                self.peer_quotas.lighten(issuer, receipt_record.left)
