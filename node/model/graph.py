"""Process graphs as values: places of nodes from their dependencies, states, and the layout.

No I/O and no clock: `workflows.service` runs what is decided here, `store.work.graphs` has the
transactions.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from node.model.types import FunctionSpec, Process, State

# Nodes of one graph: their specs must fit into memory several times over.
MAX_NODES = 50_000
# Sizes of upstream's drawing, in pixels: a node, the gap between two of a row, and rows.
_WIDTH, _GAP, _ROW = 150, 50, 80
_COLOURS = {
    State.WAITING: "#eee8d8",
    State.RUNNING: "#4689cd",
    State.SUCCESSFUL: "#92d050",
    State.FAILED: "#cb4239",
    State.CANCELLED: "#f5a623",
}


class GraphError(ValueError):
    """A workflow whose nodes do not make a graph; the message names the nodes."""


@lru_cache(maxsize=65_536)
def node_id(graphid: str, place: int) -> str:
    """Return the process id of the node at a place of a graph."""
    return hashlib.sha3_256(f"{graphid}/{place}".encode()).hexdigest()


@dataclass(frozen=True)
class GraphPlan:
    """The parents and children of each node, by place."""

    parents: list[list[int]]
    children: list[list[int]]

    @property
    def roots(self) -> list[int]:
        """Return the places of nodes without parents."""
        return [place for place, parents in enumerate(self.parents) if not parents]


def plan(specs: Sequence[FunctionSpec]) -> GraphPlan:
    """Return the graph that the specs' dependencies describe.

    Raises GraphError for no nodes or too many, a name that is missing or used twice, an unknown
    dependency, and a cycle.
    """
    if not specs:
        raise GraphError("functionspecs: a workflow has at least one")
    if len(specs) > MAX_NODES:
        raise GraphError(f"functionspecs: a workflow has at most {MAX_NODES}")
    places: dict[str, int] = {}
    for place, spec in enumerate(specs):
        if not spec.nodename:
            raise GraphError(f"functionspecs[{place}].nodename: must not be empty")
        if spec.nodename in places:
            raise GraphError(f"functionspecs[{place}].nodename: {spec.nodename!r} is used twice")
        places[spec.nodename] = place
    parents: list[list[int]] = []
    children: list[list[int]] = [[] for _ in specs]
    for place, spec in enumerate(specs):
        mine: dict[int, None] = {}
        for name in spec.conditions.dependencies or []:
            if name not in places:
                raise GraphError(
                    f"functionspecs[{place}].conditions.dependencies: {spec.nodename!r} depends on"
                    f" {name!r}, which is no node of this workflow"
                )
            mine[places[name]] = None
        parents.append(list(mine))
        for parent in mine:
            children[parent].append(place)
    _refuse_cycle(specs, parents, children)
    return GraphPlan(parents, children)


def _refuse_cycle(
    specs: Sequence[FunctionSpec], parents: list[list[int]], children: list[list[int]]
) -> None:
    missing = [len(mine) for mine in parents]
    free = [place for place, count in enumerate(missing) if not count]
    done = 0
    while free:
        place = free.pop()
        done += 1
        for child in children[place]:
            missing[child] -= 1
            if not missing[child]:
                free.append(child)
    if done == len(parents):
        return
    # Each place left has a parent that is left: going up must come round.
    place = next(place for place, count in enumerate(missing) if count)
    way: dict[int, None] = {}
    while place not in way:
        way[place] = None
        place = next(parent for parent in parents[place] if missing[parent])
    round_trip = list(way)[list(way).index(place) :]
    names = [specs[each].nodename for each in [*round_trip, place]]
    shown = names if len(names) <= 12 else [*names[:6], "…", *names[-5:]]
    raise GraphError(f"functionspecs: nodes depend on themselves: {' → '.join(shown)}")


def state_of(ended: Mapping[int, int], count: int, *, started: bool) -> State:
    """Return the state of a graph, by upstream's rule: any failed, any cancelled, all
    successful.
    """
    if ended.get(State.FAILED):
        return State.FAILED
    if ended.get(State.CANCELLED):
        return State.CANCELLED
    if ended.get(State.SUCCESSFUL, 0) >= count:
        return State.SUCCESSFUL
    return State.RUNNING if started or ended else State.WAITING


def walk(nodes: Sequence[Process]) -> list[tuple[Process, int]]:
    """Return the nodes in upstream's order, depth first from the roots, each with its row (0 for a
    root).

    A node that several ways lead to has the row of the first one. A node that no root leads to
    comes last, as a root.
    """
    known = {node.graphindex: node for node in nodes}
    found: dict[int, int] = {}
    for start in sorted(nodes, key=lambda node: bool(node.parents)):
        ways = [(start.graphindex, 0)]
        while ways:
            place, row = ways.pop()
            if place in found or place not in known:
                continue
            found[place] = row
            ways.extend((child, row + 1) for child in reversed(known[place].children))
    return [(known[place], row) for place, row in found.items()]


def _width(count: int) -> int:
    """Return the width of a row of nodes, in pixels."""
    return count * (_WIDTH + _GAP) - _GAP


def layout(nodes: Sequence[Process]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return nodes and edges as upstream's dashboard draws them (React Flow): rows, each
    centred.
    """
    walked = walk(nodes)
    counts = Counter(row for _, row in walked)
    middle = _width(max(counts.values(), default=1)) // 2
    columns: Counter[int] = Counter()
    places: dict[int, tuple[int, int]] = {}
    for node, row in walked:
        x = columns[row] * (_WIDTH + _GAP) + middle - _width(counts[row]) // 2
        places[node.graphindex] = (x, row * _ROW)
        columns[row] += 1
    drawn: list[dict[str, Any]] = []
    edges: list[dict[str, Any]] = []
    for node in nodes:
        x, y = places[node.graphindex]
        kind = "input" if not node.parents else "output" if not node.children else ""
        drawn.append(
            {
                "id": node.processid,
                "data": {"label": node.spec.nodename},
                "position": {"x": x, "y": y},
                "type": kind,
                "style": {"color": "", "background": _COLOURS[node.state]},
            }
        )
        for child in node.children:
            target = node_id(node.processgraphid, child)
            edges.append(
                {
                    "id": f"{node.processid}-{target}",
                    "source": node.processid,
                    "target": target,
                    "animated": node.state == State.RUNNING,
                }
            )
    return drawn, edges
