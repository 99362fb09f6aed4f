"""A submission on its way over several colonies: who is meant, who passed it on, who asked first.

Values in, values out: whether a colony may have its processes passed on is `policy`'s, what becomes
of them is the inbox's and the outbox's.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from federation.wire.envelope import MAX_LIFETIME, Kind, Rejected, VerifiedMessage, inspect
from federation.wire.messages import MAX_HOPS, MOST, Submit, load
from node.host.keys import id_of, verify_es256k


@dataclass(frozen=True)
class Hop:
    """One signed submission of the way: who asked whom, when (seconds), and for what."""

    issuer: str
    audience: str
    issued: int
    submit: Submit
    digest: bytes  # SHA-256 of the whole envelope


@dataclass(frozen=True)
class OriginRequest:
    """A submission as its origin sealed it: the id that signed it, and the envelope's SHA-256.

    Receipts and outcomes name it, so that they answer one message, and not only an id, which is the
    choice of who sends. Both fields are empty where it is not known.
    """

    origin: str = ""
    digest: bytes = b""


@dataclass(frozen=True)
class RelayedRequest:
    """What a submission comes to: every hop, the origin's first, each signature checked."""

    hops: Sequence[Hop]

    @property
    def first(self) -> Submit:
        """The origin's own words: spec and initiator are there."""
        return self.hops[0].submit

    @property
    def request(self) -> OriginRequest:
        """What was asked, and by whom: the same at every colony on the way."""
        return OriginRequest(self.hops[0].issuer, self.hops[0].digest)

    @property
    def ids(self) -> list[str]:
        """The colonies that had it, the origin first."""
        return [hop.issuer for hop in self.hops]


def local_id(issuer: str, pid: str, attempt: int) -> str:
    """The id of a process at the colony it was sent to: the same on every repeat."""
    return hashlib.sha3_256(f"{issuer}/{pid}/{attempt}".encode()).hexdigest()


# -- who is meant ------------------------------------------------------------------------------


def segments(target: str) -> list[str]:
    """The colonies of a target, in their order: "bee/cat" is the colony cat, by way of bee."""
    return target.split("/")


def is_mine(target: str, home: str, ids: Collection[str]) -> bool:
    """Whether a target is the colony called `home` that has, or had, one of the `ids`."""
    return target in ("", home) or target in ids


def onward_target(target: str, peer: Collection[str], home: Collection[str]) -> str:
    """What is left of a target for a peer that has one of these ids and names, "" for itself.

    `home` holds our own: what names us and goes to a peer all the same, a route sent there.
    """
    first, _, rest = target.partition("/")
    if first in peer:
        return rest
    return "" if target in home or not target else target


def hops_for(target: str, usual: int) -> int:
    """How many hops an origin allows: as configured, and as many as the target names."""
    return min(MAX_HOPS, max(usual, len(segments(target))))


# -- the way here ------------------------------------------------------------------------------


def unwrap(
    opened: VerifiedMessage,
    submit: Submit,
    me: Collection[str],
    limit: int,
    same: Callable[[str, str], bool] = operator.eq,
) -> RelayedRequest:
    """Check the way of a submission that just came, down to the origin's own signature.

    `me` are our ids, `limit` bytes of each envelope; `same` is whether two ids are one colony's,
    before and after it changed its key. Raises Rejected: hops, loop, bad_path.
    """
    path = submit.path
    if not 1 <= submit.hops <= MAX_HOPS or len(path) >= submit.hops:
        message = f"hop {len(path) + 1} of {submit.hops}; at most {MAX_HOPS} here"
        raise Rejected("hops", message)
    before = [*path, opened.issuer]
    if len(set(before)) < len(before) or not set(before).isdisjoint(me):
        raise Rejected("loop", "the process was in this colony, or twice in another, before")
    if bool(path) != bool(submit.inner) or bool(path) == bool(submit.spec):
        raise Rejected("bad_path", "a relay sends what it was sent, an origin its own spec")
    keys = keyring(submit.keys)
    hops = [Hop(opened.issuer, opened.audience, opened.issued, submit, opened.digest)]
    expires = opened.expires
    for issuer in reversed(path):
        hop, expires = _inner(hops[0], issuer, expires, keys, limit, same)
        hops.insert(0, hop)
    return RelayedRequest(hops)


def keyring(keys: Sequence[bytes]) -> dict[str, bytes]:
    """Public keys by the ids that they prove."""
    return {id_of(key): key for key in keys}


def _inner(
    outer: Hop,
    issuer: str,
    expires: int,
    keys: Mapping[str, bytes],
    limit: int,
    same: Callable[[str, str], bool],
) -> tuple[Hop, int]:
    """The submission that a relay was sent, and when it expires."""
    try:
        seen = inspect(outer.submit.inner, limit=limit)
        submit = load(seen.payload, Submit)
    except Rejected as rejected:
        raise Rejected("bad_path", f"what {outer.issuer[:12]} was sent: {rejected}") from None
    key = keys.get(issuer)
    if key is None:
        raise Rejected("bad_path", f"the key of {issuer[:12]}, which is in the path, is missing")
    problem = ""
    if seen.issuer != issuer or not same(seen.audience, outer.issuer):
        problem = "is not from whom the path says"
    elif not verify_es256k(key, seen.signed_bytes(Kind.SUBMIT), seen.signature):
        problem = "has a signature that does not hold"
    elif submit.path != outer.submit.path[:-1] or bool(submit.path) != bool(submit.inner):
        problem = "has another path"
    elif submit.hops != outer.submit.hops:
        problem = "allows another number of hops"
    elif local_id(issuer, submit.pid, submit.attempt) != outer.submit.pid:
        problem = "is about another process"
    elif seen.expires + MOST < expires or seen.expires - seen.issued > MAX_LIFETIME:
        # The times of each hop are those of its receiver's clock, and clocks may be apart.
        problem = "is not valid for as long"
    elif bool(submit.path) == bool(submit.spec):
        problem = "has no spec, or one too many"
    if problem:
        raise Rejected("bad_path", f"what {outer.issuer[:12]} was sent {problem}")
    digest = hashlib.sha256(outer.submit.inner).digest()
    return Hop(issuer, seen.audience, seen.issued, submit, digest), seen.expires


def hops_of(sealed: bytes, issuer: str, public_key: bytes) -> tuple[Sequence[Hop], bool]:
    """The hops of a submission that was taken in, and whether every signature holds.

    `issuer` is the colony that it came from. Nothing is left of one that can't be read.
    """
    try:
        seen = inspect(sealed, limit=len(sealed))
        digest = hashlib.sha256(sealed).digest()
        opened = VerifiedMessage(
            seen.issuer, seen.audience, seen.cti, seen.issued, seen.expires, seen.payload, digest
        )
        asked = unwrap(opened, load(seen.payload, Submit), (), len(sealed))
    except Rejected:
        return [], False
    valid = (
        seen.issuer == issuer
        and bool(public_key)
        and id_of(public_key) == issuer
        and verify_es256k(public_key, seen.signed_bytes(Kind.SUBMIT), seen.signature)
    )
    return asked.hops, valid


def request_of(sealed: bytes, *, relayed: bool = True) -> OriginRequest:
    """Return which submission of which origin is at the core of a sealed one.

    One that is not `relayed` is the origin's own, and its payload is not read. Nothing is verified:
    it is for messages that we made, or checked when they came. Raises Rejected.
    """
    for _ in range(MAX_HOPS):
        seen = inspect(sealed, limit=len(sealed))
        inner = load(seen.payload, Submit).inner if relayed else b""
        if not inner:
            return OriginRequest(seen.issuer, hashlib.sha256(sealed).digest())
        sealed = inner
    raise Rejected("malformed", f"more than {MAX_HOPS} hops")


# -- the way on --------------------------------------------------------------------------------


def passed_on(
    received: bytes, pid: str, attempt: int, target: str, keys: Mapping[str, bytes]
) -> tuple[Submit, int]:
    """What a relay sends for the sealed submission it received, and when that one expires.

    `pid` and `attempt` are the relay's own, `keys` the public keys it knows by id. Raises Rejected.
    """
    seen = inspect(received, limit=len(received))
    inner = load(seen.payload, Submit)
    known = keyring(inner.keys) | dict(keys)
    path = [*inner.path, seen.issuer]
    submit = Submit(
        pid,
        attempt,
        b"",
        inner.initiator,
        inner.hops,
        path,
        target,
        received,
        [known[each] for each in path if each in known],
    )
    return submit, seen.expires
