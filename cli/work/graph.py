"""The drawing of a workflow: its nodes in the order they run, indented by depth.

Values in, rows out; the calls are in `cli.work.workflow`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from cli.core.output import cell_text, short, state_name

Graph = Mapping[str, Any]
Processes = Mapping[str, Mapping[str, Any]]

_DEEPEST = 12  # levels that are indented: deeper ones would leave no room


def leaves(graph: Graph) -> list[str]:
    """Return the ids of the processes without children."""
    sources = {edge["source"] for edge in graph.get("edges") or []}
    return [processid for processid in _ids(graph) if processid not in sources]


def _ids(graph: Graph) -> list[str]:
    ids = list(graph.get("processids") or [])
    return ids or [node["id"] for node in graph.get("nodes") or []]


def _relatives(graph: Graph) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return parents and children of each process."""
    parents: dict[str, list[str]] = {processid: [] for processid in _ids(graph)}
    children: dict[str, list[str]] = {processid: [] for processid in parents}
    for edge in graph.get("edges") or []:
        source, target = edge["source"], edge["target"]
        if source in parents and target in parents:
            parents[target].append(source)
            children[source].append(target)
    return parents, children


def order(graph: Graph) -> list[tuple[str, int]]:
    """Return each process once with its depth, after all its parents; a child follows its last
    parent.

    Nodes on a cycle, which no server should send, come last with depth 0.
    """
    parents, children = _relatives(graph)
    missing = {processid: len(above) for processid, above in parents.items()}
    depth = dict.fromkeys(parents, 0)
    ready = [processid for processid, count in reversed(missing.items()) if count == 0]
    found: list[tuple[str, int]] = []
    while ready:
        processid = ready.pop()
        found.append((processid, depth[processid]))
        # Nodes that become free are taken at once: that makes it look like a tree.
        for child in reversed(children[processid]):
            missing[child] -= 1
            depth[child] = max(depth[child], depth[processid] + 1)
            if missing[child] == 0:
                ready.append(child)
    known = {processid for processid, _ in found}
    return found + [(processid, 0) for processid in parents if processid not in known]


def names(graph: Graph, processes: Processes) -> dict[str, str]:
    """Return the node's name of each process."""
    labels = {
        node["id"]: str((node.get("data") or {}).get("label") or "")
        for node in graph.get("nodes") or []
    }
    for processid, process in processes.items():
        labels[processid] = str((process.get("spec") or {}).get("nodename") or "")
    return {processid: labels.get(processid) or short(processid) for processid in _ids(graph)}


def tree(graph: Graph, processes: Processes) -> list[list[object]]:
    """Return one row for each node: name, state, function, parents, id, errors."""
    label = names(graph, processes)
    parents, _ = _relatives(graph)
    rows: list[list[object]] = []
    for processid, depth in order(graph):
        process = processes.get(processid, {})
        errors = "; ".join(cell_text(error) for error in process.get("errors") or [])
        rows.append(
            [
                "  " * min(depth, _DEEPEST) + label[processid],
                state_name(process["state"]) if process else "",
                (process.get("spec") or {}).get("funcname"),
                ", ".join(label[parent] for parent in parents[processid]),
                short(processid),
                errors if len(errors) <= 60 else errors[:59] + "…",
            ]
        )
    return rows


def progress(graph: Graph, processes: Processes) -> str:
    """Return a text such as '5: 3 successful, 2 waiting'."""
    counts = Counter(state_name(process.get("state")) for process in processes.values())
    told = ", ".join(f"{number} {word}" for word, number in counts.most_common())
    return f"{len(_ids(graph))}" + (f": {told}" if told else "")
