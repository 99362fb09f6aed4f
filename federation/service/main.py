"""Federation as one service: listener, discovery, and the tasks of every trusted peer.

`Federation.__init__` makes the parts, each from those above it; `hooks` is what a node needs.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from federation.inbox.accept import Inbox
from federation.inbox.channels import Listener
from federation.inbox.outcomes import Owing
from federation.inbox.updates import Teller
from federation.limits.accounts import Accounts
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
from federation.outbox.updates import Follower
from federation.peers.context import Context
from federation.peers.highwater import HighWater
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
from federation.service.links import PeerGuide
from federation.service.server import Server
from federation.service.sessions import Tending
from federation.transport.link import Guide, Link
from federation.transport.mailbox import Collector, Office, Ways
from federation.transport.tls import make_certificate, server_context
from federation.wire.clock import SigningClock
from federation.wire.signer import Sealer
from federation.wire.sizes import MAX_BODY
from node.etcd.client import EtcdClient
from node.etcd.errors import EtcdError
from node.files.catalog import Files
from node.host.config import Config
from node.host.containment import contained, keep_going
from node.host.keys import PrivateKey
from node.host.log import get_logger
from node.host.sync import Bells
from node.http.listeners import addresses_of, bound_port, open_listeners
from node.http.server import Limits, serve_http
from node.members.service import Members
from node.model.errors import RpcError
from node.processes.assignment import HandOut
from node.processes.service import Processes

_TICK = 0.5  # seconds between looks at deadlines
_LOOK = 0.5  # seconds between looks at what waits and what we offer
_CLOCK = 60.0
_SWEEP = 3600.0
_OF_A_PEER = 64  # connections
_FLUSH = 3.0  # seconds to finish what is on its way when draining

log = get_logger("federation")


class Federation:
    """The federation of one home colony. Set `drain` to end `run`.

    Without `members` nothing is offered to peers, without `files` none are carried.
    """

    def __init__(
        self,
        home_name: str,
        key: PrivateKey,
        client: EtcdClient,
        processes: Processes,
        handout: HandOut,
        config: Config,
        directory: Path,
        clock: SigningClock,
        members: Members | None = None,
        *,
        files: Files | None = None,
        chance: random.Random | None = None,
    ) -> None:
        settings = config.federation
        self.home, self.client, self.config, self.directory = home_name, client, config, directory
        self.port, self.addresses, self.fingerprint = 0, list[str](), ""
        self.drain = trio.Event()

        # What nearly every part works with.
        self.keys = Keys(home_name)
        self.sealer = Sealer(key, clock)
        self.memory = HighWater(client, self.keys, clock)
        lan, default = settings.trust == "lan", of_config(settings.policy)
        self.peers = Peers(client, self.keys, self.sealer, lan, default=default)
        self.context = context = Context(
            home_name,
            self.sealer,
            client,
            processes,
            self.peers,
            self.keys,
            chance or random.Random(),
        )
        self.upkeep = Upkeep(context)
        self.links: dict[str, Link] = {}
        self.probes = Bells()
        self.portrait = Portrait(context, settings)
        self.rotation = Rotation(context, self.portrait, self.probes, members)
        accounts = Accounts(self.peers, clock)

        # Where a process goes, above the outbox that asks: so the router comes first.
        self.board = Board(clock)
        self.exchange = Exchange(context, handout, self.board, self.portrait, self.drain, members)
        self.router = Router(context, read_routes(config.routes), self.board, self.exchange)

        # The outbox.
        self.ledger = Ledger(context, self.router)
        self.depot = Depot(context, self.ledger, accounts, self.links, files)
        self.greeter = Greeter(
            context, self.ledger, self.portrait, self.rotation, self.probes, self.links
        )
        self.delivery = Delivery(context, self.ledger, self.depot, self.greeter, settings.hops)
        follower = Follower(context, self.ledger, accounts)
        self.results = Results(context, self.ledger, follower)
        self.talker = Talker(context, self.ledger)
        self.endings = Endings(context, self.ledger)
        self.waiting = Waiting(context, self.ledger, self.router)

        # The inbox.
        owing = Owing(context, accounts, Teller(context, follower, members))
        self.inbox = Inbox(context, self.ledger, self.depot, owing, accounts)

        # How colonies meet.
        self.surroundings = Surroundings(settings.interfaces)
        self.meeting = Meeting(context, self.probes)
        self.introducer = Introducer(context, self.portrait, settings.introductions)
        self.invitations = Invitations(context, self.portrait)
        self.joining = Joining(context, self.portrait)
        self.decisions = Decisions(context, handout, self.endings, self.fetch)

        # What peers ask, and the links on which we ask them.
        self.office = Office(self.sealer, self.peers, self.greeter.greeted)
        self.server = Server(
            self.sealer,
            self.peers,
            accounts,
            self.portrait.card,
            [
                *self.greeter.endpoints(),
                *self.invitations.endpoints(),
                *self.inbox.endpoints(),
                *self.exchange.endpoints(),
                *self.office.endpoints(),
                *Listener(context, accounts).endpoints(),
                *self.depot.endpoints(),
                *self.introducer.endpoints(),
            ],
        )
        self.collector = Collector(self.server.handle, context.chance)
        self.ways = Ways(context, self.office, self.links)
        self.tending = Tending(
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
            hops=settings.hops,
            peers=self.peers,
            ledger=self.ledger,
            inbox=self.inbox,
            router=self.router,
            waiting=self.waiting,
            exchange=self.exchange,
            talker=self.talker,
            endings=self.endings,
            delivery=self.delivery,
        )
        # Nearly every part hears of a peer that changes, so this comes last.
        self.peers.watch(self._changed)

    @property
    def key(self) -> PrivateKey:
        """The colony's key, which may change."""
        return self.sealer.key

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
                functools.partial(serve, self.server.handle, listeners, error=self.server.refuse)
            )
            async with trio.open_nursery() as watching:
                watching.start_soon(keep_going, "surroundings", self.surroundings.run)
                watching.start_soon(keep_going, "greetings after a move", self._move_on)
                await self.work(task_status)
                watching.cancel_scope.cancel()

    async def work(self, task_status: trio.TaskStatus[None]) -> None:
        """Speak to peers until `drain` is set; what is on its way then gets a moment to end."""
        async with trio.open_nursery() as inner:
            self.tending.open(inner)
            self._start(inner)
            log.info("federation ready", port=self.port, id=self.key.id)
            task_status.started()
            await self.drain.wait()
            self.inbox.owing.drain()
            self.office.drain()
            with trio.move_on_after(_FLUSH):
                await self.ledger.wait_idle()
            self.tending.close()
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
        await self.memory.load()
        await self.rotation.load()
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
        await self.memory.keep()
        await self.peers.look_again()
        await self.invitations.load()
        self.introducer.prune()
        if await self.portrait.moved():
            self.probes.ring()

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
            self.probes.ring()

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
        await self.exchange.tell_forever(link, self.ledger.returned(link.id))

    async def _introduce_forever(self, link: Link) -> None:
        await self.introducer.exchange_forever(link, self.ledger.returned(link.id))

    async def _collect_forever(self, link: Link) -> None:
        await self.ways.polled(link.id).wait()
        await self.portrait.polls(self.ways.mailboxes())
        self.probes.ring()
        await self.collector.collect_forever(link)

    def link_to(self, entry: Known) -> Link:
        """A way to a peer; the caller closes it."""
        return Link(entry, self.sealer, self.guide_to(entry))

    def guide_to(self, entry: Known) -> Guide:
        """What a link to a peer asks."""
        # Where our own port is for this machine only, all our peers are on it.
        loopback = is_loopback(self.config.federation.host)
        return PeerGuide(
            entry, self.context, self.fetch, self.ways, self.surroundings, self.probes, loopback
        )
