"""The chain of signed outcomes, from the colony that ran a process back to its origin.

Values in, values out; `outbox.outcomes` and `inbox.accept` fetch, store and act on outcomes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import msgspec

from colonyd.keys import id_of, verify_es256k
from federation.forward.path import OriginRequest, keyring, local_id
from federation.wire.envelope import Kind, Rejected, inspect
from federation.wire.messages import MAX_HOPS, Outcome, load
from node.model.types import State


@dataclass(frozen=True)
class ChainLink:
    """One signed outcome of a chain. `problem` is what is wrong with it, "" for nothing.

    `signed` tells whether the signature holds, whatever else is wrong.
    """

    issuer: str
    issued: int  # seconds since the epoch
    signed: bool
    problem: str
    outcome: Outcome | None


def _alone(issuer: str) -> Collection[str]:
    return (issuer,)


def trace(
    sealed: bytes,
    peer: str,
    public_key: bytes,
    me: Collection[str],
    ids: Callable[[str], Collection[str]] = _alone,
    request: OriginRequest | None = None,
) -> list[ChainLink]:
    """Return the chain of outcomes, from the one that `peer` owes us to the executor's.

    `me` are our own ids. `ids` returns all ids of another colony, which may have changed its key.
    The chain ends with the first outcome that cannot be read.

    Every outcome answers the same `request`: otherwise a relay could show an outcome that a colony
    below it signed for a job of the relay's own, with the same ids. Every outcome fits the one
    above: its audience is the issuer above, its process the process above, its state and errors are
    the same, and only the last outcome has the output.

    Without a `request` (a process that ended before version 2 of the protocol), all outcomes have
    to answer the same request.
    """
    steps: list[ChainLink] = []
    keys = {peer: public_key} if public_key and id_of(public_key) == peer else {}
    audiences, above = set(me), None
    while sealed:
        step, audience = _step(sealed, keys)
        problem = step.problem
        if not problem and step.outcome is not None:
            passed = {*me, *(each.issuer for each in steps)}
            problem = _misfit(step, audience, audiences, above, passed)
            problem = problem or (unbound(step.outcome, request) if request else "")
            if not steps and step.issuer != peer:
                problem = "it is not from the colony that the process went to"
            if above is None:
                keys |= keyring(step.outcome.keys)
        steps.append(ChainLink(step.issuer, step.issued, step.signed, problem, step.outcome))
        if step.outcome is None:
            break
        above, audiences, sealed = step.outcome, set(ids(step.issuer)), step.outcome.below
        if sealed and len(steps) == MAX_HOPS:
            steps.append(ChainLink("", 0, False, f"more than {MAX_HOPS} hops", None))
            break
    return steps


def _step(sealed: bytes, keys: dict[str, bytes]) -> tuple[ChainLink, str]:
    try:
        seen = inspect(sealed, limit=len(sealed))
        outcome = load(seen.payload, Outcome)
    except Rejected as rejected:
        return ChainLink("", 0, False, str(rejected), None), ""
    key = keys.get(seen.issuer, b"")
    signed = bool(key) and verify_es256k(key, seen.signed_bytes(Kind.OUTCOME), seen.signature)
    problem = "" if signed else "the signature does not hold" if key else "its key is missing"
    return ChainLink(seen.issuer, seen.issued, signed, problem, outcome), seen.audience


def _misfit(
    step: ChainLink, audience: str, audiences: set[str], above: Outcome | None, passed: set[str]
) -> str:
    """Return what in an authentic outcome does not fit the outcome above it, or ""."""
    outcome = step.outcome
    assert outcome is not None
    if audience not in audiences:
        return "it was meant for another colony"
    if step.issuer in passed:
        return "the colony is in the chain twice"
    if above is not None and outcome.pid != above.localpid:
        return "it is about another process"
    if outcome.localpid not in {local_id(each, outcome.pid, outcome.attempt) for each in audiences}:
        return "it tells of another process than it was sent"
    if above is None:
        return ""
    if (outcome.origin, outcome.asked) != (above.origin, above.asked):
        return "it answers another submission than the outcome above it"
    if outcome.state != above.state or outcome.errors != above.errors:
        return "the relay above it told another end"
    if above.out and above.out != outcome.out:
        return "the relay above it told another output"
    return ""


def unbound(outcome: Outcome, request: OriginRequest) -> str:
    """Return why an outcome does not answer a request, or ""."""
    if not outcome.asked:
        return "it does not say which submission it answers (version 1 of the protocol)"
    if not request.digest:
        return "it answers what was never sent from here"
    if (outcome.origin, outcome.asked) == (request.origin, request.digest):
        return ""
    return "it answers another submission, not the one that its origin signed"


def conclusion(
    steps: list[ChainLink], wanted: list[str], known: Mapping[str, Collection[str]] | None = None
) -> tuple[Outcome | None, str]:
    """Return the outcome of the executor's colony if the chain is valid; else None, and why not.

    `wanted` are the names or ids of the colonies beyond the peer that the process had to take. A
    success has to come from as far as that, and from those colonies that were named by id. `known`
    holds the ids that a wanted colony may have: of a colony that the origin trusts under that name,
    and of a colony that changed its key. A name that is not in `known` may be any colony's.
    """
    known = known or {}
    for place, step in enumerate(steps):
        if step.problem:
            where = f"outcome {place + 1} of {len(steps)}, by {step.issuer[:12] or 'nobody'}"
            return None, f"{where}: {step.problem}"
    last = steps[-1].outcome
    assert last is not None
    if last.state == State.SUCCESSFUL:
        if len(steps) <= len(wanted):
            return None, f"{steps[-1].issuer[:12]} ended it, and should have passed it on"
        for step, name in zip(steps[1:], wanted, strict=False):
            if another := _another(step.issuer, name, known):
                return None, another
    return last, ""


def _another(issuer: str, name: str, known: Mapping[str, Collection[str]]) -> str:
    """Return why an issuer is not the colony that a target names, or "" if it may be."""
    ids = known.get(name) or ((name,) if len(name) == 64 else ())
    if not ids or issuer in ids:
        return ""
    called = name[:12] if len(name) == 64 else f"the colony trusted as {name!r}"
    return f"{issuer[:12]} had it, and not {called}"


def carried(outcome: Outcome, below: bytes, public_key: bytes) -> Outcome:
    """Return a relay's outcome with the outcome below it, if that one ended the process.

    `public_key` is the key that signed the outcome below. An end that the relay itself caused (a
    deadline, a cancel, a refusal) has no outcome below.
    """
    try:
        seen = inspect(below, limit=len(below))
        there = load(seen.payload, Outcome)
    except Rejected:
        return outcome
    if (there.state, there.errors) != (outcome.state, outcome.errors):
        return outcome
    keys = keyring([public_key, *there.keys])
    return msgspec.structs.replace(
        outcome, out=b"", below=below, keys=list(keys.values())[:MAX_HOPS]
    )
