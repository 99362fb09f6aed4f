"""The link of a card: it holds the card byte for byte, and is short enough for a QR code."""

from __future__ import annotations

import msgspec
import pytest
import segno
from hypothesis import given, settings
from hypothesis import strategies as st

from colonyd.keys import PrivateKey
from federation.wire import cbor
from federation.wire.card import Card, open_card, payload_of, sign_card
from federation.wire.cardlink import SCHEME, LinkError, read_link, write_link
from federation.wire.compact import write_code
from federation.wire.envelope import MAX_LIFETIME, Kind, Rejected, seal
from federation.wire.invitation import Token, write_token
from tests.federation.membership.support import addresses

NOW = 1_800_000_000
KEY = PrivateKey.generate()
CARD = Card(
    KEY.id, KEY.public_key, "lab-paris", NOW, "ab" * 32, ["192.0.2.7:50081", "[2001:db8::7]:50081"],
    [2], NOW + 6 * 86_400,
)  # fmt: skip
DATA = sign_card(KEY, CARD)

cards = st.builds(
    lambda name, endpoints, mailboxes, sequence, versions: msgspec.structs.replace(
        CARD,
        name=name,
        endpoints=endpoints,
        mailboxes=mailboxes,
        sequence=sequence,
        versions=versions,
    ),
    name=st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,62}", fullmatch=True).filter("any".__ne__),
    endpoints=st.lists(addresses, max_size=16),
    mailboxes=st.lists(st.binary(min_size=32, max_size=32).map(bytes.hex), max_size=4),
    sequence=st.integers(0, 2**63 - 1),
    versions=st.lists(st.integers(0, 1000), min_size=1, max_size=16),
)


@settings(max_examples=40, deadline=None)
@given(cards)
def test_a_link_holds_the_very_card_however_it_is_copied(card: Card) -> None:
    data = sign_card(KEY, card)
    link = write_link(data)
    assert read_link(link) == data
    assert read_link(f" {link.lower()[:40]}\n {link[40:]}  ") == data
    assert read_link(link.removeprefix(SCHEME.upper())) == data
    assert open_card(read_link(link), NOW) == card


def test_a_card_of_a_later_version_is_kept_whole() -> None:
    body = cbor.decode(payload_of(CARD), depth=2)
    assert isinstance(body, dict)
    later = seal(
        KEY, Kind.CARD, "*", cbor.encode(body | {"new": "x"}), cti=b"c", issued=NOW,
        expires=NOW + MAX_LIFETIME,
    )  # fmt: skip
    assert read_link(write_link(later)) == later


def test_a_link_fits_a_code_that_fits_a_terminal() -> None:
    """Two rows of a code are one line; 80 columns are common."""
    code = segno.make(write_link(DATA), error="l", micro=False)
    assert code.mode == "alphanumeric"
    assert int(code.version) <= 10
    assert code.symbol_size(border=4)[0] <= 65


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_slip_or_a_cut_is_found(data: st.DataObject) -> None:
    link = write_link(DATA)
    at = data.draw(st.integers(len(SCHEME), len(link) - 2))
    other = data.draw(st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567").filter(link[at].__ne__))
    for wrong in (link[:at] + other + link[at + 1 :], link[:at]):
        with pytest.raises(LinkError, match=r"incomplete or mistyped|it is empty"):
            read_link(wrong)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(1, 255))
def test_whoever_changes_a_card_in_a_link_is_found_by_its_signature(at: int, bits: int) -> None:
    """The check is no secret: a forger makes it anew."""
    import base64

    letters = write_link(DATA)[len(SCHEME) :]
    body = bytearray(base64.b32decode(letters + "=" * (-len(letters) % 8))[:-4])
    body[min(at, len(body) - 1)] ^= bits
    try:
        card = open_card(read_link(write_code(bytes(body), "card")), NOW)
    except (LinkError, Rejected):
        return
    raise AssertionError(card)


def test_what_is_no_link_is_told_apart() -> None:
    token = write_token(Token(KEY.id, "f" * 64, ["192.0.2.1:50081"], NOW, bytes(16)))
    for text, why in (
        ("", "it is empty"),
        (SCHEME, "it is empty"),
        ("colony:!!", "not the link of a card"),
        (token, "it is an invitation"),
        (write_code(b"\x07x", "card"), "of version 7"),
        (write_code(b"\x01x", "card"), "makes no sense"),
        ("A" * 20_000, "not the link of a card"),
    ):
        with pytest.raises(LinkError, match=why):
            read_link(text)


@given(st.binary(max_size=300))
def test_any_bytes_with_a_right_check_are_a_card_or_refused(body: bytes) -> None:
    try:
        data = read_link(write_code(body, "card"))
    except LinkError:
        return
    with pytest.raises(Rejected):
        open_card(data, NOW)
