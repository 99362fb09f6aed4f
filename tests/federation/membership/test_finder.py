"""Daemons without configured addresses and without mDNS find each other in a DHT of their own."""

from __future__ import annotations

import re
from collections.abc import Callable

import httpx
import pytest
import trio

from colonyd.keys import PrivateKey
from colonyd.rpc import RpcError
from federation.dht.wide import TABLE
from tests.support.daemons import Daemon, free_port, until
from tests.support.hostile_dht import HostileNodes
from tests.support.sides import Side
from tests.support.wide import stays_open, wide

pytestmark = pytest.mark.slow
pytest.importorskip("libtorrent", reason="the extra colonyd[global] is not installed")

Make = Callable[..., Daemon]


async def test_found_by_id_then_trusted_then_found_again_elsewhere(
    make_daemon: Make, nursery: trio.Nursery
) -> None:
    port = free_port()
    await nursery.start(stays_open, port)
    daemons = [make_daemon("ant", **wide("127.0.0.2", port))]
    daemons.append(make_daemon("bee", **wide("127.0.0.3", port)))
    for daemon in daemons:
        await trio.to_thread.run_sync(daemon.start)
    async with daemons[0].client() as first, daemons[1].client() as second:
        ant, bee = Side(daemons[0], first), Side(daemons[1], second)

        # A colony never seen is found and shown, and refused with the step that is missing.
        async def shown() -> str:
            with pytest.raises(RpcError) as refused:
                await ant.submit(bee.owner.id)
            return str(refused.value) if "was found" in str(refused.value) else ""

        told: str = await until(90, shown)
        assert f"127.0.0.3:{bee.daemon.peer_port}" in told
        assert "calls itself 'bee', and no peer of this colony knows it" in told
        assert f"there `colony peer trust {ant.owner.id}`" in told, "bee never heard of ant"
        peer = await ant.peer(bee)
        assert peer is not None
        assert peer["state"] == "pending", "never trusted by itself, not even by trust = lan"

        # Trust on both sides: the other one looks the id up as well.
        await ant.trust(bee)
        await bee.trust(ant)
        await bee.hire()
        processid = await ant.submit(bee.owner.id, args=["x"])
        await bee.work("X")
        assert (await ant.closed(processid))["out"] == ["X"]

        # It moves; ant has moved as well, so neither knows where the other is.
        for daemon, host in zip(daemons, ("127.0.0.4", "127.0.0.5"), strict=True):
            await trio.to_thread.run_sync(daemon.stop)
            daemon.environ["COLONYD_FEDERATION__HOST"] = host
            daemon.peer_port = free_port()
        for daemon in daemons:
            await trio.to_thread.run_sync(daemon.start)
        processid = await ant.submit(bee.owner.id, args=["y"])
        await bee.work("Y")
        assert (await ant.closed(processid, 120))["out"] == ["Y"]
        # Kinds as docs/reference/metrics.md has them.
        async with httpx.AsyncClient(trust_env=False) as http:
            text = (await http.get(f"http://127.0.0.1:{daemons[0].port}/metrics")).text
        found = re.findall(r'^colonyd_(dht|reach|routers)\{kind="(\w+)"\}', text, re.M)
        assert sorted(found) == [
            *(("dht", kind) for kind in ("asked", "nodes", "port", "sought")),
            *(("reach", kind) for kind in ("at", "port")),
        ]  # and no `routers` on this machine's own addresses
        for daemon in daemons:
            assert (daemon.home / TABLE).stat().st_mode & 0o777 == 0o600
    nursery.cancel_scope.cancel()


async def test_hostile_nodes_cost_few_connections_and_never_a_wrong_peer(
    make_daemon: Make, nursery: trio.Nursery
) -> None:
    """Twenty of the DHT's nodes name false addresses for every id: hosts that hang up, and a
    colony of another id. Twenty colonies that don't exist are looked up meanwhile.
    """
    port, calls = free_port(), 0

    async def hang_up(stream: trio.SocketStream) -> None:
        nonlocal calls
        calls += 1
        await stream.aclose()

    listeners = [
        listener
        for number in range(60, 100)
        for _ in range(8)
        for listener in await trio.open_tcp_listeners(0, host=f"127.0.0.{number}")
    ]
    nursery.start_soon(trio.serve_listeners, hang_up, listeners)
    cat = make_daemon("cat", **wide("127.0.0.3", port))
    false = [at.socket.getsockname()[:2] for at in listeners] + [("127.0.0.3", cat.peer_port)]
    hosts = [f"127.0.0.{number}" for number in (1, *range(20, 39))]
    hostile = HostileNodes(hosts, port, false)
    await nursery.start(hostile.serve)
    ant = make_daemon("ant", **wide("127.0.0.2", port))
    for daemon in (cat, ant):
        await trio.to_thread.run_sync(daemon.start)
    async with ant.client() as client:
        side = Side(ant, client)

        async def seek(colony: str) -> None:
            while True:
                with pytest.raises(RpcError, match="neither here nor a trusted peer"):
                    await side.submit(colony)

        with trio.move_on_after(60):
            async with trio.open_nursery() as seekers:
                for _ in range(20):
                    seekers.start_soon(seek, PrivateKey.generate().id)
        peers = await side.call("getpeersmsg", side.owner)
        assert {peer["state"] for peer in peers} <= {"seen"}, peers
    assert hostile.lied > 100, "they were believed enough to be asked"
    # At most 4 look-ups at once and 0.2 a second after that, each of at most 8 addresses.
    assert 8 < calls <= (4 + 0.2 * 75) * 8
    nursery.cancel_scope.cancel()


async def test_a_colony_that_is_off_leaves_no_trace(make_daemon: Make) -> None:
    """No socket, no file, and the library is not even loaded."""
    daemon = make_daemon("ant", COLONYD_FEDERATION__DISCOVERY="false")
    await trio.to_thread.run_sync(daemon.start)
    assert daemon.process is not None
    maps = await trio.Path(f"/proc/{daemon.process.pid}/maps").read_text()
    assert "libtorrent" not in maps
    assert not (daemon.home / TABLE).exists()
    async with daemon.client() as client:
        side = Side(daemon, client)
        with pytest.raises(RpcError) as refused:
            await side.submit(PrivateKey.generate().id)
        assert "DHT" not in str(refused.value)
