"""Several submissions in one message: each is answered as if it had come alone."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import trio

from colonyd.keys import PrivateKey, verify_es256k
from federation.peers.policy import Policy
from federation.wire import cbor, envelope
from federation.wire.envelope import Kind
from federation.wire.messages import (
    MOST_TOGETHER,
    Answer,
    Receipt,
    Receipts,
    SignedRefusal,
    Submit,
    Submits,
)
from federation.wire.messages import load as load_message
from federation.wire.refusals import RefusalBody
from node.http.server import Response
from tests.federation.inbox.support import SPEC, Lab, code, lab

__all__ = ["lab"]


def submission(number: int, spec: bytes = SPEC) -> Submit:
    return Submit(f"{number:064x}", 1, spec, "me", hops=1, path=[])


async def together(lab: Lab, *sealed: bytes) -> list[Answer]:
    response = await lab.post("submits", Kind.SUBMITS, Submits(list(sealed)))
    return load_message(lab.opened(response, Kind.RECEIPTS).payload, Receipts).answers


def receipt(lab: Lab, answer: Answer) -> Receipt:
    opened = lab.opened(Response(answer.status, answer.body), Kind.RECEIPT)
    return load_message(opened.payload, Receipt)


def refusal(lab: Lab, answer: Answer) -> tuple[str, SignedRefusal]:
    body = msgspec.json.decode(answer.body, type=RefusalBody)
    signed = load_message(lab.open(body.signed, Kind.REFUSAL).payload, SignedRefusal)
    return code(Response(answer.status, answer.body)), signed


async def test_each_gets_the_receipt_that_it_would_get_alone(lab: Lab) -> None:
    await lab.befriend()
    sealed = [lab.seal(Kind.SUBMIT, submission(number)) for number in range(MOST_TOGETHER)]
    answers = await together(lab, *sealed)
    assert len(lab.processes.queue.entries) == MOST_TOGETHER
    for data, answer in zip(sealed, answers, strict=True):
        assert (await lab.raw("submit", data)).body == answer.body
        assert receipt(lab, answer).asked == hashlib.sha256(data).digest()
    assert [each.body for each in await together(lab, *sealed)] == [each.body for each in answers]
    assert len(lab.processes.queue.entries) == MOST_TOGETHER


async def test_a_submission_that_is_there_twice_is_accepted_once(lab: Lab) -> None:
    await lab.befriend()
    sealed = lab.seal(Kind.SUBMIT, submission(1))
    other = lab.seal(Kind.SUBMIT, submission(1, SPEC.replace(b"2.5", b"3")))
    first, *same = await together(lab, sealed, sealed, sealed)
    assert {answer.body for answer in same} == {first.body}
    again, differs = await together(lab, sealed, other)
    assert (again.body, refusal(lab, differs)[0]) == (first.body, "id_reuse")
    assert len(lab.processes.queue.entries) == 1


async def test_what_is_refused_touches_no_other(lab: Lab) -> None:
    await lab.befriend()
    stranger = PrivateKey.generate()
    good = [lab.seal(Kind.SUBMIT, submission(number)) for number in (1, 2)]
    bad = {
        "bad_spec": lab.seal(Kind.SUBMIT, submission(3, b'{"funcname":1}')),
        "wrong_audience": lab.seal(Kind.SUBMIT, submission(4), audience="9" * 64),
        "wrong_kind": lab.seal(Kind.CANCEL, submission(5)),
        "bad_signature": good[0][:-1] + bytes([good[0][-1] ^ 1]),
    }
    answers = await together(lab, good[0], *bad.values(), good[1])
    for name, data, answer in zip(bad, bad.values(), answers[1:-1], strict=True):
        told, signed = refusal(lab, answer)
        assert told == name
        # So its sender can believe it, as a refusal of the submission alone.
        assert (signed.path, signed.code) == ("/v2/submit", name)
        assert signed.digest == hashlib.sha256(data).digest()
    assert {receipt(lab, answer).pid for answer in (answers[0], answers[-1])} == {
        submission(number).pid for number in (1, 2)
    }
    foreign = envelope.seal(
        stranger,
        Kind.SUBMIT,
        lab.key.id,
        b"",
        cti=b"x",
        issued=lab.clock.seconds,
        expires=lab.clock.seconds + 60,
    )
    answers = await together(lab, foreign, b"nonsense", good[0])
    assert [code(Response(each.status, each.body)) for each in answers[:-1]] == ["malformed"] * 2
    assert answers[-1].status == 200
    assert len(lab.processes.queue.entries) == 2


async def test_each_counts_and_has_its_own_quota(lab: Lab) -> None:
    await lab.befriend()
    await lab.peers.set_policy(lab.other.id, Policy(messages=4, max_waiting=2))
    sealed = [lab.seal(Kind.SUBMIT, submission(number)) for number in range(5)]
    answers = await together(lab, *sealed)
    assert [answer.status for answer in answers].count(200) == 2
    told = [refusal(lab, each)[0] for each in answers if each.status != 200]
    assert sorted(told) == ["policy_messages", "policy_messages", "policy_waiting"]
    assert all(answer.again > 0 for answer in answers if answer.status != 200)


@pytest.mark.parametrize("count", [0, MOST_TOGETHER + 1])
async def test_more_than_fit_are_refused_before_one_is_looked_at(lab: Lab, count: int) -> None:
    await lab.befriend()
    sealed = [lab.seal(Kind.SUBMIT, submission(number)) for number in range(count)]
    payload = cbor.encode({"submits": list[Any](sealed)})
    now = lab.clock.seconds
    body = envelope.seal(
        lab.other,
        Kind.SUBMITS,
        lab.key.id,
        payload,
        cti=b"x",
        issued=now,
        expires=now + 60,
    )
    assert code(await lab.raw("submits", body)) == "malformed"
    assert not lab.processes.queue.entries
    assert code(await lab.raw("submits", b"x" * 1_500_001)) == "too_large"


async def test_without_trust_one_signature_is_checked(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lab.introduce()
    calls = 0

    def counted(*arguments: bytes) -> bool:
        nonlocal calls
        calls += 1
        return verify_es256k(*arguments)

    monkeypatch.setattr(envelope, "verify_es256k", counted)
    sealed = [lab.seal(Kind.SUBMIT, submission(number)) for number in range(MOST_TOGETHER)]
    assert code(await lab.post("submits", Kind.SUBMITS, Submits(sealed))) == "untrusted"
    assert calls == 1


async def test_a_block_meanwhile_holds_for_each(lab: Lab) -> None:
    await lab.befriend()
    sealed = [lab.seal(Kind.SUBMIT, submission(number)) for number in range(2)]
    body = lab.seal(Kind.SUBMITS, Submits(sealed))
    await lab.peers.block(lab.other.id)
    with trio.fail_after(50):
        assert code(await lab.raw("submits", body)) == "blocked"
    assert not lab.processes.queue.entries


async def test_a_fault_of_ours_at_one_is_not_the_fate_of_the_others(lab: Lab) -> None:
    await lab.befriend()
    endpoint = lab.server._table["/v2/submit"]
    assert endpoint.action is not None
    accept = endpoint.action

    async def faulty(opened: envelope.VerifiedMessage, data: bytes) -> bytes:
        if data == sealed[1]:
            raise ZeroDivisionError
        return await accept(opened, data)

    lab.server._table["/v2/submit"] = replace(endpoint, action=faulty)
    sealed = [lab.seal(Kind.SUBMIT, submission(number)) for number in range(3)]
    answers = await together(lab, *sealed)
    assert [answer.status for answer in answers] == [200, 500, 200]
