"""Errors of a message without a valid answer, and how certain each is.

`wire.refusals` lists the refusals of peers; `transport.dial` makes connections.
"""

from __future__ import annotations

from enum import Enum

from federation.wire.refusals import Proof


class TransportError(Exception):
    """A message got no valid answer; the subclass says what that means for it."""

    seconds = 0.0  # that the peer asks to wait; 0 if it did not say
    final = False  # whether the peer refused it, and will refuse it again


class Unsent(TransportError):
    """No byte of the message reached the peer."""


class Lost(TransportError):
    """The message may have reached the peer."""


class Reason(Enum):
    """Why a peer did not accept a message, as far as the next step depends on it."""

    LATER = "it wants it later"
    UNTIMELY = "its times do not hold by the peer's clock; once that is measured, others may"
    FINAL = "it does not take it"


class RemoteRefusal(TransportError):
    """The peer did not accept the message; `proof` says how far that can be believed."""

    def __init__(
        self,
        code: str,
        message: str,
        reason: Reason = Reason.FINAL,
        proof: Proof = Proof.NONE,
        seconds: float = 0.0,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message
        self.reason, self.proof, self.seconds = reason, proof, seconds
        self.final = reason is Reason.FINAL
