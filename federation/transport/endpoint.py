"""Endpoints of the server: where messages of one kind are posted, and what answers them.

Each part of federation that answers peers lists its own by `endpoints()`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from federation.wire.card import Card
from federation.wire.envelope import Kind, UnverifiedMessage, VerifiedMessage
from federation.wire.refusals import Refusal
from federation.wire.sizes import SIZES


@dataclass(frozen=True)
class Endpoint:
    """A path for one kind. `action` takes a verified message and its bytes; returns an answer.

    Without an action, the message holds others, each of which is answered as one at `each`.

    `knock` is for messages that any colony may send. Before any check, it gets the sender's
    address, the header KNOCK and the body, and may raise Refusal. `keep` is called when a message
    from a mailbox is refused; it returns whether every copy of it will be refused as well.

    `guest` is for messages that some colonies may send that are not trusted. Before a signature is
    checked, it gets such a message and the sender's address. It returns the sender's card, or
    raises Refusal or Rejected.

    `placed` is an action that gets the sender's address (BROUGHT and an id from a mailbox), not
    the bytes.
    """

    path: str
    kind: Kind
    action: Callable[[VerifiedMessage, bytes], Awaitable[bytes]] | None
    knock: Callable[[str, str, bytes], None] | None = None
    keep: Callable[[VerifiedMessage, Refusal], Awaitable[bool]] | None = None
    each: str = ""
    guest: Callable[[UnverifiedMessage, str], Card] | None = None
    placed: Callable[[VerifiedMessage, str], Awaitable[bytes]] | None = None

    @property
    def limit(self) -> int:
        """Return how many bytes a message may have."""
        return SIZES[self.kind].bytes

    @property
    def public(self) -> bool:
        """Return whether any colony may send it, trusted or not."""
        return self.knock is not None
