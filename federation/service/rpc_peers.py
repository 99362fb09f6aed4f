"""The RPC rows about peers: trust, policy, invitations, keys.

The table holds who may call a row. `membership.trust` holds what a row does.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from colonyd.errors import Invalid
from federation.membership.rotation import Rotated
from federation.peers.clock import PeerClock
from federation.peers.policy import Policy, PolicyError, changed, read
from federation.peers.registry import TRUSTED, PeerState
from federation.peers.unreachable import cannot_be
from federation.service import rpc_routes as route_calls
from federation.service.main import Federation
from federation.transport.errors import TransportError
from federation.wire import invitation as tokens
from federation.wire.envelope import Rejected
from node.etcd.pressure import Need
from node.host.home import Home
from node.rpc.calls import Caller, Calls, Who
from node.rpc.requests import Empty

_ID = re.compile(r"[0-9a-f]{64}")


class ByPeer(msgspec.Struct):
    """A peer by id, unique beginning of an id, petname, or name."""

    peer: str


class PolicyRequest(msgspec.Struct):
    """A policy in a request: a whole one, or `change` applied to the present one; or neither."""

    policy: dict[str, Any] | None = None
    change: dict[str, Any] | None = None

    def over(self, present: Policy) -> Policy | None:
        """Return the wanted policy; None if the request has none. Raises Invalid."""
        if self.policy is None and not self.change:
            return None
        try:
            base = present if self.policy is None else read(self.policy)
            return changed(base, self.change or {})
        except PolicyError as error:
            raise Invalid(str(error)) from None


class TrustPeer(PolicyRequest, kw_only=True):
    """Trust a peer, with a policy of its own if the request has one."""

    peer: str


class SetPolicy(PolicyRequest, kw_only=True):
    """Change a trusted peer's policy; `default` replaces it by the configured default."""

    peer: str
    default: bool = False


class NamePeer(msgspec.Struct):
    """A peer, or any colony by its whole id, and our name for it; "" takes the name back."""

    peer: str
    name: str = ""


class ShowCard(msgspec.Struct):
    """A peer whose card is wanted; "" for our own."""

    peer: str = ""


class OpenCard(msgspec.Struct):
    """The link of a card."""

    link: str


class Invite(PolicyRequest, kw_only=True):
    """Make an invitation for `expires` seconds. Without `addresses`, it has our card's."""

    expires: int = 3600
    addresses: list[str] = []


class ByInvitation(msgspec.Struct):
    """An invitation by the beginning of its name."""

    invitation: str


class JoinPeer(PolicyRequest, kw_only=True):
    """Redeem an invitation; the policy is for the inviting colony."""

    token: str


calls: Calls[Federation] = Calls("Ours", home=lambda federation: federation.home)


def peer_view(federation: Federation, entry: PeerState) -> dict[str, Any]:
    """Return a peer as lists and pages show it: ids, addresses, state, policy, usage."""
    peer = entry.peer
    return {
        "id": peer.wire,
        "name": peer.name,
        "petname": federation.peers.petname(peer.id),
        "said": peer.said,
        "ambiguous": federation.peers.ambiguity(peer.name) if peer.state == TRUSTED else "",
        "state": peer.state,
        "endpoints": (addresses := entry.addresses()),
        "mailboxes": peer.mailboxes,
        "impossible": {
            address: why
            for address in addresses
            if (why := cannot_be(address, federation.own_card.endpoints))
        },
        "lastseen": entry.lastseen,
        "error": entry.error or peer.mismatch,
        "outstanding": federation.outbox.outstanding(peer.id),
        "waiting": federation.context.processes.queue.count_of(peer.id),
        "running": federation.context.processes.running.count_of(peer.id),
        "left": left_view(federation, peer.id),
        "policy": policy_view(federation.peers.policy(peer.id)),
        "ownpolicy": peer.policy is not None,
        "ending": peer.ending,
        "clock": clock_view(entry.clock),
        "introducedby": [federation.peers.name(by) for by in federation.peers.introducers(peer.id)],
        "calledby": [
            {"by": federation.peers.name(by), "name": name}
            for by, name in sorted(federation.peers.called_by(entry).items())
        ],
        "distance": peer.distance,
        "former": [{"id": each.id, "until": each.until} for each in peer.former],
    }


@calls.row("getpeersmsg", Empty, Who.OWNER, reply="Peer[]")
async def get_peers(federation: Federation, caller: Caller, request: Empty) -> list[dict[str, Any]]:
    """Return the other colonies, and the trust in each."""
    return [peer_view(federation, entry) for entry in federation.peers.known.values()]


@calls.row("getpeermsg", ByPeer, Who.OWNER, reply="Peer")
async def get_peer(federation: Federation, caller: Caller, request: ByPeer) -> dict[str, Any]:
    """Return one other colony."""
    entry = federation.peers.find(request.peer)
    said, age = (
        federation.capability_cache.get(entry.peer.id),
        federation.capability_cache.age(entry.peer.id),
    )
    return peer_view(federation, entry) | {"capabilities": route_calls.statement_view(said, age)}


@calls.row("trustpeermsg", TrustPeer, Who.OWNER, reply="Peer", need=Need.WORKS)
async def trust(federation: Federation, caller: Caller, request: TrustPeer) -> dict[str, Any]:
    """Trust a colony: it may send work here, and takes work from here."""
    entry = federation.peers.get(request.peer) or await federation.finder.locate(request.peer)
    entry = entry or federation.peers.find(request.peer)
    policy = request.over(federation.peers.policy(entry.peer.id))
    return peer_view(federation, await federation.trust_admin.trust(entry.peer.id, policy))


@calls.row("setpeerpolicymsg", SetPolicy, Who.OWNER, reply="Peer", need=Need.FREES)
async def set_policy(federation: Federation, caller: Caller, request: SetPolicy) -> dict[str, Any]:
    """Change what a trusted colony may do here."""
    entry = federation.peers.find(request.peer)
    policy = request.over(federation.peers.policy(entry.peer.id))
    if policy is None and not request.default:
        raise Invalid("policy: say what to change")
    chosen = None if request.default else policy
    return peer_view(federation, await federation.trust_admin.set_policy(entry.peer.id, chosen))


@calls.row("namepeermsg", NamePeer, Who.OWNER, reply="{id, petname}", need=Need.WORKS)
async def name(federation: Federation, caller: Caller, request: NamePeer) -> dict[str, Any]:
    """Give a colony a name of this colony's own, or take it back."""
    peers, text = federation.peers, request.peer
    known = peers.petnames.id_of(text) or (text if _ID.fullmatch(text) else "")
    peerid = peers.index.root(known or peers.find(text).peer.id)
    if not request.name:
        await peers.unname(peerid)
    elif peers.is_me(peerid):
        raise Invalid("peer: that is this colony; its own name was given by `colony init`")
    elif request.name == federation.home or federation.hooks.hosts(request.name):
        raise Invalid(f"petname: {request.name!r} is the name of a colony on this server")
    else:
        await peers.call(peerid, request.name)
    return {"id": peers.present(peerid), "petname": request.name}


@calls.row("getpetnamesmsg", Empty, Who.OWNER, reply="{id, petname}[]")
async def petnames(federation: Federation, caller: Caller, request: Empty) -> list[dict[str, str]]:
    """Return the names that this colony gave others, also those that are not known now."""
    peers = federation.peers
    found = [(name, peers.present(each)) for each, name in peers.petnames.all().items()]
    return [{"id": peerid, "petname": name} for name, peerid in sorted(found)]


@calls.row("getcardmsg", ShowCard, Who.OWNER, reply="Card", need=Need.FREES)
async def card(federation: Federation, caller: Caller, request: ShowCard) -> dict[str, Any]:
    """Return a colony's signed card, and the link with which another daemon opens it."""
    entry = federation.peers.find(request.peer) if request.peer else None
    return federation.card_desk.show(entry)


@calls.row("opencardmsg", OpenCard, Who.OWNER, reply="Peer", need=Need.FREES)
async def open_card(federation: Federation, caller: Caller, request: OpenCard) -> dict[str, Any]:
    """Check the card in a link, and list its colony as pending; nobody is trusted by it."""
    return peer_view(federation, await federation.card_desk.open(request.link))


@calls.row("blockpeermsg", ByPeer, Who.OWNER, reply="Peer", need=Need.FREES)
async def block(federation: Federation, caller: Caller, request: ByPeer) -> dict[str, Any]:
    """Block a colony: refuse its messages, and end its processes here and ours there."""
    return peer_view(federation, await federation.trust_admin.block(request.peer))


@calls.row("forgetpeermsg", ByPeer, Who.OWNER, reply="{id, name, state}", need=Need.FREES)
async def forget(federation: Federation, caller: Caller, request: ByPeer) -> dict[str, Any]:
    """Remove a colony that is not trusted from the list; one that was blocked is a stranger."""
    peer = (await federation.trust_admin.forget(request.peer)).peer
    return {"id": peer.wire, "name": peer.name, "state": peer.state}


@calls.row(
    "invitepeermsg", Invite, Who.OWNER, reply="{invitation, token, expires, addresses, policy}"
)
async def invite(federation: Federation, caller: Caller, request: Invite) -> dict[str, Any]:
    """Make an invitation, with which one colony can make trust mutual."""
    policy = request.over(federation.peers.default)
    token = await federation.invitations.invite(request.expires, policy, request.addresses)
    return {
        "invitation": tokens.name_of(token.secret),
        "token": tokens.write_token(token),
        "expires": token.expires,
        "addresses": token.addresses,
        "policy": policy_view(policy or federation.peers.default),
    }


@calls.row("getinvitationsmsg", Empty, Who.OWNER, reply="Invitation[]")
async def get_invitations(
    federation: Federation, caller: Caller, request: Empty
) -> list[dict[str, Any]]:
    """Return the open invitations."""
    return [
        {
            "invitation": name,
            "created": kept.created,
            "expires": kept.expires,
            "policy": policy_view(kept.policy or federation.peers.default),
        }
        for name, kept in await federation.invitations.open()
    ]


@calls.row("revokeinvitationmsg", ByInvitation, Who.OWNER, reply="{invitation}", need=Need.FREES)
async def revoke(federation: Federation, caller: Caller, request: ByInvitation) -> dict[str, Any]:
    """Revoke an invitation."""
    return {"invitation": await federation.invitations.revoke(request.invitation)}


@calls.row("joinpeermsg", JoinPeer, Who.OWNER, reply="Peer")
async def join(federation: Federation, caller: Caller, request: JoinPeer) -> dict[str, Any]:
    """Redeem another colony's invitation."""
    policy = request.over(federation.peers.default)
    return peer_view(federation, await federation.joiner.join(request.token, policy))


@calls.row("pingpeermsg", ByPeer, Who.OWNER, reply="{ok, rtt, error, clock}", need=Need.FREES)
async def ping(federation: Federation, caller: Caller, request: ByPeer) -> dict[str, Any]:
    """Exchange hellos with a colony."""
    entry = federation.peers.find(request.peer)
    try:
        async with federation.peer_sessions.connection(entry) as connection:
            rtt = await federation.prober.hello(connection)
    except (TransportError, Rejected) as error:
        rtt, problem = 0.0, str(error)
    else:
        problem = ""
    entry = federation.peers.find(request.peer)
    told = problem or entry.peer.mismatch
    return {"ok": not problem, "rtt": rtt, "error": told, "clock": clock_view(entry.clock)}


@calls.row("rotatekeymsg", Empty, Who.OWNER, reply="{id, former, until, kept}", need=Need.FREES)
async def rotate(federation: Federation, caller: Caller, request: Empty) -> Rotated:
    """Change the colony's key; peers follow."""
    return await federation.rotation.rotate(Home(federation.directory))


def policy_view(policy: Policy) -> dict[str, Any]:
    """Return a policy as configuration files and the command line write it."""
    view: dict[str, Any] = msgspec.to_builtins(policy)
    return view


def left_view(federation: Federation, peerid: str) -> dict[str, int]:
    """Return a colony's usage of our store: entries, bytes, bytes of updates in a day."""
    stock = federation.inbox.peer_quotas.stock(peerid)
    told = federation.inbox.peer_quotas.told(peerid)
    return {"entries": stock.entries, "bytes": stock.size, "news": told}


def clock_view(clock: PeerClock) -> dict[str, Any] | None:
    """Return a peer's clock: how many seconds ahead of ours, `within` how many; or None."""
    reading = clock.reading
    if reading is None:
        return None
    return {"ahead": reading.ahead, "within": round(reading.within, 1), "measured": reading.at}
