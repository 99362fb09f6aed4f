"""What a colony notes of each message about a process that came from another one.

Written by `inbox.accept` and `inbox.tombstones`, each time in the transaction that decides.
"""

from __future__ import annotations

import msgspec

from federation.forward.path import OriginRequest, request_of
from federation.wire.envelope import Rejected, VerifiedMessage
from node.etcd.client import EtcdClient
from node.store import keys

# In the record of how much of the channels of a process a colony told us of: how many bytes of
# the store that took. No channel has this name.
SAID = ""


class FinalRefusal(msgspec.Struct, frozen=True):
    """With which refusal a message is answered for good."""

    status: int
    code: str
    message: str


class ReceiptRecord(msgspec.Struct, frozen=True):
    """That a process of another colony was received: the hash of the message, and our receipt.

    Without `localpid` it was cancelled before it came, or refused for good (`kept`). It stays until
    `expires` (seconds) and the process is closed. `asked` is the SHA-256 of the sealed submission
    of the colony `origin`, where the process began; empty in markers of earlier releases. `left` is
    how many bytes stand beside it in the store for the sake of the process, as estimated when it
    came.
    """

    digest: bytes
    attempt: int
    localpid: str
    receipt: bytes
    expires: int
    kept: FinalRefusal | None = None
    asked: bytes = b""
    origin: str = ""
    left: int = 0

    def concerns(self, opened: VerifiedMessage) -> bool:
        """Whether it decides about a submission: a refusal does about the same bytes only."""
        return self.kept is None or self.digest == opened.digest


async def request_in(client: EtcdClient, home: str, receipt_record: ReceiptRecord) -> OriginRequest:
    """Return what was asked of us, by the marker of a process; nothing where that is not known.

    A marker of an earlier release does not tell, but the submission does that stands beside its
    process. Raises EtcdError.
    """
    if receipt_record.asked or not receipt_record.localpid:
        return OriginRequest(receipt_record.origin, receipt_record.asked)
    found = await client.get(keys.submission(home, receipt_record.localpid))
    try:
        return request_of(found.value) if found is not None else OriginRequest()
    except Rejected:
        return OriginRequest()
