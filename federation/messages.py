"""What is inside the envelopes: the payload of each kind, as structs and as deterministic CBOR.

Signatures and times are the envelope's; who may send what is decided by those who receive.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypeVar

import msgspec

from federation import cbor
from federation.envelope import MAX_LIFETIME, Kind, Refused, seal
from node.identity import PrivateKey

__all__ = [
    "Cancel",
    "Hello",
    "Outcome",
    "Outcomes",
    "Poll",
    "Receipt",
    "Sealer",
    "Submit",
    "cti_of",
    "dump",
    "load",
]

_DEPTH = 4
Pid = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}\\Z")]
Attempt = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
M = TypeVar("M")


class Hello(msgspec.Struct, frozen=True):
    """I am here; my signed card."""

    card: bytes


class Submit(msgspec.Struct, frozen=True):
    """Run this: `pid` is the origin's process id, `spec` the function spec as JSON bytes."""

    pid: Pid
    attempt: Attempt
    spec: bytes
    initiator: str
    hops: int
    path: list[str]


class Cancel(msgspec.Struct, frozen=True):
    """Do not run this, or stop."""

    pid: Pid
    attempt: Attempt


class Receipt(msgspec.Struct, frozen=True):
    """`status` is accepted, cancelled or already_closed; `remote` the executing colony's id."""

    pid: Pid
    attempt: Attempt
    status: str
    remote: str


class Poll(msgspec.Struct, frozen=True):
    """Give me outcomes, waiting up to `wait` seconds; `ack` names those I have kept."""

    wait: Annotated[int, msgspec.Meta(ge=0, le=30)]
    ack: Annotated[list[Pid], msgspec.Meta(max_length=100)]


class Outcomes(msgspec.Struct, frozen=True):
    """Sealed outcomes, some of those owed."""

    outcomes: list[bytes]


class Outcome(msgspec.Struct, frozen=True):
    """How a forwarded process ended: `state` as upstream numbers it, `out` JSON, times Unix ns."""

    pid: Pid
    attempt: Attempt
    state: Annotated[int, msgspec.Meta(ge=2, le=4)]
    out: bytes
    errors: list[str]
    localpid: str
    executor: str
    start: int
    end: int


def dump(message: msgspec.Struct) -> bytes:
    """Encode a payload."""
    return cbor.encode(msgspec.structs.asdict(message))


def load(payload: bytes, kind: type[M]) -> M:
    """Decode a payload. Raises Refused (malformed), which names the field."""
    try:
        return msgspec.convert(cbor.decode(payload, depth=_DEPTH), kind)
    except (cbor.CborError, msgspec.ValidationError) as error:
        raise Refused("malformed", f"payload: {error}") from None


def cti_of(*parts: object) -> bytes:
    """The 16-byte name of a message: the same for the same parts."""
    return hashlib.sha256("".join(str(part) for part in parts).encode()).digest()[:16]


@dataclass(frozen=True)
class Sealer:
    """Signs with the home colony's key; `now` gives Unix nanoseconds."""

    key: PrivateKey
    now: Callable[[], int]

    @property
    def seconds(self) -> int:
        """The time as messages tell it."""
        return self.now() // 1_000_000_000

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
        begin = self.seconds if issued is None else issued
        end = begin + MAX_LIFETIME if expires is None else expires
        end = max(begin + 1, min(end, begin + MAX_LIFETIME))
        name = cti or cti_of(kind, audience, self.now(), payload.hex()[:64])
        return seal(self.key, kind, audience, payload, cti=name, issued=begin, expires=end)
