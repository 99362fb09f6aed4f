"""The rows that federation adds to the table of calls: peers, and the way of a forward.

Rights are the table's; what a call does is in `membership.trust` and `forward.machine`.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from federation.membership.rotation import Rotated
from federation.outbox import resolve as resolving
from federation.peers.clock import Clock
from federation.peers.policy import Policy, PolicyError, changed, read
from federation.peers.reachability import cannot_be
from federation.peers.registry import TRUSTED, Known
from federation.service import rpc_clock as clock_calls
from federation.service import rpc_routes as route_calls
from federation.service.main import Federation
from federation.service.rpc_forwards import _asked, _forward
from federation.transport.errors import TransportError
from federation.wire import invitation as tokens
from federation.wire.envelope import Refused
from node.etcd.pressure import Need
from node.host.home import Home
from node.model.codec import wire_process
from node.model.errors import bad
from node.rpc.dispatch import Call, Caller, Who
from node.rpc.requests import Empty, ProcessById

__all__ = ["ByPeer", "calls"]


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


def clock_view(clock: Clock) -> dict[str, Any] | None:
    """How many seconds a peer's clock is ahead of ours, give or take `within`; None if unknown."""
    reading = clock.reading
    if reading is None:
        return None
    return {"ahead": reading.ahead, "within": round(reading.within, 1), "measured": reading.at}
