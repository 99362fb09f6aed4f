"""What colonies offer each other: made from the indexes, cut to the policy, believed a while."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from federation.peers.policy import Policy
from federation.routing.capabilities import (
    HEARD,
    STALE,
    CapabilityCache,
    CapacitySnapshot,
    load,
    offers,
    permitted,
    same,
)
from federation.routing.exchange import Exchange
from federation.wire.clock import SigningClock
from federation.wire.envelope import Kind
from federation.wire.messages import Capabilities, Offer
from federation.wire.messages import load as load_message
from node.etcd.client import open_client
from node.members.service import Members
from node.model.types import SECOND, Colony, Executor, ExecutorState, Function, Waiting
from node.processes.queue import Candidate, Queue, QueueEntry
from node.store.directory import Directory
from tests.federation.inbox.support import Lab, code
from tests.node.etcd.support import start_store
from tests.support.parts import portrait_of

NOW = 1_700_000_000 * SECOND


def executor(name: str, executortype: str = "cli", *, heard: int = 1) -> Executor:
    """One heard from `heard` seconds ago."""
    identity = f"{name:0<64}"
    state = ExecutorState.APPROVED
    last = NOW - heard * SECOND
    return Executor(identity, executortype, name, "lab", state, lastheardfromtime=last)


def said(seq: int = 1, **types: Offer) -> Capabilities:
    return Capabilities(seq, types=types)


# -- making one ----------------------------------------------------------------------------


def test_only_executors_that_are_there_are_offered() -> None:
    pending = replace_state(executor("new"), ExecutorState.PENDING)
    away = executor("away", "old", heard=HEARD + 1)
    survey = CapacitySnapshot(
        NOW, [executor("ann"), executor("bob"), pending, away], waiting={"cli": 3}
    )
    assert offers(survey) == {"cli": Offer(["*"], executors=2, waiting=3)}
    # One that polls, or runs something, is there however long it has said nothing.
    assert offers(replace(survey, polling={("old", "away"): 2}))["old"].free == 2
    assert offers(replace(survey, running=[("old", away.executorid)]))["old"].running == 1


def replace_state(one: Executor, state: ExecutorState) -> Executor:
    one.state = state
    return one


def test_registered_functions_are_offered_and_without_any_it_is_everything() -> None:
    functions = [Function("ann", "lab", "upper"), Function("ann", "lab", "lower")]
    survey = CapacitySnapshot(NOW, [executor("ann")], functions)
    assert offers(survey)["cli"].functions == ["lower", "upper"]
    assert offers(replace(survey, executors=[executor("ann"), executor("bob")]))[
        "cli"
    ].functions == ["*"]


def test_what_is_offered_is_bounded() -> None:
    many = [executor(f"e{n}", f"type-{n:03d}") for n in range(80)]
    functions = [Function("e0", "lab", f"f{n:04d}") for n in range(400)]
    found = offers(CapacitySnapshot(NOW, many, functions))
    assert len(found) == 64
    assert len(found["type-000"].functions) == 256


def test_a_peer_is_offered_what_its_policy_allows() -> None:
    found = {"cli": Offer(["lower", "upper"]), "web": Offer(["*"]), "gpu": Offer(["train"])}
    assert permitted(found, Policy()) == found
    policy = Policy(functions=["up*"], executor_types=["cli", "w*"])
    # Of what runs anything, it may use what the policy names.
    assert permitted(found, policy) == {"cli": Offer(["upper"]), "web": Offer(["up*"])}


def test_load_counts_what_waits_runs_and_went_there_since() -> None:
    assert load(Offer(executors=2, free=2)) == 0
    assert load(Offer(executors=2, free=1, running=1)) == 0.5
    assert load(Offer(executors=2, running=2, waiting=4)) == 3
    assert load(Offer(executors=2, free=2), sent=2) == 1
    assert load(Offer(executors=1, free=8), sent=2) == 0.25


def test_the_depth_of_the_queue_is_told_by_type_whoever_sent_it() -> None:
    queue = Queue()
    for number, (colony, executortype, origin, blocked) in enumerate(
        [
            ("lab", "cli", "", False),
            ("lab", "cli", "b" * 64, False),
            ("lab", "cli", "", True),
            ("lab", "web", "", False),
            ("dev", "cli", "", False),
        ]
    ):
        waiting = Waiting([], "", 0, 0, 0, "", "me", origin)
        queue.add(QueueEntry(number, f"{number:064x}", 1, colony, executortype, waiting, blocked))
    assert queue.depths("lab") == {"cli": 2, "web": 1}


def test_marked_changes_are_told_apart_from_small_ones() -> None:
    base = said(cli=Offer(["*"], 4, 2, 10, 2))
    for other, equal in (
        (said(2, cli=Offer(["*"], 4, 1, 12, 3)), True),
        (said(2, cli=Offer(["*"], 4, 0, 10, 4)), False),  # nothing is free any more
        (said(2, cli=Offer(["*"], 4, 2, 30, 2)), False),
        (said(2, cli=Offer(["up*"], 4, 2, 10, 2)), False),
        (said(2), False),
        (Capabilities(2, False, base.types), False),
        (Capabilities(2, True, base.types, ["red"]), False),
        (Capabilities(2, True, base.types, [], {"room": 0}), False),
        (Capabilities(2, True, base.types, [], {"room": 5}), True),
    ):
        assert same(base, other) is equal, other
        assert same(other, base) is equal, other


# -- believing one -------------------------------------------------------------------------


def test_a_statement_holds_until_a_newer_one_or_until_it_is_stale() -> None:
    clock = [100.0]
    capability_cache = CapabilityCache(SigningClock(steady=lambda: clock[0]))
    assert capability_cache.age("bee") is None
    assert capability_cache.take("bee", said(5))
    capability_cache.sent("bee", "cli")
    assert not capability_cache.take("bee", said(5)), "a repeat says nothing new"
    assert not capability_cache.take("bee", said(4)), "an older one may be a replay"
    statement = capability_cache.get("bee")
    assert statement is not None
    assert (statement.said.seq, statement.sent["cli"], statement.sent["web"]) == (5, 1, 0)
    capability_cache.ended("bee", "cli")
    capability_cache.ended("bee", "cli")
    assert statement.sent["cli"] == 0
    capability_cache.sent("bee", "cli")
    clock[0] += STALE
    assert not statement.stale(clock[0])
    assert statement.stale(clock[0] + 0.1)
    assert capability_cache.take("bee", said(6))
    assert capability_cache.age("bee") == 0
    fresh = capability_cache.get("bee")
    assert fresh is not None
    assert not fresh.sent, "what it says now counts what went there before"
    capability_cache.drop("bee")
    assert capability_cache.get("bee") is None


# -- on a real store -----------------------------------------------------------------------


class Offering(Lab):
    """The lab, with an executor and what it offers."""

    def furnish(self) -> None:
        directory = Directory()
        members = Members(self.client, directory, time.time_ns)
        index = directory.rosters.setdefault("lab", directory.roster("lab"))
        index.colony = Colony(self.key.id, "lab")
        worker = Executor("e" * 64, "t", "w", "lab", ExecutorState.APPROVED)
        worker.lastheardfromtime = time.time_ns()
        index.executors["w"] = worker
        self.capability_cache = CapabilityCache(self.clock)
        own_card = portrait_of(self.context)
        own_card._sequence = 7
        self.exchange = Exchange(
            self.context, self.assigner, self.capability_cache, own_card, trio.Event(), members
        )
        self.serve(*self.exchange.endpoints())

    async def hear(self, message: Capabilities) -> Capabilities:
        response = await self.post("capabilities", Kind.CAPABILITIES, message)
        opened = self.opened(response, Kind.CAPABILITIES)
        return load_message(opened.payload, Capabilities)


@pytest.fixture
async def offering(nursery: trio.Nursery, tmp_path: Path) -> AsyncIterator[Offering]:
    store = await start_store(nursery, tmp_path / "etcd")
    async with open_client(store.target) as client:
        lab = Offering(client)
        lab.furnish()
        yield lab


async def test_statements_are_exchanged_between_trusted_colonies_only(offering: Offering) -> None:
    lab = offering
    mine = said(3, cli=Offer(["*"]))
    sealed = lab.seal(Kind.CAPABILITIES, mine)
    assert code(await lab.raw("capabilities", sealed)) == "unknown_issuer"
    await lab.introduce()
    assert code(await lab.raw("capabilities", sealed)) == "untrusted"
    assert lab.capability_cache.get(lab.other.id) is None, "a refusal leaves nothing behind"
    await lab.peers.trust(lab.other.id)
    assert code(await lab.raw("capabilities", lab.seal(Kind.HELLO, mine))) == "wrong_kind"
    wrong = lab.seal(Kind.CAPABILITIES, Capabilities(-1))
    assert code(await lab.raw("capabilities", wrong)) == "malformed"
    assert code(await lab.raw("capabilities", b"x" * 70_000)) == "too_large"
    first = await lab.hear(mine)
    assert first.types == {"t": Offer(["*"], executors=1)}
    assert first.accepting
    assert first.limits["body"] > 0
    kept = lab.capability_cache.get(lab.other.id)
    assert kept is not None
    assert kept.said == mine
    second = await lab.hear(said(2))
    assert second.seq > first.seq >= 7 << 24, "each is newer, across restarts too"
    assert kept is lab.capability_cache.get(lab.other.id), "a replay changes nothing"
    await lab.peers.block(lab.other.id)
    assert code(await lab.raw("capabilities", sealed)) == "blocked"


async def test_policy_pause_and_room_are_part_of_what_is_said(offering: Offering) -> None:
    lab = offering
    await lab.befriend()
    await lab.peers.set_policy(lab.other.id, Policy(executor_types=["x"], max_waiting=4))
    reply = await lab.hear(said(1))
    assert (reply.types, reply.limits["room"]) == ({}, 4)
    lab.assigner.paused.add("lab")
    assert not (await lab.hear(said(2))).accepting


async def test_a_waiting_poll_is_a_free_slot(offering: Offering) -> None:
    lab = offering
    await lab.befriend()
    worker = Executor("e" * 64, "t", "w", "lab")
    async with trio.open_nursery() as nursery:
        candidate = Candidate("lab", "t", "w", "", None, None)
        nursery.start_soon(lab.assigner.assign, candidate, worker, 30)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert (await lab.hear(said(1))).types["t"].free == 1
        nursery.cancel_scope.cancel()
