"""Process graphs as values: plans, refusals that name nodes, states, rows, the layout."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.model.graph import GraphError, layout, node_id, plan, state_of, walk
from node.model.types import Conditions, FunctionSpec, Process, State


def spec(name: str, *dependencies: str) -> FunctionSpec:
    return FunctionSpec(
        nodename=name,
        funcname="f",
        conditions=Conditions(executortype="cli", dependencies=list(dependencies)),
    )


def test_places_follow_from_names() -> None:
    found = plan([spec("d", "b", "c"), spec("b", "a"), spec("a"), spec("c", "a", "a")])
    assert found.parents == [[1, 3], [2], [], [2]]
    assert found.children == [[], [0], [1, 3], [0]]
    assert found.roots == [2]


@pytest.mark.parametrize(
    ("specs", "words"),
    [
        ([], "functionspecs: a workflow has at least one"),
        ([spec("")], r"functionspecs\[0\].nodename"),
        ([spec("a"), spec("a")], r"functionspecs\[1\].nodename: 'a' is used twice"),
        ([spec("a", "ghost")], r"functionspecs\[0\].conditions.dependencies: 'a' .* 'ghost'"),
        ([spec("a", "a")], "a → a"),
    ],
)
def test_refusals_name_the_node(specs: list[FunctionSpec], words: str) -> None:
    with pytest.raises(GraphError, match=words):
        plan(specs)


def test_a_cycle_is_refused_with_its_nodes_alone() -> None:
    specs = [spec("root"), spec("a", "root", "c"), spec("b", "a"), spec("c", "b"), spec("z", "c")]
    with pytest.raises(GraphError) as refusal:
        plan(specs)
    names = re.findall(r"\b[a-z]+\b", str(refusal.value).partition("themselves: ")[2])
    assert names[0] == names[-1]
    assert sorted(set(names)) == ["a", "b", "c"]


def nodes_of(specs: Sequence[FunctionSpec]) -> list[Process]:
    """The nodes of a workflow that waits, by place."""
    found = plan(specs)
    return [
        Process(
            processid=node_id("g", place),
            initiatorid="",
            initiatorname="",
            colonyname="dev",
            spec=each,
            prioritytime=0,
            submissiontime=0,
            processgraphid="g",
            graphindex=place,
            parents=found.parents[place],
            children=found.children[place],
        )
        for place, each in enumerate(specs)
    ]


@st.composite
def acyclic(draw: st.DrawFn) -> list[list[int]]:
    """Parents by place; an edge goes from a lower place to a higher one."""
    size = draw(st.integers(1, 12))
    return [
        sorted(draw(st.sets(st.integers(0, place - 1)))) if place else [] for place in range(size)
    ]


@given(acyclic(), st.randoms())
def test_every_graph_without_cycles_is_planned(parents: list[list[int]], dice: object) -> None:
    order = list(range(len(parents)))
    dice.shuffle(order)  # type: ignore[attr-defined]
    specs = [spec(f"n{place}", *(f"n{up}" for up in parents[place])) for place in order]
    found = plan(specs)
    for place, original in enumerate(order):
        assert [order[up] for up in found.parents[place]] == parents[original]
        assert all(place in found.children[up] for up in found.parents[place])
    rows: dict[int, int] = {}

    def visit(place: int, row: int) -> None:
        if place not in rows:
            rows[place] = row
            for child in found.children[place]:
                visit(child, row + 1)

    for root in found.roots:
        visit(root, 0)
    walked = walk(nodes_of(specs))
    assert [(node.graphindex, row) for node, row in walked] == list(rows.items())


@given(acyclic(), st.data())
def test_every_cycle_is_refused(parents: list[list[int]], data: st.DataObject) -> None:
    last = len(parents) - 1
    # A way from the first to the last place, and back.
    for place in range(1, last + 1):
        parents[place] = sorted({*parents[place], place - 1})
    parents[0] = [data.draw(st.integers(0, last))]
    with pytest.raises(GraphError, match="depend on themselves"):
        plan([spec(f"n{place}", *(f"n{up}" for up in ups)) for place, ups in enumerate(parents)])


@pytest.mark.parametrize(
    ("ended", "started", "state"),
    [
        ({}, False, State.WAITING),
        ({}, True, State.RUNNING),
        ({2: 1}, False, State.RUNNING),
        ({2: 3}, True, State.SUCCESSFUL),
        ({2: 2, 3: 1}, True, State.FAILED),
        ({2: 1, 4: 1}, True, State.CANCELLED),
        ({3: 1, 4: 2}, True, State.FAILED),
    ],
)
def test_states(ended: dict[int, int], started: bool, state: State) -> None:
    assert state_of(ended, 3, started=started) is state


def positions(*specs: FunctionSpec) -> dict[str, tuple[int, int]]:
    """Where the nodes of a workflow are drawn, by name."""
    drawn, _ = layout(nodes_of(specs))
    return {each["data"]["label"]: (each["position"]["x"], each["position"]["y"]) for each in drawn}


def test_the_layout_is_what_dashboards_draw() -> None:
    nodes = nodes_of([spec("a"), spec("b", "a"), spec("c", "a")])
    nodes[0].state = State.RUNNING
    drawn, edges = layout(nodes)
    assert [each["data"]["label"] for each in drawn] == ["a", "b", "c"]
    # 150 wide with 50 between: the second row is 350 wide, the first in its middle.
    assert [(each["position"]["x"], each["position"]["y"]) for each in drawn] == [
        (100, 0),
        (0, 80),
        (200, 80),
    ]
    assert [each["type"] for each in drawn] == ["input", "output", "output"]
    assert [(each["source"], each["target"], each["animated"]) for each in edges] == [
        (node_id("g", 0), node_id("g", 1), True),
        (node_id("g", 0), node_id("g", 2), True),
    ]


@pytest.mark.parametrize(
    ("state", "colour"),
    [
        (State.WAITING, "#eee8d8"),
        (State.RUNNING, "#4689cd"),
        (State.SUCCESSFUL, "#92d050"),
        (State.FAILED, "#cb4239"),
        (State.CANCELLED, "#f5a623"),
    ],
)
def test_the_colours_are_those_of_upstream(state: State, colour: str) -> None:
    nodes = nodes_of([spec("a")])
    nodes[0].state = state
    drawn, _ = layout(nodes)
    assert drawn[0]["style"] == {"color": "", "background": colour}


def test_a_node_has_the_row_where_the_first_way_meets_it() -> None:
    specs = [spec("a"), spec("b", "a"), spec("c", "a", "b"), spec("d", "a")]
    assert positions(*specs) == {"a": (100, 0), "b": (0, 80), "c": (100, 160), "d": (200, 80)}
    # The direct way to c comes first now.
    specs = [spec("a"), spec("c", "a", "b"), spec("b", "a")]
    assert positions(*specs) == {"a": (100, 0), "c": (0, 80), "b": (200, 80)}


def test_nodes_whose_parents_are_gone_are_drawn_all_the_same() -> None:
    drawn, _ = layout(nodes_of([spec("a"), spec("b", "a"), spec("c", "b")])[1:])
    assert [each["data"]["label"] for each in drawn] == ["b", "c"]
    assert layout([]) == ([], [])


def test_a_long_chain_is_drawn() -> None:
    names = [f"n{number}" for number in range(2_000)]
    specs = [spec(names[0]), *(spec(name, up) for up, name in itertools.pairwise(names))]
    assert positions(*specs)["n1999"] == (0, 1999 * 80)
