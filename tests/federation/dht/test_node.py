"""Real nodes of the DHT on this machine's loopback addresses: they announce and find colonies."""

from __future__ import annotations

import random
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from federation.dht.wide import TABLE, WideLookup
from federation.network.interfaces import Network
from federation.network.monitor import NetworkMonitor
from tests.support.daemons import free_port, until
from tests.support.wide import stays_open

pytest.importorskip("libtorrent", reason="the extra colonyd[global] is not installed")

ANT, BEE = "a1" * 32, "b2" * 32


@dataclass
class Someone:
    """A colony that looks for others."""

    id: str
    missing: Collection[str] = ()
    heard: dict[str, list[str]] = field(default_factory=dict)

    def ids(self) -> Collection[str]:
        return [self.id]

    def listener(self) -> int:
        return 50081

    def port(self) -> int:
        return 50081

    def lost(self) -> tuple[Collection[str], Collection[str]]:
        return self.missing, ()

    def found(self, colony: str, addresses: Sequence[str]) -> None:
        self.heard.setdefault(colony, []).extend(addresses)


def around() -> NetworkMonitor:
    monitor = NetworkMonitor(["127.0.0.1"])
    monitor.start()
    return monitor


def wide_lookup(place: Path, host: str, port: int, bootstrap: Sequence[str]) -> WideLookup:
    place.mkdir(exist_ok=True)
    return WideLookup(around(), place, host, port, bootstrap, random.Random(1))


@pytest.mark.slow
async def test_one_finds_the_other_and_keeps_its_table(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    port = free_port()
    await nursery.start(stays_open, port)
    ant, bee = Someone(ANT, [BEE]), Someone(BEE)
    boot = [f"127.0.0.1:{port}"]
    first = wide_lookup(tmp_path / "ant", "127.0.0.2", free_port(), boot)
    async with trio.open_nursery() as inner:
        other = wide_lookup(tmp_path / "bee", "127.0.0.3", free_port(), boot)
        inner.start_soon(first.run, ant)
        inner.start_soon(other.run, bee)

        async def found() -> bool:
            return "127.0.0.3:50081" in ant.heard.get(BEE, ())

        await until(40, found)
        assert set(ant.heard[BEE]) == {"127.0.0.3:50081"}
        assert first.status().nodes >= 1
        assert not first.status().problem
        inner.cancel_scope.cancel()
    table = tmp_path / "ant" / TABLE
    assert table.stat().st_mode & 0o777 == 0o600
    assert 0 < table.stat().st_size < 4096

    # With its table, it needs no bootstrap node: this one is gone.
    ant.heard.clear()
    again = wide_lookup(tmp_path / "ant", "127.0.0.2", free_port(), [f"127.0.0.1:{free_port()}"])
    nursery.start_soon(again.run, ant)
    await until(40, found)
    nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_a_damaged_table_and_a_port_in_use(
    nursery: trio.Nursery, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It starts with an empty table, and says what is wrong."""
    port = free_port()
    await nursery.start(stays_open, port)
    (tmp_path / TABLE).write_bytes(
        b"\xff\xfe:1\n\nd9:dht stated5:nodes\n127.0.0.1\nx:70000\n" + bytes(40_000)
    )
    lookup = wide_lookup(tmp_path, "127.0.0.1", port, [f"127.0.0.1:{port}"])
    nursery.start_soon(lookup.run, Someone(ANT))

    async def told() -> bool:
        logged = "dht failed" in caplog.text
        return logged and "in use" in lookup.status().problem

    await until(20, told)
    nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_its_tcp_port_serves_nobody(nursery: trio.Nursery) -> None:
    port = free_port()
    await nursery.start(stays_open, port)

    async def closed() -> bool:
        try:
            stream = await trio.open_tcp_stream("127.0.0.1", port)
        except OSError:
            return False
        async with stream:
            with trio.fail_after(5):
                return await stream.receive_some(10) == b""

    await until(20, closed)
    nursery.cancel_scope.cancel()


async def test_private_addresses_count_in_a_dht_of_our_own(tmp_path: Path) -> None:
    own = wide_lookup(tmp_path, "127.0.0.1", 1, ["127.0.0.1:1"])
    public = wide_lookup(tmp_path, "127.0.0.1", 1, [])
    told = [
        "192.168.1.1:1",
        "127.0.0.1:22",
        "8.8.8.8:1",
        "169.254.169.254:80",
        "[::ffff:8.8.8.8]:1",
        "100.101.102.103:22",  # of a provider's own network, or of a VPN's
        "[fec0::1]:22",
    ]
    used = [True, True, True, False, False, True, True]
    assert [own.usable(each) for each in told] == used
    used = [False, False, True, False, False, False, False]
    assert [public.usable(each) for each in told] == used
    # Where our port is for this machine alone, so are those of the others.
    own.monitor = NetworkMonitor([])
    assert own.usable("127.0.0.9:1")
    own.host = "*"
    assert not own.usable("127.0.0.9:1")


async def test_public_addresses_on_our_own_link_count(tmp_path: Path) -> None:
    """Machines of one provider may share a network, in which no multicast leads to the others."""
    public = wide_lookup(tmp_path, "*", 1, [])
    near = ("2600:1f18::/64", "93.184.216.0/24")
    public.monitor = NetworkMonitor(
        network=Network((), (), near, (), (("eth0", 2),), loopback=False)
    )
    assert public.usable("[2600:1f18::9]:50081")
    assert public.usable("93.184.216.9:50081")


async def test_without_the_library_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    monkeypatch.setitem(sys.modules, "libtorrent", None)
    lookup = wide_lookup(tmp_path, "127.0.0.1", free_port(), [])
    nursery.start_soon(lookup.run, Someone(ANT))

    async def told() -> bool:
        return "pip install 'colonyd[global]'" in lookup.status().problem

    await until(10, told)
    nursery.cancel_scope.cancel()
