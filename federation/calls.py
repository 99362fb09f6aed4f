"""The rows that federation adds to the table of calls: peers, and the way of a forward.

Rights are the table's; what a call does is in `service` and `outbox`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from federation import outbox
from federation.envelope import Kind, Refused, inspect
from federation.outbox import Forward
from federation.peers import Known
from federation.service import Federation
from federation.transport import TransportError
from node.codec import unpack
from node.errors import missing
from node.identity import id_of, verify_es256k
from node.model import State
from node.rpc.requests import Empty, ProcessById
from node.rpc.table import Call, Caller, Who

__all__ = ["ByPeer", "calls", "outcome_view"]


class ByPeer(msgspec.Struct):
    """A peer by id, unique beginning of an id, or name."""

    peer: str


def calls(federation: Federation) -> list[Call[Any]]:
    """The rows; the owner of the home colony decides about peers, members see their forwards."""

    def home(_: object) -> str:
        return federation.home

    def view(entry: Known) -> dict[str, Any]:
        peer = entry.peer
        return {
            "id": peer.id,
            "name": peer.name,
            "state": peer.state,
            "endpoints": entry.addresses(),
            "lastseen": entry.lastseen,
            "error": entry.error,
            "outstanding": federation.ledger.outstanding(peer.id),
        }

    async def get_peers(caller: Caller, request: Empty) -> list[dict[str, Any]]:
        return [view(entry) for entry in federation.peers.known.values()]

    async def get_peer(caller: Caller, request: ByPeer) -> dict[str, Any]:
        return view(federation.peers.find(request.peer))

    async def trust(caller: Caller, request: ByPeer) -> dict[str, Any]:
        return view(await federation.trust(request.peer))

    async def block(caller: Caller, request: ByPeer) -> dict[str, Any]:
        return view(await federation.block(request.peer))

    async def ping(caller: Caller, request: ByPeer) -> dict[str, Any]:
        federation.peers.find(request.peer)
        try:
            rtt = await federation.ping(request.peer)
        except (TransportError, Refused) as error:
            return {"ok": False, "rtt": 0.0, "error": str(error)}
        return {"ok": True, "rtt": rtt, "error": ""}

    async def get_forward(caller: Caller, request: ProcessById) -> dict[str, Any]:
        return await _forward(federation, request.processid)

    return [
        Call("getpeersmsg", Empty, Who.OWNER, get_peers, home),
        Call("getpeermsg", ByPeer, Who.OWNER, get_peer, home),
        Call("trustpeermsg", ByPeer, Who.OWNER, trust, home),
        Call("blockpeermsg", ByPeer, Who.OWNER, block, home),
        Call("pingpeermsg", ByPeer, Who.OWNER, ping, home),
        Call("getforwardmsg", ProcessById, Who.BOTH, get_forward, home),
    ]


async def _forward(federation: Federation, processid: str) -> dict[str, Any]:
    """How far a forwarded process is. Raises RpcError 404."""
    loaded = await federation.ledger.processes.load(federation.home, processid)
    if loaded is None or not loaded[0].peer:
        raise missing(f"process {processid} was not forwarded from this colony")
    process = loaded[0]
    keys = federation.keys
    found = await federation.client.get(keys.forward(process.peer, processid))
    if found is None:
        found = await federation.client.get(keys.proof(processid))
    if found is None:
        raise missing(f"no forward of process {processid} is known")
    forward = unpack(found.value, Forward)
    entry = federation.ledger.entries.get(processid)
    if entry is not None and entry.revision == found.mod_revision:
        forward = entry.forward  # knows the latest tries as well
    state = forward.state
    if state == outbox.CANCELLING and process.state == State.FAILED:
        state = outbox.DOUBT  # given up by its deadline; the peer is being told
    peer = federation.peers.get(process.peer)
    waiting = state in (outbox.QUEUED, outbox.DOUBT, outbox.CANCELLING)
    return {
        "processid": processid,
        "peer": process.peer,
        "peername": federation.peers.name(process.peer),
        "state": state,
        "attempts": forward.attempts,
        "lasterror": forward.lasterror or (peer.error if peer and waiting else ""),
        "remoteprocessid": forward.remoteprocessid,
        "outcome": outcome_view(
            forward.outcome, process.peer, peer.peer.public_key if peer else b""
        ),
    }


def outcome_view(sealed: bytes, peer: str, public_key: bytes) -> dict[str, Any] | None:
    """Who signed an outcome, when, and whether the signature holds: verified now, not remembered.

    None when there is none.
    """
    if not sealed:
        return None
    try:
        seen = inspect(sealed, limit=len(sealed))
    except Refused:
        return {"issuer": "", "issued": 0, "signaturevalid": False}
    valid = (
        seen.issuer == peer
        and bool(public_key)
        and id_of(public_key) == peer
        and verify_es256k(public_key, seen.signed_bytes(Kind.OUTCOME), seen.signature)
    )
    return {"issuer": seen.issuer, "issued": seen.issued, "signaturevalid": valid}
