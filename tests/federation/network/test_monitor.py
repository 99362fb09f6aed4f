"""What is noticed of the surroundings, and what of an announcement is tried first."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import msgspec
import pytest
import trio
from zeroconf import DNSPointer, RecordUpdate, Zeroconf  # type: ignore[attr-defined]

from federation.network.interfaces import Network
from federation.network.mdns import FloodGuard, SightingQueue, sightings
from federation.network.monitor import NetworkMonitor
from federation.peers.record import Peer, PeerState
from node.host.clock import ClockSample

NETWORK = Network(("192.0.2.1", 2), ("192.0.2.1",), ("192.0.2.0/24",), (2,), (("eth0", 2),), False)


class Transport:
    """Notes what hears for it."""

    def __init__(self) -> None:
        self.protocols: list[object] = []

    def set_protocol(self, protocol: object) -> None:
        self.protocols.append(protocol)


class Clocks:
    """Three clocks that a test moves; `NetworkMonitor` looks at them each second."""

    def __init__(self) -> None:
        self.set = self.slept = 0.0

    def __call__(self) -> ClockSample:
        steady = trio.current_time()
        return ClockSample(1e9 + steady + self.slept + self.set, steady, steady + self.slept)


@pytest.mark.parametrize(("what", "moves"), [("set", 0), ("slept", 1)])
async def test_a_clock_that_was_set_leaves_connections_alone(
    what: str, moves: int, autojump_clock: trio.abc.Clock, nursery: trio.Nursery
) -> None:
    """Peers are told either way; only after sleep may connections be dead."""
    clocks = Clocks()
    around = NetworkMonitor(look=lambda _: NETWORK, clocks=clocks)
    around.start()
    nursery.start_soon(around.run)
    await trio.sleep(5)
    event = around.wakeup.event
    setattr(clocks, what, 3600.0)
    with trio.fail_after(5):
        await event.wait()
    assert around.moves == moves


async def test_another_network_is_a_move(
    autojump_clock: trio.abc.Clock, nursery: trio.Nursery
) -> None:
    now = [NETWORK]
    around = NetworkMonitor(look=lambda _: now[0], clocks=Clocks())
    around.start()
    nursery.start_soon(around.run)
    await trio.sleep(1)
    event = around.wakeup.event
    now[0] = msgspec.structs.replace(NETWORK, addresses=("192.0.2.9",))
    around.stir()
    with trio.fail_after(50):
        await event.wait()
    assert around.moves == 1


def test_the_best_address_of_the_latest_announcement_is_tried_first() -> None:
    """On our own network by IPv4, then link-local, then what is further away."""
    text = {b"v": b"1", b"id": b"a" * 64, b"fp": b"f" * 64}
    queue, entry = SightingQueue(lambda: None), PeerState(Peer("a" * 64))
    queue.put(sightings(text, ["192.0.2.7"], 50081, NETWORK))
    queue.put(sightings(text, ["198.51.100.8", "fe80::8%2", "192.0.2.8"], 50081, NETWORK))
    for sighting in queue.take():
        entry.sight(sighting.address)
    assert entry.addresses() == [
        "192.0.2.8:50081",
        "[fe80::8%2]:50081",
        "198.51.100.8:50081",
        "192.0.2.7:50081",
    ]


@pytest.mark.parametrize(
    ("packets", "apart", "flooded"),
    [
        (300, 1, False),  # a large fleet that answers us
        (20_000, 100, False),  # a busy network, for half an hour
        (800, 1, True),
        (4_000, 10, True),
    ],
)
def test_a_flood_is_more_than_a_network_has_to_tell(
    packets: int, apart: int, flooded: bool
) -> None:
    """By how much is heard (6 records in a packet), be it new or not; `apart` is in ms."""
    queue = SightingQueue(lambda: None)
    counter = FloodGuard(queue)
    record = DNSPointer("_colonyd._tcp.local.", 12, 1, 4500, "a._colonyd._tcp.local.")
    known = [RecordUpdate(record, record)] * 6
    transport = Transport()
    zc = SimpleNamespace(engine=SimpleNamespace(readers=[SimpleNamespace(transport=transport)]))
    for number in range(packets):
        counter.async_update_records(cast(Zeroconf, zc), 1e6 + number * apart, known)
    assert queue.flooded is flooded
    assert len(transport.protocols) == flooded, "who floods us is heard no more, at once"
