"""The door for peers: the order of checks, and the inbox behind it on a real store."""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any

import msgspec
import pytest
import trio

from federation.forward.path import local_id
from federation.forward.receipt import ReceiptRecord
from federation.peers.registry import BLOCKED, PENDING, TRUSTED, Peers
from federation.wire.clock import SigningClock
from federation.wire.envelope import Kind
from federation.wire.messages import Cancel, Outcome, Receipt
from federation.wire.messages import load as load_message
from federation.wire.signer import Signer
from node.http.server import Request
from node.model.codec import pack, unpack
from node.model.types import State
from tests.federation.inbox.support import (
    PID,
    SPEC,
    WORKER,
    Lab,
    code,
    submission,
)
from tests.federation.inbox.support import lab as lab
from tests.support.parts import inbox_of


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
