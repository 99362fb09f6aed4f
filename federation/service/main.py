"""The federation service: listener, discovery, and the tasks of every trusted peer.

`Federation.__init__` makes each part from the parts above it. `hooks` is what a node needs.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from colonyd.errors import RpcError
from colonyd.keys import PrivateKey
from federation.dht.wide import WideLookup
from federation.inbox.accept import Inbox
from federation.inbox.channels import ChannelReceiver
from federation.inbox.outcomes import OutcomeQueue
from federation.inbox.updates import UpdatePublisher
from federation.limits.accounts import PeerQuotas
from federation.membership.bootstrap import Bootstrap
from federation.membership.finder import Finder
from federation.membership.gossip import Gossip
from federation.membership.invitations import Invitations
from federation.membership.join import Joiner
from federation.membership.opening import CardDesk
from federation.membership.probe import Prober
from federation.membership.rotation import Rotation
from federation.membership.trust import TrustAdmin
from federation.network.addresses import is_loopback
from federation.network.discovery import Advertisement, discover
from federation.network.monitor import NetworkMonitor
from federation.outbox.channels import ChannelSender
from federation.outbox.files import FileTransfer
from federation.outbox.outbox import Outbox
from federation.outbox.outcomes import OutcomePoller
from federation.outbox.revoke import Revocation
from federation.outbox.sender import Sender
from federation.outbox.updates import UpdateConsumer
from federation.peers.context import Context
from federation.peers.highwater import HighWater
from federation.peers.keys import Keys
from federation.peers.owncard import OwnCard
from federation.peers.policy import of_config
from federation.peers.registry import BLOCKED, TRUSTED, Peers, PeerState
from federation.reach.dialback import DialBack
from federation.reach.seeker import MailboxSeeker, mailbox_offer
from federation.reach.verdict import Reach, Verdict
from federation.routing.capabilities import CapabilityCache
from federation.routing.exchange import Exchange
from federation.routing.requeue import Requeuer
from federation.routing.router import Router
from federation.routing.rules import read_routes
from federation.service.extension import NodeExtension
from federation.service.janitor import Janitor
from federation.service.links import PeerGuide
from federation.service.server import Server
from federation.service.sessions import PeerSessions
from federation.transport.connection import Guide, PeerConnection
from federation.transport.mailbox import Mailbox
from federation.transport.polling import MailboxPoller, MailboxTerms
from federation.transport.tls import make_certificate, server_context
from federation.transport.ways import MailboxWays
from federation.wire.clock import SigningClock
from federation.wire.signer import Signer
from federation.wire.sizes import MAX_BODY
from node.etcd.client import EtcdClient
from node.etcd.errors import EtcdError
from node.files.catalog import Files
from node.host.config import Config
from node.host.log import get_logger
from node.http.listeners import addresses_of, bound_port, open_listeners
from node.http.server import Limits, serve_http
from node.members.service import Members
from node.processes.assignment import Assigner
from node.processes.service import Processes
from node.tasks.containment import contained, keep_going
from node.tasks.sync import WakeUp, WakeUps

_TICK = 0.5  # seconds between checks of deadlines
_LOOK = 0.5  # seconds between checks of the queue and of our capabilities
_CLOCK = 60.0
_STRANGERS = 62.0  # a little more than the rest of an address that was tried
_SWEEP = 3600.0
_OF_A_PEER = 64  # connections from one address or peer
_FLUSH = 3.0  # seconds to finish messages on their way when draining

log = get_logger("federation")


class Federation:
    """The federation of one home colony. Set `drain` to end `run`.

    Without `members`, peers are offered no capabilities. Without `files`, no files are carried.
    """

    def __init__(
        self,
        home_name: str,
        key: PrivateKey,
        client: EtcdClient,
        processes: Processes,
        assigner: Assigner,
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

        # What nearly every part uses.
        self.keys = Keys(home_name)
        self.signer = Signer(key, clock)
        self.memory = HighWater(client, self.keys, clock)
        lan, default = settings.trust == "lan", of_config(settings.policy)
        self.peers = Peers(
            client,
            self.keys,
            self.signer,
            lan,
            default=default,
            share_names=settings.share_names,
        )
        self.context = context = Context(
            home_name,
            self.signer,
            client,
            processes,
            self.peers,
            self.keys,
            chance or random.Random(),
        )
        self.janitor = Janitor(context)
        self.connections: dict[str, PeerConnection] = {}
        self.probes = WakeUps()
        self.own_card = OwnCard(context, settings)
        self.rotation = Rotation(context, self.own_card, self.probes, members)
        peer_quotas = PeerQuotas(self.peers, clock)

        # Routing. The outbox asks the router, so the router comes first.
        self.capability_cache = CapabilityCache(clock)
        self.exchange = Exchange(
            context, assigner, self.capability_cache, self.own_card, self.drain, members
        )
        self.router = Router(
            context, read_routes(config.routes), self.capability_cache, self.exchange
        )

        # The outbox.
        self.outbox = Outbox(context, self.router)
        self.file_transfer = FileTransfer(
            context, self.outbox, peer_quotas, self.connections, files
        )
        self.reach = Reach()
        self.prober = Prober(
            context,
            self.outbox,
            self.own_card,
            self.rotation,
            self.probes,
            self.connections,
            functools.partial(mailbox_offer, settings, self.reach),
        )
        self.sender = Sender(
            context,
            self.outbox,
            self.file_transfer,
            self.prober,
            settings.hops,
            self.capability_cache.together,
        )
        update_consumer = UpdateConsumer(context, self.outbox, peer_quotas)
        self.outcome_poller = OutcomePoller(context, self.outbox, update_consumer)
        self.channel_sender = ChannelSender(context, self.outbox)
        self.revocation = Revocation(context, self.outbox)
        self.requeuer = Requeuer(context, self.outbox, self.router)

        # The inbox.
        outcome_queue = OutcomeQueue(
            context, peer_quotas, UpdatePublisher(context, update_consumer, members)
        )
        self.inbox = Inbox(
            context, assigner, self.outbox, self.file_transfer, outcome_queue, peer_quotas
        )

        # Bootstrap and trust.
        self.monitor = NetworkMonitor(settings.interfaces)
        self.bootstrap = Bootstrap(context, self.probes, settings.wide)
        self.mailbox = Mailbox(
            self.signer,
            self.peers,
            self.prober.greeted,
            settings.wide and settings.mailbox.strangers,
        )
        wide = None
        if settings.wide:
            wide = WideLookup(
                self.monitor,
                directory,
                settings.host,
                settings.dht_port,
                settings.bootstrap,
                context.chance,
                settings.map_port and not is_loopback(settings.host),
            )
        self.finder = Finder(
            context, self.bootstrap, self.outbox, self.own_card, wide, self.mailbox.clients
        )
        self.dial_back = DialBack(
            context,
            self.own_card,
            self.reach,
            self.monitor,
            self.connections,
            self.probes,
            self.finder.port,
            settings.wide,
            wide,
            private=bool(settings.bootstrap),
            loopback=is_loopback(settings.host),
        )
        self.gossip = Gossip(context, self.own_card, settings.introductions)
        terms_changed = WakeUp()  # what we tell our mailboxes
        self.invitations = Invitations(
            context,
            self.own_card,
            settings.wide,
            lambda: settings.wide and self.reach.verdict is Verdict.UNREACHABLE,
            terms_changed.wake,
        )
        self.card_desk = CardDesk(context, self.own_card)
        self.trust_admin = TrustAdmin(context, assigner, self.revocation, self.fetch)

        # The endpoints that peers call, and our connections to peers.
        self.server = Server(
            self.signer,
            self.peers,
            peer_quotas,
            self.own_card.card,
            [
                *self.prober.endpoints(),
                *self.invitations.endpoints(),
                *self.inbox.endpoints(),
                *self.exchange.endpoints(),
                *self.mailbox.endpoints(),
                *ChannelReceiver(context, peer_quotas).endpoints(),
                *self.file_transfer.endpoints(),
                *self.gossip.endpoints(),
                *self.dial_back.endpoints(),
            ],
            self.mailbox.card_of,
            self.dial_back.shown,
        )
        self.mailbox_ways = MailboxWays(
            context,
            self.mailbox,
            self.connections,
            self.connection_to,
            self.own_card.card,
            self.finder.seek_mailbox,
            settings.wide,
        )
        self.joiner = Joiner(context, self.own_card, self.finder, self.mailbox_ways)
        self.mailbox_seeker = MailboxSeeker(
            context, self.reach, self.mailbox_ways, self.own_card, self.probes
        )
        self.mailbox_poller = MailboxPoller(
            self.server.handle,
            context.chance,
            MailboxTerms(self.peers, self.invitations.names, settings.wide, terms_changed),
            self.mailbox_seeker.answered,
        )
        self.peer_sessions = PeerSessions(
            self.connections,
            self.connection_to,
            [self._probe_forever],
            later=[
                self.sender.send_forever,
                self.outcome_poller.poll_forever,
                self.channel_sender.send_forever,
                self._exchange_forever,
                self._gossip_forever,
                self._collect_forever,
            ],
            needed=self._needed,
        )
        self.hooks = NodeExtension(
            home=home_name,
            hops=settings.hops,
            peers=self.peers,
            outbox=self.outbox,
            inbox=self.inbox,
            router=self.router,
            waiting=self.requeuer,
            exchange=self.exchange,
            channel_sender=self.channel_sender,
            revocation=self.revocation,
            sender=self.sender,
            finder=self.finder,
        )
        self.peers.watch(lambda _: terms_changed.wake())
        # Nearly every part handles a peer that changes, so this comes last.
        self.peers.watch(self._changed)

    @property
    def key(self) -> PrivateKey:
        """Return the colony's present key."""
        return self.signer.key

    # -- running -------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve peers and send to them until `drain` is set. Raises ListenError."""
        await self._load()
        settings = self.config.federation
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        certificate, key, self.fingerprint = make_certificate(self.directory)
        context = server_context(certificate, key)
        listeners = await open_listeners(
            settings.host, settings.port, context, section="federation"
        )
        self.port, self.addresses = bound_port(listeners), addresses_of(listeners)
        self.monitor.start()
        await self.own_card.start(self.port, self.fingerprint)
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
                watching.start_soon(keep_going, "surroundings", self.monitor.run)
                watching.start_soon(keep_going, "greetings after a move", self._move_on)
                await self.work(task_status)
                watching.cancel_scope.cancel()

    async def work(self, task_status: trio.TaskStatus[None]) -> None:
        """Send to peers until `drain` is set, then finish within a few seconds (`_FLUSH`)."""
        async with trio.open_nursery() as inner:
            self.peer_sessions.open(inner)
            self._start(inner)
            log.info("federation ready", port=self.port, id=self.key.id)
            task_status.started()
            await self.drain.wait()
            self.inbox.outcome_queue.drain()
            self.mailbox.drain()
            with trio.move_on_after(_FLUSH):
                await self.outbox.wait_idle()
            self.peer_sessions.close()
            inner.cancel_scope.cancel()

    def _start(self, nursery: trio.Nursery) -> None:
        nursery.start_soon(self._every, _TICK, self.sender.expire)
        nursery.start_soon(self._every, _CLOCK, self._keep_clock)
        nursery.start_soon(self._every, _SWEEP, self._sweep)
        nursery.start_soon(keep_going, "blocks", self.revocation.run)
        nursery.start_soon(self._every, _LOOK, self._look_around)
        nursery.start_soon(keep_going, "meeting", self.bootstrap.run)
        nursery.start_soon(self._every, _STRANGERS, self.bootstrap.refresh)
        if self.config.federation.discovery:
            hear = functools.partial(discover, self._advert, self.bootstrap.heard, self.monitor)
            nursery.start_soon(keep_going, "discovery", hear)
        nursery.start_soon(keep_going, "mailboxes of others", self.mailbox_ways.close_unused)
        if (wide := self.finder.wide) is not None:
            nursery.start_soon(keep_going, "mailboxes of ours", self.mailbox_seeker.run)
            look_up = functools.partial(wide.run, self.finder)
            nursery.start_soon(keep_going, "look-up in the DHT", look_up)
            nursery.start_soon(keep_going, "dial-back", self.dial_back.run)
        for peer in self.config.peers:
            meet = functools.partial(self.bootstrap.meet, peer.url, peer.id)
            nursery.start_soon(keep_going, f"configured peer {peer.url}", meet)
            if peer.mailbox:
                self.mailbox_ways.configure(peer.id)
        for entry in self.peers.trusted():
            self._changed(entry.peer.id)

    async def _load(self) -> None:
        await self.memory.load()
        await self.rotation.load()
        await self.peers.load()
        await self.inbox.outcome_queue.load()
        await self.invitations.load()
        await self.outbox.load()
        await self.outcome_poller.update_consumer.load()

    async def _every(self, seconds: float, action: Callable[[], Awaitable[None]]) -> None:
        """Run `action` every `seconds`. Log an error, and try again at the next turn."""
        while True:
            with contained(action.__name__):
                try:
                    await action()
                except (EtcdError, RpcError) as error:
                    log.warning("background task", task=action.__name__, error=repr(error))
            await trio.sleep(seconds)

    async def _look_around(self) -> None:
        self.exchange.look()
        await self.requeuer.tick()

    async def _keep_clock(self) -> None:
        self.peers.set_back(self.context.clock.seconds)
        await self.memory.keep()
        await self.peers.look_again()
        await self.invitations.load()
        self.gossip.prune()
        self.inbox.peer_quotas.prune()
        moved = await self.own_card.moved()
        # A mailbox may have another key by now.
        if await self.own_card.polls(self.mailbox_ways.mailboxes()) or moved:
            self.probes.wake()

    async def _sweep(self) -> None:
        await self.inbox.sweep()
        await self.invitations.sweep()
        await self.file_transfer.sweep()
        await self.janitor.sweep()

    # -- bootstrap -----------------------------------------------------------------------

    def _advert(self) -> Advertisement:
        own_card = self.own_card
        return Advertisement(
            self.key.id, self.fingerprint, self.port, own_card.announced, own_card.families
        )

    async def fetch(
        self, address: str, peerid: str = "", *, unblock: bool = False
    ) -> PeerState | None:
        """Fetch and store the card at an address. `peerid`, if given, must be its id.

        Return the peer, or None for a blocked colony or ourselves. Raises TransportError.
        """
        return await self.bootstrap.fetch(address, peerid, unblock=unblock)

    async def _move_on(self) -> None:
        """Tell every peer our new card after a change of the network, a sleep, or a set clock."""
        event, moves = self.monitor.wakeup.event, self.monitor.moves
        while True:
            await event.wait()
            event, before, moves = self.monitor.wakeup.event, moves, self.monitor.moves
            self.bootstrap.forget()
            try:
                await self._keep_clock()
            except (EtcdError, RpcError) as error:
                log.warning("card not renewed", error=error)  # it is renewed again within a minute
            if moves != before:
                for connection in [*self.connections.values(), *self.mailbox_ways.borrowed()]:
                    await connection.close()  # a connection from where we were may hang for long
                for entry in self.peers.trusted():
                    entry.undialed = False
            self.probes.wake()

    # -- peers ---------------------------------------------------------------------------

    def _changed(self, peerid: str) -> None:
        """Start or end the tasks of a peer, as its state now demands.

        Tasks are kept under the peer's first id, which outlasts a change of its key.
        """
        peerid = self.peers.index.root(peerid)
        trusted = self.peers.state(peerid) == TRUSTED
        entry = self.peers.get(peerid)
        if trusted and entry is not None:
            self.peer_sessions.begin(peerid, entry)
        elif not trusted and self.peer_sessions.end(peerid):
            self.exchange.forget(peerid)
            self.gossip.forget(peerid)
            self.mailbox.forget(peerid)
        self.gossip.look(peerid)
        if self.peers.state(peerid) == BLOCKED:
            self.inbox.outcome_queue.blocked(peerid)
            self.revocation.begin()

    async def _needed(self, connection: PeerConnection) -> None:
        """Return once a peer is reached, or there is something for it, or we poll its mailbox."""
        wakeup = self.outbox.wakeup(connection.id).event
        polled = self.mailbox_ways.polls(connection.id)
        if not self.outbox.outstanding(connection.id) and not polled:
            await wakeup.wait()

    async def _probe_forever(self, connection: PeerConnection) -> None:
        await self.prober.probe_forever(connection)

    async def _exchange_forever(self, connection: PeerConnection) -> None:
        await self.exchange.tell_forever(connection, self.outbox.returned(connection.id))

    async def _gossip_forever(self, connection: PeerConnection) -> None:
        await self.gossip.exchange_forever(connection, self.outbox.returned(connection.id))

    async def _collect_forever(self, connection: PeerConnection) -> None:
        await self.mailbox_ways.while_polled(connection, self._collect)

    async def _collect(self, connection: PeerConnection) -> None:
        """Poll a peer's mailbox, after our peers are told that it is one of ours."""
        if await self.own_card.polls(self.mailbox_ways.mailboxes()):
            self.probes.wake()
        await self.mailbox_poller.collect_forever(connection)

    def connection_to(self, entry: PeerState) -> PeerConnection:
        """Return a new connection to a peer; the caller closes it."""
        return PeerConnection(entry, self.signer, self.guide_to(entry))

    def guide_to(self, entry: PeerState) -> Guide:
        """Return the guide for a connection to a peer."""
        # If our own port is for this machine only, all our peers are on this machine.
        loopback = is_loopback(self.config.federation.host)
        return PeerGuide(
            entry, self.context, self.fetch, self.mailbox_ways, self.monitor, self.probes, loopback
        )
