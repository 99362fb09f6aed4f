"""What is in the outbox is in memory for everybody who asks, also while it is being read."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from federation import outbox
from node.etcd.client import EtcdClient
from node.etcd.errors import EtcdUnavailable
from node.etcd.transactions import Get, Txn
from tests.test_blocking import Front


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
    pid = await front.forward(outbox.QUEUED)
    del front.ledger.entries[pid]
    front.ledger.look_for(pid, front.other.id)
    return front, pid, Slow(front)


async def test_who_sends_waits_for_what_another_task_reads(client: EtcdClient) -> None:
    """Or it would plan without it, and sleep for a minute."""
    front, pid, slow = await lab(client)
    seen: list[bool] = []

    async def plan() -> None:
        await front.ledger.refresh(front.other.id)
        seen.append(pid in front.ledger.entries)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(front.ledger.refresh_all)
            await slow.reads.wait()
            nursery.start_soon(plan)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert front.ledger.outstanding(front.other.id) == 1
            slow.go.set()
    assert seen == [True]


async def test_the_sender_is_woken_when_another_task_has_read(client: EtcdClient) -> None:
    front, pid, slow = await lab(client)
    slow.go.set()
    event = front.ledger.bell(front.other.id).event
    await front.ledger.refresh_all()
    assert pid in front.ledger.entries
    assert event.is_set()


@pytest.mark.parametrize("how", ["cancelled", "no answer"])
async def test_a_read_that_comes_to_nothing_is_made_again(client: EtcdClient, how: str) -> None:
    front, pid, slow = await lab(client)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            if how == "cancelled":
                nursery.start_soon(front.ledger.refresh, front.other.id)
                await slow.reads.wait()
                nursery.cancel_scope.cancel()
            else:
                slow.lost = True
                slow.go.set()
                with pytest.raises(EtcdUnavailable):
                    await front.ledger.refresh(front.other.id)
        slow.lost = False
        slow.go.set()
        assert front.ledger.outstanding(front.other.id) == 1
        await front.ledger.refresh(front.other.id)
    assert pid in front.ledger.entries


async def test_the_end_waits_for_what_is_being_read(client: EtcdClient) -> None:
    """A daemon that stops must not leave as if nothing were on its way."""
    front, pid, slow = await lab(client)
    idle = trio.Event()

    async def wait() -> None:
        await front.ledger.wait_idle()
        idle.set()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(front.ledger.refresh, front.other.id)
            await slow.reads.wait()
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert not idle.is_set()
            slow.go.set()
            await idle.wait()
    assert pid in front.ledger.entries
