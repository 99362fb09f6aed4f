"""Children: nodes that a running node adds to its own workflow.

All other changes of a graph are in `workflows.service` and `workflows.advance`.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from colonyd.errors import Conflict, Denied, Invalid, NotFound, RpcError
from node.etcd.client import EtcdClient
from node.etcd.txn import Compare, ModRevision, Op, Put, Txn
from node.model import graph as graphs
from node.model.codec import pack, unpack
from node.model.types import FunctionSpec, Graph, Process, State
from node.processes.service import Processes
from node.processes.spec import build_node
from node.store import keys
from node.store.work import graphs as store
from node.workflows.advance import Resolution

# Children that an inserted node may take over: more do not fit into one transaction.
_MOST_MOVED = 40
# Reports of a running node, and ends of other nodes, change the values that were read.
TRIES = 8


def too_fast(graphid: str) -> RpcError:
    """Return the error after `TRIES` lost races."""
    return Conflict(f"processgraphid: workflow {graphid} changes too fast; try again")


@dataclass(frozen=True)
class ChildRequest:
    """A node that an executor, of this `identity`, wants below the node that it runs.

    With `insert` it takes over all children of the parent; otherwise a `childid` will wait for it,
    too.
    """

    parentid: str
    childid: str
    spec: FunctionSpec
    identity: str
    insert: bool


@dataclass
class Children:
    """Adds nodes below running ones."""

    client: EtcdClient
    processes: Processes
    resolution: Resolution

    async def add(self, graph: Graph, wanted: ChildRequest) -> Process:
        """Add a node below a running one. Raises Invalid, Denied, NotFound, Conflict or TooMany."""
        async with self.resolution.held(graph.colonyname, graph.processgraphid):
            with self.processes.quotas.processes(graph.colonyname, graph.initiatorname):
                for _ in range(TRIES):
                    node = await self._add(graph, wanted)
                    if node is not None:
                        return node
        raise too_fast(graph.processgraphid)

    async def _add(self, graph: Graph, wanted: ChildRequest) -> Process | None:
        """Make one attempt on present values; return None when one of them changed meanwhile."""
        colony, graphid = graph.colonyname, graph.processgraphid
        hooks, parentid, insert = self.processes.hooks, wanted.parentid, wanted.insert
        found = await self.client.get(keys.graph(colony, graphid))
        parent = await self.processes.load(colony, parentid)
        if found is None or parent is None or parent[0].processgraphid != graphid:
            raise NotFound(f"parentprocessid: {parentid[:80]!r} is no node of this workflow")
        graph = unpack(found.value, Graph)
        if parent[0].assignedexecutorid != wanted.identity:
            raise Denied("parentprocessid: it is not assigned to this executor")
        if parent[0].state != State.RUNNING or graph.sweeping:
            raise Invalid("parentprocessid: it is not running")
        if graph.count >= graphs.MAX_NODES:
            raise Invalid(f"processgraphid: a workflow has at most {graphs.MAX_NODES} nodes")
        node = build_node(hooks, graph, graph.count, wanted.spec, "spec")
        node.parents, node.waitforparents = [parent[0].graphindex], True
        compare: list[Compare] = [
            ModRevision(found.key, found.mod_revision),
            ModRevision(keys.process(colony, parentid), parent[1]),
        ]
        ops: list[Op] = []
        moved = parent[0].children if insert else []
        if len(moved) > _MOST_MOVED:
            raise Invalid(f"insert: the parent has more than {_MOST_MOVED} children")
        changed = msgspec.structs.replace(
            parent[0], children=[*([] if insert else parent[0].children), graph.count]
        )
        if insert:
            node.children = list(moved)
            below = [graphs.node_id(graphid, place) for place in moved]
        else:
            below = [wanted.childid] if wanted.childid else []
        touched = [(changed, parent[1])]
        for each in below:
            touched.append(
                await self._below(graph, each, node, parent[0], compare, ops, insert=insert)
            )
        ops.extend(Put(keys.process(colony, p.processid), pack(p)) for p, _ in touched)
        ops.extend(store.create_node(node, hooks.forwarding(node).ops if node.peer else ()))
        ops.extend(store.put_graph(msgspec.structs.replace(graph, count=graph.count + 1), graph))
        result = await self.client.commit(Txn(compare, ops))
        if not result.succeeded:
            return None
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
        """Hang a child below the new node. With `insert`, the new node takes the parent's place."""
        colony, graphid = graph.colonyname, graph.processgraphid
        found = await self.processes.load(colony, childid) if "/" not in childid else None
        if found is None or found[0].processgraphid != graphid:
            raise NotFound(f"childprocessid: {childid[:80]!r} is no node of this workflow")
        child, revision = found
        if not child.waitforparents or child.closed:
            raise Invalid("childprocessid: it waits for nobody any more")
        compare.append(ModRevision(keys.process(colony, childid), revision))
        if insert:
            parents = [graph.count if up == parent.graphindex else up for up in child.parents]
        else:
            node.children.append(child.graphindex)
            parents = [*child.parents, graph.count]
            key = keys.pending(colony, childid)
            counter = await self.client.get(key)
            if counter is None:
                raise Invalid("childprocessid: it waits for nobody any more")
            compare.append(ModRevision(key, counter.mod_revision))
            ops.append(Put(key, b"%d" % (int(counter.value) + 1)))
        return msgspec.structs.replace(child, parents=parents), revision
