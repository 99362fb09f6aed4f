"""Federation as one service: listener, discovery, and the tasks of every trusted peer.

It joins the node through its hooks and does the wiring; each capability is in a module of its own.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from federation import outbox
from federation.card import open_card
from federation.delivery import Delivery
from federation.discovery import Advert, Sighting, discover
from federation.envelope import Kind, Refused
from federation.gate import MAX_BODY, Gate, is_near
from federation.inbox import Inbox
from federation.keys import Keys
from federation.ledger import Bell, Ledger
from federation.messages import Hello, Sealer, load
from federation.peers import BLOCKED, PENDING, TRUSTED, Known, Peers
from federation.portrait import Portrait
from federation.results import Results
from federation.tls import make_certificate, server_context
from federation.transport import Link, TransportError, Unsent, fetch_card, split_address
from node.config import Config
from node.errors import RpcError, conflict
from node.etcd.client import EtcdClient
from node.etcd.errors import EtcdError
from node.hooks import Addition, Hooks
from node.identity import PrivateKey
from node.log import get_logger
from node.model import Process
from node.processes import Processes
from node.rpc.http import Limits, bound_port, open_listeners, serve_http

__all__ = ["Federation"]

_PROBE = 30.0  # seconds between hellos
_TICK = 0.5  # seconds between looks at deadlines
_CLOCK = 60.0
_SWEEP = 3600.0
_FETCH_AGAIN = 20.0  # seconds between fetches of one stranger's card
_FETCHES = 4  # at a time
_FLUSH = 3.0  # seconds to finish what is on its way when draining
_EXPECTED = (TransportError, EtcdError, RpcError, Refused)

log = get_logger("federation")


class Federation(Hooks):
    """The federation of one home colony. `now` gives Unix ns; set `drain` to end `run`."""

    def __init__(
        self,
        home_name: str,
        key: PrivateKey,
        client: EtcdClient,
        processes: Processes,
        config: Config,
        directory: Path,
        now: Callable[[], int],
    ) -> None:
        self.home, self.key, self.client, self.config = home_name, key, client, config
        self.directory, self.now = directory, now
        self.keys = Keys(home_name)
        self.sealer = sealer = Sealer(key, now)
        lan = config.federation.trust == "lan"
        self.peers = Peers(client, self.keys, key.id, lan, changed=self._changed)
        self.ledger = Ledger(home_name, sealer, client, processes, self.peers, self.keys)
        self.delivery = Delivery(self.ledger, sealer)
        self.results = Results(self.ledger, sealer, self.high_water)
        self.inbox = Inbox(home_name, sealer, client, processes, self.peers, self.keys)
        self.portrait = Portrait(home_name, sealer, client, self.keys, config.federation)
        self.gate = Gate(
            sealer, self.peers, self.inbox, self.portrait.card, self._greeted, self.high_water
        )
        self.drain = trio.Event()
        self.port = 0
        self.fingerprint = ""
        self.links: dict[str, Link] = {}
        self._scopes: dict[str, trio.CancelScope] = {}
        self._probes: dict[str, Bell] = {}
        self._nursery: trio.Nursery | None = None
        self._highest = 0.0
        self._fetched: dict[str, float] = {}
        self._fetching = trio.CapacityLimiter(_FETCHES)
        self._chance = random.Random()

    # -- hooks of the node ---------------------------------------------------------------

    def peer_of(self, colonyname: str) -> str | None:
        """Id of the trusted peer that `colonyname` names; never for the home colony's name."""
        return None if colonyname == self.home else self.peers.named(colonyname)

    def forwarding(self, process: Process) -> Addition:
        """The outbox entry that joins a submission."""
        return self.ledger.forwarding(process)

    def cancelling(self, process: Process) -> Addition:
        """The outbox entry that joins a cancel."""
        return self.ledger.cancelling(process)

    def removable(self, process: Process) -> str:
        """Why a process of another colony must stay, or ""."""
        return self.inbox.removable(process)

    def submitted(self, process: Process) -> None:
        """Wake the sender."""
        self.ledger.touched(process)

    def closed(self, process: Process) -> None:
        """Wake the poll of the colony that a process came from."""
        if process.origin and process.notify:
            self.inbox.closed(process)

    # -- running -------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve and speak to peers until `drain` is set. Raises OSError when the port is taken."""
        await self._load()
        settings = self.config.federation
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        certificate, key, self.fingerprint = make_certificate(self.directory)
        context = server_context(certificate, key)
        listeners = await open_listeners(settings.host, settings.port, context)
        self.port = bound_port(listeners)
        await self.portrait.start(self.port, self.fingerprint)
        limits = Limits(max_body=MAX_BODY, max_connections=512)
        async with trio.open_nursery() as outer:
            serve = functools.partial(serve_http, limits=limits, drain=self.drain, grace=_FLUSH)
            await outer.start(
                functools.partial(serve, self.gate.handle, listeners, error=self.gate.refuse)
            )
            async with trio.open_nursery() as inner:
                self._nursery = inner
                self._start(inner)
                log.info("federation ready", port=self.port, id=self.key.id)
                task_status.started()
                await self.drain.wait()
                self.inbox.drain()
                with trio.move_on_after(_FLUSH):
                    await self.ledger.wait_idle()
                self._nursery = None
                inner.cancel_scope.cancel()

    def _start(self, nursery: trio.Nursery) -> None:
        nursery.start_soon(self._every, _TICK, self.delivery.expire)
        nursery.start_soon(self._every, _CLOCK, self._keep_clock)
        nursery.start_soon(self._every, _SWEEP, self._sweep)
        if self.config.federation.discovery:
            nursery.start_soon(self._discover)
        for peer in self.config.peers:
            nursery.start_soon(self._meet, peer.url, peer.id)
        for entry in self.peers.trusted():
            self._changed(entry.peer.id)

    async def _load(self) -> None:
        remembered = await self.client.get(self.keys.clock)
        self._highest = float(remembered.value) if remembered else 0.0
        await self.peers.load()
        await self.inbox.load()
        await self.ledger.load()

    async def _every(self, seconds: float, action: Callable[[], Awaitable[None]]) -> None:
        """Run `action` again and again; what goes wrong is logged and tried at the next turn."""
        while True:
            try:
                await action()
            except Exception as error:
                log.warning("background task", task=action.__name__, error=repr(error))
            await trio.sleep(seconds)

    # -- clock ------------------------------------------------------------------

    def high_water(self) -> float:
        """The latest wall-clock time remembered, in seconds."""
        return self._highest

    async def _keep_clock(self) -> None:
        now = self.now() / 1e9
        if now > self._highest:
            await self.client.put(self.keys.clock, f"{now:.0f}".encode())
            self._highest = now
        if await self.portrait.moved():
            self.greet_all()

    async def _sweep(self) -> None:
        await self.inbox.sweep()
        for prefix in (self.keys.proofs, self.keys.lates):
            listing = await self.client.range(prefix, limit=1000, keys_only=True)
            for item in listing.items:
                pid = item.key[len(prefix) :]
                if await self.inbox.processes.load(self.home, pid) is None:
                    await self.client.delete(item.key)

    # -- meeting colonies ----------------------------------------------------------------

    async def _discover(self) -> None:
        sender, receiver = trio.open_memory_channel[Sighting](64)
        advert = Advert(self.key.id, self.fingerprint, self.port, self.portrait.announced)
        interfaces = self.config.federation.interfaces
        async with trio.open_nursery() as nursery, receiver:
            nursery.start_soon(lambda: discover(advert, sender, interfaces=interfaces))
            async for sighting in receiver:
                self._sighted(sighting, nursery)

    def _sighted(self, sighting: Sighting, nursery: trio.Nursery) -> None:
        host = f"[{sighting.host}]" if ":" in sighting.host else sighting.host
        address = f"{host}:{sighting.port}"
        entry = self.peers.sighted(sighting.id, address)
        if entry is None:
            return
        if entry.peer.state == TRUSTED:
            self._probe_bell(sighting.id).ring()
            return
        # Keyed by address as well: a false hint must not keep us from a true one.
        place, now = f"{sighting.id}@{address}", trio.current_time()
        if now - self._fetched.get(place, -_FETCH_AGAIN) < _FETCH_AGAIN:
            return
        if len(self._fetched) > 512:
            self._fetched.clear()
        self._fetched[place] = now
        nursery.start_soon(self._fetch_quietly, address, sighting.id)

    async def _fetch_quietly(self, address: str, peerid: str) -> None:
        try:
            async with self._fetching:
                await self.fetch(address, peerid)
        except _EXPECTED as error:
            entry = self.peers.get(peerid)
            if entry is not None and entry.peer.state != TRUSTED:
                entry.error = str(error)
            log.info("card not fetched", address=address, error=error)

    async def fetch(self, address: str, peerid: str = "", *, unblock: bool = False) -> Known | None:
        """Fetch the card at an address and take it in; `peerid`, if given, must be its id.

        Raises TransportError. None for a blocked colony or ourselves.
        """
        card, data = await fetch_card(address, self.sealer, self._highest)
        if peerid and card.id != peerid:
            raise Unsent(f"{address}: another colony lives there ({card.id[:12]})")
        near = is_near(split_address(address)[0])
        entry = await self.peers.learn(card, data, near=near, unblock=unblock)
        if entry is not None:
            entry.sight(address.removeprefix("https://").rstrip("/"))
            entry.error = ""
        return entry

    async def _meet(self, url: str, peerid: str) -> None:
        """Introduce a colony of the configuration; its address is a hint like any other."""
        tries = 0
        while True:
            try:
                entry = await self.fetch(url, peerid)
                if entry is not None and entry.peer.state in (PENDING, TRUSTED):
                    tries = 0
            except (*_EXPECTED, ValueError) as error:
                tries += 1
                log.info("configured peer not reached", url=url, error=error)
            pause = min(60.0, outbox.delay(tries, self._chance)) if tries else 60.0
            await trio.sleep(pause)

    # -- peers ---------------------------------------------------------------------------

    def _changed(self, peerid: str) -> None:
        """Start or end the tasks of a peer, as its state now demands."""
        trusted = self.peers.state(peerid) == TRUSTED
        entry = self.peers.get(peerid)
        if trusted and entry is not None and self._nursery is not None:
            if peerid not in self._scopes:
                scope = self._scopes[peerid] = trio.CancelScope()
                self._nursery.start_soon(self._serve_peer, entry, scope)
        elif not trusted and peerid in self._scopes:
            self._scopes.pop(peerid).cancel()

    async def _serve_peer(self, entry: Known, scope: trio.CancelScope) -> None:
        link = self.link_to(entry)
        self.links[link.id] = link
        try:
            with scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._supervised, self.delivery.send_forever, link)
                    nursery.start_soon(self._supervised, self.results.poll_forever, link)
                    nursery.start_soon(self._supervised, self._probe_forever, link)
        finally:
            if self.links.get(link.id) is link:
                del self.links[link.id]
            await link.close()

    async def _supervised(self, task: Callable[[Link], Awaitable[None]], link: Link) -> None:
        """One peer's trouble never becomes the daemon's."""
        while True:
            try:
                await task(link)
            except Exception:
                log.exception("peer task failed", task=task.__name__, peer=link.id)
            for entry in self.ledger.of_peer(link.id):
                entry.busy = False
            await trio.sleep(1)

    def link_to(self, entry: Known) -> Link:
        """A way to a peer; the caller closes it."""

        async def renew(address: str) -> None:
            await self.fetch(address, entry.peer.id)

        return Link(entry, self.sealer, renew, self.high_water)

    def _probe_bell(self, peerid: str) -> Bell:
        return self._probes.setdefault(peerid, Bell())

    def greet_all(self) -> None:
        """Say hello to every trusted peer now."""
        for peerid in self.links:
            self._probe_bell(peerid).ring()

    def _greeted(self, peerid: str) -> None:
        """A trusted peer said hello: it is back, so do not wait any longer."""
        entry = self.peers.get(peerid)
        if entry is None:
            return
        entry.lastseen = self.sealer.seconds
        self.ledger.retry_now(peerid)
        if entry.error:
            self._probe_bell(peerid).ring()

    async def hello(self, link: Link) -> float:
        """Exchange signed hellos; returns the round trip in seconds. Raises TransportError."""
        await link.connect()
        begin = trio.current_time()
        body = self.sealer.seal(Kind.HELLO, link.id, Hello(self.portrait.card()))
        opened, _ = await link.post("/v1/hello", body, Kind.HELLO)
        took = trio.current_time() - begin
        data = load(opened.payload, Hello).card
        card = open_card(data, self.sealer.seconds, high_water=self._highest)
        if card.id == link.id and card.sequence > link.entry.peer.sequence:
            await self.peers.learn(card, data, near=False)
        return took

    async def _probe_forever(self, link: Link) -> None:
        bell, tries = self._probe_bell(link.id), 0
        while True:
            event = bell.event
            try:
                away = bool(link.entry.error) or tries > 0
                await self.hello(link)
                link.entry.error, tries = "", 0
                if away:
                    self.ledger.retry_now(link.id)
            except _EXPECTED as error:
                tries += 1
                link.entry.error = str(error)
            pause = _PROBE * self._chance.uniform(0.8, 1.0)
            if tries:
                pause = min(pause, outbox.delay(tries, self._chance))
            with trio.move_on_after(pause):
                await event.wait()

    async def trust(self, text: str) -> Known:
        """Trust a colony, meeting it first if need be. Raises RpcError."""
        entry = self.peers.find(text)
        if not entry.peer.public_key:
            unblock = entry.peer.state == BLOCKED
            problems: list[str] = []
            for address in entry.addresses():
                try:
                    await self.fetch(address, entry.peer.id, unblock=unblock)
                    break
                except (TransportError, ValueError) as error:
                    problems.append(str(error))
            else:
                reason = "; ".join(problems) or "no address is known"
                raise conflict(f"its card can't be fetched: {reason}")
        return await self.peers.trust(entry.peer.id)

    async def block(self, text: str) -> Known:
        """Refuse a colony from now on. Raises RpcError 404."""
        return await self.peers.block(self.peers.find(text).peer.id)

    async def ping(self, text: str) -> float:
        """Round trip of a signed hello in seconds. Raises TransportError, RpcError or Refused."""
        entry = self.peers.find(text)
        if not entry.peer.public_key:
            raise Unsent("no card of this colony was seen yet")
        link = self.links.get(entry.peer.id)
        if link is not None:
            return await self.hello(link)
        link = self.link_to(entry)
        try:
            return await self.hello(link)
        finally:
            await link.close()
