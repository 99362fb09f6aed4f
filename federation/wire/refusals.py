"""Refusals: how the server turns a message away.

`wire.envelope.Rejected` is a failed check, `transport.errors` what a peer answered us.
`inbox.tombstones` keeps final refusals.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from federation.wire.envelope import Rejected

# What the remote host of a message begins with that a mailbox brought; the mailbox's id follows.
BROUGHT = "mailbox "

_ROOM_AGAIN = 30  # seconds until a sender may try a full store again


class Refusal(Exception):
    """A refused message: HTTP status, stable code, sentence; `again` seconds until a retry.

    `kept`: no copy of it was or will be accepted.
    """

    def __init__(self, status: int, code: str, message: str, again: int = 0) -> None:
        super().__init__(f"{code}: {message}")
        self.status, self.code, self.message, self.again = status, code, message, again
        self.kept = False

    @property
    def certain(self) -> bool:
        """Return whether certainly nothing was stored."""
        return self.status < 500

    @property
    def lasting(self) -> bool:
        """Return whether the same message will be refused again, as far as we know."""
        return self.certain and self.status != 429


class RefusalBody(msgspec.Struct, omit_defaults=True):
    """The body of a refusal; `signed` is in base64 there, `clock` in seconds."""

    code: str = ""
    message: str = ""
    clock: int = 0
    signed: bytes = b""


class Proof(Enum):
    """How far a refusal of a message can be believed, and what it says about other copies."""

    NONE = "nobody signed it"
    CARRIED = "nobody signed it, and another colony brought it"
    SIGNED = "the peer signed that it did not take this message"
    SIGNED_CARRIED = "the peer signed it, but who brought the message may bring it again"
    KEPT = "the peer signed that it took no copy, and never will"

    @property
    def certain(self) -> bool:
        """Return whether the peer certainly has no copy by the way of this one."""
        return self in (Proof.SIGNED, Proof.KEPT)

    @property
    def carried(self) -> bool:
        """Return whether another colony may bring, or have brought, a copy."""
        return self in (Proof.CARRIED, Proof.SIGNED_CARRIED)


def store_full() -> Refusal:
    """Return the refusal of a full store: nothing was written, and the sender may try again."""
    message = "this colony's store is full; it takes nothing new until its owner made room"
    return Refusal(429, "store_full", message, again=_ROOM_AGAIN)


def refusal_of(rejected: Rejected) -> Refusal:
    """Return the refusal for a failed check."""
    statuses = {"too_large": 413, "unknown_issuer": 401, "bad_signature": 401}
    return Refusal(statuses.get(rejected.code, 400), rejected.code, rejected.message)
