"""What a colony notes of each message about a process that came from another one.

Written by `inbox` and `refusing`, each time in the transaction that decides.
"""

from __future__ import annotations

import msgspec

from federation.envelope import Opened

__all__ = ["SAID", "Kept", "Marker"]


# In the record of how much of the channels of a process a colony told us of: how many bytes of
# the store that took. No channel has this name.
SAID = ""


class Kept(msgspec.Struct, frozen=True):
    """With which refusal a message is answered for good."""

    status: int
    code: str
    message: str


class Marker(msgspec.Struct, frozen=True):
    """That a process of another colony was received: the hash of the message, and our receipt.

    Without `localpid` it was cancelled before it came, or refused for good (`kept`). It stays until
    `expires` (seconds) and the process is closed. `left` is how many bytes stand beside it in the
    store for the sake of the process, as estimated when it came.
    """

    digest: bytes
    attempt: int
    localpid: str
    receipt: bytes
    expires: int
    kept: Kept | None = None
    left: int = 0

    def concerns(self, opened: Opened) -> bool:
        """Whether it decides about a submission: a refusal does about the same bytes only."""
        return self.kept is None or self.digest == opened.digest
