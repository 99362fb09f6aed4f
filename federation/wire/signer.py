"""Who signs what this colony sends: its key, the keys it had before, and the clock it signs by.

What is in a message is in `messages`, how an envelope is made and opened in `envelope`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from federation.wire.clock import SigningClock
from federation.wire.envelope import MAX_LIFETIME, Kind, seal
from federation.wire.messages import dump
from node.host.keys import PrivateKey


def cti_of(*parts: object) -> bytes:
    """The 16-byte name of a message: the same for the same parts."""
    return hashlib.sha256("".join(str(part) for part in parts).encode()).digest()[:16]


@dataclass
class Signer:
    """Signs with the home colony's key, by its clock.

    `former` are the ids of the keys that it had before: what is meant for those is meant for it.
    """

    key: PrivateKey
    clock: SigningClock
    former: tuple[str, ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        """All ids of the colony, the present one first."""
        return (self.key.id, *self.former)

    def succeed(self, key: PrivateKey) -> None:
        """Sign with another key from now on."""
        self.key, self.former = key, self.ids

    def inherit(self, former: Sequence[str]) -> None:
        """Take over the ids that the colony had before, the latest first."""
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
        """Seal one message; valid from now for as long as allowed unless told otherwise."""
        payload = dump(message)
        begin = self.clock.seconds if issued is None else issued
        end = begin + MAX_LIFETIME if expires is None else expires
        end = max(begin + 1, min(end, begin + MAX_LIFETIME))
        name = cti or cti_of(kind, audience, self.clock.now(), payload[:32].hex())
        return seal(self.key, kind, audience, payload, cti=name, issued=begin, expires=end)
