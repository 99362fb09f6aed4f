"""What is in the outbox is in memory for everybody who asks, also while it is being read."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, cast

import pytest
import trio
import trio.testing

from federation.forward import machine
from federation.forward.machine import Forward
from federation.outbox.entries import OutboxEntry
from federation.outbox.outbox import Outbox
from node.etcd.client import EtcdClient
from node.etcd.errors import EtcdUnavailable
from node.etcd.txn import Get, Txn
from node.host.clock import Clock
from node.model.codec import unpack
from node.model.types import DAY, State
from node.processes.service import Processes
from tests.federation.outbox.support import Front, Sending
from tests.support.interleaved import Meddled
from tests.support.parts import delivery_of, ledger_of


class Slow:
    """Holds the next read of an outbox until `go`, then gives its answer or fails."""

    def __init__(self, front: Front) -> None:
        self.reads, self.go, self.lost = trio.Event(), trio.Event(), False
        commit = front.client.commit

        async def slow(txn: Txn) -> Any:
            if any(isinstance(op, Get) and "/outbox/" in op.key for op in txn.success):
                self.reads.set()
                await self.go.wait()
                if self.lost:
                    raise EtcdUnavailable("no answer from the store")
            return await commit(txn)

        front.client.commit = slow  # type: ignore[method-assign]


async def lab(client: EtcdClient) -> tuple[Front, str, Slow]:
    """A colony that forwarded a process, of which memory does not know yet."""
    front = Front(client)
    await front.befriend()
    pid = await front.forward(machine.ForwardState.QUEUED)
    del front.outbox.entries[pid]
    front.outbox.look_for(pid, front.other.id)
    return front, pid, Slow(front)


async def test_who_sends_waits_for_what_another_task_reads(client: EtcdClient) -> None:
    """Or it would plan without it, and sleep for a minute."""
    front, pid, slow = await lab(client)
    seen: list[bool] = []

    async def plan() -> None:
        await front.outbox.refresh(front.other.id)
        seen.append(pid in front.outbox.entries)

    with trio.fail_after(50):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(front.outbox.refresh_all)
            await slow.reads.wait()
            nursery.start_soon(plan)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert front.outbox.outstanding(front.other.id) == 1
            slow.go.set()
    assert seen == [True]


async def test_the_sender_is_woken_when_another_task_has_read(client: EtcdClient) -> None:
    front, pid, slow = await lab(client)
    slow.go.set()
    event = front.outbox.wakeup(front.other.id).event
    await front.outbox.refresh_all()
    assert pid in front.outbox.entries
    assert event.is_set()


@pytest.mark.parametrize("how", ["cancelled", "no answer"])
async def test_a_read_that_comes_to_nothing_is_made_again(client: EtcdClient, how: str) -> None:
    front, pid, slow = await lab(client)
    with trio.fail_after(50):
        async with trio.open_nursery() as nursery:
            if how == "cancelled":
                nursery.start_soon(front.outbox.refresh, front.other.id)
                await slow.reads.wait()
                nursery.cancel_scope.cancel()
            else:
                slow.lost = True
                slow.go.set()
                with pytest.raises(EtcdUnavailable):
                    await front.outbox.refresh(front.other.id)
        slow.lost = False
        slow.go.set()
        assert front.outbox.outstanding(front.other.id) == 1
        await front.outbox.refresh(front.other.id)
    assert pid in front.outbox.entries


async def test_the_end_waits_for_what_is_being_read(client: EtcdClient) -> None:
    """A daemon that stops must not leave as if nothing were on its way."""
    front, pid, slow = await lab(client)
    idle = trio.Event()

    async def wait() -> None:
        await front.outbox.wait_idle()
        idle.set()

    with trio.fail_after(50):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(front.outbox.refresh, front.other.id)
            await slow.reads.wait()
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert not idle.is_set()
            slow.go.set()
            await idle.wait()
    assert pid in front.outbox.entries


# -- several daemons on one store ----------------------------------------------------------


async def beside(front: Front, *, knows: bool = True) -> tuple[Processes, Outbox]:
    """Another daemon of the same colony, which `knows` what was in the outbox by now."""
    processes = Processes(front.client, Clock(time.time_ns))
    outbox = ledger_of(replace(front.context, processes=processes))
    processes.attach(Sending(front.inbox, outbox))
    if knows:
        await outbox.load()
    return processes, outbox


async def stored(front: Front, pid: str) -> Forward:
    """A forward as the store has it."""
    found = await front.client.get(front.keys.forward(front.other.id, pid))
    assert found is not None
    return unpack(found.value, Forward)


@pytest.mark.parametrize("how", ["no answer", "cancelled"])
async def test_a_write_that_may_have_happened_is_looked_for(client: EtcdClient, how: str) -> None:
    front = Front(client)
    await front.befriend()
    pid = await front.forward(machine.ForwardState.QUEUED)
    await front.outbox.refresh_all()
    entry = front.outbox.entries[pid]
    meddled = Meddled(client)
    front.outbox.context = replace(front.context, client=cast(EtcdClient, meddled))
    sending = machine.sending(entry.forward, b"sealed", 1)
    if how == "no answer":
        meddled.lost = True
        with pytest.raises(EtcdUnavailable):
            await front.outbox.save(entry, sending, entry.forward)
    else:
        with trio.CancelScope() as scope:

            async def cancel() -> None:
                scope.cancel()

            meddled.first = cancel
            await front.outbox.save(entry, sending, entry.forward)
        assert scope.cancelled_caught
    assert list(front.outbox.stale) == [(pid, front.other.id)]
    await front.outbox.refresh(front.other.id)
    assert entry.forward == await stored(front, pid)
    expected = machine.ForwardState.DOUBT if how == "no answer" else machine.ForwardState.QUEUED
    assert entry.forward.state == expected


@pytest.mark.parametrize("state", [machine.ForwardState.QUEUED, machine.ForwardState.ACCEPTED])
async def test_an_end_without_an_answer_is_looked_for(client: EtcdClient, state: str) -> None:
    front = Front(client)
    await front.befriend()
    pid = await front.forward(state)
    await front.outbox.refresh_all()
    entry = front.outbox.entries[pid]
    meddled = Meddled(client)
    front.processes.client = cast(EtcdClient, meddled)
    front.outbox.context = replace(front.context, client=front.processes.client)
    meddled.lost = True
    effect = machine.deadline_passed(entry.forward, 2**62, "field", "")
    assert effect is not None
    with pytest.raises(EtcdUnavailable):
        await front.outbox.apply(entry, effect, entry.forward)
    assert list(front.outbox.stale) == [(pid, front.other.id)]
    assert (await front.process(pid)).state == State.FAILED


async def test_a_cancel_is_not_refused_for_what_another_daemon_sent(client: EtcdClient) -> None:
    """Memory has it as never sent."""
    front = Front(client)
    await front.befriend()
    pid = await front.forward(machine.ForwardState.QUEUED)
    processes, _ = await beside(front)
    entry = front.outbox.entries[pid]
    await front.outbox.save(entry, machine.sending(entry.forward, b"sealed", 1), entry.forward)
    await processes.cancel("lab", pid)
    assert (await stored(front, pid)).state == machine.ForwardState.CANCELLING


async def test_what_never_left_is_withdrawn_without_a_word(client: EtcdClient) -> None:
    front = Front(client)
    await front.befriend()
    pid = await front.forward(machine.ForwardState.QUEUED)
    await front.processes.cancel("lab", pid)
    assert await client.get(front.keys.forward(front.other.id, pid)) is None


async def test_a_cancel_names_the_attempt_that_another_daemon_started(client: EtcdClient) -> None:
    front = Front(client)
    await front.befriend()
    pid = await front.forward(machine.ForwardState.ACCEPTED)
    processes, _ = await beside(front, knows=False)
    await processes.cancel("lab", pid)
    forward = await stored(front, pid)
    assert (forward.state, forward.attempt) == (machine.ForwardState.CANCELLING, 1)


async def test_a_deadline_of_old_memory_does_not_end_what_runs(client: EtcdClient) -> None:
    front = Front(client)
    await front.befriend()
    pid = await front.forward(machine.ForwardState.QUEUED)
    _, outbox = await beside(front)
    mine, theirs = front.outbox.entries[pid], outbox.entries[pid]
    await front.outbox.save(mine, machine.sending(mine.forward, b"sealed", 1), mine.forward)
    receipt = machine.received(mine.forward, "accepted", "9" * 64, b"receipt")
    await front.outbox.apply(mine, receipt, mine.forward)
    effect = machine.deadline_passed(theirs.forward, theirs.forward.deliver + 1, "field", "")
    assert effect is not None
    assert not await outbox.apply(theirs, effect, theirs.forward)
    assert (await front.process(pid)).state == State.RUNNING
    assert list(outbox.stale) == [(pid, front.other.id)]
    await outbox.refresh_all()
    assert theirs.forward.state == machine.ForwardState.ACCEPTED


async def test_a_late_mark_for_one_peer_leaves_that_for_another(client: EtcdClient) -> None:
    front, pid, slow = await lab(client)
    slow.go.set()
    front.outbox.look_for(pid, "3" * 64)
    await front.outbox.refresh(front.other.id)
    assert pid in front.outbox.entries
    await front.outbox.refresh_all()
    assert not front.outbox.stale


async def test_a_clock_that_is_set_moves_every_forward_once(client: EtcdClient) -> None:
    """Also when the store fails half-way and it is done again."""
    front = Front(client)
    await front.befriend()
    pids = [await front.forward(machine.ForwardState.QUEUED) for _ in range(3)]
    await front.outbox.refresh_all()
    given = [(await stored(front, pid)).deliver for pid in pids]
    sender, year = delivery_of(front.context, front.outbox), 365 * DAY
    before = time.time_ns()
    save, saves = front.outbox.save, 0

    async def failing(entry: OutboxEntry, forward: Forward, known: Forward) -> bool:
        nonlocal saves
        saves += 1
        if saves == 2:
            raise EtcdUnavailable("away")
        return await save(entry, forward, known)

    front.outbox.save = failing  # type: ignore[method-assign, assignment]
    with pytest.raises(EtcdUnavailable):
        await sender.clock_set(year, before)
    await sender.clock_set(year, before)
    assert [(await stored(front, pid)).deliver - year for pid in pids] == given

    def later() -> int:
        return before + year

    front.processes.clock = Clock(later, later)
    await sender.expire()
    assert set(front.outbox.entries) == set(pids), "nothing was left of none"
    await sender.clock_set(-year, before + year)
    assert [(await stored(front, pid)).deliver for pid in pids] == given
