"""Invitations: tokens, proofs, one-time use at the gate, and joining between real daemons."""

from __future__ import annotations

import base64
import functools
import random
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from colonyd.errors import RpcError
from colonyd.keys import PrivateKey
from colonyd.rpc import RpcError as CallError
from federation.membership.invitations import Invitation, Invitations, RedeemedInvitation
from federation.membership.join import Joiner
from federation.peers.context import Context
from federation.peers.keys import Keys
from federation.peers.policy import Policy
from federation.peers.registry import BLOCKED, TRUSTED, Peers
from federation.transport.polling import MailboxTerms
from federation.transport.tls import make_certificate, server_context
from federation.wire import invitation as tokens
from federation.wire.card import Card, sign_card
from federation.wire.clock import SigningClock
from federation.wire.envelope import Kind, VerifiedMessage, open_envelope
from federation.wire.invitation import Token, TokenError, read_token, write_token
from federation.wire.messages import Hello, Join, Welcome
from federation.wire.messages import load as load_message
from federation.wire.signer import Signer
from node.etcd.client import open_client
from node.etcd.errors import EtcdUnavailable
from node.etcd.txn import Txn
from node.http.listeners import bound_port, open_listeners
from node.http.server import Limits, Request, Response, serve_http
from node.model.codec import pack, unpack
from tests.federation.inbox.support import Lab, code, submission
from tests.federation.membership.support import Make, addresses, strangers
from tests.node.etcd.support import start_store
from tests.support.daemons import until
from tests.support.parts import portrait_of

FINGERPRINT = "f" * 64

# -- tokens ------------------------------------------------------------------------------

hexes = st.binary(min_size=32, max_size=32).map(bytes.hex)
all_tokens = st.builds(
    Token,
    id=hexes,
    fingerprint=hexes,
    addresses=st.lists(addresses, max_size=4),
    expires=st.integers(0, 2**40 - 1),
    secret=st.binary(min_size=16, max_size=16),
)


@settings(max_examples=20)
@given(all_tokens, st.binary(min_size=4, max_size=4).map(random.Random))
def test_a_token_survives_how_people_copy_text(token: Token, dice: random.Random) -> None:
    text = write_token(token)
    assert read_token(text) == token
    slips = {"O": "0", "I": "1", "B": "8"}
    typed = "".join(
        dice.choice([letter, letter.lower(), slips.get(letter, letter)])
        + dice.choice(["", "", "", " ", "-", "\n"])
        for letter in text
    )
    assert read_token(typed) == token


@settings(max_examples=50)
@given(all_tokens, st.data())
def test_a_slip_of_the_hand_is_found(token: Token, data: st.DataObject) -> None:
    text = write_token(token)
    at = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567").filter(text[at].__ne__))
    try:
        found = read_token(text[:at] + other + text[at + 1 :])
    except TokenError:
        return
    # The last letter holds bits that stand for nothing.
    assert found == token
    assert at == len(text) - 1


@given(st.text(max_size=300))
def test_any_text_is_a_token_or_refused(text: str) -> None:
    with pytest.raises(TokenError):
        read_token(text)


@given(st.binary(max_size=200))
def test_any_bytes_with_a_right_check_are_a_token_or_refused(body: bytes) -> None:
    text = base64.b32encode(body + tokens._check(body)).decode()
    try:
        token = read_token(text)
    except TokenError:
        return
    assert read_token(write_token(token)) == token


def test_a_short_token_for_two_addresses() -> None:
    token = Token("a" * 64, "b" * 64, ["192.168.1.9:50081", "10.0.0.7:50081"], 2**31, b"s" * 16)
    assert len(write_token(token)) < 180


def test_what_no_token_can_hold_is_refused_where_it_is_made() -> None:
    good = Token("a" * 64, "b" * 64, ["h:1"], 1, b"s" * 16)
    change: dict[str, Any]
    for change in ({"addresses": ["h:1"] * 5}, {"addresses": ["h"]},
                   {"secret": b"short"}, {"addresses": ["h" * 300 + ":1"]}):  # fmt: skip
        with pytest.raises(ValueError, match=r".+"):
            write_token(msgspec.structs.replace(good, **change))


def test_a_proof_is_for_one_exchange_only() -> None:
    def made(role: tokens.Role = "joiner", **other: Any) -> bytes:
        fields: dict[str, Any] = {"joiner": "a", "inviter": "b", "nonces": (b"1", b"2")}
        return tokens.proof(b"k" * 32, role, **(fields | {"fingerprint": "f"} | other))

    every = [
        made(),
        made("inviter"),
        made(joiner="b", inviter="a"),
        made(nonces=(b"2", b"1")),
        made(nonces=(b"1", b"3")),
        made(nonces=(b"12", b"")),
        made(fingerprint="g"),
        tokens.proof(
            b"K" * 32, "joiner", joiner="a", inviter="b", nonces=(b"1", b"2"), fingerprint="f"
        ),
    ]
    assert len(set(every)) == len(every)
    assert made() == made()


def test_name_and_key_tell_nothing_of_the_secret() -> None:
    secret = b"s" * 16
    key, name = tokens.key_of(secret), tokens.name_of(secret)
    assert secret.hex() not in key.hex()
    assert bytes.fromhex(name) not in key
    assert tokens.key_of(b"t" * 16) != key


# -- at the gate -------------------------------------------------------------------------


class Inn(Lab):
    """The colony `lab` that invites, and guests that speak to its gate."""

    def __init__(self, client: Any) -> None:
        super().__init__(client)
        own_card = portrait_of(self.context)
        own_card.fingerprint, own_card.endpoints = FINGERPRINT, ["10.0.0.1:50081"]
        self.invitations = Invitations(self.context, own_card)
        self.serve(*self.invitations.endpoints())


class Guest:
    """A colony that joins, step by step; `remote` is the address it comes from."""

    def __init__(self, inn: Inn, secret: bytes, remote: str = "10.0.0.5") -> None:
        self.inn, self.secret, self.remote = inn, secret, remote
        self.key = PrivateKey.generate()
        self.signer = Signer(self.key, SigningClock())
        self.nonce = secrets.token_bytes(16)
        now = int(time.time())
        card = Card(self.key.id, self.key.public_key, "guest", 1, "e" * 64, [], [2], now + 3600)
        self.card = sign_card(self.key, card, issued=now)

    async def say(self, **fields: Any) -> Response:
        message = Join(self.card, tokens.name_of(self.secret), self.nonce)
        message = msgspec.structs.replace(message, **fields)
        body = self.signer.seal(Kind.JOIN, self.inn.key.id, message)
        return await self.inn.raw("join", body, self.remote)

    def welcome(self, response: Response) -> Welcome:
        assert response.status == 200, response.body
        opened = open_envelope(
            response.body,
            kind=Kind.WELCOME,
            audience=self.key.id,
            now=time.time(),
            keys={self.inn.key.id: self.inn.key.public_key}.get,
            limit=10_000,
        )
        return load_message(opened.payload, Welcome)

    def proof(self, theirs: bytes, role: tokens.Role = "joiner", **other: Any) -> bytes:
        fields: dict[str, Any] = {
            "joiner": self.key.id,
            "inviter": self.inn.key.id,
            "nonces": (self.nonce, theirs),
            "fingerprint": FINGERPRINT,
        }
        return tokens.proof(tokens.key_of(self.secret), role, **(fields | other))

    async def ask(self) -> bytes:
        return self.welcome(await self.say()).nonce

    async def join(self) -> Response:
        theirs = await self.ask()
        return await self.say(answer=theirs, proof=self.proof(theirs))


@pytest.fixture
async def inn(nursery: trio.Nursery, tmp_path: Path) -> AsyncIterator[Inn]:
    store = await start_store(nursery, tmp_path / "etcd")
    async with open_client(store.target) as client:
        yield Inn(client)


async def secret_of(inn: Inn, policy: Policy | None = None, seconds: int = 600) -> bytes:
    return (await inn.invitations.invite(seconds, policy, [])).secret


async def test_mailboxes_are_told_of_open_invitations_however_many_were_redeemed(inn: Inn) -> None:
    name = tokens.name_of(await secret_of(inn))
    used = pack(RedeemedInvitation(b"k" * 32, "a" * 64, int(time.time()) + 600))
    for number in range(150):
        await inn.context.client.put(inn.context.keys.used_invitation(f"{number:016x}"), used)
    await inn.invitations.load()
    told = MailboxTerms(inn.peers, inn.invitations.names, wide=True).collect(25, [])
    names = [told.invitations[start : start + 8].hex() for start in range(0, 128 * 8, 8)]
    assert name in names


async def test_who_knows_the_secret_is_trusted_once_and_hears_the_same(inn: Inn) -> None:
    policy = Policy(functions=["f"])
    guest = Guest(inn, await secret_of(inn, policy))
    assert inn.peers.known == {}
    response = await guest.join()
    welcome = guest.welcome(response)
    assert welcome.proof == guest.proof(welcome.nonce, "inviter"), "the other side knows it, too"
    assert inn.peers.state(guest.key.id) == TRUSTED
    assert inn.peers.policy(guest.key.id) == policy
    assert await inn.invitations.open() == []
    assert code(await Guest(inn, guest.secret).join()) == "join_refused"
    assert code(await Guest(inn, secrets.token_bytes(16)).join()) == "join_refused"
    assert inn.server.counters["join_refused"] == 2
    assert inn.server.counters["ok_join"] == 4


async def test_a_guest_whose_answer_was_lost_is_answered_again(inn: Inn) -> None:
    guest = Guest(inn, await secret_of(inn))
    theirs = await guest.ask()
    for _ in range(3):
        welcome = guest.welcome(await guest.say(answer=theirs, proof=guest.proof(theirs)))
        assert welcome.proof == guest.proof(theirs, "inviter")
    guest.nonce = secrets.token_bytes(16)
    guest.welcome(await guest.join())
    await inn.peers.block(guest.key.id)
    assert code(await guest.say()) == "blocked", "an old token does not undo a block"


async def test_of_concurrent_joins_one_wins(inn: Inn) -> None:
    secret = await secret_of(inn)
    guests = [Guest(inn, secret, f"10.0.1.{number}") for number in range(6)]
    statuses: list[int] = []

    async def join(guest: Guest) -> None:
        statuses.append((await guest.join()).status)

    async with trio.open_nursery() as nursery:
        for guest in guests:
            nursery.start_soon(join, guest)
    assert sorted(statuses) == [200] + [403] * 5
    assert len(inn.peers.trusted()) == 1


async def test_only_this_proof_will_do(inn: Inn) -> None:
    secret = await secret_of(inn)
    guest = Guest(inn, secret)
    theirs = await guest.ask()
    wrong = [
        b"",
        b"x" * 32,
        guest.proof(theirs, "inviter"),
        guest.proof(theirs, fingerprint="0" * 64),
        guest.proof(theirs, joiner="0" * 64),
        guest.proof(theirs, nonces=(b"0" * 16, theirs)),
    ]
    for proof in wrong:
        assert code(await guest.say(answer=theirs, proof=proof)) == "join_refused"
    assert code(await guest.say(answer=b"n" * 16, proof=guest.proof(b"n" * 16))) == "join_stale"
    assert code(await guest.say(proof=guest.proof(theirs))) == "join_stale"
    # What another guest was given is no answer of this one.
    other = await Guest(inn, secret).ask()
    assert code(await guest.say(answer=other, proof=guest.proof(other))) == "join_stale"
    assert inn.peers.known == {}, "failed attempts leave nothing behind"
    assert len(await inn.invitations.open()) == 1
    guest.welcome(await guest.say(answer=theirs, proof=guest.proof(theirs)))


async def test_a_recorded_exchange_is_of_no_use_to_others(inn: Inn) -> None:
    guest = Guest(inn, await secret_of(inn))
    theirs = await guest.ask()
    proof = guest.proof(theirs)
    thief = Guest(inn, guest.secret, "10.0.0.66")
    thief.nonce = guest.nonce
    assert code(await thief.say(answer=theirs, proof=proof)) == "join_stale"
    own = await thief.ask()
    assert code(await thief.say(answer=own, proof=proof)) == "join_refused"


async def test_it_expires_and_is_revoked(inn: Inn) -> None:
    expired = await secret_of(inn)
    name = tokens.name_of(expired)
    found = await inn.client.get(inn.keys.invitation(name))
    assert found is not None
    kept = unpack(found.value, Invitation)
    assert expired.hex() not in found.value.hex(), "the store never has the secret"
    assert expired not in found.value
    old = msgspec.structs.replace(kept, expires=int(time.time()) - 1)
    await inn.client.put(inn.keys.invitation(name), pack(old))
    assert code(await Guest(inn, expired).join()) == "join_expired"
    await inn.invitations.sweep()
    assert code(await Guest(inn, expired).join()) == "join_refused"
    revoked = await secret_of(inn)
    assert await inn.invitations.revoke(tokens.name_of(revoked)[:6]) == tokens.name_of(revoked)
    assert code(await Guest(inn, revoked).join()) == "join_refused"
    with pytest.raises(RpcError, match="none that begins"):
        await inn.invitations.revoke(tokens.name_of(revoked))


async def test_the_record_of_use_is_kept_for_a_while_only(inn: Inn) -> None:
    guest = Guest(inn, await secret_of(inn))
    guest.welcome(await guest.join())
    key = inn.keys.used_invitation(tokens.name_of(guest.secret))
    found = await inn.client.get(key)
    assert found is not None
    used = unpack(found.value, RedeemedInvitation)
    assert used.joiner == guest.key.id
    await inn.invitations.sweep()
    assert await inn.client.get(key) is not None
    await inn.client.put(key, pack(msgspec.structs.replace(used, expires=1)))
    await inn.invitations.sweep()
    assert await inn.client.get(key) is None


async def test_attempts_are_counted_before_anything_is_checked(inn: Inn) -> None:
    guest = Guest(inn, await secret_of(inn))
    codes = [code(await inn.raw("join", b"nonsense", "10.0.0.9")) for _ in range(25)]
    assert codes[:20] == ["malformed"] * 20
    assert "join_rate" in codes[20:]
    refused = await inn.raw("join", b"nonsense", "10.0.0.9")
    assert refused.status == 429
    assert int(dict(refused.headers)["retry-after"]) > 0
    guest.welcome(await guest.join())
    for number in range(600):
        await inn.raw("join", b"nonsense", f"10.1.{number // 250}.{number % 250}")
    # Ten more are allowed each second, however slow this machine is at knocking.
    late = {code(await inn.raw("join", b"nonsense", f"10.2.0.{n}")) for n in range(50)}
    assert "join_rate" in late, "all together"


async def with_proof(inn: Inn, guest: Guest, body: bytes, shown: str = "") -> Response:
    """Send a message of a join with the header that shows that the secret is known."""
    name, key = tokens.name_of(guest.secret), tokens.key_of(guest.secret)
    shown = shown or f"{name} {tokens.knock(key, body).hex()}"
    headers = {tokens.KNOCK: shown}
    return await inn.server.handle(Request("POST", "/v1/join", "", headers, body, guest.remote))


async def test_who_knows_the_secret_does_not_queue_with_those_who_guess(inn: Inn) -> None:
    """A flood from many addresses, the guest's own among them, leaves an invitation usable."""
    guest = Guest(inn, await secret_of(inn))
    name, key = tokens.name_of(guest.secret), tokens.key_of(guest.secret)
    flood = [f"10.1.{number // 250}.{number % 250}" for number in range(900)]
    for remote in [*flood, *["10.0.0.5"] * 30]:
        await inn.raw("join", b"nonsense", remote)

    def sealed(message: Join) -> bytes:
        return guest.signer.seal(Kind.JOIN, inn.key.id, message)

    first = sealed(Join(guest.card, name, guest.nonce))
    assert code(await inn.raw("join", first, guest.remote)) == "join_rate"
    for wrong in (
        f"{name} {tokens.knock(b'k' * 32, first).hex()}",  # another key
        f"{name} {tokens.knock(key, first + b'x').hex()}",  # of another message
        f"{'0' * 16} {tokens.knock(key, first).hex()}",  # of another invitation
        f"{name} ",
        name,
        "ä ä",
    ):
        assert code(await with_proof(inn, guest, first, wrong)) == "join_rate", wrong
    theirs = guest.welcome(await with_proof(inn, guest, first)).nonce
    second = sealed(Join(guest.card, name, guest.nonce, theirs, guest.proof(theirs)))
    guest.welcome(await with_proof(inn, guest, second))
    assert inn.peers.state(guest.key.id) == TRUSTED
    guest.welcome(await with_proof(inn, guest, second))  # its answer was lost
    # Who knows one secret takes nothing from others, and has no more than anybody else.
    codes = [(await with_proof(inn, guest, first)).status for _ in range(30)]
    assert codes[-1] == 429
    another = Guest(inn, await secret_of(inn))
    body = another.signer.seal(
        Kind.JOIN, inn.key.id, Join(another.card, tokens.name_of(another.secret), another.nonce)
    )
    another.welcome(await with_proof(inn, another, body))


async def test_another_daemon_learns_of_invitations_and_their_end(inn: Inn) -> None:
    """What shows that a secret is known is looked up in memory, which follows the store."""
    guest = Guest(inn, await secret_of(inn))
    name = tokens.name_of(guest.secret)
    elsewhere = Invitations(inn.context, inn.invitations.own_card)
    inn.serve(*elsewhere.endpoints())
    for number in range(700):
        await inn.raw("join", b"nonsense", f"10.1.{number // 250}.{number % 250}")
    body = guest.signer.seal(Kind.JOIN, inn.key.id, Join(guest.card, name, guest.nonce))
    assert code(await with_proof(inn, guest, body)) == "join_rate"
    await elsewhere.load()
    guest.welcome(await with_proof(inn, guest, body))
    await inn.invitations.revoke(name)
    await elsewhere.load()
    for _ in range(100):
        refused = await with_proof(inn, guest, body)
    assert code(refused) == "join_rate"


async def test_the_addresses_of_one_ipv6_network_count_as_one(inn: Inn) -> None:
    codes = [code(await inn.raw("join", b"nonsense", f"2001:db8::{n:x}")) for n in range(1, 40)]
    assert codes[:20] == ["malformed"] * 20
    assert "join_rate" in codes[20:]
    assert code(await inn.raw("join", b"nonsense", "2001:db8:0:1::1")) == "malformed"


async def test_a_wrong_secret_costs_what_a_right_one_does(inn: Inn) -> None:
    """Up to the verdict: the same reads, and a proof computed and compared, known or not."""
    calls: list[int] = []
    commit = inn.client.commit

    async def counted(txn: Txn) -> Any:
        calls.append(len(txn.success))
        return await commit(txn)

    inn.client.commit = counted  # type: ignore[method-assign]
    known, unknown = Guest(inn, await secret_of(inn)), Guest(inn, secrets.token_bytes(16))
    shapes = []
    for guest in (known, unknown):
        theirs = await guest.ask()
        calls.clear()
        assert code(await guest.say(answer=theirs, proof=b"x" * 32)) == "join_refused"
        shapes.append(list(calls))
    assert shapes[0] == shapes[1] == [2]


async def test_a_store_that_fails_leaves_the_invitation(inn: Inn) -> None:
    guest = Guest(inn, await secret_of(inn))
    theirs = await guest.ask()
    commit = inn.client.commit

    async def broken(txn: Txn) -> Any:
        if txn.compare:
            raise EtcdUnavailable("away")
        return await commit(txn)

    inn.client.commit = broken  # type: ignore[method-assign]
    refused = await guest.say(answer=theirs, proof=guest.proof(theirs))
    assert (refused.status, code(refused)) == (503, "busy")
    inn.client.commit = commit  # type: ignore[method-assign]
    guest.welcome(await guest.say(answer=theirs, proof=guest.proof(theirs)))


async def test_a_blocked_colony_can_not_join(inn: Inn) -> None:
    guest = Guest(inn, await secret_of(inn))
    await inn.raw("hello", guest.signer.seal(Kind.HELLO, inn.key.id, Hello(guest.card)))
    await inn.peers.block(guest.key.id)
    assert code(await guest.say()) == "blocked"
    # Blocked by another daemon of the colony, of which this one has not heard.
    del inn.peers.known[guest.key.id]
    theirs = await guest.ask()
    assert code(await guest.say(answer=theirs, proof=guest.proof(theirs))) == "blocked"
    assert inn.peers.state(guest.key.id) == BLOCKED
    assert len(await inn.invitations.open()) == 1


async def test_a_join_is_no_way_around_other_checks(inn: Inn) -> None:
    guest = Guest(inn, await secret_of(inn))
    body = guest.signer.seal(Kind.SUBMIT, inn.key.id, submission())
    assert code(await inn.raw("submit", body)) == "unknown_issuer"
    hello = guest.signer.seal(Kind.HELLO, inn.key.id, Hello(guest.card))
    assert code(await inn.raw("join", hello)) == "wrong_kind"
    inn.serve()
    assert code(await guest.say()) == "not_found"


async def test_what_an_invitation_can_not_be_is_refused(inn: Inn) -> None:
    for seconds, places, told in (
        (0, [], "expires"),
        (10**9, [], "expires"),
        (60, ["nowhere"], "addresses"),
    ):
        with pytest.raises(RpcError, match=told) as caught:
            await inn.invitations.invite(seconds, None, places)
        assert caught.value.status == 400
    token = await inn.invitations.invite(60, None, ["lab.example:1"])
    assert token.addresses == ["lab.example:1"]
    for _ in range(99):
        await inn.invitations.invite(60, None, [])
    with pytest.raises(RpcError, match="revoke some"):
        await inn.invitations.invite(60, None, [])


# -- the joining side, over TLS ----------------------------------------------------------


class Door:
    """The gate of an inn on a real port; `spoil` says which of the next answers are garbled."""

    def __init__(self, inn: Inn) -> None:
        self.inn, self.spoil, self.bodies = inn, list[bool](), list[bytes]()

    async def open(self, nursery: trio.Nursery, directory: Path) -> None:
        """Serve until the nursery ends."""
        certificate, key, fingerprint = make_certificate(directory)
        listeners = await open_listeners("127.0.0.1", 0, server_context(certificate, key))
        own_card = self.inn.invitations.own_card
        own_card.port, own_card.fingerprint = bound_port(listeners), fingerprint
        own_card.endpoints = [f"127.0.0.1:{own_card.port}"]
        self.inn.serve(*self.inn.invitations.endpoints(), card=own_card.card)
        serve = functools.partial(
            serve_http, limits=Limits(max_body=10_000), drain=trio.Event(), grace=1.0
        )
        await nursery.start(serve, self._answer, listeners)

    async def _answer(self, request: Request) -> Response:
        response = await self.inn.server.handle(request)
        if request.path == "/v1/join":
            self.bodies.append(request.body)
            if self.spoil and self.spoil.pop(0):
                return Response(200, response.body[:-1])
        return response


class Visitor:
    """The joining side of another colony, in the same store under its own name."""

    def __init__(self, inn: Inn) -> None:
        self.key = PrivateKey.generate()
        signer, keys = Signer(self.key, SigningClock()), Keys("visitor")
        self.peers = Peers(inn.client, keys, signer)
        context = Context("visitor", signer, inn.client, inn.processes, self.peers, keys)
        own_card = portrait_of(context)
        own_card.fingerprint = "d" * 64
        self.joiner = Joiner(context, own_card)


@pytest.fixture
async def door(inn: Inn, nursery: trio.Nursery, tmp_path: Path) -> Door:
    door = Door(inn)
    await door.open(nursery, tmp_path)
    return door


async def test_joining_trusts_when_the_other_side_has_proven_the_same(inn: Inn, door: Door) -> None:
    token = await inn.invitations.invite(60, None, [])
    visitor, policy = Visitor(inn), Policy(rate=9)
    door.spoil = [True, False, True, True]
    entry = await visitor.joiner.join(write_token(token), policy)
    assert (entry.peer.state, entry.peer.id) == (TRUSTED, inn.key.id)
    assert visitor.peers.policy(inn.key.id) == policy
    assert inn.peers.state(visitor.key.id) == TRUSTED
    assert len(set(door.bodies)) == 2, "what is said again is the same bytes"
    assert all(token.secret not in body for body in door.bodies)
    assert all(tokens.key_of(token.secret) not in body for body in door.bodies)


async def test_who_does_not_know_the_secret_is_not_trusted_by_the_joiner(
    inn: Inn, door: Door
) -> None:
    async def any_key(opened: VerifiedMessage, join: Join, card: Card) -> bytes:
        return b"?" * 32

    token = await inn.invitations.invite(60, None, [])
    inn.invitations._verify = any_key  # type: ignore[method-assign]
    visitor = Visitor(inn)
    with pytest.raises(RpcError, match="does not know the secret") as caught:
        await visitor.joiner.join(write_token(token), None)
    assert caught.value.status == 403
    assert visitor.peers.known == {}


async def test_joining_takes_back_a_block_of_ones_own(inn: Inn, door: Door) -> None:
    visitor = Visitor(inn)
    for _ in range(2):
        token = await inn.invitations.invite(60, None, [])
        await visitor.joiner.join(write_token(token), None)
        assert visitor.peers.state(inn.key.id) == TRUSTED
        await visitor.peers.block(inn.key.id)


async def test_an_address_that_is_dead_is_passed_over(inn: Inn, door: Door) -> None:
    good = inn.invitations.own_card.endpoints[0]
    token = await inn.invitations.invite(60, None, ["127.0.0.1:1", good])
    visitor = Visitor(inn)
    entry = await visitor.joiner.join(write_token(token), None)
    assert entry.addresses()[0] == good
    dead = await inn.invitations.invite(60, None, ["127.0.0.1:1"])
    with pytest.raises(RpcError, match=r"127\.0\.0\.1:1") as caught:
        await visitor.joiner.join(write_token(dead), None)
    assert caught.value.status == 409
    assert len(await inn.invitations.open()) == 1, "it is not used up by trying"


# -- between daemons ---------------------------------------------------------------------


@pytest.mark.slow
async def test_a_token_makes_trust_mutual(make_daemon: Make) -> None:
    async with strangers(make_daemon) as (ant, bee):
        made = await ant.call("invitepeermsg", ant.owner, expires=60, change={"max_running": 3})
        assert made["policy"]["max_running"] == 3
        with pytest.raises(CallError, match="this colony made it"):
            await ant.call("joinpeermsg", ant.owner, token=made["token"])
        with pytest.raises(CallError, match="token: it is incomplete"):
            await bee.call("joinpeermsg", bee.owner, token=made["token"][:-9])
        with pytest.raises(CallError) as caught:
            await bee.call("joinpeermsg", bee.user, token=made["token"])
        assert caught.value.status == 403, "only the owner"
        wish = {"functions": ["upper"]}
        peer = await bee.call("joinpeermsg", bee.owner, token=made["token"], change=wish)
        assert (peer["name"], peer["state"]) == ("ant", "trusted")
        assert peer["policy"]["functions"] == ["upper"]
        there = await ant.peer(bee)
        assert there is not None
        assert (there["state"], there["policy"]["max_running"]) == ("trusted", 3)
        assert await ant.call("getinvitationsmsg", ant.owner) == []
        again = await bee.call("joinpeermsg", bee.owner, token=made["token"])
        assert again["state"] == "trusted", "who used it may repeat"
        await bee.hire()
        processid = await ant.submit("bee")
        await bee.work("X")
        assert (await ant.closed(processid))["out"] == ["X"]
        refused = await ant.submit("bee", funcname="lower")
        closed = await ant.closed(refused)
        assert "policy_function" in closed["errors"][0]
        changed = await bee.call(
            "setpeerpolicymsg", bee.owner, peer=ant.owner.id, change={"functions": ["*"]}
        )
        assert (changed["policy"]["functions"], changed["ownpolicy"]) == (["*"], True)
        processid = await ant.submit("bee", funcname="lower")
        await bee.work("x")
        assert (await ant.closed(processid))["out"] == ["x"]
        # Another certificate, another colony: nothing is said to either.
        token = read_token(made["token"])
        for change, told in (
            ({"fingerprint": "0" * 64}, "another certificate"),
            ({"id": "0" * 64}, "another colony lives there"),
            ({"addresses": [f"127.0.0.1:{bee.daemon.peer_port}"]}, "another certificate"),
            ({"expires": 1}, "expired"),
            ({"secret": b"z" * 16}, "join_refused"),
        ):
            bad = write_token(msgspec.structs.replace(token, **change))
            with pytest.raises(CallError, match=told):
                await bee.call("joinpeermsg", bee.owner, token=bad)

        async def both_well() -> bool:
            found = [await ant.peer(bee), await bee.peer(ant)]
            return all(peer is not None and not peer["error"] for peer in found)

        await until(50, both_well)
