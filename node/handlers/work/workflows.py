"""Calls about workflows (process graphs)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import msgspec
import trio

from colonyd.errors import Denied, Invalid, NotFound, RpcError
from node.etcd.pages import Pages, Rows
from node.etcd.pressure import Need
from node.model.codec import wire_graph, wire_process
from node.model.types import FunctionSpec, Graph, Int64, Process, State
from node.processes.spec import StrangeColony, id_for
from node.rpc.calls import MANY_TOKENS, MINE, Caller, Calls, Who, many
from node.rpc.replay import Once
from node.runtime.node import Node
from node.store.directory import name_of
from node.tasks.offload import NODE, apart
from node.workflows.children import ChildRequest
from node.workflows.spec import WorkflowSpec

MAX_COUNT = 100


class SubmitWorkflow(msgspec.Struct):
    spec: WorkflowSpec


class GraphById(msgspec.Struct):
    processgraphid: str


class GetGraphs(msgspec.Struct):
    colonyname: str
    count: Int64 = 0
    state: Int64 = 0


class RemoveGraphs(msgspec.Struct):
    colonyname: str
    state: Int64 = 0


class AddChild(msgspec.Struct):
    processgraphid: str
    parentprocessid: str
    spec: FunctionSpec
    childprocessid: str = ""
    insert: bool = False


def _bare(node: Process) -> Process:
    """Return the part of a node that drawing needs: the rest of a large workflow is not kept in
    memory.
    """
    spec = FunctionSpec(nodename=node.spec.nodename)
    return msgspec.structs.replace(node, spec=spec, input=[], output=[], errors=[], attributes=[])


def _drawn(graph: Graph, nodes: Sequence[Process]) -> msgspec.Raw:
    """Return a workflow with its nodes and edges, in JSON."""
    return msgspec.Raw(msgspec.json.encode(wire_graph(graph, nodes)))


calls: Calls[Node] = Calls("Workflows")


async def rows(pages: Pages[Graph]) -> Rows:
    async with aclosing(pages) as found:
        async for page in found:
            for graph in page:
                # One by one: each has the ids of all its nodes.
                yield [wire_graph(graph)]
                await trio.lowlevel.checkpoint()


async def submitted(
    node: Node, caller: Caller, request: SubmitWorkflow, place: str
) -> dict[str, Any]:
    """Return the workflow as it is now."""
    graphid = id_for(caller.id, caller.nonce)
    graph = await node.workflows.load(request.spec.colonyname, graphid)
    if graph is None:
        raise NotFound("nonce: the workflow that this request submitted was removed")
    return wire_graph(graph)


@calls.row(
    "submitworkflowspecmsg",
    SubmitWorkflow,
    Who.MEMBER,
    reply="ProcessGraph",
    colony="spec.colonyname",
    once=Once.TOGETHER,
    again=submitted,
    tokens=MANY_TOKENS,
    keeps=True,
)
async def submit(node: Node, caller: Caller, request: SubmitWorkflow) -> dict[str, Any]:
    """Submit a graph of functions.

    They are function specs that depend on each other by their node names.
    """
    assert caller.member is not None
    nonce = hashlib.sha256(caller.submission).hexdigest() if caller.nonce else ""
    try:
        graph = await node.workflows.submit(
            request.spec.colonyname,
            request.spec.functionspecs,
            graphid=id_for(caller.id, caller.nonce),
            initiatorid=caller.id,
            initiatorname=name_of(caller.member),
            submission=caller.submission,
            nonce=nonce,
        )
    except StrangeColony as error:
        raise await error.explained(node.processes.hooks) from None
    if graph.nonce != nonce:
        raise Denied("nonce: used already for another submission")
    return wire_graph(graph)


@calls.row("getprocessgraphmsg", GraphById, Who.SIGNED, reply="ProcessGraph", rights=MINE)
async def get(node: Node, caller: Caller, request: GraphById) -> msgspec.Raw:
    """Show a workflow by id."""
    graph = await locate_graph(node, caller, request.processgraphid)
    nodes = [_bare(each) async for page in node.workflows.pages(graph) for each in page]
    return await apart(NODE * len(nodes), _drawn, graph, nodes)


@calls.row("getprocessgraphsmsg", GetGraphs, Who.MEMBER, reply="ProcessGraph[]", heavy=many)
async def get_many(node: Node, caller: Caller, request: GetGraphs) -> Rows | list[Any]:
    """List workflows in one state, newest first."""
    if not 0 <= request.count <= MAX_COUNT:
        raise Invalid(f"count: between 0 and {MAX_COUNT}")
    if not 0 <= request.state <= State.CANCELLED:
        raise Invalid("state: 0 waiting, 1 running, 2 successful, 3 failed or 4 cancelled")
    if request.count == 0:
        return []
    return rows(node.workflows.listing(request.colonyname, request.state, request.count))


@calls.row(
    "addchildmsg", AddChild, Who.SIGNED, reply="Process", rights="the executor that runs the parent"
)
async def add_child(node: Node, caller: Caller, request: AddChild) -> dict[str, Any]:
    """Add a node to a running workflow."""
    graph = await locate_graph(node, caller, request.processgraphid)
    if "/" in request.parentprocessid:
        raise NotFound("parentprocessid: no node of this workflow")
    wanted = ChildRequest(
        request.parentprocessid,
        request.childprocessid,
        request.spec,
        caller.id,
        request.insert,
    )
    try:
        child = await node.workflows.children.add(graph, wanted)
    except StrangeColony as error:
        raise await error.explained(node.processes.hooks) from None
    return wire_process(child)


@calls.row("cancelprocessgraphmsg", GraphById, Who.SIGNED, rights=MINE, need=Need.FREES)
async def cancel(node: Node, caller: Caller, request: GraphById) -> None:
    """Cancel the waiting and running nodes of a workflow."""
    graph = await locate_graph(node, caller, request.processgraphid)
    await node.workflows.cancel(graph.colonyname, graph.processgraphid)


@calls.row("removeprocessgraphmsg", GraphById, Who.SIGNED, rights=MINE, need=Need.FREES)
async def remove(node: Node, caller: Caller, request: GraphById) -> None:
    """Remove a workflow that doesn't run."""
    graph = await locate_graph(node, caller, request.processgraphid)
    await node.workflows.remove(graph.colonyname, graph.processgraphid)


@calls.row("removeallprocessgraphsmsg", RemoveGraphs, Who.OWNER, need=Need.FREES)
async def remove_all(node: Node, caller: Caller, request: RemoveGraphs) -> None:
    """Remove the workflows in one state; -1 means all."""
    await remove_by_state(node, request)


async def remove_by_state(node: Node, request: RemoveGraphs) -> None:
    """Remove all workflows of a colony in one state; -1 means every state, running ones too.

    A workflow that is gone or in another state by then is passed over. Raises Invalid or Conflict
    when some had to stay, once the others are removed.
    """
    if request.state not in (-1, 0, 2, 3, 4):
        raise Invalid("state: 0 waiting, 2 successful, 3 failed, 4 cancelled, or -1 for all")
    colony, workflows = request.colonyname, node.workflows
    only = State(request.state) if request.state != -1 else None
    refusal: RpcError | None = None
    async with aclosing(workflows.ids(colony, only)) as pages:
        async for page in pages:
            for graphid in page:
                try:
                    await workflows.remove(colony, graphid, running=only is None, only=only)
                except NotFound:
                    continue
                except RpcError as error:
                    refusal = refusal or error
    if refusal is not None:
        raise refusal


async def locate_graph(node: Node, caller: Caller, graphid: str) -> Graph:
    """Return a graph in one of the caller's colonies. Raises Denied or NotFound."""

    async def look(colony: str) -> Graph | None:
        return await node.workflows.load(colony, graphid) if "/" not in graphid else None

    return await node.directory.seek(caller.id, look, "processgraphid", graphid)
