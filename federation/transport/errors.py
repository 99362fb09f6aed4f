"""What a message came to that got no valid answer, and how certain that is.

Which answers a peer gives is in `wire.refusals`; connections are made in `transport.dial`.
"""

from __future__ import annotations

from enum import Enum

from federation.wire.refusals import Proof


class TransportError(Exception):
    """A message got no valid answer; what that means for it, the subclass tells."""

    seconds = 0.0  # that the peer asks to wait for; 0 when it did not say
    final = False  # whether the peer refused it, and will refuse it again


class Unsent(TransportError):
    """No byte of it reached the peer."""


class Lost(TransportError):
    """It may have reached the peer."""


class Reason(Enum):
    """Why a peer did not take a message, as far as that decides what follows."""

    LATER = "it wants it later"
    UNTIMELY = "its times do not hold by the peer's clock; once that is measured, others may"
    FINAL = "it does not take it"


class RemoteRefusal(TransportError):
    """The peer did not take it; `proof` is how far that can be believed."""

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
