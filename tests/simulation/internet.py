"""The internet of a simulated world: addresses that change hands, routers with NAT, and a DHT.

Connections, dial-back, mailboxes, the finder and the look-up are those of the daemon. Simulated is
what they call: a handshake, a request, the machine's addresses, and a node of the DHT.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from typing import Any

import httpx
import trio

from federation.dht import wide
from federation.dht.node import Answer, Event, TableSize
from federation.network.interfaces import Network as OwnNetwork
from federation.peers import owncard
from federation.peers.registry import PeerState
from federation.service.main import Federation
from federation.transport import connection, dial
from federation.transport.connection import PeerConnection
from federation.transport.errors import Lost, Unsent
from federation.transport.tls import TlsError, fingerprint_of
from federation.wire.address import host_of
from node.host.config import FederationConfig
from node.http.pool import NoAnswer, NotSent, PoolReply
from node.http.server import Request, Response
from node.runtime.node import Node
from node.tasks.containment import keep_going
from tests.simulation.client import MemoryClient
from tests.simulation.colony import SimulatedFederation, Site, T
from tests.simulation.network import Gone, Network
from tests.simulation.world import World

__all__ = ["DhtCost", "Internet", "Roamer", "plugged"]

_FALSE = "60."  # what the addresses begin with that hostile nodes make up; nobody is there
_OUTER, _INNER = "20.", "192.168.1."
_HANDSHAKE = 5.0  # seconds until one is given up, as `transport.tls` has it
_PATIENCE = 15.0  # seconds without an answer, as `transport.connection` has it
_REUSED = 0.3  # of the addresses that are given out, those that somebody left
_FORGOTTEN = 1800.0  # seconds after which a node forgets an announcement
_ROUND = (0.05, 0.25)  # seconds for a query of the DHT and its answer
_DEAD = 0.1  # of these queries, those to nodes that are gone; libtorrent waits a second for them
_LOST = 0.05  # of the announcements and answers of nearest nodes, those that are lost
_TOLD = 20  # addresses in the answer of a hostile node

# Where the code that runs now does so.
_here: ContextVar[Roamer] = ContextVar("here")


class DhtCost:
    """What the DHT costs each of its nodes, by formula; its routing is not simulated.

    Each round of queries halves the distance at least (as the paper on Kademlia proves), until all
    of the nearest nodes answered: NEAREST + AT_ONCE * log2(nodes / NEAREST) queries at most. An
    announcement is a look-up and a query to each of the nearest. `KEEPING` and `BYTES` are
    libtorrent's, measured; docs/scale.md says how.
    """

    NEAREST, AT_ONCE = 8, 5  # of libtorrent: nodes in a bucket, and queries at the same time
    KEEPING = 12.0  # queries a minute by which a node keeps its table, however large that is
    BYTES = 470  # of a query and its answer, UDP and IP included

    @classmethod
    def hops(cls, nodes: int) -> int:
        """Queries one after the other, at most."""
        return max(1, math.ceil(math.log2(max(2.0, nodes / cls.NEAREST))))

    @classmethod
    def lookup(cls, nodes: int) -> int:
        """Queries of a look-up; each has an answer."""
        return max(0, min(nodes - 1, cls.NEAREST + cls.AT_ONCE * cls.hops(nodes)))

    @classmethod
    def announcement(cls, nodes: int) -> int:
        """Queries of an announcement."""
        return cls.lookup(nodes) + max(0, min(nodes - 1, cls.NEAREST))

    @classmethod
    def table(cls, nodes: int) -> int:
        """Nodes that one knows, at most."""
        return max(0, min(nodes - 1, cls.NEAREST * (cls.hops(nodes) + 1)))


@dataclass
class Dht:
    """What the nodes nearest to each key remember. `hostile` is the share of the nodes that lie.

    `nodes` are the colonies' and those of others.
    """

    world: World
    hostile: float
    nodes: int = 0
    lookups: int = 0
    queries: int = 0  # of all look-ups and announcements, by formula
    # When the nodes had each address for the first time: by key and address.
    announced: dict[tuple[bytes, str], float] = field(default_factory=dict)
    _stored: dict[bytes, list[dict[str, float]]] = field(
        default_factory=lambda: defaultdict(lambda: [{} for _ in range(DhtCost.NEAREST)])
    )

    async def _approach(self) -> None:
        dice = self.world.dice
        hops = range(DhtCost.hops(self.nodes))
        await trio.sleep(sum(dice.uniform(*_ROUND) + (dice.random() < _DEAD) for _ in hops))

    def _is_hostile(self, key: bytes, number: int) -> bool:
        """Whether that node near a key is hostile; it stays so."""
        drawn = sha256(key + bytes([number])).digest()
        return int.from_bytes(drawn[:4], "big") < self.hostile * 2**32

    async def announce(self, site: Roamer, key: bytes) -> None:
        """Have the nearest nodes remember a colony's address."""
        self.queries += DhtCost.announcement(self.nodes)
        address = site.address
        await self._approach()
        now = trio.current_time()
        for number, store in enumerate(self._stored[key]):
            if not self._is_hostile(key, number) and not self.world.chance(_LOST):
                store[address] = now + _FORGOTTEN
        self.announced.setdefault((key, address), now)

    async def ask(
        self, key: bytes, answered: Callable[[Answer], None], lies: Callable[[], list[str]]
    ) -> None:
        """Have the nearest nodes answer, one after the other; the hostile ones with `lies`."""
        self.lookups += 1
        self.queries += DhtCost.lookup(self.nodes)
        await self._approach()
        stores = list(enumerate(self._stored[key]))
        self.world.dice.shuffle(stores)
        for number, store in stores:
            await trio.sleep(self.world.dice.uniform(*_ROUND) / 2)
            if self.world.chance(_LOST):
                continue
            if self._is_hostile(key, number):
                answered(Answer(key, lies()))
            else:
                now = trio.current_time()
                answered(Answer(key, [each for each, until in store.items() if now < until]))


class Internet(Network):
    """`homes` by address ("host:port").

    `strayed` counts the handshakes at addresses that hostile nodes told, by colony and minute.
    """

    def __init__(self, world: World, nursery: trio.Nursery, hostile: float, others: int) -> None:
        super().__init__(world, nursery)
        self.dht = Dht(world, hostile, others)
        self.homes: dict[str, Roamer] = {}
        self.left: list[str] = []  # addresses that nobody has
        self.handshakes = 0
        self.strayed: Counter[tuple[str, int]] = Counter()
        self._lied: dict[str, set[str]] = defaultdict(set)  # to each colony, of no peers of its
        self._given = 0

    def address(self) -> str:
        """Give an address to somebody."""
        if self.left and self.world.chance(_REUSED):
            return self.left.pop(self.world.dice.randrange(len(self.left)))
        self._given += 1
        return _OUTER + ".".join(map(str, (self._given + 300).to_bytes(3, "big")))

    def lies(self, site: Roamer) -> list[str]:
        """What a hostile node tells: addresses of nobody, and of colonies that are not meant."""
        dice = self.world.dice
        told = [
            _FALSE + ".".join(map(str, dice.randbytes(3))) + f":{dice.randint(1, 65535)}"
            for _ in range(_TOLD // 2)
        ]
        others = dice.sample(list(self.homes), min(_TOLD // 2, len(self.homes)))
        told += [each for each in others if self.homes[each].key.id not in site.friends]
        self._lied[site.name].update(told)
        return told

    async def certificate(self, host: str, port: int) -> bytes:
        """As `tls.fetch_certificate`."""
        here, address = _here.get(), f"{host}:{port}"
        self.handshakes += 1
        site = self.homes.get(address)
        if address in self._lied[here.name]:
            self.strayed[here.name, int(trio.current_time() // 60)] += 1
        if site is None or site.hidden or self.world.chance(self.world.faults.drop):
            await trio.sleep(_HANDSHAKE)
            raise TlsError(f"{address}: no TLS handshake within {_HANDSHAKE:g} s")
        await trio.sleep(self.world.dice.uniform(*_ROUND))
        if not site.up:
            raise TlsError(f"{address}: connection refused")
        return site.der

    def pool(self, der: bytes, host: str, port: int) -> Any:
        """As `dial.pool`."""
        return _Pool(self, _here.get(), der, f"{host}:{port}")

    def client(self, der: bytes, host: str, port: int) -> httpx.AsyncClient:
        """As `dial.client`, for the card there."""
        pool = _Pool(self, _here.get(), der, f"{host}:{port}")
        return httpx.AsyncClient(base_url=f"https://{host}:{port}", transport=_Transport(pool))

    def remote(self, source: str) -> str:
        """The IP address that others see of a colony."""
        site = self.sites[source]
        assert isinstance(site, Roamer)
        return site.outer

    @asynccontextmanager
    async def open_node(
        self, hosts: Sequence[str], port: int, bootstrap: Sequence[str], *, mapping: bool = False
    ) -> AsyncIterator[DhtStandIn]:
        """As `node.open_node`; no router here maps ports."""
        self.dht.nodes += 1
        try:
            yield DhtStandIn(self, _here.get())
        finally:
            self.dht.nodes -= 1


@dataclass
class _Pool:
    """Connections to the one who has a certificate, at an address."""

    internet: Internet
    source: Roamer
    der: bytes
    address: str

    async def post(
        self,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        *,
        limit: Callable[[int], int],
        patience: float,
    ) -> PoolReply:
        """As `Pool.post`."""
        site = await self._there(patience)
        moves = site.moves, self.source.moves
        try:
            found = await self.internet.carry(
                self.source.key.id, site.key.id, path, body, patience - _PATIENCE
            )
        except Unsent as error:
            raise NotSent(str(error)) from None
        except Lost as error:
            raise NoAnswer(str(error)) from None
        if moves != (site.moves, self.source.moves):
            raise NoAnswer("the connection hung")  # an end of it moved meanwhile
        headers = {"retry-after": found.retry_after} if found.retry_after else {}
        return PoolReply(found.status, dict(headers), found.data)

    @property
    def remote(self) -> str:
        """As `Pool.remote`."""
        return host_of(self.address)

    async def get(self, path: str, headers: Mapping[str, str]) -> Response:
        """Return what is at a path, such as the card."""
        site = await self._there(_PATIENCE)
        kind = "/".join(path.split("/")[:3])  # without an id
        self.internet.traffic[kind] += 1
        request = Request("GET", path, "", dict(headers), b"", self.source.outer)
        try:
            found: Response = await site.call(site.handle, request)
        except Gone as error:
            raise NoAnswer(str(error)) from None
        self.internet.volume[kind] += len(found.body)
        return found

    async def _there(self, patience: float) -> Roamer:
        site = self.internet.homes.get(self.address)
        if site is None or site.der != self.der:
            # Whoever was there is gone, and what was sent there may have been read before.
            await trio.sleep(patience)
            raise NoAnswer(f"{self.address}: nothing came back")
        return site

    async def aclose(self) -> None:
        """As `Pool.aclose`."""


class _Transport(httpx.AsyncBaseTransport):
    """What httpx sends by, for a card."""

    def __init__(self, pool: _Pool) -> None:
        self.pool = pool

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Return the answer."""
        try:
            found = await self.pool.get(request.url.path, dict(request.headers))
            return httpx.Response(found.status, stream=httpx.ByteStream(bytes(found.body)))
        except NoAnswer as error:
            raise httpx.ReadError(str(error)) from None


class DhtStandIn:
    """A colony's node of the DHT, with the calls of `dht.DhtNode`."""

    def __init__(self, internet: Internet, site: Roamer) -> None:
        self.internet, self.site = internet, site
        self._events: list[Event] = []
        self._told = trio.Event()

    def _tell(self, event: Event) -> None:
        self._events.append(event)
        self._told.set()

    def announce(self, target: bytes, port: int) -> None:
        """Announce our port; the nodes add the address that they see."""
        self.internet.nursery.start_soon(self.internet.dht.announce, self.site, target)

    def ask(self, target: bytes) -> None:
        """Ask for a key."""
        internet = self.internet
        lies = partial(internet.lies, self.site)
        internet.nursery.start_soon(internet.dht.ask, target, self._tell, lies)

    def contact(self, nodes: Sequence[str]) -> None:
        """Say hello to nodes; here all know each other."""

    def listen(self, hosts: Sequence[str], port: int) -> None:
        """Move."""

    def count(self) -> None:
        """Ask for the size of the table."""
        self._tell(TableSize(DhtCost.table(self.internet.dht.nodes)))

    async def saved(self) -> list[str]:
        """The nodes that are known; they are not kept here."""
        return []

    async def events(self) -> list[Event]:
        """Wait until there are events."""
        await self._told.wait()
        self._told = trio.Event()
        found, self._events = self._events, []
        return found


class RoamingFederation(SimulatedFederation):
    """`Federation` on the internet: with its own connections, and without sockets."""

    site: Roamer

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """As the real one, without listeners; the kernel tells of no changes."""
        site = self.site
        self.monitor.look = lambda wanted: site.network_now()
        self.monitor.start()
        async with trio.open_nursery() as watching:
            watching.start_soon(keep_going, "surroundings", self.monitor._watch_network)
            watching.start_soon(keep_going, "greetings after a move", self._move_on)
            await super().run(task_status=task_status)
            watching.cancel_scope.cancel()

    def connection_to(self, entry: PeerState) -> PeerConnection:
        """As the real one."""
        return Federation.connection_to(self, entry)


class Roamer(Site):
    """A colony on the internet. One that is `hidden` is behind a router that lets nobody in."""

    network: Internet

    def __init__(
        self, world: World, internet: Internet, name: str, *, hidden: bool, pace: float
    ) -> None:
        super().__init__(world, internet, name, pace=pace)
        self.hidden = hidden
        self.der = f"certificate of {name}".encode()
        self.friends: set[str] = set()
        self.moves = 0
        self.outer = internet.address()
        internet.homes[self.address] = self

    @property
    def host(self) -> str:
        """Where others see us."""
        return self.outer

    @property
    def fingerprint(self) -> str:
        """That of our certificate."""
        return fingerprint_of(self.der)

    def settings(self) -> FederationConfig:
        """As found in a file with `global = true`."""
        return FederationConfig(
            host="*", discovery=False, introductions=self.introductions, wide=True, map_port=False
        )

    def daemon(self, node: Node, client: MemoryClient) -> SimulatedFederation:
        """One on the internet."""
        return RoamingFederation(self, node, client)

    def network_now(self) -> OwnNetwork:
        """What our machine knows of its own addresses."""
        at = f"{_INNER}{2 + self.moves % 200}" if self.hidden else self.outer
        return OwnNetwork((at,), (at,), (f"{at}/32",), (), ((f"eth{self.moves}", 2),), False)

    def know(self, other: Roamer) -> None:
        """Trust another colony, at its present address."""
        self.befriend(other.name, at=other.address, fingerprint=other.fingerprint)
        self.friends.add(other.key.id)

    def move(self) -> None:
        """Go to another network."""
        internet = self.network
        del internet.homes[self.address]
        before, self.outer = self.outer, internet.address()
        internet.left.append(before)
        internet.homes[self.address] = self
        self.moves += 1
        self.world.fault("move", self.name, self.outer)
        if self.federation is not None:
            self.federation.monitor.stir()

    async def run(self) -> None:
        """As of any site, and known as this one to all that runs in it."""
        _here.set(self)
        await super().run()

    async def call(self, function: Callable[..., Any], *args: Any) -> T:
        """As of any site; whoever asks, it happens here."""

        async def here(*args: Any) -> Any:
            _here.set(self)
            return await function(*args)

        return await super().call(here, *args)


async def _at_once(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """As `trio.to_thread.run_sync`, in no thread: time would go on meanwhile, or not."""
    await trio.lowlevel.checkpoint()
    return function(*args)


@contextmanager
def plugged(internet: Internet) -> Iterator[None]:
    """Have the daemons of this program use this internet instead of sockets."""
    replaced: list[tuple[Any, str, Any]] = [
        (dial, "fetch_certificate", internet.certificate),
        (dial, "client", internet.client),
        (connection, "pool", internet.pool),
        (owncard, "survey", lambda wanted: _here.get().network_now()),
        (wide, "open_node", internet.open_node),
        (trio.to_thread, "run_sync", _at_once),
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in replaced]
    try:
        for module, name, value in replaced:
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
