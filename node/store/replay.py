"""Markers in the store: which signed requests took effect, and up to which time they were removed.

Markers are sorted by the time of issue, which is signed too: the same bytes have one key
everywhere.
"""

from __future__ import annotations

import hashlib

import msgspec

from node.etcd.txn import Below
from node.store import keys

MARKERS = keys.ROOT + "replay/"
# Markers of calls that remove markers: few, and kept for ever.
LASTING = keys.ROOT + "replaylasting/"
# The latest span whose markers were removed. No clock decides whether a marker may be gone.
FLOOR = keys.ROOT + "replayed"
SPAN = 60  # seconds of issue that share a span


class ReplayMarker(msgspec.Struct, array_like=True):
    """The state of one request; with all but the first two empty, it was begun, or done at once.

    `digest` is of its bytes; `run` tells one try from another. `place` is the first key that it
    wrote. `status` is 200 with the JSON of the answer, or the status of a refusal with its message.
    """

    digest: bytes
    run: bytes
    place: str = ""
    status: int = 0
    answer: bytes = b""


# Written with every call that changes something, and removed within minutes: in the quickest form.
encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(ReplayMarker).decode


def span(issued: float) -> int:
    """Return the span of a time of issue (Unix s)."""
    return int(issued // SPAN)


def spans(number: int) -> str:
    """Return the prefix of the markers of a span; spans sort as their numbers."""
    return f"{MARKERS}{number:012d}/"


def slices(number: int, count: int, most: int) -> list[str]:
    """Return prefixes of the `count` markers of a span, with about `most` or fewer below each."""
    found = [spans(number)]
    while count > most:
        found = [f"{prefix}{digit:x}" for prefix in found for digit in range(16)]
        count //= 16
    return found


def parse_span(key: str) -> int:
    """Return the span of a marker's key."""
    return int(key[len(MARKERS) :].partition("/")[0])


def marker(identity: str, nonce: str, issued: float, *, lasting: bool = False) -> str:
    """Return the marker key of the one request that a signer makes with a nonce at a time
    (Unix s).
    """
    name = hashlib.sha256(f"{identity}/{nonce}".encode()).hexdigest()[:32]
    return LASTING + name if lasting else spans(span(issued)) + name


def number(span: int) -> bytes:
    """Return a span as the value of `FLOOR`."""
    return b"%012d" % span


def kept(span: int) -> Below:
    """Return the condition that no marker of the span was removed."""
    return Below(FLOOR, number(span))
