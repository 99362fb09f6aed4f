"""Colonies that are known from elsewhere, and looked up all the same."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from colonyd.keys import PrivateKey
from federation.dht.wide import WideLookup
from federation.membership.bootstrap import Bootstrap
from federation.membership.finder import Finder
from federation.membership.join import Joiner
from federation.network.monitor import NetworkMonitor
from federation.peers.context import Context
from federation.peers.registry import PENDING, Peer, PeerState
from federation.transport.errors import Unsent
from federation.wire.invitation import Token, write_token
from node.tasks.sync import WakeUps
from tests.federation.peers.support import registry

AT = "203.0.113.9:50081"
NOTHING = cast(Any, None)


class Seeker:
    """A colony that knows another one by an introduction, which is out of date."""

    def __init__(self, *, there: bool = True) -> None:
        key = PrivateKey.generate()
        self.peers = registry(Peer(key.id, PENDING, "bee", key.public_key, 1, "f" * 64))
        self.entry = self.peers.known[key.id]
        self.there, self.asked = there, list[str]()
        signer = self.peers.signer
        self.context = Context(
            "ant", signer, NOTHING, NOTHING, self.peers, NOTHING, random.Random(1)
        )
        bootstrap = Bootstrap(self.context, WakeUps())
        self.finder = Finder(self.context, bootstrap, NOTHING, NOTHING, cast(Any, self))

    def request(self, colony: str, *, named: bool = False) -> bool:
        """The look-up: after a while, the card is fetched at the present address."""
        self.asked.append(colony)
        if self.there:
            trio.lowlevel.spawn_system_task(self._find)
        return True

    async def _find(self) -> None:
        await trio.sleep(3)
        self.entry.prove(AT)
        self.entry.lastseen = self.context.clock.seconds
        self.peers._changed(self.entry.peer.id)


async def test_an_invitation_leads_to_a_colony_whose_introduction_is_out_of_date(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    async def at(self: Joiner, address: str, *rest: object) -> PeerState:
        tried.append(address)
        if address != AT:
            raise Unsent("nobody is there")
        return seeker.entry

    monkeypatch.setattr(Joiner, "_at", at)
    seeker = Seeker()
    token = write_token(Token(seeker.entry.peer.id, "f" * 64, [], 2**33, b"s" * 16))
    ways = cast(Any, seeker)
    joiner = Joiner(seeker.context, NOTHING, seeker.finder, ways)
    assert await joiner.join(token, None) is seeker.entry
    assert tried == [AT]


async def test_one_peer_does_not_take_up_all_look_ups_of_mailboxes(tmp_path: Path) -> None:
    """Its cards name some that do not exist, others with each card."""
    seeker = Seeker()
    monitor = NetworkMonitor()
    wide = WideLookup(monitor, tmp_path, "127.0.0.1", 1)
    seeker.finder.wide = wide
    for number in range(40):
        seeker.finder.seek_mailbox(f"{number:064x}", f"liar{number % 2}")
    assert wide.lookups.sought() == 4
    seeker.finder.seek_mailbox("b" * 64, "bee")
    assert wide.lookups.is_sought("b" * 64)


async def test_what_is_known_is_looked_up_only_if_that_is_asked_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    for there in (True, False):
        seeker = Seeker(there=there)
        wanted = seeker.entry.peer.id
        assert await seeker.finder.locate(wanted) is seeker.entry
        assert not seeker.asked
        began = trio.current_time()
        assert await seeker.finder.locate(wanted, 10, afresh=True) is seeker.entry
        assert trio.current_time() - began == pytest.approx(3 if there else 10)
        assert seeker.asked == [wanted]
        assert bool(seeker.entry.proven) == there
