"""Federation as one service: listener, discovery, and the tasks of every trusted peer.

It does the wiring; each capability is in a module of its own, and `hooks` is what a node needs.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from federation.forward import machine as outbox
from federation.inbox.accept import Inbox
from federation.inbox.channels import Listener
from federation.membership.gossip import Introducer
from federation.membership.invitations import Invitations
from federation.membership.join import Joining
from federation.membership.meeting import Meeting
from federation.membership.probe import Greeter
from federation.membership.rotation import Rotation
from federation.membership.trust import Decisions
from federation.network.addresses import is_loopback
from federation.network.discovery import Advert, discover
from federation.network.monitor import Surroundings
from federation.outbox.channels import Talker
from federation.outbox.files import Depot
from federation.outbox.ledger import Ledger
from federation.outbox.outcomes import Results
from federation.outbox.revoke import Endings
from federation.outbox.sender import Delivery
from federation.peers.keys import Keys
from federation.peers.owncard import Portrait
from federation.peers.policy import of_config
from federation.peers.registry import BLOCKED, TRUSTED, Known, Peers
from federation.routing.capabilities import Board
from federation.routing.exchange import Exchange
from federation.routing.requeue import Waiting
from federation.routing.router import Router
from federation.routing.rules import read_routes
from federation.service.extension import Attachment
from federation.service.janitor import Upkeep
from federation.service.server import Gate
from federation.service.sessions import Tending
from federation.transport.link import Link
from federation.transport.mailbox import Collector, Office, Ways
from federation.transport.resolve import ways_to
from federation.transport.tls import make_certificate, server_context
from federation.wire.signer import Sealer
from federation.wire.sizes import MAX_BODY
from node.etcd.client import EtcdClient
from node.etcd.errors import EtcdError
from node.etcd.pressure import Need
from node.host.config import Config
from node.host.containment import contained, keep_going
from node.host.keys import PrivateKey
from node.host.log import get_logger
from node.http.listeners import addresses_of, bound_port, open_listeners
from node.http.server import Limits, serve_http
from node.members.service import Members
from node.model.errors import RpcError
from node.processes.service import Processes

_TICK = 0.5  # seconds between looks at deadlines
_LOOK = 0.5  # seconds between looks at what waits and what we offer
_CLOCK = 60.0
_SWEEP = 3600.0
_OF_A_PEER = 64  # connections
_FLUSH = 3.0  # seconds to finish what is on its way when draining

log = get_logger("federation")


class Federation:
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
        self.upkeep = Upkeep(home_name, client, processes, self.keys, now)
        self.high_water = self.upkeep.high_water
        lan = config.federation.trust == "lan"
        default = of_config(config.federation.policy)
        self.peers = Peers(client, self.keys, key.id, lan, changed=self._changed, default=default)
        self.ledger = Ledger(home_name, sealer, client, processes, self.peers, self.keys)
        self.delivery = Delivery(self.ledger, sealer, config.federation.hops)
        self.results = Results(self.ledger, sealer, self.high_water)
        self.inbox = Inbox(home_name, sealer, client, processes, self.peers, self.keys)
        self.portrait = Portrait(home_name, sealer, client, self.keys, config.federation)
        self.rotation = Rotation(home_name, sealer, client, self.keys, self._renew, members)
        self.links: dict[str, Link] = {}
        self.greeter = Greeter(
            sealer,
            self.peers,
            self.ledger,
            self.portrait,
            self.rotation,
            self.high_water,
            lambda: self._chance,
            self.link_to,
            self.links,
        )
        greeted = self.greeter.greeted
        self.delivery.greet = self.greeter.hello
        self.gate = Gate(
            sealer, self.peers, self.inbox, self.portrait.card, greeted, self.high_water
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
            lambda: not self.inbox.owing.draining and not client.pressure.refuses(Need.GROWS),
            lambda: self._chance,
        )
        self.gate.capabilities = self.exchange.answer
        self.introducer = Introducer(
            sealer,
            self.peers,
            self.high_water,
            config.federation.introductions,
            lambda: self._chance,
            lambda: self.portrait.sequence,
        )
        self.gate.introductions = self.introducer.answer
        self.gate.successors = self.rotation.successors
        self.office = Office(sealer, self.peers, greeted)
        self.gate.mail, self.gate.passing = self.office.collect, self.office.forward
        self.collector = Collector(
            sealer, self.gate.handle, lambda tries: outbox.delay(tries, self._chance)
        )
        self.router = Router(
            home_name,
            read_routes(config.routes),
            self.peers,
            self.ledger,
            self.board,
            self.exchange,
            lambda: self._chance,
        )
        self.ledger.elsewhere = self.router.elsewhere
        self.inbox.way_to, self.inbox.relayed = self.peers.toward, self.ledger.relayed
        self.waiting = Waiting(self.router)
        self.router.ready = self.waiting.ready
        self.depot = Depot(self.ledger, link_to=self.links_to)
        self.depot.room = self.inbox.accounts.leave
        self.gate.files, self.inbox.bring = self.depot.serve, self.depot.bring
        self.delivery.gather = self.depot.gather
        self.talker = Talker(self.ledger)
        self.gate.channels = Listener(self.inbox, now).hear
        self.inbox.owing.teller.name_of = self._name_of
        self.inbox.owing.teller.heard = self.results.follower.of
        self.results.follower.room = self.inbox.accounts.news
        self.invitations = self.gate.invitations = Invitations(
            client, self.keys, sealer, self.peers, self.portrait, self.high_water
        )
        self.joining = Joining(sealer, self.peers, self.portrait.card, self.high_water)
        self.endings = Endings(self.ledger, now)
        self.surroundings = Surroundings(config.federation.interfaces)
        self.meeting = Meeting(
            sealer, self.peers, self.high_water, self.greeter.wake, lambda: self._chance
        )
        self.drain = trio.Event()
        self.port, self.addresses = 0, list[str]()
        self.fingerprint = ""
        self.ways = Ways(self.office, self.peers, self.links, sealer)
        self.tending = Tending(
            self.ledger,
            self.links,
            self.link_to,
            [
                self.delivery.send_forever,
                self.results.poll_forever,
                self.talker.talk_forever,
                self._probe_forever,
                self._exchange_forever,
                self._introduce_forever,
                self._collect_forever,
            ],
        )
        self.hooks = Attachment(
            home=home_name,
            hops=config.federation.hops,
            peers=self.peers,
            ledger=self.ledger,
            inbox=self.inbox,
            router=self.router,
            exchange=self.exchange,
            talker=self.talker,
            endings=self.endings,
        )
        self.decisions = Decisions(self.peers, processes, self.endings, self.fetch)
        self._chance = random.Random()

    @property
    def key(self) -> PrivateKey:
        """The colony's key, which may change."""
        return self.sealer.key

    # -- what parts ask ------------------------------------------------------------------

    def _name_of(self, executorid: str) -> str:
        """The name of an executor of the home colony."""
        members = self.exchange.members
        executor = members.directory.executor_of(self.home, executorid) if members else None
        return executor.executorname if executor else executorid[:12]

    # -- running -------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve and speak to peers until `drain` is set. Raises ListenError."""
        await self._load()
        settings = self.config.federation
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        certificate, key, self.fingerprint = make_certificate(self.directory)
        context = server_context(certificate, key)
        listeners = await open_listeners(
            settings.host, settings.port, context, section="federation"
        )
        self.port, self.addresses = bound_port(listeners), addresses_of(listeners)
        self.surroundings.start()
        await self.portrait.start(self.port, self.fingerprint)
        limits = Limits(
            max_body=MAX_BODY,
            max_connections=512,
            max_per_signer=_OF_A_PEER,
            max_unsigned=128,
            max_unsigned_per_address=64,
        )
        async with trio.open_nursery() as outer:
            serve = functools.partial(serve_http, limits=limits, drain=self.drain, grace=_FLUSH)
            await outer.start(
                functools.partial(serve, self.gate.handle, listeners, error=self.gate.refuse)
            )
            async with trio.open_nursery() as watching:
                watching.start_soon(keep_going, "surroundings", self.surroundings.run)
                watching.start_soon(keep_going, "greetings after a move", self._move_on)
                await self.work(task_status)
                watching.cancel_scope.cancel()

    async def work(self, task_status: trio.TaskStatus[None]) -> None:
        """Speak to peers until `drain` is set; what is on its way then gets a moment to end."""
        async with trio.open_nursery() as inner:
            self.tending.nursery = inner
            self._start(inner)
            log.info("federation ready", port=self.port, id=self.key.id)
            task_status.started()
            await self.drain.wait()
            self.inbox.owing.drain()
            self.office.drain()
            with trio.move_on_after(_FLUSH):
                await self.ledger.wait_idle()
            self.tending.nursery = None
            inner.cancel_scope.cancel()

    def _start(self, nursery: trio.Nursery) -> None:
        nursery.start_soon(self._every, _TICK, self.delivery.expire)
        nursery.start_soon(self._every, _CLOCK, self._keep_clock)
        nursery.start_soon(self._every, _SWEEP, self._sweep)
        nursery.start_soon(keep_going, "blocks", self.endings.run)
        nursery.start_soon(self._every, _LOOK, self._look_around)
        nursery.start_soon(keep_going, "meeting", self.meeting.run)
        if self.config.federation.discovery:
            hear = functools.partial(discover, self._advert, self.meeting.heard, self.surroundings)
            nursery.start_soon(keep_going, "discovery", hear)
        for peer in self.config.peers:
            meet = functools.partial(self.meeting.meet, peer.url, peer.id)
            nursery.start_soon(keep_going, f"configured peer {peer.url}", meet)
            if peer.mailbox:
                self.ways.polled(peer.id).set()
        for entry in self.peers.trusted():
            self._changed(entry.peer.id)

    async def _load(self) -> None:
        await self.upkeep.load()
        await self.rotation.load()
        self.peers.former = self.sealer.former
        await self.peers.load()
        await self.inbox.owing.load()
        await self.invitations.load()
        await self.ledger.load()
        await self.results.follower.load()

    async def _every(self, seconds: float, action: Callable[[], Awaitable[None]]) -> None:
        """Run `action` again and again; what goes wrong is logged and tried at the next turn."""
        while True:
            with contained(action.__name__):
                try:
                    await action()
                except (EtcdError, RpcError) as error:
                    log.warning("background task", task=action.__name__, error=repr(error))
            await trio.sleep(seconds)

    async def _look_around(self) -> None:
        self.exchange.look()
        await self.waiting.tick()

    async def _keep_clock(self) -> None:
        await self.upkeep.keep_clock()
        await self.peers.look_again()
        await self.invitations.load()
        self.introducer.prune()
        if await self.portrait.moved():
            self.greeter.greet_all()

    async def _sweep(self) -> None:
        await self.inbox.sweep()
        await self.invitations.sweep()
        await self.depot.sweep()
        await self.upkeep.sweep()

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
        event, moves = self.surroundings.bell.event, self.surroundings.moves
        while True:
            await event.wait()
            event, before, moves = self.surroundings.bell.event, moves, self.surroundings.moves
            self.meeting.forget()
            try:
                await self._keep_clock()
            except (EtcdError, RpcError) as error:
                log.warning("card not renewed", error=error)  # within a minute, it will be
            if moves != before:
                for link in list(self.links.values()):
                    await link.close()  # a connection from where we were may stay silent for long
            self.greeter.greet_all()

    # -- peers ---------------------------------------------------------------------------

    def _changed(self, peerid: str) -> None:
        """Begin or end the tasks of a peer, as its state now demands.

        They are kept under the id by which it became known, whatever key it has by now.
        """
        peerid = self.peers.roster.root(peerid)
        trusted = self.peers.state(peerid) == TRUSTED
        entry = self.peers.get(peerid)
        if trusted and entry is not None:
            self.tending.begin(peerid, entry)
        elif not trusted and self.tending.end(peerid):
            self.exchange.forget(peerid)
            self.introducer.forget(peerid)
            self.office.forget(peerid)
        self.introducer.look()
        if self.peers.state(peerid) == BLOCKED:
            self.inbox.owing.blocked(peerid)
            self.endings.begin()

    async def _probe_forever(self, link: Link) -> None:
        await self.greeter.probe_forever(link)

    async def _exchange_forever(self, link: Link) -> None:
        await self.exchange.tell_forever(link, lambda: self.ledger.returned(link.id).event)

    async def _introduce_forever(self, link: Link) -> None:
        back = self.ledger.returned(link.id)
        await self.introducer.exchange_forever(link, lambda: back.event)

    async def _collect_forever(self, link: Link) -> None:
        await self.ways.polled(link.id).wait()
        await self.portrait.polls(self.ways.mailboxes())
        self.greeter.greet_all()
        await self.collector.collect_forever(link)

    def links_to(self, peerid: str) -> Link | None:
        """The way to a trusted peer that is in use."""
        return self.links.get(peerid)

    def link_to(self, entry: Known) -> Link:
        """A way to a peer; the caller closes it."""

        async def renew(address: str) -> None:
            await self.fetch(address, entry.peer.id)

        around = functools.partial(self.ways.around, entry)
        measure, follow = functools.partial(self.greeter.wake, entry.peer.id), self.greeter.follow
        # Of its own, as a name that hangs keeps a thread: only its peer's others are to wait.
        names = trio.CapacityLimiter(1)

        async def ways(address: str) -> list[str]:
            if address in entry.given:
                return [address]
            # Where our own port is for this machine only, all our peers are on it.
            loopback = is_loopback(self.config.federation.host)
            return await ways_to(address, self.surroundings.network, names, loopback=loopback)

        return Link(entry, self.sealer, renew, self.high_water, around, measure, follow, ways)

    async def _renew(self) -> None:
        """Our key is another: cards and greetings tell of it."""
        self.peers.me, self.peers.former = self.sealer.key.id, self.sealer.former
        await self.portrait.renew()
        self.greeter.greet_all()
