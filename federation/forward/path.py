"""The path of a submission over several colonies: its target, its relays, its origin.

Values in, values out. `policy` decides whether a colony may have its processes passed on; inbox and
outbox carry them.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from colonyd.keys import id_of, verify_es256k
from federation.wire.envelope import MAX_LIFETIME, Kind, Rejected, VerifiedMessage, inspect
from federation.wire.messages import MAX_HOPS, MOST, Submit, load


@dataclass(frozen=True)
class Hop:
    """One signed submission of the path: sender, receiver, time (seconds), and content."""

    issuer: str
    audience: str
    issued: int
    submit: Submit
    digest: bytes  # SHA-256 of the whole envelope


@dataclass(frozen=True)
class OriginRequest:
    """A submission as its origin signed it: the id that signed it, and the envelope's SHA-256.

    Receipts and outcomes name it, so that they answer one message. An id alone would not do, as the
    sender chooses it. Both fields are empty if the request is not known.
    """

    origin: str = ""
    digest: bytes = b""


@dataclass(frozen=True)
class RelayedRequest:
    """A verified submission: every hop, the origin's first, each signature checked."""

    hops: Sequence[Hop]

    @property
    def first(self) -> Submit:
        """Return the origin's own submission, with spec and initiator."""
        return self.hops[0].submit

    @property
    def request(self) -> OriginRequest:
        """Return the origin's request: the same at every colony of the path."""
        return OriginRequest(self.hops[0].issuer, self.hops[0].digest)

    @property
    def ids(self) -> list[str]:
        """Return the colonies that sent the process, the origin first."""
        return [hop.issuer for hop in self.hops]


def local_id(issuer: str, pid: str, attempt: int) -> str:
    """Return the id of a process at the colony it was sent to: the same on every repeat."""
    return hashlib.sha3_256(f"{issuer}/{pid}/{attempt}".encode()).hexdigest()


# -- target --------------------------------------------------------------------------------------


def segments(target: str) -> list[str]:
    """Return the colonies of a target in order: "bee/cat" is the colony cat, by way of bee."""
    return target.split("/")


def is_mine(target: str, home: str, ids: Collection[str]) -> bool:
    """Return whether a target is the colony `home`, which has or had the `ids`."""
    return target in ("", home) or target in ids


def onward_target(target: str, peer: Collection[str], home: Collection[str]) -> str:
    """Return the rest of a target for a peer of these ids and names; "" for the peer itself.

    `home` holds our own ids and names: a target that names us goes to a peer only by a route.
    """
    first, _, rest = target.partition("/")
    if first in peer:
        return rest
    return "" if target in home or not target else target


def hops_for(target: str, usual: int) -> int:
    """Return how many hops an origin allows: `usual`, or more if the target names more colonies."""
    return min(MAX_HOPS, max(usual, len(segments(target))))


# -- path to here --------------------------------------------------------------------------------


def unwrap(
    opened: VerifiedMessage,
    submit: Submit,
    me: Collection[str],
    limit: int,
    same: Callable[[str, str], bool] = operator.eq,
) -> RelayedRequest:
    """Return the path of a submission, verified down to the origin's own signature.

    `me` are our ids; `limit` is the most bytes of an envelope. `same` tells whether two ids are of
    one colony, before and after a change of its key. Raises Rejected: hops, loop, bad_path.
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
    """Return public keys by the ids that they prove."""
    return {id_of(key): key for key in keys}


def _inner(
    outer: Hop,
    issuer: str,
    expires: int,
    keys: Mapping[str, bytes],
    limit: int,
    same: Callable[[str, str], bool],
) -> tuple[Hop, int]:
    """Return the submission that a relay received, and when it expires."""
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
        # Each hop has times of its receiver's clock, and the clocks may differ.
        problem = "is not valid for as long"
    elif bool(submit.path) == bool(submit.spec):
        problem = "has no spec, or one too many"
    if problem:
        raise Rejected("bad_path", f"what {outer.issuer[:12]} was sent {problem}")
    digest = hashlib.sha256(outer.submit.inner).digest()
    return Hop(issuer, seen.audience, seen.issued, submit, digest), seen.expires


def hops_of(sealed: bytes, issuer: str, public_key: bytes) -> tuple[Sequence[Hop], bool]:
    """Return the hops of a stored submission, and whether every signature holds.

    `issuer` is the colony that sent it to us. A submission that cannot be read has no hops.
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
    """Return the origin's request inside a signed submission.

    If it is not `relayed`, it is the origin's own, and its payload is not read. Nothing is
    verified: use it for messages that we made, or checked when they came. Raises Rejected.
    """
    for _ in range(MAX_HOPS):
        seen = inspect(sealed, limit=len(sealed))
        inner = load(seen.payload, Submit).inner if relayed else b""
        if not inner:
            return OriginRequest(seen.issuer, hashlib.sha256(sealed).digest())
        sealed = inner
    raise Rejected("malformed", f"more than {MAX_HOPS} hops")


# -- path from here ------------------------------------------------------------------------------


def passed_on(
    received: bytes, pid: str, attempt: int, target: str, keys: Mapping[str, bytes]
) -> tuple[Submit, int]:
    """Return what a relay sends for a submission that it received, and when that one expires.

    `pid` and `attempt` are the relay's own; `keys` are the public keys it knows, by id. Raises
    Rejected.
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
