"""Changes of place on a real store: each is one transaction, and nothing is ever in two places."""

from __future__ import annotations

import time

import msgspec
import pytest
import trio

from colonyd.errors import RpcError
from federation.forward import machine
from federation.forward.machine import Forward
from federation.peers.policy import Policy
from federation.transport.errors import Lost, Unsent
from federation.wire.messages import Capabilities
from federation.wire.refusals import Proof
from node.etcd.client import EtcdClient
from node.etcd.txn import Put, Txn
from node.host.config import RouteConfig
from node.model.codec import pack, unpack
from node.model.ids import new_id
from node.model.types import (
    SECOND,
    Conditions,
    FunctionSpec,
    Process,
    State,
)
from node.processes.deadlines import expire
from node.store import keys
from tests.federation.routing.support import BOTH, Side, _age, deliver, three, wire


async def test_a_submission_by_a_route_has_its_forward_in_the_same_transaction(
    client: EtcdClient,
) -> None:
    ant, bee, _ = await three(client, BOTH)
    process = await ant.submit()
    assert (await ant.load(process)).peer == bee.key.id
    forward = await ant.forward(bee, process)
    assert forward is not None
    assert forward.route.startswith("route 1 (always → bee, cat): bee is the first")
    assert forward.retry
    assert not await ant.queued(process)
    # One that names its peer is none of the routes' business.
    named = await ant.submit()
    explicit = msgspec.structs.replace(named, processid=new_id(), peer=bee.key.id)
    await ant.processes.submit(explicit, b"")
    assert (await ant.forward(bee, explicit) or forward).route == ""


async def test_what_waits_is_moved_or_handed_out_and_never_both(client: EtcdClient) -> None:
    ant, bee, _ = await three(client, RouteConfig(when="waiting > 0s", to="bee"))
    ant.hire()
    waiting = [await ant.submit() for _ in range(40)]
    taken: list[str] = []

    async def work() -> None:
        while True:
            try:
                taken.append((await ant.assign()).processid)
            except RpcError:
                return
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(ant.tick)
            nursery.start_soon(work)
    await ant.tick()
    moved = 0
    for process in waiting:
        found = await ant.load(process)
        assert not await ant.queued(process)
        here = process.processid in taken
        assert found.state == (State.RUNNING if here else State.WAITING)
        assert found.peer == ("" if here else bee.key.id)
        assert (await ant.forward(bee, process) is None) == here
        moved += not here
    assert 0 < moved < 40, "the test means nothing if one side got it all"
    assert not ant.processes.queue.entries


async def test_another_daemons_executor_is_not_given_what_has_left(client: EtcdClient) -> None:
    ant, bee, _ = await three(client, RouteConfig(when="waiting > 0s", to="bee"))
    process = await ant.submit()
    twin = Side(client, "ant")  # whose watch has not told yet
    twin.hire()
    await twin.processes.load("ant", process.processid)
    for entry in ant.processes.queue.entries.values():
        twin.processes.queue.add(entry)
    await ant.tick()
    assert (await ant.load(process)).peer == bee.key.id
    with pytest.raises(RpcError, match="no process is waiting"):
        await twin.assign()
    assert (await ant.load(process)).state == State.WAITING


async def test_a_signed_refusal_sends_it_to_the_next(client: EtcdClient) -> None:
    ant, bee, cat = await three(client, BOTH)
    await bee.federation.peers.set_policy(ant.key.id, Policy(functions=["other"]))
    process = await ant.submit()
    await deliver(ant, bee, wire(ant, bee), process)
    assert (await ant.load(process)).peer == cat.key.id
    assert await ant.forward(bee, process) is None
    forward = await ant.forward(cat, process)
    assert forward is not None
    assert (forward.state, forward.attempt, forward.sent) == (machine.ForwardState.QUEUED, 1, 0)
    assert [(tried.peer, tried.final) for tried in forward.tried] == [(bee.key.id, True)]
    await deliver(ant, cat, wire(ant, cat), process)
    assert (await ant.load(process)).state == State.RUNNING
    assert [entry.waiting.origin for entry in cat.processes.queue.entries.values()] == [ant.key.id]
    assert not bee.processes.queue.entries


async def test_a_refusal_that_nobody_signed_is_final(client: EtcdClient) -> None:
    ant, bee, _ = await three(client, BOTH)
    await bee.federation.peers.set_policy(ant.key.id, Policy(functions=["other"]))
    process, connection = await ant.submit(), wire(ant, bee)
    connection.strip = True
    await deliver(ant, bee, connection, process)
    found = await ant.load(process)
    assert (found.state, found.peer) == (State.FAILED, bee.key.id)
    assert "refused: policy_function" in found.errors[0]


async def test_a_signed_refusal_of_another_message_is_worth_nothing(client: EtcdClient) -> None:
    ant, bee, cat = await three(client, BOTH)
    await bee.federation.peers.set_policy(ant.key.id, Policy(functions=["other"]))
    first, second, connection = await ant.submit(), await ant.submit(), wire(ant, bee)
    await deliver(ant, bee, connection, first)
    assert (await ant.load(first)).peer == cat.key.id
    connection.swap = connection.refusal
    await deliver(ant, bee, connection, second)
    assert (await ant.load(second)).state == State.FAILED


async def test_without_retry_a_refusal_is_final(client: EtcdClient) -> None:
    ant, bee, _ = await three(client, RouteConfig(to=["bee", "cat"], retry=False))
    await bee.federation.peers.set_policy(ant.key.id, Policy(functions=["other"]))
    process = await ant.submit()
    await deliver(ant, bee, wire(ant, bee), process)
    assert (await ant.load(process)).state == State.FAILED


async def test_a_peer_that_has_another_message_under_this_id_may_run_it(
    client: EtcdClient,
) -> None:
    ant, bee, _ = await three(client, BOTH)
    process = await ant.submit()
    await deliver(ant, bee, wire(ant, bee), process)
    # As if our store had been restored from before: the same attempt is sealed anew.
    forward = machine.new_forward(process, machine.RouteTrace("route", retry=True), time.time_ns())
    key = ant.federation.keys.forward(bee.key.id, process.processid)
    back = msgspec.structs.replace(process, state=State.WAITING)
    stored = keys.process("ant", process.processid)
    spec = msgspec.structs.replace(back.spec, args=[1])
    back = msgspec.structs.replace(back, spec=spec)
    ops = [Put(key, pack(forward)), Put(stored, pack(back))]
    await client.commit(Txn([], ops))
    await ant.processes.load("ant", process.processid)
    ant.federation.outbox.entries.clear()
    ant.federation.outbox.look_for(process.processid, bee.key.id)
    await deliver(ant, bee, wire(ant, bee), process)
    found = await ant.load(process)
    assert (found.state, found.peer) == (State.FAILED, bee.key.id)
    assert "id_reuse" in found.errors[0]


async def test_what_was_never_sent_moves_when_its_share_of_the_time_is_over(
    client: EtcdClient,
) -> None:
    ant, bee, cat = await three(client, BOTH)
    ant.hire()
    process, connection = await ant.submit(), wire(ant, bee)
    connection.trouble = Unsent("connection refused")
    await deliver(ant, bee, connection, process)
    await ant.federation.sender.expire()
    assert await ant.forward(bee, process) is not None, "its share is not over"
    await _age(ant, bee, process)
    await ant.federation.sender.expire()
    assert (await ant.load(process)).peer == cat.key.id
    forward = await ant.forward(cat, process)
    assert forward is not None
    assert [(tried.error, tried.final) for tried in forward.tried] == [
        ("peer bee not reached: connection refused", False)
    ]
    # Nowhere else to go but home.
    await _age(ant, cat, process)
    await ant.federation.sender.expire()
    found = await ant.load(process)
    assert (found.peer, found.state) == ("", State.WAITING)
    assert await ant.queued(process)
    assert await ant.forward(cat, process) is None
    await ant.tick()
    assert (await ant.load(process)).peer == "", "neither has said anything since"
    ant.hear(cat, 2)
    _patience_over(ant)
    await ant.tick()
    assert (await ant.load(process)).peer == cat.key.id


def _patience_over(side: Side) -> None:
    for item in side.federation.requeuer._items.values():
        if item is not None:
            item.after = 0.0


async def test_what_may_have_arrived_stays_in_doubt(client: EtcdClient) -> None:
    ant, bee, _ = await three(client, BOTH)
    process, connection = await ant.submit(), wire(ant, bee)
    connection.trouble = Lost("no answer")
    await deliver(ant, bee, connection, process)
    await _age(ant, bee, process)
    await ant.federation.sender.expire()
    forward = await ant.forward(bee, process)
    assert forward is not None
    assert (forward.state, forward.sent) == (machine.ForwardState.DOUBT, 1)
    # A refusal of the second copy says nothing about the first.
    await bee.federation.peers.set_policy(ant.key.id, Policy(functions=["other"]))
    await deliver(ant, bee, wire(ant, bee), process)
    found = await ant.load(process)
    assert (found.state, found.peer) == (State.FAILED, bee.key.id)
    assert "the peer may still run it" in found.errors[0]


async def test_a_copy_that_another_daemon_sent_keeps_it_there(client: EtcdClient) -> None:
    ant, bee, _ = await three(client, BOTH)
    process = await ant.submit()
    await _age(ant, bee, process)
    await ant.federation.outbox.refresh(bee.key.id)
    forward = await ant.forward(bee, process)
    assert forward is not None
    key = ant.federation.keys.forward(bee.key.id, process.processid)
    await client.put(key, pack(machine.sending(forward, b"sealed", time.time_ns())))
    # Memory still says that it never left.
    assert (
        ant.federation.outbox.entries[process.processid].forward.state
        == machine.ForwardState.QUEUED
    )
    await ant.federation.sender.expire()
    found = await ant.load(process)
    assert (found.state, found.peer) == (State.WAITING, bee.key.id)
    after = await ant.forward(bee, process)
    assert after is not None
    assert after.state == machine.ForwardState.DOUBT


async def test_memory_of_where_it_was_does_no_harm(client: EtcdClient) -> None:
    ant, bee, cat = await three(client, BOTH)
    await bee.federation.peers.set_policy(ant.key.id, Policy(functions=["other"]))
    process = await ant.submit()
    twin = Side(client, "ant")  # another daemon, that read the outbox before
    await twin.federation.outbox.load()
    await deliver(ant, bee, wire(ant, bee), process)
    outbox = ant.federation.outbox
    await outbox.refresh(cat.key.id)
    outbox.look_for(process.processid, bee.key.id)
    await outbox.refresh(bee.key.id)
    assert outbox.entries[process.processid].forward.peer == cat.key.id
    assert twin.federation.outbox.entries[process.processid].forward.peer == bee.key.id
    await twin.processes.cancel("ant", process.processid)
    forward = await ant.forward(cat, process)
    assert forward is not None
    assert (forward.peer, forward.state) == (cat.key.id, machine.ForwardState.CANCELLING)


async def test_a_deadline_in_an_old_index_does_not_end_what_has_left(client: EtcdClient) -> None:
    ant, bee, _ = await three(client, RouteConfig(when="waiting > 0s", to="bee"))
    process = await ant.submit(maxwaittime=1)
    twin = Side(client, "ant")  # whose watch has not told yet
    for entry in ant.processes.queue.entries.values():
        twin.processes.queue.add(entry)
    twin.ahead = 2 * SECOND
    await ant.tick()
    await expire(twin.processes, twin.assigner)
    found = await ant.load(process)
    assert (found.state, found.peer) == (State.WAITING, bee.key.id)


async def test_what_left_and_came_back_is_known_by_where_it_was_tried(client: EtcdClient) -> None:
    ant, bee, _ = await three(client, RouteConfig(when="waiting > 0s", to="bee"))
    said = Capabilities(2, accepting=False)
    ant.federation.capability_cache.take(bee.key.id, said)
    process = await ant.submit()
    await ant.tick()
    # Another daemon sent it there, and back here when it was refused.
    forward = machine.new_forward(msgspec.structs.replace(process, peer=bee.key.id))
    tried, now = (
        (machine.FailedAttempt(bee.key.id, "no", time.time_ns(), final=True),),
        time.time_ns(),
    )
    sent = machine.sending(forward, b"sealed", now)
    record = machine.returned(
        machine.refused(sent, "no", "", "bee", now, Proof.SIGNED).forward, tried, now
    )
    await client.put(ant.federation.keys.proof(process.processid), pack(record))
    (entry,) = ant.processes.queue.entries.values()
    ant.processes.queue.add(msgspec.structs.replace(entry, revision=entry.revision + 1))
    ant.hear(bee, 3)
    for _ in range(3):
        _patience_over(ant)
        await ant.tick()
    assert (await ant.load(process)).peer == ""


async def test_refused_by_all_it_fails_and_says_what_each_said(client: EtcdClient) -> None:
    ant, bee, cat = await three(client, BOTH)
    for peer in (bee, cat):
        await peer.federation.peers.set_policy(ant.key.id, Policy(functions=["other"]))
    process = await ant.submit()
    await deliver(ant, bee, wire(ant, bee), process)
    await deliver(ant, cat, wire(ant, cat), process)
    found = await ant.load(process)
    assert found.state == State.FAILED
    assert [error.partition(" refused")[0] for error in found.errors] == ["peer bee", "peer cat"]


async def test_a_cancel_finds_it_wherever_it_went(client: EtcdClient) -> None:
    ant, bee, cat = await three(client, BOTH)
    await bee.federation.peers.set_policy(ant.key.id, Policy(functions=["other"]))
    process = await ant.submit()
    await deliver(ant, bee, wire(ant, bee), process)
    await deliver(ant, cat, wire(ant, cat), process)
    await ant.processes.cancel("ant", process.processid)
    await deliver(ant, cat, wire(ant, cat), process)
    there, _ = await client.range_all(keys.process("cat", ""))
    assert [unpack(kv.value, Process).state for kv in there] == [State.CANCELLED]


async def test_what_waited_before_a_restart_is_found(client: EtcdClient) -> None:
    ant, bee, _ = await three(client)
    process = await ant.submit()
    late = Side(client, "ant", RouteConfig(when="waiting > 0s", to="bee"))
    late.federation.peers.known = ant.federation.peers.known
    late.hear(bee, 1)
    for entry in ant.processes.queue.entries.values():
        late.processes.queue.add(entry)
    await late.tick()
    assert (await late.load(process)).peer == bee.key.id


async def test_what_waits_by_a_graphs_rules_is_left_alone(client: EtcdClient) -> None:
    ant, _, __ = await three(client, RouteConfig(when="waiting > 0s", to="bee"))
    specs = [
        FunctionSpec(
            nodename=name,
            funcname="f",
            conditions=Conditions(executortype="cli", dependencies=list(parents)),
        )
        for name, parents in (("one", ()), ("two", ("one",)))
    ]
    await ant.node.workflows.submit(
        "ant", specs, graphid=new_id(), initiatorid="a" * 64, initiatorname="ann"
    )
    await ant.tick()
    entries = [entry.blocked for entry in ant.processes.queue.entries.values()]
    assert entries == [True], "the root went, the other waits for it here"


def test_only_a_signed_refusal_of_the_only_copy_is_certain() -> None:
    forward = Forward("a" * 64, "b" * 64, 1, 1, 1, 1)
    once, now = machine.sending(forward, b"x", 1), 2
    twice = machine.sending(once, b"x", 1)
    for copy, code, signed, certain in (
        (once, "untrusted", True, True),
        (once, "untrusted", False, False),
        (once, "id_reuse", True, False),
        (twice, "untrusted", True, False),
        (twice, "expired", True, False),
    ):
        proof = Proof.SIGNED if signed else Proof.NONE
        effect = machine.refused(copy, code, "no", "bee", now, proof)
        assert effect.certain is certain, (copy.sent, code, signed)


def test_the_share_of_the_time_is_divided_among_the_places() -> None:
    now = 1_700_000_000 * SECOND
    spec = FunctionSpec(funcname="f", maxwaittime=40, conditions=Conditions(executortype="cli"))
    process = Process("a" * 64, "b" * 64, "ann", "ant", spec, now, now, peer="c" * 64)
    shares = [
        (machine.new_forward(process, machine.RouteTrace("r", True, places), now).share - now)
        / SECOND
        for places in (0, 1, 3)
    ]
    assert shares == [30, 20, 10]
    assert machine.new_forward(process, machine.RouteTrace("r", False, 1), now).share == 0
    forward = machine.new_forward(process, machine.RouteTrace("r", True, 1), now)
    assert machine.stranded(forward, forward.share, "bee", "") is None
    effect = machine.stranded(forward, forward.share + 1, "bee", "away")
    assert effect is not None
    assert effect.certain
    sent = machine.sending(forward, b"x", now)
    assert machine.stranded(sent, forward.share + 1, "bee", "") is None
