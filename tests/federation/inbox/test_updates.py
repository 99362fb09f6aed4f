"""Workflows over several colonies, and what a process tells its origin while it runs elsewhere."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from colonyd.errors import RpcError
from federation.forward import channels as words
from federation.forward import updates as progress
from federation.forward.updates import FollowState, PollLimiter
from federation.transport.errors import RemoteRefusal
from federation.wire.envelope import Kind
from federation.wire.messages import (
    Extra,
    Follow,
    Heard,
    Line,
    News,
    Outcomes,
    Poll,
    Said,
    Say,
    dump,
    load,
)
from node.daemon import main as daemon
from node.daemon.main import StartOptions
from node.etcd.client import open_client
from node.etcd.errors import EtcdError
from node.etcd.txn import Put
from node.host.clock import Clock
from node.model.codec import unpack
from node.model.ids import new_id
from node.model.types import (
    Attribute,
    Executor,
    ExecutorState,
    FunctionSpec,
    Graph,
    Log,
    Process,
    State,
)
from node.processes.extension import Addition, Hooks
from node.processes.queue import Candidate
from node.processes.spec import attribute_id
from node.runtime.node import Node
from node.store import keys
from node.store.work.channels import ChannelEntry, ChannelHead
from node.streams import logs as logs
from node.streams.channels import MAX_ENTRIES
from tests.federation.inbox.support import befriended, close, line, take, write
from tests.node.etcd.support import start_store
from tests.support.colonies import Colony, World, world
from tests.support.daemons import free_port, until
from tests.support.parts import follower_of
from tests.support.processes import enlist

SECONDS = 120


def spec(name: str, colony: str, *after: str, **more: Any) -> FunctionSpec:
    """A node of a workflow."""
    conditions = {"colonyname": colony, "executortype": "t", "dependencies": list(after)}
    fields = {"nodename": name, "funcname": name, "conditions": conditions} | more
    return msgspec.convert(fields, FunctionSpec)


async def start(colony: Colony, *specs: FunctionSpec) -> str:
    """Submit a workflow; returns its id. As soon as the daemon's doors are open."""
    await colony.until(lambda: colony.up)
    assert colony.node is not None
    graph = await colony.node.workflows.submit(
        colony.name, specs, graphid=new_id(), initiatorid=colony.key.id, initiatorname="me"
    )
    return graph.processgraphid


async def graph_of(colony: Colony, graphid: str, state: State) -> Graph:
    """Return a workflow once it is in a state."""
    while True:
        assert colony.node is not None
        changed = colony.changed
        with suppress(EtcdError):  # its daemon may die
            graph = await colony.node.workflows.load(colony.name, graphid)
            assert graph is not None
            if graph.state == state:
                return graph
        with trio.move_on_after(0.2):
            await changed.wait()


async def works(colony: Colony, output: str) -> Process:
    """Take one process and close it, however often the daemon dies over it."""
    mine: list[Process] = []

    async def work() -> None:
        assert colony.node is not None
        processes = colony.node.processes
        if not mine:
            running = [pid for pid, _ in processes.running.in_order(colony.name)]
            mine.append(await colony.process(running[0]) if running else await take(colony))
        if not (await colony.process(mine[0].processid)).closed:
            await close(colony, mine[0], output)

    while True:
        await colony.until(lambda: colony.up)
        async with trio.open_nursery() as nursery:
            done = False

            async def watch(scope: trio.CancelScope) -> None:
                await colony.until(lambda: not colony.up)
                scope.cancel()

            nursery.start_soon(watch, nursery.cancel_scope)
            with suppress(EtcdError):
                await work()
                done = True
            nursery.cancel_scope.cancel()
        if done:
            return mine[0]


def final(error: RemoteRefusal) -> bool:
    return error.final


async def test_outputs_become_inputs_over_three_colonies(tmp_path: Path) -> None:
    with trio.fail_after(SECONDS):
        async with world(tmp_path, ("ant", "bee", "cat")) as there:
            ant, bee, cat = await befriended(there)
            graphid = await start(
                ant,
                spec("a", "bee"),
                spec("b", "cat"),
                spec("c", "bee", "a", "b"),
                spec("d", "ant", "c"),
            )
            await close(bee, await take(bee), 1, {"x": [None, "é"]})
            await close(cat, await take(cat), 2.5)
            joined = await take(bee)
            assert joined.spec.funcname == "c"
            assert joined.input == [1, {"x": [None, "é"]}, 2.5]
            await close(bee, joined, "joined")
            last = await take(ant)
            assert last.input == ["joined"]
            await close(ant, last, "done")
            await graph_of(ant, graphid, State.SUCCESSFUL)
            assert ant.node is not None
            assert await ant.node.workflows.leaf_outputs("ant", graphid) == ["done"]


async def test_a_failure_there_ends_the_workflow_everywhere(tmp_path: Path) -> None:
    with trio.fail_after(SECONDS):
        async with world(tmp_path, ("ant", "bee", "cat")) as there:
            ant, bee, cat = await befriended(there)
            specs = (
                spec("a", "bee"),
                spec("b", "cat"),
                spec("c", "bee", "a"),
                spec("d", "ant", "a", "b"),
            )
            graphid = await start(ant, *specs)
            running = await take(cat)
            await close(bee, await take(bee), state=State.FAILED)
            await graph_of(ant, graphid, State.FAILED)
            # What runs elsewhere is told to stop.
            assert (await cat.closed(running.processid)).state == State.CANCELLED
            assert not bee.waiting()
            # So is everything when the workflow is cancelled.
            graphid = await start(ant, *specs)
            pair = await take(cat), await take(bee)
            assert ant.node is not None
            await ant.node.workflows.cancel("ant", graphid)
            await graph_of(ant, graphid, State.CANCELLED)
            assert (await cat.closed(pair[0].processid)).state == State.CANCELLED
            assert (await bee.closed(pair[1].processid)).state == State.CANCELLED
            # Removed, nothing is left of it here, and no outcome is owed any more.
            await settled(ant)
            await ant.node.workflows.remove("ant", graphid)
            assert await ant.node.workflows.load("ant", graphid) is None
            for colony in (bee, cat):
                await once(partial(_pays, colony))


async def once(check: Callable[[], bool]) -> None:
    """Return once something holds that tells nobody."""

    async def look() -> bool:
        return check()

    await until(50, look, step=0.02)


def _executor(colony: Colony, processid: str) -> str:
    known = colony.fed.outcome_poller.update_consumer.of(processid)
    return known[0].executor if known else ""


def _pays(colony: Colony) -> bool:
    return not any(colony.fed.inbox.outcome_queue.owed.values())


async def settled(colony: Colony) -> None:
    """Return once no forward of a colony is under way."""
    outbox = colony.fed.outbox
    await once(lambda: not outbox.entries and not outbox.stale)


async def test_a_peer_that_is_away_in_the_middle(tmp_path: Path) -> None:
    with trio.fail_after(SECONDS):
        async with world(tmp_path, ("ant", "bee")) as there:
            ant, bee = await befriended(there)
            graphid = await start(
                ant, spec("a", "bee"), spec("b", "ant", "a"), spec("c", "bee", "b")
            )
            first = await take(bee)
            bee.hidden = True
            await close(bee, first, "one")
            await bee.restart()
            bee.hidden = False
            ant.fed.outbox.retry_now(bee.key.id)
            second = await take(ant)
            assert second.input == ["one"]
            bee.hidden = True
            await close(ant, second, "two")
            # Unblocked while its peer is away: it waits in the outbox, through a restart too.
            await ant.restart()
            bee.hidden = False
            ant.fed.outbox.retry_now(bee.key.id)
            third = await take(bee)
            assert third.input == ["two"]
            await close(bee, third, "three")
            await graph_of(ant, graphid, State.SUCCESSFUL)


async def test_a_node_that_can_not_be_delivered_in_time_fails_the_workflow(tmp_path: Path) -> None:
    with trio.fail_after(SECONDS):
        async with world(tmp_path, ("ant", "bee")) as there:
            ant, bee = await befriended(there)
            bee.hidden = True
            graphid = await start(ant, spec("a", "bee", maxwaittime=1), spec("b", "ant", "a"))
            graph = await graph_of(ant, graphid, State.FAILED)
            assert ant.node is not None
            nodes = await ant.node.workflows.nodes(graph)
            assert "deadline" in nodes[0].errors[0]
            assert nodes[1].errors == ["another node of the workflow failed"]


async def test_a_name_that_is_nobodys_is_refused(tmp_path: Path) -> None:
    with trio.fail_after(SECONDS):
        async with world(tmp_path, ("ant", "bee")) as there:
            ant, _ = there.values()
            with pytest.raises(RpcError, match=r"functionspecs\[1\].conditions.colonyname: 'wasp'"):
                await start(ant, spec("a", "ant"), spec("b", "wasp", "a"))


@pytest.mark.parametrize(("name", "before"), [("ant", False), ("bee", True)])
async def test_a_colony_may_die_at_any_write_of_a_workflow(
    tmp_path: Path, name: str, before: bool
) -> None:
    """Each node runs once, with the right input, whichever write is the last before a crash."""
    async with world(tmp_path, ("ant", "bee")) as there:
        ant, bee = await befriended(there)
        at, died = 0, True
        while died:
            at += 1
            graphid = await start(ant, spec("a", "bee"), spec("b", "bee", "a"))
            victim = there[name]
            victim.mortal(at, before=before)
            with trio.fail_after(50):
                for expected, output in (([], f"one {at}"), ([f"one {at}"], f"two {at}")):
                    process = await works(bee, output)
                    assert process.input == expected
                await graph_of(ant, graphid, State.SUCCESSFUL)
            died = victim.client.at != at
            assert not bee.waiting()
        assert at > 5


class Recorder(Hooks):
    """Federation as far as a node of a workflow needs it."""

    home = "dev"

    def peer_of(self, colonyname: str) -> str | None:
        """Everybody is a peer."""
        return "f" * 64 if colonyname == "bee" else None

    def forwarding(self, process: Process) -> Addition:
        """Leaves a trace."""
        return Addition([Put("/forwarded", process.processid.encode())])


async def test_what_got_ready_before_a_crash_goes_out_after_it(tmp_path: Path) -> None:
    """A daemon that starts deals with what is left of workflows once it knows of its peers."""
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            etcd = await start_store(nursery, tmp_path / "etcd")
            async with open_client(etcd.target) as client:
                node = Node.build(client, "dev", Clock(time.time_ns))
                node.processes.attach(Recorder())
                worker = Executor("e" * 64, "t", "w", "dev", state=ExecutorState.APPROVED)
                enlist(node, worker)
                await node.workflows.submit(
                    "dev",
                    [spec("a", "dev"), spec("b", "bee", "a")],
                    graphid=new_id(),
                    initiatorid="1" * 64,
                    initiatorname="me",
                )
                candidate = Candidate("dev", "t", "w", "", None, None)
                first = await node.assigner.assign(candidate, worker, 5)
                pid = first.processid
                await node.processes.close("dev", pid, "e" * 64, State.SUCCESSFUL, output=[1])
                # It was killed before it could deal with that.
                assert await client.get("/forwarded") is None

                @asynccontextmanager
                async def slowly(node: Node, *_: object) -> AsyncIterator[None]:
                    await trio.sleep(0.3)
                    node.processes.attach(Recorder())
                    yield

                environ = {
                    "COLONYD_ETCD__ENDPOINTS": etcd.target,
                    "COLONYD_RPC__HOST": "127.0.0.1",
                    "COLONYD_RPC__PORT": str(free_port()),
                }
                settings = StartOptions(tmp_path / "home", {"node.name": "dev"}, environ)
                await nursery.start(daemon.run, settings, slowly)

                async def forwarded() -> bool:
                    return await client.get("/forwarded") is not None

                await until(50, forwarded)
                nursery.cancel_scope.cancel()


# -- progress ------------------------------------------------------------------------------------


async def attach(colony: Colony, process: Process, key: str, value: str) -> None:
    """Add an attribute as the executor of a process."""
    assert colony.node is not None
    pid = process.processid
    attribute = Attribute(pid, key, value, 1, attribute_id(pid, key, 1), colony.name)
    await colony.node.processes.add_attribute(colony.worker.executorid, attribute)


async def lines(colony: Colony, processid: str) -> list[tuple[str, str]]:
    """The log of a process: who wrote what."""
    items, _ = await colony.client.range_all(keys.process_logs(colony.name, processid))
    found = [unpack(item.value, Log) for item in items]
    return [(line.executorname, line.message) for line in found]


async def logged(colony: Colony, processid: str, *texts: str) -> list[tuple[str, str]]:
    """Return the log once it ends so."""
    while True:
        found = await lines(colony, processid)
        if [text for _, text in found][-len(texts) :] == list(texts):
            return found
        await trio.sleep(0.02)


async def test_what_runs_elsewhere_tells_how_it_goes(tmp_path: Path) -> None:
    with trio.fail_after(SECONDS):
        async with world(tmp_path, ("ant", "bee")) as there:
            ant, bee = await befriended(there)
            assert bee.node is not None
            processid = await ant.submit("bee", env={"A": "1"})
            far = await take(bee)
            await write(bee, far, "one", "two")
            assert await logged(ant, processid, "one", "two") == [
                ("w@bee", "one"),
                ("w@bee", "two"),
            ]
            await once(lambda: _executor(ant, processid) == "w@bee")
            known = ant.fed.outcome_poller.update_consumer.of(processid)
            assert known is not None
            assert (known[0].state, known[0].executor) == (State.RUNNING, "w@bee")
            assert known[0].start == far.starttime
            await attach(bee, far, "k", "v")
            await bee.node.processes.set_output("bee", far.processid, far.assignedexecutorid, [7])
            await ant.when(
                processid,
                lambda process: process.output == [7] and len(process.attributes) == 2,
            )
            process = await ant.process(processid)
            assert [(a.key, a.value, a.attributetype, a.targetid) for a in process.attributes] == [
                ("A", "1", 3, processid),
                ("k", "v", 1, processid),
            ]
            assert process.state == State.RUNNING
            # What is said last is there when the end is, and once.
            await write(bee, far, "three")
            await close(bee, far, "end")
            process = await ant.closed(processid)
            assert (process.output, process.state) == (["end"], State.SUCCESSFUL)
            assert [text for _, text in await lines(ant, processid)] == ["one", "two", "three"]
            assert ant.fed.outcome_poller.update_consumer.of(processid) is None
            items = await ant.client.range(ant.fed.keys.followed_all)
            assert items.items == []


async def relayed(there: World) -> tuple[Colony, Colony, Colony]:
    """Let the first colony reach the third by way of the second; return all three."""
    ant, bee, cat = there.values()
    await bee.trust(ant, forward=True, max_hops=2)
    await ant.trust(bee)
    await cat.trust(bee, max_hops=2)
    await bee.trust(cat)
    return ant, bee, cat


async def test_a_relay_passes_on_what_it_hears(tmp_path: Path) -> None:
    with trio.fail_after(SECONDS):
        async with world(tmp_path, ("ant", "bee", "cat")) as there:
            ant, _, cat = await relayed(there)
            processid = await ant.submit("bee/cat")
            far = await take(cat)
            await write(cat, far, "hello")
            await attach(cat, far, "k", "v")
            assert await logged(ant, processid, "hello") == [("w@cat@bee", "hello")]
            await ant.when(processid, lambda process: bool(process.attributes))
            await once(lambda: _executor(ant, processid) == "w@cat@bee")
            await close(cat, far, "end")
            assert (await ant.closed(processid)).output == ["end"]


async def test_a_relay_that_is_asked_while_it_hears_tells_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process has changed, and what its peer says of it is not known yet: it is told later."""
    with trio.fail_after(SECONDS):
        async with world(tmp_path, ("ant", "bee", "cat")) as there:
            ant, bee, cat = await relayed(there)
            assert bee.node is not None
            recall = bee.node.processes.recall

            async def late(colony: str, pid: str) -> tuple[Process, int] | None:
                found = await recall(colony, pid)
                if found is not None and found[0].attributes:
                    monkeypatch.undo()
                    await ant.when(processid, lambda process: bool(process.attributes))
                return found

            monkeypatch.setattr(bee.node.processes, "recall", late)
            processid = await ant.submit("bee/cat")
            far = await take(cat)
            await attach(cat, far, "k", "v")
            await once(lambda: _executor(ant, processid) == "w@cat@bee")
            await close(cat, far, "end")
            assert (await ant.closed(processid)).output == ["end"]


async def test_a_long_log_comes_whole_and_in_order_after_the_end(tmp_path: Path) -> None:
    with trio.fail_after(SECONDS):
        async with world(tmp_path, ("ant", "bee")) as there:
            ant, bee = await befriended(there)
            processid = await ant.submit("bee")
            far = await take(bee)
            await once(lambda: _executor(ant, processid) == "w@bee")
            texts = [f"line {number}" for number in range(250)]
            await write(bee, far, *texts, quietly=True)
            await close(bee, far, "end")
            assert (await ant.closed(processid)).output == ["end"]
            found = await logged(ant, processid, texts[-1])
            assert [text for _, text in found] == texts
            await once(lambda: ant.fed.outcome_poller.update_consumer.of(processid) is None)


@pytest.mark.parametrize("before", [True, False])
async def test_each_line_is_there_once_whenever_the_origin_dies(
    tmp_path: Path, before: bool
) -> None:
    async with world(tmp_path, ("ant", "bee")) as there:
        ant, bee = await befriended(there)
        at, died = 0, True
        while died:
            at += 1
            await ant.until(lambda: ant.up)
            processid = await ant.submit("bee")
            far = await take(bee)
            await ant.when(processid, lambda process: process.state == State.RUNNING)
            ant.mortal(at, before=before)
            with trio.fail_after(50):
                await write(bee, far, "one", "two")
                await attach(bee, far, "k", "v")
                await write(bee, far, "three")
                await close(bee, far, "end")
                process = await ant.closed(processid)
                found = await logged(ant, processid, "three")
            assert [text for _, text in found] == ["one", "two", "three"]
            assert [each.key for each in process.attributes] == ["k"]
            died = ant.client.at != at
        # On a busy machine what is said goes together, in fewer writes.
        assert at > 2


async def test_two_daemons_of_one_colony_store_each_line_once(tmp_path: Path) -> None:
    with trio.fail_after(SECONDS):
        async with world(tmp_path, ("ant", "bee")) as there:
            ant, bee = await befriended(there)
            processid = await ant.submit("bee", channels=["c"])
            far = await take(bee)
            await write(bee, far, "mine")
            await logged(ant, processid, "mine")
            news = News(
                processid, 1, lines=[Line(2**62, "w", "later")],
                heard={"c": 1}, said=[Said("c", 0, b"x")], version=9, added=[Extra("k", "v", 1)],
                attributes=1,
            )  # fmt: skip
            answer = Outcomes([], [dump(news)])
            first, second = ant.fed.outcome_poller.update_consumer, follower_of(ant.fed)
            await second.load()
            connection = ant.fed.connections[bee.key.id]
            # The second remembers what was so before the first took the news.
            for each in (first, second, second, first):
                await each.take(connection, answer)
            assert [text for _, text in await lines(ant, processid)] == ["mine", "later"]
            assert await talk(ant, processid, 1) == [(bee.key.id, "x")]
            assert [each.key for each in (await ant.process(processid)).attributes] == ["k"]


async def test_what_a_peer_makes_up_is_not_stored(tmp_path: Path) -> None:
    with trio.fail_after(SECONDS):
        async with world(tmp_path, ("ant", "bee", "cat")) as there:
            ant, bee, cat = await befriended(there)
            assert ant.node is not None
            processid = await ant.submit("bee")
            far = await take(bee)
            await write(bee, far, "mine")
            await logged(ant, processid, "mine")
            update_consumer = ant.fed.outcome_poller.update_consumer
            line = Line(2**62, "w", "forged")
            forged = News(processid, 1, lines=[line], added=[Extra("x", "y", 1)], attributes=1)
            stranger = ant.fed.connections[cat.key.id]
            answer = Outcomes([], [dump(forged), b"nonsense"])
            await update_consumer.take(stranger, answer)
            assert (update_consumer.counters["stray"], update_consumer.counters["malformed"]) == (
                1,
                1,
            )
            connection = ant.fed.connections[bee.key.id]
            other = msgspec.structs.replace(forged, attempt=2)
            gone = msgspec.structs.replace(forged, pid="1" * 64)
            await update_consumer.take(connection, Outcomes([], [dump(other), dump(gone)]))
            assert update_consumer.counters["stray"] == 3
            assert [text for _, text in await lines(ant, processid)] == ["mine"]
            # An output that is none is passed over.
            broken = News(processid, 1, version=2**40, output=b"x", out=b"{}")
            await update_consumer.take(connection, Outcomes([], [dump(broken)]))
            assert update_consumer.counters["unfit"] == 1
            assert (await ant.process(processid)).output == []
            # Nobody hears of a process that is not his own.
            poll = Poll(0, [], [Follow(processid, 1)], True)
            assert await bee.fed.inbox.outcome_queue.update_publisher.news(
                cat.key.id, poll, []
            ) == ([], False)


async def test_a_poll_of_an_older_release_gets_what_it_got(tmp_path: Path) -> None:
    with trio.fail_after(SECONDS):
        async with world(tmp_path, ("ant", "bee")) as there:
            ant, bee = await befriended(there)
            await ant.submit("bee")
            far = await take(bee)
            await write(bee, far, "mine")
            update_publisher = bee.fed.inbox.outcome_queue.update_publisher
            assert await update_publisher.news(ant.key.id, Poll(0, []), []) == (None, False)
            assert dump(Outcomes([])) == dump(_Old([]))
            assert load(dump(Poll(3, [], [])), _OldPoll) == _OldPoll(3, [])


class _Old(msgspec.Struct, frozen=True):
    outcomes: list[bytes]


class _OldPoll(msgspec.Struct, frozen=True):
    wait: int
    ack: list[str]


# -- channels ------------------------------------------------------------------------------------


async def tell(colony: Colony, process: Process, identity: str, *texts: str) -> None:
    """Say something in the channel `c` of a process."""
    assert colony.node is not None
    for number, text in enumerate(texts, 1):
        said = ChannelEntry(identity, number, 0, 0, "data", text.encode())
        await colony.node.channels._append((colony.name, process.processid, "c"), said, "")


async def talk(colony: Colony, processid: str, count: int) -> list[tuple[str, str]]:
    """The channel `c` of a process once it has so many entries: who said what."""
    assert colony.node is not None
    process = await colony.process(processid)
    while True:
        found = await colony.node.channels.read(process, "c", 0)
        if len(found) >= count:
            return [(each.senderid, each.payload.decode()) for each in found]
        await trio.sleep(0.02)


def by(found: list[tuple[str, str]], sender: str) -> list[str]:
    return [text for who, text in found if who == sender]


async def test_what_is_said_crosses_a_hop_in_order(tmp_path: Path) -> None:
    with trio.fail_after(SECONDS):
        async with world(tmp_path, ("ant", "bee")) as there:
            ant, bee = await befriended(there)
            processid = await ant.submit("bee", channels=["c", "d"])
            near = await ant.process(processid)
            # Said before anybody has it, it waits.
            await tell(ant, near, ant.key.id, "before")
            far = await take(bee)
            worker = bee.worker.executorid
            assert await talk(bee, far.processid, 1) == [(ant.key.id, "before")]
            async with trio.open_nursery() as nursery:
                mine = [f"a{number}" for number in range(130)]
                yours = [f"b{number}" for number in range(130)]
                nursery.start_soon(partial(tell, ant, near, ant.key.id, *mine))
                nursery.start_soon(partial(tell, bee, far, worker, *yours))
            here, over = (
                await talk(ant, processid, 261),
                await talk(bee, far.processid, 261),
            )
            assert by(here, ant.key.id) == by(over, ant.key.id) == ["before", *mine]
            assert by(here, bee.key.id) == by(over, worker) == yours
            assert (len(here), len(over)) == (261, 261)
            # The last words before the end come, too.
            await tell(bee, far, worker, "bye")
            await close(bee, far, "end")
            await ant.closed(processid)
            assert (await talk(ant, processid, 262))[-1] == (bee.key.id, "bye")


@pytest.mark.parametrize(("name", "before"), [("ant", False), ("bee", True), ("bee", False)])
async def test_each_message_is_there_once_whoever_dies(
    tmp_path: Path, name: str, before: bool
) -> None:
    async with world(tmp_path, ("ant", "bee")) as there:
        ant, bee = await befriended(there)
        worker = bee.worker.executorid
        at, died = 0, True
        while died:
            at += 1
            processid = await ant.submit("bee", channels=["c"])
            far = await take(bee)
            await ant.when(processid, lambda process: process.state == State.RUNNING)
            near = await ant.process(processid)
            victim = there[name]
            victim.mortal(at, before=before)
            with trio.fail_after(50):
                if victim is bee:
                    await tell(ant, near, ant.key.id, "one", "two")
                    found = await talk(bee, far.processid, 2)
                else:
                    await tell(bee, far, worker, "one", "two")
                    found = await talk(ant, processid, 2)
                await victim.until(partial(getattr, victim, "up"))
                died = victim.client.at != at
                victim.client.at = 0
                await close(bee, far, "end")
                await ant.closed(processid)
            assert [text for _, text in found] == ["one", "two"]
            assert len(await talk(ant, processid, 2)) == 2


async def test_words_pass_through_a_relay(tmp_path: Path) -> None:
    with trio.fail_after(SECONDS):
        async with world(tmp_path, ("ant", "bee", "cat")) as there:
            ant, bee, cat = await relayed(there)
            processid = await ant.submit("bee/cat", channels=["c"])
            far = await take(cat)
            await tell(ant, await ant.process(processid), ant.key.id, "hi")
            assert await talk(cat, far.processid, 1) == [(bee.key.id, "hi")]
            await tell(cat, far, cat.worker.executorid, "ho")
            assert (await talk(ant, processid, 2))[1] == (bee.key.id, "ho")


async def test_what_is_said_out_of_turn_is_refused(tmp_path: Path) -> None:
    with trio.fail_after(SECONDS):
        async with world(tmp_path, ("ant", "bee")) as there:
            ant, bee = await befriended(there)
            processid = await ant.submit("bee", channels=["c"])
            far = await take(bee)
            await ant.when(processid, lambda process: process.state == State.RUNNING)
            connection = ant.fed.connections[bee.key.id]

            async def say(**changes: Any) -> Heard:
                fields: dict[str, Any] = {
                    "pid": processid, "attempt": 1, "name": "c", "start": 0, "after": 1,
                    "said": [Said("c", 0, b"x")],
                }  # fmt: skip
                body = connection.seal(Kind.SAY, Say(**(fields | changes)))
                opened, _ = await connection.post("/v1/say", body, Kind.HEARD)
                return load(opened.payload, Heard)

            refused: dict[str, dict[str, Any]] = {
                "unknown_process": {"pid": "1" * 64},
                "no_channel": {"name": "z"},
                "bad_message": {"said": []},
            }
            for code, changes in refused.items():
                with pytest.raises(RemoteRefusal, match=code, check=final):
                    await say(**changes)
                assert bee.fed.server.counters[code] == 1
            with pytest.raises(RemoteRefusal, match="unknown_process", check=final):
                await say(attempt=2)
            with pytest.raises(RemoteRefusal, match="bad_message", check=final):
                await say(said=[Said("c", 1, b"x")])
            assert (await say(start=5, after=6)).after == 0
            assert (await say()).after == 1
            assert (await say()).after == 1
            assert await talk(bee, far.processid, 1) == [(ant.key.id, "x")]
            await close(bee, far, "end")
            with pytest.raises(RemoteRefusal, match="closed", check=final):
                await say(start=1, after=2, said=[Said("c", 1, b"y")])
            full = ChannelHead(MAX_ENTRIES, 0)
            assert not words.fits(full, [ChannelEntry("s", 1, 0, 0, "", b"")])


# -- as values -----------------------------------------------------------------------------------


def test_lines_keep_their_order_and_are_bounded() -> None:
    news = News("1" * 64, 1, lines=[line(5), line(7), line(9)])
    after, kept = progress.admit(FollowState("p", 1), news, "bee", ahead=-10, now=16)
    # Their clock is 10 behind ours; none is later than now, and each is later than the last.
    assert [at for at, _, _ in kept] == [15, 16, 17]
    assert (after.line, after.shown, after.lines) == (9, 17, 3)
    again, kept = progress.admit(after, news, "bee", ahead=-10, now=16)
    assert (again, kept) == (after, [])
    full = msgspec.structs.replace(after, lines=progress.MAX_LINES)
    news = News("1" * 64, 1, lines=[line(10), line(11)])
    after, kept = progress.admit(full, news, "bee", ahead=0, now=100)
    assert [text for _, _, text in kept] == ["further lines are at bee only"]
    assert after.line == progress.NEVER
    assert progress.admit(after, news, "bee", ahead=0, now=100) == (after, [])


def test_another_attempt_begins_anew_and_counts_on() -> None:
    known = FollowState("p", 1, 5, 6, 7, b"o", {"c": 1}, 1, "e", 2, shown=9, lines=3, size=30)
    assert progress.begin(known, "p", 1) is known
    assert progress.begin(known, "q", 1) == FollowState("q", 1, shown=9, lines=3, size=30)
    assert progress.begin(None, "p", 2) == FollowState("p", 2)


def test_what_is_told_at_once_is_bounded() -> None:
    def log(text: str, at: int = 1) -> Log:
        return Log("p", "c", "w", text, at)

    assert progress.lines_of([log("a")] * 101)[1] is True
    assert len(progress.lines_of([log("a")] * 101)[0]) == 100
    (cut,), more = progress.lines_of([log("b" * 100_000)])
    assert len(cut.message) < 65_000
    assert not more
    assert len(progress.lines_of([log("c" * 60_000)] * 5)[0]) == 2
    assert progress.named("w" * 300, "b/c") == "w" * 128 + "@b_c"


def test_a_peer_with_much_news_is_asked_less_often() -> None:
    pace = PollLimiter()
    waits = [pace.take(0.0) for _ in range(40)]
    assert waits[29] == 0.0
    assert waits[39] == pytest.approx(1.0)
    assert pace.take(10.0) == 0.0
