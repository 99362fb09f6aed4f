"""A block ends everything at once: here, there, across crashes, and between real daemons."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from colonyd.rpc import RpcError as CallError
from federation.forward import machine
from federation.forward.machine import Forward, ForwardState, ProcessAction
from federation.forward.receipt import ReceiptRecord
from federation.outbox.outbox import Reroute
from federation.peers.registry import BLOCKED, TRUSTED
from federation.wire.envelope import Kind
from federation.wire.messages import Poll
from node.etcd.client import open_client
from node.etcd.errors import EtcdUnavailable
from node.etcd.txn import Op, Put, Txn
from node.http.server import Response
from node.model.codec import pack
from node.model.ids import new_id
from node.model.types import Conditions, FunctionSpec, Process, State
from node.store import keys
from tests.federation.inbox.support import WORKER, code
from tests.federation.membership.support import joined
from tests.federation.outbox.support import Front
from tests.node.etcd.support import start_store
from tests.support.colonies import world
from tests.support.daemons import Daemon, until
from tests.support.processes import workflows_of

Make = Callable[..., Daemon]

# -- the rule ----------------------------------------------------------------------------


@given(
    st.sampled_from(
        [ForwardState.QUEUED, ForwardState.DOUBT, ForwardState.ACCEPTED, ForwardState.CANCELLING]
    ),
    st.integers(0, 3),
)
def test_only_what_never_left_is_said_not_to_have_run(state: ForwardState, sent: int) -> None:
    forward = Forward("1" * 64, "2" * 64, 1, 9, 9, 9, state=state, sent=sent)
    effect = machine.blocked(forward, "bee", 5)
    assert effect.stays is False
    assert effect.certain == (state == ForwardState.QUEUED)
    assert "bee" in effect.forward.lasterror
    assert "block" in effect.forward.lasterror
    if state == ForwardState.CANCELLING:
        assert effect.act is ProcessAction.NOTHING
        return
    assert effect.act is ProcessAction.FAIL
    assert ("in doubt" in effect.errors[0]) == (state != ForwardState.QUEUED)
    assert effect.forward.state == (
        ForwardState.CLOSED if state == ForwardState.QUEUED else ForwardState.DOUBT
    )


# -- with a store ------------------------------------------------------------------------


@pytest.fixture
async def front(nursery: trio.Nursery, tmp_path: Path) -> AsyncIterator[Front]:
    store = await start_store(nursery, tmp_path / "etcd")
    async with open_client(store.target, timeout=60) as client:
        front = Front(client)
        await front.befriend()
        yield front


async def test_each_forward_ends_with_what_is_known_of_it(front: Front) -> None:
    states = (
        ForwardState.QUEUED,
        ForwardState.DOUBT,
        ForwardState.ACCEPTED,
        ForwardState.CANCELLING,
    )
    pids = {state: await front.forward(state) for state in states}
    entry = await front.peers.block(front.other.id)
    assert (entry.peer.state, entry.peer.ending) == (BLOCKED, True)
    assert front.revocation.due() == {front.other.id}
    await front.revocation.sweep(front.other.id)
    assert entry.peer.ending is False
    expected = {
        ForwardState.QUEUED: (
            State.FAILED,
            "before this was sent: it never ran",
            ForwardState.CLOSED,
        ),
        ForwardState.DOUBT: (
            State.FAILED,
            "in doubt, the peer may still run it",
            ForwardState.DOUBT,
        ),
        ForwardState.ACCEPTED: (
            State.FAILED,
            "in doubt, the peer may still run it",
            ForwardState.DOUBT,
        ),
        ForwardState.CANCELLING: (State.CANCELLED, "", ForwardState.CLOSED),
    }
    for state, (ends, told, recorded) in expected.items():
        process, record = await front.process(pids[state]), await front.record(pids[state])
        assert process.state == ends
        assert told in " ".join(process.errors)
        assert record.state == recorded
    listing = await front.client.range(front.keys.outbox)
    assert listing.items == []
    await front.outbox.refresh_all()
    assert front.outbox.entries == {}
    assert front.revocation.due() == set()


async def test_what_came_by_a_route_and_never_left_goes_elsewhere(front: Front) -> None:
    pids = [await front.forward(state) for state in (ForwardState.QUEUED, ForwardState.DOUBT)]
    for pid in pids:
        entry = front.outbox.entries[pid]
        await front.outbox.save(
            entry, msgspec.structs.replace(entry.forward, retry=True), entry.forward
        )
    other = "3" * 64

    class Elsewhere:
        def elsewhere(self, process: Process, effect: machine.Effect) -> Reroute:
            return Reroute(
                other,
                msgspec.structs.replace(effect.forward, peer=other, state=ForwardState.QUEUED),
            )

    front.outbox.detours = Elsewhere()
    await front.peers.block(front.other.id)
    await front.revocation.sweep(front.other.id)
    moved, doubtful = [await front.process(pid) for pid in pids]
    assert (moved.state, moved.peer) == (State.WAITING, other)
    assert (doubtful.state, doubtful.peer) == (State.FAILED, front.other.id)
    listing = await front.client.range(front.keys.outbox)
    assert [item.key for item in listing.items] == [front.keys.forward(other, pids[0])]


async def test_what_it_has_here_is_cancelled_and_owed_but_not_served(front: Front) -> None:
    for number in range(2):
        assert (await front.accept(number)).status == 200
    running = await front.taken()
    await front.run_one()
    await front.accept(3)
    await front.peers.block(front.other.id)
    await front.revocation.sweep(front.other.id)
    ended = await front.process(running.processid)
    assert ended.state == State.CANCELLED
    assert ended.errors == ["colony field, where this came from, was blocked"]
    with pytest.raises(Exception, match="cancelled, not running"):
        await front.processes.close(
            "lab", running.processid, WORKER.executorid, State.SUCCESSFUL, output=[1]
        )
    assert front.processes.queue.count_of(front.other.id) == 0
    assert front.processes.running.count_of(front.other.id) == 0
    refused = await front.post("outcomes", Kind.POLL, Poll(0, []))
    assert code(refused) == "blocked"
    assert len(front.inbox.outcome_queue.owed[front.other.id]) == 3
    await front.peers.trust(front.other.id)
    states = sorted(outcome.state for outcome in await front.poll())
    assert states == [State.SUCCESSFUL, State.CANCELLED, State.CANCELLED]
    assert (await front.accept(9)).status == 200


async def test_what_it_has_in_a_workflow_here_ends_and_the_workflow_with_it(front: Front) -> None:
    workflows = workflows_of(front.processes)
    conditions = Conditions("lab", executortype="t")
    after = msgspec.structs.replace(conditions, dependencies=["one"])
    specs = [
        FunctionSpec(nodename="one", funcname="f", conditions=conditions),
        FunctionSpec(nodename="two", funcname="f", conditions=after),
    ]
    graph = await workflows.submit(
        "lab", specs, graphid=new_id(), initiatorid=front.other.id, initiatorname="colony/field"
    )
    one, two = await workflows.nodes(graph)
    pid, place = "5" * 64, keys.process("lab", one.processid)
    theirs = msgspec.structs.replace(
        one, origin=front.other.id, notify=front.keys.owed(front.other.id, pid)
    )
    receipt_record = ReceiptRecord(b"", 1, one.processid, b"", 0)
    ops: list[Op] = [
        Put(place, pack(theirs)),
        Put(front.keys.receipt_record(front.other.id, pid), pack(receipt_record)),
    ]
    await front.client.commit(Txn([], ops))
    await front.restart()
    await front.peers.block(front.other.id)
    await front.revocation.sweep(front.other.id)
    ended = await front.process(one.processid)
    assert (ended.state, ended.errors) == (
        State.CANCELLED,
        ["colony field, where this came from, was blocked"],
    )
    again = workflows_of(front.processes)
    again.resolution.stepped("lab", graph.processgraphid, 2**40)
    found = await again.load("lab", graph.processgraphid)
    assert found is not None
    assert found.state == State.CANCELLED
    assert (await front.process(two.processid)).state == State.CANCELLED


async def test_a_workflow_ends_whose_nodes_a_blocked_colony_has(tmp_path: Path) -> None:
    async with world(tmp_path, ["ant", "bee"]) as colonies:
        ant, bee = colonies.values()
        await ant.trust(bee)
        await bee.trust(ant)

        def spec(name: str, colony: str, *dependencies: str) -> FunctionSpec:
            conditions = Conditions(colony, executortype="t", dependencies=list(dependencies))
            return FunctionSpec(nodename=name, funcname="f", conditions=conditions)

        async def submit(*specs: FunctionSpec) -> tuple[str, list[str]]:
            assert ant.node is not None
            graph = await ant.node.workflows.submit(
                "ant", specs, graphid=new_id(), initiatorid=ant.key.id, initiatorname="me"
            )
            nodes = await ant.node.workflows.nodes(graph)
            return graph.processgraphid, [node.processid for node in nodes]

        # One is there, and one gets there once what it waits for has ended.
        first, nodes = await submit(spec("a", "bee"), spec("b", "ant", "a"))
        second, later = await submit(spec("a", "ant"), spec("b", "bee", "a"))
        with trio.fail_after(50):
            await bee.until(lambda: bool(bee.waiting()))
            await ant.fed.trust_admin.block(bee.key.id)
            assert (await ant.closed(nodes[0])).state == State.FAILED
            assert (await ant.closed(nodes[1])).state == State.FAILED
            await ant.work("X")
            last = await ant.closed(later[1])
        assert last.state == State.FAILED
        assert "it never ran" in last.errors[0]
        assert ant.node is not None
        for graphid in (first, second):
            graph = await ant.node.workflows.load("ant", graphid)
            assert graph is not None
            assert graph.state == State.FAILED


async def test_a_poll_that_waits_is_refused_at_once(front: Front) -> None:
    await front.accept(1)
    answers: list[Response] = []

    async def wait() -> None:
        answers.append(await front.post("outcomes", Kind.POLL, Poll(30, [])))

    with trio.fail_after(50):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            while not front.inbox.outcome_queue.wakeups:
                await trio.testing.wait_all_tasks_blocked(0.01)
            await trio.testing.wait_all_tasks_blocked(0.05)
            await front.peers.block(front.other.id)
            front.inbox.outcome_queue.blocked(front.other.id)
    assert code(answers[0]) == "blocked"


async def test_a_copy_that_leaves_during_the_sweep_is_in_doubt(front: Front) -> None:
    pid = await front.forward(ForwardState.QUEUED)
    await front.peers.block(front.other.id)
    entry = front.outbox.entries[pid]
    commit = front.client.commit
    raced = False

    async def racing(txn: Txn) -> Any:
        nonlocal raced
        if not raced:
            raced = True
            await front.outbox.save(
                entry, machine.sending(entry.forward, b"sealed", 1), entry.forward
            )
        return await commit(txn)

    front.client.commit = racing  # type: ignore[method-assign]
    await front.revocation.sweep(front.other.id)
    assert "in doubt" in (await front.process(pid)).errors[0]
    assert (await front.record(pid)).state == ForwardState.DOUBT


async def test_a_sweep_that_is_cut_off_anywhere_is_finished_after_a_restart(front: Front) -> None:
    """The store fails at the n-th call, before or after it did what was asked."""
    runs = 0
    commit = front.client.commit
    for after in (False, True):
        for cut in range(1, 40):
            states = (ForwardState.QUEUED, ForwardState.ACCEPTED, ForwardState.CANCELLING)
            pids = [await front.forward(state) for state in states]
            mine = 2 * (100 * after + cut)
            await front.accept(mine)
            await front.accept(mine + 1)
            running = await front.taken()
            await front.peers.block(front.other.id)
            calls = 0

            async def failing(txn: Txn, after: bool = after, cut: int = cut) -> Any:
                nonlocal calls
                calls += 1
                if calls < cut:
                    return await commit(txn)
                if calls == cut and after:
                    await commit(txn)
                raise EtcdUnavailable("power cut")

            front.client.commit = failing  # type: ignore[method-assign]
            whole = True
            try:
                await front.revocation.sweep(front.other.id)
            except EtcdUnavailable:
                whole = False
            front.client.commit = commit  # type: ignore[method-assign]
            await front.restart()
            assert whole or front.revocation.due() == {front.other.id} or after
            for peerid in front.revocation.due():
                await front.revocation.sweep(peerid)
            ended = [await front.process(pid) for pid in (*pids, running.processid)]
            assert [process.state for process in ended] == [
                State.FAILED,
                State.FAILED,
                State.CANCELLED,
                State.CANCELLED,
            ]
            assert front.revocation.due() == set()
            assert (await front.client.range(front.keys.outbox)).items == []
            found = front.peers.get(front.other.id)
            assert found is not None
            assert found.peer.ending is False
            await front.peers.trust(front.other.id)
            runs += 1
            if whole:
                break
    assert runs > 10, "the sweep takes several transactions, and each was cut off"


async def test_trust_stops_what_is_left_of_a_sweep(front: Front) -> None:
    pids = [await front.forward(ForwardState.QUEUED) for _ in range(3)]
    await front.peers.block(front.other.id)
    settle = front.processes.settle

    def first(process: Process, revision: int) -> None:
        settle(process, revision)
        entry = front.peers.get(front.other.id)
        assert entry is not None
        entry.peer = msgspec.structs.replace(entry.peer, state=TRUSTED, ending=False)

    front.processes.settle = first  # type: ignore[method-assign]
    await front.revocation.sweep(front.other.id)
    states = [(await front.process(pid)).state for pid in pids]
    assert sorted(states) == [State.WAITING, State.WAITING, State.FAILED]


async def test_what_a_block_overtook_is_due_again(front: Front) -> None:
    await front.peers.block(front.other.id)
    await front.revocation.sweep(front.other.id)
    assert front.revocation.due() == set()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(front.revocation.run)
        # Its submitter had found the peer trusted a moment before.
        pid = await front.forward(ForwardState.QUEUED)
        front.revocation.begin()

        async def failed() -> bool:
            return (await front.process(pid)).state == State.FAILED

        await until(50, failed)
        nursery.cancel_scope.cancel()


# -- between daemons ---------------------------------------------------------------------


@pytest.mark.slow
async def test_a_block_ends_everything_at_once(make_daemon: Make) -> None:
    async with joined(make_daemon) as (ant, bee):
        # Something runs there, something waits there, something of theirs waits here.
        await ant.call("trustpeermsg", ant.owner, peer=bee.owner.id, change={"max_waiting": 5})
        running, waiting = await ant.submit("bee"), await ant.submit("bee")
        fields = {"colonyname": "bee", "timeout": 30}
        there = await bee.call("assignprocessmsg", bee.worker, **fields)
        theirs = await bee.submit("ant")

        async def here() -> bool:
            found = await ant.call("getprocessesmsg", colonyname="ant", count=9, state=0)
            started = await ant.call("getprocessesmsg", colonyname="ant", count=9, state=1)
            return len(found) == 1 and len(started) == 2

        await until(50, here)
        bee.daemon.kill()
        unsent = await ant.submit("bee")
        begin = time.monotonic()
        blocked = await ant.call("blockpeermsg", ant.owner, peer=bee.owner.id)
        assert blocked["state"] == "blocked"

        async def over() -> bool:
            peer = await ant.call("getpeermsg", ant.owner, peer=bee.owner.id)
            return (peer["ending"], peer["outstanding"]) == (False, 0)

        await until(20, over)
        for pid, told in ((running, "in doubt"), (waiting, "in doubt"), (unsent, "never ran")):
            process = await ant.call("getprocessmsg", processid=pid)
            assert process["state"] == 3
            assert told in process["errors"][0]
            assert "bee was blocked here" in process["errors"][0]
        assert (await ant.forward(running))["state"] == "doubt"
        assert await ant.call("getprocessesmsg", colonyname="ant", count=9, state=0) == []
        assert time.monotonic() - begin < 25
        with pytest.raises(CallError, match="neither here nor a trusted peer"):
            await ant.submit("bee")
        # It comes back and says how it went: it is refused, and nothing here changes.
        await trio.to_thread.run_sync(bee.daemon.start)
        done = {"processid": there["processid"], "out": ["X"]}
        await bee.patient("closesuccessfulmsg", bee.worker, **done)
        assert (await bee.patient("getprocessmsg", processid=theirs))["state"] == 1
        assert (await ant.call("getprocessmsg", processid=running))["state"] == 3
        # Trusted again: what was owed is served, the policy is as it was, work goes both ways.
        again = await ant.call("trustpeermsg", ant.owner, peer=bee.owner.id)
        assert (again["state"], again["policy"]["max_waiting"]) == ("trusted", 5)
        ended = await bee.closed(theirs)
        assert ended["state"] == 4
        assert "was blocked" in ended["errors"][0]
        processid = await ant.submit("bee")
        await bee.work("one that nobody waits for any more")
        await bee.work("Y")
        assert (await ant.closed(processid))["out"] == ["Y"]
