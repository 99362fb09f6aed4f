"""The pages of workflows: the list, and one as nodes and edges with the states of now.

The page lays the graph out.
"""

from __future__ import annotations

from typing import Any

import msgspec
import trio

from cli.core.output import STATES, at, state_name
from cli.ui.api import Api, Nothing
from cli.ui.context import Context
from cli.ui.processes import ById, ProcessRow, process_row

api = Api()

_LIST = 50  # of each state
_MOST_NODES = 400  # that are drawn


class WorkflowRow(msgspec.Struct):
    """One workflow in a list; times are Unix s."""

    id: str
    state: str
    nodes: int
    submitted: float | None
    started: float | None
    ended: float | None
    by: str


class WorkflowPage(msgspec.Struct):
    """One workflow: `edges` are pairs of places in `nodes`; `more` nodes are not drawn."""

    row: WorkflowRow
    nodes: list[ProcessRow]
    edges: list[tuple[int, int]]
    more: int


def _row(graph: dict[str, Any]) -> WorkflowRow:
    return WorkflowRow(
        id=str(graph["processgraphid"]),
        state=state_name(graph.get("state")),
        nodes=len(graph.get("processids") or []),
        submitted=at(graph.get("submissiontime")),
        started=at(graph.get("starttime")),
        ended=at(graph.get("endtime")),
        by=str(graph.get("initiatorname") or ""),
    )


@api.row("workflows", Nothing)
async def workflows(context: Context, params: Nothing) -> list[WorkflowRow]:
    """Return the newest workflows of each state, the newest first."""
    found: list[dict[str, Any]] = []

    async def look(state: int) -> None:
        found.extend(await context.here("getprocessgraphsmsg", state=state, count=_LIST) or [])

    async with trio.open_nursery() as nursery:
        for state in range(len(STATES)):
            nursery.start_soon(look, state)
    rows = [_row(each) for each in found]
    rows.sort(key=lambda row: (-(row.submitted or 0), row.id))
    return rows


@api.row("workflow", ById)
async def workflow(context: Context, params: ById) -> WorkflowPage:
    """Return one workflow with the states of its nodes."""
    graph = await context.call("getprocessgraphmsg", timeout=60, processgraphid=params.id)
    processes = await context.here("getprocessesmsg", processgraphid=params.id, state=-1, count=100)
    executors = await context.here("getexecutorsmsg") or []
    names = {str(each["executorid"]): str(each["executorname"]) for each in executors}
    nodes = [process_row(each, names) for each in (processes or [])[:_MOST_NODES]]
    places = {node.id: place for place, node in enumerate(nodes)}
    edges = [
        (places[edge["source"]], places[edge["target"]])
        for edge in graph.get("edges") or []
        if edge["source"] in places and edge["target"] in places
    ]
    row = _row(graph)
    return WorkflowPage(row, nodes, edges, max(0, row.nodes - len(nodes)))
