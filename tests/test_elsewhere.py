"""Subscribers hear of what another daemon of the same store did, and of what got no answer."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import cast

import pytest
import trio
from wsproto.events import Ping, Pong

from node import feeding
from node.etcd.client import EtcdClient
from node.etcd.errors import EtcdUnavailable
from node.model import Conditions, Executor, ExecutorState, FunctionSpec, Process, State
from node.node import Node
from node.scheduler import Candidate
from node.store import keys
from node.submission import build_process, new_id
from node.subscriptions import Wanted
from tests.meddled import Meddled
from tests.pairs import two_daemons
from tests.support import Daemon
from tests.test_pubsub import Raw
from tests.test_pycolonies import COLONY, Party

WORKER = Executor("b" * 64, "t", "w", "dev", state=ExecutorState.APPROVED)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Daemon]]:
    with two_daemons(tmp_path_factory.mktemp("p"), COLONY) as pair:
        yield pair


@pytest.mark.slow
async def test_each_state_is_told_once_at_either_daemon(pair: tuple[Daemon, Daemon]) -> None:
    in_thread = trio.to_thread.run_sync
    here, there = Party(pair[0]), Party(pair[1])
    await in_thread(here.join)
    there.__dict__.update({k: v for k, v in here.__dict__.items() if k != "colonies"})
    sockets = [await Raw.connect(daemon.port) for daemon in pair]
    async with sockets[0].stream, sockets[1].stream:
        for raw in sockets:
            for state in (State.WAITING, State.RUNNING, State.SUCCESSFUL):
                await raw.ask(
                    here.key,
                    msgtype="subscribeprocessesmsg",
                    executortype=here.type,
                    state=int(state),
                    timeout=300,
                    colonyname=COLONY,
                )
            await raw.send(Ping(payload=b"registered?"))
            assert await raw.next() == Pong(payload=bytearray(b"registered?"))
        for one in (here, there):
            process = await in_thread(one.submit)
            wanted = [(process.processid, state) for state in (0, 1, 2)]
            for raw in sockets:
                assert await told(raw) == wanted[0]
            assert (await in_thread(one.assign)).processid == process.processid
            for raw in sockets:
                assert await told(raw) == wanted[1]
            await in_thread(one.colonies.set_output, process.processid, ["a"], here.key)
            await in_thread(one.colonies.close, process.processid, ["b"], here.key)
            for raw in sockets:
                assert await told(raw) == wanted[2]


async def told(raw: Raw) -> tuple[str, int]:
    kind, value = await raw.reply()
    assert kind == "subscribeprocessmsg"
    return value["processid"], value["state"]


@asynccontextmanager
async def fed(client: EtcdClient) -> AsyncIterator[tuple[Node, Meddled]]:
    """A node that follows its store."""
    meddled = Meddled(client)
    node = Node.build(cast(EtcdClient, meddled), "dev", time.time_ns)
    node.processes.handout.present = lambda executor: executor
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.elsewhere.run)
        await nursery.start(feeding.follow, node, keys.LIVE)
        yield node, meddled
        nursery.cancel_scope.cancel()


async def submit(node: Node) -> Process:
    spec = FunctionSpec("", "f", conditions=Conditions("dev", executortype="t"))
    process = build_process(
        spec, processid=new_id(), initiatorid="a" * 64, initiatorname="me", colonyname="dev",
        now=time.time_ns(),
    )  # fmt: skip
    return await node.processes.submit(process, b"")


async def test_an_end_whose_answer_was_lost_is_told(client: EtcdClient) -> None:
    async with fed(client) as (node, meddled):
        process = await submit(node)
        await node.processes.handout.assign(Candidate("dev", "t", "w"), WORKER, 5)
        who = ("dev", process.processid, WORKER.executorid, State.SUCCESSFUL)
        with node.subscriptions.open(Wanted(frozenset({"dev"}), State.SUCCESSFUL)) as events:
            meddled.lost = True
            with pytest.raises(EtcdUnavailable):
                await node.processes.close(*who, output=["x"])
            with trio.fail_after(50):
                ended = await events.receive()
            assert (ended.processid, ended.output) == (process.processid, ["x"])
            # The repeat, and what the watch tells of it, are no news.
            await node.processes.close(*who, output=["x"])
            second = await submit(node)
            await node.processes.handout.assign(Candidate("dev", "t", "w"), WORKER, 5)
            await node.processes.close("dev", second.processid, WORKER.executorid, State.SUCCESSFUL)
            with trio.fail_after(50):
                assert (await events.receive()).processid == second.processid


async def test_a_store_that_fails_is_asked_again(
    client: EtcdClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fed(client) as (node, _):
        other = Node.build(client, "dev", time.time_ns)
        load_many, failed = node.processes.load_many, trio.Event()

        async def failing(colony: str, processids: list[str]) -> list[Process]:
            if not failed.is_set():
                failed.set()
                raise EtcdUnavailable("away")
            return await load_many(colony, processids)

        monkeypatch.setattr(node.processes, "load_many", failing)
        with node.subscriptions.open(Wanted(frozenset({"dev"}), State.WAITING)) as events:
            process = await submit(other)
            with trio.fail_after(50):
                assert (await events.receive()).processid == process.processid
            assert failed.is_set()
