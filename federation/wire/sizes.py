"""The largest message of each kind, as a request and as an answer: bytes and items.

An item is one value of CBOR; a key of a map is one, too. The cost of decoding goes by items, as a
megabyte may be one byte string or a million empty arrays. A peer needs no right to have its message
decoded, so this limits what that costs.
"""

from __future__ import annotations

import msgspec

from federation.wire.envelope import Kind
from node.model.codec import whole_spec
from node.model.types import Process

QUICK = 8_192  # items that are decoded on the event loop in one piece; more, in a thread
MOST_ITEMS = 27_000  # of any kind: a submission with all its files

_CARD = 8_192  # bytes of a signed card
ANSWER = 4_096  # bytes of a refusal, and of a receipt
_FRAME = 1_024  # bytes of an envelope around its payload
_BODY = 1_500_000  # bytes: as much as the store takes in one request


# Bytes of JSON, spec and input together, that a process may take to another colony.
FORWARD = _BODY - 100_000


def forward_size(process: Process) -> int:
    """Return how many bytes of JSON a process would take to another colony."""
    parts = whole_spec(process.spec), process.input
    return sum(len(msgspec.json.encode(part)) for part in parts)


class MessageLimit(msgspec.Struct, frozen=True):
    """The limits of a message: `bytes` with its envelope, `items` in its payload."""

    bytes: int
    items: int


SIZES: dict[Kind, MessageLimit] = {
    Kind.CARD: MessageLimit(_CARD, 256),
    # With up to 8 successions of two signatures each.
    Kind.HELLO: MessageLimit(_CARD + _FRAME + 8 * 4_096, 128),
    Kind.JOIN: MessageLimit(_CARD + _FRAME + 8 * 4_096, 64),
    Kind.WELCOME: MessageLimit(4_096, 64),
    Kind.SUCCESSION: MessageLimit(2_048, 16),
    Kind.REFUSAL: MessageLimit(8_192, 64),
    Kind.SUBMIT: MessageLimit(_BODY, MOST_ITEMS),
    Kind.CANCEL: MessageLimit(4_096, 64),
    Kind.RECEIPT: MessageLimit(ANSWER, 64),
    Kind.POLL: MessageLimit(262_144, QUICK),
    # JSON has up to three bytes for one byte in the store.
    Kind.OUTCOME: MessageLimit(4_000_000, 4_096),
    # A page of outcomes, or a single one, and updates.
    Kind.OUTCOMES: MessageLimit(6_000_000, 2_048),
    Kind.SAY: MessageLimit(_BODY, 2_048),
    Kind.HEARD: MessageLimit(4_096, 64),
    Kind.CAPABILITIES: MessageLimit(65_536, QUICK),
    Kind.INTRODUCTIONS: MessageLimit(64 * (_CARD + 64), 1_024),
    Kind.COLLECT: MessageLimit(_BODY, 512),
    Kind.PARCELS: MessageLimit(2_500_000, 1_024),
    Kind.PASS: MessageLimit(_BODY, 64),
    # Another colony's answer, of any kind.
    Kind.PASSED: MessageLimit(6_000_000 + _FRAME, 64),
    Kind.FETCH: MessageLimit(4_096, 64),
    Kind.CHUNK: MessageLimit(2**20 + 4_096, 64),
    Kind.SUBMITS: MessageLimit(_BODY, 64),
    Kind.RECEIPTS: MessageLimit(32 * (ANSWER + 64) + _FRAME, 512),
    Kind.DIAL: MessageLimit(4_096, 64),
    Kind.DIALLED: MessageLimit(4_096, 64),
}

MAX_BODY = SIZES[Kind.SUBMIT].bytes  # of one message, of any kind
# The kind of the answer to a message at each path.
ANSWERS = {
    "/v1/hello": Kind.HELLO,
    "/v1/join": Kind.WELCOME,
    "/v2/submit": Kind.RECEIPT,
    "/v2/submits": Kind.RECEIPTS,
    "/v2/cancel": Kind.RECEIPT,
    "/v2/outcomes": Kind.OUTCOMES,
    "/v1/capabilities": Kind.CAPABILITIES,
    "/v1/mail": Kind.PARCELS,
    "/v1/pass": Kind.PASSED,
    "/v1/say": Kind.HEARD,
    "/v1/files": Kind.CHUNK,
    "/v1/introductions": Kind.INTRODUCTIONS,
    "/v1/dial": Kind.DIALLED,
}
