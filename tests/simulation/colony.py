"""One simulated colony: a store that lasts, and the daemons that serve it one after the other.

A daemon is the real `Node` with the real `Federation`; users, executors and foes are in `actors`.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import trio

from colonyd.errors import RpcError
from federation.peers.keys import Keys
from federation.peers.policy import Policy
from federation.peers.record import Peer
from federation.peers.registry import TRUSTED, PeerState
from federation.service.main import Federation
from federation.transport.connection import PeerConnection
from federation.wire.card import VERSION, Card, sign_card
from federation.wire.clock import SigningClock
from federation.wire.envelope import MAX_LIFETIME
from node.etcd.errors import EtcdError
from node.etcd.txn import Put, Txn
from node.etcd.watch import Event, WatchBatch
from node.host.clock import Clock
from node.host.config import Config, FederationConfig, RouteConfig
from node.http.server import Request, Response
from node.model.codec import pack
from node.model.types import Colony, Executor, ExecutorState, User
from node.processes.deadlines import expire
from node.runtime.feeds import take_in
from node.runtime.node import Node
from node.store import keys
from tests.simulation.client import MemoryClient
from tests.simulation.network import Gone, Network, SimulatedLink
from tests.simulation.store import Change, MemoryStore
from tests.simulation.world import EPOCH, Killed, World, key_of
from tests.support.parts import Led

__all__ = ["FINGERPRINT", "PORT", "WORKERS", "Site"]

FINGERPRINT = "f" * 64
PORT = 50081
WORKERS = 2
TYPE = "cli"  # of every executor
_LONGEST_DRAIN = 5.0
_QUIET = 30.0  # seconds
T = TypeVar("T")


class SimulatedFederation(Federation):
    """`Federation` without sockets: links go through the network, periodic work is less often."""

    def __init__(self, site: Site, node: Node, client: MemoryClient) -> None:
        config = Config(federation=site.settings(), routes=site.routes)
        super().__init__(
            site.name,
            site.key,
            client,
            node.processes,
            node.assigner,
            config,
            Path("/nowhere"),
            SigningClock(site.now, trio.current_time),
            node.members,
            chance=random.Random(site.world.dice.random()),
        )
        self.site = site

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """As the real one, without listeners."""
        await self._load()
        self.fingerprint, self.port = self.site.fingerprint, PORT
        await self.own_card.start(PORT, self.site.fingerprint)
        await self.work(task_status)

    async def _every(self, seconds: float, action: Callable[[], Awaitable[None]]) -> None:
        await super()._every(max(seconds, self.site.pace), action)

    async def _exchange_forever(self, connection: PeerConnection) -> None:
        if self.site.talks:
            await super()._exchange_forever(connection)
        await trio.sleep_forever()

    async def _probe_forever(self, connection: PeerConnection) -> None:
        if not self.site.talks:
            with trio.move_on_after(_QUIET):
                await self.probes[connection.id].event.wait()
        await super()._probe_forever(connection)

    def sight_again(self) -> None:
        """As when colonies are seen again that did not answer, or have something of ours."""
        for peerid, connection in self.connections.items():
            if connection.entry.error or any(True for _ in self.outbox.of_peer(peerid)):
                self.probes[peerid].wake()

    def connection_to(self, entry: PeerState) -> PeerConnection:
        """A way through the network."""

        connection = SimulatedLink(entry, self.signer, Led())
        connection.network, connection.source = self.site.network, self.site.key.id
        return connection


class Site:
    """Where a colony lives. `pace` is the seconds between looks at deadlines."""

    def __init__(
        self, world: World, network: Network, name: str, *, skew: float = 0.0, pace: float = 5.0
    ) -> None:
        self.world, self.network, self.name = world, network, name
        self.key = key_of(name)
        self.user = key_of(f"{name} user")
        self.skew, self.pace = skew, pace
        self.hops = 1
        self.absence = 0.0  # seconds that the next daemon is late
        # Says hello at the start, and what it offers: half of all messages of a short story.
        self.talks = True
        self.routes: list[RouteConfig] = []
        self.introductions: Literal["pending", "trust", "off"] = "off"
        self.store = MemoryStore()
        self.keys = Keys(name)
        self.up = False
        self.frozen = False
        self.kills = 0
        self.node: Node | None = None
        self.federation: SimulatedFederation | None = None
        self.arrived = trio.Event()  # set while the daemon is up
        self._nursery: trio.Nursery | None = None
        self._life: trio.CancelScope | None = None
        self._client: MemoryClient | None = None
        network.sites[self.key.id] = self

    @property
    def host(self) -> str:
        """The name under which peers know the address."""
        return f"{self.name}.example"

    @property
    def address(self) -> str:
        """Where peers connect to."""
        return f"{self.host}:{PORT}"

    @property
    def fingerprint(self) -> str:
        """That of its certificate."""
        return FINGERPRINT

    def settings(self) -> FederationConfig:
        """The section [federation] of its configuration."""
        return FederationConfig(
            host=self.host, discovery=False, hops=self.hops, introductions=self.introductions
        )

    def daemon(self, node: Node, client: MemoryClient) -> SimulatedFederation:
        """Make the federation of one daemon."""
        return SimulatedFederation(self, node, client)

    def now(self) -> int:
        """Unix ns by this colony's clock."""
        return self.world.now(self.skew)

    # -- furnishing ------------------------------------------------------------------------

    def furnish(self) -> None:
        """Put the colony and its members into the store."""
        workers = [self.worker(number) for number in range(WORKERS)]
        puts = [
            Put(keys.colony(self.name), pack(Colony(self.key.id, self.name))),
            Put(keys.user(self.name, "user"), pack(User(self.name, self.user.id, "user"))),
            *(Put(keys.executor(self.name, each.executorname), pack(each)) for each in workers),
        ]
        self.store.commit(Txn([], puts))

    def worker(self, number: int) -> Executor:
        """One of the colony's executors."""
        name = f"worker-{number}"
        identity = key_of(f"{self.name} {name}").id
        return Executor(identity, TYPE, name, self.name, state=ExecutorState.APPROVED)

    def befriend(
        self, name: str, policy: Policy | None = None, at: str = "", fingerprint: str = FINGERPRINT
    ) -> None:
        """Trust another colony, before the first daemon starts."""
        key, at = key_of(name), at or f"{name}.example:{PORT}"
        card = _first_card(name, at, fingerprint)
        peer = Peer(
            key.id, TRUSTED, name, key.public_key, 0, fingerprint, [at], card, policy=policy
        )
        self.store.commit(Txn([], [Put(self.keys.peer(key.id), pack(peer))]))

    # -- the daemon's life -----------------------------------------------------------------

    async def run(self) -> None:
        """Start a daemon whenever there is none, for ever."""
        while True:
            try:
                await self._live()
            except* Killed:
                pass
            except* (EtcdError, RpcError) as group:
                # The store was away while it started: its supervisor starts it again.
                self.world.note(self.name, "did not start", group.exceptions[0])
            self._ended()
            await trio.sleep(self.absence or self.world.dice.choice((0.0, 0.5, 2.0, 10.0)))
            self.absence = 0.0

    async def _live(self) -> None:
        self._client = MemoryClient(
            self.store, self.world, self.name, self.kill, lambda: self.frozen
        )
        self.node = node = Node.build(self._client, self.name, Clock(self.now))
        async with trio.open_nursery() as nursery:
            self._nursery, self._life = nursery, nursery.cancel_scope
            if self._client.dead:
                raise Killed
            await nursery.start(self._follow, node)
            nursery.start_soon(self._deadlines, node)
            self.federation = self.daemon(node, self._client)
            node.processes.attach(self.federation.hooks)
            await nursery.start(self.federation.run)
            if self._client.dead:
                raise Killed
            self.up = True
            self.world.note(self.name, "up")
            self.arrived.set()
            await self.federation.drain.wait()
            self.up = False
            node.drain()
            await trio.sleep(_LONGEST_DRAIN)
            self.world.note(self.name, "stopped")
            nursery.cancel_scope.cancel()

    def _ended(self) -> None:
        self.up = False
        if self.arrived.is_set():
            self.arrived = trio.Event()
        if self._client is not None:
            self._client.dead = True

    def kill(self) -> None:
        """As by SIGKILL."""
        self.kills += 1
        self._ended()
        if self._life is not None:
            self._life.cancel()

    def stop(self) -> None:
        """As by SIGTERM."""
        if self.federation is not None:
            self.federation.drain.set()

    async def _deadlines(self, node: Node) -> None:
        while True:
            try:
                await expire(node.processes, node.assigner)
            except (EtcdError, RpcError) as error:
                self.world.note(self.name, "deadlines wait", error)
            await trio.sleep(self.pace)

    async def _follow(
        self, node: Node, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Feed the indexes from the store, as the watch does: late, in order, sometimes anew."""
        news: list[tuple[int, list[Change]]] = []
        wakeup = trio.Event()

        def observe(revision: int, changes: list[Change]) -> None:
            live = [change for change in changes if change.key.startswith(keys.LIVE)]
            if live:
                news.append((revision, live))
                wakeup.set()

        self.store.observers.append(observe)
        try:
            for prefix in (keys.MEMBERS, keys.LIVE):
                self._list(node, prefix)
            task_status.started()
            while True:
                await wakeup.wait()
                wakeup = trio.Event()
                if self.world.chance(self.world.faults.slow):
                    await trio.sleep(self.world.dice.random())
                if self.world.chance(self.world.faults.watch):
                    self.world.fault("watch", self.name)
                    news.clear()
                    self._list(node, keys.LIVE)
                taken, news[:] = news[:], []
                for revision, changes in taken:
                    events = [
                        Event(each.key, each.after.value if each.after else None, revision)
                        for each in changes
                    ]
                    take_in(node, keys.LIVE, WatchBatch(False, events, revision))
        finally:
            self.store.observers.remove(observe)

    def _list(self, node: Node, prefix: str) -> None:
        events = [
            Event(item.key, item.value, item.mod_revision) for item in self.store.items(prefix)
        ]
        take_in(node, prefix, WatchBatch(True, events, self.store.revision))

    # -- talking to it ---------------------------------------------------------------------

    async def call(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Run something inside the daemon. Raises Gone when that dies before it is done.

        A caller that is cancelled hangs up: the daemon notices, or works on for nothing.
        """
        if not self.up or self._nursery is None:
            raise Gone("connection refused")
        slot = _Slot()
        self._nursery.start_soon(slot.run, function, args)
        try:
            await slot.done.wait()
        except trio.Cancelled:
            if self.world.chance(0.5):
                slot.scope.cancel()
            raise
        if slot.error is not None:
            raise slot.error
        if not slot.values:
            raise Gone("connection reset")
        answer: T = slot.values[0]
        return answer

    async def handle(self, request: Request) -> Response:
        """Answer a peer."""
        assert self.federation is not None
        return await self.federation.server.handle(request)


class _Slot:
    """A call under way inside a daemon."""

    def __init__(self) -> None:
        self.done, self.scope = trio.Event(), trio.CancelScope()
        self.values: list[Any] = []
        self.error: Exception | None = None

    async def run(self, function: Callable[..., Awaitable[Any]], args: tuple[Any, ...]) -> None:
        try:
            with self.scope:
                self.values.append(await function(*args))
        except Exception as error:
            self.error = error
        finally:
            self.done.set()


@lru_cache(maxsize=4096)
def _first_card(name: str, at: str, fingerprint: str) -> bytes:
    key, until = key_of(name), EPOCH + MAX_LIFETIME
    card = Card(key.id, key.public_key, name, 0, fingerprint, [at], [VERSION], until)
    return sign_card(key, card)
