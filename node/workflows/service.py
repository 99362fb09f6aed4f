"""Workflows: process graphs are submitted, cancelled, removed and read.

Nodes that a running node adds are in `children`, steps in `workflows.advance`; the caller checks
rights.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import msgspec
import trio

from colonyd.errors import Conflict, Invalid, NotFound, RpcError, TooMany
from node.etcd.client import EtcdClient, TxnResult
from node.etcd.counts import Counts
from node.etcd.errors import EtcdError
from node.etcd.pages import Pages, below, each, newest_first, values
from node.etcd.txn import Absent, Compare, DeletePrefix, Get, ModRevision, Op, Put, Txn
from node.host.log import get_logger
from node.model import graph as graphs
from node.model.codec import pack, unpack
from node.model.types import SECOND, FunctionSpec, Graph, Process, State
from node.processes.service import Processes
from node.processes.spec import build_node
from node.rpc.replay import look
from node.store import keys
from node.store.update import update
from node.store.work import graphs as store
from node.tasks.offload import NODE, apart
from node.workflows.advance import BYTES, OPS, Resolution, size_of
from node.workflows.children import TRIES, Children, too_fast

log = get_logger("workflows")

# Bytes that the arguments of a workflow may have in all nodes that get them.
MAX_GIVEN = 16 * 1024 * 1024
# Seconds that a caller waits for the steps that follow from its call; later ones follow without it.
PATIENCE = 2.0
_PAGE = 500
_AT_ONCE = 64  # nodes that are made before other tasks get their turn
# Nanoseconds after which the parts of a failed attempt to submit are swept up.
_STALE = 3600 * SECOND


def check_given(given: Sequence[Any], roots: int, field: str) -> None:
    """Raise Invalid for arguments that are too large for the number of nodes that get them."""
    if given and roots * len(pack(given)) > MAX_GIVEN:
        raise Invalid(
            f"{field}: each of its {roots} nodes without dependencies gets the same arguments or"
            f" input; together they may have {MAX_GIVEN} bytes"
        )


def _there(result: TxnResult) -> Graph:
    """Return the graph that was there already; without one, raise Conflict: the guard did not
    hold.
    """
    if not result.responses[0]:
        raise Conflict("who wanted this workflow changed meanwhile")
    return unpack(result.responses[0][0].value, Graph)


@dataclass
class Workflows:
    """All process graphs of the colonies hosted here."""

    client: EtcdClient
    processes: Processes
    resolution: Resolution
    children: Children
    counts: Counts = field(init=False)

    def __post_init__(self) -> None:
        self.counts = Counts(self.client, keys.GRAPH_STATES)

    # -- submitting ----------------------------------------------------------------------

    async def submit(
        self,
        colony: str,
        specs: Sequence[FunctionSpec],
        *,
        graphid: str,
        initiatorid: str,
        initiatorname: str,
        root_args: list[Any] | None = None,
        root_input: Sequence[Any] = (),
        submission: bytes = b"",
        nonce: str = "",
        field: str = "spec",
        guard: Sequence[Compare] = (),
        timed: bool = False,
    ) -> Graph:
        """Store a new graph; return the stored one if the id is taken.

        `root_args` replace the args of the roots (and empty their kwargs), `root_input` becomes
        their input. A new graph is stored only while `guard` holds; `timed` means that a clock
        starts it. Raises Invalid that begins with `field` and names node and field, Conflict when
        the guard does not hold, and TooMany.
        """
        try:
            plan = await apart(NODE * len(specs), graphs.plan, specs)
        except graphs.GraphError as error:
            raise Invalid(f"{field}.{error}") from None
        check_given(root_args or root_input, len(plan.roots), field)
        graph = Graph(
            processgraphid=graphid,
            initiatorid=initiatorid,
            initiatorname=initiatorname,
            colonyname=colony,
            submissiontime=self.processes.clock.now(),
            count=len(specs),
            roots=plan.roots,
            nonce=nonce,
        )
        nodes: list[Process] = []
        for place, spec in enumerate(specs):
            root = not plan.parents[place]
            if root and root_args is not None:
                spec = msgspec.structs.replace(spec, args=root_args, kwargs={})
            node = build_node(
                self.processes.hooks, graph, place, spec, f"{field}.functionspecs[{place}]"
            )
            node.parents, node.children = plan.parents[place], plan.children[place]
            node.waitforparents = not root
            node.input = list(root_input) if root else []
            nodes.append(node)
            if not place % _AT_ONCE:
                await trio.lowlevel.checkpoint()
            if node.peer:
                self._require_fit(node, f"{field}.functionspecs[{place}]")
        if away := sum(bool(node.peer) for node in nodes):
            self.processes.require_forwards(away)
        try:
            ids = [node.processid for node in nodes]
            with self.processes.quotas.processes(colony, initiatorname, ids, timed=timed):
                return await self._store(graph, nodes, submission, guard)
        except TooMany:
            # A repeat of a request that was served is answered all the same.
            found = await self.client.get(keys.graph(colony, graphid))
            if found is None:
                raise
            return unpack(found.value, Graph)

    def _require_fit(self, node: Process, field: str) -> None:
        """Raise RpcError that begins with `field` for a node that is too large for its peer."""
        try:
            self.processes.hooks.forwarding(node)
        except RpcError as error:
            raise type(error)(error.message.replace("spec", field, 1)) from None

    def _forwarding(self, node: Process) -> Sequence[Op]:
        return self.processes.hooks.forwarding(node).ops if node.peer else ()

    async def _store(
        self, graph: Graph, nodes: list[Process], submission: bytes, guard: Sequence[Compare]
    ) -> Graph:
        colony, graphid = graph.colonyname, graph.processgraphid
        ops: list[Op] = store.put_graph(graph)
        if submission and len(submission) < BYTES:
            ops.append(Put(keys.submission(colony, graphid), submission))
        head = list(ops)
        routed: list[Process] = []
        for node in nodes:
            if not node.waitforparents and not node.peer:
                node.peer = self.processes.hooks.route(node)
                routed.append(node)
            ops.extend(store.create_node(node, self._forwarding(node)))
            if len(ops) > OPS:
                break
        if len(ops) > OPS or size_of(ops) > 2 * BYTES:
            for node in routed:
                node.peer = ""  # decided anew when it is released
            return await self._store_large(graph, nodes, head, guard)
        key = keys.graph(colony, graphid)
        with self.processes.telling(*nodes):
            result = await self.client.commit(Txn([Absent(key), *guard], ops, [Get(key)]))
        if not result.succeeded:
            there = _there(result)
            # The daemon that wrote it may have got no answer.
            for node in await self.nodes(there):
                self.processes.tell(node)
            return there
        for node in nodes:
            self.processes.committed_submit(node, result.revision)
        return graph

    async def _store_large(
        self, graph: Graph, nodes: list[Process], head: list[Op], guard: Sequence[Compare]
    ) -> Graph:
        """Write the nodes aside, then commit to the graph: from then on all of them will follow."""
        colony, graphid = graph.colonyname, graph.processgraphid
        key = keys.graph(colony, graphid)
        if (found := await self.client.get(key)) is not None:
            return unpack(found.value, Graph)
        await look()
        attempt = f"{self.processes.clock.now():020d}-{secrets.token_hex(4)}"
        # Nodes that wait for others are created first: none can end before its children are there.
        order = sorted(nodes, key=lambda node: not node.waitforparents)
        number, part, size = 0, list[Process](), 0
        for node in [*order, None]:
            more = len(pack(node)) if node is not None else 0
            if part and (node is None or size + more > BYTES):
                data = pack(part)
                await self.client.put(keys.graph_part(colony, graphid, attempt, number), data)
                number, part, size = number + 1, [], 0
            if node is not None:
                part.append(node)
                size += more
                await trio.lowlevel.checkpoint()
        graph.released = False
        step = keys.step(colony, graphid, keys.RELEASE)
        head = [op for op in head if not (isinstance(op, Put) and op.key == key)]
        ops = [*head, Put(key, pack(graph)), Put(step, pack([attempt, 0]))]
        result = await self.client.commit(Txn([Absent(key), *guard], ops, [Get(key)]))
        if not result.succeeded:
            await self.client.delete_prefix(f"{keys.graph_parts(colony, graphid)}{attempt}/")
            return _there(result)
        self.resolution.stepped(colony, graphid, result.revision)
        return await self.load(colony, graphid) or graph

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Deal with the steps of graphs, until cancelled; reports started once no old step is
        left.
        """
        async with trio.open_nursery() as nursery:
            await nursery.start(self.resolution.run)
            task_status.started()
            while True:
                try:
                    await self.sweep()
                except EtcdError as error:
                    log.warning("store", error=error)
                await trio.sleep(_STALE / SECOND / 4)

    async def sweep(self) -> None:
        """Delete the parts of large graphs whose submission failed."""
        items = (await self.client.range(keys.GRAPH_PARTS, limit=_PAGE, keys_only=True)).items
        for item in items:
            colony, graphid, began = keys.parse_graph_part(item.key)
            if began + _STALE > self.processes.clock.now():
                continue
            prefix = item.key.rpartition("/")[0] + "/"
            graph = await self.client.get(keys.graph(colony, graphid))
            step = keys.step(colony, graphid, keys.RELEASE)
            if graph is None or await self.client.get(step) is None:
                compare: list[Compare] = [Absent(step)]
                await self.client.commit(Txn(compare, [DeletePrefix(prefix)]))

    # -- ending --------------------------------------------------------------------------

    async def cancel(self, colony: str, graphid: str) -> None:
        """End every node that waits or runs. Raises Invalid when none does, or NotFound."""
        async with self.resolution.held(colony, graphid):

            def swept(graph: Graph | None) -> Graph:
                if graph is None:
                    raise NotFound(f"processgraphid: no workflow {graphid[:80]!r}")
                if sum(graph.ended.values()) >= graph.count:
                    raise Invalid(f"the workflow is already {graph.state.name.lower()}")
                return msgspec.structs.replace(graph, sweeping=int(State.CANCELLED))

            step = Put(keys.step(colony, graphid, keys.SWEEP), pack([int(State.CANCELLED)]))
            key, what = keys.graph(colony, graphid), f"processgraphid: workflow {graphid}"
            _, revision = await update(self.client, key, Graph, swept, what=what, ops=[step])
            self.resolution.stepped(colony, graphid, revision)
        await self.resolution.settle(colony, graphid, PATIENCE)

    async def remove(
        self, colony: str, graphid: str, *, running: bool = False, only: State | None = None
    ) -> None:
        """Delete a graph with all its nodes; an unfinished graph only if `running`.

        With `only`, a graph that is in another state by now is left alone. Raises Invalid, NotFound
        or Conflict.
        """
        graph = await self.load(colony, graphid)
        if graph is None:
            raise NotFound(f"processgraphid: no workflow {graphid[:80]!r}")
        if only not in (None, graph.state):
            return
        if sum(graph.ended.values()) < graph.count:
            if graph.state != State.WAITING and not running:
                raise Invalid("the workflow is running; cancel it first")
            if await self._ended(colony, graphid):
                only = None
        async with self.resolution.held(colony, graphid):
            for _ in range(TRIES):
                found = await self.client.get(keys.graph(colony, graphid))
                if found is None:
                    return
                graph = unpack(found.value, Graph)
                if only not in (None, graph.state):
                    return
                for node in await self.nodes(graph):
                    reason = self.processes.hooks.removable(node)
                    if reason:
                        raise Conflict(reason)
                if await self._commit(graph, found.mod_revision, store.delete_graph(graph)):
                    break
            else:
                raise too_fast(graphid)
        await self.resolution.settle(colony, graphid)

    async def _ended(self, colony: str, graphid: str) -> bool:
        """Cancel a graph that is to be removed; return False when it ended by itself, or is
        gone.
        """
        try:
            await self.cancel(colony, graphid)
        except (Invalid, NotFound):
            return False
        await self.resolution.settle(colony, graphid)
        return True

    async def _commit(self, graph: Graph, revision: int, ops: Sequence[Op]) -> bool:
        """Change a graph that was read at `revision`; return False after a lost race."""
        colony, graphid = graph.colonyname, graph.processgraphid
        txn = Txn([ModRevision(keys.graph(colony, graphid), revision)], ops)
        result = await self.client.commit(txn)
        if result.succeeded:
            self.resolution.stepped(colony, graphid, result.revision)
        return result.succeeded

    # -- reading -------------------------------------------------------------------------

    async def load(self, colony: str, graphid: str) -> Graph | None:
        """Return the graph with all its steps so far counted in, or None."""
        await self.resolution.settle(colony, graphid, PATIENCE)
        found = await self.client.get(keys.graph(colony, graphid))
        graph = unpack(found.value, Graph) if found is not None else None
        if graph is not None and not graph.released:
            # No reader sees a part of it.
            await self.resolution.settle(colony, graphid)
        return graph

    async def nodes(self, graph: Graph) -> list[Process]:
        """Return the nodes of a graph, by place, without arguments, input and output."""
        return await self.processes.load_many(graph.colonyname, store.ids(graph), light=True)

    def pages(self, graph: Graph) -> Pages[Process]:
        """Return the nodes of a graph, by place, in pages."""
        names = [keys.process(graph.colonyname, pid) for pid in store.ids(graph)]
        return each(values(self.client, names), lambda kv: unpack(kv.value, Process))

    async def leaf_outputs(self, colony: str, graphid: str) -> list[Any]:
        """Return the outputs of the nodes without children, in the order of their places."""
        graph = await self.load(colony, graphid)
        if graph is None:
            return []
        leaves = [node.processid for node in await self.nodes(graph) if not node.children]
        loaded = await self.processes.load_many(colony, leaves, most=MAX_GIVEN)
        return [value for node in loaded for value in node.output]

    async def listing(self, colony: str, state: int, limit: int) -> Pages[Graph]:
        """Return at most `limit` graphs in one state, newest first, in pages."""
        prefix, names = keys.graph_states(colony, state), list[str]()
        marks = newest_first(self.client, prefix, self.processes.clock.now(), -1, limit=limit)
        async with aclosing(marks) as pages:
            async for page in pages:
                names += [keys.graph(colony, kv.key.rpartition("/")[2]) for kv in page]
                if len(names) >= limit:
                    break
        async with aclosing(values(self.client, names[:limit])) as pages:
            async for page in pages:
                yield [unpack(kv.value, Graph) for kv in page]

    def ids(self, colony: str, state: State | None = None) -> Pages[str]:
        """Return the ids of all graphs of a colony, or of those in one state, in pages."""
        prefix = keys.graphs(colony) if state is None else keys.graph_states(colony, state)
        found = below(self.client, prefix, keys_only=True)
        return each(found, lambda kv: kv.key.rpartition("/")[2])

    async def count(self, colony: str, state: int) -> int:
        """Return how many graphs of a colony are in a state."""
        return await self.counts.of(keys.graph_states(colony, state))
