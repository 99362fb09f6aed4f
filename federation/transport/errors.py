"""What a message came to that was answered, but not as asked, and how certain that is.

That no answer came, or no connection, is in `transport.dial`.
"""

from __future__ import annotations


class TransportError(Exception):
    """A message got no valid answer; what that means for it, the subclass tells."""


class Unsent(TransportError):
    """No byte of it reached the peer."""


class Lost(TransportError):
    """It may have reached the peer."""


class Later(TransportError):
    """The peer wants it later: in `seconds`, 0 when it did not say.

    `certain` is whether the peer put its name to that it did not take it, and nobody else has it.
    """

    def __init__(self, message: str, seconds: float, *, certain: bool = False) -> None:
        super().__init__(message)
        self.seconds, self.certain = seconds, certain


class PeerRefused(TransportError):
    """The peer does not take it; `signed` is whether it put its name to that.

    `brought`: it came to the peer by way of another colony, which may bring it again. `kept`: the
    peer put its name to that it took no copy and never will.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        signed: bool = False,
        brought: bool = False,
        kept: bool = False,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message
        self.signed, self.brought, self.kept = signed, brought, kept


class Untimely(TransportError):
    """Its times did not hold by the peer's clock; once that is measured anew, others may.

    `signed` is whether the peer put its name to that it did not take this message, and nobody else
    has it.
    """

    def __init__(self, message: str, *, signed: bool) -> None:
        super().__init__(message)
        self.signed = signed
