"""The rows that federation adds to the table of calls: peers, and the way of a forward.

Rights are the table's; what a call does is in `membership.trust` and `forward.machine`.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from federation.forward import chain as chains
from federation.forward import machine as outbox
from federation.forward import path as relays
from federation.forward.machine import Forward
from federation.forward.path import Request
from federation.membership.rotation import Rotated
from federation.outbox import evidence as testimony
from federation.outbox import resolve as resolving
from federation.outbox.outcomes import read_output
from federation.peers.clock import Clock
from federation.peers.policy import Policy, PolicyError, changed, read
from federation.peers.reachability import cannot_be
from federation.peers.registry import TRUSTED, Known
from federation.service import rpc_clock as clock_calls
from federation.service import rpc_routes as route_calls
from federation.service.main import Federation
from federation.transport.link import TransportError
from federation.wire import invitation as tokens
from federation.wire.envelope import Kind, Refused, inspect
from federation.wire.json import apart
from federation.wire.messages import Outcome, load
from node.etcd.pressure import Need
from node.host.home import Home
from node.host.keys import id_of, verify_es256k
from node.model.codec import unpack, wire_process, wire_time
from node.model.errors import bad, missing
from node.model.types import Process, State
from node.rpc.dispatch import Call, Caller, Who
from node.rpc.requests import Empty, ProcessById
from node.store import keys

__all__ = ["ByPeer", "calls", "outcome_view"]


class ByPeer(msgspec.Struct):
    """A peer by id, unique beginning of an id, or name."""

    peer: str


class Wish(msgspec.Struct):
    """What a policy is to be: a whole one, or `change` laid over the one in force; or neither."""

    policy: dict[str, Any] | None = None
    change: dict[str, Any] | None = None

    def over(self, present: Policy) -> Policy | None:
        """The policy that is wanted, None when nothing was said. Raises RpcError 400."""
        if self.policy is None and not self.change:
            return None
        try:
            base = present if self.policy is None else read(self.policy)
            return changed(base, self.change or {})
        except PolicyError as error:
            raise bad(str(error)) from None


class TrustPeer(Wish, kw_only=True):
    """Trust a peer, with a policy of its own if one is given."""

    peer: str


class SetPolicy(Wish, kw_only=True):
    """Change a trusted peer's policy; `default` gives it up for that of the configuration."""

    peer: str
    default: bool = False


class Invite(Wish, kw_only=True):
    """Make an invitation for `expires` seconds. Without `addresses`, those of our card."""

    expires: int = 3600
    addresses: list[str] = []


class Resolve(msgspec.Struct):
    """End the doubt about a process."""

    processid: str
    decision: Literal["failed", "requeue"]


class ByInvitation(msgspec.Struct):
    """An invitation by the beginning of its name."""

    invitation: str


class JoinPeer(Wish, kw_only=True):
    """Use an invitation; the policy is for who invited."""

    token: str


def calls(federation: Federation) -> list[Call[Any]]:
    """The rows; the owner of the home colony decides about peers, members see their forwards."""

    def home(_: object) -> str:
        return federation.home

    def view(entry: Known) -> dict[str, Any]:
        peer = entry.peer
        return {
            "id": peer.wire,
            "name": peer.name,
            "said": peer.said,
            "ambiguous": federation.peers.ambiguity(peer.name) if peer.state == TRUSTED else "",
            "state": peer.state,
            "endpoints": (addresses := entry.addresses()),
            "impossible": {
                address: why
                for address in addresses
                if (why := cannot_be(address, federation.portrait.endpoints))
            },
            "lastseen": entry.lastseen,
            "error": entry.error or peer.mismatch,
            "outstanding": federation.ledger.outstanding(peer.id),
            "waiting": federation.ledger.processes.queue.count_of(peer.id),
            "running": federation.ledger.processes.running.count_of(peer.id),
            "left": left_view(federation, peer.id),
            "policy": policy_view(federation.peers.policy(peer.id)),
            "ownpolicy": peer.policy is not None,
            "ending": peer.ending,
            "clock": clock_view(entry.clock),
            "introducedby": [
                federation.peers.name(by) for by in federation.peers.introducers(peer.id)
            ],
            "distance": peer.distance,
            "former": [{"id": each.id, "until": each.until} for each in peer.former],
        }

    async def get_peers(caller: Caller, request: Empty) -> list[dict[str, Any]]:
        return [view(entry) for entry in federation.peers.known.values()]

    async def get_peer(caller: Caller, request: ByPeer) -> dict[str, Any]:
        entry = federation.peers.find(request.peer)
        said, age = federation.board.get(entry.peer.id), federation.board.age(entry.peer.id)
        return view(entry) | {"capabilities": route_calls.statement_view(said, age)}

    async def trust(caller: Caller, request: TrustPeer) -> dict[str, Any]:
        present = federation.peers.policy(federation.peers.find(request.peer).peer.id)
        return view(await federation.decisions.trust(request.peer, request.over(present)))

    async def set_policy(caller: Caller, request: SetPolicy) -> dict[str, Any]:
        entry = federation.peers.find(request.peer)
        policy = request.over(federation.peers.policy(entry.peer.id))
        if policy is None and not request.default:
            raise bad("policy: say what to change")
        chosen = None if request.default else policy
        return view(await federation.decisions.set_policy(entry.peer.id, chosen))

    async def invite(caller: Caller, request: Invite) -> dict[str, Any]:
        policy = request.over(federation.peers.default)
        token = await federation.invitations.invite(request.expires, policy, request.addresses)
        return {
            "invitation": tokens.name_of(token.secret),
            "token": tokens.write_token(token),
            "expires": token.expires,
            "addresses": token.addresses,
            "policy": policy_view(policy or federation.peers.default),
        }

    async def get_invitations(caller: Caller, request: Empty) -> list[dict[str, Any]]:
        return [
            {
                "invitation": name,
                "created": kept.created,
                "expires": kept.expires,
                "policy": policy_view(kept.policy or federation.peers.default),
            }
            for name, kept in await federation.invitations.open()
        ]

    async def revoke(caller: Caller, request: ByInvitation) -> dict[str, Any]:
        return {"invitation": await federation.invitations.revoke(request.invitation)}

    async def join(caller: Caller, request: JoinPeer) -> dict[str, Any]:
        policy = request.over(federation.peers.default)
        return view(await federation.joining.join(request.token, policy))

    async def block(caller: Caller, request: ByPeer) -> dict[str, Any]:
        return view(await federation.decisions.block(request.peer))

    async def ping(caller: Caller, request: ByPeer) -> dict[str, Any]:
        federation.peers.find(request.peer)
        try:
            rtt = await federation.greeter.ping(request.peer)
        except (TransportError, Refused) as error:
            rtt, problem = 0.0, str(error)
        else:
            problem = ""
        entry = federation.peers.find(request.peer)
        told = problem or entry.peer.mismatch
        return {"ok": not problem, "rtt": rtt, "error": told, "clock": clock_view(entry.clock)}

    async def get_forward(caller: Caller, request: ProcessById) -> dict[str, Any]:
        return await _forward(federation, request.processid)

    async def get_origin(caller: Caller, request: ProcessById) -> list[dict[str, Any]]:
        return await _asked(federation, request.processid)

    async def resolve(caller: Caller, request: Resolve) -> dict[str, Any]:
        requeue = request.decision == "requeue"
        return wire_process(
            await resolving.resolve(federation.ledger, request.processid, requeue=requeue)
        )

    async def rotate(caller: Caller, request: Empty) -> Rotated:
        return await federation.rotation.rotate(Home(federation.directory))

    return [
        Call("rotatekeymsg", Empty, Who.OWNER, rotate, home, need=Need.FREES),
        Call("getpeersmsg", Empty, Who.OWNER, get_peers, home),
        Call("getpeermsg", ByPeer, Who.OWNER, get_peer, home),
        Call("trustpeermsg", TrustPeer, Who.OWNER, trust, home, need=Need.WORKS),
        Call("setpeerpolicymsg", SetPolicy, Who.OWNER, set_policy, home, need=Need.FREES),
        Call("invitepeermsg", Invite, Who.OWNER, invite, home),
        Call("getinvitationsmsg", Empty, Who.OWNER, get_invitations, home),
        Call("revokeinvitationmsg", ByInvitation, Who.OWNER, revoke, home, need=Need.FREES),
        Call("joinpeermsg", JoinPeer, Who.OWNER, join, home),
        Call("blockpeermsg", ByPeer, Who.OWNER, block, home, need=Need.FREES),
        Call("pingpeermsg", ByPeer, Who.OWNER, ping, home, need=Need.FREES),
        Call("getforwardmsg", ProcessById, Who.BOTH, get_forward, home),
        Call("getoriginmsg", ProcessById, Who.BOTH, get_origin, home),
        Call("resolveprocessmsg", Resolve, Who.OWNER, resolve, home, need=Need.FREES),
        *route_calls.rows(federation),
        *clock_calls.rows(federation),
    ]


def policy_view(policy: Policy) -> dict[str, Any]:
    """A policy as it is written in files and on the command line."""
    view: dict[str, Any] = msgspec.to_builtins(policy)
    return view


def left_view(federation: Federation, peerid: str) -> dict[str, int]:
    """What a colony left in the store here: entries, bytes, and bytes of news of the last day."""
    stock = federation.inbox.accounts.stock(peerid)
    told = federation.inbox.accounts.told(peerid)
    return {"entries": stock.entries, "bytes": stock.size, "news": told}


async def _forward(federation: Federation, processid: str) -> dict[str, Any]:
    """How far a forwarded process is. Raises RpcError 404."""
    loaded = await federation.ledger.processes.load(federation.home, processid)
    if loaded is None:
        raise missing(f"process {processid} was not forwarded from this colony")
    process, places = loaded[0], federation.keys
    found = None
    if process.peer:
        found = await federation.client.get(places.forward(process.peer, processid))
    if found is None:
        # Without a peer it may have come back from one.
        found = await federation.client.get(places.proof(processid))
    if found is None:
        raise missing(f"no forward of process {processid} is known")
    forward = unpack(found.value, Forward)
    entry = federation.ledger.entries.get(processid)
    if entry is not None and entry.revision == found.mod_revision:
        forward = entry.forward  # knows the latest tries as well
    state = forward.state
    if state == outbox.CANCELLING and process.state == State.FAILED:
        state = outbox.DOUBT  # given up by its deadline; the peer is being told
    peer = federation.peers.get(forward.peer)
    waiting = state in (outbox.QUEUED, outbox.DOUBT, outbox.CANCELLING)
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
    """How the process fares at the peer, as that last told; None when it has not, or it ended."""
    known = federation.results.follower.of(forward.processid)
    if process.closed or known is None or known[0].peer != forward.peer:
        return None
    told = known[0]
    return {
        "state": told.state,
        "executor": told.executor,
        "starttime": wire_time(told.start),
        "lines": told.lines,
    }


def _asked_view(request: Request | None) -> dict[str, str] | None:
    """What the peer has to answer: the SHA-256 of the origin's submission, and who signed it."""
    return {"sha256": request.digest.hex(), "by": request.origin} if request else None


def _named(federation: Federation, forward: Forward, process: Process) -> list[dict[str, Any]]:
    """The colonies beyond the peer that the target names, and the ids that each may have.

    Without ids nothing was checked: no trusted colony has that name, so it may be anybody's.
    """
    wanted = testimony.beyond(federation.ledger, process, forward.peer)
    meant = testimony.meant(federation.ledger, process, forward, wanted)
    return [
        {"name": name, "ids": meant.get(name) or ([name] if len(name) == 64 else [])}
        for name in wanted
    ]


async def _late(federation: Federation, record: Forward) -> dict[str, Any] | None:
    """What a peer told of the process when nobody waited for that any more, verified now."""
    found = await federation.client.get(federation.keys.late(record.processid))
    if found is None:
        return None
    seen = inspect(found.value, limit=len(found.value))
    peers, outcome = federation.peers, load(seen.payload, Outcome)
    root = peers.roster.root(seen.issuer)
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
    """What a late outcome gives as output; nothing of one that is no JSON: it is kept unread."""
    try:
        return read_output(data) if data else []
    except Refused:
        return []


async def _chain(federation: Federation, forward: Forward) -> list[dict[str, Any]]:
    """Every signed outcome from the peer's down to that of who ran it, each verified now."""
    sealed, peers = forward.outcome, federation.peers
    if not sealed:
        found = await federation.client.get(federation.keys.apart(forward.processid))
        sealed = found.value if found else b""
    issuer, key = testimony.signer(federation.peers, sealed, forward.peer)
    steps = await apart(
        sealed,
        lambda data: chains.trace(
            data, issuer, key, federation.sealer.ids, peers.ids, forward.request
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


async def _asked(federation: Federation, processid: str) -> list[dict[str, Any]]:
    """Who asked for a process that came from another colony, the origin first, verified now.

    Raises RpcError 404.
    """
    loaded = await federation.ledger.processes.load(federation.home, processid)
    found = None
    if loaded is not None and loaded[0].origin:
        found = await federation.client.get(keys.submission(federation.home, processid))
    if loaded is None or found is None:
        raise missing(f"process {processid} did not come from another colony")
    peers = federation.peers
    issuer, key = testimony.signer(federation.peers, found.value, loaded[0].origin)
    hops, valid = await apart(found.value, lambda data: relays.way(data, issuer, key))
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


def clock_view(clock: Clock) -> dict[str, Any] | None:
    """How many seconds a peer's clock is ahead of ours, give or take `within`; None if unknown."""
    reading = clock.reading
    if reading is None:
        return None
    return {"ahead": reading.ahead, "within": round(reading.within, 1), "measured": reading.at}


def outcome_view(
    sealed: bytes, peer: str, public_key: bytes, request: Request | None = None
) -> dict[str, Any] | None:
    """Who signed an outcome, when, and whether the signature holds: verified now, not remembered.

    `answers` is whether it names the very submission that was sent (`request`), None where that is
    not known any more. None when there is no outcome.
    """
    if not sealed:
        return None
    try:
        seen = inspect(sealed, limit=len(sealed))
    except Refused:
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


def _answers(payload: bytes, request: Request | None) -> bool | None:
    try:
        outcome = load(payload, Outcome)
    except Refused:
        return False
    return None if request is None else not chains.unbound(outcome, request)
