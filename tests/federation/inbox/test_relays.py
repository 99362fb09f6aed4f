"""Processes over several colonies: the way there, the chain of outcomes back, lies and crashes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from colonyd.keys import PrivateKey, read_key
from federation.forward import chain as chains
from federation.forward import path as relays
from federation.forward.chain import carried, conclusion, trace
from federation.forward.path import (
    OriginRequest,
    RelayedRequest,
    hops_for,
    local_id,
    onward_target,
    passed_on,
    unwrap,
)
from federation.peers.policy import Policy
from federation.wire.envelope import Kind, Rejected, VerifiedMessage, inspect, seal
from federation.wire.messages import MOST, Outcome, Submit, dump, load
from node.http.server import Request as HttpRequest
from node.model.types import State
from tests.support.colonies import Colony, world
from tests.support.daemons import REPOSITORY, Daemon, until
from tests.support.sides import Side

Make = Callable[..., Daemon]


@asynccontextmanager
async def chain(make: Make) -> AsyncIterator[tuple[Side, Side, Side]]:
    """ant trusts bee and bee cat, both ways; bee passes ant's processes on, cat takes them."""
    daemons = [make(name) for name in ("ant", "bee", "cat")]
    for daemon in daemons:
        await trio.to_thread.run_sync(daemon.start)
    async with AsyncExitStack() as stack:
        ant, bee, cat = [
            Side(daemon, await stack.enter_async_context(daemon.client())) for daemon in daemons
        ]
        for one, other in ((ant, bee), (bee, ant), (bee, cat), (cat, bee)):
            await one.find(other)
            await one.trust(other)
        further = {"forward": True, "max_hops": 2}
        await bee.call("setpeerpolicymsg", bee.owner, peer=ant.owner.id, change=further)
        await cat.call("setpeerpolicymsg", cat.owner, peer=bee.owner.id, change=further)
        await cat.hire()
        yield ant, bee, cat


async def test_a_process_goes_through_and_its_outcome_is_proven(make_daemon: Make) -> None:
    async with chain(make_daemon) as (ant, bee, cat):
        processid = await ant.submit("bee/cat", env={"A": "1"})
        there = await cat.work("X", args=["x"])
        process = await ant.closed(processid)
        assert (process["state"], process["out"]) == (2, ["X"])
        forward = await ant.forward(processid)
        assert [(step["issuer"], step["signaturevalid"]) for step in forward["chain"]] == [
            (bee.owner.id, True),
            (cat.owner.id, True),
        ]
        assert [step["problem"] for step in forward["chain"]] == ["", ""]
        assert forward["chain"][1]["processid"] == there["processid"]
        asked = await cat.call("getoriginmsg", processid=there["processid"])
        assert [hop["issuer"] for hop in asked] == [ant.owner.id, bee.owner.id]
        assert all(hop["signaturevalid"] for hop in asked)
        assert asked[0]["processid"] == processid
        # A cancel goes the same way.
        second = await ant.submit("bee/cat")
        running = await cat.call("assignprocessmsg", cat.worker, colonyname="cat", timeout=30)
        await ant.call("cancelprocessmsg", processid=second)

        async def cancelled() -> bool:
            found = await cat.call("getprocessmsg", processid=running["processid"])
            return bool(found["state"] == 4)

        await until(50, cancelled)
        await _rotate(ant, bee, cat)


def typed(daemon: Daemon, *args: str, text: str = "") -> subprocess.CompletedProcess[str]:
    """What `colony` says in the home of a daemon."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("COLONIES_", "COLONYD_"))}
    return subprocess.run(
        [sys.executable, "-m", "cli.main", "--home", str(daemon.home), *args],
        cwd=REPOSITORY,
        env=environ,
        input=text,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
async def test_who_must_allow_a_further_hop_is_told_with_the_command(make_daemon: Make) -> None:
    # Names that no other test has: on the same link the same name would be ambiguous.
    daemons = {name: make_daemon(name) for name in ("quay", "lock", "weir")}
    for daemon in daemons.values():
        await trio.to_thread.run_sync(daemon.start)
    async with AsyncExitStack() as stack:
        ant, bee, cat = [
            Side(daemon, await stack.enter_async_context(daemon.client()))
            for daemon in daemons.values()
        ]
        for one, other in ((ant, bee), (bee, ant), (bee, cat), (cat, bee)):
            await one.find(other)
            await one.trust(other)
        await cat.hire()

    async def colony(name: str, *args: str, text: str = "") -> subprocess.CompletedProcess[str]:
        call = partial(typed, daemons[name], *args, text=text)
        return await trio.to_thread.run_sync(call)

    spec = {"funcname": "f", "conditions": {"colonyname": "lock/weir", "executortype": "cli"}}
    told = await colony("quay", "routes", "explain", "-", text=json.dumps(spec))
    needed = {
        ("lock", "colony peer policy quay --forward"),
        ("weir", "colony peer policy lock --max-hops 2"),
    }
    for name, command in needed:
        assert f"at {name} its owner must have allowed it: {command}" in told.stdout
    run = ["run", "--func", "f", "--colony", "lock/weir"]
    followed = set()
    for _ in needed:
        ended = await colony("quay", *run, "--wait")
        assert ended.returncode == 1
        found = re.search(r"the owner of (\w+) allows it by `(.+?)`", ended.stderr)
        assert found is not None, ended.stderr
        failed = re.search(r"colony process show (\w+)", ended.stderr)
        assert failed is not None
        shown = await colony("quay", "process", "show", failed[1])
        assert found[2] in shown.stdout
        followed.add((found[1], found[2]))
        done = await colony(found[1], *shlex.split(found[2])[1:])
        assert done.returncode == 0, done.stderr
    assert followed == needed
    processid = (await colony("quay", *run)).stdout.strip()
    async with daemons["weir"].client() as client:
        at_cat = Side(daemons["weir"], client)
        at_cat.worker = cat.worker
        await at_cat.work("done")
    ended = await colony("quay", "process", "wait", processid)
    assert (ended.returncode, ended.stdout) == (0, "done\n")


async def _rotate(ant: Side, bee: Side, cat: Side) -> None:
    """The relay goes on under another key, and nobody has to do anything about it."""
    former = bee.owner
    done = await bee.call("rotatekeymsg", former)
    assert (done["former"], done["id"]) == (former.id, bee.owner.id)
    assert read_key(Path(done["kept"])).id == former.id

    async def followed() -> bool:
        for side in (ant, cat):
            peer = await side.peer(bee)
            if peer is None or peer["state"] != "trusted":
                return False
        return True

    await until(50, followed)
    bee.daemon.kill()
    await trio.to_thread.run_sync(bee.daemon.start)
    processid = await ant.submit("bee/cat", args=["again"])
    await cat.work("Y", args=["again"])
    assert (await ant.closed(processid))["out"] == ["Y"]
    steps = (await ant.forward(processid))["chain"]
    assert [(step["issuer"], step["problem"]) for step in steps] == [
        (bee.owner.id, ""),
        (cat.owner.id, ""),
    ]


FURTHER = {"forward": True, "max_hops": 2}
NOW = 1_700_000_000
SPEC = b'{"funcname":"f","conditions":{"colonyname":"cat","executortype":"t"}}'


# -- the way there, as values ------------------------------------------------------------------


def sealed(key: PrivateKey, audience: str, submit: Submit, expires: int = NOW + 100) -> bytes:
    return seal(
        key,
        Kind.SUBMIT,
        audience,
        dump(submit),
        cti=b"c",
        issued=NOW,
        expires=expires,
    )


class Way:
    """ant asked bee, bee asks cat, cat asks dog; `changes` go into what a colony says."""

    def __init__(self, hops: int = 3) -> None:
        self.ant, self.bee, self.cat, self.dog = (PrivateKey.generate() for _ in range(4))
        self.first = Submit("1" * 64, 1, SPEC, "me", hops, [])
        self.keys = {key.id: key.public_key for key in (self.ant, self.bee, self.cat)}

    def at_cat(self, **changes: Any) -> tuple[Submit, bytes]:
        received = sealed(self.ant, self.bee.id, self.first)
        pid = local_id(self.ant.id, self.first.pid, self.first.attempt)
        submit, expires = passed_on(received, pid, 1, "", self.keys)
        submit = msgspec.structs.replace(submit, **changes)
        return submit, sealed(self.bee, self.cat.id, submit, expires)

    def opened(self, data: bytes, me: PrivateKey | None = None) -> RelayedRequest:
        seen = inspect(data, limit=len(data))
        opened = VerifiedMessage(
            seen.issuer, seen.audience, seen.cti, NOW, seen.expires, seen.payload, b""
        )
        return unwrap(opened, load(seen.payload, Submit), [(me or self.cat).id], len(data))


def test_the_last_colony_sees_who_asked_for_what() -> None:
    way = Way()
    _, data = way.at_cat()
    asked = way.opened(data)
    assert asked.ids == [way.ant.id, way.bee.id]
    assert asked.first == way.first
    assert asked.first.spec == SPEC
    second, expires = passed_on(data, local_id(way.bee.id, way.at_cat()[0].pid, 1), 1, "", way.keys)
    to_dog = way.opened(sealed(way.cat, way.dog.id, second, expires), way.dog)
    assert to_dog.ids == [way.ant.id, way.bee.id, way.cat.id]
    assert to_dog.first.spec == SPEC
    hops, valid = relays.hops_of(data, way.bee.id, way.bee.public_key)
    assert ([hop.issuer for hop in hops], valid) == ([way.ant.id, way.bee.id], True)
    assert relays.hops_of(data, way.bee.id, way.ant.public_key)[1] is False


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"hops": 5}, "hops"),
        ({"hops": 1}, "hops"),
        ({"hops": 4}, "bad_path"),
        ({"path": []}, "bad_path"),
        ({"spec": SPEC}, "bad_path"),
        ({"inner": b""}, "bad_path"),
        ({"inner": b"nonsense"}, "bad_path"),
        ({"keys": []}, "bad_path"),
        ({"pid": "2" * 64}, "bad_path"),
        ({"attempt": 2}, None),
    ],
)
def test_a_relay_can_change_nothing(changes: dict[str, Any], code: str | None) -> None:
    way = Way()
    _, data = way.at_cat(**changes)
    if code is None:
        way.opened(data)
        return
    with pytest.raises(Rejected) as caught:
        way.opened(data)
    assert caught.value.code == code


def test_a_path_without_its_signatures_is_refused() -> None:
    way = Way()
    stranger = PrivateKey.generate()
    cases = {
        "whom the path says": sealed(stranger, way.bee.id, way.first),
        "not hold": sealed(way.ant, way.bee.id, way.first)[:-1] + b"\0",
        "whom the path": sealed(way.ant, way.dog.id, way.first),
        "another number": sealed(way.ant, way.bee.id, msgspec.structs.replace(way.first, hops=2)),
    }
    submit, _ = way.at_cat()
    for reason, inner in cases.items():
        forged = msgspec.structs.replace(submit, inner=inner)
        with pytest.raises(Rejected, match=reason) as caught:
            # By another clock than the inner one, so it may seem to live a day longer, and no more.
            way.opened(sealed(way.bee, way.cat.id, forged, NOW + 51 + MOST))
        assert caught.value.code == "bad_path"


def test_a_colony_that_is_in_the_path_refuses() -> None:
    way = Way()
    for path in ([way.cat.id], [way.bee.id], [way.ant.id, way.ant.id]):
        looped = msgspec.structs.replace(way.at_cat()[0], path=path, hops=4)
        with pytest.raises(Rejected) as caught:
            way.opened(sealed(way.bee, way.cat.id, looped))
        assert caught.value.code == "loop"


def test_what_is_left_of_a_target() -> None:
    assert onward_target("bee/cat/dog", ("b" * 64, "bee"), ("ant", "a" * 64)) == "cat/dog"
    assert onward_target("bee", ("b" * 64, "bee"), ("ant", "a" * 64)) == ""
    assert onward_target("ant", ("b" * 64, "bee"), ("ant", "a" * 64)) == "", "a route sent it"
    assert onward_target("cat", ("b" * 64, "bee"), ("ant", "a" * 64)) == "cat"
    assert hops_for("bee", 1) == 1
    assert hops_for("bee/cat", 1) == 2
    assert hops_for("bee", 3) == 3
    assert hops_for("a/b/c/d/e", 1) == 4


# -- the chain back, as values -----------------------------------------------------------------


class Back:
    """cat ran it and told bee, bee tells ant."""

    def __init__(self) -> None:
        self.ant, self.bee, self.cat = (PrivateKey.generate() for _ in range(3))
        self.pid = "1" * 64
        self.at_bee = local_id(self.ant.id, self.pid, 1)
        self.at_cat = local_id(self.bee.id, self.at_bee, 1)
        self.asked = OriginRequest(self.ant.id, hashlib.sha256(b"what ant signed").digest())
        self.answer: dict[str, Any] = {"asked": self.asked.digest, "origin": self.asked.origin}

    def outcome(self, key: PrivateKey, audience: str, outcome: Outcome) -> bytes:
        return seal(
            key,
            Kind.OUTCOME,
            audience,
            dump(outcome),
            cti=b"o",
            issued=NOW,
            expires=NOW + 100,
        )

    def by_cat(self, key: PrivateKey | None = None, audience: str = "", **changes: Any) -> bytes:
        told = Outcome(self.at_bee, 1, 2, b'["X"]', [], self.at_cat, "e" * 64, 1, 2)
        told = msgspec.structs.replace(told, **self.answer | changes)
        return self.outcome(key or self.cat, audience or self.bee.id, told)

    def by_bee(self, below: bytes, **changes: Any) -> bytes:
        mine = Outcome(self.pid, 1, 2, b'["X"]', [], self.at_bee, self.cat.id, 1, 2)
        if below:
            mine = carried(mine, below, self.cat.public_key)
        mine = msgspec.structs.replace(mine, **self.answer | changes)
        return self.outcome(self.bee, self.ant.id, mine)

    def conclude(self, data: bytes, *wanted: str) -> tuple[Outcome | None, str]:
        steps = trace(data, self.bee.id, self.bee.public_key, [self.ant.id], request=self.asked)
        return conclusion(steps, list(wanted))


def test_the_chain_holds_down_to_who_ran_it() -> None:
    back = Back()
    data = back.by_bee(back.by_cat())
    told, problem = back.conclude(data, "cat")
    assert problem == ""
    assert told is not None
    assert told.out == b'["X"]'
    assert back.conclude(data, back.cat.id)[1] == ""
    assert "and not" in back.conclude(data, "d" * 64)[1]
    steps = trace(data, back.bee.id, back.bee.public_key, [back.ant.id])
    assert [(step.issuer, step.signed) for step in steps] == [
        (back.bee.id, True),
        (back.cat.id, True),
    ]


def test_a_relay_that_lies_is_caught() -> None:
    back = Back()
    honest = back.by_cat()
    other = Back()
    lies = {
        "another output": back.by_bee(honest, out=b'["Y"]'),
        "another end": back.by_bee(honest, state=3),
        "should have passed it on": back.by_bee(b""),
        "does not hold": back.by_bee(honest[:-1] + b"\1"),
        "key is missing": back.by_bee(honest, keys=[]),
        "about another process": back.by_bee(back.by_cat(pid="3" * 64)),
        "for another colony": back.by_bee(back.by_cat(audience="4" * 64)),
        "than it was sent": back.by_bee(back.by_cat(pid="5" * 64), localpid="5" * 64),
        "twice": back.by_bee(back.by_cat(back.bee), keys=[back.bee.public_key]),
        "not from whom": other.by_bee(other.by_cat()),
    }
    for reason, data in lies.items():
        told, problem = back.conclude(data, "cat")
        assert told is None, reason
        if reason not in ("not from whom",):
            assert reason in problem, problem


def test_what_a_relay_did_itself_needs_nobody_below() -> None:
    back = Back()
    mine = Outcome(back.pid, 1, 3, b"[]", ["gave up"], back.at_bee, "", 1, 2, **back.answer)
    assert carried(mine, back.by_cat(), back.cat.public_key) == mine
    told, problem = back.conclude(back.outcome(back.bee, back.ant.id, mine), "cat")
    assert problem == ""
    assert told is not None
    assert told.errors == ["gave up"]


def test_a_chain_ends() -> None:
    """Of more than four outcomes, nobody reads on."""
    keys = [PrivateKey.generate() for _ in range(7)]
    pids = ["1" * 64]
    for key in keys[:6]:
        pids.append(local_id(key.id, pids[-1], 1))
    below = b""
    for place in range(6, 0, -1):
        told = Outcome(pids[place - 1], 1, 2, b"", [], pids[place], "", 1, 2, below)
        told = msgspec.structs.replace(told, keys=[key.public_key for key in keys[2:6]])
        below = seal(
            keys[place],
            Kind.OUTCOME,
            keys[place - 1].id,
            dump(told),
            cti=b"o",
            issued=NOW,
            expires=NOW + 9,
        )
    steps = trace(below, keys[1].id, keys[1].public_key, [keys[0].id])
    assert [step.problem for step in steps] == ["", "", "", "", "more than 4 hops"]


# -- at the gates ------------------------------------------------------------------------------


@asynccontextmanager
async def three(path: Path, **further: Any) -> AsyncIterator[tuple[Colony, Colony, Colony]]:
    """As `chain`, in one process."""
    async with world(path, ["ant", "bee", "cat"]) as colonies:
        ant, bee, cat = colonies.values()
        await bee.trust(ant, **(further or FURTHER))
        await ant.trust(bee)
        await cat.trust(bee, max_hops=2)
        await bee.trust(cat)
        yield ant, bee, cat


@pytest.mark.parametrize("before", [True, False])
async def test_a_relay_may_die_at_any_write(tmp_path: Path, before: bool) -> None:
    async with three(tmp_path) as (ant, bee, cat):
        at, died = 0, True
        while died:
            at += 1
            bee.mortal(at, before=before)
            with trio.fail_after(50):
                processid = await ant.submit("bee/cat")
                done = await cat.work(f"output {at}")
                process = await ant.closed(processid)
            assert (process.state, process.output) == (State.SUCCESSFUL, [f"output {at}"])
            died = bee.client.at != at
            assert done.origin == bee.key.id
            assert not cat.waiting()
            steps = await ant.steps(processid)
            assert [step.problem for step in steps] == ["", ""]
        assert at > 4, "accept, send, receipt, outcome, acknowledgement"


async def test_nothing_goes_further_than_is_allowed(tmp_path: Path) -> None:
    async with three(tmp_path, max_running=1) as (ant, bee, cat):
        refused = {}

        async def attempt(code: str, target: str = "bee/cat") -> None:
            process = await ant.closed(await ant.submit(target))
            assert process.state == State.FAILED
            refused[code] = process.errors[0]
            assert code in process.errors[0]

        with trio.fail_after(50):
            await attempt("policy_forward")
            await bee.fed.peers.set_policy(ant.key.id, Policy(forward=True, max_hops=2))
            await attempt("no_way", "bee/dog")
            await attempt("no_way", f"bee/{ant.key.id}")
            await attempt("policy_forward", "bee/cat/dog")
            await cat.fed.peers.set_policy(bee.key.id, Policy())
            await attempt("policy_hops")
            await cat.fed.peers.set_policy(bee.key.id, Policy(max_hops=2))
            await cat.trust(ant)
            await cat.fed.peers.block(ant.key.id)
            await attempt("blocked")
        assert not cat.waiting()


async def test_a_repeat_of_what_was_passed_on_gets_the_first_receipt(tmp_path: Path) -> None:
    async with three(tmp_path) as (ant, bee, cat):
        cat.hidden = True
        processid = await ant.submit("bee/cat")
        with trio.fail_after(50):
            await ant.when(processid, lambda process: process.state == State.RUNNING)
        envelope = ant.fed.outbox.entries[processid].forward.envelope
        await bee.fed.peers.set_policy(ant.key.id, Policy())
        answer = await bee.fed.server.handle(
            HttpRequest("POST", "/v2/submit", "", {}, envelope, "x")
        )
        assert answer.status == 200
        assert len(bee.fed.outbox.entries) == 1


async def test_a_lie_at_the_gate_ends_the_process_as_not_proven(tmp_path: Path) -> None:
    async with three(tmp_path) as (ant, _, cat):
        honest = chains.carried

        def lying(outcome: Outcome, below: bytes, key: bytes) -> Outcome:
            return msgspec.structs.replace(honest(outcome, below, key), out=b'["Y"]')

        with pytest.MonkeyPatch.context() as patch, trio.fail_after(50):
            patch.setattr(chains, "carried", lying)
            processid = await ant.submit("bee/cat")
            await cat.work("X")
            process = await ant.closed(processid)
        assert process.state == State.FAILED
        assert "not proven" in process.errors[0]
        assert "another output" in process.errors[0]
        assert process.output == []
        assert ant.fed.outcome_poller.broken == 1
        assert [step.signed for step in await ant.steps(processid)] == [True, True]


async def test_a_large_output_keeps_its_proof_over_a_relay(tmp_path: Path) -> None:
    async with three(tmp_path) as (ant, _, cat):
        large = "x" * 900_000
        with trio.fail_after(50):
            processid = await ant.submit("bee/cat")
            await cat.work(large)
            process = await ant.closed(processid)
        assert process.output == [large]
        assert [step.problem for step in await ant.steps(processid)] == ["", ""]


async def test_a_cancel_travels_along(tmp_path: Path) -> None:
    async with three(tmp_path) as (ant, _, cat):
        with trio.fail_after(50):
            processid = await ant.submit("bee/cat")
            await cat.until(lambda: bool(cat.waiting()))
            assert ant.node is not None
            await ant.node.processes.cancel("ant", processid)
            await cat.until(lambda: not cat.waiting())
        assert (await ant.process(processid)).state == State.CANCELLED
