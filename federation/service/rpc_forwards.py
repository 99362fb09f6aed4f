"""The RPC rows about forwards: state and outcome, origin, and the end of a doubt."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from colonyd.errors import NotFound
from colonyd.keys import id_of, verify_es256k
from federation.forward import chain as chains
from federation.forward import machine
from federation.forward import path as relays
from federation.forward.machine import Forward
from federation.forward.path import OriginRequest
from federation.outbox import evidence as testimony
from federation.outbox import resolve as resolving
from federation.outbox.outcomes import read_output
from federation.service import rpc_routes as route_calls
from federation.service.main import Federation
from federation.wire.envelope import Kind, Rejected, inspect
from federation.wire.json import apart
from federation.wire.messages import Outcome, load
from node.etcd.pressure import Need
from node.model.codec import unpack, wire_process, wire_time
from node.model.types import Process, State
from node.rpc.calls import Caller, Calls, Who
from node.rpc.requests import ProcessById
from node.store import keys


class Resolve(msgspec.Struct):
    """A decision about a process in doubt."""

    processid: str
    decision: Literal["failed", "requeue"]


calls: Calls[Federation] = Calls("Ours", home=lambda federation: federation.home)


@calls.row("getforwardmsg", ProcessById, Who.BOTH, reply="Forward")
async def get_forward(
    federation: Federation, caller: Caller, request: ProcessById
) -> dict[str, Any]:
    """Return the state of a process's forward, and its outcome.

    Raises NotFound.
    """
    processid = request.processid
    loaded = await federation.context.processes.load(federation.home, processid)
    if loaded is None:
        raise NotFound(f"process {processid} was not forwarded from this colony")
    process, places = loaded[0], federation.keys
    found = None
    if process.peer:
        found = await federation.client.get(places.forward(process.peer, processid))
    if found is None:
        # A process without a peer may have come back from one.
        found = await federation.client.get(places.proof(processid))
    if found is None:
        raise NotFound(f"no forward of process {processid} is known")
    forward = unpack(found.value, Forward)
    entry = federation.outbox.entries.get(processid)
    if entry is not None and entry.revision == found.mod_revision:
        forward = entry.forward  # has the latest tries as well
    state = forward.state
    if state == machine.ForwardState.CANCELLING and process.state == State.FAILED:
        state = machine.ForwardState.DOUBT  # failed at its deadline; the peer is still being told
    peer = federation.peers.get(forward.peer)
    waiting = state in (
        machine.ForwardState.QUEUED,
        machine.ForwardState.DOUBT,
        machine.ForwardState.CANCELLING,
    )
    return {
        "processid": processid,
        "peer": forward.peer,
        "peername": federation.peers.name(forward.peer),
        "state": state,
        "attempts": forward.attempts,
        "lasterror": forward.lasterror
        or ((peer.error or peer.peer.mismatch) if peer and waiting else ""),
        "remoteprocessid": forward.remoteprocessid,
        "there": _there(federation, forward, process),
        "outcome": outcome_view(
            forward.outcome,
            *testimony.signer(federation.peers, forward.outcome, forward.peer),
            forward.request,
        ),
        "asked": _asked_view(forward.request),
        "named": _named(federation, forward, process),
        "chain": await _chain(federation, forward),
        "late": await _late(federation, forward),
        "route": forward.route,
        "tried": route_calls.tried_view(federation, forward),
    }


def _there(federation: Federation, forward: Forward, process: Process) -> dict[str, Any] | None:
    """Return the peer's last update of the process; None without one, and after the end."""
    known = federation.outcome_poller.update_consumer.of(forward.processid)
    if process.closed or known is None or known[0].peer != forward.peer:
        return None
    told = known[0]
    return {
        "state": told.state,
        "executor": told.executor,
        "starttime": wire_time(told.start),
        "lines": told.lines,
    }


def _asked_view(request: OriginRequest | None) -> dict[str, str] | None:
    """Return what the peer has to answer: SHA-256 and signer of the origin's submission."""
    return {"sha256": request.digest.hex(), "by": request.origin} if request else None


def _named(federation: Federation, forward: Forward, process: Process) -> list[dict[str, Any]]:
    """Return the colonies beyond the peer that the target names, with the ids that each may have.

    A name without ids was not checked: no trusted colony has it, so it may be any colony's.
    """
    wanted = testimony.beyond(federation.context, process, forward.peer)
    meant = testimony.meant(federation.context, process, forward, wanted)
    return [
        {"name": name, "ids": meant.get(name) or ([name] if len(name) == 64 else [])}
        for name in wanted
    ]


async def _late(federation: Federation, record: Forward) -> dict[str, Any] | None:
    """Return an outcome that came after the process had ended here, verified now; or None."""
    found = await federation.client.get(federation.keys.late(record.processid))
    if found is None:
        return None
    seen = inspect(found.value, limit=len(found.value))
    peers, outcome = federation.peers, load(seen.payload, Outcome)
    root = peers.index.root(seen.issuer)
    signer = testimony.signer(federation.peers, found.value, root)
    view = outcome_view(found.value, *signer, testimony.request_to(record, root))
    return {
        **(view or {}),
        "name": peers.name_if_known(seen.issuer),
        "processid": outcome.localpid,
        "state": outcome.state,
        "out": late_output(outcome.out),
        "errors": list(outcome.errors),
    }


def late_output(data: bytes) -> list[Any]:
    """Return the output of a late outcome; [] if it is not JSON, since it was stored unread."""
    try:
        return read_output(data) if data else []
    except Rejected:
        return []


async def _chain(federation: Federation, forward: Forward) -> list[dict[str, Any]]:
    """Return all signed outcomes, from the peer's down to the executor's, verified now."""
    sealed, peers = forward.outcome, federation.peers
    if not sealed:
        found = await federation.client.get(federation.keys.apart(forward.processid))
        sealed = found.value if found else b""
    issuer, key = testimony.signer(federation.peers, sealed, forward.peer)
    steps = await apart(
        sealed,
        lambda data: chains.trace(
            data, issuer, key, federation.signer.ids, peers.ids, forward.request
        ),
    )
    return [
        {
            "issuer": step.issuer,
            "name": peers.name_if_known(step.issuer),
            "issued": step.issued,
            "signaturevalid": step.signed,
            "problem": step.problem,
            "processid": step.outcome.localpid if step.outcome else "",
            "state": step.outcome.state if step.outcome else -1,
        }
        for step in steps
    ]


@calls.row("resolveprocessmsg", Resolve, Who.OWNER, reply="Process", need=Need.FREES)
async def resolve(federation: Federation, caller: Caller, request: Resolve) -> dict[str, Any]:
    """End a process's doubt: fail it, or requeue it here."""
    requeue = request.decision == "requeue"
    return wire_process(
        await resolving.resolve(federation.outbox, request.processid, requeue=requeue)
    )


@calls.row("getoriginmsg", ProcessById, Who.BOTH, reply="Hop[]")
async def get_origin(
    federation: Federation, caller: Caller, request: ProcessById
) -> list[dict[str, Any]]:
    """Return the colonies that asked for a process, each signature verified.

    The origin comes first. Raises NotFound.
    """
    processid = request.processid
    loaded = await federation.context.processes.load(federation.home, processid)
    found = None
    if loaded is not None and loaded[0].origin:
        found = await federation.client.get(keys.submission(federation.home, processid))
    if loaded is None or found is None:
        raise NotFound(f"process {processid} did not come from another colony")
    peers = federation.peers
    issuer, key = testimony.signer(federation.peers, found.value, loaded[0].origin)
    hops, valid = await apart(found.value, lambda data: relays.hops_of(data, issuer, key))
    return [
        {
            "issuer": hop.issuer,
            "name": peers.name_if_known(hop.issuer),
            "issued": hop.issued,
            "initiator": hop.submit.initiator,
            "processid": hop.submit.pid,
            "signaturevalid": valid,
        }
        for hop in hops
    ]


def outcome_view(
    sealed: bytes, peer: str, public_key: bytes, request: OriginRequest | None = None
) -> dict[str, Any] | None:
    """Return the signer and the time of an outcome, and whether its signature holds, verified now.

    `answers` is whether the outcome names the very submission that was sent (`request`); None if
    that submission is no longer known. Return None if there is no outcome.
    """
    if not sealed:
        return None
    try:
        seen = inspect(sealed, limit=len(sealed))
    except Rejected:
        return {"issuer": "", "issued": 0, "signaturevalid": False, "answers": False}
    valid = (
        seen.issuer == peer
        and bool(public_key)
        and id_of(public_key) == peer
        and verify_es256k(public_key, seen.signed_bytes(Kind.OUTCOME), seen.signature)
    )
    return {
        "issuer": seen.issuer,
        "issued": seen.issued,
        "signaturevalid": valid,
        "answers": _answers(seen.payload, request),
    }


def _answers(payload: bytes, request: OriginRequest | None) -> bool | None:
    try:
        outcome = load(payload, Outcome)
    except Rejected:
        return False
    return None if request is None else not chains.unbound(outcome, request)
