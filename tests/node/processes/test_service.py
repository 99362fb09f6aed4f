"""The shell around processes on a real store: news in any order, and callers that leave."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from node.etcd.client import TxnResult, open_client
from node.etcd.errors import EtcdUnavailable
from node.etcd.txn import Txn
from node.host.clock import Clock
from node.model.codec import pack
from node.model.types import Executor, Process, State
from node.processes.assignment import Assigner
from node.processes.queue import Candidate
from node.processes.service import Processes
from node.store import keys
from node.store.work import processes as store
from tests.node.etcd.support import start_store
from tests.support.processes import assigning, make

CANDIDATE = Candidate("dev", "cli", "ada")
ADA = Executor("a" * 64, "cli", "ada", "dev")


@pytest.fixture
async def processes(nursery: trio.Nursery, tmp_path: Path) -> AsyncIterator[Processes]:
    target = (await start_store(nursery, tmp_path / "etcd")).target
    async with open_client(target, timeout=60) as client:
        yield Processes(client, Clock(time.time_ns))


@pytest.fixture
def assigner(processes: Processes) -> Assigner:
    return assigning(processes)


async def test_a_requeue_that_the_watch_tells_first_is_handed_out(
    processes: Processes, assigner: Assigner
) -> None:
    submitted = await processes.submit(make(), b"")
    running = await assigner.assign(CANDIDATE, ADA, 5)
    loaded = await processes.load("dev", running.processid)
    assert loaded is not None
    # Another daemon, or our own transaction whose answer is still on its way.
    step = store.requeue(loaded[0], loaded[1], time.time_ns(), counts=True)
    result = await processes.client.commit(step.txn)
    queued = keys.queue("dev", "cli", submitted.prioritytime, submitted.processid)
    processes.apply(queued, pack(store.waiting_of(step.process)), result.revision)
    again = await assigner.assign(CANDIDATE, ADA, 5)
    assert (again.processid, again.attempt, again.retries) == (submitted.processid, 2, 1)


async def test_a_caller_that_left_gets_nothing(processes: Processes, assigner: Assigner) -> None:
    submitted = await processes.submit(make(), b"")
    with trio.CancelScope() as gone:
        gone.cancel()
        await assigner.assign(CANDIDATE, ADA, 5)
    found = await processes.load("dev", submitted.processid)
    assert found is not None
    assert (found[0].state, found[0].retries) == (State.WAITING, 0)
    assert (await assigner.assign(CANDIDATE, ADA, 5)).processid == submitted.processid


async def test_a_caller_at_its_timeout_keeps_what_it_got(
    processes: Processes, assigner: Assigner
) -> None:
    submitted = await processes.submit(make(), b"")
    # The deadline passes while the transaction runs: the caller is still there to take it.
    got = await assigner.assign(CANDIDATE, ADA, 1e-6)
    assert got.processid == submitted.processid


async def test_a_hand_out_that_fails_leaves_the_process_to_who_waits(
    processes: Processes,
    assigner: Assigner,
    monkeypatch: pytest.MonkeyPatch,
    nursery: trio.Nursery,
) -> None:
    submitted = await processes.submit(make(), b"")
    commit, under_way, fail = processes.client.commit, trio.Event(), trio.Event()

    async def broken(txn: Txn) -> TxnResult:
        monkeypatch.setattr(processes.client, "commit", commit)
        under_way.set()
        await fail.wait()
        raise EtcdUnavailable("gone")

    async def unlucky() -> None:
        with pytest.raises(EtcdUnavailable):
            await assigner.assign(CANDIDATE, ADA, 5)

    monkeypatch.setattr(processes.client, "commit", broken)
    nursery.start_soon(unlucky)
    await under_way.wait()
    got: list[Process] = []

    async def lucky() -> None:
        with trio.fail_after(5):
            got.append(await assigner.assign(CANDIDATE, ADA, 60))

    async with trio.open_nursery() as inner:
        inner.start_soon(lucky)
        await trio.testing.wait_all_tasks_blocked(0.05)
        fail.set()
    assert got[0].processid == submitted.processid
