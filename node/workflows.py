"""Workflows: submitting process graphs, adding to them, cancelling, removing and reading them.

What follows when a node starts or ends is `resolution`'s; who may ask is decided by the caller.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import trio

from node import graphs
from node.codec import pack, unpack
from node.errors import RpcError, bad, conflict, denied, missing
from node.etcd.client import EtcdClient, TxnResult
from node.etcd.errors import EtcdError
from node.etcd.transactions import (
    Absent,
    Compare,
    DeletePrefix,
    Get,
    ModRevision,
    Op,
    Put,
    Txn,
)
from node.log import get_logger
from node.model import SECOND, FunctionSpec, Graph, Process, State
from node.processes import Processes
from node.reads import read_many
from node.resolution import BYTES, OPS, Resolution, size_of
from node.store import graphs as store
from node.store import keys
from node.submission import build_process

log = get_logger("workflows")

# Seconds that a caller waits for what follows from its call; the rest follows without it.
PATIENCE = 2.0
# Children that an inserted node may take over: more do not fit one transaction.
_MOST_MOVED = 40
_PAGE = 500
# Nanoseconds after which an attempt to submit that came to nothing is swept up.
_STALE = 3600 * SECOND


def _there(result: TxnResult) -> Graph:
    """The graph that was there already; without one it was the guard that did not hold."""
    if not result.responses[0]:
        raise conflict("who wanted this workflow changed meanwhile")
    return unpack(result.responses[0][0].value, Graph)


@dataclass
class Workflows:
    """`now` gives Unix nanoseconds."""

    client: EtcdClient
    processes: Processes
    now: Callable[[], int]
    resolution: Resolution = field(init=False)

    def __post_init__(self) -> None:
        self.resolution = Resolution(self.client, self.processes)
        self.processes.stepped = self.resolution.stepped

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
    ) -> Graph:
        """Store a new graph; returns the one already there if the id is taken.

        `root_args` replace the args of the roots (and empty their kwargs), `root_input` becomes
        their input. A new graph is stored only while `guard` holds. Raises RpcError 400 that
        begins with `field` and names node and field, and 409 when the guard does not hold.
        """
        try:
            plan = graphs.plan(specs)
        except graphs.GraphError as error:
            raise bad(f"{field}.{error}") from None
        graph = Graph(
            processgraphid=graphid,
            initiatorid=initiatorid,
            initiatorname=initiatorname,
            colonyname=colony,
            submissiontime=self.now(),
            count=len(specs),
            roots=plan.roots,
            nonce=nonce,
        )
        nodes: list[Process] = []
        for place, spec in enumerate(specs):
            root = not plan.parents[place]
            if root and root_args is not None:
                spec = msgspec.structs.replace(spec, args=root_args, kwargs={})
            node = self._node(graph, place, spec, f"{field}.functionspecs[{place}]")
            node.parents, node.children = plan.parents[place], plan.children[place]
            node.waitforparents = not root
            node.input = list(root_input) if root else []
            nodes.append(node)
        return await self._store(graph, nodes, submission, guard)

    def _node(self, graph: Graph, place: int, spec: FunctionSpec, field: str) -> Process:
        name = spec.conditions.colonyname
        peer = ""
        if name and name != graph.colonyname:
            hooks = self.processes.hooks
            if graph.colonyname == hooks.home:
                peer = hooks.peer_of(name) or ""
            if not peer and hooks.unknown(name):
                raise bad(
                    f"{field}.conditions.colonyname: {name[:80]!r} is neither here nor a peer that"
                    " this workflow's colony trusts"
                )
        if not peer:
            conditions = msgspec.structs.replace(spec.conditions, colonyname=graph.colonyname)
            spec = msgspec.structs.replace(spec, conditions=conditions)
        try:
            node = build_process(
                spec,
                processid=graphs.node_id(graph.processgraphid, place),
                initiatorid=graph.initiatorid,
                initiatorname=graph.initiatorname,
                colonyname=graph.colonyname,
                now=graph.submissiontime,
                peer=peer,
            )
        except RpcError as error:
            raise bad(error.message.replace("spec", field, 1)) from None
        node.processgraphid = graph.processgraphid
        node.graphindex = place
        for attribute in node.attributes:
            attribute.targetprocessgraphid = graph.processgraphid
        return node

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
        result = await self.client.commit(Txn([Absent(key), *guard], ops, [Get(key)]))
        if not result.succeeded:
            return _there(result)
        for node in nodes:
            self.processes.committed_submit(node, result.revision)
        return graph

    async def _store_large(
        self, graph: Graph, nodes: list[Process], head: list[Op], guard: Sequence[Compare]
    ) -> Graph:
        """Write the nodes aside, then commit to the graph: from then on they will all come."""
        colony, graphid = graph.colonyname, graph.processgraphid
        key = keys.graph(colony, graphid)
        if (found := await self.client.get(key)) is not None:
            return unpack(found.value, Graph)
        attempt = f"{self.now():020d}-{secrets.token_hex(4)}"
        # Who waits for others is created first: nothing can end before its children are there.
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
        """Deal with what happens to graphs, for ever; started once nothing is left over."""
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
        """Delete what attempts to submit a large graph left behind that came to nothing."""
        items = (await self.client.range(keys.GRAPH_PARTS, limit=_PAGE, keys_only=True)).items
        for item in items:
            colony, graphid, began = keys.parse_graph_part(item.key)
            if began + _STALE > self.now():
                continue
            prefix = item.key.rpartition("/")[0] + "/"
            graph = await self.client.get(keys.graph(colony, graphid))
            step = keys.step(colony, graphid, keys.RELEASE)
            if graph is None or await self.client.get(step) is None:
                compare: list[Compare] = [Absent(step)]
                await self.client.commit(Txn(compare, [DeletePrefix(prefix)]))

    async def add_child(
        self,
        graph: Graph,
        parentid: str,
        childid: str,
        spec: FunctionSpec,
        identity: str,
        *,
        insert: bool,
    ) -> Process:
        """Add a node below a running one, as its assigned executor.

        With `insert` it takes over all children of the parent; else a `childid` will wait for it
        too. Raises RpcError 400, 403, 404 or 409.
        """
        colony, graphid = graph.colonyname, graph.processgraphid
        async with self.resolution.held(colony, graphid):
            found = await self.client.get(keys.graph(colony, graphid))
            parent = await self.processes.load(colony, parentid)
            if found is None or parent is None or parent[0].processgraphid != graphid:
                raise missing(f"parentprocessid: {parentid[:80]!r} is no node of this workflow")
            graph = unpack(found.value, Graph)
            if parent[0].assignedexecutorid != identity:
                raise denied("parentprocessid: it is not assigned to this executor")
            if parent[0].state != State.RUNNING or graph.sweeping:
                raise bad("parentprocessid: it is not running")
            if graph.count >= graphs.MAX_NODES:
                raise bad(f"processgraphid: a workflow has at most {graphs.MAX_NODES} nodes")
            node = self._node(graph, graph.count, spec, "spec")
            node.parents, node.waitforparents = [parent[0].graphindex], True
            compare: list[Compare] = [
                ModRevision(found.key, found.mod_revision),
                ModRevision(keys.process(colony, parentid), parent[1]),
            ]
            ops: list[Op] = []
            moved = parent[0].children if insert else []
            if len(moved) > _MOST_MOVED:
                raise bad(f"insert: the parent has more than {_MOST_MOVED} children")
            changed = msgspec.structs.replace(
                parent[0], children=[*([] if insert else parent[0].children), graph.count]
            )
            if insert:
                node.children = list(moved)
                below = [graphs.node_id(graphid, place) for place in moved]
            else:
                below = [childid] if childid else []
            touched = [(changed, parent[1])]
            for each in below:
                touched.append(
                    await self._below(graph, each, node, parent[0], compare, ops, insert=insert)
                )
            ops.extend(Put(keys.process(colony, p.processid), pack(p)) for p, _ in touched)
            ops.extend(store.create_node(node, self._forwarding(node)))
            ops.extend(
                store.put_graph(msgspec.structs.replace(graph, count=graph.count + 1), graph)
            )
            result = await self.client.commit(Txn(compare, ops))
            if not result.succeeded:
                raise conflict("the workflow changed meanwhile; try again")
            for process, _ in touched:
                self.processes.remember(process, result.revision)
            self.processes.committed_submit(node, result.revision)
            return node

    async def _below(
        self,
        graph: Graph,
        childid: str,
        node: Process,
        parent: Process,
        compare: list[Compare],
        ops: list[Op],
        *,
        insert: bool,
    ) -> tuple[Process, int]:
        """Hang a child below the new node. With `insert` that takes the parent's place."""
        colony, graphid = graph.colonyname, graph.processgraphid
        found = await self.processes.load(colony, childid) if "/" not in childid else None
        if found is None or found[0].processgraphid != graphid:
            raise missing(f"childprocessid: {childid[:80]!r} is no node of this workflow")
        child, revision = found
        if not child.waitforparents or child.closed:
            raise bad("childprocessid: it waits for nobody any more")
        compare.append(ModRevision(keys.process(colony, childid), revision))
        if insert:
            parents = [graph.count if up == parent.graphindex else up for up in child.parents]
        else:
            node.children.append(child.graphindex)
            parents = [*child.parents, graph.count]
            key = keys.pending(colony, childid)
            counter = await self.client.get(key)
            if counter is None:
                raise bad("childprocessid: it waits for nobody any more")
            compare.append(ModRevision(key, counter.mod_revision))
            ops.append(Put(key, b"%d" % (int(counter.value) + 1)))
        return msgspec.structs.replace(child, parents=parents), revision

    # -- ending --------------------------------------------------------------------------

    async def cancel(self, colony: str, graphid: str) -> None:
        """End every node that waits or runs. Raises RpcError 400 when none does, or 404."""
        async with self.resolution.held(colony, graphid):
            found = await self.client.get(keys.graph(colony, graphid))
            if found is None:
                raise missing(f"processgraphid: no workflow {graphid[:80]!r}")
            graph = unpack(found.value, Graph)
            if sum(graph.ended.values()) >= graph.count:
                raise bad(f"the workflow is already {graph.state.name.lower()}")
            after = msgspec.structs.replace(graph, sweeping=int(State.CANCELLED))
            step = keys.step(colony, graphid, keys.SWEEP)
            ops = [*store.put_graph(after, graph), Put(step, pack([int(State.CANCELLED)]))]
            result = await self.client.commit(
                Txn([ModRevision(found.key, found.mod_revision)], ops)
            )
            if not result.succeeded:
                raise conflict("the workflow changed meanwhile; try again")
            self.resolution.stepped(colony, graphid, result.revision)
        await self.resolution.settle(colony, graphid, PATIENCE)

    async def remove(self, colony: str, graphid: str, *, running: bool = False) -> None:
        """Delete a graph with all its nodes; one that is not finished only if `running`.

        Raises RpcError 400, 404 or 409.
        """
        graph = await self.load(colony, graphid)
        if graph is None:
            raise missing(f"processgraphid: no workflow {graphid[:80]!r}")
        if sum(graph.ended.values()) < graph.count:
            if graph.state != State.WAITING and not running:
                raise bad("the workflow is running; cancel it first")
            await self.cancel(colony, graphid)
            await self.resolution.settle(colony, graphid)
        async with self.resolution.held(colony, graphid):
            found = await self.client.get(keys.graph(colony, graphid))
            if found is None:
                return
            graph = unpack(found.value, Graph)
            for node in await self.nodes(graph):
                reason = self.processes.hooks.removable(node)
                if reason:
                    raise conflict(reason)
            compare: list[Compare] = [ModRevision(found.key, found.mod_revision)]
            result = await self.client.commit(Txn(compare, store.delete_graph(graph)))
            if not result.succeeded:
                raise conflict("the workflow changed meanwhile; try again")
            self.resolution.stepped(colony, graphid, result.revision)
        await self.resolution.settle(colony, graphid)

    # -- reading -------------------------------------------------------------------------

    async def load(self, colony: str, graphid: str) -> Graph | None:
        """The graph, with all that has happened to it by now counted in; or None."""
        await self.resolution.settle(colony, graphid, PATIENCE)
        found = await self.client.get(keys.graph(colony, graphid))
        graph = unpack(found.value, Graph) if found is not None else None
        if graph is not None and not graph.released:
            # Nobody sees a part of it.
            await self.resolution.settle(colony, graphid)
        return graph

    async def nodes(self, graph: Graph) -> list[Process]:
        """The nodes of a graph, by place."""
        return await self.processes.load_many(graph.colonyname, store.ids(graph))

    async def leaf_outputs(self, colony: str, graphid: str) -> list[Any]:
        """The outputs of the nodes without children, in the order of their places."""
        graph = await self.load(colony, graphid)
        if graph is None:
            return []
        leaves = [node for node in await self.nodes(graph) if not node.children]
        return [value for node in leaves for value in node.output]

    async def listing(self, colony: str, state: int, limit: int) -> list[Graph]:
        """At most `limit` graphs in one state, newest first."""
        page = await self.client.range(keys.graph_states(colony, state), limit=limit)
        names = [keys.graph(colony, item.key.rpartition("/")[2]) for item in page.items]
        found = await read_many(self.client, names, 50)
        return [unpack(kv.value, Graph) for kv in found if kv is not None]

    async def count(self, colony: str, state: int) -> int:
        """How many graphs of a colony are in a state."""
        return await self.client.count(keys.graph_states(colony, state))
