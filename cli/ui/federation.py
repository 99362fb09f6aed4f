"""The page of the federation: colonies, trust in each direction, forwards, invitations."""

from __future__ import annotations

from typing import Any

import msgspec
import trio

from cli.core.policy import policy_fields
from cli.peers.peers import calls
from cli.ui.api import Api, Nothing
from cli.ui.context import Context

api = Api()

_MOST = 60  # colonies on the map
_INVITATION = 3600  # seconds that one is good for
_JOIN = 90.0  # seconds: several addresses may have to be tried
_AT_ONCE = 8


class PeerRow(msgspec.Struct):
    """One other colony.

    `ours` is the trust in it here, `theirs` whether it trusts this colony: null if nothing is known
    of that. `out` and `back` are the forwards under way, from here and from there. `petname` is our
    owner's name for it, `called` what peers call it.
    """

    id: str
    name: str
    petname: str
    called: str
    ours: str
    theirs: bool | None
    seen: float | None
    error: str
    endpoints: list[str]
    out: int
    back_waiting: int
    back_running: int
    introducedby: list[str]
    offers: list[str]
    policy: list[tuple[str, str]]


class Federation(msgspec.Struct):
    """The map."""

    colony: str
    id: str
    on: bool
    owner: bool
    peers: list[PeerRow]
    more: int
    invitations: list[dict[str, Any]]
    routes: list[dict[str, Any]]


class PeerParams(msgspec.Struct, forbid_unknown_fields=True):
    """A peer, by id."""

    peer: str


class TokenParams(msgspec.Struct, forbid_unknown_fields=True):
    """The token of an invitation."""

    token: str


class InvitationParams(msgspec.Struct, forbid_unknown_fields=True):
    """The name of an invitation."""

    invitation: str


class Invited(msgspec.Struct):
    """A new invitation: `rows` are those of its QR code, "1" for a dark square."""

    token: str
    invitation: str
    expires: float
    addresses: list[str]
    rows: list[str]


@api.row("federation", Nothing)
async def federation(context: Context, params: Nothing) -> Federation:
    """Return the map: it needs the owner's key, and is empty without it."""
    status = await context.maybe("getnodestatusmsg") or {}
    peers = await context.maybe_owned("getpeersmsg")
    offers: dict[str, Any] = {}
    slots = trio.CapacityLimiter(_AT_ONCE)

    async def look(peerid: str) -> None:
        async with slots:
            found = await context.maybe_owned("getpeermsg", peer=peerid) or {}
            offers[peerid] = found.get("capabilities")

    rows = sorted(peers or [], key=lambda row: (row.get("state") != "trusted", row.get("name")))
    async with trio.open_nursery() as nursery:
        for row in rows[:_MOST]:
            if row.get("state") == "trusted":
                nursery.start_soon(look, str(row["id"]))
    return Federation(
        colony=context.colony,
        id=str(status.get("colonyid") or ""),
        on=peers is not None or bool(status.get("federationport")),
        owner=context.owner is not None,
        peers=[_row(each, offers.get(str(each["id"]))) for each in rows[:_MOST]],
        more=max(0, len(rows) - _MOST),
        invitations=await context.maybe_owned("getinvitationsmsg") or [],
        routes=await context.maybe_owned("getroutesmsg") or [],
    )


def _row(peer: dict[str, Any], offers: dict[str, Any] | None) -> PeerRow:
    error = str(peer.get("error") or "")
    # A colony tells what it offers, and takes messages, of those that it trusts only.
    theirs = True if offers else False if "untrusted" in error or "not trusted" in error else None
    types = (offers or {}).get("types") or {}
    seen = float(peer.get("lastseen") or 0)
    return PeerRow(
        id=str(peer["id"]),
        name=str(peer.get("name") or ""),
        petname=str(peer.get("petname") or ""),
        called=calls(peer),
        ours=str(peer.get("state") or ""),
        theirs=theirs,
        seen=round(seen) if seen else None,
        error=error,
        endpoints=list(peer.get("endpoints") or []),
        out=int(peer.get("outstanding") or 0),
        back_waiting=int(peer.get("waiting") or 0),
        back_running=int(peer.get("running") or 0),
        introducedby=list(peer.get("introducedby") or []),
        offers=[
            f"{kind}: {', '.join(map(str, offer.get('functions') or []))}"
            for kind, offer in sorted(types.items())
        ],
        policy=[(name, str(value)) for name, value in policy_fields(peer.get("policy") or {})],
    )


@api.row("ping", PeerParams)
async def ping(context: Context, params: PeerParams) -> dict[str, Any]:
    """Exchange hellos with a peer."""
    reply: dict[str, Any] = await context.owned("pingpeermsg", timeout=30, peer=params.peer)
    return reply


@api.row("trust", PeerParams, changes=True)
async def trust(context: Context, params: PeerParams) -> Any:
    """Trust a colony, under the default policy."""
    return {"state": (await context.owned("trustpeermsg", peer=params.peer))["state"]}


@api.row("block", PeerParams, changes=True)
async def block(context: Context, params: PeerParams) -> Any:
    """Block a colony, and end what it has here and ours there."""
    return {"state": (await context.owned("blockpeermsg", peer=params.peer))["state"]}


@api.row("invite", Nothing, changes=True)
async def invite(context: Context, params: Nothing) -> Invited:
    """Make an invitation, with its QR code."""
    import segno

    reply = await context.owned("invitepeermsg", expires=_INVITATION, addresses=[])
    token = str(reply["token"])
    code = segno.make(token, error="l", micro=False)
    return Invited(
        token=token,
        invitation=str(reply["invitation"]),
        expires=float(reply["expires"]),
        addresses=list(reply["addresses"]),
        rows=["".join("1" if dark else "0" for dark in row) for row in code.matrix_iter(border=2)],
    )


@api.row("revoke", InvitationParams, changes=True)
async def revoke(context: Context, params: InvitationParams) -> Any:
    """Make an invitation useless."""
    return await context.owned("revokeinvitationmsg", invitation=params.invitation)


@api.row("join", TokenParams, changes=True)
async def join(context: Context, params: TokenParams) -> Any:
    """Redeem another colony's invitation."""
    peer = await context.owned("joinpeermsg", timeout=_JOIN, token=params.token.strip())
    return {"id": peer["id"], "name": peer["name"]}
