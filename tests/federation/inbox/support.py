"""A colony behind its server and a peer that speaks to it, over a real store."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from colonyd.keys import PrivateKey
from federation.inbox.accept import Inbox
from federation.membership.probe import Prober
from federation.membership.rotation import Rotation
from federation.peers.context import Context
from federation.peers.keys import Keys
from federation.peers.registry import Peers
from federation.service.server import Server
from federation.transport.endpoint import Endpoint
from federation.wire.card import Card, sign_card
from federation.wire.clock import SigningClock
from federation.wire.envelope import Kind, VerifiedMessage, open_envelope
from federation.wire.messages import Hello, Line, Outcome, Outcomes, Poll, Receipt, Submit
from federation.wire.messages import load as load_message
from federation.wire.signer import Signer
from node.etcd.client import EtcdClient, open_client
from node.host.clock import Clock
from node.http.server import Request, Response
from node.model.types import Executor, Log, Process, State
from node.processes.extension import Hooks
from node.processes.queue import Candidate
from node.processes.service import Processes
from node.streams import logs as logs
from node.tasks.sync import WakeUps
from tests.node.etcd.support import start_store
from tests.support.colonies import Colony, World
from tests.support.parts import inbox_of, portrait_of
from tests.support.processes import assigning

PID = "1" * 64
SPEC = b'{"funcname":"f","args":[1,2.5],"conditions":{"colonyname":"lab","executortype":"t"}}'
WORKER = Executor("e" * 64, "t", "w", "lab")


class Closing(Hooks):
    """Tells the inbox of the end of a process, as the service does."""

    def __init__(self, inbox: Inbox) -> None:
        self.inbox = inbox

    def closed(self, process: Process) -> None:
        """Wake the poll."""
        if process.notify:
            self.inbox.outcome_queue.closed(process)


@dataclass
class Noting(Prober):
    """Notes who said hello."""

    heard: list[str] = field(kw_only=True)

    def greeted(self, peerid: str) -> None:
        """Note a peer."""
        self.heard.append(peerid)


class Lab:
    """The colony `lab` behind its server, and one peer called `field` that speaks to it."""

    def __init__(self, client: EtcdClient) -> None:
        self.client = client
        self.key, self.other = PrivateKey.generate(), PrivateKey.generate()
        self.keys = Keys("lab")
        self.clock = SigningClock()
        signer = Signer(self.key, self.clock)
        self.peers = Peers(client, self.keys, signer)
        self.processes = Processes(client, Clock(time.time_ns))
        self.context = Context("lab", signer, client, self.processes, self.peers, self.keys)
        self.assigner = assigning(self.processes)
        self.inbox = inbox_of(self.context, assigner=self.assigner)
        self.processes.attach(Closing(self.inbox))
        self.greeted: list[str] = []
        self.serve()
        self.signer = Signer(self.other, SigningClock())

    def serve(self, *more: Endpoint, card: Callable[[], bytes] = lambda: b"card") -> None:
        """Answer peers with the parts as they are now, and at more places."""
        own_card, probes = portrait_of(self.context), WakeUps()
        own_card.fingerprint = "f" * 64
        rotation = Rotation(self.context, own_card, probes)
        prober = Noting(
            self.context, self.inbox.outbox, own_card, rotation, probes, {}, heard=self.greeted
        )
        endpoints = [*self.inbox.endpoints(), *prober.endpoints(), *more]
        self.server = Server(
            self.context.signer, self.peers, self.inbox.peer_quotas, card, endpoints
        )

    def card_bytes(self, name: str = "field") -> bytes:
        now = int(time.time())
        key = self.other
        card = Card(key.id, key.public_key, name, 1, "f" * 64, [], [2], now + 3600)
        return sign_card(key, card, issued=now)

    async def introduce(self, name: str = "field") -> Response:
        return await self.post("hello", Kind.HELLO, Hello(self.card_bytes(name)))

    async def befriend(self) -> None:
        await self.introduce()
        await self.peers.trust(self.other.id)

    def seal(self, kind: Kind, message: msgspec.Struct, **claims: Any) -> bytes:
        return self.signer.seal(kind, claims.pop("audience", self.key.id), message, **claims)

    async def raw(self, path: str, body: bytes, remote: str = "10.0.0.2") -> Response:
        return await self.server.handle(Request("POST", path_of(path), "", {}, body, remote))

    async def post(self, path: str, kind: Kind, message: msgspec.Struct) -> Response:
        return await self.raw(path, self.seal(kind, message))

    def opened(self, response: Response, kind: Kind) -> VerifiedMessage:
        assert response.status == 200, response.body
        return self.open(response.body, kind)

    def open(self, sealed: bytes, kind: Kind) -> VerifiedMessage:
        return open_envelope(
            sealed,
            kind=kind,
            audience=self.other.id,
            now=time.time(),
            keys={self.key.id: self.key.public_key}.get,
            limit=2_000_000,
        )

    async def submit(self, sealed: bytes) -> Receipt:
        response = await self.raw("submit", sealed)
        return load_message(self.opened(response, Kind.RECEIPT).payload, Receipt)

    async def poll(self, wait: int = 0, *acks: str) -> list[Outcome]:
        response = await self.post("outcomes", Kind.POLL, Poll(wait, list(acks)))
        outcomes = load_message(self.opened(response, Kind.OUTCOMES).payload, Outcomes)
        return [
            load_message(self.open(sealed, Kind.OUTCOME).payload, Outcome)
            for sealed in outcomes.outcomes
        ]

    async def run_one(self) -> Process:
        candidate = Candidate("lab", "t", "w", "", None, None)
        process = await self.assigner.assign(candidate, WORKER, 5)
        return await self.processes.close(
            "lab", process.processid, WORKER.executorid, State.SUCCESSFUL, output=[3.5]
        )


@pytest.fixture
async def lab(nursery: trio.Nursery, tmp_path: Path) -> AsyncIterator[Lab]:
    store = await start_store(nursery, tmp_path / "etcd")
    async with open_client(store.target, timeout=60) as client:
        yield Lab(client)


def path_of(name: str) -> str:
    """Where a message goes: forwards are of version 2 of the protocol, the rest of version 1."""
    version = 2 if name in ("submit", "submits", "cancel", "outcomes") else 1
    return f"/v{version}/{name}"


def submission(spec: bytes = SPEC, **changes: Any) -> Submit:
    fields: dict[str, Any] = {"hops": 1, "path": []}
    return Submit(PID, 1, spec, "me", **(fields | changes))


def code(response: Response) -> str:
    assert response.status >= 400
    refusal = msgspec.json.decode(response.body)
    assert abs(refusal["clock"] - time.time()) < 60
    return str(refusal["code"])


async def take(colony: Colony) -> Process:
    """Have one process handed out."""
    assert colony.node is not None
    candidate = Candidate(colony.name, "t", "w", "", None, None)
    return await colony.node.assigner.assign(candidate, colony.worker, 20)


async def close(
    colony: Colony, process: Process, *output: Any, state: State = State.SUCCESSFUL
) -> None:
    """End a process as its executor."""
    assert colony.node is not None
    pid, worker = process.processid, colony.worker.executorid
    errors = None if state == State.SUCCESSFUL else ["broke"]
    await colony.node.processes.close(
        colony.name, pid, worker, state, output=list(output), errors=errors
    )


async def befriended(there: World) -> list[Colony]:
    """All colonies of a world, which trust each other."""
    everybody = list(there.values())
    for one in everybody:
        for other in everybody:
            if other is not one:
                await one.trust(other)
    return everybody


async def write(colony: Colony, process: Process, *texts: str, quietly: bool = False) -> None:
    """Log as the executor of a process, `quietly` if by another daemon of its colony."""
    assert colony.node is not None
    for text in texts:
        line = Log(process.processid, colony.name, "w", text, colony.node.clock.tick())
        await logs.write(colony.client, line)
    if not quietly:
        colony.node.processes.hooks.progressed(process)


def line(at: int, text: str = "x") -> Line:
    return Line(at, "w", text)
