"""Cards: one proves itself, a newer one replaces it, and nobody else's will do."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colonyd.keys import PrivateKey
from federation.wire import cbor
from federation.wire.card import CARD_LIMIT, Card, newer, open_card, sign_card
from federation.wire.envelope import MAX_LIFETIME, Kind, Rejected, seal

KEY = PrivateKey.from_hex("ddf7f7791208083b6a9ed975a72684f6406a269cfa36f1b1c32045c0a71fff05")
OTHER = PrivateKey.from_hex("ba949fa134981372d6da62b6a56f336ab4d843b22c02a4257dcf7d0d73097514")
NOW = 1_800_000_000
CARD = Card(
    id=KEY.id,
    public_key=KEY.public_key,
    name="alpha",
    sequence=7,
    fingerprint="ab" * 32,
    endpoints=["192.0.2.1:50081", "[2001:db8::1]:50081", "[fe80::1%eth0]:50081", "alpha.lan:1"],
    versions=[1],
    expires=NOW + 3600,
)


def refusal(data: bytes, now: float = NOW) -> Rejected:
    with pytest.raises(Rejected) as caught:
        open_card(data, now)
    return caught.value


def body(**changes: cbor.Value) -> bytes:
    """A card's payload as signed for CARD, with changes."""
    fields: dict[str, cbor.Value] = {
        "key": KEY.public_key,
        "name": "alpha",
        "seq": 7,
        "fp": bytes(32),
        "at": ["192.0.2.1:50081"],
        "ver": [1],
    }
    return cbor.encode({**fields, **changes})


def signed(payload: bytes, *, kind: Kind = Kind.CARD, audience: str = "*") -> bytes:
    return seal(KEY, kind, audience, payload, cti=b"x", issued=NOW, expires=NOW + 60)


def test_round_trip() -> None:
    """A signed card opens to the same card, with no other knowledge than the bytes."""
    assert open_card(sign_card(KEY, CARD), NOW) == CARD
    assert open_card(sign_card(KEY, CARD, issued=NOW - 5), NOW) == CARD


def test_longest_life_by_default() -> None:
    """Without a time of issue the card lives as long as an envelope may."""
    data = sign_card(KEY, CARD)
    assert open_card(data, CARD.expires - MAX_LIFETIME) == CARD
    assert refusal(data, CARD.expires).code == "expired"


def test_later_fields_are_passed_over() -> None:
    """A card of a later version may say more."""
    assert open_card(signed(body(later="field")), NOW).name == "alpha"


def test_another_key_inside() -> None:
    """A card with the key of another colony does not prove itself."""
    assert refusal(signed(body(key=OTHER.public_key))).code == "unknown_issuer"


@given(st.integers(0, len(sign_card(KEY, CARD)) - 1), st.integers(1, 255))
def test_any_changed_byte(at: int, flip: int) -> None:
    """No byte of a card can be changed."""
    data = bytearray(sign_card(KEY, CARD))
    data[at] ^= flip
    refusal(bytes(data))


def test_not_a_card() -> None:
    """A card's content signed as something else, or to somebody, is not a card."""
    assert refusal(signed(body(), kind=Kind.HELLO)).code == "wrong_kind"
    assert refusal(signed(body(), audience="b" * 64)).code == "wrong_audience"


def test_too_large() -> None:
    """Cards are small."""
    assert refusal(bytes(CARD_LIMIT + 1)).code == "too_large"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x00",
        cbor.encode({"name": "alpha"}),
        body(seq="7"),
        body(seq=-1),
        body(seq=2**63),
        body(name=""),
        body(name="a\nb"),
        body(name="n" * 65),
        body(fp=bytes(31)),
        body(at="192.0.2.1:50081"),
        body(at=["192.0.2.1"]),
        body(at=["192.0.2.1:0"]),
        body(at=["192.0.2.1:65536"]),
        body(at=["http://192.0.2.1:1"]),
        body(at=["user@host:1"]),
        body(at=["192.0.2.1:\u0668\u0660"]),
        body(at=["[fe80::1%\u0627]:80"]),
        body(at=["a:1"] * 17),
        body(ver=[]),
        body(ver=["1"]),
    ],
)
def test_malformed(payload: bytes) -> None:
    """What a colony says of itself must make sense, even under a good signature."""
    assert refusal(signed(payload)).code == "malformed"


def test_only_the_colony_signs_its_card() -> None:
    """Signing somebody else's card is a mistake found at once."""
    with pytest.raises(ValueError, match="key of the colony"):
        sign_card(OTHER, CARD)


def test_unacceptable_card_is_not_signed() -> None:
    """A card that no peer would accept is found where it is made."""
    with pytest.raises(ValueError, match="endpoint"):
        sign_card(KEY, msgspec.structs.replace(CARD, endpoints=["nowhere"]))


def test_newer() -> None:
    """Only a higher sequence number replaces, never an equal or a lower one."""
    later = msgspec.structs.replace(CARD, sequence=8, name="beta")
    same = msgspec.structs.replace(CARD, name="beta")
    assert newer(None, CARD)
    assert newer(CARD, later)
    assert not newer(later, CARD)
    assert not newer(CARD, same)


def test_newer_of_two_colonies() -> None:
    """Cards of different colonies have no order."""
    with pytest.raises(ValueError, match="different colonies"):
        newer(CARD, msgspec.structs.replace(CARD, id=OTHER.id))
