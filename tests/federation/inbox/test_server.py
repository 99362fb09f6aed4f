"""The door for peers: the order of checks, and the inbox behind it on a real store."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from colonyd.keys import PrivateKey
from federation.forward.path import local_id
from federation.forward.receipt import ReceiptRecord
from federation.inbox.accept import Inbox
from federation.membership.probe import Prober
from federation.membership.rotation import Rotation
from federation.peers.context import Context
from federation.peers.keys import Keys
from federation.peers.registry import BLOCKED, PENDING, TRUSTED, Peers
from federation.service.server import Server
from federation.transport.endpoint import Endpoint
from federation.wire.card import Card, sign_card
from federation.wire.clock import SigningClock
from federation.wire.envelope import Kind, VerifiedMessage, open_envelope
from federation.wire.messages import Cancel, Hello, Outcome, Outcomes, Poll, Receipt, Submit
from federation.wire.messages import load as load_message
from federation.wire.signer import Signer
from node.etcd.client import EtcdClient, open_client
from node.host.clock import Clock
from node.http.server import Request, Response
from node.model.codec import pack, unpack
from node.model.types import Executor, Process, State
from node.processes.extension import Hooks
from node.processes.queue import Candidate
from node.processes.service import Processes
from node.tasks.sync import WakeUps
from tests.node.etcd.support import start_store
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


async def test_the_checks_come_in_their_order(lab: Lab) -> None:
    submit = submission()
    sealed = lab.seal(Kind.SUBMIT, submit)
    now = int(time.time())
    assert code(await lab.raw("submit", b"x" * 1_500_001)) == "too_large"
    assert code(await lab.raw("submit", b"nonsense")) == "malformed"
    assert code(await lab.raw("submit", sealed)) == "unknown_issuer"
    assert code(await lab.introduce()) == "untrusted"
    assert lab.peers.state(lab.other.id) == PENDING
    assert code(await lab.raw("submit", sealed[:-1] + bytes([sealed[-1] ^ 1]))) == "bad_signature"
    assert code(await lab.raw("submit", lab.seal(Kind.CANCEL, submit))) == "wrong_kind"
    elsewhere = lab.seal(Kind.SUBMIT, submit, audience="9" * 64)
    assert code(await lab.raw("submit", elsewhere)) == "wrong_audience"
    old = lab.seal(Kind.SUBMIT, submit, issued=now - 100, expires=now - 10)
    assert code(await lab.raw("submit", old)) == "expired"
    assert code(await lab.raw("submit", sealed)) == "untrusted"
    await lab.peers.trust(lab.other.id)
    looped = lab.seal(Kind.SUBMIT, submission(path=[lab.key.id]))
    assert code(await lab.raw("submit", looped)) == "hops"
    bad = lab.seal(Kind.SUBMIT, submission(spec=b'{"funcname":1}'))
    assert code(await lab.raw("submit", bad)) == "bad_spec"
    assert lab.server.counters["untrusted"] == 2
    assert (await lab.raw("submit", sealed)).status == 200


async def test_other_paths_and_methods_are_refused(lab: Lab) -> None:
    assert code(await lab.raw("nothing", b"")) == "not_found"
    assert code(await lab.server.handle(Request("GET", "/v2/submit", "", {}, b"", "x"))) == "method"
    card = await lab.server.handle(Request("GET", "/v1/card", "", {}, b"", "x"))
    assert (card.status, card.body) == (200, b"card")


async def test_a_hello_is_answered_once_trusted_and_never_when_blocked(lab: Lab) -> None:
    await lab.befriend()
    lab.opened(await lab.introduce(), Kind.HELLO)
    assert lab.greeted == [lab.other.id]
    await lab.peers.block(lab.other.id)
    assert code(await lab.introduce()) == "blocked"
    assert lab.peers.state(lab.other.id) == BLOCKED
    assert code(await lab.raw("submit", lab.seal(Kind.SUBMIT, submission()))) == "blocked"
    again = Peers(lab.client, lab.keys, Signer(lab.key, SigningClock()))
    await again.load()
    assert again.state(lab.other.id) == BLOCKED, "the tombstone is in the store"
    await again.trust(lab.other.id)
    assert again.state(lab.other.id) == TRUSTED


async def test_a_repeat_gets_the_first_receipt_and_runs_once(lab: Lab) -> None:
    await lab.befriend()
    sealed = lab.seal(Kind.SUBMIT, submission())
    answers: list[bytes] = []

    async def send() -> None:
        answers.append((await lab.raw("submit", sealed)).body)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(send)
    assert len(set(answers)) == 1
    receipt = await lab.submit(sealed)
    assert receipt.status == "accepted"
    assert receipt.remote == local_id(lab.other.id, PID, 1)
    assert len(lab.processes.queue.entries) == 1
    other = lab.seal(Kind.SUBMIT, submission(spec=SPEC.replace(b"2.5", b"3")))
    assert code(await lab.raw("submit", other)) == "id_reuse"
    loaded = await lab.processes.load("lab", receipt.remote)
    assert loaded is not None
    process = loaded[0]
    assert (process.initiatorid, process.initiatorname) == (lab.other.id, "colony/field")
    assert process.spec.args == [1, 2.5]


async def test_receipts_and_outcomes_name_what_they_are_for(lab: Lab) -> None:
    await lab.befriend()
    sealed = lab.seal(Kind.SUBMIT, submission())
    asked = (lab.other.id, hashlib.sha256(sealed).digest())
    receipt = await lab.submit(sealed)
    assert (receipt.origin, receipt.asked) == asked
    await lab.run_one()
    (outcome,) = await lab.poll()
    assert (outcome.origin, outcome.asked) == asked
    late = load_message(
        lab.opened(await lab.post("cancel", Kind.CANCEL, Cancel(PID, 1)), Kind.RECEIPT).payload,
        Receipt,
    )
    assert (late.status, late.origin, late.asked) == ("already_closed", *asked)
    # A cancel that comes first is about nothing that was ever received.
    early = load_message(
        lab.opened(
            await lab.post("cancel", Kind.CANCEL, Cancel("5" * 64, 1)), Kind.RECEIPT
        ).payload,
        Receipt,
    )
    assert (early.status, early.origin, early.asked) == ("cancelled", "", b"")


async def test_a_receipt_of_an_earlier_release_is_made_anew(lab: Lab) -> None:
    """Its answer was lost, and both were upgraded: the same bytes get one that can be believed."""
    await lab.befriend()
    sealed = lab.seal(Kind.SUBMIT, submission())
    receipt = await lab.submit(sealed)
    place = lab.keys.receipt_record(lab.other.id, PID)
    found = await lab.client.get(place)
    assert found is not None
    old = lab.context.signer.seal(
        Kind.RECEIPT, lab.other.id, Receipt(PID, 1, "accepted", receipt.remote)
    )
    receipt_record = unpack(found.value, ReceiptRecord)
    receipt_record = msgspec.structs.replace(receipt_record, receipt=old, asked=b"", origin="")
    await lab.client.put(place, pack(receipt_record))
    again = await lab.submit(sealed)
    assert again == receipt
    await lab.run_one()
    (outcome,) = await lab.poll()
    assert (outcome.origin, outcome.asked) == (receipt.origin, receipt.asked)


@pytest.mark.parametrize("path", ["submit", "cancel", "outcomes"])
async def test_version_1_is_refused_and_told_why(lab: Lab, path: str) -> None:
    await lab.befriend()
    sealed = lab.seal(Kind.SUBMIT, submission())
    answer = await lab.server.handle(Request("POST", f"/v1/{path}", "", {}, sealed, "10.0.0.2"))
    told = json.loads(answer.body)
    assert (answer.status, told["code"]) == (400, "version")
    assert "version 2" in told["message"]
    assert "upgrade the daemon of the colony that sent it" in told["message"]
    # Signed, so that its sender knows for certain that nothing was taken.
    assert bool(told.get("signed")) == (path == "submit")
    assert not lab.processes.queue.entries


async def test_a_block_by_another_daemon_is_noticed_inside_the_transaction(lab: Lab) -> None:
    await lab.befriend()
    elsewhere = Peers(lab.client, lab.keys, Signer(lab.key, SigningClock()))
    await elsewhere.load()
    await elsewhere.block(lab.other.id)
    assert lab.peers.state(lab.other.id) == TRUSTED
    assert code(await lab.raw("submit", lab.seal(Kind.SUBMIT, submission()))) == "blocked"
    assert not lab.processes.queue.entries


async def test_an_outcome_is_owed_until_acknowledged(lab: Lab) -> None:
    await lab.befriend()
    receipt = await lab.submit(lab.seal(Kind.SUBMIT, submission()))
    assert await lab.poll() == []
    process = await lab.run_one()
    assert "has not fetched" in lab.inbox.removable(process)
    first, second = await lab.poll(), await lab.poll()
    assert first == second
    assert (first[0].pid, first[0].state, first[0].out) == (PID, 2, b"[3.5]")
    assert (first[0].localpid, first[0].executor) == (receipt.remote, WORKER.executorid)
    reloaded = inbox_of(lab.context)
    await reloaded.outcome_queue.load()
    assert reloaded.removable(process), "a restart does not forget what is owed"
    assert await lab.poll(0, PID) == []
    assert lab.inbox.removable(process) == ""


async def test_outcomes_are_read_together(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each took three requests of the store, one after another."""
    count, requests = 24, 0
    await lab.befriend()
    for number in range(count):
        submit = msgspec.structs.replace(submission(), pid=f"{number:064x}")
        await lab.submit(lab.seal(Kind.SUBMIT, submit))
        await lab.run_one()
    call = lab.client._channel.call

    async def counted(*args: Any, **kwargs: Any) -> bytes:
        nonlocal requests
        requests += 1
        return await call(*args, **kwargs)

    monkeypatch.setattr(lab.client._channel, "call", counted)
    outcomes = await lab.poll()
    assert [outcome.pid for outcome in outcomes] == [f"{each:064x}" for each in range(count)]
    assert requests <= count


async def test_a_waiting_poll_wakes_when_the_process_closes(lab: Lab) -> None:
    await lab.befriend()
    await lab.submit(lab.seal(Kind.SUBMIT, submission()))
    found: list[Outcome] = []

    async def wait() -> None:
        found.extend(await lab.poll(30))

    with trio.fail_after(50):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await lab.run_one()
    assert [outcome.pid for outcome in found] == [PID]


async def test_a_cancel_that_overtakes_its_submission_wins(lab: Lab) -> None:
    await lab.befriend()
    response = await lab.post("cancel", Kind.CANCEL, Cancel(PID, 1))
    receipt = load_message(lab.opened(response, Kind.RECEIPT).payload, Receipt)
    assert (receipt.status, receipt.remote) == ("cancelled", "")
    late = await lab.submit(lab.seal(Kind.SUBMIT, submission()))
    assert (late.status, late.remote) == ("cancelled", "")
    assert not lab.processes.queue.entries


async def test_a_cancel_ends_a_waiting_process_and_its_end_is_owed(lab: Lab) -> None:
    await lab.befriend()
    await lab.submit(lab.seal(Kind.SUBMIT, submission()))
    statuses = []
    for _ in range(2):
        response = await lab.post("cancel", Kind.CANCEL, Cancel(PID, 1))
        receipt = load_message(lab.opened(response, Kind.RECEIPT).payload, Receipt)
        statuses.append(receipt.status)
    assert statuses == ["cancelled", "already_closed"]
    assert [outcome.state for outcome in await lab.poll()] == [State.CANCELLED]
