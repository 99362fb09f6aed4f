"""Workflows while the store fails, and while others change what is being looked at.

Each failure and each race is made to happen, at one commit or one answer.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing

from colonyd.errors import RpcError
from node.etcd.client import EtcdClient, Range, TxnResult
from node.etcd.errors import EtcdUnavailable
from node.etcd.pages import whole
from node.etcd.txn import Delete, ModRevision, Put, Txn
from node.etcd.watch import Event, WatchBatch
from node.handlers.work.processes import remove_by_state as remove_processes
from node.handlers.work.workflows import RemoveGraphs
from node.handlers.work.workflows import remove_by_state as remove_graphs
from node.host.clock import Clock
from node.host.config import HistoryConfig, Keep
from node.model.codec import pack, unpack
from node.model.graph import node_id
from node.model.ids import new_id
from node.model.types import (
    Colony,
    Conditions,
    Executor,
    ExecutorState,
    FunctionSpec,
    Graph,
    Process,
    State,
)
from node.processes.extension import Hooks
from node.processes.queue import Candidate
from node.processes.spec import build_process
from node.rpc.requests import RemoveAll
from node.runtime.feeds import take_in
from node.runtime.node import Node
from node.store import keys
from node.store.work import processes as store
from node.timers.timerqueue import TimerIndex
from tests.node.etcd.support import logged
from tests.support.processes import enlist
from tests.support.processes import retention as retention_of

BEE = "b" * 64
PEER = "c" * 64
WORKER = Executor(BEE, "t", "w", "dev", state=ExecutorState.APPROVED)

Kind = Callable[[Txn], bool]
Act = Callable[[], Awaitable[object]]


def writes(prefix: str, op: type[Put] | type[Delete] = Put) -> Kind:
    """Commits that put, or delete, a key with a prefix."""
    return lambda txn: any(isinstance(it, op) and it.key.startswith(prefix) for it in txn.success)


def never(_: Txn) -> bool:
    """No commit."""
    return False


class Trouble:
    """A client with its own way with commits of a `kind` or, once, with an answer to a range."""

    def __init__(self, client: EtcdClient) -> None:
        self._client = client
        self.kind: Kind = never
        self.first: Act | None = None
        self.meanwhile: Act | None = None
        self._deal: Callable[[Txn], Awaitable[TxnResult]] = client.commit

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def fail(self, kind: Kind) -> None:
        """They do not happen, until `end`."""
        self.kind, self._deal = kind, self._fail

    def disturb(self, kind: Kind) -> None:
        """Somebody else writes what they compare, until `end`."""
        self.kind, self._deal = kind, self._disturb

    def lose(self, kind: Kind) -> None:
        """The next one happens, and there is no answer."""
        self.kind, self._deal = kind, self._lose

    def delay(self, kind: Kind) -> None:
        """The next one gets no answer, and happens when it is tried again."""
        late: list[Txn] = []

        async def deal(txn: Txn) -> TxnResult:
            if not late:
                late.append(txn)
                raise EtcdUnavailable("no answer")
            self.end()
            await self._client.commit(late[0])
            return await self._client.commit(txn)

        self.kind, self._deal = kind, deal

    def before(self, kind: Kind, first: Act) -> None:
        """Something else happens before the next one."""
        self.kind, self._deal, self.first = kind, self._after_another, first

    def end(self) -> None:
        """All is well again."""
        self.kind = never

    async def commit(self, txn: Txn) -> TxnResult:
        return await (self._deal(txn) if self.kind(txn) else self._client.commit(txn))

    async def range(self, prefix: str, **more: Any) -> Range:
        page = await self._client.range(prefix, **more)
        if self.meanwhile is not None and prefix.startswith(keys.STEPS):
            meanwhile, self.meanwhile = self.meanwhile, None
            await meanwhile()
        return page

    async def _fail(self, txn: Txn) -> TxnResult:
        raise EtcdUnavailable("the store is away")

    async def _lose(self, txn: Txn) -> TxnResult:
        self.end()
        await self._client.commit(txn)
        raise EtcdUnavailable("the answer is lost")

    async def _disturb(self, txn: Txn) -> TxnResult:
        for compare in txn.compare:
            found = await self._client.get(compare.key)
            if isinstance(compare, ModRevision) and found is not None:
                await self._client.put(found.key, found.value)
        return await self._client.commit(txn)

    async def _after_another(self, txn: Txn) -> TxnResult:
        assert self.first is not None
        first, self.first = self.first, None
        self.end()
        await first()
        return await self._client.commit(txn)


class Sending(Hooks):
    """Sends what calls "away" to a peer; `told` are the names of what may have to be sent."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.kept: set[str] = set()

    def route(self, process: Process) -> str:
        return PEER if process.spec.funcname == "away" else ""

    def submitted(self, process: Process, revision: int = 0) -> None:
        assert process.peer
        assert not process.waitforparents
        self.told.append(process.spec.nodename)

    def removable(self, process: Process) -> str:
        return "it is still needed" if process.processid in self.kept else ""


class Bench:
    """Two nodes on a store, each with its own memory; that of `one` may be in trouble."""

    def __init__(self, client: EtcdClient) -> None:
        self.client = client
        self.trouble = Trouble(client)
        self.days = 0
        self.one = Node.build(cast(EtcdClient, self.trouble), "dev", Clock(self.now))
        self.other = Node.build(client, "dev", Clock(self.now))
        self.hooks = Sending()
        self.one.processes.attach(self.hooks)

    def now(self) -> int:
        return time.time_ns() + self.days * 86_400 * 10**9

    async def submit(self, *names: str, graphid: str = "", **after: str) -> Graph:
        """A workflow of nodes, of which some come `after` another; those named away* go away."""
        specs = [
            FunctionSpec(
                nodename=name,
                funcname="away" if name.startswith("away") else "f",
                conditions=Conditions(
                    "dev", executortype="t", dependencies=[after[name]] if name in after else []
                ),
            )
            for name in names
        ]
        return await self.one.workflows.submit(
            "dev", specs, graphid=graphid or new_id(), initiatorid=BEE, initiatorname="me"
        )

    async def process(self, funcname: str = "f") -> str:
        """A process that waits; its id."""
        process = build_process(
            FunctionSpec(funcname=funcname, conditions=Conditions("dev", executortype="t")),
            processid=new_id(), initiatorid=BEE, initiatorname="me", colonyname="dev",
            now=self.now(), peer="",
        )  # fmt: skip
        return (await self.one.processes.submit(process, b"")).processid

    async def start(self, node: Node, pid: str) -> None:
        """The executor takes a process."""

        def step(process: Process, revision: int) -> store.Transition:
            return store.assign(process, revision, WORKER, self.now())

        await node.processes.change("dev", pid, step)

    async def close(self, node: Node, pid: str, state: State = State.SUCCESSFUL) -> Process:
        """The executor ends a process."""
        return await node.processes.close("dev", pid, BEE, state, output=["x"], errors=["y"])

    async def settle(self, graph: Graph) -> None:
        """All that has happened to a workflow is dealt with."""
        with trio.fail_after(30):
            await self.one.workflows.resolution.settle("dev", graph.processgraphid)

    async def waits_and_goes_on(self, graph: Graph, nursery: trio.Nursery) -> None:
        """What deals with workflows outlives a store in trouble, and deals with this one after."""
        with logged("workflow waits", "workflows") as waits:
            await nursery.start(self.one.workflows.run)
        assert waits.is_set()
        self.trouble.end()
        await self.settle(graph)

    async def states(self, graph: Graph) -> list[State]:
        """The states of the nodes, by place."""
        return [node.state for node in await self.one.workflows.nodes(graph)]

    async def left(self, *pids: str) -> list[State | None]:
        """The states of processes, None of those that are gone."""
        found = [await self.client.get(keys.process("dev", pid)) for pid in pids]
        return [unpack(kv.value, Process).state if kv is not None else None for kv in found]

    async def graphs_left(self, *graphs: Graph) -> list[State | None]:
        """The states of workflows, None of those that are gone."""
        found = [await self.other.workflows.load("dev", each.processgraphid) for each in graphs]
        return [graph.state if graph is not None else None for graph in found]


@pytest.fixture
async def bench(client: EtcdClient) -> Bench:
    bench = Bench(client)
    await bench.one.members.add_colony(Colony("a" * 64, "dev"))
    await bench.one.members.add_executor(WORKER)
    return bench


# -- the store fails -------------------------------------------------------------------------


async def test_a_cancel_that_the_store_interrupts_says_so_and_is_finished_later(
    bench: Bench, nursery: trio.Nursery
) -> None:
    graph = await bench.submit("a", "b", "c", "d", d="a")
    bench.trouble.fail(writes(keys.closed_prefix("dev", State.CANCELLED)))
    with pytest.raises(EtcdUnavailable):
        await bench.one.workflows.cancel("dev", graph.processgraphid)
    await bench.waits_and_goes_on(graph, nursery)
    assert await bench.states(graph) == [State.CANCELLED] * 4


async def test_a_removal_that_the_store_interrupts_says_so_and_is_finished_later(
    bench: Bench, nursery: trio.Nursery
) -> None:
    graph = await bench.submit("a", "b", "c")
    await bench.one.workflows.cancel("dev", graph.processgraphid)
    bench.trouble.fail(writes(keys.processes("dev"), Delete))
    with pytest.raises(EtcdUnavailable):
        await bench.one.workflows.remove("dev", graph.processgraphid)
    await bench.waits_and_goes_on(graph, nursery)
    assert await bench.client.count(keys.processes("dev")) == 0
    assert await bench.client.count(keys.STEPS) == 0


async def test_what_follows_from_an_end_may_lose_every_race_for_now(
    bench: Bench, nursery: trio.Nursery, tmp_path: Path
) -> None:
    """The end itself is reported, history waits, and what follows comes later."""
    graph = await bench.submit("a", "b", "c", c="a")
    graphid = graph.processgraphid
    await bench.start(bench.one, node_id(graphid, 0))
    process = await bench.close(bench.one, node_id(graphid, 0), State.FAILED)
    closings = writes(keys.closed_prefix("dev", State.FAILED))
    bench.trouble.disturb(closings)
    with logged("workflow waits", "node") as waits:
        await bench.one.settle(process)
    assert waits.is_set()
    bench.days = 3
    config = HistoryConfig(keep=Keep(86_400), states=["failed"])
    with logged("history waits", "history") as history_waits, trio.fail_after(30):
        nursery.start_soon(bench.one.leader.run)
        nursery.start_soon(retention_of(bench.one, tmp_path, config).run)
        await history_waits.wait()
    bench.trouble.end()
    await bench.settle(graph)
    assert await bench.states(graph) == [State.FAILED] * 3


# -- what goes to peers ----------------------------------------------------------------------


async def test_a_node_that_goes_away_is_looked_for_when_its_submission_has_no_answer(
    bench: Bench,
) -> None:
    graphid = new_id()
    bench.trouble.lose(writes(keys.graph("dev", graphid)))
    with pytest.raises(EtcdUnavailable):
        await bench.submit("a", "away", "away2", graphid=graphid, away2="a")
    assert bench.hooks.told == ["away"]
    again = await bench.submit("a", "away", "away2", graphid=graphid, away2="a")
    assert again.processgraphid == graphid
    assert bench.hooks.told == ["away"] * 2


async def test_a_node_that_goes_away_is_looked_for_when_its_release_has_no_answer(
    bench: Bench,
) -> None:
    names = [f"away{number}" for number in range(110)]
    bench.trouble.lose(writes(keys.processes("dev")))
    with pytest.raises(EtcdUnavailable):
        await bench.submit(*names)
    assert 50 < len(bench.hooks.told) < 110
    (found,) = await whole(bench.one.workflows.ids("dev"))
    graph = await bench.one.workflows.load("dev", found)
    assert graph is not None
    assert graph.released
    assert sorted(bench.hooks.told) == sorted(names)


@pytest.mark.parametrize("late", [False, True])
async def test_a_node_that_goes_away_when_it_is_ready_is_looked_for(
    bench: Bench, late: bool
) -> None:
    graph = await bench.submit("a", "away", away="a")
    pid = node_id(graph.processgraphid, 0)
    await bench.start(bench.one, pid)
    await bench.close(bench.one, pid)
    kind = writes(keys.process("dev", node_id(graph.processgraphid, 1)))
    if late:
        bench.trouble.delay(kind)
    else:
        bench.trouble.lose(kind)
    with pytest.raises(EtcdUnavailable):
        await bench.settle(graph)
    assert bench.hooks.told == ["away"]
    await bench.settle(graph)
    node = (await bench.one.workflows.nodes(graph))[1]
    assert (node.peer, node.waitforparents) == (PEER, False)
    assert bench.hooks.told == ["away"] * (2 if late else 1)


async def test_a_node_that_is_away_is_looked_for_when_its_cancel_has_no_answer(
    bench: Bench,
) -> None:
    graph = await bench.submit("a", "away", "away2", away2="a")
    assert bench.hooks.told == ["away"]
    bench.trouble.lose(writes(keys.process("dev", node_id(graph.processgraphid, 1))))
    with pytest.raises(EtcdUnavailable):
        await bench.one.workflows.cancel("dev", graph.processgraphid)
    assert bench.hooks.told == ["away"] * 2
    await bench.settle(graph)
    assert await bench.states(graph) == [State.CANCELLED] * 3
    assert set(bench.hooks.told) == {"away"}


# -- steps -----------------------------------------------------------------------------------


async def test_a_step_that_comes_while_the_steps_are_read_is_dealt_with(bench: Bench) -> None:
    graph = await bench.submit("a", "b", b="a")
    pid, child = [node_id(graph.processgraphid, place) for place in range(2)]
    await bench.start(bench.one, pid)
    await bench.settle(graph)

    def tell(revision: int) -> None:
        bench.one.workflows.resolution.stepped("dev", graph.processgraphid, revision)

    async def meanwhile() -> None:
        await bench.close(bench.other, pid)
        (step,) = (await bench.client.range(keys.STEPS)).items
        tell(step.mod_revision)

    bench.trouble.meanwhile = meanwhile
    tell(await bench.client.put(keys.ROOT + "test", b""))
    await bench.settle(graph)
    assert bench.trouble.meanwhile is None
    found = await bench.one.processes.load("dev", child)
    assert found is not None
    assert not found[0].waitforparents
    assert await bench.client.count(keys.STEPS) == 0


# -- removing all ----------------------------------------------------------------------------


async def test_removing_what_waits_passes_over_what_moved_on(bench: Bench) -> None:
    first, taken, gone, ended, last = sorted([await bench.process() for _ in range(5)])

    async def others() -> None:
        await bench.start(bench.other, taken)
        await bench.other.processes.remove("dev", gone)
        await bench.start(bench.other, ended)
        await bench.close(bench.other, ended)

    bench.trouble.before(writes(keys.process("dev", first), Delete), others)
    await remove_processes(bench.one, RemoveAll("dev", State.WAITING))
    assert await bench.left(first, taken, gone, ended, last) == [
        None, State.RUNNING, None, State.SUCCESSFUL, None,
    ]  # fmt: skip


async def test_removing_what_waits_leaves_what_ends_at_that_moment(bench: Bench) -> None:
    pid = await bench.process()

    async def others() -> None:
        await bench.start(bench.other, pid)
        await bench.close(bench.other, pid)

    bench.trouble.before(writes(keys.process("dev", pid), Delete), others)
    await remove_processes(bench.one, RemoveAll("dev", State.WAITING))
    assert await bench.left(pid) == [State.SUCCESSFUL]


async def test_removing_what_waits_takes_what_waits_at_a_peer(bench: Bench) -> None:
    pids = [await bench.process(), await bench.process("away")]
    await remove_processes(bench.one, RemoveAll("dev", State.WAITING))
    assert await bench.left(*pids) == [None, None]


async def test_removing_all_takes_what_starts_and_what_ends_meanwhile(bench: Bench) -> None:
    starts, ends, gone = sorted([await bench.process() for _ in range(3)])
    await bench.start(bench.one, ends)
    await bench.start(bench.one, gone)

    async def others() -> None:
        await bench.start(bench.other, starts)
        await bench.close(bench.other, ends)
        await bench.other.processes.cancel("dev", gone)
        await bench.other.processes.remove("dev", gone)

    bench.trouble.before(writes(keys.process("dev", starts), Delete), others)
    await remove_processes(bench.one, RemoveAll("dev", -1))
    assert await bench.client.count(keys.processes("dev")) == 0
    assert await bench.client.count(keys.ROOT + "live/") == 0


async def test_removing_all_takes_what_ends_while_it_is_cancelled(bench: Bench) -> None:
    pid = await bench.process()
    await bench.start(bench.one, pid)

    async def others() -> None:
        await bench.close(bench.other, pid)

    bench.trouble.before(writes(keys.process("dev", pid)), others)
    await remove_processes(bench.one, RemoveAll("dev", -1))
    assert await bench.client.count(keys.processes("dev")) == 0


async def test_a_process_that_must_stay_is_told_of_after_the_others_went(bench: Bench) -> None:
    stays, *others = sorted([await bench.process() for _ in range(3)])
    bench.hooks.kept.add(stays)
    with pytest.raises(RpcError, match="still needed") as refused:
        await remove_processes(bench.one, RemoveAll("dev", State.WAITING))
    assert refused.value.status == 409
    assert await bench.left(stays, *others) == [State.WAITING, None, None]


async def test_a_process_that_never_holds_still_is_given_up(bench: Bench) -> None:
    moves, other = sorted([await bench.process() for _ in range(2)])
    bench.trouble.disturb(writes(keys.process("dev", moves), Delete))
    with pytest.raises(RpcError, match="changes too fast") as refused:
        await remove_processes(bench.one, RemoveAll("dev", State.WAITING))
    assert refused.value.status == 409
    assert await bench.left(moves, other) == [State.WAITING, None]


async def test_removing_workflows_that_wait_passes_over_what_moved_on(bench: Bench) -> None:
    # They are taken newest first.
    last, ended, gone, taken, first = [await bench.submit("a") for _ in range(5)]

    async def others() -> None:
        await bench.start(bench.other, node_id(taken.processgraphid, 0))
        await bench.other.workflows.remove("dev", gone.processgraphid)
        await bench.start(bench.other, node_id(ended.processgraphid, 0))
        await bench.close(bench.other, node_id(ended.processgraphid, 0))
        for graph in (taken, ended):
            await bench.other.workflows.load("dev", graph.processgraphid)

    bench.trouble.before(writes(keys.graph("dev", first.processgraphid), Delete), others)
    await remove_graphs(bench.one, RemoveGraphs("dev", State.WAITING))
    assert await bench.graphs_left(first, taken, gone, ended, last) == [
        None, State.RUNNING, None, State.SUCCESSFUL, None,
    ]  # fmt: skip


async def test_removing_workflows_that_wait_leaves_what_ends_at_that_moment(bench: Bench) -> None:
    graph = await bench.submit("a")
    pid = node_id(graph.processgraphid, 0)

    async def others() -> None:
        await bench.start(bench.other, pid)
        await bench.close(bench.other, pid)
        await bench.other.workflows.load("dev", graph.processgraphid)

    bench.trouble.before(writes(keys.graph("dev", graph.processgraphid)), others)
    await remove_graphs(bench.one, RemoveGraphs("dev", State.WAITING))
    assert await bench.graphs_left(graph) == [State.SUCCESSFUL]


@pytest.mark.parametrize("gone", [False, True])
async def test_a_workflow_that_ends_while_it_is_cancelled_is_removed(
    bench: Bench, gone: bool
) -> None:
    graph = await bench.submit("a")
    pid = node_id(graph.processgraphid, 0)
    await bench.start(bench.one, pid)
    await bench.settle(graph)

    async def others() -> None:
        await bench.close(bench.other, pid)
        if gone:
            await bench.other.workflows.remove("dev", graph.processgraphid)
        else:
            await bench.other.workflows.load("dev", graph.processgraphid)

    bench.trouble.before(writes(keys.graph("dev", graph.processgraphid)), others)
    await bench.one.workflows.remove("dev", graph.processgraphid, running=True)
    assert bench.trouble.first is None
    assert await bench.client.count(keys.graphs("dev")) == 0
    assert await bench.client.count(keys.processes("dev")) == 0


async def test_workflows_that_must_stay_are_told_of_after_the_others_went(bench: Bench) -> None:
    first, unfinished, kept = [await bench.submit("a", "b") for _ in range(3)]
    for graph in (first, unfinished, kept):
        for place in (0, 1):
            await bench.start(bench.one, node_id(graph.processgraphid, place))
        await bench.close(bench.one, node_id(graph.processgraphid, 0), State.FAILED)
    for graph in (first, kept):
        await bench.close(bench.one, node_id(graph.processgraphid, 1))
    for graph in (first, unfinished, kept):
        await bench.settle(graph)
    bench.hooks.kept.add(node_id(kept.processgraphid, 1))
    with pytest.raises(RpcError, match="still needed") as refused:
        await remove_graphs(bench.one, RemoveGraphs("dev", State.FAILED))
    assert refused.value.status == 409
    bench.hooks.kept.clear()
    with pytest.raises(RpcError, match="running; cancel it first") as refused:
        await remove_graphs(bench.one, RemoveGraphs("dev", State.FAILED))
    assert refused.value.status == 400
    assert await bench.graphs_left(first, unfinished, kept) == [None, State.FAILED, None]
    await remove_graphs(bench.one, RemoveGraphs("dev", -1))
    assert await bench.client.count(keys.graphs("dev")) == 0


# -- what memory learns ----------------------------------------------------------------------


def test_an_older_answer_does_not_undo_what_the_watch_told() -> None:
    index = TimerIndex(int, lambda value: value, lambda value: ("dev", "ann"), str)
    index.apply("k", pack(7), 5)
    index.learn("k", 3, 4)
    assert index.get("k") == (7, 5)
    assert index.timer_queue.next() == 7
    index.learn("k", 9, 6)
    assert index.get("k") == (9, 6)
    assert index.timer_queue.next() == 9


async def test_a_colony_that_was_resumed_while_the_watch_was_away_hands_out_again(
    bench: Bench, nursery: trio.Nursery
) -> None:
    node, prefix = bench.one, keys.paused("")
    assigner = node.assigner
    enlist(node, WORKER)
    paused = [Event(keys.paused(name), pack(True), 1) for name in ("dev", "lab")]
    take_in(node, prefix, WatchBatch(True, paused, 1))
    pid = await bench.process()
    assigned: list[str] = []
    done = trio.Event()

    async def poll() -> None:
        candidate = Candidate("dev", "t", "w")
        assigned.append((await assigner.assign(candidate, WORKER, 600)).processid)
        done.set()

    nursery.start_soon(poll)
    await trio.testing.wait_all_tasks_blocked()
    assert assigner.polling("dev")
    take_in(node, prefix, WatchBatch(True, paused[1:], 2))
    with trio.fail_after(30):
        await done.wait()
    assert assigned == [pid]
    assert assigner.paused == {"lab"}
