"""The steps of process graphs: children are unblocked, failures and ends carried on.

A step is written by the transaction that makes it happen and removed by the one that deals with it,
so a crash between the two loses nothing and repeats nothing. `workflows.service` makes the graphs.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from math import inf

import msgspec
import trio

from colonyd.errors import Invalid, RpcError
from node.etcd.client import EtcdClient, KeyValue
from node.etcd.errors import EtcdError, EtcdTooLarge
from node.etcd.parts import MOST as MOST_VALUE
from node.etcd.txn import Compare, Delete, DeletePrefix, Get, ModRevision, Op, Put, Txn
from node.host.log import get_logger
from node.model.codec import pack, unpack
from node.model.graph import node_id
from node.model.types import Graph, Process, State
from node.processes.observer import Observer
from node.processes.service import Processes
from node.store import keys
from node.store.limits import INPUT
from node.store.work import graphs as store
from node.store.work import processes as process_store

log = get_logger("workflows")

# Steps looked at in one go, and children touched by one transaction: each takes four operations
# of the 128 there may be, each step one.
_PAGE = 12
_CHILDREN = 26
# Operations and bytes of one transaction of a release.
OPS = 100
BYTES = 600_000
# Bytes from which on nodes are dealt with one by one, and parents that are read at once.
_LARGE = 8 * 2**20
_PARENTS = 8
_WORKERS = 8
_REMEMBERED = 4096


@dataclass(frozen=True)
class _End:
    """The end of the node at a place; the first `told` of its children are dealt with already."""

    place: int
    state: State
    told: int
    item: KeyValue


@dataclass
class _Batch:
    """One transaction in the making."""

    compare: list[Compare] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    ends: list[tuple[int, State]] = field(default_factory=list)
    unblocked: Counter[int] = field(default_factory=Counter)
    nodes: dict[str, Process] = field(default_factory=dict)
    started: int = 0
    failing: int = 0


@dataclass
class Resolution(Observer):
    """Deals with the steps of all graphs; one task at a time works on a graph."""

    client: EtcdClient
    processes: Processes
    _locks: dict[tuple[str, str], tuple[trio.Lock, list[int]]] = field(default_factory=dict)
    # The revision of the newest reported step of each graph that is not settled.
    _dirty: dict[tuple[str, str], int] = field(default_factory=dict)
    _read: OrderedDict[tuple[str, str], int] = field(default_factory=OrderedDict)
    _wakeup: trio.Event = field(default_factory=trio.Event)

    def stepped(self, colony: str, graphid: str, revision: int) -> None:
        """Note that a step of a graph was written at `revision`, by any daemon."""
        place = (colony, graphid)
        if self._read.get(place, 0) < revision:
            self._dirty[place] = max(revision, self._dirty.get(place, 0))
            self._wakeup.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Settle every graph that has steps and no caller; reports started once those at hand are
        settled.
        """
        first = True
        while True:
            failed = False
            self._wakeup = trio.Event()
            for colony, graphid in list(self._dirty):
                try:
                    await self.settle(colony, graphid)
                except (EtcdError, RpcError) as error:
                    log.warning("workflow waits", graph=graphid, error=error)
                    failed = True
                except Exception as error:
                    # A step that can't be dealt with must not keep the others waiting.
                    log.error("workflow waits", graph=graphid, error=repr(error))
                    failed = True
            if first:
                first = False
                task_status.started()
            if failed:
                await trio.sleep(1)
            elif not self._dirty:
                await self._wakeup.wait()

    async def settle(self, colony: str, graphid: str, patience: float = inf) -> None:
        """Return when all steps of the graph so far are dealt with.

        After `patience` seconds the call returns, and the work goes on without it.
        """
        if (colony, graphid) not in self._dirty and (colony, graphid) not in self._locks:
            return
        with trio.move_on_after(patience):
            async with self.held(colony, graphid):
                pass

    @asynccontextmanager
    async def held(self, colony: str, graphid: str) -> AsyncIterator[None]:
        """Settle a graph, and keep other tasks of this daemon from changing it during the block."""
        place = (colony, graphid)
        lock, users = self._locks.setdefault(place, (trio.Lock(), []))
        users.append(1)
        try:
            async with lock:
                # If the caller goes away, `run` settles the rest.
                while place in self._dirty:
                    await self._settle(colony, graphid)
                yield
        finally:
            users.pop()
            if not users:
                del self._locks[place]

    async def _settle(self, colony: str, graphid: str) -> None:
        place = (colony, graphid)
        while True:
            told = self._dirty.get(place, 0)
            page = await self.client.range(keys.steps(colony, graphid), limit=_PAGE)
            if not page.items:
                self._read[place] = max(page.revision, self._read.get(place, 0))
                self._read.move_to_end(place)
                if len(self._read) > _REMEMBERED:
                    self._read.popitem(last=False)
                # A step reported meanwhile may be newer than the answer: ask again.
                if self._dirty.get(place, 0) <= max(told, page.revision):
                    self._dirty.pop(place, None)
                return
            await self._deal(colony, graphid, page.items)

    async def _deal(self, colony: str, graphid: str, items: list[KeyValue]) -> None:
        """Deal with the first of these steps, or the first few."""
        what = {keys.parse_step(item.key)[2]: item for item in items}
        found = await self.client.get(keys.graph(colony, graphid))
        if found is None:
            await self._remove(colony, graphid, what.get(keys.REMOVE))
            return
        graph, revision = unpack(found.value, Graph), found.mod_revision
        if keys.RELEASE in what:
            await self._release(graph, revision, what[keys.RELEASE])
        elif keys.SWEEP in what:
            await self._sweep(graph, what[keys.SWEEP])
        else:
            try:
                await self._step(graph, revision, what, _CHILDREN)
            except EtcdTooLarge:
                await self._step(graph, revision, what, 1)

    # -- children and states -------------------------------------------------------------

    async def _step(
        self, graph: Graph, revision: int, what: dict[str, KeyValue], most: int
    ) -> None:
        colony = graph.colonyname
        batch = _Batch([ModRevision(keys.graph(colony, graph.processgraphid), revision)])
        start = what.pop(keys.START, None)
        if start is not None:
            batch.started = unpack(start.value, int)
            batch.compare.append(ModRevision(start.key, start.mod_revision))
            batch.ops.append(Delete(start.key))
        ends = [
            _End(int(name), State(value[0]), value[1], item)
            for name, item in what.items()
            for value in [unpack(item.value, list[int])]
        ]
        await self._count(graph, batch, ends, most)
        now = self.processes.clock.now()
        after = store.with_ends(graph, batch.ends, batch.started, now)
        if batch.failing and not graph.sweeping:
            after.sweeping = batch.failing
            key = keys.step(colony, graph.processgraphid, keys.SWEEP)
            batch.ops.append(Put(key, pack([batch.failing])))
        batch.ops.extend(store.put_graph(after, graph))
        ready = await self._decrement(graph, batch)
        if ready is None:
            return
        await self._hand_on(Txn(batch.compare, batch.ops), ready)

    async def _hand_on(self, txn: Txn, ready: list[Process]) -> int:
        """Commit the transaction that makes these processes ready; return its revision, 0 for a
        lost race.
        """
        with self.processes.telling(*ready):
            result = await self.client.commit(txn)
        for process in ready:
            if result.succeeded:
                self.processes.committed_submit(process, result.revision)
            else:
                # It may have lost against itself: an earlier try that got no answer.
                self.processes.tell(process)
        return result.revision if result.succeeded else 0

    async def _count(self, graph: Graph, batch: _Batch, ends: list[_End], most: int) -> None:
        """Take as many ends into the batch as there is room for."""
        graphid = graph.processgraphid
        ids = [node_id(graphid, end.place) for end in ends]
        nodes = await self._ended(graph.colonyname, ids, batch)
        for end, processid in zip(ends, ids, strict=True):
            ended = nodes.get(processid)
            children = ended.children if ended is not None else []
            todo: list[int] = []
            if end.state == State.SUCCESSFUL:
                todo = children[end.told :]
                room = most - len(batch.unblocked)
                if len(set(todo) - set(batch.unblocked)) > room:
                    if batch.ends:
                        return
                    todo = todo[:room]
            elif children:
                batch.failing = min(batch.failing or int(end.state), int(end.state))
            batch.unblocked.update(todo)
            batch.compare.append(ModRevision(end.item.key, end.item.mod_revision))
            told = end.told + len(todo)
            if todo and told < len(children):
                batch.ops.append(Put(end.item.key, pack([int(end.state), told])))
                if end.told == 0:
                    batch.ends.append((end.place, end.state))
                return
            batch.ops.append(Delete(end.item.key))
            if end.told == 0:
                batch.ends.append((end.place, end.state))

    async def _ended(self, colony: str, ids: list[str], batch: _Batch) -> dict[str, Process]:
        """Return nodes that ended; the batch keeps them for their outputs unless they are large."""
        try:
            for node in await self.processes.load_many(colony, ids, most=_LARGE):
                batch.nodes[node.processid] = node
            return batch.nodes
        except RpcError:
            light = await self.processes.load_many(colony, ids, light=True)
            return {node.processid: node for node in light}

    async def _decrement(self, graph: Graph, batch: _Batch) -> list[Process] | None:
        """Count the batch's parents off; return the nodes that wait for no other parent.

        Returns None when such a node could not take its input and was failed instead: look again.
        """
        colony, graphid = graph.colonyname, graph.processgraphid
        places = list(batch.unblocked)
        if not places:
            return []
        ids = [node_id(graphid, place) for place in places]
        gets = [Get(keys.pending(colony, pid)) for pid in ids]
        gets += [Get(keys.process(colony, pid)) for pid in ids]
        responses = (await self.client.commit(Txn([], gets))).responses
        ready: list[Process] = []
        for place, counters, nodes in zip(
            places, responses[: len(ids)], responses[len(ids) :], strict=True
        ):
            if not counters or not nodes:
                continue  # it ended while it waited
            counter, revision = counters[0], nodes[0].mod_revision
            left = int(counter.value) - batch.unblocked[place]
            batch.compare.append(ModRevision(counter.key, counter.mod_revision))
            if left > 0:
                batch.ops.append(Put(counter.key, b"%d" % left))
                continue
            process = unpack(nodes[0].value, Process)
            if not process.waitforparents:
                continue
            try:
                inputs = await self._inputs(process, batch.nodes)
                unblocked = msgspec.structs.replace(process, waitforparents=False, input=inputs)
                unblocked.peer = unblocked.peer or self.processes.hooks.route(unblocked)
                hooks = self.processes.hooks
                forwarding = hooks.forwarding(unblocked).ops if unblocked.peer else ()
            except RpcError as error:
                await self._fail(process, error.message)
                return None
            more = store.unblock(unblocked, forwarding)
            if size_of(more) > MOST_VALUE:
                await self._fail(process, "its arguments and input are more than the store takes")
                return None
            if ready and size_of(batch.ops) + size_of(more) > _LARGE:
                raise EtcdTooLarge("the inputs of several nodes")  # one by one, then
            batch.compare.append(ModRevision(keys.process(colony, process.processid), revision))
            batch.ops.extend(more)
            ready.append(unblocked)
        return ready

    async def _inputs(self, process: Process, known: dict[str, Process]) -> list[object]:
        """Return the outputs of the parents, in the order of the dependencies."""
        ids = [node_id(process.processgraphid, parent) for parent in process.parents]
        inputs: list[object] = []
        size = 0
        for start in range(0, len(ids), _PARENTS):
            part = ids[start : start + _PARENTS]
            unknown = [pid for pid in part if pid not in known]
            loaded = {
                parent.processid: parent
                for parent in await self.processes.load_many(process.colonyname, unknown)
            }
            for pid in part:
                parent = loaded.get(pid) or known.get(pid)
                if parent is None:
                    continue
                size += len(pack(parent.output))
                if size > INPUT:
                    raise Invalid(
                        f"the outputs of its {len(ids)} parents have more than {INPUT} bytes, which"
                        " is the most for one input"
                    )
                inputs += parent.output
            await trio.lowlevel.checkpoint()
        return inputs

    async def _fail(self, process: Process, reason: str) -> None:
        def step(now_is: Process, revision: int) -> process_store.Transition | None:
            if now_is.closed:
                return None
            return process_store.close(
                now_is, revision, State.FAILED, self.processes.clock.now(), errors=[reason]
            )

        await self.processes.change_quietly(process.colonyname, process.processid, step)

    # -- whole graphs --------------------------------------------------------------------

    async def _sweep(self, graph: Graph, item: KeyValue) -> None:
        """Bring every unfinished node into the state that the step names."""
        (number,) = unpack(item.value, list[int])
        state = State(number)
        errors = ["another node of the workflow failed"] if state == State.FAILED else None
        colony, graphid, now = graph.colonyname, graph.processgraphid, self.processes.clock.now
        seen: dict[str, Process] = {}

        def step(process: Process, revision: int) -> process_store.Transition | None:
            seen[process.processid] = process
            if process.closed:
                return None
            extra: tuple[Op, ...] = ()
            compare: tuple[Compare, ...] = ()
            if process.peer and not process.waitforparents:
                addition = self.processes.hooks.cancelling(process)
                extra, compare = tuple(addition.ops), tuple(addition.compare)
            return process_store.close(
                process, revision, state, now(), errors=errors, extra=extra, compare=compare
            )

        places = iter(range(graph.count))

        async def work() -> None:
            for place in places:
                pid = node_id(graphid, place)
                known = await self.processes.recall(colony, pid)
                if known is None or known[0].closed:
                    continue
                try:
                    await self.processes.change_quietly(colony, pid, step)
                finally:
                    # Whether it happened, failed or got no answer: the store has what is to be
                    # sent.
                    if pid in seen:
                        self.processes.tell(seen.pop(pid))

        await _share(work)
        await self.client.commit(
            Txn([ModRevision(item.key, item.mod_revision)], [Delete(item.key)])
        )

    async def _release(self, graph: Graph, revision: int, item: KeyValue) -> None:
        """Create the nodes of a large graph from its parts, nodes that wait for others first."""
        colony, graphid = graph.colonyname, graph.processgraphid
        attempt, done = unpack(item.value, tuple[str, int])
        parts, _ = await self.client.range_all(
            f"{keys.graph_parts(colony, graphid)}{attempt}/", page=20
        )
        nodes = [node for part in parts for node in unpack(part.value, list[Process])]
        at = item.mod_revision
        while done < len(nodes):
            ops: list[Op] = []
            batch: list[Process] = []
            size = 0
            for node in nodes[done:]:
                if not node.waitforparents and not node.peer:
                    peer = self.processes.hooks.route(node)
                    node = msgspec.structs.replace(node, peer=peer)
                forwarding = self.processes.hooks.forwarding(node).ops if node.peer else ()
                more = store.create_node(node, forwarding)
                more_size = size_of(more)
                if batch and (len(ops) + len(more) > OPS or size + more_size > BYTES):
                    break
                ops.extend(more)
                batch.append(node)
                size += more_size
            done += len(batch)
            ops.append(Put(item.key, pack([attempt, done])))
            at = await self._hand_on(Txn([ModRevision(item.key, at)], ops), batch)
            if not at:
                return
        after = msgspec.structs.replace(graph, released=True)
        last: list[Op] = [Delete(item.key), DeletePrefix(keys.graph_parts(colony, graphid))]
        compare = [
            ModRevision(item.key, at),
            ModRevision(keys.graph(colony, graphid), revision),
        ]
        await self.client.commit(Txn(compare, [*last, *store.put_graph(after, graph)]))

    async def _remove(self, colony: str, graphid: str, item: KeyValue | None) -> None:
        """Remove the nodes, and then the steps, of a graph that is gone."""
        count = unpack(item.value, int) if item is not None else 0
        places = iter(range(count))

        async def work() -> None:
            for place in places:
                while (known := await self.processes.load(colony, node_id(graphid, place))) is not (
                    None
                ):
                    txn = process_store.remove(*known)
                    if (await self.client.commit(txn)).succeeded:
                        self.processes.forget(known[0].processid)
                        break

        await _share(work)
        ops: list[Op] = [
            DeletePrefix(keys.steps(colony, graphid)),
            DeletePrefix(keys.graph_parts(colony, graphid)),
            Delete(keys.submission(colony, graphid)),
        ]
        await self.client.commit(Txn([], ops))


async def _share(work: Callable[[], Awaitable[None]]) -> None:
    """Let some workers do the work together; when one fails, the others end and its error is
    raised.

    Raises EtcdError or RpcError as it is, in no group: callers tell them apart.
    """
    failures: list[EtcdError | RpcError] = []

    async def one() -> None:
        try:
            await work()
        except (EtcdError, RpcError) as error:
            failures.append(error)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for _ in range(_WORKERS):
            nursery.start_soon(one)
    if failures:
        raise failures[0]


def size_of(ops: list[Op]) -> int:
    """Return about how many bytes these operations put into a request."""
    return sum(len(op.key) + len(op.value) for op in ops if isinstance(op, Put))
