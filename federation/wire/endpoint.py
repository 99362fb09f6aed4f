"""Where messages of one kind are posted, and what answers them; the table of them is the server's.

Each part of the federation that answers peers says so by its `endpoints()`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from federation.wire.envelope import Kind, VerifiedMessage
from federation.wire.refusals import Refusal
from federation.wire.sizes import SIZES


@dataclass(frozen=True)
class Endpoint:
    """`action` gets a message whose every check held and its bytes, and returns a sealed answer.

    `knock` is for what anybody may send, trusted or not: it gets the sender's address, the header
    KNOCK and the body before anything is checked, and may raise Refusal. `keep` is told when a
    message that a mailbox brought is refused: whether no copy of it will be taken either.
    """

    path: str
    kind: Kind
    action: Callable[[VerifiedMessage, bytes], Awaitable[bytes]]
    knock: Callable[[str, str, bytes], None] | None = None
    keep: Callable[[VerifiedMessage, Refusal], Awaitable[bool]] | None = None

    @property
    def limit(self) -> int:
        """Bytes that a message may have."""
        return SIZES[self.kind].bytes

    @property
    def public(self) -> bool:
        """Whether anybody may send it."""
        return self.knock is not None
