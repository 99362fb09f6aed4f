"""Subscribers hear of what another daemon of the same store did, and of what got no answer."""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, Iterator, Sequence
from typing import Any

import pytest
import trio
from wsproto.events import Ping, Pong

from node.etcd.client import EtcdClient
from node.etcd.errors import EtcdUnavailable
from node.etcd.watch import Event, WatchBatch
from node.host.clock import Clock
from node.model.ids import new_id
from node.model.types import Conditions, FunctionSpec, Process, State
from node.processes.queue import Candidate
from node.processes.spec import build_process
from node.runtime import feeds as feeding
from node.runtime.node import Node
from node.store import keys
from node.streams import remote_changes as remote_changes
from node.streams.subscriptions import SubscriptionFilter
from tests.node.streams.support import WORKER, fed
from tests.sdk.support import COLONY, Party
from tests.support.daemons import Daemon
from tests.support.pairs import two_daemons
from tests.support.processes import enlist
from tests.support.raw import Raw


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
            assert await raw.next() == Pong(payload=b"registered?")

        async def read() -> None:
            """Who reads at a daemon must not make its subscribers miss anything."""
            for one in (here, there):
                await in_thread(one.state, process)

        for one in (here, there):
            process = await in_thread(one.submit)
            await read()
            wanted = [(process.processid, state) for state in (0, 1, 2)]
            for raw in sockets:
                assert await told(raw) == wanted[0]
            assert (await in_thread(one.assign)).processid == process.processid
            await read()
            for raw in sockets:
                assert await told(raw) == wanted[1]
            await in_thread(one.colonies.set_output, process.processid, ["a"], here.key)
            await in_thread(one.colonies.close, process.processid, ["b"], here.key)
            await read()
            for raw in sockets:
                assert await told(raw) == wanted[2]


async def told(raw: Raw) -> tuple[str, int]:
    kind, value = await raw.reply()
    assert kind == "subscribeprocessmsg"
    return value["processid"], value["state"]


async def submit(node: Node, *, waits: bool = False) -> Process:
    spec = FunctionSpec("", "f", conditions=Conditions("dev", executortype="t"))
    process = build_process(
        spec, processid=new_id(), initiatorid="a" * 64, initiatorname="me", colonyname="dev",
        now=time.time_ns(),
    )  # fmt: skip
    process.waitforparents = waits
    return await node.processes.submit(process, b"")


async def test_an_end_whose_answer_was_lost_is_told(client: EtcdClient) -> None:
    async with fed(client) as (node, meddled):
        process = await submit(node)
        await node.assigner.assign(Candidate("dev", "t", "w"), WORKER, 5)
        who = ("dev", process.processid, WORKER.executorid, State.SUCCESSFUL)
        with node.subscriptions.open(
            SubscriptionFilter(frozenset({"dev"}), State.SUCCESSFUL)
        ) as events:
            meddled.lost = True
            with pytest.raises(EtcdUnavailable):
                await node.processes.close(*who, output=["x"])
            with trio.fail_after(50):
                ended = await events.receive()
            assert (ended.processid, ended.output) == (process.processid, ["x"])
            # The repeat, and what the watch tells of it, are no news.
            await node.processes.close(*who, output=["x"])
            second = await submit(node)
            await node.assigner.assign(Candidate("dev", "t", "w"), WORKER, 5)
            await node.processes.close("dev", second.processid, WORKER.executorid, State.SUCCESSFUL)
            with trio.fail_after(50):
                assert (await events.receive()).processid == second.processid


async def test_a_store_that_fails_is_asked_again(
    client: EtcdClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fed(client) as (node, _):
        other = Node.build(client, "dev", Clock(time.time_ns))
        load_at, failed = node.processes.load_at, trio.Event()

        async def failing(wanted: Sequence[tuple[str, str, int]]) -> Any:
            if not failed.is_set():
                failed.set()
                raise EtcdUnavailable("away")
            return await load_at(wanted)

        monkeypatch.setattr(node.processes, "load_at", failing)
        with node.subscriptions.open(
            SubscriptionFilter(frozenset({"dev"}), State.WAITING)
        ) as events:
            process = await submit(other)
            with trio.fail_after(50):
                assert (await events.receive()).processid == process.processid
            assert failed.is_set()


# -- what another daemon does ----------------------------------------------------------------

CANDIDATE = Candidate("dev", "t", "w")
Told = list[tuple[int, State]]
WHOLE = [(0, State.WAITING), (1, State.RUNNING), (1, State.SUCCESSFUL)]


class Anything(SubscriptionFilter):
    """Every state, so that the order between them is seen."""

    def matches(self, process: Process) -> bool:
        return process.colonyname in self.colonies


def neighbour(client: EtcdClient) -> Node:
    """Another daemon of the same store."""
    other = Node.build(client, "dev", Clock(time.time_ns))
    enlist(other, WORKER)
    return other


async def close(node: Node, process: Process) -> Process:
    who = ("dev", process.processid, WORKER.executorid, State.SUCCESSFUL)
    return await node.processes.close(*who, output=["x"])


async def told_of(
    events: AsyncIterable[Process], process: Process, last: State = State.SUCCESSFUL
) -> Told:
    """What is told of a process, as attempt and state, until it is `last`."""
    told: Told = []
    with trio.fail_after(30):
        async for heard in events:
            if heard.processid == process.processid:
                told.append((heard.attempt, heard.state))
                if heard.state == last:
                    break
    return told


async def test_who_reads_hears_no_less(client: EtcdClient) -> None:
    async with fed(client) as (node, _):
        other = neighbour(client)
        with node.subscriptions.open(Anything(frozenset({"dev"}), State.WAITING)) as events:
            process = await submit(other)
            await node.processes.load("dev", process.processid)
            await other.assigner.assign(CANDIDATE, WORKER, 5)
            await node.processes.load("dev", process.processid)
            await close(other, process)
            await node.processes.load("dev", process.processid)
            assert await told_of(events, process) == WHOLE


async def test_states_that_are_short_are_told(client: EtcdClient) -> None:
    async with fed(client) as (node, _):
        other = neighbour(client)
        with node.subscriptions.open(Anything(frozenset({"dev"}), State.WAITING)) as events:
            for _ in range(30):
                process = await submit(other)
                await other.assigner.assign(CANDIDATE, WORKER, 5)
                await close(other, process)
            told: dict[str, Told] = {}
            with trio.fail_after(30):
                for _ in range(90):
                    heard = await events.receive()
                    told.setdefault(heard.processid, []).append((heard.attempt, heard.state))
            assert list(told.values()) == [WHOLE] * 30


async def test_the_end_of_one_that_waited_for_others_is_told(client: EtcdClient) -> None:
    async with fed(client) as (node, _):
        other = neighbour(client)
        with node.subscriptions.open(Anything(frozenset({"dev"}), State.WAITING)) as events:
            process = await submit(other, waits=True)
            await other.processes.cancel("dev", process.processid)
            told = await told_of(events, process, State.CANCELLED)
            assert told == [(0, State.WAITING), (0, State.CANCELLED)]


async def test_what_two_daemons_do_is_told_in_order(client: EtcdClient) -> None:
    """Ours is known at once, and theirs only when the watch tells of it."""
    async with fed(client) as (node, _):
        other = neighbour(client)
        with node.subscriptions.open(Anything(frozenset({"dev"}), State.WAITING)) as events:
            for _ in range(10):
                process = await submit(other)
                await other.assigner.assign(CANDIDATE, WORKER, 5)
                await close(node, process)
                assert await told_of(events, process) == WHOLE


async def test_what_happened_while_nothing_was_heard_is_told(client: EtcdClient) -> None:
    """A watch that broke begins with a list: an end shows there by what is missing."""
    node, other = neighbour(client), neighbour(client)
    old = await submit(other)

    async def listed() -> None:
        items, revision = await client.range_all(keys.LIVE)
        events = [Event(item.key, item.value, item.mod_revision) for item in items]
        feeding.take_in(node, keys.LIVE, WatchBatch(True, events, revision))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.remote_changes.run)
        await listed()
        with node.subscriptions.open(Anything(frozenset({"dev"}), State.WAITING)) as events:
            await other.assigner.assign(CANDIDATE, WORKER, 5)
            new = await submit(other)
            await listed()
            with trio.fail_after(30):
                told = [await events.receive(), await events.receive()]
            assert [each.processid for each in told] == [old.processid, new.processid]
            await close(other, old)
            await listed()
            with trio.fail_after(30):
                ended = await events.receive()
            assert (ended.processid, ended.state) == (old.processid, State.SUCCESSFUL)
        nursery.cancel_scope.cancel()


async def test_what_the_store_has_forgotten_is_told_by_its_end(
    client: EtcdClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fed(client) as (node, _):
        other = neighbour(client)
        load_at = node.processes.load_at

        async def late(wanted: Sequence[tuple[str, str, int]]) -> Any:
            await client.compact((await client.status()).revision)
            return await load_at(wanted)

        with node.subscriptions.open(Anything(frozenset({"dev"}), State.WAITING)) as events:
            process = await submit(other)
            await other.assigner.assign(CANDIDATE, WORKER, 5)
            monkeypatch.setattr(node.processes, "load_at", late)
            await close(other, process)
            told = await told_of(events, process)
            # On a slow machine, the first may be told before the store forgets it.
            assert told == [each for each in WHOLE if each in told]
            assert told[-1] == WHOLE[-1]


async def test_more_than_can_be_told_ends_the_subscriptions(
    client: EtcdClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_changes, "_MOST", 3)
    node = neighbour(client)
    with node.subscriptions.open(Anything(frozenset({"dev"}), State.WAITING)) as events:
        key = [keys.running("dev", f"{number:064x}") for number in range(4)]
        feeding.take_in(node, keys.LIVE, WatchBatch(False, [Event(k, None, 7) for k in key[:3]], 7))
        assert node.subscriptions.any_open
        feeding.take_in(node, keys.LIVE, WatchBatch(False, [Event(key[3], None, 8)], 8))
        with pytest.raises(trio.EndOfChannel):
            await events.receive()
