"""The receipt record: what a colony stores about each process that another colony sent.

`inbox.accept` and `inbox.tombstones` write it in the transaction that accepts or refuses.
"""

from __future__ import annotations

import msgspec

from federation.forward.path import OriginRequest, request_of
from federation.wire.envelope import Rejected, VerifiedMessage
from node.etcd.client import EtcdClient
from node.store import keys

# The key that stands for a channel in the record of a process's channels from another colony. It
# counts the bytes of the store that these take. No channel has this name.
SAID = ""


class FinalRefusal(msgspec.Struct, frozen=True):
    """A refusal that answers every copy of a message."""

    status: int
    code: str
    message: str


class ReceiptRecord(msgspec.Struct, frozen=True):
    """The record of a received process: the hash of its message, and our receipt.

    Without `localpid`, the process was cancelled before it came, or refused for good (`kept`). The
    record stays until `expires` (seconds) has passed and the process is closed. `asked` is the
    SHA-256 of the submission that the colony `origin`, where the process began, signed; it is empty
    in records of earlier releases. `left` estimates the bytes that the process takes in the store
    beside the record.
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
        """Return whether it decides about a submission; a refusal: about the same bytes only."""
        return self.kept is None or self.digest == opened.digest


class ReceivedProcess(msgspec.Struct, frozen=True):
    """The part of the record of a received process that its answers need; it never changes."""

    localpid: str
    attempt: int
    asked: bytes = b""
    origin: str = ""


async def request_in(
    client: EtcdClient, home: str, receipt_record: ReceiptRecord | ReceivedProcess
) -> OriginRequest:
    """Return the request of a received process; an empty one if it is not known.

    A record of an earlier release lacks it, but the stored submission has it. Raises EtcdError.
    """
    if receipt_record.asked or not receipt_record.localpid:
        return OriginRequest(receipt_record.origin, receipt_record.asked)
    found = await client.get(keys.submission(home, receipt_record.localpid))
    try:
        return request_of(found.value) if found is not None else OriginRequest()
    except Rejected:
        return OriginRequest()
