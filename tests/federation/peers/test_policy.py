"""What a trusted colony may do here: the rules alone, at the gate, and at the hand-out."""

from __future__ import annotations

import contextlib
import fnmatch
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from colonyd.errors import RpcError
from colonyd.keys import PrivateKey
from federation.inbox.accept import Inbox
from federation.peers.policy import (
    Policy,
    PolicyError,
    SubmissionLimiter,
    TokenBucket,
    changed,
    of_config,
    onward,
    opening,
    read,
    violation_of,
)
from federation.peers.registry import TRUSTED, Peers
from federation.wire.clock import SigningClock
from federation.wire.envelope import Kind
from federation.wire.signer import Signer
from node.etcd.client import TxnResult, open_client
from node.etcd.txn import Txn
from node.host.clock import Clock
from node.host.config import ByteSize, ConfigError, PolicyConfig, load_config
from node.http.server import Response
from node.model.codec import pack, unpack
from node.model.ids import new_id
from node.model.types import Conditions, FunctionSpec, State
from node.processes.queue import Candidate
from node.processes.service import Processes
from node.processes.spec import build_process
from tests.federation.inbox.support import SPEC, WORKER, Closing, Lab, code, submission
from tests.node.etcd.support import start_store

# -- the rules ---------------------------------------------------------------------------

names = st.text("ab*?[", max_size=4)
policies = st.builds(
    Policy,
    functions=st.lists(names.filter(bool), max_size=3),
    executor_types=st.lists(names.filter(bool), max_size=3),
    labels=st.lists(names.filter(bool), max_size=3),
    max_body=st.integers(0, 50),
    max_hops=st.integers(1, 4),
)


def spec(funcname: str = "f", executortype: str = "t", label: str = "") -> FunctionSpec:
    return FunctionSpec(
        funcname=funcname, conditions=Conditions(executortype=executortype), label=label
    )


@given(policies, names, names, names, st.integers(0, 60), st.integers(1, 5))
def test_a_submission_passes_when_every_rule_does(
    policy: Policy, function: str, kind: str, label: str, size: int, hops: int
) -> None:
    def fits(patterns: list[str], name: str) -> bool:
        return not patterns or any(fnmatch.fnmatchcase(name, each) for each in patterns)

    rules = {
        "policy_body": not policy.max_body or size <= policy.max_body,
        "policy_hops": hops <= policy.max_hops,
        "policy_function": fits(policy.functions, function),
        "policy_executortype": fits(policy.executor_types, kind),
        "policy_label": fits(policy.labels, label),
    }
    found = violation_of(policy, spec(function, kind, label), size=size, hops=hops)
    if all(rules.values()):
        assert found is None
    else:
        assert found is not None
        assert not rules[found.code]
        assert found.status in (403, 413)


def test_case_matters_and_a_star_allows_all() -> None:
    policy = Policy(functions=["Ping", "render-*"])
    assert violation_of(policy, spec("Ping"), size=0, hops=1) is None
    assert violation_of(policy, spec("render-x"), size=0, hops=1) is None
    assert violation_of(policy, spec("ping"), size=0, hops=1) is not None
    assert violation_of(Policy(functions=["*"]), spec(""), size=0, hops=1) is None


@given(policies, st.booleans(), st.integers(1, 5), st.integers(1, 4))
def test_going_on_takes_leave_and_a_hop_more(
    policy: Policy, forward: bool, hops: int, limit: int
) -> None:
    policy = msgspec.structs.replace(policy, forward=forward)
    allowed = forward and hops + 1 <= limit and hops + 1 <= policy.max_hops
    assert (onward(policy, hops=hops, limit=limit) is None) == allowed


@given(st.integers(1, 4), st.booleans())
def test_the_command_that_is_told_allows_just_the_hops_that_are_wanted(
    hops: int, further: bool
) -> None:
    def refused(policy: Policy) -> bool:
        if violation_of(policy, spec(), size=0, hops=hops) is not None:
            return True
        return further and onward(policy, hops=hops, limit=4) is not None

    command = opening("a b", hops=hops, further=further)
    if not command:
        # Nothing is needed, or nothing helps.
        assert (hops, further) in ((1, False), (4, True))
        return
    *words, peer, options = command.partition(" 'a b' ")
    assert (words, peer) == (["colony peer policy"], " 'a b' ")
    asked = options.split()
    change: dict[str, Any] = {"forward": True} if "--forward" in asked else {}
    if "--max-hops" in asked:
        change["max_hops"] = int(asked[-1])
    assert refused(Policy())
    assert not refused(changed(Policy(), change))


@given(st.integers(1, 30), st.lists(st.floats(0, 30), max_size=60))
def test_a_bucket_lets_no_minute_have_more_than_twice_its_rate(
    rate: int, gaps: list[float]
) -> None:
    bucket, now, taken = TokenBucket(), 1000.0, []
    for gap in gaps:
        now += gap
        wait = bucket.take(rate, now)
        if wait == 0:
            taken.append(now)
            assert sum(now - 60 < moment for moment in taken) <= 2 * rate
        else:
            # Exactly when told to, there is one; a moment before, there is none.
            assert TokenBucket(bucket.level, bucket.at).take(rate, now + wait) == 0
            assert TokenBucket(bucket.level, bucket.at).take(rate, now + wait * 0.9) > 0


def test_a_bucket_is_full_at_first_and_follows_a_new_rate() -> None:
    bucket = TokenBucket()
    assert [bucket.take(3, 0) for _ in range(3)] == [0, 0, 0]
    assert bucket.take(3, 0) == pytest.approx(20)
    assert bucket.take(60, 1) == 0, "a higher rate fills it faster"
    other = TokenBucket()
    other.take(100, 0)
    assert [other.take(2, 0) for _ in range(2)] == [0, 0]
    assert other.take(2, 0) > 0, "a lower rate lowers the brim"


def test_the_clock_of_a_bucket_may_stand_still_or_go_back() -> None:
    bucket = TokenBucket()
    assert bucket.take(1, 100) == 0
    assert bucket.take(1, 50) == pytest.approx(60)


@given(st.integers(1, 5), st.lists(st.booleans(), max_size=30))
def test_places_held_and_taken_never_exceed_the_limit(limit: int, steps: list[bool]) -> None:
    limiter, policy, waiting, held = SubmissionLimiter(), Policy(max_waiting=limit), 0, 0
    for enter in steps:
        if enter:
            if limiter.enter("p", policy, waiting, 0) is None:
                held += 1
        elif held:
            held -= 1
            waiting += 1  # as the index does, before the place is given back
            limiter.leave("p", used=True)
        assert waiting + held <= limit
        assert limiter.held("p") == held
    if waiting + held == limit:
        refused = limiter.enter("p", policy, waiting, 0)
        assert refused is not None
        assert (refused.code, refused.status) == ("policy_waiting", 429)
        assert refused.again > 0


def test_what_was_not_used_costs_no_token() -> None:
    limiter, policy = SubmissionLimiter(), Policy(rate=1)
    for used in (False, False, True):
        assert limiter.enter("p", policy, 0, 0) is None
        limiter.leave("p", used=used)
    refused = limiter.enter("p", policy, 0, 0)
    assert refused is not None
    assert (refused.code, refused.status, refused.again) == ("policy_rate", 429, 60)
    assert limiter.enter("q", policy, 0, 0) is None, "each peer has its own"


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"functions": "ping"}, "policy.functions"),
        ({"max_waiting": -1}, "policy.max_waiting"),
        ({"max_hops": 5}, "policy.max_hops"),
        ({"labels": [""]}, "policy.labels"),
        ({"colour": 1}, "colour"),
        ({"forward": True}, "policy.max_hops: forwarding further takes at least 2"),
    ],
)
def test_a_bad_policy_names_the_field(value: dict[str, Any], told: str) -> None:
    with pytest.raises(PolicyError, match=r"^policy") as caught:
        read(value)
    assert told in str(caught.value)


def test_a_change_leaves_the_rest_and_forwarding_brings_its_hop() -> None:
    base = Policy(functions=["f"], rate=5)
    assert changed(base, {"max_running": 2}) == Policy(functions=["f"], rate=5, max_running=2)
    assert changed(base, {"forward": True}).max_hops == 2
    assert changed(changed(base, {"forward": True}), {"max_hops": 1}).forward is False
    with pytest.raises(PolicyError):
        changed(base, {"forward": True, "max_hops": 1})


def test_the_configuration_gives_the_default() -> None:
    assert of_config(PolicyConfig()) == Policy()
    section = PolicyConfig(functions=["f*"], max_body=ByteSize(10), rate=3, forward=True)
    assert of_config(section) == Policy(
        functions=["f*"], max_body=10, rate=3, forward=True, max_hops=2
    )


# -- at the gate -------------------------------------------------------------------------


class Ruled(Closing):
    """Tells the node of the inbox's policy, as the service does."""

    def __init__(self, inbox: Inbox, peers: Peers) -> None:
        super().__init__(inbox)
        self.peers = peers

    def most_running(self, origin: str) -> int:
        """As `Federation.most_running`."""
        return self.peers.policy(origin).max_running


@pytest.fixture
async def lab(nursery: trio.Nursery, tmp_path: Path) -> AsyncIterator[Lab]:
    store = await start_store(nursery, tmp_path / "etcd")
    async with open_client(store.target, timeout=60) as client:
        lab = Lab(client)
        lab.processes.attach(Ruled(lab.inbox, lab.peers))
        await lab.befriend()
        yield lab


async def send(lab: Lab, number: int, **changes: Any) -> Response:
    message = msgspec.structs.replace(submission(**changes), pid=f"{number:064x}")
    return await lab.raw("submit", lab.seal(Kind.SUBMIT, message))


def spec_with(**fields: Any) -> bytes:
    value = msgspec.json.decode(SPEC)
    value["conditions"]["executortype"] = fields.pop("executortype", "t")
    return msgspec.json.encode(value | fields)


async def test_each_rule_has_its_own_refusal(lab: Lab) -> None:
    policy = Policy(functions=["f"], executor_types=["t"], labels=["", "x*"], max_body=2000)
    await lab.peers.set_policy(lab.other.id, policy)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"funcname": "g"}, "policy_function"),
        ({"executortype": "u"}, "policy_executortype"),
        ({"label": "y"}, "policy_label"),
        ({"args": ["z" * 3000]}, "policy_body"),
    ]
    for number, (fields, expected) in enumerate(cases):
        response = await send(lab, number, spec=spec_with(**fields))
        assert code(response) == expected
        assert response.status == (413 if expected == "policy_body" else 403)
        assert lab.server.counters[expected] == 1
    assert lab.processes.queue.entries == {}
    listing = await lab.client.range(lab.keys.markers)
    assert listing.items == [], "a refusal leaves nothing behind"
    assert (await send(lab, 9, spec=spec_with(label="xy"))).status == 200


async def test_the_default_holds_until_there_is_a_policy_of_its_own(lab: Lab) -> None:
    lab.peers.set_default(Policy(functions=["g"]))
    assert code(await send(lab, 1)) == "policy_function"
    await lab.peers.set_policy(lab.other.id, Policy())
    assert (await send(lab, 1)).status == 200
    await lab.peers.set_policy(lab.other.id, None)
    assert code(await send(lab, 2)) == "policy_function"


async def test_first_sight_trust_has_the_default_policy(lab: Lab) -> None:
    lab.peers.lan, lab.peers.default = True, Policy(functions=["g"])
    lab.other = PrivateKey.generate()
    lab.signer = Signer(lab.other, SigningClock())
    assert (await lab.introduce("meadow")).status == 200
    found = lab.peers.get(lab.other.id)
    assert found is not None
    assert (found.peer.state, found.peer.policy) == (TRUSTED, None)
    assert code(await send(lab, 1)) == "policy_function"


async def test_a_policy_survives_cards_restarts_and_a_block(lab: Lab) -> None:
    policy = Policy(functions=["f"], rate=7)
    await lab.peers.set_policy(lab.other.id, policy)
    await lab.introduce()
    again = Peers(lab.client, lab.keys, Signer(lab.key, SigningClock()))
    await again.load()
    assert again.policy(lab.other.id) == policy
    await again.block(lab.other.id)
    with pytest.raises(RpcError, match="blocked"):
        await again.set_policy(lab.other.id, None)
    await again.trust(lab.other.id)
    assert again.policy(lab.other.id) == policy
    found = again.get(lab.other.id)
    assert found is not None
    assert unpack(pack(found.peer), type(found.peer)) == found.peer


async def test_two_daemons_decide_and_neither_undoes_the_other(lab: Lab) -> None:
    elsewhere = Peers(lab.client, lab.keys, Signer(lab.key, SigningClock()))
    await elsewhere.load()
    await lab.peers.set_policy(lab.other.id, Policy(rate=1))
    # It still has the peer as it was; its own change must not bring that back.
    await elsewhere.trust(lab.other.id)
    await elsewhere.set_policy(lab.other.id, Policy(rate=2))
    await lab.peers.block(lab.other.id)
    await lab.peers.reload(lab.other.id)
    assert lab.peers.policy(lab.other.id) == Policy(rate=2)


async def test_a_repeat_gets_the_first_receipt_whatever_the_policy_says_now(lab: Lab) -> None:
    sealed = lab.seal(Kind.SUBMIT, submission())
    first = await lab.raw("submit", sealed)
    for policy in (
        Policy(functions=["other"]),
        Policy(max_body=1),
        Policy(max_waiting=1),
        Policy(rate=1),
    ):
        await lab.peers.set_policy(lab.other.id, policy)
        for _ in range(3):
            again = await lab.raw("submit", sealed)
            assert (again.status, again.body) == (200, first.body)
    other = lab.seal(Kind.SUBMIT, submission(spec=spec_with(funcname="g")))
    assert code(await lab.raw("submit", other)) == "id_reuse"


async def test_concurrent_submissions_do_not_exceed_the_most_that_may_wait(lab: Lab) -> None:
    await lab.peers.set_policy(lab.other.id, Policy(max_waiting=3))
    answers: list[Response] = []

    async def one(number: int) -> None:
        answers.append(await send(lab, number))

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(one, number)
    assert sorted(answer.status for answer in answers) == [200] * 3 + [429] * 7
    assert len(lab.processes.queue.entries) == 3
    refused = await send(lab, 20)
    assert code(refused) == "policy_waiting"
    assert dict(refused.headers)["retry-after"] == "5"
    await lab.run_one()
    assert (await send(lab, 20)).status == 200, "one that ended made room"
    # The count is the index's, which is rebuilt from the store.
    assert lab.processes.queue.count_of(lab.other.id) == 3
    assert lab.inbox.limiter.held(lab.other.id) == 0


async def test_the_rate_is_answered_with_when_to_come_again(lab: Lab) -> None:
    await lab.peers.set_policy(lab.other.id, Policy(rate=2))
    assert [(await send(lab, number)).status for number in range(2)] == [200, 200]
    refused = await send(lab, 3)
    assert code(refused) == "policy_rate"
    assert refused.status == 429
    # Of the 30 s for one, some are over.
    assert 20 <= int(dict(refused.headers)["retry-after"]) <= 30


async def test_hops_are_counted_from_the_origin(lab: Lab) -> None:
    response = await send(lab, 1, hops=5)
    assert code(response) == "hops", "more than any policy allows"
    # A direct one that could go on does not need to: the policy's limit is for what it takes.
    assert (await send(lab, 1, hops=4)).status == 200


async def test_no_more_run_than_may_and_the_next_starts_when_one_ends(lab: Lab) -> None:
    await lab.peers.set_policy(lab.other.id, Policy(max_running=2))
    for number in range(4):
        assert (await send(lab, number)).status == 200
    candidate = Candidate("lab", "t", "w", "", None, None)
    assigner = lab.assigner
    started = [await assigner.assign(candidate, WORKER, 0) for _ in range(2)]
    with pytest.raises(RpcError, match="no process is waiting"):
        await assigner.assign(candidate, WORKER, 0)
    assert lab.processes.running.count_of(lab.other.id) == 2
    got: list[str] = []
    first_got = trio.Event()

    async def wait() -> None:
        got.append((await assigner.assign(candidate, WORKER, 30)).processid)
        first_got.set()

    with trio.fail_after(50):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            assert got == []
            first = started[0].processid
            await lab.processes.close("lab", first, WORKER.executorid, State.SUCCESSFUL)
            await first_got.wait()
            await trio.testing.wait_all_tasks_blocked()
            assert len(got) == 1
            await lab.peers.set_policy(lab.other.id, None)
            assigner.wake_all()  # as `Federation.set_policy` does
    assert len(set(got)) == 2


async def test_concurrent_polls_do_not_exceed_the_most_that_may_run(lab: Lab) -> None:
    await lab.peers.set_policy(lab.other.id, Policy(max_running=3))
    for number in range(8):
        await send(lab, number)
    candidate, taken = Candidate("lab", "t", "w", "", None, None), 0

    async def poll() -> None:
        nonlocal taken
        try:
            await lab.assigner.assign(candidate, WORKER, 0)
        except RpcError:
            return
        taken += 1

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(poll)
    assert taken == 3


async def test_a_hand_out_that_comes_to_nothing_gives_its_place_to_another(lab: Lab) -> None:
    await lab.peers.set_policy(lab.other.id, Policy(max_running=1))
    for number, kind in enumerate(("t", "u")):
        await send(lab, number, spec=spec_with(executortype=kind))
    first = next(lab.processes.queue.in_order("lab")).processid
    assigner, commit = lab.assigner, lab.client.commit
    got: list[str] = []
    patience = {"t": 2, "u": 30}

    async def wait_for(kind: str) -> None:
        candidate = Candidate("lab", kind, "w", "", None, None)
        with contextlib.suppress(RpcError):
            process = await assigner.assign(candidate, WORKER, patience[kind])
            got.append(process.spec.conditions.executortype)

    async with trio.open_nursery() as nursery:

        async def overtaken(txn: Txn) -> TxnResult:
            """While the first is being handed out, somebody waits for the second in vain."""
            lab.client.commit = commit  # type: ignore[method-assign]
            nursery.start_soon(wait_for, "u")
            await trio.testing.wait_all_tasks_blocked()
            assert assigner.held(lab.other.id)
            # Another daemon cancels it: this one has not heard.
            await Processes(lab.client, Clock(time.time_ns)).cancel("lab", first)
            return await commit(txn)

        lab.client.commit = overtaken  # type: ignore[method-assign]
        nursery.start_soon(wait_for, "t")
    assert got == ["u"]


async def test_what_is_held_back_keeps_nobody_else_waiting(lab: Lab) -> None:
    await lab.peers.set_policy(lab.other.id, Policy(max_running=1))
    for number in range(3):
        await send(lab, number)
    candidate = Candidate("lab", "t", "w", "", None, None)
    await lab.assigner.assign(candidate, WORKER, 0)
    own = build_process(
        spec(), processid=new_id(), initiatorid="1" * 64, initiatorname="me",
        colonyname="lab", now=time.time_ns(),
    )  # fmt: skip
    await lab.processes.submit(own, b"")
    got = await lab.assigner.assign(candidate, WORKER, 0)
    assert got.processid == own.processid, "it came last, and its colony may have it"
    listed = [entry.processid for entry in lab.processes.queue.in_order("lab")]
    assert len(listed) == 2, "what is held back is still listed as waiting"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('functions = ["f*"]\nmax_body = "1KiB"\nmax_hops = 2\nforward = true', ""),
        ("max_hops = 5", "federation.policy.max_hops"),
        ("rate = -1", "federation.policy.rate"),
        ("function = []", "did you mean 'functions'?"),
        ('functions = [""]', "federation.policy.functions"),
    ],
)
def test_the_default_policy_is_a_section_of_the_configuration(
    tmp_path: Path, text: str, told: str
) -> None:
    (tmp_path / "config.toml").write_text(f"[federation.policy]\n{text}\n")
    if told:
        with pytest.raises(ConfigError) as caught:
            load_config(tmp_path, {}, environ={})
        assert told in str(caught.value)
        return
    section = load_config(tmp_path, {}, environ={}).federation.policy
    assert of_config(section) == Policy(functions=["f*"], max_body=1024, max_hops=2, forward=True)
