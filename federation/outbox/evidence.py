"""What history keeps of a process that went to a peer, or came from one, and how that is checked.

Sealed messages hold those below them and their keys; beside them stand the key of the peer itself
and the ids under which each colony was known then, so that nobody need be asked. How outcomes fit
together is `forward.chain`', how requests do, `forward.path`'.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from federation.forward import chain as chains
from federation.forward import path as relays
from federation.forward.machine import Forward
from federation.peers.context import Context
from federation.peers.registry import Peers
from federation.wire.envelope import Rejected, inspect
from federation.wire.messages import Outcome
from node.etcd.txn import Get, Txn
from node.host.keys import id_of
from node.model.codec import unpack
from node.model.types import Process
from node.store import keys


class EvidenceHop(msgspec.Struct, frozen=True, omit_defaults=True):
    """A colony in the chain: the id that signed, its name here, all ids it had, its process."""

    issuer: str
    name: str = ""
    ids: list[str] = []
    processid: str = ""


class Evidence(msgspec.Struct, frozen=True, omit_defaults=True):
    """A finished forward, and what asked for a process of another colony. In JSON bytes are base64.

    `outcome` is the envelope of the peer, `publickey` that of who signed it. `colony` are our own
    ids, `beyond` the colonies beyond the peer that the process was meant for, `chain` all whose
    outcomes are in there, the peer first. `late` is an outcome that came after the end. `request`
    is the envelope of the colony called `origin` here, `requestkey` that of who signed it.

    `asked` is the SHA-256 of the submission that the outcome has to answer, `askedby` the id of the
    origin that signed it; `meant` the ids, by name, of the colonies in `beyond` that were trusted
    here under those names.
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
    """Return the ids that the colonies which a target names may have, as far as we know any.

    Those that we trusted under these names when the submission was sealed, else those that we trust
    now. Of a process that is passed on, those named by id only: whom a name means is for its origin
    to say.
    """
    if process.origin:
        return context.peers.widened({each: [each] for each in wanted if len(each) == 64})
    sent = context.peers.widened(forward.meant) if forward is not None else {}
    return context.peers.meant(wanted) | sent


def request_to(forward: Forward, peer: str) -> relays.OriginRequest | None:
    """Return what a peer was asked, now or before the process went elsewhere; None if unknown."""
    if forward.peer == peer and forward.request is not None:
        return forward.request
    tried = (each for each in forward.tried if each.peer == peer and each.asked)
    return next((relays.OriginRequest(each.askedby, each.asked) for each in tried), None)


def signer(peers: Peers, sealed: bytes, peer: str) -> tuple[str, bytes]:
    """Under which of a peer's keys a message was sealed, that one or a former; its id and key."""
    try:
        issuer = inspect(sealed, limit=len(sealed)).issuer
    except Rejected:
        return peer, b""
    if peers.index.root(issuer) != peer:
        return peer, b""
    return issuer, peers.public_key(issuer) or b""


async def gather(context: Context, process: Process) -> Evidence | None:
    """All that other colonies signed of a process; None for one that is ours alone.

    What they say is not judged here: who reads it can. Raises EtcdError.
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
    """How a process fared at its peer."""
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
    """The forward, its sealed outcome, and one that came late."""
    places = context.keys
    names = (places.proof, places.apart, places.late)
    gets = [Get(name(process.processid)) for name in names]
    gets.append(Get(places.forward(process.peer, process.processid)))
    proof, apart, late, open_ = (await context.client.commit(Txn([], gets))).responses
    found = proof or open_
    forward = unpack(found[0].value, Forward) if found else None
    if forward is not None and forward.peer != process.peer:
        forward = None  # of where it was before
    sealed = (forward.outcome if forward else b"") or (apart[0].value if apart else b"")
    return forward, sealed, late[0].value if late else b""


# -- checking ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class OutcomeVerdict:
    """Who signed the outcome of a process, and what is wrong with that, "" for nothing.

    `ran` is the name or id of the colony at the end of the chain, if it is another one. `note` says
    what could not be checked.
    """

    issuer: str
    name: str
    ran: str = ""
    problem: str = ""
    note: str = ""


def check(record: Mapping[str, Any]) -> OutcomeVerdict | None:
    """Check the signed outcome in a process's record of history, as read from JSON.

    None when there is no outcome in it. It holds if every signature does, it was meant for us and
    for this very attempt of the process, each names the submission that the record does, and the
    record tells the end that was signed.
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
    """What nobody can say of a chain that holds."""
    if not told.asked:
        return "it names ids only, and not what was asked (version 1 of the protocol)"
    names = [each for each in told.beyond if len(each) != 64 and each not in told.meant]
    return f"no trusted colony was called {', '.join(names)}: it may be any" if names else ""


def asked(record: Mapping[str, Any]) -> OutcomeVerdict | None:
    """Check what asked for a process of another colony, from its record of history.

    None for one that is ours. It holds if every signature on the way does and the process is the
    one that was asked for; `issuer` is the colony where it began, `ran` the one that it came from.
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
    """What a record tells of the end of a process."""

    processid: str
    state: int
    attempt: int
    peer: str
    output: list[Any]
    errors: list[str]


def _misfit(
    process: _Ended, told: Evidence, steps: Sequence[chains.ChainLink], outcome: Outcome
) -> str:
    """What in a chain that holds does not belong to the process of the record."""
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
