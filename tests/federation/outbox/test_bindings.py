"""An outcome answers one submission of one origin: relays that show others in its place are caught.

And whom a name means on the way: where the origin trusts a colony under it, that colony alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from msgspec.structs import replace

from cli.work.process import forward_fields
from colonyd.keys import PrivateKey
from federation.forward.chain import conclusion, trace
from federation.forward.machine import Forward, ForwardState
from federation.forward.path import OriginRequest, local_id
from federation.forward.receipt import ReceiptRecord
from federation.service.rpc_forwards import get_forward
from federation.wire.card import open_card, sign_card
from federation.wire.envelope import Kind, inspect, seal
from federation.wire.messages import Outcome, Outcomes, Poll, Receipt, Submit, dump, load
from node.etcd.txn import Put, Txn
from node.http.server import Request as HttpRequest
from node.http.server import Response
from node.model.codec import pack, unpack
from node.model.types import State
from node.rpc.calls import Caller
from node.rpc.requests import ProcessById
from tests.federation.membership.support import follows
from tests.support.colonies import Colony, world
from tests.support.daemons import until

OWN = b'{"funcname":"other","conditions":{"colonyname":"cat","executortype":"t"}}'


class Relay:
    """bee, whose machine answers its peers as it likes; `ant`'s work never goes on from there.

    It has a job of its own done by `signer` under the id that ant's process would have there, and
    shows what that signs below its own outcome of ant's process.
    """

    def __init__(self, bee: Colony, cat: Colony) -> None:
        self.bee, self.cat, self.honest = bee, cat, bee.handle
        self.asked: dict[str, tuple[Submit, OriginRequest]] = {}
        self.below: dict[str, bytes] = {}
        self.throwaway: PrivateKey | None = None
        self.told: dict[str, Any] = {}  # changes of its own outcome
        bee.handle = self.handle  # type: ignore[method-assign]

    async def handle(self, request: HttpRequest) -> Response | None:
        """As `Colony.handle`."""
        what = request.path.rpartition("/")[2]
        seen = inspect(request.body, limit=len(request.body)) if request.body else None
        if seen is None or seen.issuer == self.cat.key.id or what not in ("submit", "outcomes"):
            return await self.honest(request)
        if what == "submit":
            submit = load(seen.payload, Submit)
            asked = OriginRequest(seen.issuer, hashlib.sha256(request.body).digest())
            self.asked[submit.pid] = (submit, asked)
            there = local_id(seen.issuer, submit.pid, submit.attempt)
            answer: msgspec.Struct = Receipt(
                submit.pid, submit.attempt, "accepted", there, asked.digest, asked.origin
            )
            await self._job(submit.pid, there, asked)
            return self._answer(Kind.RECEIPT, seen.issuer, answer)
        poll = load(seen.payload, Poll)
        for pid in poll.ack:
            self.asked.pop(pid, None)
        if not self.asked:
            return await self.honest(request)
        found = [await self._outcome(pid, seen.issuer) for pid in self.asked]
        return self._answer(Kind.OUTCOMES, seen.issuer, Outcomes(found))

    def _answer(self, kind: Kind, to: str, message: msgspec.Struct) -> Response:
        return Response(200, self.bee.fed.signer.seal(kind, to, message), "application/cose")

    async def _job(self, pid: str, there: str, asked: OriginRequest) -> None:
        if self.throwaway is not None:
            told = Outcome(
                there, 1, 2, b'["forged"]', [], local_id(self.bee.key.id, there, 1), "e" * 64, 1, 2,
                asked=asked.digest, origin=asked.origin,
            )  # fmt: skip
            now = self.bee.fed.context.clock.seconds
            self.below[pid] = seal(
                self.throwaway, Kind.OUTCOME, self.bee.key.id, dump(told), cti=b"x", issued=now,
                expires=now + 60,
            )  # fmt: skip
            return
        connection = self.bee.fed.connections[self.cat.key.id]
        mine = Submit(there, 1, OWN, "me", 1, [])
        await connection.post("/v2/submit", connection.seal(Kind.SUBMIT, mine), Kind.RECEIPT)

    async def _outcome(self, pid: str, origin: str) -> bytes:
        submit, asked = self.asked[pid]
        if pid not in self.below:
            connection = self.bee.fed.connections[self.cat.key.id]
            poll = connection.seal(Kind.POLL, Poll(20, []))
            opened, _ = await connection.post("/v2/outcomes", poll, Kind.OUTCOMES, 20)
            (self.below[pid],) = load(opened.payload, Outcomes).outcomes
        key = self.throwaway or self.cat.key
        there = local_id(origin, pid, submit.attempt)
        mine = Outcome(
            pid, submit.attempt, 2, b"", [], there, key.id, 1, 2, self.below[pid],
            [key.public_key], asked.digest, asked.origin,
        )  # fmt: skip
        mine = msgspec.structs.replace(mine, **self.told)
        return self.bee.fed.signer.seal(Kind.OUTCOME, origin, mine)


@asynccontextmanager
async def three(path: Path, *, known: bool = False) -> AsyncIterator[tuple[Colony, Colony, Relay]]:
    """ant trusts the relay bee, both trust cat if it is `known`, and cat takes work of bee."""
    async with world(path, ["ant", "bee", "cat"]) as colonies:
        ant, bee, cat = colonies.values()
        await bee.trust(ant, forward=True, max_hops=2)
        await ant.trust(bee)
        await cat.trust(bee, max_hops=2)
        await bee.trust(cat)
        if known:
            await ant.trust(cat)
        relay = Relay(bee, cat)
        with trio.fail_after(50):
            yield ant, cat, relay


async def page(at: Colony, processid: str) -> str:
    """What `colony process show` says of a forward."""
    view = await get_forward(at.fed, Caller(""), ProcessById(processid))
    return "\n".join(f"{name}: {value}" for name, value in forward_fields(view) if value)


@pytest.mark.parametrize("told", [{}, {"asked": b"", "origin": ""}], ids=["as asked", "version 1"])
async def test_a_relay_can_not_pass_off_a_job_of_its_own_as_ours(
    tmp_path: Path, told: dict[str, Any]
) -> None:
    """cat signed for a job that it had from bee, under the id that ant's would have at bee."""
    async with three(tmp_path) as (ant, cat, relay):
        relay.told = told
        processid = await ant.submit(f"bee/{cat.key.id}")
        done = await cat.work("forged")
        process = await ant.closed(processid)
        shown = await page(ant, processid)
    assert done.spec.funcname == "other", "cat never saw what ant asked for"
    assert (process.state, process.output) == (State.FAILED, [])
    assert "is not proven" in process.errors[0]
    if not told:
        assert "it answers another submission" in process.errors[0]
        assert "✗ BUT it answers another submission" in shown


async def test_a_name_that_we_trust_is_that_colony(tmp_path: Path) -> None:
    """The throwaway key of a relay is not the colony that ant knows as cat."""
    async with three(tmp_path, known=True) as (ant, _, relay):
        relay.throwaway = PrivateKey.generate()
        processid = await ant.submit("bee/cat")
        process = await ant.closed(processid)
    assert (process.state, process.output) == (State.FAILED, [])
    assert "and not the colony trusted as 'cat'" in process.errors[0]


async def test_a_name_that_nobody_here_has_is_not_checked_and_the_page_says_so(
    tmp_path: Path,
) -> None:
    async with three(tmp_path) as (ant, _, relay):
        relay.throwaway = PrivateKey.generate()
        processid = await ant.submit("bee/cat")
        process = await ant.closed(processid)
        shown = await page(ant, processid)
    assert process.output == ["forged"]
    assert "cat ? not checked: no colony is trusted here by that name, it may be any" in shown
    assert "✓ signature valid, for the very submission that was sent" in shown


async def test_what_is_checked_is_on_the_page(tmp_path: Path) -> None:
    """And it holds when origin and last colony change their keys between submission and outcome."""
    async with three(tmp_path, known=True) as (ant, cat, relay):
        relay.bee.handle = relay.honest  # type: ignore[method-assign]
        await cat.trust(ant)
        processid = await ant.submit("bee/cat")
        await cat.until(lambda: bool(cat.waiting()))
        former = ant.key.id
        await ant.rotate()
        await cat.rotate()
        for one, other in ((relay.bee, ant), (relay.bee, cat), (ant, cat), (cat, ant)):
            await follows(one, other)
        await cat.work("X")
        process = await ant.closed(processid)
        view = await get_forward(ant.fed, Caller(""), ProcessById(processid))
        shown = await page(ant, processid)
    assert process.output == ["X"]
    assert "outcome: ✓ signature valid, for the very submission that was sent" in shown
    assert "cat ✓ checked: the colony trusted here by that name" in shown
    assert view["asked"]["by"] == former
    assert [step["problem"] for step in view["chain"]] == ["", ""]


# -- as values -----------------------------------------------------------------------------------


ANT, BEE, CAT = (PrivateKey.generate() for _ in range(3))
PID = "1" * 64
AT_BEE = local_id(ANT.id, PID, 1)
ASKED = OriginRequest(ANT.id, hashlib.sha256(b"what ant signed").digest())
OTHER = OriginRequest(BEE.id, hashlib.sha256(b"what bee signed").digest())


def outcome(key: PrivateKey, to: PrivateKey, told: Outcome) -> bytes:
    return seal(key, Kind.OUTCOME, to.id, dump(told), cti=b"o", issued=1, expires=9)


def chain(above: OriginRequest, below: OriginRequest) -> bytes:
    """cat's outcome below bee's, each of which answers a submission."""
    cats = Outcome(
        AT_BEE, 1, 2, b'["X"]', [], local_id(BEE.id, AT_BEE, 1), "e", 1, 2,
        asked=below.digest, origin=below.origin,
    )  # fmt: skip
    bees = Outcome(
        PID, 1, 2, b"", [], AT_BEE, "e", 1, 2, outcome(CAT, BEE, cats), [CAT.public_key],
        above.digest, above.origin,
    )  # fmt: skip
    return outcome(BEE, ANT, bees)


def concluded(data: bytes, request: OriginRequest | None, **known: list[str]) -> tuple[bool, str]:
    steps = trace(data, BEE.id, BEE.public_key, [ANT.id], request=request)
    told, problem = conclusion(steps, ["cat"], known)
    return told is not None, problem


def test_an_outcome_is_bound_to_what_was_asked_and_by_whom() -> None:
    held, problem = concluded(chain(ASKED, ASKED), ASKED)
    assert held, problem
    nothing = OriginRequest()
    for above, below, why in (
        (ASKED, OTHER, "it answers another submission than the outcome above it"),
        (OTHER, OTHER, "it answers another submission, not the one"),
        (ASKED, dataclasses.replace(ASKED, origin=BEE.id), "than the outcome above it"),
        (dataclasses.replace(ASKED, origin=BEE.id),) * 2 + ("not the one that its origin signed",),
        (nothing, nothing, "version 1 of the protocol"),
        (ASKED, nothing, "than the outcome above it"),
    ):
        held, problem = concluded(chain(above, below), ASKED)
        assert not held
        assert why in problem
    held, problem = concluded(chain(ASKED, ASKED), OriginRequest())
    assert not held
    assert "never sent from here" in problem
    # What ended before version 2 is looked at with less: its record does not tell what was asked.
    assert concluded(chain(nothing, nothing), None)[0]
    assert not concluded(chain(nothing, OTHER), None)[0]


def test_a_name_that_is_known_is_one_colony() -> None:
    data = chain(ASKED, ASKED)
    assert concluded(data, ASKED, cat=[CAT.id, "f" * 64])[0]
    held, problem = concluded(data, ASKED, cat=["f" * 64])
    assert not held
    assert problem == f"{CAT.id[:12]} had it, and not the colony trusted as 'cat'"


# -- versions ------------------------------------------------------------------------------------


async def test_to_a_peer_of_version_1_nothing_is_sent_until_it_is_upgraded(tmp_path: Path) -> None:
    async with world(tmp_path, ["ant", "bee"]) as colonies:
        ant, bee = colonies.values()
        await bee.trust(ant)
        await ant.trust(bee)
        entry = ant.fed.peers.known[bee.key.id]
        card = open_card(bee.fed.own_card.card(), time.time())

        async def shows(versions: list[int], sequence: int) -> None:
            made = msgspec.structs.replace(card, versions=versions, sequence=sequence)
            data = sign_card(bee.key, made)
            await ant.fed.peers.learn(open_card(data, time.time()), data, near=False)

        await shows([1], card.sequence + 1)
        with trio.fail_after(50):
            processid = await ant.submit("bee")
            await until(20, lambda: _true("speaks version 1" in entry.error))
            await until(20, lambda: _true(processid in ant.fed.outbox.entries))
            forward = ant.fed.outbox.entries[processid].forward
            assert (forward.state, forward.attempts) == (ForwardState.QUEUED, 0)
            assert "upgrade its daemon" in entry.peer.mismatch
            assert not bee.waiting()
            await shows([2], card.sequence + 2)
            ant.fed.outbox.retry_now(bee.key.id)
            await bee.work("X")
            assert (await ant.closed(processid)).output == ["X"]


async def _true(value: bool) -> bool:
    return value


async def test_what_is_under_way_while_both_are_upgraded_is_proven(tmp_path: Path) -> None:
    """Marker and forward of an earlier release tell nothing, but the messages beside them do."""
    async with world(tmp_path, ["ant", "bee"]) as colonies:
        ant, bee = colonies.values()
        await bee.trust(ant)
        await ant.trust(bee)
        with trio.fail_after(50):
            processid = await ant.submit("bee")
            await ant.when(processid, lambda process: process.state == State.RUNNING)
            await ant.until(lambda: not ant.fed.outbox.stale)
            place = ant.fed.keys.forward(bee.key.id, processid)
            mark = bee.fed.keys.receipt_record(ant.key.id, processid)
            forward, receipt_record = await ant.client.get(place), await bee.client.get(mark)
            assert forward is not None
            assert receipt_record is not None
            old = replace(unpack(forward.value, Forward), asked=b"", askedby="")
            known = replace(unpack(receipt_record.value, ReceiptRecord), asked=b"", origin="")
            await ant.client.commit(Txn([], [Put(place, pack(old)), Put(mark, pack(known))]))
            ant.fed.outbox.mark(old)
            await ant.fed.outbox.refresh_all()
            await bee.work("X")
            process = await ant.closed(processid)
            shown = await page(ant, processid)
    assert process.output == ["X"]
    assert "✓ signature valid, for the very submission that was sent" in shown


async def test_what_was_never_sent_from_here_has_no_outcome(tmp_path: Path) -> None:
    """As after a restore of a store that did not know yet that it was sent."""
    async with world(tmp_path, ["ant", "bee"]) as colonies:
        ant, bee = colonies.values()
        await bee.trust(ant)
        await ant.trust(bee)
        with trio.fail_after(50):
            bee.hidden = True
            processid = await ant.submit("bee")
            local = local_id(ant.key.id, processid, 1)
            told = Outcome(processid, 1, 2, b'["X"]', [], local, "", 1, 2, asked=b"x" * 32,
                           origin=ant.key.id)  # fmt: skip
            sealed = bee.fed.signer.seal(Kind.OUTCOME, ant.key.id, told)
            await ant.fed.outcome_poller.settle(ant.fed.connections[bee.key.id], sealed)
            process = await ant.process(processid)
    assert process.state == State.FAILED
    assert "never sent from here" in process.errors[0]
