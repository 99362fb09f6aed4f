"""Strangers in the list of peers: when they were seen, and that those which are gone leave it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import trio
import trio.testing

from colonyd.errors import Conflict
from colonyd.keys import PrivateKey
from federation.membership.bootstrap import Bootstrap
from federation.network.mdns import Sighting
from federation.peers.context import Context
from federation.peers.keys import Keys
from federation.peers.registry import GONE, PENDING, SEEN, Peers
from federation.transport.errors import Unsent
from federation.wire.card import Card
from federation.wire.clock import SigningClock
from federation.wire.signer import Signer
from node.tasks.sync import WakeUps
from tests.support.daemons import Daemon, until
from tests.support.sides import pair

Make = Callable[..., Daemon]
KEY = PrivateKey.generate()
CARD = Card(KEY.id, KEY.public_key, "bee", 1, "f" * 64, ["192.0.2.2:50081"], [2], 2**33)
AT = "192.0.2.2:50081"


class Place:
    """A colony's bootstrap on virtual time, and whether the card at `AT` is there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, clock: trio.testing.MockClock) -> None:
        self.there, self.fetches, self.wanted = True, 0, ""
        nothing = cast(Any, None)
        now = SigningClock(lambda: int((1_000_000 + clock.current_time()) * 1e9))
        signer = Signer(PrivateKey.generate(), now)
        self.peers = Peers(nothing, Keys("home"), signer)
        context = Context("home", signer, nothing, nothing, self.peers, Keys("home"))
        self.bootstrap = Bootstrap(context, WakeUps())
        monkeypatch.setattr("federation.membership.bootstrap.fetch_cards", self._fetch)

    async def _fetch(
        self, address: str, clock: SigningClock, wanted: str
    ) -> tuple[tuple[Card, bytes], None]:
        self.fetches += 1
        self.wanted = wanted
        if not self.there:
            raise Unsent(f"{address}: connection refused")
        return (CARD, b"card"), None

    async def refresh(self) -> None:
        while True:
            await trio.sleep(62)
            await self.bootstrap.refresh()


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock) -> Place:
    return Place(monkeypatch, autojump_clock)


async def test_a_pending_colony_is_seen_while_it_answers_and_leaves_when_it_is_gone(
    place: Place, autojump_clock: trio.testing.MockClock
) -> None:
    """It is looked at again each minute, though it is announced once: SEEN is no old news."""
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(place.bootstrap.run)
        nursery.start_soon(place.refresh)
        place.bootstrap.heard([Sighting(KEY.id, "f" * 64, "192.0.2.2", 50081)])
        await trio.sleep(600)
        (entry,) = place.peers.known.values()
        now = place.peers.signer.clock.seconds
        assert entry.peer.state == PENDING
        assert now - entry.lastseen <= 63
        assert place.fetches <= 1 + (trio.current_time() - began) / 60
        place.there = False
        last = entry.lastseen
        await trio.sleep(180)
        assert entry.lastseen == last
        assert "connection refused" in entry.error
        await trio.sleep(GONE)
        assert place.peers.known == {}
        nursery.cancel_scope.cancel()


async def test_an_announced_colony_without_a_card_leaves_after_the_last_announcement(
    place: Place, autojump_clock: trio.testing.MockClock
) -> None:
    place.there = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(place.bootstrap.run)
        nursery.start_soon(place.refresh)
        for _ in range(20):  # as long as it is announced it stays, with what is wrong
            place.bootstrap.heard([Sighting(KEY.id, "f" * 64, "192.0.2.2", 50081)])
            await trio.sleep(60)
        (entry,) = place.peers.known.values()
        assert (entry.peer.state, entry.lastseen) == (SEEN, 0)
        assert "connection refused" in entry.error
        await trio.sleep(GONE + 70)
        assert place.peers.known == {}
        nursery.cancel_scope.cancel()


async def test_what_the_owner_named_or_a_peer_introduced_stays(
    place: Place, autojump_clock: trio.testing.MockClock
) -> None:
    for introduced, given in (({"a" * 64: 1}, []), ({}, [AT])):
        entry = await place.peers.learn(CARD, b"card", near=False)
        assert entry is not None
        entry.introduced, entry.given = dict(introduced), list(given)
        assert place.peers.prune(place.peers.signer.clock.seconds + 10 * GONE) == []
        entry.introduced, entry.given = {}, []
        assert place.peers.prune(place.peers.signer.clock.seconds + 10 * GONE) == [KEY.id]


async def test_a_stranger_is_forgotten_and_met_again(
    place: Place, autojump_clock: trio.testing.MockClock
) -> None:
    await place.peers.learn(CARD, b"card", near=False)
    assert (await place.peers.forget("bee")).peer.id == KEY.id
    assert place.peers.known == {}
    entry = await place.peers.learn(CARD, b"card", near=False)
    assert entry is not None
    assert entry.peer.state == PENDING


@pytest.mark.slow
async def test_forgetting_a_peer_from_outside(make_daemon: Make) -> None:
    """A trusted colony has to be blocked first; then the block goes, for good, from the store."""
    async with pair(make_daemon) as (ant, bee):
        with pytest.raises(Conflict, match="block it first"):
            await ant.call("forgetpeermsg", ant.owner, peer=bee.owner.id)
        await ant.call("blockpeermsg", ant.owner, peer=bee.owner.id)

        async def forgotten() -> Any:
            try:
                return await ant.call("forgetpeermsg", ant.owner, peer=bee.owner.id)
            except Conflict:  # what was under way is still being ended
                return None

        told: Any = await until(30, forgotten)
        assert told == {"id": bee.owner.id, "name": "bee", "state": "blocked"}
        await trio.to_thread.run_sync(ant.daemon.stop)
        await trio.to_thread.run_sync(ant.daemon.start)

        async def unblocked() -> bool:
            try:
                found = await ant.peer(bee)
            except Exception:
                return False
            return found is None or found["state"] in ("seen", "pending")

        assert await until(30, unblocked)


async def test_no_host_is_asked_for_another_colonys_card_while_global_is_off(place: Place) -> None:
    """A configured address may lead to another colony, which then learns nothing."""
    for wide in (False, True):
        place.bootstrap.wide = wide
        await place.bootstrap.fetch(AT, KEY.id)
        assert place.wanted == (KEY.id if wide else "")
