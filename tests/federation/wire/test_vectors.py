"""The test vectors in docs/vectors/: the code gives and takes what they say, and so do others.

What is expected is read from the files. Beside our own code, cbor2, OpenSSL and the standard
library's hashes build each envelope and derived value again, so that the files do not merely
repeat what the code does.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any, get_args

import cbor2
import msgspec
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from colonyd.keys import PrivateKey, id_of
from federation.dht.lookups import target as dht_key
from federation.forward import attachments as manifest
from federation.forward import chain as chains
from federation.forward import path as relays
from federation.forward import updates as progress
from federation.wire import cbor, messages
from federation.wire import invitation as tokens
from federation.wire.card import Card, open_card, sign_card
from federation.wire.envelope import (
    Code,
    Kind,
    Rejected,
    VerifiedMessage,
    inspect,
    open_envelope,
    seal,
)
from federation.wire.messages import dump, load
from federation.wire.signer import cti_of
from federation.wire.succession import declare, prove
from tests.support import vectors

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((vectors.DIRECTORY / name).read_text())
    return found


KEYS = {each["id"]: each for each in read("keys.json")["keys"]}
PUBLIC = {name: bytes.fromhex(each["public"]) for name, each in KEYS.items()}
ENVELOPES = read("envelopes.json")
CARDS = read("card.json")
DERIVED = read("derived.json")
RELAYS = read("relays.json")
REFUSED = read("refused.json")
SEALED = [*ENVELOPES["cases"], *CARDS["accepted"]]


def private(colony: str) -> PrivateKey:
    return PrivateKey.from_hex(KEYS[colony]["private"])


def openssl(colony: str, message: bytes) -> bytes:
    """ES256K by OpenSSL: a nonce by RFC 6979, the lower of both s."""
    key = ec.derive_private_key(int(KEYS[colony]["private"], 16), ec.SECP256K1())
    algorithm = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
    r, s = decode_dss_signature(key.sign(message, algorithm))
    return r.to_bytes(32, "big") + min(s, ORDER - s).to_bytes(32, "big")


def native(value: Any) -> Any:
    """A value of the files: {"hex": ...} is bytes."""
    if isinstance(value, dict):
        if value.keys() == {"hex"}:
            return bytes.fromhex(value["hex"])
        return {key: native(item) for key, item in value.items()}
    return [native(item) for item in value] if isinstance(value, list) else value


def test_the_files_are_what_the_script_makes() -> None:
    """Made again, by `scripts/vectors`, they are the same bytes: signatures are deterministic."""
    made = vectors.build()
    there = {path.name for path in vectors.DIRECTORY.iterdir()}
    assert there == made.keys()
    for name, text in made.items():
        assert (vectors.DIRECTORY / name).read_text() == text, name


@pytest.mark.parametrize("colony", KEYS)
def test_keys(colony: str) -> None:
    each = KEYS[colony]
    key = private(colony)
    assert (key.id, key.public_key.hex()) == (colony, each["public"])
    assert id_of(PUBLIC[colony]) == hashlib.sha3_256(each["public"].encode()).hexdigest() == colony
    message, signature = (bytes.fromhex(each["es256k"][it]) for it in ("message", "signature"))
    assert key.sign_es256k(message) == openssl(colony, message) == signature


# -- CBOR ----------------------------------------------------------------------------------------


def typed(value: list[Any]) -> Any:
    kind, item = value
    match kind:
        case "int":
            return int(item)
        case "bytes":
            return bytes.fromhex(item)
        case "array":
            return [typed(each) for each in item]
        case "map":
            return {typed(key): typed(each) for key, each in item}
    return item


def test_one_encoding_of_a_value() -> None:
    for each in read("cbor.json")["accepted"]:
        value, data = typed(each["value"]), bytes.fromhex(each["cbor"])
        assert cbor.encode(value) == data
        assert cbor.decode(data) == cbor2.loads(data) == value


def test_other_encodings_are_refused() -> None:
    file = read("cbor.json")
    for each in file["refused"]:
        with pytest.raises(cbor.CborError):
            cbor.decode(bytes.fromhex(each["cbor"]), depth=file["depth"])


# -- envelopes -----------------------------------------------------------------------------------


def by_hand(case: dict[str, Any]) -> bytes:
    """The envelope of a case by other libraries, from its fields alone."""
    claims = {
        1: case["issuer"],
        3: case["audience"],
        4: case["expires"],
        6: case["issued"],
        7: bytes.fromhex(case["cti"]),
    }
    # Of these, cbor2 keeps the order; it is that of the encoded keys.
    protected = cbor2.dumps({1: -47, 4: bytes.fromhex(case["issuer"]), 15: claims})
    payload = bytes.fromhex(case["payload"])
    context = f"colonyd/1/{case['kind']}".encode()
    signature = openssl(case["issuer"], cbor2.dumps(["Signature1", protected, context, payload]))
    return cbor2.dumps(cbor2.CBORTag(18, [protected, {}, payload, signature]))


@pytest.mark.parametrize("case", SEALED, ids=lambda case: f"{case['kind']}: {case['name']}")
def test_an_envelope(case: dict[str, Any]) -> None:
    """Sealed it is these bytes, by us and by others; opened it is these values."""
    data, kind = bytes.fromhex(case["envelope"]), Kind(case["kind"])
    payload, cti = bytes.fromhex(case["payload"]), bytes.fromhex(case["cti"])
    assert by_hand(case) == data
    assert data == seal(
        private(case["issuer"]),
        kind,
        case["audience"],
        payload,
        cti=cti,
        issued=case["issued"],
        expires=case["expires"],
    )
    opened = open_envelope(
        data,
        kind=kind,
        audience=case["audience"],
        now=ENVELOPES["now"],
        keys=PUBLIC.get,
        limit=ENVELOPES["limit"],
    )
    assert opened == VerifiedMessage(
        case["issuer"],
        case["audience"],
        cti,
        case["issued"],
        case["expires"],
        payload,
        bytes.fromhex(case["sha256"]),
    )
    seen = inspect(data, limit=len(data))
    assert seen.protected.hex() == case["protected"]
    assert seen.signed_bytes(kind).hex() == case["sig_structure"]
    assert case["external_aad"] == f"colonyd/1/{kind.value}"
    assert cbor2.loads(payload) == native(case["message"])


@pytest.mark.parametrize(
    "case", ENVELOPES["cases"], ids=lambda case: f"{case['kind']}: {case['name']}"
)
def test_a_payload(case: dict[str, Any]) -> None:
    """Payloads become messages, and messages these payloads."""
    struct: type[msgspec.Struct] = getattr(messages, case["struct"])
    message = load(bytes.fromhex(case["payload"]), struct)
    assert dump(message).hex() == case["payload"]
    assert dump(msgspec.convert(native(case["message"]), struct)).hex() == case["payload"]


def test_every_kind_has_a_vector() -> None:
    there = {case["kind"] for case in SEALED} | {"succession"}
    assert there == {kind.value for kind in Kind}


def test_a_signature_by_another_library() -> None:
    """What cwt signed opens if its s is low, and is refused if not."""
    foreign = ENVELOPES["by_another_library"]
    case = next(each for each in ENVELOPES["cases"] if each["name"] == foreign["case"])

    def opened(signature: str) -> VerifiedMessage:
        return open_envelope(
            bytes.fromhex(case["envelope"])[:-64] + bytes.fromhex(signature),
            kind=Kind(case["kind"]),
            audience=case["audience"],
            now=ENVELOPES["now"],
            keys=PUBLIC.get,
            limit=ENVELOPES["limit"],
        )

    assert opened(foreign["signature_low_s"]).payload.hex() == case["payload"]
    with pytest.raises(Rejected) as caught:
        opened(foreign["signature_high_s"])
    assert caught.value.code == "bad_signature"


@pytest.mark.parametrize(
    "case", REFUSED["cases"], ids=lambda each: f"{each['code']}: {each['why']}"
)
def test_what_is_refused(case: dict[str, Any]) -> None:
    def opened() -> VerifiedMessage:
        return open_envelope(
            bytes.fromhex(case["envelope"]),
            kind=Kind(REFUSED["kind"]),
            audience=REFUSED["audience"],
            now=case["now"],
            high_water=case["high_water"],
            keys={each: PUBLIC[each] for each in REFUSED["known"]}.get,
            limit=case["limit"],
        )

    if not case["code"]:
        assert opened().payload == b"hello"
        return
    with pytest.raises(Rejected) as caught:
        opened()
    assert caught.value.code == case["code"]


def test_every_code_of_an_envelope_has_a_vector() -> None:
    assert {case["code"] for case in REFUSED["cases"]} == {"", *get_args(Code)}


# -- cards -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CARDS["accepted"], ids=lambda case: str(case["name"]))
def test_a_card(case: dict[str, Any]) -> None:
    body, data = native(case["message"]), bytes.fromhex(case["envelope"])
    card = open_card(data, CARDS["now"])
    assert card == Card(
        case["issuer"],
        body["key"],
        body["name"],
        body["seq"],
        body["fp"].hex(),
        body["at"],
        body["ver"],
        case["expires"],
        body.get("mb", []),
    )
    if "later" not in body:
        assert sign_card(private(card.id), card) == data


@pytest.mark.parametrize("case", CARDS["accepted"], ids=lambda case: str(case["name"]))
def test_the_link_of_a_card(case: dict[str, Any]) -> None:
    """The page's table, read by hand."""
    body, data = native(case["message"]), bytes.fromhex(case["envelope"])
    scheme, letters = case["link"].split(":")
    packed = base64.b32decode(letters + "=" * (-len(letters) % 8))
    assert scheme.lower() == "colony"
    assert packed[-4:] == hashlib.sha256(b"colonyd/1/card" + packed[:-4]).digest()[:4]
    form, rest = packed[0], packed[1:-4]
    if "later" in body:
        assert (form, rest) == (2, data)
        return
    key = body["key"]
    assert form == 1
    assert rest[:33] == bytes((2 + key[-1] % 2,)) + key[1:33]
    assert rest[33:97] == data[-64:]
    assert rest[97:129] == body["fp"]
    assert rest[129:137].hex() == case["cti"]
    assert int.from_bytes(rest[137:142], "big") == case["issued"]
    assert int.from_bytes(rest[142:147], "big") == case["expires"]
    assert rest[147:].startswith(bytes((len(body["name"]),)) + body["name"].encode())
    assert rest.endswith(b"".join(map(bytes.fromhex, body.get("mb", []))))


@pytest.mark.parametrize("case", CARDS["refused"], ids=lambda case: str(case["why"]))
def test_what_is_no_card(case: dict[str, Any]) -> None:
    with pytest.raises(Rejected) as caught:
        open_card(bytes.fromhex(case["envelope"]), CARDS["now"])
    assert caught.value.code == case["code"]


# -- derived values ----------------------------------------------------------------------------


def test_ids_and_names_of_messages() -> None:
    for each in DERIVED["local_id"]:
        said = f"{each['issuer']}/{each['pid']}/{each['attempt']}".encode()
        assert hashlib.sha3_256(said).hexdigest() == each["id"]
        assert relays.local_id(each["issuer"], each["pid"], each["attempt"]) == each["id"]
    for each in DERIVED["cti"]:
        assert hashlib.sha256("".join(each["parts"]).encode()).digest()[:16].hex() == each["cti"]
        assert cti_of(*each["parts"]).hex() == each["cti"]
    for each in DERIVED["output_digest"]:
        out = bytes.fromhex(each["out"])
        assert progress.digest_of(out).hex() == each["digest"]
    for each in DERIVED["dht"]:
        said = b"colonyd dht 1\n" + bytes.fromhex(each["id"])
        assert hashlib.sha1(said).hexdigest() == each["key"]
        assert dht_key(each["id"]).hex() == each["key"]
    files = DERIVED["files"]
    file, snapshot = files["file"], files["snapshot"]
    said = "\n".join((files["pid"], file["mount"], file["label"], file["name"])).encode()
    assert hashlib.sha3_256(said).hexdigest() == file["id"]
    assert manifest.label_here(files["pid"], file["mount"], file["label"]) == files["label"]
    assert manifest.snapshot_id(files["pid"], snapshot["place"]) == snapshot["id"]


def test_an_invitation() -> None:
    """From the token to the proofs: as the code has it, and by HMAC alone."""
    each = DERIVED["invitation"]
    secret = bytes.fromhex(each["secret"])
    token = tokens.read_token(each["token"])
    assert token == tokens.Token(
        each["inviter"], each["fingerprint"], each["addresses"], each["expires"], secret
    )
    assert tokens.write_token(token) == each["token"]
    assert tokens.name_of(secret) == each["name"]
    key = hmac.digest(secret, b"colonyd/1/invitation/key", "sha256")
    name = hmac.digest(secret, b"colonyd/1/invitation/name", "sha256")
    assert (key.hex(), name[:8].hex()) == (each["key"], each["name"])
    nonces = [bytes.fromhex(nonce) for nonce in each["nonces"]]
    for role, proof in each["proofs"].items():
        ids = [each["joiner"], each["inviter"]]
        said = cbor2.dumps(["colonyd/1/join", role, *ids, *nonces, each["fingerprint"]])
        assert hmac.digest(key, said, "sha256").hex() == proof
        mine = tokens.proof(
            tokens.key_of(secret),
            role,
            joiner=each["joiner"],
            inviter=each["inviter"],
            nonces=(nonces[0], nonces[1]),
            fingerprint=each["fingerprint"],
        )
        assert mine.hex() == proof
    body = bytes.fromhex(each["knock"]["body"])
    said = b"colonyd/1/invitation/knock" + hashlib.sha256(body).digest()
    assert hmac.digest(key, said, "sha256").hex() == each["knock"]["mac"]
    assert tokens.knock(tokens.key_of(secret), body).hex() == each["knock"]["mac"]


def test_a_succession() -> None:
    each = DERIVED["succession"]
    both = [bytes.fromhex(each[name]) for name in ("by_old", "by_new")]
    succession = prove(messages.Successor(*both))
    assert (succession.old, succession.new) == (each["old"], each["new"])
    assert (succession.issued, succession.until) == (each["issued"], each["until"])
    made = declare(private(each["old"]), private(each["new"]), each["issued"])
    assert [made.by_old, made.by_new] == both
    with pytest.raises(Rejected):
        prove(messages.Successor(both[0], both[0]))


# -- relays ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", RELAYS["there"], ids=lambda case: str(case["name"]))
def test_the_way_there(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["envelope"])
    opened = open_envelope(
        data,
        kind=Kind.SUBMIT,
        audience=case["me"],
        now=ENVELOPES["now"],
        keys=PUBLIC.get,
        limit=ENVELOPES["limit"],
    )
    submit = load(opened.payload, messages.Submit)
    if not case["code"]:
        asked = relays.unwrap(opened, submit, [case["me"]], len(data))
        assert asked.ids == case["ids"]
        assert asked.request.digest.hex() == case["asked"]
        assert asked.request.origin == case["ids"][0]
        return
    with pytest.raises(Rejected) as caught:
        relays.unwrap(opened, submit, [case["me"]], len(data))
    assert caught.value.code == case["code"]


@pytest.mark.parametrize("case", RELAYS["back"], ids=lambda case: str(case["name"]))
def test_the_way_back(case: dict[str, Any]) -> None:
    sealed = bytes.fromhex(case["outcome"])
    asked = RELAYS["asked"]
    request = relays.OriginRequest(asked["origin"], bytes.fromhex(asked["sha256"]))
    steps = chains.trace(sealed, case["peer"], PUBLIC[case["peer"]], [case["me"]], request=request)
    told, problem = chains.conclusion(steps, case["wanted"], case["known"])
    assert (told is not None) == case["holds"], problem
    if told is not None:
        assert told.out.hex() == case["out"]


def test_what_an_outcome_answers() -> None:
    """The hash of the origin's own envelope, at every colony that it comes to."""
    asked = RELAYS["asked"]
    sealed = bytes.fromhex(asked["submission"])
    assert hashlib.sha256(sealed).hexdigest() == asked["sha256"]
    passed = bytes.fromhex(RELAYS["there"][0]["envelope"])
    for each in (sealed, passed):
        request = relays.request_of(each)
        assert (request.origin, request.digest.hex()) == (asked["origin"], asked["sha256"])
    seen = inspect(bytes.fromhex(RELAYS["back"][0]["outcome"]), limit=10_000)
    told = load(seen.payload, messages.Outcome)
    below = load(inspect(told.below, limit=10_000).payload, messages.Outcome)
    for outcome in (told, below):
        assert (outcome.origin, outcome.asked.hex()) == (asked["origin"], asked["sha256"])


def test_text_is_no_bytes() -> None:
    """A payload has one encoding: bytes in base64 would be a second one."""
    with pytest.raises(Rejected) as caught:
        load(cbor.encode({"card": "AAAA"}), messages.Hello)
    assert caught.value.code == "malformed"
