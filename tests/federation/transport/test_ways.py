"""The way to a peer by the mailboxes in its card: which one, and what none of them can do."""

from __future__ import annotations

import functools
import itertools
import logging
import random
from typing import Any, cast

import msgspec
import pytest
import trio

from colonyd.keys import PrivateKey
from federation.peers.context import Context
from federation.peers.registry import PENDING, TRUSTED, Peer, Peers, PeerState
from federation.transport.connection import Carrier, PeerConnection, PeerResponse
from federation.transport.errors import RemoteRefusal, TransportError, Unsent
from federation.transport.mailbox import Mailbox
from federation.transport.polling import MailboxPoller
from federation.transport.ways import MailboxWays
from federation.wire.clock import SigningClock
from federation.wire.envelope import Kind, VerifiedMessage
from federation.wire.messages import Collect, Heard, Parcel, Parcels, Passed, dump
from federation.wire.signer import Signer
from node.http.server import Request, Response
from tests.federation.peers.support import registry
from tests.support.parts import Led

NOW = SigningClock()


class Way(Led):
    """The guide of a connection that asks for the way as a daemon does."""

    def __init__(self, ways: Ways, entry: PeerState) -> None:
        super().__init__()
        self.all, self.entry = ways, entry

    def around(self) -> Carrier | None:
        return self.all.mailbox_ways.around(self.entry)

    def misled(self, mailbox: str) -> None:
        self.all.mailbox_ways.misled(mailbox, self.entry)


class Ways:
    """A colony and its peers; `mailboxes` are those that each one's card names, by number."""

    def __init__(self, *mailboxes: tuple[int, ...], states: str = "", wide: bool = True) -> None:
        self.keys = [PrivateKey.generate() for _ in mailboxes]
        known = [
            Peer(
                key.id,
                PENDING if states[number : number + 1] == "p" else TRUSTED,
                f"peer{number}",
                key.public_key,
                1,
                "f" * 64,
                mailboxes=[self.keys[each].id for each in named],
            )
            for number, (key, named) in enumerate(zip(self.keys, mailboxes, strict=True))
        ]
        self.peers: Peers = registry(*known)
        signer = self.peers.signer
        nothing = cast(Any, None)
        context = Context("ant", signer, nothing, nothing, self.peers, nothing, random.Random(1))
        self.connections: dict[str, PeerConnection] = {}
        self.sought: list[str] = []
        self.mailbox_ways = MailboxWays(
            context,
            Mailbox(signer, self.peers, lambda peerid: None),
            self.connections,
            self.connect,
            lambda: b"our card",
            lambda mailbox, peerid: self.sought.append(mailbox),
            wide,
        )
        for peer in known:
            if peer.state == TRUSTED:
                self.connections[peer.id] = self.connect(self.peers.known[peer.id])

    def connect(self, entry: PeerState) -> PeerConnection:
        return PeerConnection(entry, self.peers.signer, Way(self, entry))


async def test_two_that_name_each_other_as_mailbox_lead_nowhere() -> None:
    """Neither has an address, so each message to one would go to the other, without end."""
    ways = Ways((1,), (0,))
    for connection in ways.connections.values():
        with pytest.raises(TransportError):
            await connection.post("/v1/say", b"x", Kind.HEARD)
    three = Ways((1,), (2,), (0,))
    for connection in three.connections.values():
        with pytest.raises(TransportError):
            await connection.post("/v1/say", b"x", Kind.HEARD)


async def test_a_mailbox_that_brings_what_the_peer_did_not_sign_gives_way(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers every message, with a refusal or with rubbish; the peer has another mailbox."""
    await trio.sleep(1)
    real = PeerConnection.exchange
    for lie in (Passed(403, "", b'{"code": "blocked"}'), Passed(200, "", b"rubbish")):
        ways, used = Ways((1, 2), (), ()), list[str]()

        async def exchange(
            self: PeerConnection,
            path: str,
            body: bytes,
            wait: float,
            ways: Ways = ways,
            used: list[str] = used,
            lie: Passed = lie,
        ) -> PeerResponse:
            if path != "/v1/pass":
                return await real(self, path, body, wait)
            used.append(self.id)
            if self.id != used[0]:
                said = Heard("a" * 64, 1, "x", 1)
                answer = Signer(ways.keys[0], NOW).seal(Kind.HEARD, ways.peers.signer.key.id, said)
                passed = Passed(200, "", answer)
            else:
                passed = lie
            key = next(key for key in ways.keys if key.id == self.id)
            sealed = Signer(key, NOW).seal(Kind.PASSED, ways.peers.signer.key.id, passed)
            return PeerResponse(200, "", sealed)

        with monkeypatch.context() as patch:
            patch.setattr(PeerConnection, "exchange", exchange)
            connection = ways.connections[ways.keys[0].id]
            with pytest.raises(TransportError):
                await connection.post("/v1/say", b"x", Kind.HEARD)
            await connection.post("/v1/say", b"x", Kind.HEARD)
            await connection.post("/v1/say", b"x", Kind.HEARD)
        assert (
            used[1:] == [each for each in (ways.keys[1].id, ways.keys[2].id) if each != used[0]] * 2
        )


@pytest.mark.parametrize("own", [True, False])
async def test_a_mailbox_that_asks_for_patience_gives_way_before_it_has_its_turn_again(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    """In its own name, or as the peer's answer, which the peer did not sign."""
    await trio.sleep(1)
    real, ways, used = PeerConnection.exchange, Ways((1, 2), (), ()), list[str]()

    async def exchange(self: PeerConnection, path: str, body: bytes, wait: float) -> PeerResponse:
        if path != "/v1/pass":
            return await real(self, path, body, wait)
        used.append(self.id)
        if own:
            return PeerResponse(429, "300", b'{"code": "mailbox_full"}')
        key = next(key for key in ways.keys if key.id == self.id)
        passed = Passed(429, "300", b'{"code": "busy"}')
        sealed = Signer(key, NOW).seal(Kind.PASSED, ways.peers.signer.key.id, passed)
        return PeerResponse(200, "", sealed)

    monkeypatch.setattr(PeerConnection, "exchange", exchange)
    connection = ways.connections[ways.keys[0].id]
    for _ in range(2):
        with pytest.raises(RemoteRefusal) as refused:
            await connection.post("/v1/say", b"x", Kind.HEARD)
        assert 0 < refused.value.seconds < 300
        await trio.sleep(refused.value.seconds)
    assert len(set(used)) == 2


async def test_nothing_is_left_with_colonies_that_are_not_trusted_while_global_is_off() -> None:
    """A peer's card names a mailbox, which we do not trust; then one that we do."""
    for wide in (True, False):
        ways = Ways((1,), (), states="tp", wide=wide)
        entry = ways.peers.known[ways.keys[0].id]
        assert (ways.mailbox_ways.through(entry) is not None) == wide
        assert bool(list(ways.mailbox_ways.borrowed())) == wide
    ways = Ways((1,), (), wide=False)
    assert ways.mailbox_ways.through(ways.peers.known[ways.keys[0].id]) is not None


async def test_a_mailbox_that_answers_polls_at_once_does_not_keep_its_client_busy(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """With nothing in the answer; an honest one waits until there is something."""
    polls = 0

    class Hasty(PeerConnection):
        async def post(self, *args: Any, **more: Any) -> tuple[VerifiedMessage, bytes]:
            nonlocal polls
            polls += 1
            assert polls < 1000
            await trio.lowlevel.checkpoint()
            return VerifiedMessage(self.id, "", b"c", 0, 9, dump(Parcels([])), b""), b""

    async def handle(request: Request) -> Response:
        raise AssertionError

    ways = Ways(())
    (entry,) = ways.peers.known.values()
    poller = MailboxPoller(handle, random.Random(1))
    with trio.move_on_after(60):
        await poller.collect_forever(Hasty(entry, ways.peers.signer, Led()))
    assert 10 < polls <= 61


async def test_a_mailbox_that_brings_rubbish_without_end_is_paced_and_logged_within_bounds(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    handled = 0
    numbers = itertools.count()

    class Flood(PeerConnection):
        def seal(self, kind: Kind, message: msgspec.Struct, **claims: Any) -> bytes:
            return b"answer" if cast(Collect, message).answers else b""

        async def post(self, path: str, body: bytes, *args: Any) -> tuple[VerifiedMessage, bytes]:
            assert next(numbers) < 500_000
            await trio.lowlevel.checkpoint()
            if body:
                raise Unsent("no answer is taken")
            found = [
                Parcel(b"%d" % each, "/v2/cancel", b"%d" % next(numbers), 0) for each in range(64)
            ]
            return VerifiedMessage(self.id, "", b"c", 0, 9, dump(Parcels(found)), b""), b""

    async def handle(request: Request) -> Response:
        nonlocal handled
        handled += 1
        return Response(400, b"", "application/json")

    ways = Ways(())
    (entry,) = ways.peers.known.values()
    poller = MailboxPoller(handle, random.Random(1))
    with trio.move_on_after(120):
        await poller.collect_forever(Flood(entry, ways.peers.signer, Led()))
    assert 12_000 <= handled < 19_000, "6000 a minute, and as many at first"
    lines = [each for each in caplog.records if "not brought to the mailbox" in each.getMessage()]
    assert 20 <= len(lines) <= 61


async def test_a_sender_does_not_stay_with_one_mailbox(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It may bring again what the peer signed before, such as that nothing has ended."""
    ways, used = Ways((1, 2, 3), (), (), ()), list[str]()
    entry = ways.peers.known[ways.keys[0].id]
    for _ in range(60):
        carrier = cast("functools.partial[Any]", ways.mailbox_ways.through(entry))
        again = cast("functools.partial[Any]", ways.mailbox_ways.through(entry))
        assert carrier.args[1] == again.args[1]
        used.append(carrier.args[1])
        await trio.sleep(601)
    assert all(8 < used.count(key.id) < 35 for key in ways.keys[1:]), "in ten hours"
