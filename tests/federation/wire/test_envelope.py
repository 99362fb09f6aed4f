"""The envelope: what is sealed opens, and everything else is refused with its own code.

Cards, which are envelopes too, have their own file.
"""

from __future__ import annotations

import cbor2
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from hypothesis import given, settings
from hypothesis import strategies as st

from colonyd.keys import PrivateKey
from federation.wire import cbor
from federation.wire.envelope import (
    MAX_AHEAD,
    MAX_LIFETIME,
    Kind,
    Rejected,
    VerifiedMessage,
    inspect,
    open_envelope,
    seal,
)

KEY = PrivateKey.from_hex("ddf7f7791208083b6a9ed975a72684f6406a269cfa36f1b1c32045c0a71fff05")
OTHER = PrivateKey.from_hex("ba949fa134981372d6da62b6a56f336ab4d843b22c02a4257dcf7d0d73097514")
ME = "b" * 64
CTI = b"0123456789abcdef"
ISSUED = 1_800_000_000  # 2027-01-15T08:00:00Z
EXPIRES = ISSUED + 600
LIMIT = 4096
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
KEYS = {KEY.id: KEY.public_key, OTHER.id: OTHER.public_key}


def sealed(
    payload: bytes = b"hello",
    *,
    kind: Kind = Kind.SUBMIT,
    audience: str = ME,
    issued: int = ISSUED,
    expires: int = EXPIRES,
) -> bytes:
    return seal(KEY, kind, audience, payload, cti=CTI, issued=issued, expires=expires)


def opened(
    data: bytes,
    *,
    now: float = ISSUED + 1,
    limit: int = LIMIT,
    high_water: float = 0,
    kind: Kind = Kind.SUBMIT,
) -> VerifiedMessage:
    return open_envelope(
        data,
        kind=kind,
        audience=ME,
        now=now,
        keys=KEYS.get,
        limit=limit,
        high_water=high_water,
    )


def refusal(data: bytes, **arguments: float) -> Rejected:
    with pytest.raises(Rejected) as caught:
        opened(data, **arguments)  # type: ignore[arg-type]
    return caught.value


def crafted(
    header: dict[int, object] | None = None,
    claims: dict[int, object] | None = None,
    *,
    unprotected: dict[int, object] | None = None,
) -> bytes:
    """An envelope with a good signature over headers that `seal` would not write."""
    base: dict[int, object] = {1: KEY.id, 3: ME, 4: EXPIRES, 6: ISSUED, 7: CTI}
    base.update(claims or {})
    head: dict[int, object] = {1: -47, 4: bytes.fromhex(KEY.id), 15: base}
    head.update(header or {})
    protected = cbor2.dumps(
        {key: item for key, item in head.items() if item is not None}, canonical=True
    )
    signed = cbor2.dumps(["Signature1", protected, b"colonyd/1/submit", b"hello"])
    parts = [protected, unprotected or {}, b"hello", KEY.sign_es256k(signed)]
    return cbor2.dumps(cbor2.CBORTag(18, parts))


class TestAccepted:
    @given(st.binary(max_size=600), st.binary(min_size=1, max_size=64), st.sampled_from(Kind))
    def test_round_trip(self, payload: bytes, cti: bytes, kind: Kind) -> None:
        """Whatever is sealed opens to the same fields, and to the digest of the bytes."""
        data = seal(KEY, kind, ME, payload, cti=cti, issued=ISSUED, expires=EXPIRES)
        message = opened(data, kind=kind)
        assert (message.issuer, message.audience, message.cti) == (KEY.id, ME, cti)
        assert (message.issued, message.expires, message.payload) == (ISSUED, EXPIRES, payload)
        assert message.digest == hashes_sha256(data)

    def test_same_arguments_same_bytes(self) -> None:
        """A repeat is byte-identical, so its digest finds the first receipt again."""
        assert sealed() == sealed()

    def test_clock_edges(self) -> None:
        """120 s ahead is accepted, as is the last second of a life and the longest life."""
        opened(sealed(), now=ISSUED - MAX_AHEAD)
        opened(sealed(), now=EXPIRES - 0.5)
        opened(sealed(expires=ISSUED + MAX_LIFETIME))

    @pytest.mark.parametrize("span", [(5, 5), (5, 4), (-1, 4), (0, MAX_LIFETIME + 1)])
    def test_seal_refuses_what_no_peer_accepts(self, span: tuple[int, int]) -> None:
        """A span of time that every peer would refuse is found where it is made."""
        with pytest.raises(ValueError, match="lives"):
            sealed(issued=span[0], expires=span[1])

    @pytest.mark.parametrize("cti", [b"", b"x" * 65])
    def test_seal_bounds_the_message_id(self, cti: bytes) -> None:
        """A message id has 1 to 64 bytes."""
        with pytest.raises(ValueError, match="cti"):
            seal(KEY, Kind.POLL, ME, b"", cti=cti, issued=ISSUED, expires=EXPIRES)


def hashes_sha256(data: bytes) -> bytes:
    digest = hashes.Hash(hashes.SHA256())
    digest.update(data)
    return digest.finalize()


class TestOracles:
    """Other implementations of COSE, CBOR and ECDSA agree with ours."""

    # Made by the `cwt` library (3.3.0) with OpenSSL's random nonces: same headers, same payload.
    BY_CWT = (
        "0e870144453e34b50300e433b3ee7288ed2cbfd3acad71a9e00c5ec2c45fcbd1"
        "4638de886de7bb88f729d954face227a911a0a77d27083b196788c3b8728908a"
    )
    BY_CWT_HIGH_S = (
        "03ab0fe071f993be12a2a550a8dc0f68905f5fe862b53d65f1abf29dffcb4312"
        "faf5f7f237791a80301164e34869f67184ff1b33c4f67358dfb0d130c29c80e9"
    )
    HEAD = (
        "d28458cda301382e0458203fc05cf3df4b494e95d6a3d297a34f19938f7daa7422ab0d4f794454133341"
        "ac0fa5017840336663303563663364663462343934653935643661336432393761333466313939333866"
        "376461613734323261623064346637393434353431333333343161630378406262626262626262626262"
        "626262626262626262626262626262626262626262626262626262626262626262626262626262626262"
        "6262626262626262626262041a6b49d458061a6b49d200075030313233343536373839616263646566a0"
        "4568656c6c6f5840"
    )

    def test_bytes_are_those_of_cwt(self) -> None:
        """All but the signature is, byte for byte, what the cwt library writes."""
        assert sealed()[:-64].hex() == self.HEAD

    def test_opens_what_cwt_signed(self) -> None:
        """A message signed by the cwt library opens."""
        assert opened(bytes.fromhex(self.HEAD + self.BY_CWT)).payload == b"hello"

    def test_refuses_high_s_of_cwt(self) -> None:
        """OpenSSL makes a high s half of the time; one message has one signature here."""
        assert refusal(bytes.fromhex(self.HEAD + self.BY_CWT_HIGH_S)).code == "bad_signature"

    def test_openssl_verifies_ours(self) -> None:
        """The signature holds for OpenSSL over a Sig_structure encoded by cbor2."""
        tag = cbor2.loads(sealed())
        protected, unprotected, payload, signature = tag.value
        assert (tag.tag, unprotected, payload) == (18, {}, b"hello")
        public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), KEY.public_key)
        r, s = (int.from_bytes(signature[at : at + 32], "big") for at in (0, 32))
        signed = cbor2.dumps(["Signature1", protected, b"colonyd/1/submit", payload])
        public.verify(encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA256()))

    values = st.recursive(
        st.integers(-(2**64), 2**64 - 1)
        | st.binary(max_size=300)
        | st.text(max_size=40)
        | st.booleans()
        | st.none(),
        lambda inner: (
            st.lists(inner, max_size=5)
            | st.dictionaries(st.text(max_size=23) | st.integers(0, 2**40), inner, max_size=5)
        ),
        max_leaves=20,
    )

    @given(values)
    def test_cbor_agrees_with_cbor2(self, value: cbor.Value) -> None:
        """What we encode, cbor2 reads; and our own reader gets the same value back."""
        data = cbor.encode(value)
        assert cbor2.loads(data) == value
        assert cbor.decode(data, depth=40) == value

    @given(st.binary(max_size=40))
    def test_one_value_one_encoding(self, data: bytes) -> None:
        """Any bytes either are the encoding of what they decode to, or are refused."""
        try:
            value = cbor.decode(data)
        except cbor.CborError:
            return
        assert cbor.encode(value) == data


class TestRefused:
    def test_too_large(self) -> None:
        """One byte over the limit is refused before anything is read."""
        data = sealed()
        opened(data, limit=len(data))
        assert refusal(data, limit=len(data) - 1).code == "too_large"
        assert refusal(b"\xff" * 10, limit=9).code == "too_large"

    @settings(max_examples=400)
    @given(st.integers(0, len(sealed()) - 1), st.integers(1, 255))
    def test_any_changed_byte(self, at: int, flip: int) -> None:
        """No byte of a message can be changed."""
        data = bytearray(sealed())
        data[at] ^= flip
        assert refusal(bytes(data)).code in (
            "malformed",
            "bad_algorithm",
            "unknown_issuer",
            "bad_signature",
        )

    @given(st.binary(max_size=200))
    def test_noise(self, data: bytes) -> None:
        """Noise is refused and never anything worse."""
        assert refusal(data).code == "malformed"

    @given(st.integers(0, len(sealed()) - 1))
    def test_truncated(self, length: int) -> None:
        """A message cut short is malformed."""
        assert refusal(sealed()[:length]).code == "malformed"

    def test_bad_signature(self) -> None:
        """Another payload under the same signature is refused, as is an empty signature."""
        data = sealed()
        assert refusal(data.replace(b"hello", b"jello")).code == "bad_signature"
        assert refusal(data[:-64] + bytes(64)).code == "bad_signature"

    def test_high_s(self) -> None:
        """The mirrored signature, which plain ECDSA accepts, is refused: one message, one form."""
        data = sealed()
        s = ORDER - int.from_bytes(data[-32:], "big")
        assert refusal(data[:-32] + s.to_bytes(32, "big")).code == "bad_signature"

    def test_signed_by_another(self) -> None:
        """A message in the name of one colony with the signature of another is refused."""
        signed = inspect(sealed(), limit=LIMIT).signed_bytes(Kind.SUBMIT)
        assert refusal(sealed()[:-64] + OTHER.sign_es256k(signed)).code == "bad_signature"

    def test_wrong_kind(self) -> None:
        """A cancel sent as a submit is refused, and the message names both."""
        refused = refusal(sealed(kind=Kind.CANCEL))
        assert refused.code == "wrong_kind"
        assert "cancel" in refused.message
        assert "submit" in refused.message

    def test_wrong_audience(self) -> None:
        """A message to another colony is refused, even from a trusted one."""
        assert refusal(sealed(audience="c" * 64)).code == "wrong_audience"

    def test_unknown_issuer(self) -> None:
        """Without a key for the issuer there is nothing to check."""
        stranger = PrivateKey.generate()
        data = seal(stranger, Kind.SUBMIT, ME, b"", cti=CTI, issued=ISSUED, expires=EXPIRES)
        assert refusal(data).code == "unknown_issuer"

    def test_key_that_is_not_the_issuers(self) -> None:
        """A key store that gives the wrong key is caught: the id is the key's hash."""
        with pytest.raises(Rejected) as caught:
            open_envelope(
                sealed(),
                kind=Kind.SUBMIT,
                audience=ME,
                now=ISSUED,
                keys=lambda _: OTHER.public_key,
                limit=LIMIT,
            )
        assert caught.value.code == "unknown_issuer"

    def test_bad_algorithm(self) -> None:
        """Only ES256K is accepted, whatever else the signer would like."""
        for algorithm in (-7, -8, 5, 0):
            assert refusal(crafted({1: algorithm})).code == "bad_algorithm"

    def test_order(self) -> None:
        """Of several faults the first in the order of checks is told."""
        late = sealed(audience="c" * 64, kind=Kind.CANCEL)
        assert refusal(late, now=EXPIRES + 1).code == "wrong_kind"
        assert refusal(sealed(audience="c" * 64), now=EXPIRES + 1).code == "wrong_audience"
        assert refusal(late.replace(b"hello", b"jello")).code == "bad_signature"


class TestTime:
    def test_not_yet_valid(self) -> None:
        """A message from more than 120 s ahead is refused with both clocks and the difference."""
        refused = refusal(sealed(), now=ISSUED - MAX_AHEAD - 1)
        assert refused.code == "not_yet_valid"
        assert "2027-01-15T08:00:00Z by the sender's clock" in refused.message
        assert "our clock says 2027-01-15T07:57:59Z" in refused.message
        assert "121 s ahead, at most 120 s" in refused.message

    def test_expired(self) -> None:
        """A message past its end is refused with both clocks and the difference."""
        refused = refusal(sealed(), now=EXPIRES + 30)
        assert refused.code == "expired"
        assert "issued at 2027-01-15T08:00:00Z" in refused.message
        assert "expired at 2027-01-15T08:10:00Z by the sender's clock" in refused.message
        assert "our clock says 2027-01-15T08:10:30Z" in refused.message
        assert "30 s late" in refused.message
        assert refusal(sealed(), now=EXPIRES).code == "expired"

    def test_boot_in_the_past(self) -> None:
        """A host whose clock fell back does not accept again what it saw expire."""
        refused = refusal(sealed(), now=0, high_water=EXPIRES + 30)
        assert refused.code == "expired"
        assert "the system clock says 1970-01-01T00:00:00Z" in refused.message

    def test_boot_in_the_past_accepts_the_present(self) -> None:
        """Its own memory lets such a host accept what was issued since."""
        opened(sealed(), now=0, high_water=ISSUED - 60)

    def test_lifetime_too_long(self) -> None:
        """A message that would have to be remembered for more than a week is refused."""
        assert refusal(crafted(claims={4: ISSUED + MAX_LIFETIME + 1})).code == "lifetime_too_long"


class TestMalformed:
    """Each way of writing bytes that are not the one encoding of an envelope."""

    def check(self, data: bytes, reason: str) -> None:
        refused = refusal(data)
        assert refused.code == "malformed"
        assert reason in refused.message

    def test_crafted_is_otherwise_good(self) -> None:
        """The helper's envelope opens, so that the tests below refuse for their own reason."""
        assert opened(crafted()).payload == b"hello"

    def test_trailing_bytes(self) -> None:
        """Nothing may follow."""
        self.check(sealed() + b"\x00", "trailing bytes")

    def test_indefinite_length(self) -> None:
        """The four parts in an array without a length."""
        data = sealed()
        self.check(data[:1] + b"\x9f" + data[2:] + b"\xff", "indefinite length")

    def test_length_longer_than_needed(self) -> None:
        """The same payload length in two bytes."""
        self.check(sealed().replace(b"\x45hello", b"\x58\x05hello"), "shortest form")

    @pytest.mark.parametrize("number", ["1817", "1900ff", "1a0000ffff", "1b00000000ffffffff"])
    def test_integer_longer_than_needed(self, number: str) -> None:
        """Every size of integer must be the shortest."""
        with pytest.raises(cbor.CborError, match="shortest"):
            cbor.decode(bytes.fromhex(number))

    def test_duplicate_keys(self) -> None:
        """A header that says its algorithm twice."""
        header = cbor2.loads(sealed()).value[0]
        twice = b"\xa4\x01\x38\x2e" + header[1:]
        self.check(self.around(twice), "duplicate map key 1")

    def test_keys_out_of_order(self) -> None:
        """A map sorted in any other way is another encoding of the same thing."""
        self.check(self.around(b"\xa2\x04\x00\x01\x00"), "out of order")

    def test_too_deep(self) -> None:
        """Nesting ends before the stack does."""
        self.check(b"\xd2" + b"\x81" * 2000 + b"\x00", "too deep")
        self.check(self.around(b"\xa1\x01" + b"\x81" * 2000 + b"\x00"), "too deep")

    def test_huge_counts(self) -> None:
        """A count that the bytes cannot hold costs nothing."""
        self.check(b"\xd2\x9b" + b"\xff" * 8, "truncated")
        self.check(b"\xd2\x84\x5b" + b"\xff" * 8, "truncated")

    @pytest.mark.parametrize("item", ["f93c00", "f7", "f818", "fb3ff0000000000000", "c074", "1c"])
    def test_items_without_a_place(self, item: str) -> None:
        """Floats, undefined, other simple values, tags and reserved heads are refused."""
        with pytest.raises(cbor.CborError):
            cbor.decode(bytes.fromhex(item))

    def test_text_that_is_not_text(self) -> None:
        """Text must be UTF-8."""
        with pytest.raises(cbor.CborError, match="UTF-8"):
            cbor.decode(b"\x62\xc3\x28")

    def test_not_tagged(self) -> None:
        """An envelope without its tag, or with another."""
        self.check(sealed()[1:], "not tagged")
        self.check(b"\xd1" + sealed()[1:], "not tagged")

    def test_unprotected_headers(self) -> None:
        """What is not signed has no say."""
        self.check(crafted(unprotected={4: b"x"}), "unprotected")

    def test_other_headers(self) -> None:
        """A header that we do not know could be critical to its sender."""
        self.check(crafted({2: [99]}), "not exactly alg, kid and claims")
        self.check(crafted({4: None}), "not exactly alg, kid and claims")

    @pytest.mark.parametrize(
        "claims",
        [{4: str(EXPIRES)}, {6: True}, {6: None}, {7: "text"}, {3: b"bytes"}, {5: 1}],
    )
    def test_claims_of_other_shape(self, claims: dict[int, object]) -> None:
        """Claims have exactly their names and types."""
        self.check(crafted(claims=claims), "claims are not exactly")

    def test_values_out_of_range(self) -> None:
        """Names, ids and times must make sense before anything is done with them."""
        self.check(crafted(claims={1: OTHER.id}), "same colony")
        self.check(crafted({4: b"short"}), "same colony")
        self.check(crafted(claims={7: b""}), "cti")
        self.check(crafted(claims={4: ISSUED}), "span of time")
        self.check(crafted(claims={6: -1}), "span of time")
        self.check(crafted(claims={4: 2**63}), "span of time")

    def test_short_signature(self) -> None:
        """A signature has 64 bytes."""
        head = sealed()[:-66]
        self.check(head + b"\x58\x3f" + bytes(63), "63 bytes")

    def around(self, header: bytes) -> bytes:
        """An envelope around the bytes of a protected header."""
        return cbor2.dumps(cbor2.CBORTag(18, [header, {}, b"", bytes(64)]))
