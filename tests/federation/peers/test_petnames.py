"""Petnames: our owner's names for colonies lead where the owner said, whatever others call it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from colonyd.errors import Conflict, Invalid, NotFound, RpcError
from colonyd.keys import PrivateKey
from federation.membership.gossip import chosen
from federation.peers.record import BLOCKED
from federation.peers.registry import PENDING, TRUSTED
from federation.routing.rules import RemoteColony, Route, _reached
from federation.service.rpc import calls
from federation.wire import cbor
from federation.wire.card import CARD_LIMIT, open_card, payload_of
from federation.wire.envelope import Kind, seal
from federation.wire.messages import Introductions, dump, load
from federation.wire.sizes import SIZES
from node.model.types import FunctionSpec
from node.rpc.calls import Caller
from tests.federation.membership.support import NOW, card, gossip, said, trusted
from tests.federation.peers.support import asks, registry, shows, view
from tests.support.colonies import Colony, world
from tests.support.daemons import until


async def owner(at: Colony, kind: str, **fields: Any) -> Any:
    """Make a call as the owner does. Raises RpcError."""
    row = {row.payloadtype: row for row in calls(at.fed)}[kind]
    return await row.handler(Caller(at.key.id), row.request(**fields))


async def names(at: Colony, peer: str, name: str = "") -> None:
    await owner(at, "namepeermsg", peer=peer, name=name)


async def is_pending(at: Colony, other: Colony) -> bool:
    return at.fed.peers.state(other.key.id) == PENDING


async def shown(at: Colony, other: Colony, calling: list[dict[str, str]]) -> bool:
    return (await view(at, other.key.id))["calledby"] == calling


async def test_a_petname_goes_before_what_others_call_themselves(tmp_path: Path) -> None:
    bee, cat = PrivateKey.generate(), PrivateKey.generate()
    async with world(tmp_path, ["ant"]) as colonies:
        (ant,) = colonies.values()
        with trio.fail_after(50):
            await shows(ant, bee, "bee", trusted=True)
            await shows(ant, cat, "cat", trusted=True)
            await names(ant, bee.id[:12], "lab-paris")
            assert await asks(ant, "lab-paris") == bee.id
            assert await asks(ant, "bee") == bee.id, "its own name goes on"
            seen = await view(ant, bee.id)
            assert (seen["name"], seen["petname"]) == ("bee", "lab-paris")
            # Nobody takes the name by calling itself so, and ids stay before all names.
            await shows(ant, cat, "lab-paris")
            await ant.fed.peers.trust(cat.id)
            assert await asks(ant, "lab-paris") == bee.id
            assert await asks(ant, cat.id) == cat.id
            # It outlasts a restart, and holds wherever a peer is named.
            await ant.restart()
            assert await asks(ant, "lab-paris") == bee.id
            assert (await owner(ant, "getpeermsg", peer="lab-paris"))["id"] == bee.id
            changed = await owner(
                ant, "setpeerpolicymsg", peer="lab-paris", change={"max_running": 3}
            )
            assert (changed["id"], changed["policy"]["max_running"]) == (bee.id, 3)
            assert (await owner(ant, "blockpeermsg", peer="lab-paris"))["state"] == BLOCKED
            # A name of a colony that is not trusted leads to no other of that name.
            with pytest.raises(RpcError, match="it is blocked here"):
                await asks(ant, "lab-paris")
            assert (await owner(ant, "trustpeermsg", peer="lab-paris"))["id"] == bee.id
            await names(ant, "lab-paris")
            assert await asks(ant, "lab-paris") == cat.id


async def test_what_can_be_no_petname(tmp_path: Path) -> None:
    bee, cat = PrivateKey.generate(), PrivateKey.generate()
    async with world(tmp_path, ["ant"]) as colonies:
        (ant,) = colonies.values()
        with trio.fail_after(50):
            await shows(ant, bee, "bee", trusted=True)
            await shows(ant, cat, "cat", trusted=True)
            for bad in ("*", "any", "ANY", "a/b", "..", "-a", "lab paris", "lаb", "x" * 64):
                with pytest.raises(Invalid, match="a petname has 1 to 63"):
                    await names(ant, "bee", bad)
            for bad in (cat.id, cat.id[:8], "deadbeef", "DEADBEEF00"):
                with pytest.raises(Invalid, match=r"beginning of an id|a petname has"):
                    await names(ant, "bee", bad)
            with pytest.raises(Invalid, match="a colony on this server"):
                await names(ant, "bee", "ant")
            with pytest.raises(Invalid, match="that is this colony"):
                await names(ant, ant.key.id, "me-too")
            with pytest.raises(NotFound, match="no name of yours"):
                await names(ant, "bee")
            await names(ant, "bee", "Lab")
            for taken in ("Lab", "lab"):
                with pytest.raises(Conflict, match="'Lab' is the name of"):
                    await names(ant, "cat", taken)
            await names(ant, "Lab", "field")  # another name replaces it
            await names(ant, "cat", "lab")
            assert (ant.fed.peers.petname(bee.id), ant.fed.peers.petname(cat.id)) == (
                "field",
                "lab",
            )
            # A colony never seen has one as well, by its whole id.
            far = PrivateKey.generate().id
            await names(ant, far, "far")
            with pytest.raises(RpcError, match="your name for"):
                await owner(ant, "getpeermsg", peer="far")
            with pytest.raises(RpcError, match="look-up by id is off"):
                await asks(ant, "far")


async def test_the_names_given_are_listed_also_before_a_colony_is_known(tmp_path: Path) -> None:
    bee, cat = PrivateKey.generate().id, PrivateKey.generate().id
    async with world(tmp_path, ["ant"]) as colonies:
        (ant,) = colonies.values()
        assert await owner(ant, "getpetnamesmsg") == []
        await names(ant, bee, "paris")
        await names(ant, cat, "lyon")
        given = [{"id": cat, "petname": "lyon"}, {"id": bee, "petname": "paris"}]
        assert await owner(ant, "getpetnamesmsg") == given
        await names(ant, "paris")
        assert await owner(ant, "getpetnamesmsg") == given[:1]


async def test_names_are_bounded_and_unique_for_all_daemons_of_a_colony(tmp_path: Path) -> None:
    async with world(tmp_path, ["ant"]) as colonies:
        (ant,) = colonies.values()
        petnames = ant.fed.peers.petnames
        other = type(petnames)(petnames.client, petnames.keys)
        with trio.fail_after(50):
            await other.give("a" * 64, "lab")
            with pytest.raises(Conflict, match="'lab' is the name of aaaa"):
                await petnames.give("b" * 64, "lab")
            await ant.fed.peers.look_again()
            assert petnames.id_of("lab") == "a" * 64
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("federation.peers.petnames._MOST", 2)
                await petnames.give("b" * 64, "field")
                with pytest.raises(Conflict, match="2 colonies have one"):
                    await petnames.give("c" * 64, "more")


async def test_a_relay_gets_the_id_for_a_petname_which_is_nobody_elses(tmp_path: Path) -> None:
    """bee introduced cat; ant calls cat "paris", a word that bee has for another colony."""
    async with world(tmp_path) as colonies:
        ant = await colonies.add("ant", hops=2)
        bee = await colonies.add("bee", hops=2)
        cat = await colonies.add("cat", hops=2)
        dog = await colonies.add("dog", hops=2)
        with trio.fail_after(60):
            for one, other in ((ant, bee), (bee, cat), (bee, dog)):
                policy = {"forward": True, "max_hops": 3}
                await one.trust(other, **policy)
                await other.trust(one, **policy)
            await names(bee, "dog", "paris")
            await until(40, lambda: is_pending(ant, cat))
            await names(ant, cat.key.id, "paris")
            processid = await ant.submit("paris")
            await cat.work("HERE")
            assert (await ant.closed(processid)).output == ["HERE"]


async def test_a_petname_stays_through_a_change_of_key_and_is_told_in_routes(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as colonies:
        ant, bee = await colonies.add("ant", hops=2), await colonies.add("bee", hops=2)
        with trio.fail_after(60):
            await ant.trust(bee)
            await bee.trust(ant)
            root = bee.key.id
            await names(ant, "bee", "lab")
            await bee.rotate()
            assert bee.key.id != root
            await until(40, lambda: knows(ant, bee.key.id))
            assert ant.fed.peers.petname(bee.key.id) == "lab"
            assert await asks(ant, "lab") == root
            given = await owner(ant, "namepeermsg", peer="lab", name="lyon")
            assert given == {"id": bee.key.id, "petname": "lyon"}
            conditions = {"colonyname": "lyon/cat", "executortype": "t"}
            spec = {"funcname": "f", "conditions": conditions}
            told = await owner(
                ant, "explainroutemsg", spec=msgspec.convert(spec, FunctionSpec), age=0.0
            )
            assert told["choices"][0]["id"] == root
            # The commands for other owners have no names of ours.
            assert [need["command"] for need in told["needs"]] == [
                "colony peer policy ant --forward",
                "colony peer policy bee --max-hops 2",
            ]


async def knows(at: Colony, peerid: str) -> bool:
    return at.fed.peers.state(peerid) == TRUSTED


def test_a_route_goes_by_petnames() -> None:
    others = [
        RemoteColony("a" * 64, "bee", TRUSTED, petname="lab"),
        RemoteColony("b" * 64, "lab", TRUSTED),
        RemoteColony("c" * 64, "gone", "", petname="gone"),
        RemoteColony("d" * 64, "gone", TRUSTED),
    ]
    found = {text: _reached(Route(1, to=(text,)), others) for text in ("lab", "bee", "gone")}
    assert {text: each[0].id[:1] for text, each in found.items()} == {
        "lab": "a", "bee": "a", "gone": "c",
    }  # fmt: skip


# -- shared with introductions -------------------------------------------------------------------


def told(data: bytes, called: str = "") -> Introductions:
    (each,) = said(data).known
    return Introductions([type(each)(each.card, 1, called)], 1)


async def test_a_peers_word_is_shown_and_resolves_nothing_by_itself() -> None:
    by, cat, dog = (PrivateKey.generate() for _ in range(3))
    peers = registry(trusted(by).peer, trusted(dog).peer)
    taking = gossip(peers)
    await taking.take_in(by.id, told(card(cat), "lab-paris"))
    entry = peers.known[cat.id]
    assert peers.called_by(entry) == {by.id: "lab-paris"}
    assert peers.named("lab-paris") is None
    assert peers.toward("lab-paris") == ""
    with pytest.raises(NotFound, match="to go by their word, say bee/lab-paris"):
        peers.find("lab-paris")
    assert peers.find(f"{by.id}/lab-paris") is entry
    # The next message replaces it; what is no name, or is withdrawn, goes.
    for called in ("field", "a/b", "deadbeef", "x" * 200, ""):
        await taking.take_in(by.id, told(card(cat), called))
        expected = {by.id: called} if called == "field" else {}
        assert peers.called_by(entry) == expected
    # A trusted colony is told of as well.
    await taking.take_in(by.id, told(card(dog), "lab"))
    assert peers.called_by(peers.known[dog.id]) == {by.id: "lab"}
    taking.forget(by.id)
    assert peers.called_by(peers.known[dog.id]) == {}


def test_names_never_make_a_message_too_large() -> None:
    """64 cards of the largest size fit as before; the names do as far as there is room."""
    key = PrivateKey.generate()
    limit = SIZES[Kind.INTRODUCTIONS]
    body = cbor.decode(payload_of(open_card(card(key), NOW)), depth=2)
    assert isinstance(body, dict)

    def padded(pad: int) -> bytes:
        payload = cbor.encode(body | {"pad": bytes(pad)})
        return seal(key, Kind.CARD, "*", payload, cti=b"c", issued=NOW, expires=NOW + 9)

    largest = CARD_LIMIT - len(padded(1000)) + 1000
    for pad, named in ((0, 64), (largest - 100, 64), (largest, None)):
        data = padded(pad)
        assert len(data) <= CARD_LIMIT
        entries = [trusted(key, id=f"{number:064x}", card=data) for number in range(64)]
        found = chosen(entries, "", NOW, lambda _: "n" * 63)
        count = sum(bool(each.called) for each in found)
        assert count == named or (named is None and 0 <= count < 64)
        payload = dump(Introductions(found, 2**62))
        sealed = seal(
            key, Kind.INTRODUCTIONS, key.id, payload, cti=bytes(16), issued=NOW, expires=NOW + 9
        )
        assert len(sealed) <= limit.bytes
        assert len(load(payload, Introductions).known) == 64


class IntroducedBefore(msgspec.Struct):
    """An introduction as a daemon without petnames reads it."""

    card: bytes
    hops: int


class IntroductionsBefore(msgspec.Struct):
    """The message as a daemon without petnames reads it."""

    known: list[IntroducedBefore]
    seq: int


def test_a_peer_that_knows_no_petnames_reads_the_rest() -> None:
    key = PrivateKey.generate()
    (each,) = load(dump(told(card(key), "lab")), IntroductionsBefore).known
    assert (each.card, each.hops) == (card(key), 1)
    plain = told(card(key))
    assert b"called" not in dump(plain), "without a name the bytes are those of before"


async def test_two_so_called_by_one_peer_are_told_apart_by_the_owner() -> None:
    by, cat, dog = (PrivateKey.generate() for _ in range(3))
    peers = registry(trusted(by).peer)
    both = [*told(card(cat), "lab").known, *told(card(dog), "lab").known]
    await gossip(peers).take_in(by.id, Introductions(both, 1))
    with pytest.raises(Invalid, match="may be"):
        peers.find(f"{by.id}/lab")


@pytest.mark.parametrize("shared", [True, False])
async def test_names_go_along_with_introductions_unless_it_is_off(
    tmp_path: Path, shared: bool
) -> None:
    async with world(tmp_path) as colonies:
        ant = await colonies.add("ant")
        bee = await colonies.add("bee", share_names=shared)
        cat = await colonies.add("cat")
        with trio.fail_after(60):
            await names(bee, cat.key.id, "lab-paris")
            for one, other in ((ant, bee), (bee, cat)):
                await one.trust(other)
                await other.trust(one)
            await until(40, lambda: is_pending(ant, cat))
            called = [{"by": "bee", "name": "lab-paris"}] if shared else []
            assert (await view(ant, cat.key.id))["calledby"] == called
            # Work for it is refused with what the peer calls it; the peer's word alone names none.
            knows = r"bee \(which calls it 'lab-paris'\) knows it" if shared else "bee knows it"
            with pytest.raises(RpcError, match=f"{knows}: trust is missing"):
                await asks(ant, cat.key.id)
            if shared:
                with pytest.raises(RpcError, match="by their word, say bee/lab-paris"):
                    await asks(ant, "lab-paris")
            # A petname for another peer is told at once, and so is its end.
            if shared:
                for name in ("lyon", ""):
                    await names(bee, cat.key.id, name)
                    calling = [{"by": "bee", "name": name}] if name else []
                    await until(40, functools.partial(shown, ant, cat, calling))
            # A peer is never told what it is called itself.
            assert not any(entry.called for entry in cat.fed.peers.known.values())


@pytest.mark.parametrize("shared", [True, False])
async def test_a_path_goes_by_the_names_of_the_colony_between(tmp_path: Path, shared: bool) -> None:
    """ "bee/lab-paris" is the colony that bee calls so, unless bee keeps its names to itself."""
    async with world(tmp_path) as colonies:
        ant = await colonies.add("ant", hops=2)
        bee = await colonies.add("bee", hops=2, share_names=shared)
        cat = await colonies.add("cat", hops=2)
        with trio.fail_after(60):
            for one, other in ((ant, bee), (bee, cat)):
                policy = {"forward": True, "max_hops": 3}
                await one.trust(other, **policy)
                await other.trust(one, **policy)
            await names(bee, "cat", "lab-paris")
            processid = await ant.submit("bee/lab-paris")
            if shared:
                await cat.work("HERE")
            process = await ant.closed(processid)
            if shared:
                assert process.output == ["HERE"]
            else:
                assert "no way leads from here to a colony 'lab-paris'" in str(process.errors)
