"""How a message is turned away: what the server answers, whoever refuses.

A check that failed is `wire.envelope.Rejected`, what a peer answered us `transport.errors`'s. Which
refusals are kept to for good is in `inbox.tombstones`.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from federation.wire.envelope import Rejected

BROUGHT = ""  # the host that a message came from which a mailbox held

_ROOM_AGAIN = 30  # seconds until a sender whom a full store refused comes again


class Refusal(Exception):
    """A message turned away: HTTP status, stable code, sentence; `again` seconds for a retry.

    `kept`: no copy of it was taken, nor will one be.
    """

    def __init__(self, status: int, code: str, message: str, again: int = 0) -> None:
        super().__init__(f"{code}: {message}")
        self.status, self.code, self.message, self.again = status, code, message, again
        self.kept = False

    @property
    def certain(self) -> bool:
        """Whether nothing was taken for sure; else the store may have it."""
        return self.status < 500

    @property
    def lasting(self) -> bool:
        """Whether the same message is refused again, as far as we know."""
        return self.certain and self.status != 429


class RefusalBody(msgspec.Struct, omit_defaults=True):
    """What an answer holds that is a refusal; `signed` is in base64 there, `clock` in seconds."""

    code: str = ""
    message: str = ""
    clock: int = 0
    signed: bytes = b""


class Proof(Enum):
    """How far a refusal of a message can be believed, and what it says of other copies."""

    NONE = "nobody signed it"
    CARRIED = "nobody signed it, and another colony brought it"
    SIGNED = "the peer signed that it did not take this message"
    SIGNED_CARRIED = "the peer signed it, but who brought the message may bring it again"
    KEPT = "the peer signed that it took no copy, and never will"

    @property
    def certain(self) -> bool:
        """Whether the peer has no copy by way of this one."""
        return self in (Proof.SIGNED, Proof.KEPT)

    @property
    def carried(self) -> bool:
        """Whether another colony may bring, or have brought, a copy."""
        return self in (Proof.CARRIED, Proof.SIGNED_CARRIED)


def store_full() -> Refusal:
    """What a full store takes no more: nothing was written, and the sender may come again."""
    message = "this colony's store is full; it takes nothing new until its owner made room"
    return Refusal(429, "store_full", message, again=_ROOM_AGAIN)


def refusal_of(rejected: Rejected) -> Refusal:
    """What we answer when a check failed."""
    statuses = {"too_large": 413, "unknown_issuer": 401, "bad_signature": 401}
    return Refusal(statuses.get(rejected.code, 400), rejected.code, rejected.message)
