"""Probes of peers that are away: few, ever rarer, and at once when something says they are back."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec
import pytest
import trio
from trio.testing import MockClock

from colonyd.keys import PrivateKey
from federation.forward.machine import Forward
from federation.membership.probe import Prober
from federation.outbox.entries import OutboxEntry
from federation.peers.context import Context
from federation.peers.keys import Keys
from federation.peers.registry import TRUSTED, Peer, PeerState
from federation.transport.connection import PeerConnection
from federation.transport.errors import Unsent
from federation.wire.card import Card, sign_card
from federation.wire.clock import SigningClock
from federation.wire.signer import Signer
from node.etcd.client import EtcdClient, open_client
from node.model.codec import pack
from node.tasks.sync import WakeUps
from tests.federation.peers.support import registry
from tests.support.daemons import Daemon
from tests.support.pairs import store_target
from tests.support.parts import ledger_of

HOUR = 3600.0


@dataclass
class Away:
    """The way to a peer that is away; it takes `seconds` to find that out."""

    entry: PeerState
    seconds: float = 0.0
    tries: list[float] = field(default_factory=list)
    busy: list[int] = field(default_factory=lambda: [0, 0])  # now, and at most

    @property
    def id(self) -> str:
        return self.entry.peer.id

    async def connect(self) -> None:
        self.tries.append(trio.current_time())
        self.busy[0] += 1
        self.busy[1] = max(self.busy)
        try:
            await trio.sleep(self.seconds)
        finally:
            self.busy[0] -= 1
        raise Unsent("connection refused")


def prober(count: int, **fields: Any) -> tuple[Prober, list[Away]]:
    """A prober of so many peers that are away."""
    peers = registry(
        *(Peer(f"{number:064x}", TRUSTED, "bee", b"key", 1) for number in range(count))
    )
    none, keys = cast(Any, None), Keys("ant")
    signer = Signer(PrivateKey.generate(), SigningClock())
    context = Context("ant", signer, none, none, peers, keys, random.Random(1))
    ways = {pid: Away(entry, **fields) for pid, entry in peers.known.items()}
    connections = cast(dict[str, PeerConnection], ways)
    return Prober(context, ledger_of(context), none, none, WakeUps(), connections), [*ways.values()]


async def test_a_peer_that_is_away_is_tried_ever_more_rarely(autojump_clock: MockClock) -> None:
    probes, (away,) = prober(1)
    with trio.move_on_after(HOUR):
        await probes.probe_forever(cast(PeerConnection, away))
    early = [at for at in away.tries if at - away.tries[0] < 30]
    assert len(early) >= 4, "a peer that is away for a moment is found again soon"
    assert len(away.tries) < 30
    gaps = [later - at for at, later in zip(away.tries[-6:], away.tries[-5:], strict=False)]
    assert all(120 <= gap <= 300 for gap in gaps)


async def test_a_peer_that_owes_something_is_tried_twice_a_minute(
    autojump_clock: MockClock,
) -> None:
    probes, (away,) = prober(1)
    probes.outbox.entries["1" * 64] = OutboxEntry(Forward("1" * 64, away.id, 1, 9, 9, 9), 1)
    with trio.move_on_after(HOUR):
        await probes.probe_forever(cast(PeerConnection, away))
    assert len(away.tries) >= 100


async def test_a_sign_of_a_peer_has_it_tried_at_once(autojump_clock: MockClock) -> None:
    probes, (away,) = prober(1)
    with trio.move_on_after(3 * HOUR):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(probes.probe_forever, cast(PeerConnection, away))
            await trio.sleep(2 * HOUR)
            before, now = len(away.tries), trio.current_time()
            probes.probes[away.id].wake()
            await trio.sleep(30)
            assert away.tries[before] == now
            assert len(away.tries) >= before + 4, "and a few times soon after that"
            nursery.cancel_scope.cancel()


async def test_a_wake_up_tells_all_that_the_peer_is_back(autojump_clock: MockClock) -> None:
    """Whoever reached it first has cleared the error: its tasks must still hear of it."""
    probes, (away,) = prober(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(probes.probe_forever, cast(PeerConnection, away))
        await trio.sleep(HOUR)

        async def hello(connection: PeerConnection) -> float:
            return 0.0

        probes.hello = hello  # type: ignore[method-assign]
        away.entry.error = ""
        returned = probes.outbox.returned(away.id).event
        probes.probes[away.id].wake()
        with trio.fail_after(1):
            await returned.wait()
        nursery.cancel_scope.cancel()


async def test_many_peers_that_are_away_are_tried_a_few_at_a_time(
    autojump_clock: MockClock,
) -> None:
    probes, ways = prober(200, seconds=5.0, busy=[0, 0])
    with trio.move_on_after(HOUR / 2):
        async with trio.open_nursery() as nursery:
            for away in ways:
                nursery.start_soon(probes.probe_forever, cast(PeerConnection, away))
    assert ways[0].busy[1] <= 64
    assert all(away.tries for away in ways)
    tries = sorted(at for away in ways for at in away.tries)
    late = [at for at in tries if at > tries[0] + HOUR / 4]
    assert len(late) <= 2 * HOUR / 4, "at rest, two in a second"


# -- with a daemon ---------------------------------------------------------------------------


class ClosedDoor:
    """A port at which every connection is closed at once; `times` has when each one came."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._came = threading.Condition()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                self._listener.accept()[0].close()
                with self._came:
                    self.times.append(time.monotonic())
                    self._came.notify_all()

    def wait(self, count: int) -> None:
        """Return once so many have come."""
        with self._came:
            assert self._came.wait_for(lambda: len(self.times) >= count, 100)

    def close(self) -> None:
        """Listen no longer."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)


async def befriend(client: EtcdClient, home: str, count: int, port: int) -> None:
    """Let a store have so many trusted peers, all said to be at one port."""
    names, now = Keys(home), int(time.time())
    for number in range(count):
        key = PrivateKey.generate()
        where = [f"127.0.0.1:{port}"]
        card = Card(
            key.id, key.public_key, f"bee-{number}", now, "f" * 64, where, [2], now + 86_400
        )
        peer = Peer(key.id).described(card, sign_card(key, card))
        await client.put(names.peer(key.id), pack(msgspec.structs.replace(peer, state=TRUSTED)))


@pytest.mark.slow
def test_a_daemon_has_one_task_that_tries_a_peer_that_is_away(
    make_daemon: Callable[..., Daemon],
) -> None:
    """Hellos, polls, statements and introductions each had a connection of their own at once."""
    door = ClosedDoor()
    daemon = make_daemon("ant", COLONYD_FEDERATION__DISCOVERY="false").start()

    async def fill() -> None:
        async with open_client(store_target(daemon)) as client:
            await befriend(client, "ant", 1, door.port)

    trio.run(fill)
    daemon.stop()
    daemon.start()
    door.wait(4)
    daemon.kill()
    door.close()
    # The pauses between the tries are at least 0.5, 1 and 2 s long.
    assert door.times[3] - door.times[0] >= 3
