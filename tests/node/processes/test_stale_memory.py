"""Decisions are made on what is so now, not on what was remembered before a wait."""

from __future__ import annotations

import time
from typing import Any

import trio
import trio.testing

from node.etcd.client import EtcdClient
from node.etcd.txn import Put
from node.host.clock import Clock
from node.model.ids import new_id
from node.model.types import (
    SECOND,
    Conditions,
    Executor,
    ExecutorState,
    FunctionSpec,
    Process,
    State,
)
from node.processes.deadlines import expire
from node.processes.service import Processes
from node.processes.spec import build_process
from node.store import keys
from node.store.work import processes as store
from tests.federation.routing.support import BOTH, Wire, _age, three, wire
from tests.support.processes import assigning

WORKER = Executor("b" * 64, "t", "w", "dev", state=ExecutorState.APPROVED)


class Moving:
    """Unix nanoseconds that a test moves on."""

    def __init__(self) -> None:
        self.time = time.time_ns()

    def __call__(self) -> int:
        return self.time


async def submit(processes: Processes, **limits: Any) -> Process:
    spec = FunctionSpec("", "f", conditions=Conditions("dev", executortype="t"), **limits)
    process = build_process(
        spec, processid=new_id(), initiatorid="a" * 64, initiatorname="me", colonyname="dev",
        now=processes.clock.now(), peer="",
    )  # fmt: skip
    return await processes.submit(process, b"")


async def hand_out_unheard(processes: Processes, client: EtcdClient, process: Process) -> None:
    """It is handed out, of which only the watch tells."""
    found = await client.get(keys.process("dev", process.processid))
    assert found is not None
    step = store.assign(process, found.mod_revision, WORKER, processes.clock.now())
    result = await client.commit(step.txn)
    assert result.succeeded
    key = keys.running("dev", process.processid)
    mark = await client.get(key)
    assert mark is not None
    processes.apply(key, mark.value, mark.mod_revision)
    placed = store.place(process)[0]
    assert isinstance(placed, Put)
    processes.apply(placed.key, None, result.revision)


async def test_a_deadline_holds_for_a_hand_out_that_only_the_watch_told_of(
    client: EtcdClient,
) -> None:
    clock = Moving()
    processes = Processes(client, Clock(clock))
    process = await submit(processes, maxexectime=5, maxretries=3)
    await hand_out_unheard(processes, client, process)
    clock.time += 6 * SECOND
    await expire(processes, assigning(processes))
    found = await processes.load("dev", process.processid)
    assert found is not None
    assert (found[0].state, found[0].retries) == (State.WAITING, 1)


async def test_an_executor_that_leaves_gives_back_what_only_the_watch_told_of(
    client: EtcdClient,
) -> None:
    processes = Processes(client, Clock(time.time_ns))
    process = await submit(processes)
    await hand_out_unheard(processes, client, process)
    await processes.release("dev", WORKER.executorid)
    found = await processes.load("dev", process.processid)
    assert found is not None
    assert (found[0].state, found[0].retries) == (State.WAITING, 0)


async def test_a_close_without_output_may_be_repeated_after_set_output(client: EtcdClient) -> None:
    processes = Processes(client, Clock(time.time_ns))
    process = await submit(processes)
    await hand_out_unheard(processes, client, process)
    who = ("dev", process.processid, WORKER.executorid)
    await processes.set_output(*who, ["half"])
    for _ in range(2):
        closed = await processes.close(*who, State.SUCCESSFUL)
        assert (closed.state, closed.output) == (State.SUCCESSFUL, ["half"])


class Late(Wire):
    """A peer that is reached at last."""

    async def connect(self) -> None:
        self.reaching.set()
        await self.reached.wait()

    def __init__(self, like: Wire) -> None:
        super().__init__(like.entry, like.signer, like.guide)
        self.to = like.to
        self.reaching, self.reached = trio.Event(), trio.Event()


async def test_what_went_elsewhere_while_a_peer_was_reached_is_not_sent_to_it(
    client: EtcdClient,
) -> None:
    ant, bee, cat = await three(client, BOTH)
    process = await ant.submit()
    outbox = ant.federation.outbox
    await outbox.refresh(bee.key.id)
    link = Late(wire(ant, bee))
    link._greeted = True  # its clock was measured before
    with trio.fail_after(50):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ant.federation.sender.send_forever, link)
            await link.reaching.wait()
            await _age(ant, bee, process)
            await ant.federation.sender.expire()
            await outbox.refresh(cat.key.id)
            link.reached.set()
            await trio.testing.wait_all_tasks_blocked(0.05)
            nursery.cancel_scope.cancel()
    assert not bee.processes.queue.entries
    forward = outbox.entries[process.processid].forward
    assert (forward.peer, forward.attempts, forward.envelope) == (cat.key.id, 0, b"")
