"""A peer's name is not its own to change: work goes where the owner said it should.

Peers here are colonies in one process; what they say of themselves are cards under their own keys.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from colonyd.errors import RpcError
from colonyd.keys import PrivateKey
from federation.peers.record import BLOCKED
from federation.peers.registry import PENDING, TRUSTED, Peer
from federation.routing.rules import RemoteColony, Route, _reached
from federation.wire import cbor
from federation.wire.card import Card, is_name, open_card, sign_card
from federation.wire.envelope import Kind, Rejected, seal
from tests.federation.peers.support import asks, peer, registry, shows, view
from tests.support.colonies import world

NOW = 1_800_000_000


async def test_the_name_as_trusted_stays(tmp_path: Path) -> None:
    bee, cat = PrivateKey.generate(), PrivateKey.generate()
    async with world(tmp_path, ["ant"]) as colonies:
        (ant,) = colonies.values()
        with trio.fail_after(50):
            await shows(ant, bee, "bee", trusted=True)
            await shows(ant, cat, "cat", trusted=True)
            await shows(ant, bee, "cat")
            assert await asks(ant, "cat") == cat.id
            assert await asks(ant, "bee") == bee.id
            seen = await view(ant, bee.id)
            assert (seen["name"], seen["said"], seen["ambiguous"]) == ("bee", "cat", "")
            # It takes it back, and nothing is asked any more.
            await shows(ant, bee, "bee")
            assert (await view(ant, bee.id))["said"] == ""
            # A restart knows no other name.
            await shows(ant, bee, "cat")
            await ant.restart()
            assert await asks(ant, "bee") == bee.id
            assert (await view(ant, bee.id))["said"] == "cat"
            # The owner decides: now two are called so, and that is what a sender is told.
            await ant.fed.peers.trust(bee.id)
            for target in ("cat", "cat/dog"):
                with pytest.raises(RpcError, match="is the name of 2 colonies") as caught:
                    await asks(ant, target)
                assert caught.value.status == 409
                assert "give the id" in caught.value.message
            assert bee.id[:12] in str((await view(ant, bee.id))["ambiguous"])
            assert await asks(ant, cat.id) == cat.id
            with pytest.raises(RpcError, match="neither here nor a trusted peer") as caught:
                await asks(ant, "bee")
            assert caught.value.status == 404


async def test_a_pending_name_does_not_go_to_a_peer_that_takes_it(tmp_path: Path) -> None:
    """bee introduced cat; dog, which is trusted too, calls itself cat."""
    bee, cat, dog, stranger = (PrivateKey.generate() for _ in range(4))
    async with world(tmp_path) as colonies:
        ant = await colonies.add("ant", hops=2)
        with trio.fail_after(50):
            await shows(ant, bee, "bee", trusted=True)
            await shows(ant, dog, "dog", trusted=True)
            await shows(ant, cat, "cat")
            ant.fed.peers.known[cat.id].introduced[bee.id] = 1
            assert await asks(ant, "cat") == bee.id
            await shows(ant, dog, "cat")
            assert await asks(ant, "cat") == bee.id
            # Nor does a stranger that says hello under that name make it nobody's.
            await shows(ant, stranger, "cat")
            assert await asks(ant, "cat") == bee.id
            # Two that were introduced under it are told apart by the owner only.
            ant.fed.peers.known[stranger.id].introduced[dog.id] = 1
            with pytest.raises(RpcError, match="2 colonies introduced here"):
                await asks(ant, "cat")


def test_a_later_card_does_not_change_a_name() -> None:
    key = PrivateKey.generate()
    card = Card(key.id, key.public_key, "cat", 2, "f" * 64, [], [2], 2**31)
    for state in (TRUSTED, BLOCKED):
        after = Peer(key.id, state, "bee", key.public_key, 1).described(card, b"")
        assert (after.name, after.said, after.sequence) == ("bee", "cat", 2)
        assert (after.renamed().name, after.renamed().said) == ("cat", "")
        again = after.described(msgspec.structs.replace(card, name="bee"), b"")
        assert (again.name, again.said) == ("bee", "")
    stranger = Peer(key.id, PENDING, "bee", key.public_key, 1).described(card, b"")
    assert (stranger.name, stranger.said) == ("cat", "")


def test_a_blocked_colony_is_not_reached_by_way_of_another() -> None:
    peers = registry(peer("a", "bee"), peer("b", "cat", BLOCKED), peer("c", "dog", PENDING))
    for each in ("b" * 64, "c" * 64):
        peers.known[each].introduced["a" * 64] = 1
    assert peers.toward("cat") == ""
    assert peers.toward("b" * 64) == ""
    assert peers.toward("dog") == "a" * 64


async def test_whom_the_network_makes_trusted_takes_no_name_of_a_trusted_one() -> None:
    key = PrivateKey.generate()
    peers = registry(peer("a", "lab"))
    peers.lan = True
    card = Card(key.id, key.public_key, "lab", 1, "f" * 64, ["10.0.0.1:1"], [2], 2**33)
    entry = await peers.learn(card, b"card", near=True)
    assert entry is not None
    assert entry.peer.state == PENDING, "the owner decides"
    assert peers.named("lab") == "a" * 64


@pytest.mark.parametrize(
    "name", ["*", "any", "..", ".", "a/b", "a*", "a b", "-a", "", "ü", "a\x85b", "[ab]", "a" * 64]
)
def test_what_stands_for_others_is_no_name(name: str) -> None:
    assert not is_name(name)
    key = PrivateKey.generate()
    good = Card(key.id, key.public_key, "lab", 1, "f" * 64, [], [2], 2**31)
    with pytest.raises(ValueError, match="a name has"):
        sign_card(key, msgspec.structs.replace(good, name=name))


def test_a_name_that_is_none_makes_no_card() -> None:
    """Well signed by who takes no care: whoever reads it refuses it."""
    key = PrivateKey.generate()
    for name in ("any", "*", "a/b", ".."):
        body: dict[str, Any] = {"key": key.public_key, "name": name, "seq": 1}
        body |= {"fp": bytes(32), "at": [], "ver": [2]}
        data = seal(key, Kind.CARD, "*", cbor.encode(body), cti=b"c", issued=NOW, expires=NOW + 9)
        with pytest.raises(Rejected, match="a name has"):
            open_card(data, NOW)


def test_a_name_does_not_pass_for_the_beginning_of_an_id() -> None:
    """Owners are told to give the first characters of an id."""
    peers = registry(peer("a", "lab", PENDING), peer("b", "a" * 12, PENDING))
    for text in ("a" * 8, "a" * 13):
        assert peers.find(text).peer.id == "a" * 64
    with pytest.raises(RpcError, match="may be"):
        peers.find("a" * 12)
    others = [RemoteColony("a" * 64, "lab", TRUSTED), RemoteColony("b" * 64, "a" * 12, TRUSTED)]
    (found,) = _reached(Route(1, to=("a" * 12,)), others)
    assert found.state == "several are called so"
