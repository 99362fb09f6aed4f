"""A mailbox and the colonies that it does not trust: who may leave what, and who is found by it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import trio

from colonyd.keys import PrivateKey, verify_es256k
from federation.dht.lookups import target
from federation.limits.accounts import PeerQuotas
from federation.peers.registry import TRUSTED, Peer, Peers, PeerState
from federation.service.server import Server
from federation.transport.dial import fetch_card, fetch_cards
from federation.transport.errors import Unsent
from federation.transport.mailbox import Mailbox
from federation.transport.polling import MailboxTerms
from federation.wire.card import Card, sign_card
from federation.wire.clock import SigningClock
from federation.wire.envelope import Kind, VerifiedMessage, inspect
from federation.wire.messages import Collect, Parcel, Parcels, Pass, Passed, Reply, dump, load
from federation.wire.signer import Signer
from node.http.server import Request, Response
from tests.federation.peers.support import registry
from tests.support.lying_servers import LyingColony, Said

SUBMIT, JOIN = "/v2/submit", "/v1/join"
NAME = bytes(range(8))
KNOCK = f"{NAME.hex()} {'a' * 64}"
HERE, THERE = "192.0.2.7", "192.0.2.8"


def card_of(key: PrivateKey, *mailboxes: str) -> bytes:
    expires = int(time.time()) + 86_400
    card = Card(key.id, key.public_key, "lab", 1, "f" * 64, [], [2], expires, list(mailboxes))
    return sign_card(key, card)


def place_of(key: PrivateKey) -> str:
    """Where a mailbox shows a client's card."""
    return f"/v1/card/{target(key.id).hex()}"


class Office:
    """A mailbox behind its real gate, its client `away`, and a stranger, `cat`."""

    def __init__(self, *, strangers: bool = True) -> None:
        self.terms: dict[str, Any] = {}  # what the client says in each message
        self.me, self.away, self.cat = (PrivateKey.generate() for _ in range(3))
        peer = Peer(self.away.id, TRUSTED, "away", self.away.public_key, 1, card=b"its card")
        self.peers: Peers = registry(peer, key=self.me)
        self.mailbox = Mailbox(self.peers.signer, self.peers, lambda peerid: None, strangers)
        quotas = PeerQuotas(self.peers, self.peers.signer.clock)
        self.server = Server(
            self.peers.signer,
            self.peers,
            quotas,
            lambda: b"our card",
            self.mailbox.endpoints(),
            self.mailbox.card_of,
        )

    async def collect(self, wait: int, *answers: Reply, **terms: Any) -> list[Parcel]:
        """What the client gets."""
        wish = dump(Collect(wait, list(answers), **(terms or self.terms)))
        opened = VerifiedMessage(self.away.id, self.me.id, b"c", 0, 9, wish, b"")
        sealed = await self.mailbox.collect(opened, b"")
        return load(inspect(sealed, limit=len(sealed)).payload, Parcels).parcels

    async def expects(self, *keys: PrivateKey, invitations: bytes = NAME) -> None:
        """The client polls, and says whom it expects."""
        senders = b"".join(bytes.fromhex(key.id)[:16] for key in keys or (self.cat,))
        self.terms = {"senders": senders, "invitations": invitations}
        await self.collect(1)

    def said(self, key: PrivateKey, path: str = SUBMIT, body: bytes = b"x", **more: Any) -> bytes:
        """A message for the client, as a colony leaves it."""
        wish = Pass(self.away.id, path, body, 0, more.pop("card", card_of(key)), **more)
        return Signer(key, SigningClock()).seal(Kind.PASS, self.me.id, wish)

    async def post(self, body: bytes, remote: str = HERE) -> Response:
        return await self.server.handle(Request("POST", "/v1/pass", "", {}, body, remote))

    async def refused(self, body: bytes, remote: str = HERE) -> str:
        answer = await self.post(body, remote)
        assert answer.status != 200
        return str(json.loads(answer.body)["code"])

    async def get(self, path: str) -> Response:
        return await self.server.handle(Request("GET", path, "", {}, b"", HERE))


async def test_a_colony_that_the_client_names_leaves_a_message_and_gets_the_answer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    office = Office()
    await office.expects()
    answers: list[Response] = []

    async def send() -> None:
        answers.append(await office.post(office.said(office.cat, body=b"question")))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        (parcel,) = await office.collect(20)
        assert (parcel.path, parcel.body) == (SUBMIT, b"question")
        await office.collect(0, Reply(parcel.id, 200, "", b"answer"))
    passed = load(inspect(answers[0].body, limit=9999).payload, Passed)
    assert (answers[0].status, passed.status, passed.data) == (200, 200, b"answer")
    assert office.peers.state(office.cat.id) == "", "it is not even known afterwards"


async def test_what_no_client_expects_is_refused_before_a_signature_is_checked(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    office, dog = Office(), PrivateKey.generate()
    assert await office.refused(office.said(office.cat)) == "mailbox_closed", "nobody polls"
    await office.collect(1)
    assert await office.refused(office.said(office.cat)) == "mailbox_closed", "nobody is named"
    await office.expects()
    checked = 0

    def check(*args: Any, **more: Any) -> Any:
        nonlocal checked
        checked += 1
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr("federation.transport.mailbox.open_card", check)
        patch.setattr("federation.service.server.open_envelope", check)
        for body in (
            office.said(dog),
            office.said(dog, JOIN),
            office.said(dog, JOIN, knock=f"{'b' * 16} {'a' * 64}"),
            office.said(dog, JOIN, b"x" * 50_000, knock=KNOCK),
            office.said(dog, SUBMIT, knock=KNOCK),
        ):
            assert await office.refused(body) == "mailbox_closed"
    assert not checked
    assert office.mailbox.served() == {office.away.id: 0}


async def test_a_name_is_proven_by_card_and_signature(
    autojump_clock: trio.testing.MockClock,
) -> None:
    office, dog = Office(), PrivateKey.generate()
    await office.expects()
    assert await office.refused(office.said(office.cat, card=card_of(dog))) == "unknown_issuer"
    assert await office.refused(office.said(office.cat, card=b"")) == "malformed"
    body = office.said(office.cat)
    assert await office.refused(body[:-1] + bytes([body[-1] ^ 1])) == "bad_signature"
    office.peers.known[office.cat.id] = registry(Peer(office.cat.id, "blocked")).known[
        office.cat.id
    ]
    assert await office.refused(office.said(office.cat)) == "blocked"


async def test_a_false_signature_of_a_stranger_costs_one_check_beside_its_card(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not one more for each kind for which the signature might be meant."""
    office = Office()
    await office.expects()
    body = office.said(office.cat)
    checked = 0

    def check(*args: Any) -> bool:
        nonlocal checked
        checked += 1
        return verify_es256k(*args)

    monkeypatch.setattr("federation.wire.envelope.verify_es256k", check)
    assert await office.refused(body[:-1] + bytes([body[-1] ^ 1])) == "bad_signature"
    assert checked == 2


async def test_anybody_joins_who_knows_the_name_of_an_open_invitation(
    autojump_clock: trio.testing.MockClock,
) -> None:
    office, dog = Office(), PrivateKey.generate()
    await office.expects()

    async def join() -> None:
        assert (await office.post(office.said(dog, JOIN, b"join", knock=KNOCK))).status == 200

    async with trio.open_nursery() as nursery:
        nursery.start_soon(join)
        (parcel,) = await office.collect(20)
        assert (parcel.path, parcel.body, parcel.knock) == (JOIN, b"join", KNOCK)
        await office.collect(0, Reply(parcel.id, 200, "", b"welcome"))
    await office.expects(invitations=b"")
    assert await office.refused(office.said(dog, JOIN, b"join", knock=KNOCK)) == "mailbox_closed"


async def test_few_messages_are_left_in_the_name_of_another(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Its false signature would count for that colony, and for this mailbox, at the receiver."""
    office, dog, friend = Office(), PrivateKey.generate(), PrivateKey.generate()
    peer = Peer(friend.id, TRUSTED, "friend", friend.public_key, 1)
    office.peers.known[peer.id] = registry(peer).known[peer.id]
    for own, other in ((office.cat, dog), (office.cat, friend), (friend, dog)):
        await office.expects(office.cat, dog)
        inside = Signer(other, SigningClock()).seal(Kind.CANCEL, office.away.id, Collect(0, []))
        codes = list[str]()
        for _ in range(30):
            with trio.move_on_after(0.1):
                codes.append(await office.refused(office.said(own, body=inside)))
        assert codes == ["mailbox_sender"] * 10, "what is left may be of a former key"
        code = await office.refused(office.said(other, body=inside))
        assert code == "mailbox_full", "not fetched"
        await trio.sleep(61)


async def test_strangers_have_a_part_of_the_mailbox_and_a_rate(
    autojump_clock: trio.testing.MockClock,
) -> None:
    office = Office()
    keys = [office.cat, *(PrivateKey.generate() for _ in range(9))]
    await office.expects(*keys)
    bodies = {key.id: office.said(key) for key in keys}

    async with trio.open_nursery() as nursery:
        for key in keys[:4]:
            for number in range(8):
                nursery.start_soon(office.post, bodies[key.id], f"192.0.2.{number}")
        await trio.testing.wait_all_tasks_blocked()
        assert office.mailbox.served() == {office.away.id: 32}
        for key in (keys[0], keys[5]):
            answer = await office.post(bodies[key.id], THERE)
            assert b"of colonies that it does not trust" in answer.body
        # A colony that the mailbox trusts has its place all the same.
        peer = Peer(keys[9].id, TRUSTED, "friend", keys[9].public_key, 1)
        office.peers.known[peer.id] = registry(peer).known[peer.id]
        nursery.start_soon(office.post, bodies[peer.id])
        await trio.testing.wait_all_tasks_blocked()
        assert office.mailbox.served() == {office.away.id: 33}
        nursery.cancel_scope.cancel()
    # By address, whatever is in the message.
    await trio.sleep(60)
    await office.expects()
    spoilt = office.said(office.cat, card=b"")
    codes = [await office.refused(spoilt) for _ in range(300)]
    assert codes.count("malformed") == 240
    assert codes[-1] == "mailbox_rate"
    assert await office.refused(spoilt, THERE) == "malformed"


async def test_strangers_have_bounds_over_all_clients_and_addresses(
    autojump_clock: trio.testing.MockClock,
) -> None:
    office, clients = Office(), [f"{number:064x}" for number in range(70)]
    for each in clients:
        office.peers.known[each] = PeerState(Peer(each, TRUSTED, "p", b"k", 1))
        wish = VerifiedMessage(each, "", b"c", 0, 9, dump(Collect(0, [], b"x" * 16)), b"")
        await office.mailbox.collect(wish, b"")
    assert len(office.mailbox.clients()) == 64

    async def leave(client: str, sender: str) -> None:
        await office.mailbox.carry(client, sender, SUBMIT, b"x", 0, stranger=True)

    async with trio.open_nursery() as nursery:
        for number in range(128):
            nursery.start_soon(leave, clients[number // 32], f"cat{number // 8}")
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Unsent, match="holds no more"):
            await leave(clients[9], "dog")
        nursery.cancel_scope.cancel()
    await office.expects()
    spoilt = office.said(office.cat, card=b"")
    places = [f"192.0.2.{number}" for number in range(6)]
    codes = [await office.refused(spoilt, each) for each in places for _ in range(240)]
    assert codes.count("malformed") == 1200
    assert codes[-1] == "mailbox_rate"


@pytest.mark.parametrize(("size", "most"), [(1, 600), (1_400_000, 11)])
async def test_one_client_gets_so_much_of_strangers_in_a_minute(
    autojump_clock: trio.testing.MockClock, size: int, most: int
) -> None:
    office = Office()
    await office.expects()

    async def leave() -> None:
        body = b"x" * size
        await office.mailbox.carry(office.away.id, office.cat.id, SUBMIT, body, 0, stranger=True)

    for _ in range(most):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave)
            (parcel,) = await office.collect(1)
            await office.collect(0, Reply(parcel.id, 200, "", b""))
    with pytest.raises(Unsent, match="within a minute"):
        await leave()
    await trio.sleep(61)
    await office.expects()
    with trio.move_on_after(1):
        await leave()


async def test_the_operator_switches_it_off(autojump_clock: trio.testing.MockClock) -> None:
    office = Office(strangers=False)
    await office.expects()
    assert await office.refused(office.said(office.cat)) == "mailbox_closed"
    assert office.mailbox.clients() == []
    assert (await office.get(place_of(office.away))).status == 404


async def test_only_a_client_that_wants_it_is_announced_and_shown(
    autojump_clock: trio.testing.MockClock,
) -> None:
    office = Office()
    place = place_of(office.away)
    assert (await office.get(place)).status == 404
    await office.collect(1)
    assert office.mailbox.clients() == []
    assert (await office.get(place)).status == 404, "it polls as it did before there was this"
    await office.expects()
    assert office.mailbox.clients() == [office.away.id]
    assert (await office.get(place)).body == b"its card"
    for other in (office.cat.id, office.away.id, target(office.cat.id).hex(), "", "x", "../card"):
        assert (await office.get(f"/v1/card/{other}")).status == 404
    await trio.sleep(11)
    assert office.mailbox.clients() == []
    assert (await office.get(place)).status == 404


async def test_a_client_that_no_longer_wants_it_is_neither_found_nor_written_to(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Its owner has set federation.global = false, and it polls on as its configuration says."""
    office = Office()
    await office.expects()
    office.terms = {}
    await office.collect(0)
    assert office.mailbox.clients() == [office.away.id], "an answer says nothing of that"
    await office.collect(1)
    assert office.mailbox.clients() == []
    assert (await office.get(place_of(office.away))).status == 404
    assert await office.refused(office.said(office.cat)) == "mailbox_closed"


def test_what_a_mailbox_is_told_has_a_bound_and_is_nothing_where_global_is_off() -> None:
    keys = [PrivateKey.generate() for _ in range(3)]
    many = [Peer(f"{number:064x}", TRUSTED, "p", b"k", 1) for number in range(600)]
    peers = registry(*(Peer(key.id, TRUSTED, "p", b"k", 1) for key in keys), *many)
    for key in keys:
        peers.known[key.id].lastseen = 9
    names = [f"{number:016x}" for number in range(200)]
    assert MailboxTerms(peers, lambda: names).collect(25, []) == Collect(25, [])
    told = MailboxTerms(peers, lambda: names, wide=True).collect(25, [])
    assert told.senders is not None
    assert (len(told.senders), len(told.invitations)) == (512 * 16, 128 * 8)
    named = {told.senders[start : start + 16] for start in range(0, 512 * 16, 16)}
    assert named > {bytes.fromhex(key.id)[:16] for key in keys}, "those heard last come first"
    peers.known[keys[0].id].lastseen = 10
    assert MailboxTerms(peers, lambda: names, wide=True).collect(25, []) == told


async def test_a_card_from_a_mailbox_proves_itself_and_names_the_mailbox(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    host, clock = await LyingColony(tmp_path / "host").start(nursery), SigningClock()
    wanted, at = PrivateKey.generate(), f"127.0.0.1:{host.port}"
    mine, _ = await fetch_card(at, clock)
    path = place_of(wanted)
    host.answers[path] = lambda body: Said(card_of(wanted, mine.id))
    _, kept = await fetch_cards(at, clock, wanted.id)
    assert kept is not None
    assert kept[0].id == wanted.id
    assert path in host.heard
    assert not any(wanted.id in each for each in host.heard), "who is sought, it is not told"
    spoilt = bytearray(card_of(wanted, mine.id))
    spoilt[-1] ^= 1
    for lie in (card_of(wanted), card_of(wanted, "a" * 64), bytes(spoilt), b"card"):
        host.answers[path] = lambda body, lie=lie: Said(lie)  # type: ignore[misc]
        with pytest.raises(Unsent):
            await fetch_cards(at, clock, wanted.id)
