"""A real daemon behind a real router: its port is mapped, dialled back, and given up again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.support.daemons import until
from tests.support.netns import require, sides
from tests.support.routers import Host, Router, internet, require_miniupnpd
from tests.support.sides import Side
from tests.support.wide import reach_of, verdict

pytestmark = pytest.mark.slow
pytest.importorskip("libtorrent", reason="the extra colonyd[global] is not installed")


@pytest.fixture
def street(tmp_path: Path) -> Iterator[tuple[Router, Host, Host]]:
    """A router, ant behind it, and bee outside."""
    require()
    require_miniupnpd()
    with internet(tmp_path, ["bee"], {"ant": 1}, 1) as (hosts, (gate,)):
        ant, bee = hosts["ant"], hosts["bee"]
        ant.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        url = f"https://{bee.address()}:50081"
        (ant.home / "config.toml").write_text(f'[[peers]]\nurl = "{url}"\n')
        yield gate, ant, bee


async def befriend(one: Side, other: Side) -> None:
    """Let both find and trust each other."""
    await one.find(other)
    await one.trust(other)
    await other.find(one)
    await other.trust(one)


async def forwards(gate: Router, house: Host, seconds: float = 30) -> None:
    """The router forwards the port of the daemon and that of its DHT, and nothing else."""
    at = house.address()
    wanted = {("tcp", 50081, f"{at}:50081"), ("udp", 50082, f"{at}:50082")}

    async def mapped() -> bool:
        return gate.mapped() == wanted

    try:
        await until(seconds, mapped)
    except trio.TooSlowError:
        raise AssertionError(f"forwarded: {gate.mapped()}") from None


async def doctor(house: Host) -> str:
    return (await trio.to_thread.run_sync(house.colony, "doctor")).stdout


async def test_a_port_is_mapped_and_others_come_through_it(
    street: tuple[Router, Host, Host],
) -> None:
    gate, ant, bee = street
    gate.start()
    for house in (bee, ant):
        await trio.to_thread.run_sync(house.start)
    await forwards(gate, ant)
    async with sides([ant, bee]) as (one, other):
        await befriend(one, other)
        told = await verdict(one, "reachable", 90)
        assert (told["by"], told["address"]) == (["bee"], f"{gate.address}:50081")

        # Somebody outside comes through: ant polls nobody, and bee has no other way.
        async def known() -> bool:
            peer = await other.peer(one)
            return peer is not None and f"{gate.address}:50081" in peer["endpoints"]

        await until(60, known)
        await one.hire()
        processid = await other.submit("ant", args=["x"])
        await one.work("X")
        assert (await other.closed(processid, 90))["out"] == ["X"]
        text = await doctor(ant)
        assert "forwards its TCP port 50081 to this machine" in text
        assert f"others connect to {gate.address}:50081; bee said so" in text

        # The router starts again, and has forgotten everything.
        ant.pull()
        await verdict(one, "unknown")
        gate.stop()
        assert gate.mapped() == set()
        gate.start()
        ant.plug()
        await forwards(gate, ant, 60)

        # Nothing comes through any more.
        gate.refuse(50081)
        ant.pull()
        await verdict(one, "unknown")
        ant.plug()
        told = await verdict(one, "unreachable", 120)
        assert told["by"] == ["bee"]
        text = await doctor(ant)
        assert "others can't connect to this colony" in text
        assert "is a firewall, or another router" in text
    assert await trio.to_thread.run_sync(ant.stop) == 0
    assert gate.mapped() == set(), "given up at the end"
    assert not any("port mapping not given up" in line for line in ant.events)


async def test_without_a_router_that_maps_ports_it_says_what_to_do(
    street: tuple[Router, Host, Host],
) -> None:
    _, ant, bee = street
    for house in (bee, ant):
        await trio.to_thread.run_sync(house.start)
    async with sides([ant, bee]) as (one, other):
        await befriend(one, other)
        told = await verdict(one, "unreachable", 120)
        assert (told["by"], told["port"]) == (["bee"], 50081)
        text = await doctor(ant)
        assert "no router answers to UPnP or NAT-PMP" in text
        assert "have the router forward TCP port 50081 to this machine" in text


async def test_a_router_that_hangs_delays_the_end_by_seconds(
    street: tuple[Router, Host, Host],
) -> None:
    gate, ant, _ = street
    gate.start()
    await trio.to_thread.run_sync(ant.start)
    await forwards(gate, ant)
    gate.freeze()
    begin = time.monotonic()
    code = await trio.to_thread.run_sync(ant.stop)
    assert (code, time.monotonic() - begin < 20) == (0, True)


async def test_nothing_is_mapped_when_it_is_not_wanted(
    street: tuple[Router, Host, Host],
) -> None:
    gate, ant, bee = street
    gate.start()
    ant.environ["COLONYD_FEDERATION__MAP_PORT"] = "false"
    bee.environ["COLONYD_FEDERATION__TRUST"] = "manual"
    for house in (bee, ant):
        await trio.to_thread.run_sync(house.start)
    async with sides([ant, bee]) as (one, other):
        await befriend(one, other)
        await verdict(one, "unreachable", 120)
        assert gate.mapped() == set()
        assert (await reach_of(one))["port"] == 50081
