"""Discovery: two colonies on this machine find each other by real DNS-SD, and say goodbye."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import trio
import trio.testing
from zeroconf import ServiceListener, Zeroconf

from federation.network.discovery import (
    SERVICE,
    Advertisement,
    Sighting,
    discover,
    instance_name,
    sightings,
)
from federation.network.interfaces import Network
from federation.network.monitor import NetworkMonitor

LOOPBACK = ["127.0.0.1"]
ALPHA = Advertisement("a1" * 32, "0a" * 32, 50081)
BETA = Advertisement("b2" * 32, "0b" * 32, 50082)
TXT: dict[bytes, bytes | None] = {b"v": b"1", b"id": b"a1" * 32, b"fp": b"0a" * 32}


def seen(advert: Advertisement, host: str = "127.0.0.1") -> Sighting:
    return Sighting(advert.id, advert.fingerprint, host, advert.port)


def network_of_kind(loopback: bool) -> Network:
    """A network on one link, or this machine alone."""
    return Network((), (), ("192.0.2.0/24", "2001:db8::/32"), (), (), loopback)


def _same(advert: Advertisement) -> Advertisement:
    return advert


def around(*interfaces: str) -> NetworkMonitor:
    """What is around a colony on these interfaces; the loopback one if none is named."""
    found = NetworkMonitor(list(interfaces) or LOOPBACK)
    found.start()
    return found


def telling(found: trio.MemorySendChannel[Sighting]) -> Callable[[Sequence[Sighting]], None]:
    """Put what is heard into a channel."""

    def heard(candidates: Sequence[Sighting]) -> None:
        for candidate in candidates:
            found.send_nowait(candidate)

    return heard


@pytest.mark.slow
async def test_two_colonies_find_each_other(nursery: trio.Nursery) -> None:
    """Each sees the other, with its fingerprint and port, and never itself."""
    by_alpha_in, by_alpha = trio.open_memory_channel[Sighting](math.inf)
    by_beta_in, by_beta = trio.open_memory_channel[Sighting](math.inf)
    with trio.fail_after(50):
        for me, found in ((ALPHA, by_alpha_in), (BETA, by_beta_in)):
            await nursery.start(discover, partial(_same, me), telling(found), around())
        # Others may be about on this machine.
        for me, other, heard in ((ALPHA, BETA, by_alpha), (BETA, ALPHA, by_beta)):
            while (sighting := await heard.receive()) != seen(other):
                assert sighting.id != me.id
    nursery.cancel_scope.cancel()


class Watcher(ServiceListener):
    """Somebody else's DNS-SD browser, telling a trio program what it hears of one instance."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.token = trio.lowlevel.current_trio_token()
        self.added = trio.Event()
        self.removed = trio.Event()

    def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        if name == self.name:
            self.token.run_sync_soon(self.added.set)

    def update_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        """Not of interest."""

    def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        if name == self.name:
            self.token.run_sync_soon(self.removed.set)


@pytest.mark.slow
async def test_goodbye(nursery: trio.Nursery) -> None:
    """A colony that stops withdraws its announcement, well within its bound."""
    found, _ = trio.open_memory_channel[Sighting](math.inf)
    colony = Advertisement("c3" * 32, "0c" * 32, 50083)
    watcher = Watcher(instance_name(colony.id))
    zeroconf = await trio.to_thread.run_sync(lambda: Zeroconf(interfaces=LOOPBACK))
    try:
        await trio.to_thread.run_sync(zeroconf.add_service_listener, SERVICE, watcher)
        with trio.fail_after(50):
            async with trio.open_nursery() as inner:
                inner.start_soon(discover, lambda: colony, telling(found), around())
                await watcher.added.wait()
                began = trio.current_time()
                inner.cancel_scope.cancel()
            assert trio.current_time() - began < 20
            await watcher.removed.wait()
    finally:
        await trio.to_thread.run_sync(zeroconf.close)


async def test_without_the_interface_it_keeps_trying(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A machine without a network is no reason to fail: it starts, waits and tries again."""
    found, _ = trio.open_memory_channel[Sighting](1)
    async with trio.open_nursery() as nursery:

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            nowhere = around("203.0.113.9")
            await discover(lambda: ALPHA, telling(found), nowhere, task_status=task_status)
            raise AssertionError("it must not end")

        await nursery.start(run)
        with trio.move_on_after(600):
            await trio.sleep_forever()
        nursery.cancel_scope.cancel()


class TestSightings:
    """What is taken from an announcement that anybody on the network can make."""

    def hosts(self, *addresses: str, loopback: bool = False) -> list[str]:
        return [
            candidate.host
            for candidate in sightings(TXT, addresses, 50081, network_of_kind(loopback))
        ]

    def test_good(self) -> None:
        """All that is announced, in one hint per address."""
        candidates = sightings(TXT, ["192.0.2.1"], 50081, network_of_kind(False))
        assert candidates == [seen(ALPHA, "192.0.2.1")]

    @pytest.mark.parametrize(
        "changes",
        [
            {b"v": b"2"},
            {b"v": None},
            {b"id": b"a1" * 31},
            {b"id": b"A1" * 32},
            {b"id": b"\xff" * 64},
            {b"fp": b""},
            {b"fp": b"zz" * 32},
        ],
    )
    def test_not_one_of_ours(self, changes: dict[bytes, bytes | None]) -> None:
        """Another version, or fields that are not what they should be."""
        assert sightings({**TXT, **changes}, ["192.0.2.1"], 50081, network_of_kind(False)) == []

    @pytest.mark.parametrize("port", [None, 0, 65536])
    def test_port(self, port: int | None) -> None:
        """A service without a port cannot be reached."""
        assert sightings(TXT, ["192.0.2.1"], port, network_of_kind(False)) == []

    def test_addresses_that_lead_nowhere(self) -> None:
        """Link-local without a scope, multicast, unspecified and unparseable ones are dropped."""
        assert self.hosts("fe80::1", "224.0.0.1", "0.0.0.0", "::", "nonsense", "ff02::1") == []

    def test_loopback_only_where_it_is_used(self) -> None:
        """A neighbour cannot send us to ourselves."""
        assert self.hosts("127.0.0.1", "::1", "::ffff:127.0.0.1") == []
        assert self.hosts("127.0.0.1", loopback=True) == ["127.0.0.1"]

    def test_best_first(self) -> None:
        """IPv4 before IPv6 before link-local, and not without end."""
        assert self.hosts("fe80::1%2", "2001:db8::1", "192.0.2.1") == [
            "192.0.2.1",
            "2001:db8::1",
            "fe80::1%2",
        ]
        assert len(self.hosts(*(f"192.0.2.{n}" for n in range(1, 100)))) == 8


def test_instance_name_fits_its_label() -> None:
    """A DNS label has at most 63 bytes."""
    assert instance_name("a1" * 32) == f"{'a1' * 16}._colonyd._tcp.local."
