"""Colonies that get to know each other: cards, introductions, invitations and changes of key."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import msgspec
import trio
from hypothesis import strategies as st

from colonyd.keys import PrivateKey
from federation.membership.gossip import Gossip
from federation.peers.context import Context
from federation.peers.keys import Keys
from federation.peers.registry import TRUSTED, Peer, Peers, PeerState
from federation.wire.card import Card, sign_card
from federation.wire.clock import SigningClock
from federation.wire.messages import Introduction, Introductions
from federation.wire.signer import Signer
from node.http.server import Request
from tests.federation.inbox.support import path_of
from tests.support.colonies import Colony
from tests.support.daemons import Daemon, until
from tests.support.parts import portrait_of
from tests.support.sides import Side


async def friends(colonies: Any, *names: str) -> list[Colony]:
    made = [await colonies.add(name) for name in names]
    for one in made:
        for other in made:
            if one is not other:
                await one.trust(other, max_running=7)
    return made


async def follows(one: Colony, other: Colony) -> None:
    """Return once a colony knows the other by its present key."""

    async def known() -> bool:
        entry = one.fed.peers.get(other.key.id) if one.up else None
        return entry is not None and entry.peer.wire == other.key.id

    await until(50, known, step=0.02)


async def post(to: Colony, path: str, body: bytes) -> str:
    """The code with which a message is refused, "" if it is not."""
    answer = await to.fed.server.handle(Request("POST", path_of(path), "", {}, body, "10.0.0.9"))
    return "" if answer.status == 200 else str(msgspec.json.decode(answer.body)["code"])


NOW = int(time.time())


def card(key: PrivateKey, name: str = "cat", sequence: int = 1, expires: int = NOW + 3600) -> bytes:
    value = Card(key.id, key.public_key, name, sequence, "f" * 64, ["cat.example:1"], [2], expires)
    return sign_card(key, value, issued=min(NOW, expires - 10))


def trusted(key: PrivateKey, **fields: Any) -> PeerState:
    data = fields.pop("card", card(key))
    seen = fields.pop("lastseen", 0)
    peer = Peer(key.id, TRUSTED, "bee", key.public_key, 1, "f" * 64, [], data)
    return PeerState(msgspec.structs.replace(peer, **fields), 1, lastseen=seen)


def gossip(peers: Peers, mode: str = "pending", now: int = NOW) -> Gossip:
    clock, nothing = SigningClock(lambda: now * 1_000_000_000), cast(Any, None)
    signer = Signer(PrivateKey.generate(), clock)
    context = Context("home", signer, nothing, nothing, peers, Keys("home"))
    return Gossip(context, portrait_of(context), mode)


def said(*cards: bytes, hops: int = 1) -> Introductions:
    return Introductions([Introduction(each, hops) for each in cards], 1)


async def seen(colony: Colony, check: Callable[[], bool]) -> None:
    """Return once the registry of a colony is as it should be."""

    async def holds() -> bool:
        return colony.up and check()

    await until(50, holds, step=0.02)


Make = Callable[..., Daemon]
addresses = st.one_of(
    st.tuples(st.ip_addresses(v=4), st.integers(1, 65535)).map(lambda pair: f"{pair[0]}:{pair[1]}"),
    st.tuples(st.ip_addresses(v=6), st.integers(1, 65535)).map(
        lambda pair: f"[{pair[0]}]:{pair[1]}"
    ),
    st.just("lab.example.org:50081"),
    st.just("[fe80::1%eth0]:50081"),
)


@asynccontextmanager
async def strangers(make: Make) -> AsyncIterator[tuple[Side, Side]]:
    """Two running colonies that have never heard of each other, and can't by themselves."""
    alone = {"COLONYD_FEDERATION__DISCOVERY": "false"}
    daemons = [make("ant", **alone), make("bee", **alone)]
    for daemon in daemons:
        await trio.to_thread.run_sync(daemon.start)
    async with daemons[0].client() as first, daemons[1].client() as second:
        yield Side(daemons[0], first), Side(daemons[1], second)


@asynccontextmanager
async def joined(make: Make) -> AsyncIterator[tuple[Side, Side]]:
    """Two running colonies that trust each other by invitation, with a worker in the second."""
    async with strangers(make) as (ant, bee):
        made = await ant.call("invitepeermsg", ant.owner)
        await bee.call("joinpeermsg", bee.owner, token=made["token"])
        await bee.hire()
        yield ant, bee
