"""The signer of our messages: the colony's key, its former keys, and its clock.

`messages` has the payloads, `envelope` makes and opens envelopes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from colonyd.keys import PrivateKey
from federation.wire.clock import SigningClock
from federation.wire.envelope import MAX_LIFETIME, Kind, seal
from federation.wire.messages import dump


def cti_of(*parts: object) -> bytes:
    """Return the 16-byte name of a message: the same for the same parts."""
    return hashlib.sha256("".join(str(part) for part in parts).encode()).digest()[:16]


@dataclass
class Signer:
    """Signs with the home colony's key, by its clock.

    `former` are the ids of its former keys: messages to these are messages to the colony.
    """

    key: PrivateKey
    clock: SigningClock
    former: tuple[str, ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        """Return all ids of the colony, the present one first."""
        return (self.key.id, *self.former)

    def succeed(self, key: PrivateKey) -> None:
        """Sign with another key from now on."""
        self.key, self.former = key, self.ids

    def inherit(self, former: Sequence[str]) -> None:
        """Add the ids that the colony had before, the latest first."""
        self.former = tuple(former)

    def seal(
        self,
        kind: Kind,
        audience: str,
        message: msgspec.Struct,
        *,
        cti: bytes | None = None,
        issued: int | None = None,
        expires: int | None = None,
    ) -> bytes:
        """Return a signed message, by default valid from now for as long as allowed."""
        payload = dump(message)
        begin = self.clock.seconds if issued is None else issued
        end = begin + MAX_LIFETIME if expires is None else expires
        end = max(begin + 1, min(end, begin + MAX_LIFETIME))
        name = cti or cti_of(kind, audience, self.clock.now(), payload[:32].hex())
        return seal(self.key, kind, audience, payload, cti=name, issued=begin, expires=end)
