"""The signed envelope of every message between colonies: sealing, opening, and the order of checks.

COSE_Sign1 (RFC 9052), ES256K (RFC 8812), CWT claims in the protected header (RFC 9597). The callers
decide about trust, the meaning of the payload, and replays.
"""

from __future__ import annotations

import datetime
import enum
import hashlib
from collections.abc import Callable, Collection
from typing import Literal, TypeAlias

import msgspec

from colonyd.keys import PrivateKey, id_of, verify_es256k
from federation.wire import cbor

MAX_AHEAD = 120  # seconds the sender's clock may be ahead of ours
MAX_LIFETIME = 7 * 24 * 3600  # seconds between issued and expires

_SIGN1_TAG = 18
_ES256K = -47
_ALG, _KID, _CLAIMS = 1, 4, 15
_ISS, _AUD, _EXP, _IAT, _CTI = 1, 3, 4, 6, 7
_DEPTH = 3  # the map in the protected header holds a map; the payload is opaque here
_MAX_CTI = 64  # bytes
_ITEMS = 32  # values in the outer structure, and in the protected header
_EXPLAINED = 65_536  # bytes of a message whose wrong signature is looked at more closely
_LAST_SECOND = 253_402_300_799  # 9999-12-31T23:59:59Z

Code: TypeAlias = Literal[
    "too_large",
    "malformed",
    "bad_algorithm",
    "unknown_issuer",
    "bad_signature",
    "wrong_kind",
    "wrong_audience",
    "not_yet_valid",
    "expired",
    "lifetime_too_long",
]
# Codes about the path of a submission, see `forward.path`.
PathCode: TypeAlias = Literal["hops", "loop", "bad_path"]


class Kind(enum.StrEnum):
    """The kind of a message; a signature for one kind is never valid for another."""

    CARD = "card"
    HELLO = "hello"
    SUBMIT = "submit"
    RECEIPT = "receipt"
    CANCEL = "cancel"
    POLL = "poll"
    OUTCOMES = "outcomes"
    OUTCOME = "outcome"
    CAPABILITIES = "capabilities"
    INTRODUCTIONS = "introductions"
    COLLECT = "collect"
    PARCELS = "parcels"
    PASS = "pass"
    PASSED = "passed"
    SUCCESSION = "succession"
    JOIN = "join"
    WELCOME = "welcome"
    REFUSAL = "refusal"
    SAY = "say"
    HEARD = "heard"
    FETCH = "fetch"
    CHUNK = "chunk"
    SUBMITS = "submits"
    RECEIPTS = "receipts"
    DIAL = "dial"
    DIALLED = "dialled"


_BRINGING = (Kind.CARD, Kind.HELLO, Kind.JOIN)  # messages that bring the sender's key


class Rejected(Exception):
    """A message that failed a check: a stable code to count and to answer, and a sentence."""

    def __init__(self, code: Code | PathCode, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code: Code | PathCode = code
        self.message = message


class VerifiedMessage(msgspec.Struct, frozen=True):
    """A message that passed every check. Times are seconds since the epoch."""

    issuer: str
    audience: str
    cti: bytes
    issued: int
    expires: int
    payload: bytes
    digest: bytes  # SHA-256 of the whole envelope
    signer: str = ""  # the issuer's present id, if `issuer` is the id under which it is kept
    way: str = ""  # the mailbox that brought it, as `refusals.BROUGHT` has it

    @property
    def wire(self) -> str:
        """Return the id that the message itself names."""
        return self.signer or self.issuer


class UnverifiedMessage(msgspec.Struct, frozen=True):
    """The fields of a well-formed envelope; nothing about them is proven yet."""

    issuer: str
    audience: str
    cti: bytes
    issued: int
    expires: int
    payload: bytes
    protected: bytes
    signature: bytes

    def signed_bytes(self, kind: Kind) -> bytes:
        """Return what the issuer signed, if it meant `kind` (Sig_structure, RFC 9052 4.4)."""
        return _signed_bytes(self.protected, kind, self.payload)


def _signed_bytes(protected: bytes, kind: Kind, payload: bytes) -> bytes:
    context = b"colonyd/1/" + kind.value.encode()
    return cbor.encode(["Signature1", protected, context, payload])


def seal(
    key: PrivateKey,
    kind: Kind,
    audience: str,
    payload: bytes,
    *,
    cti: bytes,
    issued: int,
    expires: int,
) -> bytes:
    """Return `payload`, signed as a message of `kind` to `audience`. Equal arguments, equal bytes.

    `cti` (1 to 64 bytes) names the message and stays the same on a repeat; `issued` and `expires`
    are whole seconds since the epoch. Raises ValueError for a message that no peer would accept.
    """
    if not 1 <= len(cti) <= _MAX_CTI:
        raise ValueError(f"cti has {len(cti)} bytes, not 1 to {_MAX_CTI}")
    if not 0 <= issued < expires <= min(issued + MAX_LIFETIME, _LAST_SECOND):
        raise ValueError(f"a message lives 1 to {MAX_LIFETIME} s, not {expires - issued} s")
    protected = _protected(key.id, audience, cti, issued, expires)
    signature = key.sign_es256k(_signed_bytes(protected, kind, payload))
    return cbor.encode([protected, {}, payload, signature], tag=_SIGN1_TAG)


def assemble(
    issuer: str,
    audience: str,
    payload: bytes,
    *,
    cti: bytes,
    issued: int,
    expires: int,
    signature: bytes,
) -> bytes:
    """Return the message of these fields, whose signature is from elsewhere and proves nothing."""
    protected = _protected(issuer, audience, cti, issued, expires)
    return cbor.encode([protected, {}, payload, signature], tag=_SIGN1_TAG)


def _protected(issuer: str, audience: str, cti: bytes, issued: int, expires: int) -> bytes:
    claims: dict[int, cbor.Value] = {
        _ISS: issuer,
        _AUD: audience,
        _EXP: expires,
        _IAT: issued,
        _CTI: cti,
    }
    return cbor.encode({_ALG: _ES256K, _KID: bytes.fromhex(issuer), _CLAIMS: claims})


def inspect(data: bytes, *, limit: int) -> UnverifiedMessage:
    """Return the fields of a message after checks of size (bytes), structure, algorithm.

    Nothing in them is proven. Raises Rejected: too_large, malformed, bad_algorithm.
    """
    if len(data) > limit:
        raise Rejected("too_large", f"{len(data)} bytes; at most {limit} are accepted here")
    try:
        outer = cbor.decode(data, depth=_DEPTH, tag=_SIGN1_TAG, items=_ITEMS)
        match outer:
            case [bytes() as protected, dict() as unprotected, bytes() as payload, bytes() as sig]:
                header = cbor.decode(protected, depth=_DEPTH, items=_ITEMS)
            case _:
                raise Rejected("malformed", "not the four parts of a COSE_Sign1")
    except cbor.CborError as error:
        raise Rejected("malformed", str(error)) from None
    if unprotected:
        raise Rejected("malformed", "unprotected headers are not allowed")
    if len(sig) != 64:
        raise Rejected("malformed", f"the signature has {len(sig)} bytes, not 64")
    match header:
        case {1: int() as algorithm} if algorithm != _ES256K:
            raise Rejected("bad_algorithm", f"algorithm {algorithm}; only ES256K (-47) is accepted")
        case {1: int(), 4: bytes() as kid, 15: dict() as claims, **rest} if not rest:
            return _unverified(kid, claims, payload, protected, sig)
    raise Rejected("malformed", "the protected header is not exactly alg, kid and claims")


def _unverified(
    kid: bytes, claims: object, payload: bytes, protected: bytes, signature: bytes
) -> UnverifiedMessage:
    match claims:
        case {
            1: str() as issuer,
            3: str() as audience,
            4: int() as expires,
            6: int() as issued,
            7: bytes() as cti,
            **rest,
        } if not rest and not isinstance(expires, bool) and not isinstance(issued, bool):
            pass
        case _:
            raise Rejected("malformed", "the claims are not exactly iss, aud, exp, iat and cti")
    if len(kid) != 32 or kid.hex() != issuer:
        raise Rejected("malformed", "kid and iss do not name the same colony")
    if not 1 <= len(cti) <= _MAX_CTI:
        raise Rejected("malformed", f"cti has {len(cti)} bytes, not 1 to {_MAX_CTI}")
    if not 0 <= issued < expires <= _LAST_SECOND:
        raise Rejected("malformed", f"issued {issued} and expires {expires} are not a span of time")
    return UnverifiedMessage(issuer, audience, cti, issued, expires, payload, protected, signature)


def open_envelope(
    data: bytes,
    *,
    kind: Kind,
    audience: str | Collection[str],
    now: float,
    keys: Callable[[str], bytes | None],
    limit: int,
    high_water: float = 0,
    explain: Callable[[], bool] = lambda: True,
) -> VerifiedMessage:
    """Return the message in `data`, or raise Rejected with the code of the first failed check.

    `now` and `high_water` (the latest wall-clock time that this node remembers) are seconds since
    the epoch. `keys` returns the 65-byte public key of a colony id. `limit` is in bytes. `explain`
    says whether to find out for which other kind a wrong signature is valid, which costs a check
    for each.
    """
    seen = inspect(data, limit=limit)
    public_key = keys(seen.issuer)
    if public_key is None:
        raise Rejected("unknown_issuer", f"no key is known for colony {seen.issuer}")
    if id_of(public_key) != seen.issuer:
        raise Rejected("unknown_issuer", f"{seen.issuer} is not the hash of the key given for it")
    _check_signature(seen, kind, public_key, explain)
    if seen.audience not in ((audience,) if isinstance(audience, str) else audience):
        raise Rejected("wrong_audience", f"meant for {seen.audience!r}, this is {audience!r}")
    _check_time(seen, now, high_water)
    return VerifiedMessage(
        seen.issuer,
        seen.audience,
        seen.cti,
        seen.issued,
        seen.expires,
        seen.payload,
        hashlib.sha256(data).digest(),
    )


def _check_signature(
    seen: UnverifiedMessage, kind: Kind, public_key: bytes, explain: Callable[[], bool]
) -> None:
    if verify_es256k(public_key, seen.signed_bytes(kind), seen.signature):
        return
    # A verification for each other kind is worth it only for a peer, which must find its mistake:
    # we hold its key. A stranger brings its key, and is told only about kinds that bring one. Each
    # check hashes the message anew, so a large message is not worth it.
    others: Collection[Kind] = _BRINGING if kind in _BRINGING else tuple(Kind)
    for other in others if len(seen.payload) <= _EXPLAINED and explain() else ():
        if other is not kind and verify_es256k(
            public_key, seen.signed_bytes(other), seen.signature
        ):
            raise Rejected("wrong_kind", f"signed as {other.value}, sent as {kind.value}")
    raise Rejected("bad_signature", f"the signature does not hold for colony {seen.issuer}")


def _check_time(seen: UnverifiedMessage, now: float, high_water: float) -> None:
    """Compare the sender's times with ours; a refusal tells both clocks and the difference."""
    # A host that boots in the past must not accept again what it saw expire. Nor may it refuse as
    # "from the future" what is older than the latest time it remembers.
    clock = max(now, high_water)
    if seen.issued > clock + MAX_AHEAD:
        raise Rejected(
            "not_yet_valid",
            f"issued at {_clock(seen.issued)} by the sender's clock, {_ours(now, high_water)}: "
            f"{seen.issued - clock:.0f} s ahead, at most {MAX_AHEAD} s are accepted",
        )
    if seen.expires <= clock:
        raise Rejected(
            "expired",
            f"issued at {_clock(seen.issued)} and expired at {_clock(seen.expires)} by the "
            f"sender's clock, {_ours(now, high_water)}: {clock - seen.expires:.0f} s late",
        )
    lifetime = seen.expires - seen.issued
    if lifetime > MAX_LIFETIME:
        raise Rejected(
            "lifetime_too_long",
            f"valid from {_clock(seen.issued)} to {_clock(seen.expires)}: {lifetime} s, "
            f"at most {MAX_LIFETIME} s are accepted",
        )


def _ours(now: float, high_water: float) -> str:
    ours = f"our clock says {_clock(max(now, high_water))}"
    if high_water > now:
        ours += f" (the latest time remembered; the system clock says {_clock(now)})"
    return ours


def _clock(seconds: float) -> str:
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"
