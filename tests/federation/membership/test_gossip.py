"""Introductions: who is introduced to whom, what is taken in, and what is forgotten again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from colonyd.keys import PrivateKey
from federation.membership.gossip import MOST, chosen
from federation.peers.registry import BLOCKED, PENDING, TRUSTED, Peer
from federation.transport.connection import PeerResponse
from federation.wire.card import open_card
from federation.wire.envelope import Kind
from federation.wire.messages import DEEPEST, Introduction, Introductions
from federation.wire.refusals import BROUGHT
from node.http.server import Request
from node.model.types import State
from tests.federation.membership.support import NOW, card, follows, gossip, said, seen, trusted
from tests.federation.peers.support import registry
from tests.support.colonies import Colony, World, world
from tests.support.parts import Led

ME = "0" * 64


@pytest.fixture
def keys() -> list[PrivateKey]:
    return [PrivateKey.generate() for _ in range(4)]


# -- as values ---------------------------------------------------------------------------------


def test_whom_to_introduce(keys: list[PrivateKey]) -> None:
    near, far, stale, farthest = keys
    entries = [
        trusted(near, lastseen=5),
        trusted(far, distance=1, lastseen=9),
        trusted(stale, card=card(stale, expires=NOW - 5)),
        trusted(farthest, distance=DEEPEST),
    ]
    found = chosen(entries, "", NOW)
    assert [each.hops for each in found] == [2, 1], "the one heard of last comes first"
    assert [open_card(each.card, NOW).id for each in found] == [far.id, near.id]
    assert len(chosen(entries, near.id, NOW)) == 1, "nobody is introduced to itself"
    crowd = [trusted(near, id=f"{number:064x}") for number in range(200)]
    assert len(chosen(crowd, "", NOW)) == MOST


async def test_an_introduced_colony_is_pending_and_says_by_whom(keys: list[PrivateKey]) -> None:
    by, cat, *_ = keys
    peers = registry(trusted(by).peer)
    taking = gossip(peers)
    await taking.take_in(by.id, said(card(cat)))
    assert peers.state(cat.id) == PENDING
    assert peers.introducers(cat.id) == [by.id]
    assert peers.toward("cat") == by.id, "the way there leads over who introduced it"
    assert peers.toward("cat", further=False) == ""
    assert peers.toward("cat", [by.id]) == ""
    await taking.take_in(by.id, said())
    assert peers.state(cat.id) == "", "whom nobody introduces any more is forgotten"


async def test_only_newer_cards_count_and_a_broken_one_hurts_nobody(
    keys: list[PrivateKey],
) -> None:
    by, cat, other, _ = keys
    peers = registry(trusted(by).peer)
    taking = gossip(peers)
    await taking.take_in(by.id, said(card(cat, "new", 5), b"nonsense", card(other)))
    assert peers.state(other.id) == PENDING
    await taking.take_in(by.id, said(card(cat, "old", 4)))
    assert peers.name(cat.id) == "new"
    await taking.take_in(by.id, said(card(cat, "newest", 6), card(cat, "old", 4)))
    assert peers.name(cat.id) == "newest"
    await taking.take_in(by.id, said(card(cat, "dead", 9, expires=NOW - 1)))
    assert peers.state(cat.id) == "", "an expired card introduces nobody"


async def test_a_blocked_colony_and_we_ourselves_are_not_brought_back(
    keys: list[PrivateKey],
) -> None:
    by, cat, _, _ = keys
    me = PrivateKey.generate()
    peers = registry(trusted(by).peer, Peer(cat.id, BLOCKED, "cat", b"key", 1), key=me)
    taking = gossip(peers, "trust")
    await taking.take_in(by.id, said(card(cat, "cat", 9), card(me)))
    assert peers.state(cat.id) == BLOCKED
    assert peers.state(me.id) == ""


async def test_introductions_are_bounded_in_all_and_push_nobody_out() -> None:
    keys = [PrivateKey.generate() for _ in range(6)]
    peers = registry(*(trusted(key).peer for key in keys))
    met = PrivateKey.generate()
    await peers.learn(open_card(card(met), NOW), card(met), near=False)
    taking = gossip(peers)
    for key in keys:
        await taking.take_in(key.id, said(*(card(PrivateKey.generate()) for _ in range(MOST))))
    pending = [entry for entry in peers.known.values() if entry.peer.state == PENDING]
    assert len(pending) == 256 + 1
    assert peers.state(met.id) == PENDING
    taking.forget(keys[0].id)
    assert len(peers.known) == 6 + 1 + 256 - MOST


async def test_introduced_cards_expire(keys: list[PrivateKey]) -> None:
    by, cat, seen, _ = keys
    peers = registry(trusted(by).peer)
    peers.sighted(seen.id, "10.0.0.1:1")
    await gossip(peers).take_in(by.id, said(card(cat), card(seen)))
    later = gossip(peers, now=NOW + 3601)
    later.prune()
    assert peers.state(cat.id) == ""
    assert peers.state(seen.id) == PENDING, "it was seen here, too"
    assert peers.introducers(seen.id) == []


# -- between colonies --------------------------------------------------------------------------


@asynccontextmanager
async def acquainted(path: Path, **settings: Any) -> AsyncIterator[tuple[World, Colony, Colony]]:
    """ant and bee trust each other; bee trusts cat as well."""
    async with world(path) as colonies:
        ant = await colonies.add("ant", **settings)
        bee = await colonies.add("bee")
        cat = await colonies.add("cat")
        for one, other in ((ant, bee), (bee, ant), (bee, cat), (cat, bee)):
            await one.trust(other, forward=True, max_hops=2)
        yield colonies, ant, bee


async def test_colonies_meet_through_a_friend_and_work_goes_that_way(tmp_path: Path) -> None:
    async with acquainted(tmp_path, hops=2) as (colonies, ant, bee):
        cat = colonies["cat"]
        await seen(ant, lambda: ant.fed.peers.introducers(cat.key.id) == [bee.key.id])
        assert ant.fed.peers.state(cat.key.id) == PENDING
        with trio.fail_after(50):
            processid = await ant.submit("cat")
            await cat.work("X")
            process = await ant.closed(processid)
        assert (process.state, process.output) == (State.SUCCESSFUL, ["X"])
        assert [step.issuer for step in await ant.steps(processid)] == [bee.key.id, cat.key.id]
        await bee.fed.peers.block(cat.key.id)
        await seen(ant, lambda: ant.fed.peers.state(cat.key.id) == "")


async def test_introductions_can_mean_trust_or_nothing(tmp_path: Path) -> None:
    async with acquainted(tmp_path, introductions="trust") as (colonies, ant, bee):
        cat = colonies["cat"]
        await seen(ant, lambda: ant.fed.peers.state(cat.key.id) == TRUSTED)
        entry = ant.fed.peers.get(cat.key.id)
        assert entry is not None
        assert entry.peer.distance == 1
        await seen(ant, lambda: cat.fed.peers.introducers(ant.key.id) == [bee.key.id])
        dog = await colonies.add("dog", introductions="off")
        await dog.trust(ant)
        await ant.trust(dog)
        body = ant.fed.signer.seal(Kind.INTRODUCTIONS, dog.key.id, Introductions([], 1))
        request = Request("POST", "/v1/introductions", "", {}, body, "x")
        assert (await dog.fed.server.handle(request)).status == 404
        statuses = [(await _ask(ant, bee)) for _ in range(8)]
        assert 429 in statuses, "a peer asks six times a minute at most"
        assert bee.fed.server.counters["introductions_rate"] > 0


@pytest.mark.parametrize("mode", ["pending", "trust"])
async def test_an_old_message_that_somebody_kept_changes_nothing(tmp_path: Path, mode: str) -> None:
    """A mailbox may keep what it carries, and bring it when its sender says something else."""
    async with world(tmp_path) as colonies:
        ant = await colonies.add("ant", introductions=mode)
        bee, cat = await colonies.add("bee"), await colonies.add("cat")
        for one, other in ((ant, bee), (bee, ant)):
            await one.trust(other)
        now = bee.fed.gossip._message(ant.key.id)
        known = [Introduction(cat.fed.own_card.card(), 1)]
        kept = bee.fed.signer.seal(
            Kind.INTRODUCTIONS, ant.key.id, msgspec.structs.replace(now, known=known)
        )

        async def bring(message: bytes) -> str:
            request = Request("POST", "/v1/introductions", "", {}, message, "192.0.2.7")
            answer = await ant.handle(request)
            assert answer is not None
            assert answer.status == 200, "the answer to a repeat may have been lost"
            return ant.fed.peers.state(cat.key.id)

        # From here on, bee has thought better of it.
        assert await bring(_introduction(bee, ant)) == ""
        assert await bring(kept) == ""
        await ant.restart()
        assert await bring(kept) == ""
        # Nor does it use up what bee may say itself.
        again = Request("POST", "/v1/introductions", "", {}, kept, f"{BROUGHT}{cat.key.id}")
        answers = [await ant.handle(again) for _ in range(8)]
        assert 429 in [each.status for each in answers if each is not None]
        assert await bring(_introduction(bee, ant)) == ""
        connection = ant.fed.connections[bee.key.id]

        async def replay(path: str, body: bytes, wait: float) -> PeerResponse:
            return PeerResponse(200, "", kept)

        guide, connection.guide = connection.guide, Led(replay)
        assert await ant.fed.gossip.exchange(connection) == 0, "it is no answer to what we ask, too"
        assert ant.fed.peers.state(cat.key.id) == ""
        connection.guide = guide
        # The key of then counts for a while, but not after what the next one said.
        await bee.rotate()
        await follows(ant, bee)
        assert await bring(_introduction(bee, ant)) == ""
        assert await bring(kept) == ""
        # It was well made: in time, it would have been taken.
        late = bee.fed.gossip._message(ant.key.id)
        late = msgspec.structs.replace(late, known=known)
        message = bee.fed.signer.seal(Kind.INTRODUCTIONS, ant.key.id, late)
        assert await bring(message) == (TRUSTED if mode == "trust" else PENDING)


def _introduction(by: Colony, to: Colony) -> bytes:
    message = by.fed.gossip._message(to.key.id)
    return by.fed.signer.seal(Kind.INTRODUCTIONS, to.key.id, message)


async def test_the_card_of_a_trusted_colony_is_not_replaced_by_an_older_one(
    keys: list[PrivateKey],
) -> None:
    """Whoever shows it: it may not have heard of the newer one, or would have us go elsewhere."""
    by, cat, *_ = keys
    data = card(cat, "now", 5)
    peers = registry(trusted(by).peer, trusted(cat, name="now", sequence=5, card=data).peer)
    taking = gossip(peers, "trust")
    for sequence in (4, 5):
        await taking.take_in(by.id, said(card(cat, "then", sequence)))
        entry = peers.get(cat.id)
        assert entry is not None
        assert (entry.peer.name, entry.peer.sequence, entry.peer.card) == ("now", 5, data)


async def _ask(one: Colony, other: Colony) -> int:
    body = one.fed.signer.seal(Kind.INTRODUCTIONS, other.key.id, Introductions([], 1))
    request = Request("POST", "/v1/introductions", "", {}, body, "x")
    return (await other.fed.server.handle(request)).status
