"""A colony that sends: its front with one peer, and files on their way."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import trio
import trio.testing

from federation.forward import machine
from federation.forward.machine import Forward, ForwardState
from federation.inbox.accept import Inbox
from federation.outbox.outbox import Outbox
from federation.outbox.revoke import Revocation
from federation.peers.registry import Peers
from federation.wire.envelope import Kind
from node.files.blobs import BlobStore
from node.files.catalog import Files
from node.files.tickets import Scope
from node.host.clock import Clock
from node.http.server import Response
from node.model.codec import unpack
from node.model.ids import new_id
from node.model.types import Conditions, FunctionSpec, Process
from node.processes.extension import Addition
from node.processes.queue import Candidate
from node.processes.service import Processes
from node.processes.spec import build_process
from node.store.files import File, Reference
from tests.federation.inbox.support import WORKER, Closing, Lab, befriended, submission
from tests.support.colonies import Colony, World, world
from tests.support.parts import inbox_of, ledger_of
from tests.support.processes import assigning


class Sending(Closing):
    """Forwards and closes, as the service does."""

    def __init__(self, inbox: Inbox, outbox: Outbox) -> None:
        super().__init__(inbox)
        self.outbox = outbox

    def forwarding(self, process: Process) -> Addition:
        """As `Attachment.forwarding`."""
        return self.outbox.forwarding(process)

    def cancelling(self, process: Process) -> Addition:
        """As `Attachment.cancelling`."""
        return self.outbox.cancelling(process)

    def submitted(self, process: Process, revision: int = 0) -> None:
        """As `Attachment.submitted`."""
        self.outbox.touched(process)


class Front(Lab):
    """The colony `lab`, which also forwards, before and after a restart."""

    def __init__(self, client: Any) -> None:
        super().__init__(client)
        self.start()

    def start(self) -> None:
        """Everything in memory is new; the keys of both colonies stay."""
        self.peers = Peers(self.client, self.keys, self.context.signer)
        self.processes = Processes(self.client, Clock(time.time_ns))
        self.context = replace(self.context, peers=self.peers, processes=self.processes)
        self.outbox = ledger_of(self.context)
        self.inbox = inbox_of(self.context, self.outbox)
        self.assigner = assigning(self.processes)
        self.processes.attach(Sending(self.inbox, self.outbox))
        self.revocation = Revocation(self.context, self.outbox)
        self.serve()

    async def restart(self) -> None:
        self.start()
        await self.peers.load()
        await self.inbox.outcome_queue.load()
        await self.outbox.load()

    async def forward(self, state: str) -> str:
        """A process of ours on its way to the peer, as far as `state`."""
        spec = FunctionSpec(funcname="f", conditions=Conditions("field", executortype="t"))
        process = build_process(
            spec, processid=new_id(), initiatorid=self.key.id, initiatorname="me",
            colonyname="lab", now=time.time_ns(), peer=self.other.id,
        )  # fmt: skip
        await self.processes.submit(process, b"")
        pid = process.processid
        await self.outbox.refresh(self.other.id)
        entry = self.outbox.entries[pid]
        if state != ForwardState.QUEUED:
            await self.outbox.save(
                entry, machine.sending(entry.forward, b"sealed", 1), entry.forward
            )
        if state in (ForwardState.ACCEPTED, ForwardState.CANCELLING):
            effect = machine.received(entry.forward, "accepted", "9" * 64, b"receipt")
            await self.outbox.apply(entry, effect, entry.forward)
            await self.outbox.refresh(self.other.id)
        if state == ForwardState.CANCELLING:
            await self.processes.cancel("lab", pid)
            await self.outbox.refresh(self.other.id)
        assert self.outbox.entries[pid].forward.state == state
        return pid

    async def process(self, pid: str) -> Process:
        loaded = await self.processes.load("lab", pid)
        assert loaded is not None
        return loaded[0]

    async def record(self, pid: str) -> Forward:
        found = await self.client.get(self.keys.proof(pid))
        assert found is not None
        return unpack(found.value, Forward)

    async def accept(self, number: int) -> Response:
        message = msgspec.structs.replace(submission(), pid=f"{number:064x}")
        return await self.raw("submit", self.seal(Kind.SUBMIT, message))

    async def taken(self) -> Process:
        candidate = Candidate("lab", "t", "w", "", None, None)
        return await self.assigner.assign(candidate, WORKER, 0)


SECONDS = 120


def sum_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def furnish(colony: Colony, path: Path, quota: int = 0) -> Files:
    """Give a colony a vault."""
    assert colony.node is not None
    files = colony.node.files
    files.blobs = BlobStore(path / f"{colony.name}-files", quota, time.time_ns)
    colony.fed.file_transfer.files = files
    return files


async def put(colony: Colony, label: str, name: str, data: bytes) -> File:
    """Store a file."""
    assert colony.node is not None
    files, checksum = colony.node.files, sum_of(data)
    assert files.blobs is not None
    scope = Scope("PUT", colony.name, checksum, len(data), 0, "me")
    await files.blobs.write(scope, 0, data)
    await files.hold(colony.name, checksum, len(data))
    ref = Reference("colonyd")
    file = File(new_id(), colony.name, label, name, len(data), checksum, "SHA256", ref)
    return await files.add(file)


def mounts(*labels: str, **more: Any) -> dict[str, Any]:
    dirs = [{"label": label, "dir": f"/d{place}"} for place, label in enumerate(labels)]
    return {"mount": "/m", "dirs": dirs} | more


@asynccontextmanager
async def furnished(path: Path, *names: str) -> AsyncIterator[World]:
    with trio.fail_after(SECONDS):
        async with world(path, names) as there:
            await befriended(there)
            for colony in there.values():
                furnish(colony, path)
            yield there
