"""Where cards and announcements may lead us: one rule for both; names are bounded and checked."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from federation.network.addresses import is_loopback, problem_of
from federation.network.interfaces import Network, survey
from federation.network.mdns import sightings
from federation.service.main import Federation
from federation.transport.dial import find
from federation.transport.errors import Unsent
from federation.transport.resolve import ways_to
from tests.support.colonies import world
from tests.support.daemons import Daemon, free_port, until
from tests.support.lying_servers import LyingColony, knows

NAMES = trio.CapacityLimiter(1)


def around(*near: str, loopback: bool = False, scopes: tuple[int, ...] = ()) -> Network:
    """A network with these ranges next to us."""
    return Network((), (), near, scopes, (), loopback)


HOME = around("192.0.2.0/24")
INWARD = [
    "127.0.0.1",
    "127.8.8.8",
    "::1",
    "0.0.0.0",
    "::",
    "::ffff:127.0.0.1",
    "::ffff:192.0.2.7",
    "::127.0.0.1",
    "2002:7f00:1::",
    "2001:0:7f00:1::",
    "169.254.169.254",
    "169.254.7.7",
    "fd00:ec2::254",
    "100.100.100.200",
    "168.63.129.16",
    "224.0.0.1",
    "255.255.255.255",
    "240.0.0.1",
    "ff02::1",
]
OUTWARD = ["192.0.2.7", "10.1.2.3", "172.20.0.5", "203.0.113.9", "2606:4700::1", "fd12:3456::1"]


@pytest.mark.parametrize("host", INWARD)
async def test_what_leads_inward_is_in_no_card_and_no_announcement(host: str) -> None:
    """Announcements may not name it, and cards may not either."""
    assert problem_of(host, HOME)
    assert sightings(_announced(), [host], 50081, HOME) == []
    place = f"[{host}]:50081" if ":" in host else f"{host}:50081"
    with pytest.raises(Unsent, match="is not tried"):
        await ways_to(place, HOME, NAMES)


async def test_a_colony_asks_that_of_every_address_of_a_peer(tmp_path: Path) -> None:
    """Unless its owner gave the address."""
    async with world(tmp_path, ("ant", "bee")) as colonies:
        ant, bee = colonies["ant"], colonies["bee"]
        await ant.trust(bee)
        entry = ant.fed.peers.known[bee.key.id]
        place = "169.254.169.254:80"
        with pytest.raises(Unsent, match="is not tried"):
            await ant.fed.guide_to(entry).ways(place)
        entry.peer = msgspec.structs.replace(entry.peer, endpoints=[place])
        # As the daemon makes it, not as the colonies of these tests do.
        connection = Federation.connection_to(ant.fed, entry)
        with pytest.raises(Unsent, match="is not tried"):
            await connection.connect()
        entry.give(place)
        assert await ant.fed.guide_to(entry).ways(place) == [place]


@pytest.mark.parametrize("host", OUTWARD)
async def test_other_hosts_may_be_named(host: str) -> None:
    """Also those of private networks, where most colonies are."""
    assert problem_of(host, HOME) == ""
    assert [each.host for each in sightings(_announced(), [host], 50081, HOME)] == [host]
    place = f"[{host}]:50081" if ":" in host else f"{host}:50081"
    assert await ways_to(place, HOME, NAMES) == [place]


def _announced() -> dict[bytes, bytes | None]:
    return {b"v": b"1", b"id": b"a1" * 32, b"fp": b"0a" * 32}


async def test_what_is_configured_is_allowed() -> None:
    """Where we look at the loopback interface, or at a link without DHCP, peers are there."""
    assert problem_of("127.0.0.1", around(loopback=True)) == ""
    assert problem_of("127.0.0.1", None, loopback=True) == ""
    assert problem_of("169.254.7.7", around("169.254.0.0/16")) == ""
    assert problem_of("169.254.169.254", around("169.254.0.0/16", loopback=True))
    assert problem_of("fe80::1", around(scopes=(2,)))
    assert problem_of("fe80::1%2", around(scopes=(2,))) == ""
    assert problem_of("fe80::1%3", around(scopes=(2,)))
    assert [is_loopback(host) for host in ("127.0.0.1", "localhost", "*", "192.0.2.1")] == [
        True,
        True,
        False,
        False,
    ]


# -- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["localhost", "127.1", "2130706433", "0x7f000001", "0177.0.0.1"])
async def test_a_name_is_checked_by_what_it_leads_to(name: str) -> None:
    """However this machine is spelt."""
    with pytest.raises(Unsent, match=r"is not tried: .* leads to this machine"):
        await ways_to(f"{name}:1", HOME, NAMES)


async def test_what_is_checked_is_what_is_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that leads somewhere else at the second question leads nowhere."""
    asked: list[str] = []

    def resolve(host: str, port: int, **rest: object) -> list[Any]:
        asked.append(host)
        found = ["127.0.0.1", "203.0.113.9"] if len(asked) == 1 else ["127.0.0.1"]
        return [(2, 1, 6, "", (each, port)) for each in found]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    tried: list[str] = []

    async def certificate(host: str, port: int) -> bytes:
        tried.append(host)
        return b"der"

    monkeypatch.setattr("federation.transport.dial.fetch_certificate", certificate)
    found = await find(["evil.example:7"], "", lambda each: ways_to(each, HOME, NAMES))
    assert tried == ["203.0.113.9"]
    assert found.others == [("203.0.113.9:7", b"der")]
    assert asked == ["evil.example"]


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A resolver that hangs until the test is over; the names that it was asked for."""
    asked: list[str] = []
    over = threading.Event()
    right = socket.getaddrinfo

    def resolve(host: Any, *rest: Any, **more: Any) -> Any:
        if str(host).endswith(".example"):
            asked.append(host)
            over.wait(60)
            raise OSError("over")
        return right(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    yield asked
    over.set()


@pytest.mark.slow
async def test_names_that_hang_the_resolver_keep_nobody_waiting(hanging: list[str]) -> None:
    """Sixteen of them take one thread, 3 s each at most, and none of the daemon's threads."""
    names = trio.CapacityLimiter(1)
    begin = trio.current_time()
    found = await find(
        [*(f"n{number}.example:1" for number in range(16))], "", lambda a: ways_to(a, HOME, names)
    )
    assert trio.current_time() - begin < 12
    assert len(found.problems) == 16
    assert all("was not resolved within 3 s" in problem for problem in found.problems)
    assert len(hanging) == 1, "the next one waits for the thread of the first"
    threads = trio.to_thread.current_default_thread_limiter()
    assert threads.borrowed_tokens == 0
    with trio.fail_after(5):
        other = trio.CapacityLimiter(1)
        with pytest.raises(Unsent, match="leads to this machine"):
            await ways_to("localhost:1", HOME, other)


def _need_a_network() -> None:
    network = survey()
    if network is None or network.loopback:
        pytest.skip("this machine has no network but itself, where peers may be")


# -- a real daemon -------------------------------------------------------------------------------


@asynccontextmanager
async def trusting(
    make_daemon: Callable[..., Daemon], liar: LyingColony
) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
    """A daemon that has the liar in [[peers]] and trusts it; the owner's calls."""
    daemon = knows(
        make_daemon(
            "ant",
            COLONYD_FEDERATION__HOST="*",
            COLONYD_FEDERATION__INTERFACES="",
            COLONYD_FEDERATION__DISCOVERY="false",
        ),
        liar.port,
    ).start()
    async with daemon.client() as client:

        async def call(kind: str, **fields: Any) -> Any:
            return await client.call(kind, fields, daemon.key("colony"), 60)

        async def met() -> Any:
            found = await call("getpeersmsg")
            return [peer for peer in found if peer["id"] == liar.key.id and peer["name"]]

        await until(60, met, step=0.2)
        await call("trustpeermsg", peer=liar.key.id)
        yield call


@pytest.mark.slow
async def test_a_trusted_peer_can_not_have_us_look_at_our_own_ports(
    make_daemon: Callable[..., Daemon], tmp_path: Path, nursery: trio.Nursery
) -> None:
    """Its card names 127.0.0.1, under several names: nobody there hears of us.

    The address in the configuration is the owner's word, and goes on being tried.
    """
    _need_a_network()
    knocks: list[str] = []

    async def canary(stream: trio.SocketStream) -> None:
        knocks.append("knock")

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    await nursery.start(trio.serve_listeners, canary, listeners)
    port = listeners[0].socket.getsockname()[1]
    liar = LyingColony(tmp_path / "liar")
    liar.endpoints = [f"{host}:{port}" for host in ("127.0.0.1", "localhost", "127.1", "[::1]")]
    liar.endpoints += ["169.254.169.254:80"]
    await liar.start(nursery)
    async with trusting(make_daemon, liar) as call:

        async def greeted() -> bool:
            return "/v1/hello" in liar.heard

        await until(60, greeted, step=0.1)
        liar.scope.cancel()

        async def refused() -> bool:
            answer = await call("pingpeermsg", peer=liar.key.id)
            return bool(knocks) or (not answer["ok"] and "is not tried" in answer["error"])

        await until(60, refused, step=0.2)
    assert knocks == []


@pytest.mark.slow
async def test_what_the_owner_names_is_tried_wherever_it_leads(
    make_daemon: Callable[..., Daemon], tmp_path: Path, nursery: trio.Nursery
) -> None:
    """A card with addresses of this machine alone does no harm to the one in [[peers]]."""
    _need_a_network()
    liar = LyingColony(tmp_path / "liar")
    liar.endpoints = [f"127.0.0.1:{free_port()}"]
    await liar.start(nursery)
    async with trusting(make_daemon, liar):
        await until(60, lambda: _heard(liar, 2), step=0.1)


async def _heard(liar: LyingColony, times: int) -> bool:
    return liar.heard.count("/v1/hello") >= times
