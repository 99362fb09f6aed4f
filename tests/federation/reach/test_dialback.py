"""Peers are asked to connect back: what they are told, what we believe, what is never asked."""

from __future__ import annotations

import random
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import trio

from colonyd.keys import PrivateKey
from federation.network.interfaces import Network
from federation.network.monitor import NetworkMonitor
from federation.peers.context import Context
from federation.peers.record import TRUSTED, Peer, PeerState
from federation.peers.registry import Peers
from federation.reach.dialback import DialBack
from federation.reach.verdict import Reach, Verdict
from federation.transport.connection import PeerConnection, PeerResponse
from federation.transport.dial import fetch_card
from federation.transport.errors import Unsent
from federation.wire.card import Card
from federation.wire.clock import SigningClock
from federation.wire.envelope import Kind, VerifiedMessage, inspect
from federation.wire.messages import Collect, Dial, Dialled, Hello, Parcel, Parcels, dump, load
from federation.wire.refusals import Refusal
from federation.wire.signer import Signer
from node.tasks.sync import WakeUps
from tests.federation.peers.support import registry
from tests.support.daemons import Daemon, free_port, until
from tests.support.lying_servers import LyingColony, Said, knows
from tests.support.parts import Led
from tests.support.sides import Side
from tests.support.wide import reach_of, stays_open, verdict, wide

Make = Callable[..., Daemon]
HERE = Network(("192.168.1.7",), ("192.168.1.7",), ("192.168.1.0/24",), (), (("eth0", 2),), False)
NOW = SigningClock(lambda: 1_700_000_000 * 10**9)
OURS, OTHER, THIRD = "93.184.216.34", "93.184.216.35", "2600:1f18::7"


# -- what we believe --------------------------------------------------------------------------


class Voice(PeerConnection):
    """A peer at `place` that answers as `says`; `comes` is whether it connects to us."""

    place, host, comes = "151.101.1.1", OURS, True
    key: PrivateKey
    dial_back: DialBack
    asked = 0

    @property
    def remote(self) -> str:
        return self.place

    async def exchange(self, path: str, body: bytes, wait: float) -> PeerResponse:
        assert path == "/v1/dial"
        self.asked += 1
        seen = inspect(body, limit=4096)
        wish = load(seen.payload, Dial)
        if self.comes:
            self.dial_back.shown(wish.nonce.hex())
        answer = Dialled(wish.nonce, self.says, self.host, "" if self.says else "refused")
        return PeerResponse(200, "", Signer(self.key, NOW).seal(Kind.DIALLED, seen.issuer, answer))

    says = True


class Asker:
    """A colony with peers that answer as they are told."""

    def __init__(self, *voices: dict[str, Any], private: bool = False) -> None:
        keys = [PrivateKey.generate() for _ in voices]
        known = [
            Peer(key.id, TRUSTED, f"peer{number}", key.public_key, 1)
            for number, key in enumerate(keys)
        ]
        peers: Peers = registry(*known)
        signer = Signer(PrivateKey.generate(), NOW)
        context = Context(
            "ant",
            signer,
            cast(Any, None),
            cast(Any, None),
            peers,
            cast(Any, None),
            random.Random(1),
        )
        monitor = NetworkMonitor(network=HERE)
        self.voices: dict[str, PeerConnection] = {}
        self.reach = Reach()
        self.dial_back = DialBack(
            context,
            cast(Any, None),
            self.reach,
            monitor,
            self.voices,
            WakeUps(),
            lambda: 50081,
            private=private,
        )
        for key, peer, how in zip(keys, known, voices, strict=True):
            voice = Voice(PeerState(peer, 1), signer, Led())
            voice.key, voice.dial_back = key, self.dial_back
            for name, value in how.items():
                setattr(voice, name, value)
            self.voices[key.id] = voice

    async def round(self) -> float:
        return await self.dial_back._round()

    def verdict(self) -> Verdict:
        return self.reach.verdict

    def asked(self) -> list[int]:
        return [cast(Voice, each).asked for each in self.voices.values()]


NO: dict[str, Any] = {"says": False, "comes": False}


async def test_a_success_counts_only_with_the_connection(
    autojump_clock: trio.testing.MockClock,
) -> None:
    liar = Asker({"comes": False})
    await liar.round()
    assert liar.reach.verdict is Verdict.UNKNOWN
    honest = Asker({})
    await honest.round()
    assert (honest.reach.verdict, honest.reach.address) == (Verdict.REACHABLE, f"{OURS}:50081")
    assert honest.dial_back.status().by == ["peer0"]


async def test_one_success_outweighs_failures(autojump_clock: trio.testing.MockClock) -> None:
    asker = Asker(NO, NO, {"host": THIRD})
    await asker.round()
    assert asker.reach.address == f"[{THIRD}]:50081"


async def test_one_failure_is_not_enough_and_the_same_peer_is_asked_again_later(
    autojump_clock: trio.testing.MockClock,
) -> None:
    asker = Asker(NO)
    assert await asker.round() < 10
    assert asker.verdict() is Verdict.UNKNOWN
    await asker.round()
    assert asker.asked() == [1], "not at once"
    await trio.sleep(21)
    await asker.round()
    assert asker.verdict() is Verdict.UNREACHABLE
    status = asker.dial_back.status()
    assert (status.by, status.problem, status.port) == (["peer0"], "refused", 50081)
    cast(Voice, next(iter(asker.voices.values()))).says = True
    cast(Voice, next(iter(asker.voices.values()))).comes = True
    await trio.sleep(301)
    await asker.round()
    assert asker.verdict() is Verdict.REACHABLE


async def test_the_present_address_stays_while_a_peer_names_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    asker = Asker({})
    await asker.round()
    for host in (OTHER, OTHER):
        more = Asker({"host": host}).voices
        for each in more.values():
            cast(Voice, each).dial_back = asker.dial_back
        key = next(iter(more))
        asker.voices |= more
        asker.dial_back.context.peers.known[key] = more[key].entry
    for each in asker.voices.values():
        each.signer = asker.dial_back.context.signer
    await trio.sleep(301)
    await asker.round()
    assert asker.asked()[0] == 2
    assert asker.reach.address == f"{OURS}:50081", "two liars do not change it"
    del asker.voices[next(iter(asker.voices))]
    await trio.sleep(301)
    await asker.round()
    assert asker.reach.address == f"{OTHER}:50081", "nobody sees the old one any more"


@pytest.mark.parametrize(
    ("voice", "private", "counts"),
    [
        ({"place": "192.168.1.9", "host": "192.168.1.7"}, False, False),
        ({"place": "192.168.1.9", "host": "192.168.1.7"}, True, False),
        ({"place": "10.9.0.1", "host": "192.168.1.7"}, False, False),
        ({"place": "10.9.0.1", "host": "192.168.1.7"}, True, True),
        ({"place": "151.101.1.1", "host": "100.64.0.7"}, False, False),
        ({"place": OURS, "host": OURS}, False, False),
        ({"place": OURS, "host": OURS}, True, False),
        ({"host": "169.254.169.254"}, True, False),
        ({"host": "127.0.0.1"}, True, False),
        ({"host": "no address"}, True, False),
        ({"host": f"{THIRD}%1"}, False, False),
        ({"host": f"{THIRD}%\x1b[31m"}, False, False),
        ({}, False, True),
    ],
)
async def test_which_answers_tell_of_the_outside(
    autojump_clock: trio.testing.MockClock,
    voice: dict[str, Any],
    private: bool,
    counts: bool,
) -> None:
    """A success and a failure count alike: not of our own network, nor of an address inside."""
    for says, concluded in ((True, Verdict.REACHABLE), (False, Verdict.UNREACHABLE)):
        asker = Asker(voice | {"says": says}, private=private)
        await asker.round()
        await trio.sleep(61)
        await asker.round()
        assert asker.verdict() is (concluded if counts else Verdict.UNKNOWN), says


async def test_an_address_that_no_card_may_have_is_not_believed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It would stand in our own card, which then could not be signed any more."""
    for host in (f"{OURS}%\x1b[31m", f"{THIRD}%a b", f"{THIRD}%1"):
        asker = Asker({"host": host})
        asker.dial_back.loopback = True
        await asker.round()
        assert asker.reach.address == "", host


async def test_few_are_asked_and_a_verdict_without_answers_is_forgotten(
    autojump_clock: trio.testing.MockClock,
) -> None:
    asker = Asker(*[{}] * 20)
    assert 240 <= await asker.round() <= 300
    assert sum(asker.asked()) == 3
    for each in asker.voices.values():
        each.entry.error = "away"
    await trio.sleep(600)
    await asker.round()
    assert asker.verdict() is Verdict.REACHABLE
    await trio.sleep(400)
    assert await asker.round() < 10
    assert (asker.reach.verdict, asker.reach.address) == (Verdict.UNKNOWN, "")
    assert sum(asker.asked()) == 3


async def test_dial_backs_for_all_peers_are_bounded(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """So a hundred trusted peers together have us open a connection a second."""
    asker = Asker({})
    tried: list[str] = []

    async def fetch(address: str, *words: Any, **more: Any) -> tuple[Card, bytes]:
        tried.append(address)
        await trio.sleep(30)
        raise AssertionError("not reached")

    asker.dial_back.fetch = fetch
    peerid = next(iter(asker.voices))

    def wish() -> VerifiedMessage:
        payload = dump(Dial(50081, secrets.token_bytes(16)))
        return VerifiedMessage(peerid, "", b"c", 0, 9, payload, b"")

    async def told() -> None:
        begin = trio.current_time()
        answer = inspect(await asker.dial_back.answer(wish(), OTHER), limit=4096)
        assert "no card within 8 s" in load(answer.payload, Dialled).problem
        assert trio.current_time() - begin < 9

    for turn in range(8):
        async with trio.open_nursery() as nursery:
            for _ in range(8 if turn < 7 else 4):
                nursery.start_soon(told)
            await trio.testing.wait_all_tasks_blocked()
            if turn == 0:
                with pytest.raises(Refusal, match="dial_rate"):
                    await asker.dial_back.answer(wish(), OTHER)
    assert set(tried) == {f"{OTHER}:50081"}


async def test_private_addresses_are_dialled_only_in_a_dht_of_our_own(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A daemon in a container may see one address of its own network for all that comes in."""
    tried: list[str] = []

    async def fetch(address: str, *words: Any, **more: Any) -> tuple[Card, bytes]:
        tried.append(address)
        raise Unsent("nobody there")

    for private in (False, True):
        asker = Asker({}, private=private)
        asker.dial_back.fetch = fetch
        payload = dump(Dial(22, secrets.token_bytes(16)))
        wish = VerifiedMessage(next(iter(asker.voices)), "", b"c", 0, 9, payload, b"")
        for host in ("172.17.0.1", "192.168.1.9", "100.64.0.7"):
            if private:
                await asker.dial_back.answer(wish, host)
            else:
                with pytest.raises(Refusal, match="dial_source"):
                    await asker.dial_back.answer(wish, host)
        assert len(tried) == (3 if private else 0)


async def test_the_address_that_was_tried_is_named_once() -> None:
    at = f"127.0.0.1:{free_port()}"
    with pytest.raises(Unsent) as refused:
        await fetch_card(at, NOW)
    assert str(refused.value).count(at) == 1


# -- real daemons -----------------------------------------------------------------------------


def hears(liar: LyingColony, daemon: Daemon) -> None:
    """Have the colony answer hellos."""

    def hello(body: bytes) -> Said:
        nonce = load(inspect(body, limit=50_000).payload, Hello).nonce
        answer = Hello(liar.card(), nonce)
        return Said(liar.seal(Kind.HELLO, daemon.key("colony").id, dump(answer)))

    liar.answers["/v1/hello"] = hello


async def trusts(side: Side, *colonies: LyingColony) -> None:
    """Trust colonies that the configuration names."""
    for colony in colonies:

        async def met(wanted: str = colony.key.id) -> bool:
            found = await side.call("getpeersmsg", side.owner)
            return any(peer["id"] == wanted and peer["name"] for peer in found)

        await until(60, met)
        await side.call("trustpeermsg", side.owner, peer=colony.key.id)


async def post(daemon: Daemon, body: bytes, host: str = "127.0.0.1") -> httpx.Response:
    async with httpx.AsyncClient(verify=False, timeout=30, trust_env=False) as http:
        return await http.post(f"https://{host}:{daemon.peer_port}/v1/dial", content=body)


async def _silent(stream: trio.SocketStream) -> None:
    await trio.sleep(60)


@pytest.mark.slow
async def test_two_daemons_tell_each_other_whether_they_are_reached(
    make_daemon: Make, nursery: trio.Nursery
) -> None:
    """Connections within loopback come from 127.0.0.1: a daemon elsewhere there is not reached.

    Both trust what is near, as configured.
    """
    pytest.importorskip("libtorrent")
    port = free_port()
    await nursery.start(stays_open, port)
    ant = make_daemon("ant", **wide("127.0.0.1", port))
    bee = knows(make_daemon("bee", **wide("127.0.0.2", port)), ant.peer_port)
    for daemon in (ant, bee):
        await trio.to_thread.run_sync(daemon.start)
    async with ant.client() as first, bee.client() as second:
        one, other = Side(ant, first), Side(bee, second)
        told = await verdict(one, "reachable")
        assert (told["by"], told["address"]) == (["bee"], f"127.0.0.1:{ant.peer_port}")
        told = await verdict(other, "unreachable", 90)
        assert (told["by"], told["port"]) == (["ant"], bee.peer_port)
        assert "refused" in told["problem"]
    for daemon, text in ((ant, "others connect to 127.0.0.1"), (bee, "forward TCP port")):
        done = await trio.run_process(
            [sys.executable, "-m", "cli.main", "--home", str(daemon.home), "doctor"],
            capture_stdout=True,
            check=False,
        )
        assert text in done.stdout.decode()
    nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_what_a_peer_is_told_of_its_port(
    make_daemon: Make, tmp_path: Path, nursery: trio.Nursery
) -> None:
    """Its own card; another colony; nothing; and a listener that says nothing for long."""
    pytest.importorskip("libtorrent")
    asker = await LyingColony(tmp_path / "asker").start(nursery)
    other = await LyingColony(tmp_path / "other").start(nursery)
    daemon = knows(make_daemon("ant", **wide("127.0.0.1", free_port())), asker.port)
    await trio.to_thread.run_sync(daemon.start)
    target = daemon.key("colony").id

    async def ask(port: int) -> Dialled:
        nonce = secrets.token_bytes(16)
        reply = await post(daemon, asker.seal(Kind.DIAL, target, dump(Dial(port, nonce))))
        assert reply.status_code == 200, reply.text
        answer = load(inspect(reply.content, limit=4096).payload, Dialled)
        assert (answer.nonce, answer.host) == (nonce, "127.0.0.1")
        return answer

    async with daemon.client() as client:
        await trusts(Side(daemon, client), asker)
        assert (await ask(asker.port)).reached
        heard = len(other.heard)
        answer = await ask(other.port)
        assert (answer.reached, "another certificate" in answer.problem) == (False, True)
        assert len(other.heard) == heard, "nothing was sent there"
        assert "refused" in (await ask(free_port())).problem
        async with trio.open_nursery() as silent:
            listeners = await silent.start(trio.serve_tcp, _silent, 0)
            begin = trio.current_time()
            answer = await ask(listeners[0].socket.getsockname()[1])
            assert not answer.reached
            assert trio.current_time() - begin < 10
            silent.cancel_scope.cancel()
    nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_who_is_refused(make_daemon: Make, tmp_path: Path, nursery: trio.Nursery) -> None:
    """A stranger; and a trusted peer whose request a mailbox brought."""
    pytest.importorskip("libtorrent")
    asker = await LyingColony(tmp_path / "asker").start(nursery)
    mailbox = await LyingColony(tmp_path / "mailbox").start(nursery)
    settings = wide("127.0.0.1", free_port()) | {"COLONYD_FEDERATION__TRUST": "manual"}
    daemon = knows(make_daemon("ant", **settings), asker.port)
    config = daemon.home / "config.toml"
    config.write_text(
        config.read_text() + f'[[peers]]\nurl = "https://127.0.0.1:{mailbox.port}"\n'
        f'id = "{mailbox.key.id}"\nmailbox = true\n'
    )
    await trio.to_thread.run_sync(daemon.start)
    target = daemon.key("colony").id
    wish = dump(Dial(asker.port, secrets.token_bytes(16)))
    body = asker.seal(Kind.DIAL, target, wish)
    answers: dict[bytes, int] = {}
    fresh = iter(range(1000))

    def mail(data: bytes) -> Said:
        for reply in load(inspect(data, limit=10**6).payload, Collect).answers:
            answers[reply.data] = reply.status
        parcels = [] if answers else [Parcel(b"%d" % next(fresh), "/v1/dial", body, 5)]
        return Said(mailbox.seal(Kind.PARCELS, target, dump(Parcels(parcels))))

    hears(mailbox, daemon)
    mailbox.answers["/v1/mail"] = mail
    async with daemon.client() as client:
        side = Side(daemon, client)

        async def known() -> bool:
            return bool(await side.call("getpeersmsg", side.owner))

        await until(60, known)
        refused = await post(daemon, body)
        assert refused.json()["code"] == "untrusted"
        await trusts(side, asker)
        asked = len(asker.heard)
        await trusts(side, mailbox)

        async def told() -> bool:
            return bool(answers)

        await until(60, told)
        ((said, status),) = answers.items()
        assert (status, b"dial_source" in said) == (403, True)
        assert "/v1/card" not in asker.heard[asked:]
    nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_requests_are_bounded(
    make_daemon: Make, tmp_path: Path, nursery: trio.Nursery
) -> None:
    """One at a time, and six a minute."""
    pytest.importorskip("libtorrent")
    asker = await LyingColony(tmp_path / "asker").start(nursery)
    daemon = knows(make_daemon("ant", **wide("127.0.0.1", free_port())), asker.port)
    await trio.to_thread.run_sync(daemon.start)
    target, codes = daemon.key("colony").id, list[str]()

    async def ask(port: int) -> None:
        wish = dump(Dial(port, secrets.token_bytes(16)))
        reply = await post(daemon, asker.seal(Kind.DIAL, target, wish))
        codes.append("" if reply.status_code == 200 else reply.json()["code"])

    async with daemon.client() as client:
        await trusts(Side(daemon, client), asker)
        listeners = await nursery.start(trio.serve_tcp, _silent, 0)
        silent = listeners[0].socket.getsockname()[1]
        async with trio.open_nursery() as together:
            for _ in range(3):
                together.start_soon(ask, silent)
        assert sorted(codes) == ["", "peer_at_once", "peer_at_once"]
        codes.clear()
        for _ in range(6):
            await ask(asker.port)
        assert codes[0] == ""
        assert codes[-1] == "peer_rate"
    nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_nothing_is_asked_or_answered_while_global_is_off(
    make_daemon: Make, tmp_path: Path, nursery: trio.Nursery
) -> None:
    peer = await LyingColony(tmp_path / "peer").start(nursery)
    daemon = knows(make_daemon("ant", COLONYD_FEDERATION__DISCOVERY="false"), peer.port)
    hears(peer, daemon)
    await trio.to_thread.run_sync(daemon.start)
    target = daemon.key("colony").id
    async with daemon.client() as client:
        side = Side(daemon, client)
        await trusts(side, peer)

        async def twice() -> bool:
            return peer.heard.count("/v1/hello") > 1

        await until(90, twice)
        assert "/v1/dial" not in peer.heard
        wish = dump(Dial(peer.port, secrets.token_bytes(16)))
        reply = await post(daemon, peer.seal(Kind.DIAL, target, wish))
        assert reply.json()["code"] == "not_found"
        assert await reach_of(side) is None
    nursery.cancel_scope.cancel()
