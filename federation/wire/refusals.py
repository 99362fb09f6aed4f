"""How a message is turned away: what the gate answers, whoever refuses.

Which refusals are kept to for good is in `inbox.tombstones`.
"""

from __future__ import annotations

from federation.wire.envelope import Refused

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


def store_full() -> Refusal:
    """What a full store takes no more: nothing was written, and the sender may come again."""
    message = "this colony's store is full; it takes nothing new until its owner made room"
    return Refusal(429, "store_full", message, again=_ROOM_AGAIN)


def refusal_of(refused: Refused) -> Refusal:
    """The HTTP status of a failed check."""
    statuses = {"too_large": 413, "unknown_issuer": 401, "bad_signature": 401}
    return Refusal(statuses.get(refused.code, 400), refused.code, refused.message)
