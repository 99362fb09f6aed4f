"""A colony changes its key: whom peers believe, what stays theirs, and crashes in the middle."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from colonyd.keys import PrivateKey, read_key, write_key
from federation.peers.registry import TRUSTED, FormerKey, Peer
from federation.wire.card import Card, sign_card
from federation.wire.clock import SigningClock
from federation.wire.envelope import Kind, Rejected
from federation.wire.messages import Hello, Submit, Successor
from federation.wire.signer import Signer
from federation.wire.succession import OVERLAP, declare, prove
from node.host.home import Home
from node.model.types import State
from node.store import keys
from tests.federation.membership.support import follows, friends, post
from tests.federation.peers.support import registry
from tests.support.colonies import Colony, world

NOW = int(time.time())

# -- as values ---------------------------------------------------------------------------------


def test_a_succession_is_proven_by_both_keys() -> None:
    old, new, thief = (PrivateKey.generate() for _ in range(3))
    declared = declare(old, new, NOW)
    succession = prove(declared)
    assert (succession.old, succession.new, succession.new_key) == (old.id, new.id, new.public_key)
    assert succession.until == NOW + OVERLAP
    stolen = declare(thief, new, NOW)
    mixed = [
        Successor(declared.by_old, stolen.by_new),
        Successor(stolen.by_old, declared.by_new),
        Successor(declared.by_new, declared.by_old),
        Successor(declared.by_old, declared.by_old),
        Successor(declared.by_old[:-1] + b"\0", declared.by_new),
        Successor(b"nonsense", declared.by_new),
        declare(old, old, NOW),
    ]
    for each in mixed:
        with pytest.raises(Rejected):
            prove(each)


def test_a_peer_is_found_under_all_its_ids() -> None:
    root, now_is = "a" * 64, "b" * 64
    former = FormerKey(root, b"old", NOW + 10)
    peers = registry(Peer(root, TRUSTED, "ant", b"new", 1, current=now_is, former=[former]))
    for text in (root, now_is, "ant", now_is[:10]):
        assert peers.find(text).peer.id == root
    assert peers.named(now_is) == root
    assert peers.state(now_is) == TRUSTED
    assert (peers.public_key(root), peers.public_key(now_is)) == (b"old", b"new")
    peer = peers.find(root).peer
    assert peer.key_of(root, NOW) == b"old"
    assert peer.key_of(root, NOW + 10) is None, "the overlap is over"
    assert len(list(peers.known)) == 1


def test_key_files_survive_a_crash_at_any_step(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.keys.mkdir()
    old = PrivateKey.generate()
    write_key(home.key("colony"), old)
    new = home.next_key()
    assert home.next_key().id == new.id, "an interrupted change goes on with the same key"
    kept = home.keys / f"colony.key.old-{time.strftime('%Y-%m-%d', time.gmtime(NOW))}"
    kept.hardlink_to(home.key("colony"))
    assert home.take_next_key(NOW * 10**9) == kept, "cut short after the first step"
    assert read_key(home.key("colony")).id == new.id
    assert read_key(kept).id == old.id
    assert kept.stat().st_mode & 0o777 == 0o600
    third = home.next_key()
    again = home.take_next_key(NOW * 10**9)
    assert again.name.endswith("-2")
    assert read_key(home.key("colony")).id == third.id
    assert not home.has_next_key()


# -- between colonies --------------------------------------------------------------------------


async def forwards(one: Colony, other: Colony) -> None:
    """A process goes there and comes back."""
    with trio.fail_after(50):
        processid = await one.submit(other.name)
        await other.work("X")
        process = await one.closed(processid)
    assert (process.state, process.output) == (State.SUCCESSFUL, ["X"])
    assert [step.problem for step in await one.steps(processid)] == [""]


async def test_peers_keep_what_they_decided_and_what_is_under_way(tmp_path: Path) -> None:
    async with world(tmp_path) as colonies:
        ant, bee = await friends(colonies, "ant", "bee")
        former = ant.key
        with trio.fail_after(50):
            there, back = await ant.submit("bee"), await bee.submit("ant")
            await ant.until(lambda: bool(ant.waiting()))
            await bee.until(lambda: bool(bee.waiting()))
            await ant.rotate()
            await follows(bee, ant)
            await ant.work("at ant")
            await bee.work("at bee")
            for colony, processid in ((ant, there), (bee, back)):
                assert (await colony.closed(processid)).state == State.SUCCESSFUL
        assert ant.key.id != former.id
        peer = bee.fed.peers.find(ant.key.id).peer
        assert (peer.id, peer.state, peer.name) == (former.id, TRUSTED, "ant")
        assert bee.fed.peers.policy(ant.key.id).max_running == 7
        await forwards(ant, bee)
        await forwards(bee, ant)
        # It is in the stores of both.
        await bee.restart()
        await ant.restart()
        await forwards(ant, bee)
        await forwards(bee, ant)
        # And again, with a second key.
        await ant.rotate()
        await follows(bee, ant)
        await forwards(bee, ant)


def sealed(key: PrivateKey, to: Colony, **fields: Any) -> bytes:
    """A submission by whoever holds a key."""
    spec = b'{"funcname":"f","conditions":{"colonyname":"bee","executortype":"t"}}'
    message = Submit("7" * 64, 1, spec, "me", 1, [])
    return Signer(key, SigningClock()).seal(Kind.SUBMIT, to.key.id, message)


def greeting(key: PrivateKey, to: Colony, *successors: Successor) -> bytes:
    card = Card(key.id, key.public_key, "ant", 2**40, "f" * 64, [], [2], NOW + 3600)
    hello = Hello(sign_card(key, card, issued=NOW), successors=list(successors))
    return Signer(key, SigningClock()).seal(Kind.HELLO, to.key.id, hello)


async def test_a_stolen_old_key_is_worth_nothing_once_its_successor_is_known(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as colonies:
        ant, bee = await friends(colonies, "ant", "bee")
        stolen, third = ant.key, PrivateKey.generate()
        # Nobody follows who is not named by the key that is trusted.
        assert await post(bee, "hello", greeting(third, bee)) == "untrusted"
        await ant.rotate()
        await follows(bee, ant)
        usurper = greeting(third, bee, declare(stolen, third, NOW))
        assert await post(bee, "hello", usurper) == "usurped"
        assert bee.fed.peers.find("ant").peer.wire == ant.key.id
        # In the overlap, what the old key signed still counts; then it does not.
        assert await post(bee, "submit", sealed(stolen, bee)) == ""
        entry = bee.fed.peers.find("ant")
        over = [FormerKey(each.id, each.public_key, NOW - 1) for each in entry.peer.former]
        entry.peer = msgspec.structs.replace(entry.peer, former=over)
        assert await post(bee, "submit", sealed(stolen, bee)) == "superseded"
        assert await post(bee, "hello", greeting(stolen, bee)) == "superseded"
        assert bee.fed.server.counters["usurped"] == 1
        # A blocked colony stays blocked under its next key.
        await bee.fed.peers.block(ant.key.id)
        fourth = PrivateKey.generate()
        escape = greeting(fourth, bee, declare(ant.key, fourth, NOW))
        assert await post(bee, "hello", escape) == "blocked"


async def test_a_peer_that_was_away_learns_of_it_at_the_next_hello(tmp_path: Path) -> None:
    async with world(tmp_path) as colonies:
        ant, bee = await friends(colonies, "ant", "bee")
        # bee can't be reached: it must ask itself, by the id that it knows.
        bee.hidden = True
        processid = await bee.submit("ant")
        await ant.until(lambda: bool(ant.waiting()))
        await ant.rotate()
        assert bee.fed.peers.find("ant").peer.wire != ant.key.id
        bee.fed.probes.wake()
        await follows(bee, ant)
        with trio.fail_after(50):
            await ant.work("X")
            assert (await bee.closed(processid)).state == State.SUCCESSFUL


@pytest.mark.parametrize("before", [True, False])
async def test_both_sides_may_die_at_any_write(tmp_path: Path, before: bool) -> None:
    async with world(tmp_path) as colonies:
        ant, bee = await friends(colonies, "ant", "bee")
        old = ant.key.id
        # Introductions and hellos are written at any time: they are not the rotation's writes.
        ant.mortal(1, before=before, only=keys.colony("ant"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ant.rotate)
            await ant.until(lambda: not ant.up)
            nursery.cancel_scope.cancel()
        await ant.until(lambda: ant.up)
        assert (ant.key.id == old) == before, "the store's word counts"
        if before:
            waiting = ant.home.next_key().id
            await ant.rotate()
            assert ant.key.id == waiting
        assert read_key(ant.home.key("colony")).id == ant.key.id
        await follows(bee, ant)
        bee.mortal(1, before=before)
        await ant.rotate()
        await follows(bee, ant)
        await forwards(ant, bee)
        await forwards(bee, ant)
