"""Evidence of a process that went to a peer or came from one: what history keeps, and its check.

A signed message holds the messages below it and their keys. The key of the peer itself, and the ids
that each colony had then, are kept beside it, so a check needs no other colony. `forward.chain`
says how outcomes fit together, `forward.path` how requests do.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from colonyd.keys import id_of
from federation.forward import chain as chains
from federation.forward import path as relays
from federation.forward.machine import Forward
from federation.peers.context import Context
from federation.peers.registry import Peers
from federation.wire.envelope import Rejected, inspect
from federation.wire.messages import Outcome
from node.etcd.txn import Get, Txn
from node.model.codec import unpack
from node.model.types import Process
from node.store import keys


class EvidenceHop(msgspec.Struct, frozen=True, omit_defaults=True):
    """A colony of the chain: the id that signed, our name for it, all its ids, its process id."""

    issuer: str
    name: str = ""
    ids: list[str] = []
    processid: str = ""


class Evidence(msgspec.Struct, frozen=True, omit_defaults=True):
    """A finished forward, and the request of another colony. In JSON, bytes are base64.

    `outcome` is the peer's envelope, `publickey` the key that signed it. `colony` holds our own
    ids, `beyond` the colonies beyond the peer that the process was meant for. `chain` lists all
    colonies whose outcomes are inside, the peer first. `late` is an outcome that came after the
    end. `request` is the envelope of the colony called `origin` here, `requestkey` the key that
    signed it.

    `asked` is the SHA-256 of the submission that the outcome has to answer, `askedby` the id of the
    origin that signed the submission. `meant` holds, by name, the ids of those colonies in `beyond`
    that were trusted here under that name.
    """

    peer: str = ""
    peername: str = ""
    state: str = ""
    attempt: int = 0
    remoteprocessid: str = ""
    route: str = ""
    error: str = ""
    receipt: bytes = b""
    outcome: bytes = b""
    publickey: bytes = b""
    colony: list[str] = []
    beyond: list[str] = []
    chain: list[EvidenceHop] = []
    late: bytes = b""
    origin: str = ""
    request: bytes = b""
    requestkey: bytes = b""
    asked: bytes = b""
    askedby: str = ""
    meant: dict[str, list[str]] = {}


def beyond(context: Context, process: Process, peer: str) -> list[str]:
    """Return the names or ids of the colonies beyond a peer that a process is meant for."""
    target, home = process.spec.conditions.colonyname, (context.home, *context.signer.ids)
    left = relays.onward_target(target, context.peers.names(peer), home)
    return relays.segments(left) if left else []


def meant(
    context: Context, process: Process, forward: Forward | None, wanted: Sequence[str]
) -> dict[str, list[str]]:
    """Return the ids, by name, that the colonies of a target may have; without unknown ones.

    The ids are those trusted under these names when the submission was signed, else those trusted
    now. A process of another colony has ids only where its target has ids: its origin alone says
    which colony a name means.
    """
    if process.origin:
        return context.peers.widened({each: [each] for each in wanted if len(each) == 64})
    sent = context.peers.widened(forward.meant) if forward is not None else {}
    return context.peers.meant(wanted) | sent


def request_to(forward: Forward, peer: str) -> relays.OriginRequest | None:
    """Return the request that a peer has to answer, also after a reroute; None if unknown."""
    if forward.peer == peer and forward.request is not None:
        return forward.request
    tried = (each for each in forward.tried if each.peer == peer and each.asked)
    return next((relays.OriginRequest(each.askedby, each.asked) for each in tried), None)


def signer(peers: Peers, sealed: bytes, peer: str) -> tuple[str, bytes]:
    """Return the id and the key of the peer, present or former, that signed a message."""
    try:
        issuer = inspect(sealed, limit=len(sealed)).issuer
    except Rejected:
        return peer, b""
    if peers.index.root(issuer) != peer:
        return peer, b""
    return issuer, peers.public_key(issuer) or b""


async def gather(context: Context, process: Process) -> Evidence | None:
    """Return all that other colonies signed about a process; None for one that stayed here.

    Nothing is checked here; a reader of the evidence can check it. Raises EtcdError.
    """
    told = Evidence()
    if process.origin:
        place = keys.submission(context.home, process.processid)
        found = await context.client.get(place)
        request = found.value if found is not None else b""
        _, key = signer(context.peers, request, process.origin)
        name = context.peers.name(process.origin)
        told = Evidence(origin=name, request=request, requestkey=key)
    if process.peer:
        return await _outcome(context, process, told)
    return told if process.origin else None


async def _outcome(context: Context, process: Process, told: Evidence) -> Evidence:
    """Add the peer's outcome to the evidence."""
    peers, forward, sealed, late = context.peers, *await _found(context, process)
    name = peers.name(process.peer)
    told = msgspec.structs.replace(told, peer=process.peer, peername=name, late=late)
    if forward is None:
        return told
    issuer, key = signer(peers, sealed, forward.peer)
    mine, request = context.signer.ids, forward.request
    wanted = beyond(context, process, forward.peer)
    return msgspec.structs.replace(
        told,
        state=forward.state,
        attempt=forward.attempt,
        remoteprocessid=forward.remoteprocessid,
        route=forward.route,
        error=forward.lasterror,
        receipt=forward.receipt,
        outcome=sealed,
        publickey=key,
        colony=list(mine),
        beyond=wanted,
        asked=request.digest if request else b"",
        askedby=request.origin if request else "",
        meant=meant(context, process, forward, wanted),
        chain=[
            EvidenceHop(
                step.issuer,
                peers.name_if_known(step.issuer),
                peers.ids(step.issuer),
                step.outcome.localpid if step.outcome else "",
            )
            for step in chains.trace(sealed, issuer, key, mine, peers.ids, request)
        ],
    )


async def _found(context: Context, process: Process) -> tuple[Forward | None, bytes, bytes]:
    """Return the forward, its signed outcome, and a late outcome."""
    places = context.keys
    names = (places.proof, places.apart, places.late)
    gets = [Get(name(process.processid)) for name in names]
    gets.append(Get(places.forward(process.peer, process.processid)))
    proof, apart, late, open_ = (await context.client.commit(Txn([], gets))).responses
    found = proof or open_
    forward = unpack(found[0].value, Forward) if found else None
    if forward is not None and forward.peer != process.peer:
        forward = None  # it is the forward to an earlier peer
    sealed = (forward.outcome if forward else b"") or (apart[0].value if apart else b"")
    return forward, sealed, late[0].value if late else b""


# -- checking ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class OutcomeVerdict:
    """The signer of an outcome, and what is wrong with it ("" for nothing).

    `ran` is the name or id of the executor's colony, if that is another colony than the signer.
    `note` says what could not be checked.
    """

    issuer: str
    name: str
    ran: str = ""
    problem: str = ""
    note: str = ""


def check(record: Mapping[str, Any]) -> OutcomeVerdict | None:
    """Check the signed outcome in a process's record of history, as read from JSON.

    Return None if the record has no outcome. An outcome holds if every signature holds, it was
    meant for us and for this attempt of the process, each outcome names the record's submission,
    and the record's end is the signed one.
    """
    try:
        told = msgspec.convert(record.get("forward") or {}, Evidence)
        process = msgspec.convert(record["process"], _Ended)
    except (msgspec.ValidationError, KeyError) as error:
        return OutcomeVerdict("", "", problem=f"the record can't be read: {error}")
    if not told.outcome:
        return None
    ids = {hop.issuer: hop.ids for hop in told.chain}

    def known(issuer: str) -> Collection[str]:
        return ids.get(issuer) or (issuer,)

    try:
        issuer = inspect(told.outcome, limit=len(told.outcome)).issuer
    except Rejected as rejected:
        return OutcomeVerdict("", told.peername, problem=str(rejected))
    request = relays.OriginRequest(told.askedby, told.asked) if told.asked else None
    steps = chains.trace(told.outcome, issuer, told.publickey, told.colony, known, request)
    outcome, problem = chains.conclusion(steps, told.beyond, told.meant)
    if outcome is not None:
        problem = _misfit(process, told, steps, outcome)
    names = {hop.issuer: hop.name for hop in told.chain}
    last = steps[-1].issuer
    ran = (names.get(last) or last[:12]) if len(steps) > 1 else ""
    return OutcomeVerdict(issuer, told.peername or issuer[:12], ran, problem, _unchecked(told))


def _unchecked(told: Evidence) -> str:
    """Return what cannot be checked of a chain that holds."""
    if not told.asked:
        return "it names ids only, and not what was asked (version 1 of the protocol)"
    names = [each for each in told.beyond if len(each) != 64 and each not in told.meant]
    return f"no trusted colony was called {', '.join(names)}: it may be any" if names else ""


def asked(record: Mapping[str, Any]) -> OutcomeVerdict | None:
    """Check the request for a process of another colony, from its record of history.

    Return None for a process of ours. A request holds if every signature on the way holds and the
    process is the requested one. `issuer` is the origin, `ran` the colony that sent us the process.
    """
    try:
        told = msgspec.convert(record.get("forward") or {}, Evidence)
        local = str(record["id"])
    except (msgspec.ValidationError, KeyError) as error:
        return OutcomeVerdict("", "", problem=f"the record can't be read: {error}")
    if not told.request:
        return None
    hops, valid = relays.hops_of(told.request, id_of(told.requestkey), told.requestkey)
    if not hops:
        return OutcomeVerdict("", told.origin, problem="what asked for it can't be read")
    first, last = hops[0], hops[-1]
    problem = "" if valid else "the signature does not hold"
    if not problem and relays.local_id(last.issuer, last.submit.pid, last.submit.attempt) != local:
        problem = "it asked for another process"
    name, over = (told.origin, "") if len(hops) == 1 else ("", told.origin)
    return OutcomeVerdict(first.issuer, name, over, problem)


class _Ended(msgspec.Struct):
    """The fields of a record that tell how a process ended."""

    processid: str
    state: int
    attempt: int
    peer: str
    output: list[Any]
    errors: list[str]


def _misfit(
    process: _Ended, told: Evidence, steps: Sequence[chains.ChainLink], outcome: Outcome
) -> str:
    """Return what in a valid chain does not fit the process of the record, or ""."""
    first = steps[0].outcome
    assert first is not None
    if (first.pid, told.peer) != (process.processid, process.peer):
        return "it is about another process"
    if first.attempt != process.attempt:
        return f"it is about attempt {first.attempt}, and not {process.attempt}"
    if (outcome.state, outcome.errors) != (process.state, process.errors):
        return "the process ended otherwise here"
    try:
        output = msgspec.json.decode(outcome.out)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        output = None
    return "" if output == process.output else "the output in the record is not what was signed"
