"""Federation as one service: listener, discovery, and the tasks of every trusted peer.

It joins the node through its hooks and does the wiring; each capability is in a module of its own.
"""

from __future__ import annotations

import functools
import random
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from federation import outbox, relays
from federation.blocking import Endings
from federation.capabilities import Board
from federation.card import open_card
from federation.delivery import Delivery
from federation.depot import Depot
from federation.discovery import Advert, discover
from federation.envelope import Refused
from federation.exchange import Exchange
from federation.gate import MAX_BODY, Gate
from federation.inbox import Inbox
from federation.introductions import Introducer
from federation.invitations import Invitations
from federation.joining import Joining
from federation.keys import Keys
from federation.ledger import Bell, Ledger
from federation.mailbox import Collector, Office, Ways
from federation.meeting import Meeting
from federation.messages import Hello, Sealer, Successor
from federation.peers import BLOCKED, TRUSTED, Known, Peers, Usurped
from federation.policy import MAX_HOPS, Policy, of_config
from federation.portrait import Portrait
from federation.results import Results
from federation.rotation import Rotation
from federation.router import Router
from federation.routes import read_routes
from federation.succession import prove
from federation.surroundings import Surroundings
from federation.talking import Listener, Talker
from federation.tls import make_certificate, server_context
from federation.transport import Link, TransportError, Unsent, Untimely
from node.config import Config
from node.errors import RpcError, conflict
from node.etcd.client import EtcdClient
from node.etcd.errors import EtcdError
from node.hooks import Addition, Hooks
from node.identity import PrivateKey
from node.log import get_logger
from node.members import Members
from node.model import Process
from node.processes import Processes
from node.rpc.http import Limits, bound_port, open_listeners, serve_http

__all__ = ["Federation"]

_PROBE = 30.0  # seconds between hellos
_TICK = 0.5  # seconds between looks at deadlines
_LOOK = 0.5  # seconds between looks at what waits and what we offer
_CLOCK = 60.0
_SWEEP = 3600.0
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
        members: Members | None = None,
    ) -> None:
        self.home, self.client, self.config = home_name, client, config
        self.directory, self.now = directory, now
        self.keys = Keys(home_name)
        self.sealer = sealer = Sealer(key, now)
        lan = config.federation.trust == "lan"
        default = of_config(config.federation.policy)
        self.peers = Peers(client, self.keys, key.id, lan, changed=self._changed, default=default)
        self.ledger = Ledger(home_name, sealer, client, processes, self.peers, self.keys)
        self.delivery = Delivery(self.ledger, sealer, config.federation.hops)
        self.results = Results(self.ledger, sealer, self.high_water)
        self.inbox = Inbox(home_name, sealer, client, processes, self.peers, self.keys)
        self.portrait = Portrait(home_name, sealer, client, self.keys, config.federation)
        self.gate = Gate(
            sealer, self.peers, self.inbox, self.portrait.card, self._greeted, self.high_water
        )
        self.board = Board(trio.current_time)
        self.exchange = Exchange(
            home_name,
            sealer,
            self.peers,
            processes,
            self.board,
            members,
            lambda: self.portrait.sequence,
            lambda: not self.inbox.draining,
            lambda: self._chance,
        )
        self.gate.capabilities = self.exchange.answer
        self.introducer = Introducer(
            sealer,
            self.peers,
            self.high_water,
            config.federation.introductions,
            lambda: self._chance,
        )
        self.gate.introductions = self.introducer.answer
        self.rotation = Rotation(home_name, sealer, client, self.keys, self._renew, members)
        self.gate.successors = self.rotation.successors
        self.office = Office(sealer, self.peers, self._greeted)
        self.gate.mail, self.gate.passing = self.office.collect, self.office.forward
        self.collector = Collector(
            sealer, self.gate.handle, lambda tries: outbox.delay(tries, self._chance)
        )
        self.router = Router(
            home_name,
            read_routes(config.routes),
            client,
            processes,
            self.peers,
            self.ledger,
            self.board,
            self.exchange,
            lambda: self._chance,
        )
        self.ledger.elsewhere = self.router.elsewhere
        self.inbox.way_to, self.inbox.relayed = self.peers.toward, self.ledger.relayed
        self.router.onward = self._stays
        self.depot = Depot(self.ledger, link_to=self.links_to)
        self.gate.files, self.inbox.bring = self.depot.serve, self.depot.bring
        self.delivery.gather = self.depot.gather
        self.talker = Talker(self.ledger)
        self.gate.channels = Listener(self.inbox, now).hear
        self.inbox.teller.name_of = self._name_of
        self.inbox.teller.heard = self.results.follower.of
        self.invitations = self.gate.invitations = Invitations(
            client, self.keys, sealer, self.peers, self.portrait, self.high_water
        )
        self.joining = Joining(sealer, self.peers, self.portrait.card, self.high_water)
        self.endings = Endings(self.ledger, now)
        self.surroundings = Surroundings(config.federation.interfaces)
        self.meeting = Meeting(
            sealer, self.peers, self.high_water, self._heard_again, lambda: self._chance
        )
        self.drain = trio.Event()
        self.port = 0
        self.fingerprint = ""
        self.links: dict[str, Link] = {}
        self.ways = Ways(self.office, self.peers, self.links, sealer)
        self._scopes: dict[str, trio.CancelScope] = {}
        self._probes: dict[str, Bell] = {}
        self._nursery: trio.Nursery | None = None
        self._highest = 0.0
        self._chance = random.Random()

    @property
    def key(self) -> PrivateKey:
        """The colony's key, which may change."""
        return self.sealer.key

    # -- hooks of the node ---------------------------------------------------------------

    def peer_of(self, colonyname: str) -> str | None:
        """Id of the trusted peer that `colonyname` names or, as "bee/cat", begins with.

        None for the home colony's name, and for more colonies than a process may pass.
        """
        if colonyname == self.home or len(relays.segments(colonyname)) > MAX_HOPS:
            return None
        return self.peers.toward(colonyname, further=self.config.federation.hops > 1) or None

    def hosts(self, colonyname: str) -> bool:
        """Whether a colony is hosted here."""
        members = self.exchange.members
        return members is not None and members.directory.colony(colonyname) is not None

    def unknown(self, colonyname: str) -> bool:
        """Whether nobody can be meant by a name that is no trusted peer's."""
        return self.exchange.members is not None and not self.hosts(colonyname)

    def route(self, process: Process) -> str:
        """Id of the peer that the routes send a process to, or ""."""
        return self.router.route(process)

    def _stays(self, process: Process) -> str:
        """Why a process of another colony may not go on from here, or ""."""
        if process.hops < 1:
            return "it came from another colony, as far as it may go"
        if not self.peers.policy(process.origin).forward:
            return "the policy of the colony it came from keeps it here"
        return ""

    def forwarding(self, process: Process) -> Addition:
        """The outbox entry that joins a submission."""
        return self.ledger.forwarding(process, self.router.way(process))

    def cancelling(self, process: Process) -> Addition:
        """The outbox entry that joins a cancel."""
        return self.ledger.cancelling(process)

    def removable(self, process: Process) -> str:
        """Why a process of another colony must stay, or ""."""
        return self.inbox.removable(process)

    def most_running(self, origin: str) -> int:
        """How many processes of a colony may run here at once."""
        return self.peers.policy(origin).max_running

    def submitted(self, process: Process) -> None:
        """Wake the sender; what a block overtook ends with all the rest."""
        self.ledger.touched(process)
        if self.peers.state(process.peer) == BLOCKED:
            self.endings.begin()

    def progressed(self, process: Process) -> None:
        """There is something to be told: to the colony that it came from, or where it went."""
        if process.origin and process.notify:
            self.inbox.progressed(process)
        if process.peer:
            self.talker.wake(process)

    def _name_of(self, executorid: str) -> str:
        """The name of an executor of the home colony."""
        members = self.exchange.members
        executor = members.directory.executor_of(self.home, executorid) if members else None
        return executor.executorname if executor else executorid[:12]

    def closed(self, process: Process) -> None:
        """Wake the poll of the colony that a process came from."""
        if process.peer:
            self.board.ended(process.peer, process.spec.conditions.executortype)
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
        host = "" if settings.host == "*" else settings.host  # IPv4 and IPv6
        listeners = await open_listeners(host, settings.port, context)
        self.port = bound_port(listeners)
        self.surroundings.start()
        await self.portrait.start(self.port, self.fingerprint)
        limits = Limits(max_body=MAX_BODY, max_connections=512)
        async with trio.open_nursery() as outer:
            serve = functools.partial(serve_http, limits=limits, drain=self.drain, grace=_FLUSH)
            await outer.start(
                functools.partial(serve, self.gate.handle, listeners, error=self.gate.refuse)
            )
            async with trio.open_nursery() as watching:
                watching.start_soon(self.surroundings.run)
                watching.start_soon(self._move_on)
                await self.work(task_status)
                watching.cancel_scope.cancel()

    async def work(self, task_status: trio.TaskStatus[None]) -> None:
        """Speak to peers until `drain` is set; what is on its way then gets a moment to end."""
        async with trio.open_nursery() as inner:
            self._nursery = inner
            self._start(inner)
            log.info("federation ready", port=self.port, id=self.key.id)
            task_status.started()
            await self.drain.wait()
            self.inbox.drain()
            self.office.drain()
            with trio.move_on_after(_FLUSH):
                await self.ledger.wait_idle()
            self._nursery = None
            inner.cancel_scope.cancel()

    def _start(self, nursery: trio.Nursery) -> None:
        nursery.start_soon(self._every, _TICK, self.delivery.expire)
        nursery.start_soon(self._every, _CLOCK, self._keep_clock)
        nursery.start_soon(self._every, _SWEEP, self._sweep)
        nursery.start_soon(self.endings.run)
        nursery.start_soon(self._every, _LOOK, self._look_around)
        nursery.start_soon(self.meeting.run)
        if self.config.federation.discovery:
            nursery.start_soon(discover, self._advert, self.meeting.heard, self.surroundings)
        for peer in self.config.peers:
            nursery.start_soon(self.meeting.meet, peer.url, peer.id)
            if peer.mailbox:
                self.ways.polled(peer.id).set()
        for entry in self.peers.trusted():
            self._changed(entry.peer.id)

    async def _load(self) -> None:
        remembered = await self.client.get(self.keys.clock)
        self._highest = float(remembered.value) if remembered else 0.0
        await self.rotation.load()
        self.peers.former = self.sealer.former
        await self.peers.load()
        await self.inbox.load()
        await self.ledger.load()
        await self.results.follower.load()

    async def _every(self, seconds: float, action: Callable[[], Awaitable[None]]) -> None:
        """Run `action` again and again; what goes wrong is logged and tried at the next turn."""
        while True:
            try:
                await action()
            except Exception as error:
                log.warning("background task", task=action.__name__, error=repr(error))
            await trio.sleep(seconds)

    async def _look_around(self) -> None:
        self.exchange.look()
        await self.router.tick()

    # -- clock ------------------------------------------------------------------

    def high_water(self) -> float:
        """The latest wall-clock time remembered, in seconds."""
        return self._highest

    async def _keep_clock(self) -> None:
        now = self.now() / 1e9
        if now > self._highest:
            await self.client.put(self.keys.clock, f"{now:.0f}".encode())
            self._highest = now
        self.introducer.prune()
        if await self.portrait.moved():
            self.greet_all()

    async def _sweep(self) -> None:
        await self.inbox.sweep()
        await self.invitations.sweep()
        await self.depot.sweep()
        leftovers = (self.keys.proofs, self.keys.lates, self.keys.aparts, self.keys.followed_all)
        for prefix in leftovers:
            listing = await self.client.range(prefix, limit=1000, keys_only=True)
            for item in listing.items:
                pid = item.key[len(prefix) :]
                if await self.inbox.processes.load(self.home, pid) is None:
                    await self.client.delete(item.key)

    # -- meeting colonies ----------------------------------------------------------------

    def _advert(self) -> Advert:
        portrait = self.portrait
        return Advert(
            self.key.id, self.fingerprint, self.port, portrait.announced, portrait.families
        )

    async def fetch(self, address: str, peerid: str = "", *, unblock: bool = False) -> Known | None:
        """Fetch the card at an address and take it in; `peerid`, if given, must be its id.

        Raises TransportError. None for a blocked colony or ourselves.
        """
        return await self.meeting.fetch(address, peerid, unblock=unblock)

    async def _move_on(self) -> None:
        """After a change of the network, sleep, or a clock that was set: tell every peer."""
        event = self.surroundings.bell.event
        while True:
            await event.wait()
            event = self.surroundings.bell.event
            self.meeting.forget()
            try:
                await self._keep_clock()
            except EtcdError as error:
                log.warning("card not renewed", error=error)  # within a minute, it will be
            for link in list(self.links.values()):
                await link.close()  # a connection from where we were may stay silent for long
            self.greet_all()

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
            self.exchange.forget(peerid)
            self.introducer.forget(peerid)
            self.office.forget(peerid)
        self.introducer.look()
        if self.peers.state(peerid) == BLOCKED:
            self.inbox.blocked(peerid)
            self.endings.begin()

    async def _serve_peer(self, entry: Known, scope: trio.CancelScope) -> None:
        link = self.link_to(entry)
        self.links[link.id] = link
        try:
            with scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._supervised, self.delivery.send_forever, link)
                    nursery.start_soon(self._supervised, self.results.poll_forever, link)
                    nursery.start_soon(self._supervised, self.talker.talk_forever, link)
                    nursery.start_soon(self._supervised, self._probe_forever, link)
                    nursery.start_soon(self._supervised, self._exchange_forever, link)
                    nursery.start_soon(self._supervised, self._introduce_forever, link)
                    nursery.start_soon(self._supervised, self._collect_forever, link)
        finally:
            if self.links.get(link.id) is link:
                del self.links[link.id]
            await link.close()

    async def _exchange_forever(self, link: Link) -> None:
        await self.exchange.tell_forever(link, lambda: self.ledger.returned(link.id).event)

    async def _introduce_forever(self, link: Link) -> None:
        back = self.ledger.returned(link.id)
        await self.introducer.exchange_forever(link, lambda: back.event)

    async def _collect_forever(self, link: Link) -> None:
        await self.ways.polled(link.id).wait()
        await self.portrait.polls(self.ways.mailboxes())
        self.greet_all()
        await self.collector.collect_forever(link)

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

    def links_to(self, peerid: str) -> Link | None:
        """The way to a trusted peer that is in use."""
        return self.links.get(peerid)

    def link_to(self, entry: Known) -> Link:
        """A way to a peer; the caller closes it."""

        async def renew(address: str) -> None:
            await self.fetch(address, entry.peer.id)

        around = functools.partial(self.ways.around, entry)
        measure = functools.partial(self._heard_again, entry.peer.id)
        return Link(entry, self.sealer, renew, self.high_water, around, measure, self.follow)

    async def follow(self, successors: list[Successor]) -> None:
        """Take note of another colony's change of keys. Raises Refused."""
        for each in successors:
            try:
                await self.peers.succeed(prove(each), self.sealer.seconds)
            except Usurped as error:
                log.warning("succession refused", why=error)
                raise Refused("unknown_issuer", str(error)) from None

    async def _renew(self) -> None:
        """Our key is another: cards and greetings tell of it."""
        self.peers.me, self.peers.former = self.sealer.key.id, self.sealer.former
        await self.portrait.renew()
        self.greet_all()

    def _heard_again(self, peerid: str) -> None:
        self._probe_bell(peerid).ring()

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
        link = self.links.get(peerid)
        if entry.error or (link is not None and link.stale):
            self._probe_bell(peerid).ring()

    async def hello(self, link: Link) -> float:
        """Exchange signed hellos; returns the round trip in seconds. Raises TransportError."""
        await link.connect()
        begin = trio.current_time()
        message = Hello(
            self.portrait.card(),
            secrets.token_bytes(16),
            successors=self.rotation.successors(),
        )
        try:
            hello = await link.greet(message)
        except Untimely:
            # Its refusal told its clock: now the times of ours hold by that.
            begin = trio.current_time()
            hello = await link.greet(message)
        took = trio.current_time() - begin
        card = open_card(hello.card, self.sealer.seconds, high_water=self._highest)
        if card.id == link.wire and card.sequence > link.entry.peer.sequence:
            await self.peers.learn(card, hello.card, near=False)
        elif card.id == link.wire and card.sequence == link.entry.peer.sequence:
            link.entry.latest = hello.card
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

    async def trust(self, text: str, policy: Policy | None = None) -> Known:
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
        trusted = await self.peers.trust(entry.peer.id, policy)
        self.ledger.processes.handout.wake_all()  # more of its processes may run than before
        return trusted

    async def set_policy(self, text: str, policy: Policy | None) -> Known:
        """Change what a trusted colony may do here, None for the default. Raises RpcError."""
        entry = await self.peers.set_policy(self.peers.find(text).peer.id, policy)
        self.ledger.processes.handout.wake_all()
        return entry

    async def block(self, text: str) -> Known:
        """Refuse a colony from now on, and end what it has here and we there. Raises RpcError 404.

        What has not ended within a few seconds does so later, after a restart too.
        """
        entry = await self.peers.block(self.peers.find(text).peer.id)
        with trio.move_on_after(_FLUSH):
            await self.endings.wait(entry)
        return entry

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
