"""The life of a process graph in the store: new values and the operations that make them so.

The states of nodes are in `store.work.processes`; `model.graph` decides what follows from them,
`workflows.service` runs it.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from node.etcd.txn import Delete, Op, Put
from node.model.codec import pack
from node.model.graph import node_id, state_of
from node.model.types import Graph, Process, State
from node.store import keys
from node.store.work.processes import create, place


def put_graph(after: Graph, before: Graph | None = None) -> list[Op]:
    """Write a graph, and the key that lists it under its state."""
    colony, graphid, born = after.colonyname, after.processgraphid, after.submissiontime
    ops: list[Op] = [Put(keys.graph(colony, graphid), pack(after))]
    if before is None or before.state != after.state:
        ops.append(Put(keys.graph_state(colony, after.state, born, graphid), b""))
        if before is not None:
            ops.append(Delete(keys.graph_state(colony, before.state, born, graphid)))
    return ops


def delete_graph(graph: Graph) -> list[Op]:
    """Remove a graph, and let its nodes be removed after it."""
    colony, graphid = graph.colonyname, graph.processgraphid
    return [
        Delete(keys.graph(colony, graphid)),
        Delete(keys.graph_state(colony, graph.state, graph.submissiontime, graphid)),
        Put(keys.step(colony, graphid, keys.REMOVE), pack(graph.count)),
    ]


def create_node(process: Process, forwarding: Sequence[Op]) -> list[Op]:
    """Create a node; `forwarding` sends a root that names a peer there."""
    return [*create(process), *(() if process.waitforparents else forwarding)]


def with_ends(graph: Graph, ends: Sequence[tuple[int, State]], started: int, now: int) -> Graph:
    """Return the graph after nodes at some places ended; `started` (0: not known) and `now` in Unix
    ns.
    """
    ended = dict(graph.ended)
    for _, state in ends:
        ended[int(state)] = ended.get(int(state), 0) + 1
    begun = graph.starttime or started or (now if ended else 0)
    state = state_of(ended, graph.count, started=bool(begun))
    over = state >= State.SUCCESSFUL
    return msgspec.structs.replace(
        graph,
        ended=ended,
        state=state,
        starttime=begun,
        endtime=(graph.endtime or now) if over else 0,
    )


def unblock(process: Process, forwarding: Sequence[Op]) -> list[Op]:
    """Put a node that no longer waits into the queue, or send it on its way to a peer."""
    colony, pid = process.colonyname, process.processid
    return [
        Put(keys.process(colony, pid), pack(process)),
        Delete(keys.blocked(colony, pid)),
        Delete(keys.pending(colony, pid)),
        *place(process),
        *(forwarding if process.peer else ()),
    ]


def ids(graph: Graph) -> list[str]:
    """Return the process ids of a graph's nodes, by place."""
    return [node_id(graph.processgraphid, place) for place in range(graph.count)]
