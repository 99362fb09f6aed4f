"""The succession of keys: a colony goes on under another id, and both of its keys sign that.

Values in, values out: `membership.rotation` changes our own key, `peers.successions` follows
changes of other colonies'.
"""

from __future__ import annotations

import msgspec

from colonyd.keys import PrivateKey, id_of, verify_es256k
from federation.wire.envelope import MAX_LIFETIME, Kind, Rejected, inspect, seal
from federation.wire.messages import Succession, Successor, dump, load
from federation.wire.signer import cti_of

OVERLAP = MAX_LIFETIME  # seconds in which both keys are valid, so that earlier messages arrive
_ANYONE = "*"
LIMIT = 2048  # bytes of one of the two envelopes


class KeySuccession(msgspec.Struct, frozen=True):
    """A proven succession: replaced and new id. Both keys are valid `until` (seconds)."""

    old: str
    old_key: bytes
    new: str
    new_key: bytes
    issued: int
    until: int


def declare(old: PrivateKey, new: PrivateKey, now: int) -> Successor:
    """Return the succession, signed by both keys; `now` in seconds."""
    said = dump(Succession(old.public_key, new.public_key))
    name = cti_of("succession", old.id, new.id)

    def signed(key: PrivateKey) -> bytes:
        return seal(
            key, Kind.SUCCESSION, _ANYONE, said, cti=name, issued=now, expires=now + OVERLAP
        )

    return Successor(signed(old), signed(new))


def prove(successor: Successor) -> KeySuccession:
    """Return what a statement proves, however old it is. Raises Rejected."""
    by_old, by_new = (inspect(each, limit=LIMIT) for each in (successor.by_old, successor.by_new))
    if by_old.payload != by_new.payload:
        raise Rejected("malformed", "the two keys do not say the same")
    said = load(by_old.payload, Succession)
    for seen, key in ((by_old, said.old), (by_new, said.new)):
        if id_of(key) != seen.issuer:
            raise Rejected("unknown_issuer", "a succession is signed by the two that it names")
        if not verify_es256k(key, seen.signed_bytes(Kind.SUCCESSION), seen.signature):
            raise Rejected("bad_signature", f"the signature does not hold for {seen.issuer}")
    if by_old.issuer == by_new.issuer:
        raise Rejected("malformed", "nobody succeeds itself")
    until = min(by_old.expires, by_old.issued + OVERLAP)
    return KeySuccession(by_old.issuer, said.old, by_new.issuer, said.new, by_old.issued, until)
