"""Colonies with routes to each other in one process, and the wire between two of them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec

from colonyd.keys import PrivateKey
from federation.forward.machine import Forward
from federation.peers.registry import PeerState
from federation.service.main import Federation
from federation.transport.connection import PeerConnection, PeerResponse
from federation.wire.card import Card
from federation.wire.clock import SigningClock
from federation.wire.messages import Capabilities, Offer
from node.etcd.client import EtcdClient
from node.host.clock import Clock
from node.host.config import Config, RouteConfig
from node.http.server import Request
from node.model.codec import pack, unpack
from node.model.ids import new_id
from node.model.types import Colony, Conditions, Executor, ExecutorState, FunctionSpec, Process
from node.processes.queue import Candidate
from node.processes.spec import build_process
from node.runtime.node import Node
from node.store import keys
from tests.support.parts import Led

CARD = b"card"


class Side:
    """One colony of the store: its node, and its federation without sockets."""

    def __init__(self, client: EtcdClient, name: str, *routes: RouteConfig) -> None:
        self.name, self.key, self.client = name, PrivateKey.generate(), client
        self.ahead = 0  # ns, of its clock
        self.node = Node.build(client, name, Clock(lambda: time.time_ns() + self.ahead))
        self.federation = Federation(
            name,
            self.key,
            client,
            self.node.processes,
            self.node.assigner,
            Config(routes=list(routes)),
            Path("/nowhere"),
            SigningClock(),
            self.node.members,
        )
        self.processes, self.assigner = self.node.processes, self.node.assigner
        self.processes.attach(self.federation.hooks)
        self.node.directory.apply(keys.colony(name), pack(Colony(self.key.id, name)), 1)
        self.worker = Executor(new_id(), "cli", "smith", name, ExecutorState.APPROVED)

    def hire(self) -> None:
        """An approved executor, that has not been heard from yet."""
        place = keys.executor(self.name, "smith")
        self.node.directory.apply(place, pack(self.worker), 2)

    async def befriend(self, other: Side, *, offers: bool = True) -> None:
        """Trust another colony, and believe that it offers anything for the type cli."""
        key = other.key
        card = Card(key.id, key.public_key, other.name, 1, "f" * 64, ["far:1"], [2], 2**40)
        await self.federation.peers.learn(card, CARD, near=False)
        await self.federation.peers.trust(key.id)
        if offers:
            self.hear(other, 1)

    def hear(self, other: Side, seq: int, **offer: Any) -> None:
        """Another colony says what it offers."""
        said = Capabilities(seq, types={"cli": Offer(["*"], executors=1, **offer)})
        self.federation.capability_cache.take(other.key.id, said)

    async def submit(self, **spec: Any) -> Process:
        """A process that names no peer."""
        conditions = Conditions(colonyname=self.name, executortype="cli")
        process = build_process(
            FunctionSpec(funcname="f", conditions=conditions, **spec),
            processid=new_id(),
            initiatorid="a" * 64,
            initiatorname="ann",
            colonyname=self.name,
            now=time.time_ns(),
        )
        return await self.processes.submit(process, b"")

    async def load(self, process: Process) -> Process:
        """As the store has it."""
        found = await self.processes.load(self.name, process.processid)
        assert found is not None
        return found[0]

    async def forward(self, peer: Side, process: Process) -> Forward | None:
        """The forward in the outbox."""
        key = self.federation.keys.forward(peer.key.id, process.processid)
        found = await self.client.get(key)
        return unpack(found.value, Forward) if found else None

    async def queued(self, process: Process) -> bool:
        """Whether the queue key is in the store."""
        key = keys.queue(self.name, "cli", process.prioritytime, process.processid)
        return await self.client.get(key) is not None

    async def tick(self) -> None:
        """The router looks at what waits."""
        await self.federation.requeuer.tick()

    async def assign(self, timeout: float = -1) -> Process:
        """Our own executor asks for work."""
        candidate = Candidate(self.name, "cli", "smith")
        return await self.assigner.assign(candidate, self.worker, timeout)


class Wire(PeerConnection):
    """A link that hands the bytes to another colony's gate, or does not."""

    to: Side
    trouble: Exception | None = None
    strip = False  # as if an old peer, or something between, had answered
    refusal = ""
    swap = ""  # another refusal, whose signature is shown for this one

    async def connect(self) -> Any:
        """Always there."""

    async def exchange(self, path: str, body: bytes, wait: float) -> PeerResponse:
        """As `PeerConnection.exchange`."""
        if self.trouble is not None:
            raise self.trouble
        request = Request("POST", path, "", {}, body, "10.0.0.9")
        response = await self.to.federation.server.handle(request)
        data = response.body
        if response.status != 200:
            value = msgspec.json.decode(data)
            self.refusal = str(value.get("signed", ""))
            if self.strip:
                value.pop("signed", None)
            value |= {"signed": self.swap} if self.swap else {}
            data = msgspec.json.encode(value)
        return PeerResponse(response.status, "", data)


def wire(one: Side, other: Side) -> Wire:
    entry: PeerState = one.federation.peers.known[other.key.id]
    connection = Wire(entry, one.federation.signer, Led())
    connection.to = other
    return connection


async def deliver(one: Side, other: Side, connection: Wire, process: Process) -> None:
    """Send what is due for this process, once."""
    outbox = one.federation.outbox
    await outbox.refresh(other.key.id)
    entry = outbox.entries[process.processid]
    entry.busy = True
    await one.federation.sender._deliver(connection, entry)


async def three(client: EtcdClient, *routes: RouteConfig) -> tuple[Side, Side, Side]:
    """ant with routes, and bee and cat that trust it."""
    ant, bee, cat = Side(client, "ant", *routes), Side(client, "bee"), Side(client, "cat")
    for peer in (bee, cat):
        await ant.befriend(peer)
        await peer.befriend(ant, offers=False)
    return ant, bee, cat


BOTH = RouteConfig(to=["bee", "cat"])


async def _age(one: Side, peer: Side, process: Process) -> None:
    """The share of the time of a forward is over."""
    forward = await one.forward(peer, process)
    assert forward is not None
    key = one.federation.keys.forward(peer.key.id, process.processid)
    await one.client.put(key, pack(msgspec.structs.replace(forward, share=1)))
    one.federation.outbox.look_for(process.processid, peer.key.id)
