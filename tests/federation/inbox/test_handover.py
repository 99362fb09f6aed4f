"""A submission of a peer for which a poll waits: stored and assigned by one transaction."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import httpx
import msgspec
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from colonyd.errors import Denied
from colonyd.rpc import decode, encode
from federation.forward.path import local_id
from federation.inbox import outcomes
from federation.inbox.updates import UpdatePublisher
from federation.peers.registry import TRUSTED, Peers
from federation.wire.clock import SigningClock
from federation.wire.envelope import Kind
from federation.wire.messages import Cancel, Follow, News, Outcomes, Poll
from federation.wire.messages import load as load_message
from federation.wire.signer import Signer
from node.etcd.client import EtcdClient, TxnResult, open_client
from node.etcd.errors import EtcdUnavailable
from node.etcd.guard import GUARD
from node.etcd.txn import Txn
from node.model.types import Process, State
from node.processes.deadlines import expire
from node.processes.queue import Candidate
from node.processes.service import Processes
from tests.federation.inbox.support import PID, WORKER, Closing, Lab, code, submission
from tests.node.etcd.support import start_store
from tests.node.processes.support import Store
from tests.support.daemons import Daemon, until
from tests.support.sides import pair

CANDIDATE = Candidate("lab", "t", "w", "", None, None)


class MeddledLab(Lab):
    """A lab whose store can be meddled with."""

    def __init__(self, client: EtcdClient) -> None:
        self.store = Store(client)
        super().__init__(cast(EtcdClient, self.store))

    def sealed(self, number: int = 0) -> bytes:
        """Return a submission; another process for another number."""
        pid = hashlib.sha256(b"%d" % number).hexdigest() if number else PID
        return self.seal(Kind.SUBMIT, msgspec.structs.replace(submission(), pid=pid))


class Telling(Closing):
    """Tells the inbox of updates, too."""

    def progressed(self, process: Process) -> None:
        """Note an update."""
        if process.notify:
            self.inbox.outcome_queue.progressed(process)


class OneAtOnce(Closing):
    """A policy by which one process of a colony may run."""

    def most_running(self, origin: str) -> int:
        """Return 1 for a colony; 0, any number, for none."""
        return 1 if origin else 0


@pytest.fixture
async def lab(nursery: trio.Nursery, tmp_path: Path) -> AsyncIterator[MeddledLab]:
    store = await start_store(nursery, tmp_path / "etcd")
    async with open_client(store.target, timeout=60) as client:
        lab = MeddledLab(client)
        await lab.befriend()
        yield lab


@asynccontextmanager
async def polling(lab: Lab, count: int = 1) -> AsyncIterator[list[Process]]:
    """Give the list of what polls that wait have got so far."""
    got: list[Process] = []

    async def poll() -> None:
        with suppress(EtcdUnavailable):
            got.append(await lab.assigner.assign(CANDIDATE, WORKER, 30))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(poll)
            await wait_all_tasks_blocked()
            yield got
            nursery.cancel_scope.cancel()


async def test_it_takes_one_write_and_is_answered_as_any_other(lab: MeddledLab) -> None:
    sealed = lab.sealed()
    async with polling(lab) as got:
        before = lab.store.writes
        receipt = await lab.submit(sealed)
        await wait_all_tasks_blocked()
        assert lab.store.writes == before + 1
        (mine,) = got
        assert (receipt.status, receipt.remote) == ("accepted", local_id(lab.other.id, PID, 1))
        assert (mine.processid, mine.state, mine.attempt) == (receipt.remote, State.RUNNING, 1)
        assert mine.origin == lab.other.id
        assert await lab.submit(sealed) == receipt, "a repeat"
    assert not lab.processes.queue.entries
    await lab.processes.close(
        "lab", mine.processid, WORKER.executorid, State.SUCCESSFUL, output=[3.5]
    )
    (outcome,) = await lab.poll()
    assert (outcome.pid, outcome.asked) == (PID, hashlib.sha256(sealed).digest())


async def test_copies_at_the_same_time_run_once(lab: MeddledLab) -> None:
    sealed = lab.sealed()
    answers: list[bytes] = []

    async def send() -> None:
        answers.append((await lab.raw("submit", sealed)).body)

    async with polling(lab, 3) as got:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(send)
        await wait_all_tasks_blocked()
        assert len(set(answers)) == 1
        assert len(got) == 1
        # The polls that it did not get go on.
        await lab.submit(lab.sealed(1))
        await lab.submit(lab.sealed(2))
        await wait_all_tasks_blocked()
        assert len({process.processid for process in got}) == 3


async def test_no_more_run_than_the_policy_allows(lab: MeddledLab) -> None:
    lab.processes.attach(OneAtOnce(lab.inbox))
    async with polling(lab, 3) as got:
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(lab.submit, lab.sealed(number))
        await wait_all_tasks_blocked()
        assert len(got) == 1
        assert len(lab.processes.queue.entries) == 2
        pid = got[0].processid
        await lab.processes.close("lab", pid, WORKER.executorid, State.SUCCESSFUL)

        async def next_one() -> bool:
            return len(got) == 2

        await until(30, next_one)


async def test_a_cancel_that_came_first_wins_and_the_poll_goes_on(lab: MeddledLab) -> None:
    await lab.post("cancel", Kind.CANCEL, Cancel(PID, 1))
    async with polling(lab) as got:
        assert (await lab.submit(lab.sealed())).status == "cancelled"
        await wait_all_tasks_blocked()
        assert not got
        await lab.submit(lab.sealed(1))
        await wait_all_tasks_blocked()
        assert len(got) == 1


async def test_a_block_by_another_daemon_leaves_the_poll_alone(lab: MeddledLab) -> None:
    async with polling(lab) as got:
        elsewhere = Peers(lab.client, lab.keys, Signer(lab.key, SigningClock()))
        await elsewhere.load()
        await elsewhere.block(lab.other.id)
        assert lab.peers.state(lab.other.id) == TRUSTED
        assert code(await lab.raw("submit", lab.sealed())) == "blocked"
        await wait_all_tasks_blocked()
        assert not got
        assert lab.assigner.polling("lab")


async def test_polls_that_may_get_nothing_any_more_do_not_have_it_refused(lab: MeddledLab) -> None:
    """As copies of polls whose connections broke: their requests have been served meanwhile."""
    refused: list[Denied] = []

    class Served:
        async def commit(self, send: object, txn: Txn) -> TxnResult:
            raise Denied("served")

    async def poll() -> None:
        GUARD.set(Served())
        try:
            await lab.assigner.assign(CANDIDATE, WORKER, 30)
        except Denied as error:
            refused.append(error)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(poll)
            await wait_all_tasks_blocked()
            assert (await lab.submit(lab.sealed())).status == "accepted"
            nursery.cancel_scope.cancel()
    assert refused
    assert len(lab.processes.queue.entries) == 1


async def test_polls_do_not_look_at_what_has_ended(
    lab: MeddledLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ends at once is never in a poll: each of the last 256 was looked at in each poll."""
    lab.processes.attach(Telling(lab.inbox))
    for number in range(20):
        await lab.submit(lab.sealed(number))
        await lab.run_one()
    acks = [outcome.pid for outcome in await lab.poll()]
    assert len(acks) == 20
    looked: list[str] = []
    place = UpdatePublisher.place

    async def counted(self: UpdatePublisher, issuer: str, pid: str, *rest: Any) -> Any:
        looked.append(pid)
        return await place(self, issuer, pid, *rest)

    monkeypatch.setattr(UpdatePublisher, "place", counted)
    await lab.submit(lab.sealed(30))
    running = await lab.assigner.assign(CANDIDATE, WORKER, 5)
    response = await lab.post("outcomes", Kind.POLL, Poll(10, acks, [], True))
    (news,) = load_message(lab.opened(response, Kind.OUTCOMES).payload, Outcomes).news or []
    assert load_message(news, News).state == State.RUNNING
    assert {*looked} == {running.notify.rpartition("/")[2]}


async def test_what_another_daemon_changed_is_told_while_others_change_all_the_time(
    lab: MeddledLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcomes, "_LOOK", 0.5)
    lab.processes.attach(Telling(lab.inbox))
    follows: dict[str, Follow] = {}

    async def poll() -> None:
        response = await lab.post("outcomes", Kind.POLL, Poll(10, [], [*follows.values()], True))
        for data in load_message(lab.opened(response, Kind.OUTCOMES).payload, Outcomes).news or []:
            news = load_message(data, News)
            follows[news.pid] = Follow(news.pid, 1, news.version, output=news.output)

    async def work(processes: Processes, process: Process, number: int) -> None:
        pid, executorid = process.processid, process.assignedexecutorid
        await processes.set_output("lab", pid, executorid, [number])

    here, there = [], Processes(lab.client, lab.processes.clock)
    for number in range(2):
        await lab.submit(lab.sealed(number))
        here.append(await lab.assigner.assign(CANDIDATE, WORKER, 5))
    with trio.fail_after(30):
        while len(follows) < 2:
            await poll()
        for number in itertools.count():
            await work(lab.processes, here[0], number)
            if number == 1:
                await work(there, here[1], number)
            await poll()
            if all(follow.output for follow in follows.values()):
                break


async def test_an_answer_that_is_lost_puts_it_back(lab: MeddledLab) -> None:
    sealed, remote = lab.sealed(), local_id(lab.other.id, PID, 1)
    async with polling(lab) as got:
        lab.store.lost = True
        assert code(await lab.raw("submit", sealed)) == "busy"
        assert lab.assigner.doubts(remote)
        await wait_all_tasks_blocked()
        assert not got
        await expire(lab.processes, lab.assigner)
    assert (await lab.submit(sealed)).remote == remote
    mine = await lab.assigner.assign(CANDIDATE, WORKER, 5)
    assert (mine.processid, mine.attempt, mine.retries) == (remote, 2, 0)
    await lab.processes.close("lab", remote, WORKER.executorid, State.SUCCESSFUL, output=[1])
    (outcome,) = await lab.poll()
    assert (outcome.pid, outcome.attempt) == (PID, 1)


async def test_a_repeat_of_the_poll_gets_it_again(make_daemon: Callable[..., Daemon]) -> None:
    """The answer was lost on its way: the executor sends the same bytes."""
    with trio.fail_after(120):
        async with pair(make_daemon) as (ant, bee), httpx.AsyncClient(trust_env=False) as http:
            fields = {"colonyname": bee.daemon.name, "timeout": 60, "availablecpu": "1000m"}
            poll = encode("assignprocessmsg", fields, bee.worker)
            given: list[dict[str, Any]] = []

            async def send() -> None:
                reply = await http.post(f"{bee.client.url}/api", content=poll, timeout=70)
                given.append(decode("assignprocessmsg", reply.status_code, reply.content))

            async def waits() -> bool:
                why = await bee.call("getwaitingmsg", processid=other["processid"])
                return bool(why["asking"])

            # It waits for another executor, and tells that the poll is there.
            conditions = {"colonyname": bee.daemon.name, "executortype": "cli", "cpu": "9000m"}
            large = {"funcname": "f", "conditions": conditions}
            other = await bee.call("submitfuncspecmsg", spec=large)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                await until(30, waits)
                await ant.submit("bee")
            await send()
            assert given[0]["state"] == State.RUNNING
            assert given[0] == given[1]
