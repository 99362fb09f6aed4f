"""The link of a card: the whole signed card as short text, for a chat or a QR code.

The link has everything that the colony signed, so it is checked without a network. What follows
from other fields is left out and made again. Trust is not in it.
"""

from __future__ import annotations

import coincurve

from colonyd.keys import id_of
from federation.wire.card import ANYONE, CARD_LIMIT, Card, card_of, payload_of
from federation.wire.compact import (
    ByteReader,
    Garbled,
    NoCode,
    pack_address,
    read_code,
    write_code,
)
from federation.wire.envelope import Rejected, assemble, inspect
from federation.wire.invitation import TokenError, read_token

SCHEME = "colony:"
_PURPOSE = "card"
_SHORT, _WHOLE = 1, 2
_LONGEST = 2 * CARD_LIMIT  # characters
_SIGNATURE = 64


class LinkError(ValueError):
    """Text that is no link of a card; the message says what to do."""


def write_link(data: bytes) -> str:
    """Return the link of a signed card, which may be of a later version. Raises Rejected."""
    try:
        body = bytes((_SHORT,)) + _shortened(data)
        whole = _lengthened(ByteReader(body[1:])) != data
    except (ValueError, OverflowError):
        whole = True  # it has what the short form does not know
    return SCHEME.upper() + write_code(bytes((_WHOLE,)) + data if whole else body, _PURPOSE)


def read_link(text: str) -> bytes:
    """Return the signed card in a link, which proves nothing yet. Raises LinkError."""
    code = "".join(text.split())
    if code[: len(SCHEME)].lower() == SCHEME:
        code = code[len(SCHEME) :]
    elif _is_token(code):
        raise LinkError("it is an invitation, not a card: use it with `colony peer join`")
    try:
        body = read_code(code, _PURPOSE, _LONGEST)
    except NoCode:
        raise LinkError(
            "it is not the link of a card; copy all of what `colony card --link` printed"
        ) from None
    except Garbled:
        raise LinkError("it is incomplete or mistyped; copy it again") from None
    if not body:
        raise LinkError("it is empty; `colony card --link` on the other side prints one")
    if body[0] == _WHOLE:
        return body[1:]
    if body[0] != _SHORT:
        raise LinkError(
            f"it is of version {body[0]}; this colonyd reads versions {_SHORT} and {_WHOLE}: "
            "upgrade it"
        )
    try:
        return _lengthened(ByteReader(body[1:]))
    except (ValueError, OverflowError):
        raise LinkError("it makes no sense; ask for a new one") from None


def _is_token(text: str) -> bool:
    try:
        read_token(text)
    except TokenError:
        return False
    return True


def _shortened(data: bytes) -> bytes:
    """Return the fields of a signed card. Raises ValueError or OverflowError for unusual ones."""
    seen = inspect(data, limit=CARD_LIMIT)
    try:
        card = card_of(seen)
    except Rejected as rejected:
        raise ValueError(str(rejected)) from None
    name = card.name.encode()
    return b"".join(
        (
            coincurve.PublicKey(card.public_key).format(),
            seen.signature,
            bytes.fromhex(card.fingerprint),
            card.sequence.to_bytes(8, "big"),
            seen.issued.to_bytes(5, "big"),
            seen.expires.to_bytes(5, "big"),
            bytes((len(name),)),
            name,
            bytes((len(card.endpoints),)),
            *map(pack_address, card.endpoints),
            bytes((len(card.versions), *card.versions)),
            bytes((len(card.mailboxes),)),
            *map(bytes.fromhex, card.mailboxes),
        )
    )


def _lengthened(fields: ByteReader) -> bytes:
    """Return the signed card of the fields. Raises ValueError or OverflowError."""
    key = coincurve.PublicKey(fields.take(33)).format(compressed=False)
    signature, fingerprint = fields.take(_SIGNATURE), fields.take(32).hex()
    sequence, issued, expires = fields.number(8), fields.number(5), fields.number(5)
    name = fields.take(fields.number(1)).decode()
    endpoints = [fields.address() for _ in range(fields.number(1))]
    versions = list(fields.take(fields.number(1)))
    mailboxes = [fields.take(32).hex() for _ in range(fields.number(1))]
    if fields.data:
        raise ValueError("too long")
    card = Card(
        id_of(key), key, name, sequence, fingerprint, endpoints, versions, expires, mailboxes
    )
    return assemble(
        card.id,
        ANYONE,
        payload_of(card),
        cti=card.cti,
        issued=issued,
        expires=expires,
        signature=signature,
    )
