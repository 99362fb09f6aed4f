"""Tombstones: stored refusals, so that a copy of a refused message is not accepted later.

A mailbox has the bytes of the messages that it carries. It may bring them again under another
policy.
"""

from __future__ import annotations

from dataclasses import dataclass

from federation.forward.receipt import FinalRefusal, ReceiptRecord
from federation.limits.accounts import PeerQuotas
from federation.limits.decoding import load_large
from federation.peers.context import Context
from federation.peers.registry import TRUSTED
from federation.wire.envelope import MAX_LIFETIME, Rejected, VerifiedMessage
from federation.wire.messages import Submit
from federation.wire.refusals import Refusal
from node.etcd.pressure import Need
from node.etcd.txn import Absent, Get, Put, Txn
from node.model.codec import pack, unpack

KEPT = 1000  # bytes of a tombstone with its key, about


@dataclass
class Tombstones:
    """Stores final refusals, counted by `peer_quotas`."""

    context: Context
    peer_quotas: PeerQuotas

    async def keep(self, opened: VerifiedMessage, refusal: Refusal) -> bool:
        """Store the refusal of a submission. Return whether no copy was or ever will be accepted.

        It stores them only for trusted colonies: others must not fill the store.
        """
        try:
            submit = await load_large(opened.payload, Submit)
        except Rejected:
            return False
        if self.context.peers.state(opened.issuer) != TRUSTED:
            return False
        if not refusal.lasting or refusal.code == "id_reuse":
            return False
        if self.context.client.pressure.refuses(Need.WORKS):
            return False
        key = self.context.keys.receipt_record(opened.issuer, submit.pid)
        kept = FinalRefusal(refusal.status, refusal.code, refusal.message[:300])
        found = await self.context.client.get(key)
        if found is not None:
            return _says(unpack(found.value, ReceiptRecord), opened)
        if self.peer_quotas.tombstone(opened.issuer, KEPT) is not None:
            return False
        expires = opened.expires + MAX_LIFETIME
        receipt_record = ReceiptRecord(opened.digest, submit.attempt, "", b"", expires, kept)
        written = True  # without an answer, it may have happened
        try:
            result = await self.context.client.commit(
                Txn([Absent(key)], [Put(key, pack(receipt_record))], [Get(key)]),
            )
            written = result.succeeded
        finally:
            self.peer_quotas.settle(opened.issuer, KEPT, left=written)
        return written or _says(unpack(result.responses[0][0].value, ReceiptRecord), opened)


def _says(there: ReceiptRecord, opened: VerifiedMessage) -> bool:
    """Return whether a receipt record refuses these very bytes for good."""
    return there.kept is not None and there.digest == opened.digest
