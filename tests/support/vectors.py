"""Makes the test vectors in docs/vectors/: the same bytes on every run, on every machine.

What the vectors mean is told in docs/federation.md; `federation.wire.test_vectors` checks the code
against them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from colonyd.keys import PrivateKey
from federation.dht.lookups import target as dht_key
from federation.forward import attachments as manifest
from federation.forward import chain as chains
from federation.forward import path as relays
from federation.forward import updates as progress
from federation.wire import cbor, messages
from federation.wire import invitation as tokens
from federation.wire.card import Card, sign_card
from federation.wire.cardlink import write_link
from federation.wire.envelope import MAX_LIFETIME, Kind, inspect, seal
from federation.wire.messages import dump
from federation.wire.signer import cti_of
from federation.wire.succession import declare

__all__ = ["ANT", "BEE", "CAT", "DIRECTORY", "NOW", "build", "main"]

DIRECTORY = Path(__file__).parents[2] / "docs" / "vectors"
NOW = 1_800_000_000  # 2027-01-15T08:00:00Z
LIMIT = 1_500_000


def _key(name: str) -> PrivateKey:
    return PrivateKey.from_hex(hashlib.sha256(f"colonyd/1/vector/{name}".encode()).hexdigest())


# ant asks, bee is its peer, cat a colony beyond bee; heir takes the place of ant.
ANT, BEE, CAT, HEIR = (_key(name) for name in ("ant", "bee", "cat", "heir"))
_NAMES = {ANT.id: "ant", BEE.id: "bee", CAT.id: "cat", HEIR.id: "heir"}
_PID = hashlib.sha256(b"colonyd/1/vector/process").hexdigest()
_AT_BEE = relays.local_id(ANT.id, _PID, 1)
_AT_CAT = relays.local_id(BEE.id, _AT_BEE, 1)
_FINGERPRINT = hashlib.sha256(b"colonyd/1/vector/certificate").hexdigest()
_SECRET = bytes(range(16))
_NONCES = (bytes(range(16)), bytes(range(16, 32)))
_SPEC = b'{"funcname":"f","args":["x"],"conditions":{"colonyname":"bee","executortype":"t"}}'
_FURTHER = b'{"funcname":"f","conditions":{"colonyname":"cat","executortype":"t"}}'


def shown(value: Any) -> Any:
    """A value of CBOR in JSON: bytes become {"hex": ...}."""
    match value:
        case bytes():
            return {"hex": value.hex()}
        case Mapping():
            return {str(key): shown(item) for key, item in value.items()}
        case list() | tuple():
            return [shown(item) for item in value]
    return value


def plain(message: msgspec.Struct) -> Any:
    return msgspec.to_builtins(message, builtin_types=(bytes,))


def _envelope(
    key: PrivateKey,
    kind: Kind,
    audience: str,
    payload: bytes,
    *,
    cti: bytes = b"vector",
    issued: int = NOW,
    expires: int = NOW + 600,
) -> bytes:
    return seal(key, kind, audience, payload, cti=cti, issued=issued, expires=expires)


def _case(name: str, kind: Kind, data: bytes, message: Any, **more: Any) -> dict[str, Any]:
    seen = inspect(data, limit=LIMIT)
    return {
        "name": name,
        "kind": kind.value,
        "issuer": seen.issuer,
        "audience": seen.audience,
        "cti": seen.cti.hex(),
        "issued": seen.issued,
        "expires": seen.expires,
        "message": shown(message),
        "payload": seen.payload.hex(),
        "external_aad": f"colonyd/1/{kind.value}",
        "protected": seen.protected.hex(),
        "sig_structure": seen.signed_bytes(kind).hex(),
        "signature": seen.signature.hex(),
        "envelope": data.hex(),
        "sha256": hashlib.sha256(data).hexdigest(),
        **more,
    }


# -- keys, ids, CBOR -----------------------------------------------------------------------------


def keys() -> dict[str, Any]:
    """Key pairs, and one signature of each."""
    said = b"colonyd"
    return {
        "about": "Private keys of these vectors are public: never use them.",
        "keys": [
            {
                "name": _NAMES[key.id],
                "private": key.hex,
                "public": key.public_key.hex(),
                "id": key.id,
                "es256k": {"message": said.hex(), "signature": key.sign_es256k(said).hex()},
            }
            for key in (ANT, BEE, CAT, HEIR)
        ],
    }


_GOOD: list[Any] = [
    0, 23, 24, 255, 256, 65_535, 65_536, 2**32, 2**64 - 1, -1, -24, -25, -47, -(2**64),
    b"", b"\x00" * 24, "", "ü", "a" * 24, True, False, None, [], [1, [2]], {},
    {"b": 1, "a": 2, "aa": 3}, {24: 0, 1: 0, "a": 0, -1: 0},
]  # fmt: skip
_BAD = {
    "1817": "integer not in its shortest form",
    "190017": "integer not in its shortest form",
    "1900ff": "integer not in its shortest form",
    "1a0000ffff": "integer not in its shortest form",
    "1b00000000ffffffff": "integer not in its shortest form",
    "3817": "negative integer not in its shortest form",
    "580161": "length not in its shortest form",
    "780161": "length not in its shortest form",
    "980100": "count not in its shortest form",
    "b8010000": "count not in its shortest form",
    "5f416100ff": "indefinite length",
    "7f6161ff": "indefinite length",
    "9f00ff": "indefinite length",
    "bf0000ff": "indefinite length",
    "a20200 0100": "keys of a map out of order",
    "a2616200616100": "keys of a map out of order",
    "a201000100": "a key of a map twice",
    "a1f500": "a key that is neither integer nor text",
    "a1410000": "a key that is neither integer nor text",
    "62c328": "text that is not UTF-8",
    "f97e00": "a float",
    "fa47c35000": "a float",
    "fb3ff0000000000000": "a float",
    "f7": "undefined",
    "e0": "an unassigned simple value",
    "f820": "an unassigned simple value",
    "c001": "a tag",
    "d818": "a tag",
    "1c": "a reserved head",
    "0000": "trailing bytes",
    "": "nothing",
    "18": "truncated",
    "4261": "truncated",
    "8201": "truncated",
    "9bffffffffffffffff": "a count that the bytes can't hold",
    "81" * 9 + "00": "nested deeper than 8",
}


def encodings() -> dict[str, Any]:
    """What is, and what is not, deterministic CBOR."""
    return {
        "depth": 8,
        # A map is a list of pairs here, since its keys may be integers.
        "accepted": [{"value": _typed(each), "cbor": cbor.encode(each).hex()} for each in _GOOD],
        "refused": [{"cbor": data.replace(" ", ""), "why": why} for data, why in _BAD.items()],
    }


def _typed(value: Any) -> Any:
    """JSON in which integers beyond 2^53, bytes and maps are told apart: [type, ...]."""
    match value:
        case bool() | None:
            return ["simple", value]
        case int():
            return ["int", str(value)]
        case bytes():
            return ["bytes", value.hex()]
        case str():
            return ["text", value]
        case list():
            return ["array", [_typed(each) for each in value]]
    return ["map", [[_typed(key), _typed(item)] for key, item in value.items()]]


# -- card, and every kind ------------------------------------------------------------------------


def _card(key: PrivateKey = ANT, **changes: Any) -> Card:
    card = Card(
        key.id,
        key.public_key,
        _NAMES[key.id],
        NOW,
        _FINGERPRINT,
        ["192.0.2.1:50081", "[2001:db8::1]:50081", "ant.example:50081"],
        [2],
        NOW + MAX_LIFETIME - 86_400,
    )
    return msgspec.structs.replace(card, **changes)


def _signed_card(key: PrivateKey = ANT) -> bytes:
    return sign_card(key, _card(key))


def cards() -> dict[str, Any]:
    """Cards that prove themselves, and payloads, well signed, that are none."""
    polling = sign_card(ANT, _card(mailboxes=[BEE.id]))
    body: dict[str, Any] = {
        "key": ANT.public_key,
        "name": "ant",
        "seq": 7,
        "fp": bytes.fromhex(_FINGERPRINT),
        "at": ["192.0.2.1:50081"],
        "ver": [2],
    }
    bad: dict[str, tuple[str, dict[str, Any]]] = {
        "the key of another colony": ("unknown_issuer", {"key": BEE.public_key}),
        "the key in base64": ("malformed", {"key": base64.b64encode(ANT.public_key).decode()}),
        "the fingerprint in hex": ("malformed", {"fp": _FINGERPRINT}),
        "an empty name": ("malformed", {"name": ""}),
        "a control character in the name": ("malformed", {"name": "a\nb"}),
        "a name of 64 characters": ("malformed", {"name": "n" * 64}),
        "the name of all peers": ("malformed", {"name": "any"}),
        "a pattern as the name": ("malformed", {"name": "*"}),
        "a way as the name": ("malformed", {"name": "a/b"}),
        "a name that begins with a dot": ("malformed", {"name": ".."}),
        "a name with a space": ("malformed", {"name": "a b"}),
        "a name that is not ASCII": ("malformed", {"name": "\u00fc"}),
        "a negative sequence number": ("malformed", {"seq": -1}),
        "a sequence number of 64 bits": ("malformed", {"seq": 2**63}),
        "a fingerprint of 31 bytes": ("malformed", {"fp": bytes(31)}),
        "an address without a port": ("malformed", {"at": ["192.0.2.1"]}),
        "port 0": ("malformed", {"at": ["192.0.2.1:0"]}),
        "17 addresses": ("malformed", {"at": ["a:1"] * 17}),
        "no version": ("malformed", {"ver": []}),
        "a mailbox that is no id": ("malformed", {"mb": ["bee"]}),
        "five mailboxes": ("malformed", {"mb": [BEE.id] * 5}),
    }

    def case(name: str, data: bytes) -> dict[str, Any]:
        seen = inspect(data, limit=LIMIT)
        return _case(name, Kind.CARD, data, cbor.decode(seen.payload)) | {"link": write_link(data)}

    return {
        "now": NOW,
        "accepted": [
            case("a card", _signed_card()),
            case("of a colony that polls a mailbox", polling),
            case(
                "with a field of a later version",
                _envelope(ANT, Kind.CARD, "*", cbor.encode({**body, "later": 1})),
            ),
        ],
        "refused": [
            {
                "why": why,
                "code": code,
                "envelope": _envelope(ANT, Kind.CARD, "*", cbor.encode({**body, **change})).hex(),
            }
            for why, (code, change) in bad.items()
        ]
        + [
            {
                "why": f"without {name!r}",
                "code": "malformed",
                "envelope": _envelope(
                    ANT,
                    Kind.CARD,
                    "*",
                    cbor.encode({key: item for key, item in body.items() if key != name}),
                ).hex(),
            }
            for name in body
        ],
    }


def _messages() -> dict[Kind, list[tuple[str, PrivateKey, PrivateKey, msgspec.Struct, bytes]]]:
    """One message of each kind at least: name, from, to, payload, cti."""
    m = messages
    card, bees = _signed_card(), _signed_card(BEE)
    successor = declare(ANT, HEIR, NOW)
    asking = [_proof("joiner"), _proof("inviter")]
    name, key = tokens.name_of(_SECRET), b"vector"
    checksum = hashlib.sha256(b"bytes of a file").hexdigest()
    news = m.News(
        _PID, 1, 1, "smith", NOW * 10**9, 7, [m.Line(NOW * 10**9, "smith", "half done")],
        1, [m.Extra("k", "v", 1)], progress.digest_of(b'["so far"]'), b'["so far"]',
        {"chat": 2}, [m.Said("chat", 1, b"hi", "data", 1, 0)],
    )  # fmt: skip
    submit = m.Submit(_PID, 1, _SPEC, "me", 1, [])
    sent = _envelope(ANT, Kind.SUBMIT, BEE.id, dump(submit), cti=cti_of(_PID, 1))
    asked = hashlib.sha256(sent).digest()
    outcome = m.Outcome(
        _PID, 1, 2, b'["X"]', [], _AT_BEE, "e" * 64, NOW * 10**9, NOW * 10**9 + 1,
        asked=asked, origin=ANT.id,
    )  # fmt: skip
    file = m.Carried("d", "/in", "a.txt", 15, checksum)
    denied = hashlib.sha256(sent).digest()
    offer = m.Offer(["f", "g*"], 2, 1, 3, 1)
    return {
        Kind.CARD: [],  # in card.json
        Kind.HELLO: [
            ("request", ANT, BEE, m.Hello(card, _NONCES[0]), key),
            ("answer", BEE, ANT, m.Hello(bees, _NONCES[0], NOW, NOW + 5), key),
            (
                "after a succession",
                ANT,
                BEE,
                m.Hello(card, _NONCES[0], successors=[successor]),
                key,
            ),
        ],
        Kind.SUBMIT: [
            ("by its origin", ANT, BEE, submit, cti_of(_PID, 1)),
            (
                "with input and a file",
                ANT,
                BEE,
                msgspec.structs.replace(submit, input=b'["from a parent"]', files=[file]),
                cti_of(_PID, 1),
            ),
        ],
        Kind.RECEIPT: [
            (
                "accepted",
                BEE,
                ANT,
                m.Receipt(_PID, 1, "accepted", _AT_BEE, asked, ANT.id),
                cti_of("receipt", cti_of(_PID, 1).hex(), "accepted"),
            ),
            ("cancelled before it came", BEE, ANT, m.Receipt(_PID, 1, "cancelled", ""), key),
        ],
        Kind.CANCEL: [("request", ANT, BEE, m.Cancel(_PID, 1), key)],
        Kind.POLL: [
            ("for outcomes", ANT, BEE, m.Poll(30, [_PID]), key),
            (
                "for news too",
                ANT,
                BEE,
                m.Poll(30, [], [m.Follow(_PID, 1, 7, 8, 1, b"\1" * 8, {"chat": 2})], True),
                key,
            ),
        ],
        Kind.OUTCOME: [("of a success", BEE, ANT, outcome, cti_of("outcome", _PID, 1))],
        Kind.OUTCOMES: [
            (
                "one, and news",
                BEE,
                ANT,
                m.Outcomes([_envelope(BEE, Kind.OUTCOME, ANT.id, dump(outcome))], [dump(news)]),
                key,
            ),
            ("none", BEE, ANT, m.Outcomes([]), key),
        ],
        Kind.CAPABILITIES: [
            (
                "statement",
                BEE,
                ANT,
                m.Capabilities(NOW << 24, True, {"t": offer}, ["lab*"], {"body": 1000}, NOW),
                key,
            )
        ],
        Kind.INTRODUCTIONS: [
            (
                "of one",
                ANT,
                BEE,
                m.Introductions([m.Introduction(_signed_card(CAT), 1)], (NOW << 24) + 1),
                key,
            ),
            (
                "with a petname",
                ANT,
                BEE,
                m.Introductions(
                    [m.Introduction(_signed_card(CAT), 1, "lab-paris")], (NOW << 24) + 2
                ),
                key,
            ),
        ],
        Kind.COLLECT: [
            ("a poll", ANT, BEE, m.Collect(25, []), key),
            ("an answer", ANT, BEE, m.Collect(0, [m.Reply(b"\0\1", 200, "", b"data")]), key),
            (
                "of a colony that names those who may leave messages",
                ANT,
                BEE,
                m.Collect(25, [], bytes.fromhex(CAT.id)[:16], bytes(range(8))),
                key,
            ),
        ],
        Kind.PARCELS: [
            ("one", BEE, ANT, m.Parcels([m.Parcel(b"\0\1", "/v2/submit", b"body", 0)]), key)
        ],
        Kind.PASS: [
            ("request", ANT, BEE, m.Pass(CAT.id, "/v2/submit", b"body", 0), key),
            (
                "of a join, to a mailbox that does not trust the sender",
                ANT,
                BEE,
                m.Pass(CAT.id, "/v1/join", b"body", 0, _signed_card(ANT), f"{'0' * 16} {'a' * 64}"),
                key,
            ),
        ],
        Kind.PASSED: [("answer", BEE, ANT, m.Passed(200, "", b"data"), key)],
        Kind.SUCCESSION: [],  # in derived.json
        Kind.JOIN: [
            ("first", ANT, BEE, m.Join(card, name, _NONCES[0]), key),
            ("second", ANT, BEE, m.Join(card, name, *_NONCES, asking[0]), key),
        ],
        Kind.WELCOME: [
            ("first", BEE, ANT, m.Welcome(_NONCES[1]), key),
            ("second", BEE, ANT, m.Welcome(_NONCES[1], asking[1]), key),
        ],
        Kind.REFUSAL: [
            (
                "of a submission",
                BEE,
                ANT,
                m.SignedRefusal("policy_function", "not open", denied, NOW, 0, "/v2/submit"),
                key,
            ),
            (
                "of a submission that a mailbox brought",
                BEE,
                ANT,
                m.SignedRefusal("policy_function", "not open", denied, NOW, 0, "/v2/submit", True),
                key,
            ),
        ],
        Kind.SAY: [
            ("one message", ANT, BEE, m.Say(_PID, 1, "chat", 0, 1, [m.Said("chat", 0, b"hi")]), key)
        ],
        Kind.HEARD: [("answer", BEE, ANT, m.Heard(_PID, 1, "chat", 1), key)],
        Kind.FETCH: [("request", BEE, ANT, m.Fetch(_PID, 1, checksum, 0), key)],
        Kind.SUBMITS: [("of one", ANT, BEE, m.Submits([sent]), key)],
        Kind.RECEIPTS: [
            (
                "one accepted, one to come again",
                BEE,
                ANT,
                m.Receipts([m.Answer(200, b"signed receipt"), m.Answer(429, b"{}", 60)]),
                key,
            )
        ],
        Kind.DIAL: [("request", ANT, BEE, m.Dial(50_081, _NONCES[0]), key)],
        Kind.DIALLED: [
            ("reached", BEE, ANT, m.Dialled(_NONCES[0], True, "198.51.100.7"), key),
            ("not reached", BEE, ANT, m.Dialled(_NONCES[0], False, "2001:db8::7", "refused"), key),
        ],
        Kind.CHUNK: [("answer", ANT, BEE, m.Chunk(checksum, 0, b"bytes of a file"), key)],
    }


def envelopes() -> dict[str, Any]:
    """Every kind of message, sealed."""
    cases = []
    for kind, each in _messages().items():
        for name, key, to, message, cti in each:
            data = _envelope(key, kind, to.id, dump(message), cti=cti)
            struct = type(message).__name__
            cases.append(_case(name, kind, data, plain(message), struct=struct))
    return {"now": NOW, "limit": LIMIT, "cases": cases, "by_another_library": _FOREIGN}


# The first submission, signed by the `cwt` library (3.3.0) over OpenSSL with random nonces: all but
# the signature is the same, byte for byte. One with a low s is as valid, one with a high s is not.
_FOREIGN = {
    "case": "by its origin",
    "signature_low_s": "009427d0b255991e09f2055bf21d58f0ae2b353e6a867a636903d06c764f061b"
    "067250fbf458cdacc80eb127a30d2e1f4e7effa6f1e4c3c3df8e9e28a1f9aaa5",
    "signature_high_s": "62ba7ecbde8517a79598f409c5c3efdf813fe98e4ed70677a57c2e6330764aa6"
    "d609dc4692a67577ac69a544b5dfbd6493cd41d678431eceff6f522dd6104454",
}


# -- derived values --------------------------------------------------------------------------------


def _proof(role: tokens.Role) -> bytes:
    return tokens.proof(
        tokens.key_of(_SECRET),
        role,
        joiner=ANT.id,
        inviter=BEE.id,
        nonces=_NONCES,
        fingerprint=_FINGERPRINT,
    )


def derived() -> dict[str, Any]:
    """Ids, names of messages, invitations, successions."""
    token = tokens.Token(
        BEE.id,
        _FINGERPRINT,
        ["192.0.2.2:50081", "[2001:db8::2]:50081", "bee.example:50081"],
        NOW + 3600,
        _SECRET,
    )
    successor = declare(ANT, HEIR, NOW)
    file = messages.Carried("d", "/in", "a.txt", 15, "0" * 64)
    return {
        "local_id": [
            {"issuer": issuer, "pid": pid, "attempt": attempt,
             "id": relays.local_id(issuer, pid, attempt)}
            for issuer, pid, attempt in ((ANT.id, _PID, 1), (ANT.id, _PID, 2), (BEE.id, _AT_BEE, 1))
        ],
        "dht": [
            {"id": each, "key": dht_key(each).hex()} for each in (ANT.id, BEE.id)
        ],
        "cti": [
            {"parts": [str(part) for part in parts], "cti": cti_of(*parts).hex()}
            for parts in (
                (_PID, 1),
                ("receipt", cti_of(_PID, 1).hex(), "accepted"),
                ("outcome", _PID, 1),
                ("succession", ANT.id, HEIR.id),
            )
        ],
        "output_digest": [
            {"out": out.hex(), "digest": progress.digest_of(out).hex()}
            for out in (b"", b"[]", b'["X"]')
        ],
        "files": {
            "pid": _AT_BEE,
            "label": manifest.label_here(_AT_BEE, "d", "/in"),
            "file": {"mount": "d", "label": "/in", "name": "a.txt",
                     "id": manifest.file_id(_AT_BEE, file)},
            "snapshot": {"place": 0, "id": manifest.snapshot_id(_AT_BEE, 0)},
        },
        "invitation": {
            "token": tokens.write_token(token),
            "inviter": token.id,
            "fingerprint": token.fingerprint,
            "addresses": token.addresses,
            "expires": token.expires,
            "secret": _SECRET.hex(),
            "name": tokens.name_of(_SECRET),
            "key": tokens.key_of(_SECRET).hex(),
            "joiner": ANT.id,
            "nonces": [each.hex() for each in _NONCES],
            "proofs": {"joiner": _proof("joiner").hex(), "inviter": _proof("inviter").hex()},
            "knock": {
                "body": b"body".hex(),
                "mac": tokens.knock(tokens.key_of(_SECRET), b"body").hex(),
            },
        },
        "succession": {
            "old": ANT.id,
            "new": HEIR.id,
            "issued": NOW,
            "until": NOW + MAX_LIFETIME,
            "by_old": successor.by_old.hex(),
            "by_new": successor.by_new.hex(),
        },
    }  # fmt: skip


# -- relays --------------------------------------------------------------------------------------


def relayed() -> dict[str, Any]:
    """ant asks bee for something of cat: the way there, and the chain back."""
    m = messages
    first = m.Submit(_PID, 1, _FURTHER, "me", 2, [])
    asked = _envelope(ANT, Kind.SUBMIT, BEE.id, dump(first), cti=cti_of(_PID, 1))
    known = {ANT.id: ANT.public_key}
    submit, expires = relays.passed_on(asked, _AT_BEE, 1, "", known)
    request = relays.request_of(asked)
    answer = {"asked": request.digest, "origin": request.origin}

    def passed(change: Mapping[str, Any]) -> bytes:
        changed = msgspec.structs.replace(submit, **change)
        return _envelope(
            BEE, Kind.SUBMIT, CAT.id, dump(changed), cti=cti_of(_AT_BEE, 1), expires=expires
        )

    def ran(key: PrivateKey = CAT, /, **change: Any) -> bytes:
        told = m.Outcome(_AT_BEE, 1, 2, b'["X"]', [], _AT_CAT, "e" * 64, NOW, NOW)
        told = msgspec.structs.replace(told, **answer | change)
        return _envelope(key, Kind.OUTCOME, BEE.id, dump(told), cti=cti_of("outcome", _AT_BEE, 1))

    def told(below: bytes, /, **change: Any) -> bytes:
        mine = m.Outcome(_PID, 1, 2, b'["X"]', [], _AT_BEE, CAT.id, NOW, NOW)
        mine = chains.carried(mine, below, CAT.public_key) if below else mine
        mine = msgspec.structs.replace(mine, **answer | change)
        return _envelope(BEE, Kind.OUTCOME, ANT.id, dump(mine), cti=cti_of("outcome", _PID, 1))

    stranger = m.Submit("2" * 64, 1, _FURTHER, "me", 2, [])
    ways: dict[str, tuple[str, dict[str, Any]]] = {
        "as it should be": ("", {}),
        "five hops allowed": ("hops", {"hops": 5}),
        "one hop allowed": ("hops", {"hops": 1}),
        "another number of hops than the origin's": ("bad_path", {"hops": 3}),
        "cat was in the path": ("loop", {"path": [CAT.id], "hops": 3}),
        "a path without the sealed submission": ("bad_path", {"inner": b""}),
        "a relay with a spec of its own": ("bad_path", {"spec": _SPEC}),
        "the origin's key is missing": ("bad_path", {"keys": []}),
        "about another process": ("bad_path", {"pid": "2" * 64}),
        "another submission of the origin": (
            "bad_path",
            {"inner": _envelope(ANT, Kind.SUBMIT, BEE.id, dump(stranger))},
        ),
        "the origin's signature changed": ("bad_path", {"inner": asked[:-1] + b"\0"}),
        "meant for another relay": (
            "bad_path",
            {"inner": _envelope(ANT, Kind.SUBMIT, HEIR.id, dump(first))},
        ),
    }
    # bee never passed ant's submission on: it gave cat a job of its own under the same id.
    own = _envelope(BEE, Kind.SUBMIT, CAT.id, dump(m.Submit(_AT_BEE, 1, _SPEC, "me", 1, [])))
    forged = {"asked": hashlib.sha256(own).digest(), "origin": BEE.id}
    nothing = {"asked": b"", "origin": ""}
    honest = ran()
    back: dict[str, tuple[bool, bytes]] = {
        "as it should be": (True, told(honest)),
        "cat answers a job that bee gave it under the same id": (False, told(ran(**forged))),
        "both answer a job that bee gave cat": (False, told(ran(**forged), **forged)),
        "cat names the submission, and bee as its origin": (False, told(ran(origin=BEE.id))),
        "cat does not say what it answers, as in version 1": (False, told(ran(**nothing))),
        "nobody says what is answered, as in version 1": (
            False,
            told(ran(**nothing), **nothing),
        ),
        "another process of cat's": (False, told(ran(localpid="4" * 64))),
        "another output by the relay": (False, told(honest, out=b'["Y"]')),
        "another end by the relay": (False, told(honest, state=3)),
        "the relay ran it itself": (False, told(b"")),
        "a changed signature below": (False, told(honest[:-1] + b"\1")),
        "the key of who ran it is missing": (False, told(honest, keys=[])),
        "about another process": (False, told(ran(pid="3" * 64))),
        "the relay signed both": (False, told(ran(BEE), keys=[BEE.public_key])),
    }
    # Whom ant's target means by "cat": nobody that ant knows, cat itself, or another colony.
    named: dict[str, tuple[bool, list[str], dict[str, list[str]]]] = {
        "a name that nobody has here": (True, ["cat"], {}),
        "the name of the colony that ran it": (True, ["cat"], {"cat": [CAT.id]}),
        "its name, under one of its ids": (True, ["cat"], {"cat": [HEIR.id, CAT.id]}),
        "its id": (True, [CAT.id], {}),
        "the name of another colony": (False, ["cat"], {"cat": [HEIR.id]}),
        "the id of another colony": (False, [HEIR.id], {}),
        "one colony more": (False, ["cat", "dog"], {}),
    }
    whole = told(honest)
    return {
        "asked": {
            "submission": asked.hex(),
            "sha256": request.digest.hex(),
            "origin": request.origin,
        },
        "there": [
            {"name": name, "code": code, "envelope": passed(change).hex(), "me": CAT.id,
             "ids": [ANT.id, BEE.id], "asked": request.digest.hex()}
            for name, (code, change) in ways.items()
        ],
        "back": [
            {"name": name, "holds": holds, "outcome": data.hex(), "peer": BEE.id, "me": ANT.id,
             "wanted": ["cat"], "known": {}, "out": b'["X"]'.hex() if holds else ""}
            for name, (holds, data) in back.items()
        ] + [
            {"name": name, "holds": holds, "outcome": whole.hex(), "peer": BEE.id, "me": ANT.id,
             "wanted": wanted, "known": ids, "out": b'["X"]'.hex() if holds else ""}
            for name, (holds, wanted, ids) in named.items()
        ],
    }  # fmt: skip


# -- refused -------------------------------------------------------------------------------------


def refused() -> dict[str, Any]:
    """Envelopes that are refused, each for the code that the first failing check has."""
    good = _envelope(ANT, Kind.SUBMIT, BEE.id, b"hello")
    seen = inspect(good, limit=LIMIT)
    claims: dict[Any, Any] = {1: ANT.id, 3: BEE.id, 4: NOW + 600, 6: NOW, 7: b"vector"}
    head: dict[int, Any] = {1: -47, 4: bytes.fromhex(ANT.id), 15: claims}

    def crafted(
        protected: bytes | None = None,
        *,
        unprotected: Any = None,
        tag: int = 18,
        **changes: Any,
    ) -> bytes:
        """Well signed, whatever its headers say."""
        fields = {**claims, **{int(name[1:]): item for name, item in changes.items()}}
        if protected is None:
            protected = cbor.encode({**head, 15: fields})
        said = cbor.encode(["Signature1", protected, b"colonyd/1/submit", b"hello"])
        signature = ANT.sign_es256k(said)
        return cbor.encode([protected, unprotected or {}, b"hello", signature], tag=tag)

    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    mirrored = good[:-32] + (order - int.from_bytes(good[-32:], "big")).to_bytes(32, "big")
    other = BEE.sign_es256k(seen.signed_bytes(Kind.SUBMIT))
    late = _envelope(ANT, Kind.SUBMIT, BEE.id, b"hello")
    stranger = _envelope(HEIR, Kind.SUBMIT, BEE.id, b"hello")
    longest = NOW + MAX_LIFETIME
    cases: list[tuple[str, str, bytes, dict[str, Any]]] = [
        ("", "accepted as it is", good, {}),
        ("", "120 s ahead", good, {"now": NOW - 120}),
        ("", "the last second", good, {"now": NOW + 599}),
        ("", "the longest life", crafted(_4=longest), {}),
        ("too_large", "a byte over the limit", good, {"limit": len(good) - 1}),
        ("too_large", "not even CBOR, and too large", b"\xff" * 10, {"limit": 9}),
        ("malformed", "noise", bytes.fromhex("deadbeef"), {}),
        ("malformed", "nothing", b"", {}),
        ("malformed", "a trailing byte", good + b"\0", {}),
        ("malformed", "cut short", good[:-1], {}),
        ("malformed", "without its tag", good[1:], {}),
        ("malformed", "with another tag", crafted(tag=17), {}),
        ("malformed", "an array of indefinite length",
         good[:1] + b"\x9f" + good[2:] + b"\xff", {}),
        ("malformed", "a length longer than needed",
         good.replace(b"\x45hello", b"\x58\x05hello"), {}),
        ("malformed", "three parts", cbor.encode([seen.protected, {}, b"hello"], tag=18), {}),
        ("malformed", "an unprotected header", crafted(unprotected={4: b"x"}), {}),
        ("malformed", "a signature of 63 bytes",
         cbor.encode([seen.protected, {}, b"hello", seen.signature[1:]], tag=18), {}),
        ("malformed", "a header twice", crafted(b"\xa4\x01\x38\x2e" + seen.protected[1:]), {}),
        ("malformed", "headers out of order", crafted(b"\xa2\x04\x00\x01\x00"), {}),
        ("malformed", "a header more", crafted(cbor.encode({**head, 2: [99]})), {}),
        ("malformed", "without kid", crafted(cbor.encode({1: -47, 15: claims})), {}),
        ("malformed", "kid of another colony",
         crafted(cbor.encode({**head, 4: bytes.fromhex(BEE.id)})), {}),
        ("malformed", "a claim more", crafted(_5=NOW), {}),
        ("malformed", "exp as text", crafted(_4="soon"), {}),
        ("malformed", "iat as a truth value", crafted(_6=True), {}),
        ("malformed", "an empty cti", crafted(_7=b""), {}),
        ("malformed", "a cti of 65 bytes", crafted(_7=bytes(65)), {}),
        ("malformed", "exp not after iat", crafted(_4=NOW), {}),
        ("malformed", "iat before 1970", crafted(_6=-1), {}),
        ("malformed", "exp after the year 9999", crafted(_4=253_402_300_800), {}),
        ("bad_algorithm", "ES256", crafted(cbor.encode({**head, 1: -7})), {}),
        ("bad_algorithm", "EdDSA", crafted(cbor.encode({**head, 1: -8})), {}),
        ("bad_algorithm", "HMAC", crafted(cbor.encode({**head, 1: 5})), {}),
        ("unknown_issuer", "no key is known", stranger, {}),
        ("bad_signature", "another payload", good.replace(b"hello", b"jello"), {}),
        ("bad_signature", "nothing but zeros", good[:-64] + bytes(64), {}),
        ("bad_signature", "s is high", mirrored, {}),
        ("bad_signature", "by another colony's key", good[:-64] + other, {}),
        ("bad_signature", "without external_aad",
         good[:-64] + ANT.sign_es256k(
             cbor.encode(["Signature1", seen.protected, b"", seen.payload])), {}),
        ("wrong_kind", "a cancel sent as a submission",
         _envelope(ANT, Kind.CANCEL, BEE.id, b"hello"), {}),
        ("wrong_audience", "for another colony",
         _envelope(ANT, Kind.SUBMIT, CAT.id, b"hello"), {}),
        ("wrong_audience", "for anyone", _envelope(ANT, Kind.SUBMIT, "*", b"hello"), {}),
        ("not_yet_valid", "121 s ahead", late, {"now": NOW - 121}),
        ("expired", "at its end", late, {"now": NOW + 600}),
        ("expired", "by the latest time remembered", late, {"now": 0, "high_water": NOW + 600}),
        ("lifetime_too_long", "a second more than a week", crafted(_4=longest + 1), {}),
        # Of several faults, the first in the order of checks.
        ("too_large", "too large, and cut short", good[:-1], {"limit": 10}),
        ("bad_signature", "changed, for another, expired",
         _envelope(ANT, Kind.SUBMIT, CAT.id, b"hello").replace(b"hello", b"jello"),
         {"now": NOW + 600}),
        ("wrong_kind", "a cancel, for another, expired",
         _envelope(ANT, Kind.CANCEL, CAT.id, b"hello"), {"now": NOW + 600}),
        ("wrong_audience", "for another, expired",
         _envelope(ANT, Kind.SUBMIT, CAT.id, b"hello"), {"now": NOW + 600}),
    ]  # fmt: skip
    return {
        "kind": "submit",
        "audience": BEE.id,
        "known": [ANT.id, BEE.id],
        "cases": [
            {
                "code": code,
                "why": why,
                "envelope": data.hex(),
                "now": at.get("now", NOW),
                "high_water": at.get("high_water", 0),
                "limit": at.get("limit", 4096),
            }
            for code, why, data, at in cases
        ],
    }


_FILES: dict[str, Callable[[], dict[str, Any]]] = {
    "keys.json": keys,
    "cbor.json": encodings,
    "card.json": cards,
    "envelopes.json": envelopes,
    "derived.json": derived,
    "relays.json": relayed,
    "refused.json": refused,
}


def build() -> dict[str, str]:
    """Every file, by its name."""
    return {
        name: json.dumps(make(), indent=1, ensure_ascii=False) + "\n"
        for name, make in _FILES.items()
    }


def main() -> int:
    """Write the files, or with `--check` tell which differ; returns the exit code."""
    changed = []
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    for name, text in build().items():
        path = DIRECTORY / name
        if not path.exists() or path.read_text() != text:
            changed.append(name)
            if "--check" not in sys.argv[1:]:
                path.write_text(text)
    print(f"changed: {', '.join(changed) or 'nothing'}")
    return 1 if changed and "--check" in sys.argv[1:] else 0


if __name__ == "__main__":
    sys.exit(main())
