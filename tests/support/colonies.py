"""Colonies in one process on a real etcd: links are calls, and a daemon may die at any write.

What they must do is in the tests.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn, cast

import msgspec
import trio

from colonyd.keys import PrivateKey, read_key, write_key
from federation.forward.chain import ChainLink, trace
from federation.forward.machine import Forward
from federation.peers.policy import Policy
from federation.peers.registry import PeerState
from federation.service.main import Federation
from federation.transport.connection import PeerConnection, PeerResponse
from federation.transport.errors import Lost, Unsent
from federation.wire.card import open_card
from federation.wire.clock import SigningClock
from federation.wire.envelope import inspect
from node.daemon.recovery import finish
from node.etcd.client import EtcdClient, TxnResult, open_client
from node.etcd.errors import EtcdUnavailable
from node.etcd.txn import Delete, Get, GetFirst, Put, Txn
from node.host.clock import Clock
from node.host.config import Config, FederationConfig, PeerConfig
from node.host.home import Home, HomeInfo
from node.http.server import Request, Response
from node.model.codec import unpack
from node.model.ids import new_id
from node.model.types import Colony as HomeColony
from node.model.types import Executor, ExecutorState, FunctionSpec, Process, State, User
from node.processes.observer import Observer
from node.processes.queue import Candidate
from node.processes.spec import build_process
from node.runtime.feeds import follow
from node.runtime.node import Node
from node.store import keys
from tests.node.etcd.support import start_store

PORT = 50081
FINGERPRINT = "f" * 64


class Mortal(EtcdClient):
    """A client whose daemon dies `at` a write, `before` or after it happens.

    With `only`, just the writes of that key count.
    """

    writes = 0
    at = 0
    before = True
    only = ""
    dead = False
    kill: Callable[[], None]

    @classmethod
    def of(cls, client: EtcdClient) -> Mortal:
        return cls(client._channel, client._timeout)

    async def _write(self, action: Callable[[], Awaitable[Any]], *written: str) -> Any:
        if self.dead:
            await self._end()
        counts = not self.only or self.only in written
        self.writes += counts
        if not counts or self.writes != self.at:
            return await action()
        if not self.before:
            with trio.CancelScope(shield=True):
                await action()
        self.dead = True
        self.kill()
        return await self._end()

    async def _end(self) -> NoReturn:
        """Nothing happens any more; what is shielded from the death of all is told by an error."""
        with trio.move_on_after(0.2):
            await trio.sleep_forever()
        raise EtcdUnavailable("the daemon died")

    async def commit(self, txn: Txn) -> TxnResult:
        if all(isinstance(op, Get | GetFirst) for op in (*txn.success, *txn.failure)):
            return await super().commit(txn)
        written = [op.key for op in txn.success if isinstance(op, Put | Delete)]
        found: TxnResult = await self._write(lambda: EtcdClient.commit(self, txn), *written)
        return found

    async def put(self, key: str, value: bytes, lease: int = 0) -> int:
        return int(await self._write(lambda: EtcdClient.put(self, key, value, lease), key))

    async def delete(self, key: str) -> int:
        return int(await self._write(lambda: EtcdClient.delete(self, key), key))


class NearLink(PeerConnection):
    """The way to a colony of this process."""

    source: Colony

    async def connect(self) -> Any:
        """Raises Unsent."""
        if self.guide.around() is None:
            self.source.target(self.id)
        return cast(Any, None)

    async def exchange(self, path: str, body: bytes, wait: float) -> PeerResponse:
        """Call the other's gate, in the other's nursery: it may die over it."""
        carrier = self.guide.around()
        if carrier is not None:
            return await carrier(path, body, wait)
        other = self.source.target(self.id)
        response = await other.handle(Request("POST", path, "", {}, body, "10.0.0.1"))
        if response is None:
            raise Lost("no answer: the daemon died")
        after = dict(response.headers).get("retry-after", "")
        return PeerResponse(response.status, after, response.body)


class Near(Federation):
    """Federation without sockets."""

    colony: Colony

    def connection_to(self, entry: PeerState) -> PeerConnection:
        """A way within the process."""

        connection = NearLink(entry, self.signer, self.guide_to(entry))
        connection.source = self.colony
        return connection

    async def fetch(
        self, address: str, peerid: str = "", *, unblock: bool = False
    ) -> PeerState | None:
        """The card shown at an address."""
        name = address.partition(".")[0]
        other = next(each for each in self.colony.world.values() if each.name == name)
        if not other.up or other.hidden:
            raise Unsent("connection refused")
        assert other.federation is not None
        data = other.federation.own_card.card()
        card = open_card(data, self.context.clock.seconds)
        if peerid and card.id != peerid:
            raise Unsent("another colony lives there")
        return await self.peers.learn(card, data, near=False, unblock=unblock)


class Colony:
    """One colony: its key, its daemon, one executor. `hidden` ones can't be connected to."""

    def __init__(
        self, world: World, name: str, mailbox: Colony | None = None, **settings: Any
    ) -> None:
        self.world, self.name = world, name
        self.home = Home(world.path / name)
        self.home.keys.mkdir(parents=True)
        self.key = PrivateKey.generate()
        write_key(self.home.key("colony"), self.key)
        self.settings = settings
        self.polls = [mailbox] if mailbox else []
        self.worker = Executor(
            PrivateKey.generate().id, "t", "w", name, state=ExecutorState.APPROVED
        )
        self.client = Mortal.of(world.client)
        self.federation: Near | None = None
        self.node: Node | None = None
        self.up = False
        self.hidden = False
        self.changed = trio.Event()
        self.at, self.before = 0, True
        self._nursery: trio.Nursery | None = None

    @property
    def fed(self) -> Near:
        assert self.federation is not None
        return self.federation

    def target(self, peerid: str) -> Colony:
        """The colony with an id, if it can be reached. Raises Unsent."""
        assert self.federation is not None
        entry = self.federation.peers.get(peerid)
        name = entry.peer.name if entry else ""
        found = self.world.get(name)
        if found is None or not found.up or found.hidden:
            raise Unsent("connection refused")
        return found

    async def handle(self, request: Request) -> Response | None:
        """The gate's answer, None when the daemon dies over it."""
        assert self._nursery is not None
        answers: list[Response] = []
        done = trio.Event()

        async def answer() -> None:
            try:
                answers.append(await self.fed.server.handle(request))
            finally:
                done.set()

        self._nursery.start_soon(answer)
        await done.wait()
        return answers[0] if answers else None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Live, and start again after each death."""
        first = True
        while True:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                client = self.client = Mortal.of(self.world.client)
                client.kill = functools.partial(self._killed, nursery.cancel_scope)
                client.writes, client.at, client.before = 0, self.at, self.before
                self.at = 0
                self.node = node = Node.build(
                    client, self.name, Clock(time.time_ns), identity=self.name
                )
                await self._read_key(client)
                node.processes.observe(node.assigner, node.channels, Local(self))
                for prefix in (keys.MEMBERS, keys.LIVE):
                    await nursery.start(follow, node, prefix)
                polled = [
                    PeerConfig(url=f"https://{each.name}.example:1", id=each.key.id, mailbox=True)
                    for each in self.polls
                ]
                config = Config(
                    peers=polled,
                    federation=FederationConfig(
                        host=f"{self.name}.example", discovery=False, **self.settings
                    ),
                )
                self.federation = fed = Near(
                    self.name,
                    self.key,
                    client,
                    node.processes,
                    node.assigner,
                    config,
                    Path("/nowhere"),
                    SigningClock(),
                    node.members,
                )
                fed.colony = self
                node.processes.attach(fed.hooks)
                await fed._load()
                fed.fingerprint, fed.port = FINGERPRINT, PORT
                await fed.own_card.start(PORT, FINGERPRINT)
                await nursery.start(fed.work)
                await nursery.start(node.workflows.run)
                self.up = True
                self._news()
                if first:
                    task_status.started()
                first = False
                await trio.sleep(math.inf)
            self.up = False
            self._news()

    async def _read_key(self, client: EtcdClient) -> None:
        """As a daemon does that starts."""
        info = HomeInfo(self.name, self.key, read_key(self.home.key("colony")), self.key, "",
                        None, "", "", created=False)  # fmt: skip
        self.key = (await finish(client, self.home, info, time.time_ns())).colony

    async def restart(self) -> None:
        """As after a power cut."""
        assert self._nursery is not None
        self._killed(self._nursery.cancel_scope)
        await self.until(lambda: self.up)

    async def rotate(self) -> None:
        """Go on under another key."""
        await self.fed.rotation.rotate(self.home)
        self.key = self.fed.key

    def _killed(self, scope: trio.CancelScope) -> None:
        self.up = False
        scope.cancel()

    def _news(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    def mortal(self, at: int, *, before: bool, only: str = "") -> None:
        """Die at the `at`th write from now, or the `at`th write of the key `only`."""
        self.client.writes, self.client.at, self.client.before = 0, at, before
        self.client.only = only

    async def trust(self, other: Colony, **policy: Any) -> None:
        """Trust a colony at once."""
        data = other.fed.own_card.card()
        await self.fed.peers.learn(open_card(data, time.time()), data, near=False)
        await self.fed.peers.trust(other.key.id, Policy(**policy) if policy else None)

    async def submit(self, target: str, **spec: Any) -> str:
        """Submit a process to a target."""
        assert self.node is not None
        full = {
            "funcname": "f",
            "args": ["x"],
            "conditions": {"colonyname": target, "executortype": "t"},
        } | spec
        process = build_process(
            _spec(full),
            processid=new_id(),
            initiatorid=self.key.id,
            initiatorname="me",
            colonyname=self.name,
            now=time.time_ns(),
            peer=self.fed.hooks.peer_of(target) or "",
        )
        assert process.peer, f"no way to {target}"
        return (await self.node.processes.submit(process, b"")).processid

    async def work(self, output: str) -> Process:
        """Take one process and close it."""
        assert self.node is not None
        candidate = Candidate(self.name, "t", "w", "", None, None)
        process = await self.node.assigner.assign(candidate, self.worker, 20)
        return await self.node.processes.close(
            self.name,
            process.processid,
            self.worker.executorid,
            State.SUCCESSFUL,
            output=[output],
        )

    def waiting(self) -> list[str]:
        """Ids of the processes in this colony's queue."""
        assert self.node is not None
        entries = self.node.processes.queue.entries.values()
        return [entry.processid for entry in entries if entry.colony == self.name]

    async def steps(self, processid: str) -> list[ChainLink]:
        """The chain of outcomes of a forwarded process, verified."""
        fed = self.fed
        proof = await self.client.get(fed.keys.proof(processid))
        assert proof is not None
        forward = unpack(proof.value, Forward)
        data = forward.outcome
        if not data:
            apart = await self.client.get(fed.keys.apart(processid))
            assert apart is not None
            data = apart.value
        issuer = inspect(data, limit=len(data)).issuer
        assert fed.peers.index.root(issuer) == forward.peer
        key = fed.peers.public_key(issuer) or b""
        return trace(data, issuer, key, fed.signer.ids, fed.peers.ids, forward.request)

    async def process(self, processid: str) -> Process:
        """A process as the store has it."""
        assert self.node is not None
        found = await self.node.processes.load(self.name, processid)
        assert found is not None
        return found[0]

    async def closed(self, processid: str) -> Process:
        """Return once a process is closed."""
        await self.when(processid, lambda process: process.closed)
        return await self.process(processid)

    async def when(self, processid: str, check: Callable[[Process], bool]) -> None:
        """Return once a process is as it should be."""
        while True:
            changed = self.changed
            if self.up and check(await self.process(processid)):
                return
            await changed.wait()

    async def until(self, check: Callable[[], bool]) -> None:
        """Return once something holds that follows from a change here."""
        while not check():
            await self.changed.wait()


class Local(Observer):
    """A store has one home, but for here: each colony deals with its own workflows."""

    def __init__(self, colony: Colony) -> None:
        assert colony.node is not None
        self.colony, self.node = colony, colony.node

    def stepped(self, colony: str, graphid: str, revision: int) -> None:
        if colony == self.colony.name:
            self.node.workflows.resolution.stepped(colony, graphid, revision)

    def changed(self, process: Process, revision: int) -> None:
        self.node.subscriptions.changed(process, revision)
        self.colony._news()


def _spec(fields: dict[str, Any]) -> FunctionSpec:
    return msgspec.convert(fields, FunctionSpec)


class World(dict[str, Colony]):
    """Colonies by name, on one store."""

    def __init__(self, client: EtcdClient, nursery: trio.Nursery, path: Path) -> None:
        super().__init__()
        self.client, self.nursery, self.path = client, nursery, path

    async def add(self, name: str, mailbox: Colony | None = None, **settings: Any) -> Colony:
        """Start another colony; one with a mailbox can't be connected to."""
        colony = self[name] = Colony(self, name, mailbox, **settings)
        colony.hidden = mailbox is not None
        node = Node.build(self.client, name, Clock(time.time_ns))
        await node.members.adopt(
            HomeColony(colony.key.id, name),
            User(name, PrivateKey.generate().id, "me"),
            colony.worker,
            colony.key.id,
        )
        await self.nursery.start(colony.run)
        return colony


@asynccontextmanager
async def world(path: Path, names: Sequence[str] = ()) -> AsyncIterator[World]:
    """A store, and some colonies on it."""
    async with trio.open_nursery() as nursery:
        store = await start_store(nursery, path / "etcd")
        async with open_client(store.target, timeout=60) as client:
            async with trio.open_nursery() as inner:
                there = World(client, inner, path)
                for name in names:
                    await there.add(name)
                yield there
                inner.cancel_scope.cancel()
        nursery.cancel_scope.cancel()
