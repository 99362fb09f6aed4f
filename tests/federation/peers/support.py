"""A registry of peers without a store, and what it knows."""

from __future__ import annotations

import time

import msgspec

from colonyd.keys import PrivateKey
from federation.peers.keys import Keys
from federation.peers.registry import TRUSTED, Peer, Peers, PeerState
from federation.service.rpc import calls
from federation.wire.card import Card, open_card, sign_card
from federation.wire.clock import SigningClock
from federation.wire.envelope import MAX_LIFETIME
from federation.wire.signer import Signer
from node.etcd.client import EtcdClient
from node.handlers.work.processes import submit_spec
from node.model.types import FunctionSpec
from node.rpc.calls import Caller
from node.rpc.requests import Empty, SubmitProcess
from tests.support.colonies import Colony

KEY = PrivateKey.generate()


class NoStore(EtcdClient):
    """Strangers must not reach the store: any call fails the test."""

    def __init__(self) -> None:
        """Connect to nothing."""


def registry(*peers: Peer, key: PrivateKey = KEY) -> Peers:
    known = {peer.id: PeerState(peer, 1) for peer in peers}
    return Peers(NoStore(), Keys("home"), Signer(key, SigningClock()), known=known)


def peer(letter: str, name: str, state: str = TRUSTED) -> Peer:
    return Peer(letter * 64, state, name, b"key", 1)


def card(key: PrivateKey, name: str = "lab", sequence: int = 1) -> Card:
    return Card(key.id, key.public_key, name, sequence, "f" * 64, ["10.0.0.1:50081"], [2], 2**33)


async def shows(at: Colony, other: PrivateKey, name: str, *, trusted: bool = False) -> None:
    """A colony shows `at` a card that is newer than all before, with a name."""
    entry, now = at.fed.peers.get(other.id), int(time.time())
    sequence = max(entry.peer.sequence if entry else 0, now) + 1
    made = Card(
        other.id, other.public_key, name, sequence, "f" * 64, ["there.example:50081"], [2],
        now + MAX_LIFETIME - 1,
    )  # fmt: skip
    data = sign_card(other, made)
    await at.fed.peers.learn(open_card(data, now), data, near=False)
    if trusted:
        await at.fed.peers.trust(other.id)


async def asks(at: Colony, target: str) -> str:
    """Submit as a member does; the id of the peer that it goes to. Raises RpcError."""
    assert at.node is not None
    spec = msgspec.convert(
        {"funcname": "f", "conditions": {"colonyname": target, "executortype": "t"}}, FunctionSpec
    )
    caller = Caller(at.worker.executorid)
    process = await submit_spec(at.node, caller, SubmitProcess(spec))
    return (await at.process(process["processid"])).peer


async def view(at: Colony, other: str) -> dict[str, object]:
    rows = {row.payloadtype: row for row in calls(at.fed)}
    found = await rows["getpeersmsg"].handler(Caller(at.key.id), Empty())
    return next(each for each in found if each["id"] == other)
