"""Look-up of colonies by id in the DHT, and our own announcement there.

What the DHT tells is an unproven address: the card fetched there must be of the id asked for.
`lookups` plans, `node` has the sockets.
"""

from __future__ import annotations

import os
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import msgspec
import trio

from federation.dht.lookups import Announce, Ask, Contact, Lookups, Step
from federation.dht.node import (
    GIVE_UP,
    PUBLIC,
    Answer,
    DhtNode,
    DhtUnavailable,
    Listening,
    PortProblem,
    TableSize,
    open_node,
)
from federation.dht.portmap import Mapped, MappingStatus, NotMapped, PortMap
from federation.network.addresses import is_loopback, problem_of
from federation.network.interfaces import ANY, Network
from federation.network.monitor import NetworkMonitor
from federation.wire.address import host_of, is_public, split_address
from node.host.log import get_logger
from node.tasks.sync import WakeUp

_LOOK = 5.0  # seconds between checks for lost peers
_COUNT = 30.0  # seconds between counts of the nodes
_SAVE = 600.0  # seconds between two writes of the table
_MOST_READ = 16_384  # bytes of the table file
_RETRY = 60.0  # seconds after an error
_ANSWER = 10.0  # seconds for a router to answer
_QUIET = 0.5  # seconds after which a change of ports is over
TABLE = "dht-table"  # file in the home

log = get_logger("dht")


class Colony(Protocol):
    """What the look-up asks of the colony that it works for."""

    def ids(self) -> Collection[str]:
        """Return the ids to announce."""

    def listener(self) -> int:
        """Return our TCP port, which routers are to forward."""

    def port(self) -> int:
        """Return the TCP port to announce."""

    def lost(self) -> tuple[Collection[str], Collection[str]]:
        """Return the trusted peers that are not reached, and those for which there is work."""

    def found(self, colony: str, addresses: Sequence[str]) -> None:
        """Take unproven addresses of a colony."""


class DhtStatus(msgspec.Struct, frozen=True):
    """The state of the look-up, for people: `problem` says why it does not work, or ""."""

    port: int
    nodes: int
    sought: int
    asked: int
    problem: str


@dataclass
class WideLookup:
    """Runs one node of the DHT at `listen`, of the DHT that has the nodes `bootstrap`.

    With `bootstrap` nodes of our own, addresses of private networks count: their colonies may all
    be in one. In the public DHT such an address would lead anybody into our network.
    """

    monitor: NetworkMonitor
    directory: Path
    host: str
    listen: int
    bootstrap: Sequence[str] = ()
    chance: random.Random = field(default_factory=random.Random)
    mapping: bool = False  # whether routers are asked to forward our port
    problem: str = ""
    lookups: Lookups = field(init=False)
    portmap: PortMap = field(init=False)
    mapped: WakeUp = field(default_factory=WakeUp)  # wakes when another port is forwarded
    _remap: WakeUp = field(default_factory=WakeUp)
    _wakeup: WakeUp = field(default_factory=WakeUp)

    def __post_init__(self) -> None:
        self.lookups, self.portmap = Lookups(self.chance), PortMap(self.listen)

    def status(self) -> DhtStatus:
        """Return the state of the look-up."""
        plan = self.lookups
        return DhtStatus(self.listen, plan.nodes, plan.sought(), plan.asked, self.problem)

    def routers(self) -> MappingStatus | None:
        """Return the state of the port mapping, None if it is off."""
        return self.portmap.status() if self.mapping else None

    def remap(self) -> None:
        """Ask routers again to forward our port: nobody comes through."""
        self._remap.wake()

    def request(self, colony: str, *, named: bool = False) -> bool:
        """Look up a colony now. Return False if too many are looked up.

        `named`: a peer's card names it, and nobody here waits for it.
        """
        accepted = self.lookups.request(colony, trio.current_time(), named=named)
        self._wakeup.wake()
        return accepted

    # -- running -------------------------------------------------------------------------

    async def run(self, colony: Colony) -> None:
        """Announce a colony and look up for it until cancelled.

        After an error, try again in a minute.
        """
        told = ""
        while True:
            turn = self.monitor.wakeup.event
            hosts = self._hosts(self.monitor.network)
            if not hosts:
                await turn.wait()
                continue
            try:
                saved = await trio.to_thread.run_sync(self._load)
                async with open_node(
                    hosts, self.listen, self.bootstrap, mapping=self.mapping
                ) as node:
                    self.problem = ""
                    node.contact(saved)
                    log.info("dht opened", port=self.listen, addresses=",".join(hosts))
                    await self._work(node, hosts, colony)
            except* (OSError, RuntimeError, DhtUnavailable) as group:
                self.problem = "; ".join(str(each) for each in group.exceptions)
                if self.problem != told or self.lookups.nodes:  # what lasts is told once
                    log.warning("dht failed", error=self.problem, retry=_RETRY)
                told = self.problem
            finally:
                self.portmap.closed()
            self.lookups.nodes = 0
            await trio.sleep(_RETRY)

    async def _work(self, node: DhtNode, hosts: list[str], colony: Colony) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._hear, node)
            nursery.start_soon(self._count, node)
            nursery.start_soon(self._save, node)
            nursery.start_soon(self._follow, node, hosts)
            nursery.start_soon(self._look, colony)
            if self.mapping:
                nursery.start_soon(self._map, node, colony)
            await self._plan(node, colony)

    async def _plan(self, node: DhtNode, colony: Colony) -> None:
        while True:
            event, now = self._wakeup.event, trio.current_time()
            while (step := self.lookups.step(now)) is not None:
                self.do(node, step, colony)
            for peerid, addresses in self.lookups.found(now):
                colony.found(peerid, addresses)
            with trio.move_on_after(self.lookups.wait(now)):
                await event.wait()

    def do(self, node: DhtNode, step: Step, colony: Colony) -> None:
        """Do one step of the plan."""
        match step:
            case Announce(key):
                node.announce(key, colony.port())
            case Ask(key):
                node.ask(key)
            case Contact():
                node.contact(self.bootstrap or PUBLIC)
                node.count()

    async def _hear(self, node: DhtNode) -> None:
        while True:
            for event in await node.events():
                match event:
                    case Answer(key, addresses):
                        self.lookups.heard(key, [at for at in addresses if self.usable(at)])
                    case TableSize(nodes):
                        self.lookups.known(nodes, trio.current_time())
                        self.problem = "" if nodes else self.problem
                    case PortProblem(text):
                        # One of several addresses may be new, and not yet to be had.
                        self.problem = text
                        if not self.lookups.nodes:
                            raise OSError(text)
                    case Listening():
                        self._remap.wake()
                    case Mapped() | NotMapped():
                        self._forwarded(node, changed=self.portmap.heard(event))
                # Any node may answer, with hundreds of addresses each, all at once.
                await trio.lowlevel.checkpoint()
            self._wakeup.wake()

    async def _map(self, node: DhtNode, colony: Colony) -> None:
        """Map our port, again after each change of our addresses."""
        event = self._remap.event
        while True:
            with trio.move_on_after(_QUIET) as quiet:
                await event.wait()
            if not quiet.cancelled_caught:
                event = self._remap.event
                continue
            node.unmap()
            with trio.move_on_after(GIVE_UP):
                while node.mapped:
                    await self._wakeup.event.wait()
            self.portmap.renew()
            handles = await node.map(colony.listener())
            self._forwarded(node, changed=self.portmap.asked(handles))
            with trio.move_on_after(_ANSWER) as answering:
                await event.wait()
            if answering.cancelled_caught:
                self._forwarded(node, changed=self.portmap.settle())
                await event.wait()
            event = self._remap.event

    def _forwarded(self, node: DhtNode, *, changed: bool) -> None:
        if self.portmap.stray():
            node.drop_first()
        if changed:
            portmap = self.portmap
            log.info("port mapped", port=portmap.port, by=portmap.by, problem=portmap.problem)
            self.lookups.restart(trio.current_time())
            self.mapped.wake()

    def usable(self, address: str) -> bool:
        """Return whether we may follow the DHT to an address."""
        host = host_of(address)
        # If our own port is for this machine only, so are those of the others.
        if problem_of(host, self.monitor.network, loopback=is_loopback(self.host)):
            return False
        return bool(self.bootstrap) or is_public(host)

    async def _look(self, colony: Colony) -> None:
        """Tell the plan which ids to announce and to look up."""
        while True:
            now = trio.current_time()
            self.lookups.own(colony.ids(), now)
            self.lookups.want(*colony.lost(), now)
            self._wakeup.wake()
            await trio.sleep(_LOOK)

    async def _count(self, node: DhtNode) -> None:
        while True:
            node.count()
            await trio.sleep(_COUNT if self.lookups.nodes else 1.0)

    async def _follow(self, node: DhtNode, hosts: list[str]) -> None:
        """Move to our new addresses after a change of the network."""
        while True:
            event = self.monitor.wakeup.event
            now = self._hosts(self.monitor.network)
            if now and now != hosts:
                hosts = now
                node.listen(hosts, self.listen)
            await event.wait()
            self._remap.wake()
            self.lookups.restart(trio.current_time())
            self._wakeup.wake()

    def _hosts(self, network: Network | None) -> list[str]:
        if self.host not in ANY:
            return [self.host]
        return network.addresses_for(ANY[self.host], link_local=False) if network else []

    # -- the table -----------------------------------------------------------------------

    async def _save(self, node: DhtNode) -> None:
        try:
            while True:
                await trio.sleep(_SAVE)
                await self._write(node)
        finally:
            with trio.CancelScope(shield=True):
                await self._write(node)

    async def _write(self, node: DhtNode) -> None:
        if self.lookups.nodes:
            await trio.to_thread.run_sync(self._store, await node.saved())

    def _load(self) -> list[str]:
        """Return the addresses of nodes that were known at the last stop, one a line there."""
        try:
            with (self.directory / TABLE).open("rb") as file:
                lines = file.read(_MOST_READ).decode("ascii", "replace").split("\n")
        except OSError:
            return []
        return [each for each in lines if self._is_address(each)]

    def _is_address(self, text: str) -> bool:
        try:
            split_address(text)
        except ValueError:
            return False
        return self.usable(text)

    def _store(self, nodes: list[str]) -> None:
        data = "\n".join(nodes).encode()
        fresh = self.directory / f"{TABLE}.new"
        try:
            with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(data)
            fresh.replace(self.directory / TABLE)
        except OSError as error:
            log.warning("table not kept", error=error)
