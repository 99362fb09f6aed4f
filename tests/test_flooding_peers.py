"""What strangers, a blocked colony and a trusted peer can cost by sending much, at the gate.

A real store is behind it. Floods of real daemons are in `test_floods_live`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import trio

from federation import envelope, heirs, succession
from federation.card import Card, sign_card
from federation.envelope import Kind
from federation.messages import Cancel, Hello, Successor
from federation.peers import BLOCKED, Peers
from federation.sealing import Sealer
from federation.succession import declare
from node.etcd.client import open_client
from node.identity import PrivateKey, verify_es256k
from tests.etcd.support import start_store
from tests.test_federation_gate import Lab, code, submission

HOME = "10.0.0.2"


@pytest.fixture
async def lab(nursery: trio.Nursery, tmp_path: Path) -> AsyncIterator[Lab]:
    store = await start_store(nursery, tmp_path / "etcd")
    async with open_client(store.target, timeout=60) as client:
        yield Lab(client)


def greeting(key: PrivateKey, to: str, *successors: Successor, sequence: int = 1) -> bytes:
    """A hello of whoever has a key."""
    now = int(time.time())
    card = Card(key.id, key.public_key, "stranger", sequence, "e" * 64, [], [1], now + 3600)
    hello = Hello(sign_card(key, card, issued=now), successors=list(successors))
    return Sealer(key, time.time_ns).seal(Kind.HELLO, to, hello)


async def stored(lab: Lab) -> int:
    """Bytes of all that federation has in the store."""
    items, _ = await lab.client.range_all(lab.keys.root)
    return sum(len(item.key) + len(item.value) for item in items)


async def revision(lab: Lab) -> int:
    """How often anything was written."""
    return (await lab.client.range(lab.keys.root, limit=1)).revision


# -- a blocked colony ------------------------------------------------------------------------


def chain(key: PrivateKey, count: int) -> tuple[list[Successor], PrivateKey]:
    """A colony changes its key many times; and its last one."""
    made: list[Successor] = []
    for _ in range(count):
        following = PrivateKey.generate()
        made.append(declare(key, following, int(time.time())))
        key = following
    return made, key


async def test_a_chain_of_successions_of_a_blocked_colony_writes_next_to_nothing(lab: Lab) -> None:
    """Any stranger can bring it; the colony stays blocked, under the keys that it showed first."""
    await lab.befriend()
    await lab.peers.block(lab.other.id)
    before, began = await stored(lab), await revision(lab)
    last = lab.other
    codes: set[str] = set()
    for _ in range(20):
        made, last = chain(last, 8)
        bearer = PrivateKey.generate()
        body = greeting(bearer, lab.key.id, *made)
        codes.add(code(await lab.raw("hello", body, "10.0.0.66")))
        if len(codes) == 1:
            assert codes == {"untrusted"}, "the bearer itself is a stranger"
    assert codes <= {"untrusted", "blocked"}
    assert await stored(lab) - before < 4096
    assert await revision(lab) - began <= 8
    entry = lab.peers.get(lab.other.id)
    assert entry is not None
    assert (entry.peer.state, len(entry.peer.former)) == (BLOCKED, 8)
    assert lab.peers.state(entry.peer.wire) == BLOCKED
    again = Peers(lab.client, lab.keys, lab.key.id)
    await again.load()
    assert again.state(entry.peer.wire) == BLOCKED, "and so it is after a restart"


async def test_a_blocked_colony_stays_blocked_under_its_next_keys(lab: Lab) -> None:
    await lab.befriend()
    await lab.peers.block(lab.other.id)
    made, last = chain(lab.other, 3)
    assert code(await lab.raw("hello", greeting(last, lab.key.id, *made))) == "blocked"
    # One more than is kept: refused as well, and nothing is written for it.
    more, beyond = chain(last, 6)
    assert code(await lab.raw("hello", greeting(beyond, lab.key.id, *more))) == "blocked"
    began = await revision(lab)
    assert code(await lab.raw("hello", greeting(beyond, lab.key.id, *more))) == "blocked"
    assert await revision(lab) == began


async def test_a_trusted_colony_changes_its_key_so_often_a_day_and_keeps_so_many(lab: Lab) -> None:
    """Its record stays small, and a key that was let go is worth nothing."""
    await lab.befriend()
    last, told = lab.other, []
    for number in range(30):
        following = PrivateKey.generate()
        told = [*told, declare(last, following, int(time.time()))][-8:]
        last = following
        answer = await lab.raw("hello", greeting(last, lab.key.id, *told), "10.0.0.3")
        if number < 8:
            assert answer.status == 200
            continue
        if number == 8:
            assert code(answer) == "succession_rate"
            assert int(dict(answer.headers)["retry-after"]) > 3600
        entry = lab.peers.get(lab.other.id)
        assert entry is not None
        entry.changes.level = None  # another day
        answer = await lab.raw("hello", greeting(last, lab.key.id, *told), "10.0.0.3")
        assert answer.status == 200
    entry = lab.peers.get(lab.other.id)
    assert entry is not None
    assert (entry.peer.wire, len(entry.peer.former)) == (last.id, heirs.MOST_FORMER)
    found = await lab.client.get(lab.keys.peer(lab.other.id))
    assert found is not None
    assert len(found.value) < 8192
    thief = greeting(lab.other, lab.key.id, sequence=2**40)
    assert code(await lab.raw("hello", thief)) == "superseded", "its first key, long let go"


async def test_successions_that_concern_nobody_are_not_checked(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They cost a stranger's hello no signature check, and known ones a peer's none again."""
    calls = 0

    def counted(*arguments: bytes) -> bool:
        nonlocal calls
        calls += 1
        return verify_es256k(*arguments)

    for module in (envelope, succession):
        monkeypatch.setattr(module, "verify_es256k", counted)
    made, last = chain(PrivateKey.generate(), 8)
    assert code(await lab.raw("hello", greeting(last, lab.key.id, *made))) == "untrusted"
    assert calls == 2, "the hello, and its card"
    await lab.befriend()
    made, last = chain(lab.other, 3)
    body = greeting(last, lab.key.id, *made)
    assert (await lab.raw("hello", body)).status == 200
    calls = 0
    assert (await lab.raw("hello", body)).status == 200
    assert calls == 2


# -- strangers -------------------------------------------------------------------------------


def counting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count signature checks."""
    calls = [0]

    def counted(*arguments: bytes) -> bool:
        calls[0] += 1
        return verify_es256k(*arguments)

    monkeypatch.setattr(envelope, "verify_es256k", counted)
    return calls


async def test_a_flood_of_hellos_is_checked_and_logged_within_bounds(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """From one address, from a whole /64, from everywhere; a peer is heard all the same."""
    await lab.befriend()
    calls = counting(monkeypatch)
    caplog.set_level("INFO", logger="colonyd")
    keys = [PrivateKey.generate() for _ in range(100)]
    bodies = [greeting(key, lab.key.id) for key in keys]

    async def flood(count: int, remote: str) -> list[str]:
        return [
            code(await lab.raw("hello", bodies[n % 100], remote.format(n=n, high=n // 250)))
            for n in range(count)
        ]

    codes = await flood(200, "10.0.0.66")
    assert codes[:60] == ["untrusted"] * 60
    assert codes[100:] == ["stranger_rate"] * 100
    assert calls[0] < 2 * 70
    codes = await flood(200, "2001:db8::{n:x}")
    assert codes[100:] == ["stranger_rate"] * 100, "a /64 is one address"
    codes = await flood(1500, "10.1.{high}.{n}")
    # Ten a second come back, however slow this machine is.
    assert codes.count("untrusted") < 900
    assert codes[-1] == "stranger_rate"
    refused = await lab.raw("hello", bodies[0], "10.2.0.1")
    assert (refused.status, code(refused)) == (429, "stranger_rate")
    assert int(dict(refused.headers)["retry-after"]) > 0
    assert "signed" not in msgspec.json.decode(refused.body), "nor does a refusal cost a signature"
    lines = [record for record in caplog.records if "proved itself" in record.getMessage()]
    assert len(lines) < 40
    assert (await lab.introduce()).status == 200, "a peer does not wait for strangers"
    assert (await lab.raw("submit", lab.seal(Kind.SUBMIT, submission()), "10.0.0.66")).status == 200


async def test_false_signatures_in_the_name_of_a_peer_are_checked_within_bounds(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids are known to all: an address that makes them up is heard no more, a peer there is."""
    await lab.befriend()
    assert (await lab.introduce()).status == 200
    calls = counting(monkeypatch)
    sealed = lab.seal(Kind.CANCEL, Cancel("2" * 64, 1))
    false = sealed[:-1] + bytes([sealed[-1] ^ 1])
    kinds = len(Kind)
    for number in range(200):
        refused = code(await lab.raw("cancel", false, "10.0.0.66"))
        assert refused == ("bad_signature" if number < 60 else "stranger_rate") or number < 70
    assert refused == "stranger_rate"
    assert calls[0] <= 70 * kinds
    # From where the peer itself is heard, it goes on being heard.
    for _ in range(100):
        assert code(await lab.raw("cancel", false, HOME)) == "bad_signature"
    assert (await lab.raw("cancel", sealed, HOME)).status == 200
    # From everywhere: one check each, and no more.
    for number in range(700):
        await lab.raw("cancel", false, f"10.3.{number // 250}.{number % 250}")
    calls[0] = 0
    for number in range(50):
        await lab.raw("cancel", false, f"10.4.0.{number}")
    assert calls[0] < 50 * 4
    assert (await lab.raw("cancel", sealed, "10.5.0.1")).status == 200, "a peer that moved"
