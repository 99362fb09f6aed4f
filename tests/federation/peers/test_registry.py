"""The registry of peers in memory: finding, learning and forgetting. The store is elsewhere."""

from __future__ import annotations

import msgspec
import pytest

from colonyd.errors import RpcError
from colonyd.keys import PrivateKey
from federation.peers.keys import Keys
from federation.peers.registry import BLOCKED, PENDING, SEEN, TRUSTED, Peer, Peers, PeerState
from federation.wire.address import is_near, split_address
from federation.wire.clock import SigningClock
from federation.wire.signer import Signer
from node.model.codec import pack, unpack
from tests.federation.peers.support import KEY, NoStore, card, peer, registry

ME = KEY.id


def test_a_peer_survives_the_store() -> None:
    value = Peer("a" * 64, TRUSTED, "lab", b"\x04\xff", 7, "f" * 64, ["h:1"], b"card")
    assert unpack(pack(value), Peer) == value


def test_find_takes_id_beginning_and_name() -> None:
    peers = registry(peer("a", "lab"), peer("b", "field"))
    assert peers.find("a" * 64).peer.name == "lab"
    assert peers.find("b" * 8).peer.name == "field"
    assert peers.find("lab").peer.id == "a" * 64
    for text in ("nobody", "", "aaaa"):
        with pytest.raises(RpcError, match="no colony") as caught:
            peers.find(text)
        assert caught.value.status == 404


def test_two_peers_of_one_name_must_be_told_apart() -> None:
    peers = registry(peer("a", "lab"), peer("b", "lab"))
    with pytest.raises(RpcError, match="may be"):
        peers.find("lab")
    assert peers.named("lab") is None, "a name that somebody else took leads nowhere"
    assert peers.named("a" * 64) == "a" * 64


def test_only_trusted_peers_are_named() -> None:
    peers = registry(peer("a", "lab", PENDING), peer("b", "field", BLOCKED))
    assert peers.named("lab") is None
    assert peers.named("b" * 64) is None


def test_a_name_is_looked_up_without_a_walk_over_all_peers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peers = registry(*(Peer(f"{each:064x}", TRUSTED, f"bee-{each}", b"key") for each in range(100)))
    walks, trusted = 0, Peers.trusted

    def walked(self: Peers) -> list[PeerState]:
        nonlocal walks
        walks += 1
        return trusted(self)

    monkeypatch.setattr(Peers, "trusted", walked)
    for number in range(100):
        assert peers.named(f"bee-{number}") == f"{number:064x}"
        assert peers.ambiguity(f"bee-{number}") == ""
    assert walks == 1


async def test_a_card_makes_a_stranger_pending_without_the_store() -> None:
    key = PrivateKey.generate()
    peers = registry()
    assert peers.sighted(key.id, "10.0.0.9:1") is not None
    assert peers.state(key.id) == SEEN
    entry = await peers.learn(card(key), b"card", near=True)
    assert entry is not None
    assert entry.peer.state == PENDING
    assert entry.addresses() == ["10.0.0.9:1", "10.0.0.1:50081"]
    assert peers.public_key(key.id) == key.public_key


async def test_an_older_card_never_replaces_a_newer_one() -> None:
    key = PrivateKey.generate()
    peers = registry()
    await peers.learn(card(key, "new", sequence=5), b"5", near=False)
    await peers.learn(card(key, "old", sequence=4), b"4", near=False)
    await peers.learn(card(key, "same", sequence=5), b"5b", near=False)
    assert peers.name(key.id) == "new"
    await peers.learn(card(key, "newer", sequence=6), b"6", near=False)
    assert peers.name(key.id) == "newer"


async def test_a_tombstone_ignores_cards_and_sightings() -> None:
    key = PrivateKey.generate()
    peers = registry(Peer(key.id, BLOCKED, "was", b"key", 1))
    assert peers.sighted(key.id, "10.0.0.9:1") is None
    assert await peers.learn(card(key, "back", 9), b"card", near=True) is None
    assert peers.name(key.id) == "was"


async def test_we_are_no_peer_of_ours() -> None:
    key = PrivateKey.generate()
    peers = Peers(NoStore(), Keys("home"), Signer(key, SigningClock()))
    assert await peers.learn(card(key), b"card", near=True) is None
    assert peers.sighted(key.id, "10.0.0.9:1") is None
    assert peers.known == {}


async def test_strangers_are_bounded_and_decisions_outlast_them() -> None:
    peers = registry(peer("a", "lab"))
    for number in range(200):
        peers.sighted(f"{number:064x}"[::-1], "10.0.0.9:1")
        await peers.learn(card(PrivateKey.generate()), b"card", near=False)
    states = [entry.peer.state for entry in peers.known.values()]
    assert states.count(SEEN) <= 64
    assert states.count(PENDING) <= 64
    assert peers.state("a" * 64) == TRUSTED


def test_addresses_are_bounded_newest_first() -> None:
    entry = PeerState(peer("a", "lab"))
    for port in range(1, 21):
        entry.sight(f"10.0.0.1:{port}")
    assert len(entry.addresses()) == 8
    assert entry.addresses()[0] == "10.0.0.1:20"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.1:50081", ("10.0.0.1", 50081)),
        ("https://lab.example:1/", ("lab.example", 1)),
        ("[fe80::1%2]:9", ("fe80::1%2", 9)),
    ],
)
def test_addresses_are_split(text: str, expected: tuple[str, int]) -> None:
    assert split_address(text) == expected


@pytest.mark.parametrize("text", ["", "host", "host:", ":1", "host:0", "host:99999", "host:x"])
def test_bad_addresses_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        split_address(text)


def test_near_is_this_machine_and_private_networks() -> None:
    assert is_near("127.0.0.1")
    assert is_near("::ffff:192.168.1.2")
    assert is_near("fe80::1%eth0")
    assert not is_near("8.8.8.8")
    assert not is_near("lab.example")


async def test_a_card_that_was_signed_before_does_not_replace_a_later_one() -> None:
    """A mailbox may give out what its client signed days ago, which ends before the present one."""
    key = PrivateKey.generate()
    peers, now = registry(), card(key)
    old = msgspec.structs.replace(now, expires=now.expires - 86_400)
    await peers.learn(now, b"now", near=False)
    entry = peers.known[key.id]
    await peers.learn(old, b"old", near=False)
    assert entry.latest == b"now"
    again = msgspec.structs.replace(now, expires=now.expires + 86_400)
    await peers.learn(again, b"again", near=False)
    assert entry.latest == b"again"
    await peers.learn(msgspec.structs.replace(old, sequence=2), b"next", near=False)
    assert entry.latest == b"next", "of a higher number, whenever it ends"
