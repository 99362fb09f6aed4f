"""The signed card by which a colony describes itself, and the rule which of two cards is newer.

A card proves itself: it has the key, and the id is the key's hash. Trust, and where cards are kept,
are not decided here.
"""

from __future__ import annotations

import functools
import re

import msgspec

from colonyd.keys import PrivateKey, id_of
from federation.wire import cbor
from federation.wire.envelope import (
    MAX_LIFETIME,
    Kind,
    Rejected,
    UnverifiedMessage,
    inspect,
    open_envelope,
    seal,
)
from node.model.ids import valid_name

VERSION = 2  # of the federation protocol
CARD_LIMIT = 8192  # bytes of a signed card
ANYONE = "*"  # a card is addressed to every colony
_MAX_ENDPOINTS = 16
_MAX_VERSIONS = 16
_MAX_MAILBOXES = 4
_MAX_SEQUENCE = 2**63 - 1
_ANY = "any"  # the word for all peers in routes
_ITEMS = 256
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_ENDPOINT = re.compile(
    r"(?:\[[0-9a-fA-F:.]+(?:%[\w.-]+)?\]|[A-Za-z0-9._-]{1,253}):(\d{1,5})", re.ASCII
)
_ID = _FINGERPRINT
_KEYS = {"key", "name", "seq", "fp", "at", "ver"}


class Card(msgspec.Struct, frozen=True):
    """What a colony says about itself. Its id follows from its key; everything else may change."""

    id: str
    public_key: bytes  # 65 bytes, uncompressed
    name: str
    sequence: int  # a card with a higher number replaces this one
    fingerprint: str  # SHA-256 of the TLS certificate's DER, 64 hex characters
    endpoints: list[str]  # "host:port", "[v6]:port"
    versions: list[int]  # protocol versions spoken
    expires: int  # seconds since the epoch
    mailboxes: list[str] = []  # ids of colonies that it polls, as it cannot be connected to

    @property
    def cti(self) -> bytes:
        """Return the name that our own cards have as messages."""
        return self.sequence.to_bytes(8, "big")


def payload_of(card: Card) -> bytes:
    """Return what is signed of a card, beside its id and times."""
    body: dict[str, cbor.Value] = {
        "key": card.public_key,
        "name": card.name,
        "seq": card.sequence,
        "fp": bytes.fromhex(card.fingerprint),
        "at": card.endpoints,
        "ver": card.versions,
    }
    if card.mailboxes:
        body["mb"] = card.mailboxes
    return cbor.encode(body)


def sign_card(key: PrivateKey, card: Card, *, issued: int | None = None) -> bytes:
    """Return `card`, signed with its own colony's key.

    `issued` (seconds since the epoch) defaults to the longest life that ends at `card.expires`.
    Raises ValueError for a card that no colony would accept, so that the mistake shows at once.
    """
    if key.id != card.id or key.public_key != card.public_key:
        raise ValueError("a card is signed with the key of the colony that it describes")
    problem = _problem(card)
    if problem:
        raise ValueError(f"card: {problem}")
    data = seal(
        key,
        Kind.CARD,
        ANYONE,
        payload_of(card),
        cti=card.cti,
        issued=max(0, card.expires - MAX_LIFETIME) if issued is None else issued,
        expires=card.expires,
    )
    if len(data) > CARD_LIMIT:
        raise ValueError(f"card: {len(data)} bytes, at most {CARD_LIMIT}")
    return data


def open_card(data: bytes, now: float, *, high_water: float = 0) -> Card:
    """Return the card in `data` once it has proven itself, else raise Rejected.

    `now` and `high_water` are seconds since the epoch, as for `open_envelope`.
    """
    seen = inspect(data, limit=CARD_LIMIT)
    card = card_of(seen)
    open_envelope(
        data,
        kind=Kind.CARD,
        audience=ANYONE,
        now=now,
        keys=lambda _: card.public_key,  # its hash is compared with the issuer's id
        limit=CARD_LIMIT,
        high_water=high_water,
    )
    problem = _problem(card)
    if problem:
        raise Rejected("malformed", f"card: {problem}")
    return card


def is_name(text: str) -> bool:
    """Return whether a colony may have this name; `*`, `any`, `a/b` mean other things."""
    return valid_name(text) and text != _ANY


@functools.lru_cache(maxsize=512)
def versions_in(data: bytes) -> tuple[int, ...]:
    """Return the protocol versions in a signed card that was opened before, () if it has none.

    They are read from the stored card, so that a peer's versions are known after an upgrade.
    """
    try:
        seen = inspect(data, limit=CARD_LIMIT)
        return tuple(card_of(seen).versions)
    except Rejected:
        return ()


def newer(old: Card | None, new: Card) -> bool:
    """Return whether `new` replaces `old`: only with a higher sequence number, never an equal."""
    if old is None:
        return True
    if old.id != new.id:
        raise ValueError("two cards of different colonies have no order")
    return new.sequence > old.sequence


def card_of(seen: UnverifiedMessage) -> Card:
    """Return the card in a message. Nothing in it is proven. Raises Rejected (malformed)."""
    issuer, expires = seen.issuer, seen.expires
    try:
        body = cbor.decode(seen.payload, depth=2, items=_ITEMS)
    except cbor.CborError as error:
        raise Rejected("malformed", f"card: {error}") from None
    if not isinstance(body, dict) or not body.keys() >= _KEYS:
        # More keys than these come from a later version; a reader ignores them.
        raise Rejected("malformed", f"card: not a map with {', '.join(sorted(_KEYS))}")
    try:
        return Card(
            issuer,
            msgspec.convert(body["key"], bytes, builtin_types=(bytes,)),
            msgspec.convert(body["name"], str),
            msgspec.convert(body["seq"], int),
            msgspec.convert(body["fp"], bytes, builtin_types=(bytes,)).hex(),
            msgspec.convert(body["at"], list[str]),
            msgspec.convert(body["ver"], list[int]),
            expires,
            msgspec.convert(body.get("mb", []), list[str]),
        )
    except msgspec.ValidationError as error:
        raise Rejected("malformed", f"card: {error}") from None


def _problem(card: Card) -> str | None:
    """Return what makes the card unacceptable, or None."""
    if id_of(card.public_key) != card.id:
        return "the id is not the hash of the key"
    if not is_name(card.name):
        return (
            "a name has 1 to 63 letters, digits, '_', '-' and '.', does not begin with '-' or '.', "
            f"and is not {_ANY!r}"
        )
    if not 0 <= card.sequence <= _MAX_SEQUENCE:
        return "the sequence number does not fit in 63 bits"
    if not _FINGERPRINT.fullmatch(card.fingerprint):
        return "a fingerprint is 64 lower-case hex characters"
    if len(card.endpoints) > _MAX_ENDPOINTS or not 1 <= len(card.versions) <= _MAX_VERSIONS:
        return f"at most {_MAX_ENDPOINTS} endpoints and 1 to {_MAX_VERSIONS} versions"
    if len(card.mailboxes) > _MAX_MAILBOXES or not all(map(_ID.fullmatch, card.mailboxes)):
        return f"at most {_MAX_MAILBOXES} mailboxes, each the id of a colony"
    for endpoint in card.endpoints:
        match = _ENDPOINT.fullmatch(endpoint)
        if not match or not 0 < int(match[1]) < 65536:
            return f"endpoint {endpoint[:80]!r} is not host:port"
    return None
