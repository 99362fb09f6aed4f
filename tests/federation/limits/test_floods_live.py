"""Floods of strangers, and of a peer that is trusted a little, against a daemon as it is started.

Each flood is bounded in seconds or messages. What the bounds are is told by
`federation.limits.test_flooding_peers`.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

import httpx
import msgspec
import pytest
import trio

from colonyd.keys import PrivateKey
from federation.wire.card import Card, sign_card
from federation.wire.clock import SigningClock
from federation.wire.envelope import Kind
from federation.wire.messages import (
    Cancel,
    Collect,
    Hello,
    Introduction,
    Introductions,
    Join,
    Pass,
    Poll,
)
from federation.wire.signer import Signer
from tests.support.daemons import Daemon, until
from tests.support.sides import Side

pytestmark = [
    pytest.mark.slow,
    # httpx leaves a socket to the collector when a connection that it opens is cancelled.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

Make = Callable[..., Daemon]
ALONE = {"COLONYD_FEDERATION__DISCOVERY": "false"}
WORKERS = 8


def card_of(key: PrivateKey, name: str = "foe", sequence: int = 1) -> bytes:
    now = int(time.time())
    card = Card(key.id, key.public_key, name, sequence, "e" * 64, [], [1], now + 3600)
    return sign_card(key, card, issued=now)


def path_of(name: str) -> str:
    """Where a kind of message is posted."""
    version = 2 if name in ("submit", "cancel", "outcomes") else 1
    return f"/v{version}/{name}"


class Foe:
    """A colony that speaks to a daemon's federation port, from an address of its own."""

    def __init__(self, daemon: Daemon, address: str, name: str = "foe") -> None:
        self.daemon, self.address, self.name = daemon, address, name
        self.key = PrivateKey.generate()
        self.target = daemon.key("colony").id
        self.signer = Signer(self.key, SigningClock())

    def hello(self) -> bytes:
        return self.seal(Kind.HELLO, Hello(card_of(self.key, self.name)))

    def seal(self, kind: Kind, message: msgspec.Struct) -> bytes:
        return self.signer.seal(kind, self.target, message, cti=secrets.token_bytes(8))

    @asynccontextmanager
    async def http(self) -> AsyncIterator[httpx.AsyncClient]:
        transport = httpx.AsyncHTTPTransport(verify=False, local_address=self.address)
        url = f"https://127.0.0.1:{self.daemon.peer_port}"
        async with httpx.AsyncClient(base_url=url, transport=transport, timeout=60) as client:
            yield client

    async def post(self, path: str, body: bytes) -> httpx.Response:
        async with self.http() as client:
            return await client.post(path_of(path), content=body)

    async def befriend(self, side: Side, **change: object) -> None:
        """Become trusted by the owner of the daemon."""
        await self.post("hello", self.hello())
        await side.call("trustpeermsg", side.owner, peer=self.key.id, change=change)

    async def flood(self, path: str, bodies: Iterable[bytes], seconds: float) -> Counter[str]:
        """Send bodies over some connections, one after the other; counts what came back."""
        told: Counter[str] = Counter()
        left = iter(bodies)

        async def work() -> None:
            async with self.http() as client:
                for body in left:
                    try:
                        answer = await client.post(path_of(path), content=body)
                    except httpx.HTTPError as error:
                        told[type(error).__name__] += 1
                        continue
                    told["" if answer.status_code == 200 else answer.json()["code"]] += 1

        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                for _ in range(WORKERS):
                    nursery.start_soon(work)
        return told


@asynccontextmanager
async def lone(make: Make) -> AsyncIterator[Side]:
    daemon = make("ant", **ALONE)
    await trio.to_thread.run_sync(daemon.start)
    async with daemon.client() as client:
        yield Side(daemon, client)


async def counted(count: Callable[[], int], least: int) -> None:
    """Return once so much was counted."""

    async def enough() -> bool:
        return count() >= least

    await until(60, enough)


async def promptly(friend: Foe) -> float:
    """How many seconds the daemon takes to answer the hello of a trusted colony."""
    began = trio.current_time()
    answer = await friend.post("hello", friend.hello())
    assert answer.status_code == 200, answer.text
    return trio.current_time() - began


async def test_a_flood_of_hellos_of_fresh_keys(make_daemon: Make) -> None:
    """A thousand of them: some are checked, fewer are logged, and a peer is answered meanwhile."""
    async with lone(make_daemon) as ant:
        friend = Foe(ant.daemon, "127.0.0.9", "friend")
        await friend.befriend(ant)
        foe = Foe(ant.daemon, "127.0.0.66")
        bodies = [Foe(ant.daemon, "").hello() for _ in range(1000)]
        mark = len(ant.daemon.events)
        took: list[float] = []

        async def greet() -> None:
            while True:
                took.append(await promptly(friend))
                await trio.sleep(0.6)  # not a flood of its own

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(greet)
            told = await foe.flood("hello", bodies, 60)
            nursery.cancel_scope.cancel()
        seconds = trio.current_time() - began
        print(f"1000 hellos in {seconds:.1f} s: {dict(told)}; a friend's took {max(took):.2f} s")
        assert told["untrusted"] <= 62 + seconds
        assert told["untrusted"] + told["stranger_rate"] == 1000
        lines = [line for line in ant.daemon.events[mark:] if "proved itself" in line]
        assert 0 < len(lines) <= 22 + seconds / 3
        assert max(took) < 5
        told = await foe.flood("mail", [foe.seal(Kind.COLLECT, Collect(30, []))] * 200, 30)
        assert set(told) <= {"unknown_issuer", "stranger_rate"}


async def test_an_invitation_is_used_during_a_flood_of_joins(make_daemon: Make) -> None:
    """Sixty addresses try to join without end; who has a token joins."""
    async with lone(make_daemon) as ant:
        made = await ant.call("invitepeermsg", ant.owner)
        daemon = make_daemon("bee", **ALONE)
        await trio.to_thread.run_sync(daemon.start)
        stranger = Foe(ant.daemon, "")
        join = Join(card_of(stranger.key), "0" * 16, b"n" * 16)
        body = stranger.seal(Kind.JOIN, join)
        told: Counter[str] = Counter()

        async def knock(number: int) -> None:
            foe = Foe(ant.daemon, f"127.0.1.{number}")
            async with foe.http() as http:
                while True:
                    answer = await http.post("/v1/join", content=body)
                    told[answer.json()["code"] if answer.status_code != 200 else ""] += 1
                    await trio.sleep(0.05)

        async with daemon.client() as client, trio.open_nursery() as nursery:
            bee = Side(daemon, client)
            for number in range(1, 61):
                nursery.start_soon(knock, number)
            await counted(lambda: told["join_rate"], 200)
            peer = await bee.call("joinpeermsg", bee.owner, token=made["token"])
            assert peer["state"] == "trusted"
            there = await ant.peer(bee)
            assert there is not None
            assert there["state"] == "trusted"
            nursery.cancel_scope.cancel()
        print(f"joins meanwhile: {dict(told)}")


async def test_a_flood_of_cancels_of_what_never_was(make_daemon: Make) -> None:
    """By a peer under a tight policy: what it leaves stays small, and the owner sees how much."""
    async with lone(make_daemon) as ant:
        foe = Foe(ant.daemon, "127.0.0.66")
        tight = {"rate": 1, "max_waiting": 1, "max_running": 1, "max_body": 1000}
        await foe.befriend(ant, **tight)
        bodies = (foe.seal(Kind.CANCEL, Cancel(f"{n:064x}", 1)) for n in range(10**6))
        told = await foe.flood("cancel", bodies, 8)
        print(f"cancels in 8 s: {dict(told)}")
        assert told[""] <= 3
        assert told["policy_rate"] > 50
        shown = await ant.call("getpeermsg", ant.owner, peer=foe.key.id)
        assert 0 < shown["left"]["entries"] <= 3
        assert 0 < shown["left"]["bytes"] < 10_000
        assert shown["policy"]["max_kept"] == 512 * 2**20


async def test_a_flood_of_introductions(make_daemon: Make) -> None:
    """By a trusted peer, of ever other colonies: six a minute, and nobody is kept waiting."""
    async with lone(make_daemon) as ant:
        foe, friend = Foe(ant.daemon, "127.0.0.66"), Foe(ant.daemon, "127.0.0.9", "friend")
        await foe.befriend(ant)
        await friend.befriend(ant)
        many = [
            [Introduction(card_of(PrivateKey.generate()), 1) for _ in range(64)] for _ in range(10)
        ]
        bodies = (
            foe.seal(Kind.INTRODUCTIONS, Introductions(many[number % 10], 2**40 + number))
            for number in range(10**6)
        )
        took: list[float] = []

        async def greet() -> None:
            while True:
                took.append(await promptly(friend))
                assert await trio.to_thread.run_sync(ant.daemon.health) == 200
                await trio.sleep(0.6)  # not a flood of its own

        async with trio.open_nursery() as nursery:
            nursery.start_soon(greet)
            told = await foe.flood("introductions", bodies, 10)
            nursery.cancel_scope.cancel()
        print(f"introductions in 10 s: {dict(told)}; a friend's hello took {max(took):.2f} s")
        assert told[""] <= 8
        assert set(told) == {"", "introductions_rate"}
        peers = await ant.call("getpeersmsg", ant.owner)
        assert len(peers) <= 2 + 64, "a message replaces the one before"
        assert max(took) < 5


async def test_floods_of_a_mailbox(make_daemon: Make) -> None:
    """Polls that wait, and messages for each other: by members, and by strangers."""
    async with lone(make_daemon) as ant:
        foe, away = Foe(ant.daemon, "127.0.0.66"), Foe(ant.daemon, "127.0.0.67", "away")
        friend = Foe(ant.daemon, "127.0.0.9", "friend")
        for each in (foe, away, friend):
            await each.befriend(ant)
        told: Counter[str] = Counter()

        async def hold(by: Foe, path: str, body: bytes, name: str) -> None:
            answer = await by.post(path, body)
            told[name if answer.status_code == 200 else f"{name} {answer.json()['code']}"] += 1

        waits = [("outcomes", foe.seal(Kind.POLL, Poll(30, [])))] * 40
        waits += [("mail", foe.seal(Kind.COLLECT, Collect(30, [])))] * 120
        async with trio.open_nursery() as nursery:
            for path, body in waits:
                nursery.start_soon(hold, foe, path, body, path)
            # A peer has 64 connections; what is beyond them is told to come again.
            await counted(lambda: told["mail busy"] + told["outcomes busy"], 90)
            took = await promptly(friend)
            # The mailbox of `away`: one sender fills its own part of it.
            await hold(away, "mail", away.seal(Kind.COLLECT, Collect(0, [])), "own")
            parcel = Pass(away.key.id, "/v1/hello", b"x" * 200_000, 30)
            for _ in range(60):
                nursery.start_soon(hold, friend, "pass", friend.seal(Kind.PASS, parcel), "pass")
            await counted(lambda: told["pass mailbox_full"], 20)
            took = max(took, await promptly(friend))
            print(f"held: {dict(told)}; a friend's hello took {took:.2f} s")
            assert took < 5
            stranger = Foe(ant.daemon, "127.0.0.77")
            body = stranger.seal(Kind.PASS, parcel)
            flood = await stranger.flood("pass", [body] * 200, 30)
            assert set(flood) <= {"mailbox_closed", "stranger_rate"}
            assert flood["stranger_rate"] > 50
            nursery.cancel_scope.cancel()
        assert await promptly(friend) < 5
