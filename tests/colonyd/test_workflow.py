"""Workflows built in Python: their order, and what is refused before anything is sent."""

from __future__ import annotations

from itertools import pairwise

import pytest

from colonyd.client.values import Conditions, Spec
from colonyd.client.workflow import Task, Workflow, WrongWorkflow, task


def order(workflow: Workflow) -> dict[str, list[str]]:
    return {each.nodename: each.conditions.dependencies for each in workflow.specs("dev")}


def test_steps_follow_each_other_fan_out_and_fan_in() -> None:
    load, left, right, join = (task(name) for name in ("load", "left", "right", "join"))
    [left, right] >> join
    load >> [left, right]
    assert order(Workflow(load, left, right, join)) == {
        "load": [],
        "left": ["load"],
        "right": ["load"],
        "join": ["left", "right"],
    }


def test_a_chain_is_written_as_one() -> None:
    a, b, c, d = (task(name) for name in "abcd")
    a >> [b, c] >> d
    assert order(Workflow(d, c, b, a)) == {"d": ["b", "c"], "c": ["a"], "b": ["a"], "a": []}


def test_a_step_has_arguments_a_name_and_the_rest_of_its_spec() -> None:
    spec = Spec(maxexectime=5, conditions=Conditions(executortype="gpu"))
    (made,) = Workflow(task("f", 1, name="first", spec=spec, x=2)).specs("dev")
    assert (made.funcname, made.nodename, made.args, made.kwargs) == ("f", "first", [1], {"x": 2})
    assert (made.conditions.executortype, made.conditions.colonyname) == ("gpu", "dev")
    assert made.maxexectime == 5
    assert spec == Spec(maxexectime=5, conditions=Conditions(executortype="gpu")), "not changed"


def circle() -> list[Task]:
    a, b, c, d = (task(name) for name in "abcd")
    a >> b >> c >> d
    d >> b
    return [a, b, c, d]


@pytest.mark.parametrize(
    ("tasks", "told"),
    [
        ([], "no steps"),
        ([task("f"), task("f")], "two steps are called 'f'"),
        ([task("f", spec=Spec(conditions=Conditions(dependencies=["g"])))], "f follows g, which"),
        (circle(), "wait for each other: b >> c >> d >> b"),
        ([task("f", spec=Spec(conditions=Conditions(dependencies=["f"])))], "f >> f"),
    ],
)
def test_what_no_server_could_run_is_refused(tasks: list[Task], told: str) -> None:
    with pytest.raises(WrongWorkflow, match=told):
        Workflow(*tasks).specs("dev")


def test_a_thousand_steps_are_checked_at_once() -> None:
    steps = [task("f", name=f"s{number}") for number in range(1_000)]
    for one, other in pairwise(steps):
        one >> other
    assert len(Workflow(*steps).specs("dev")) == 1_000
