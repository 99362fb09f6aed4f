"""Workflows built in Python: tasks that follow each other, checked before anything is sent.

    load, clean, sum = task("load"), task("clean"), task("sum")
    load >> clean >> sum
    workflow = Workflow(load, clean, sum)

`a >> [b, c]` lets both follow `a`, and `[b, c] >> d` lets `d` follow both. Nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, overload

import msgspec

from colonyd.client.values import Spec
from colonyd.errors import ColonyError


class WrongWorkflow(ColonyError):
    """A workflow that no server could run."""


class Task:
    """One step of a workflow; `after` are the names of the steps that it follows."""

    def __init__(self, spec: Spec) -> None:
        """Take a spec whose `nodename` is the name of the step."""
        self.spec = spec
        self.before: list[Task] = []

    @property
    def name(self) -> str:
        """Return the name, which is unique in the workflow."""
        return self.spec.nodename

    def follows(self, *others: Task) -> None:
        """Let this step begin only after others are successful; it gets their outputs."""
        self.before.extend(each for each in others if each not in self.before)

    @overload
    def __rshift__(self, other: Task) -> Task: ...

    @overload
    def __rshift__(self, other: Sequence[Task]) -> Sequence[Task]: ...

    def __rshift__(self, other: Task | Sequence[Task]) -> Task | Sequence[Task]:
        """Let another step, or each of several, follow this one; return those."""
        for each in [other] if isinstance(other, Task) else other:
            each.follows(self)
        return other

    def __rrshift__(self, others: Iterable[Task]) -> Task:
        """Let this step follow all of several."""
        self.follows(*others)
        return self

    def __repr__(self) -> str:
        return f"<Task {self.name}>"


def task(
    funcname: str, *args: Any, name: str = "", spec: Spec | None = None, **kwargs: Any
) -> Task:
    """Return a step that calls a function; its name is the function's unless one is given.

    `spec` has everything else, such as its conditions.
    """
    given = spec or Spec()
    made = msgspec.structs.replace(
        given,
        funcname=funcname,
        nodename=name or given.nodename or funcname,
        args=[*given.args, *args],
        kwargs={**given.kwargs, **kwargs},
    )
    return Task(made)


class Workflow:
    """Steps and their order."""

    def __init__(self, *tasks: Task) -> None:
        """Take all steps, in any order."""
        self.tasks = [*tasks]

    def add(self, *tasks: Task) -> None:
        """Add steps."""
        self.tasks.extend(tasks)

    def check(self) -> None:
        """Raise WrongWorkflow if no server could run it: names used twice, unknown steps, a
        circle.
        """
        if not self.tasks:
            raise WrongWorkflow("the workflow has no steps", next_step="give it some tasks")
        names: set[str] = set()
        for each in self.tasks:
            if not each.name:
                raise WrongWorkflow("a step has no name", next_step='give it one: name="..."')
            if each.name in names:
                raise WrongWorkflow(
                    f"two steps are called {each.name!r}",
                    next_step='give each a name of its own: task("...", name="...")',
                )
            names.add(each.name)
        before = {each.name: _before(each) for each in self.tasks}
        for name, others in before.items():
            for other in others:
                if other not in names:
                    raise WrongWorkflow(
                        f"{name} follows {other}, which is no step of the workflow",
                        next_step=f"add {other} to it",
                    )
        if circle := _circle(before):
            raise WrongWorkflow(
                f"the steps wait for each other: {' >> '.join(circle)}",
                next_step="remove one of these dependencies",
            )

    def specs(self, colony: str) -> list[Spec]:
        """Return the specs to submit, dependencies set. Raises WrongWorkflow."""
        self.check()
        return [
            msgspec.structs.replace(
                each.spec,
                conditions=msgspec.structs.replace(
                    each.spec.conditions, colonyname=colony, dependencies=_before(each)
                ),
            )
            for each in self.tasks
        ]


def _before(step: Task) -> list[str]:
    return list(dict.fromkeys([*step.spec.conditions.dependencies, *(b.name for b in step.before)]))


def _circle(before: dict[str, list[str]]) -> list[str]:
    """Return the names along a circle of dependencies, [] if there is none."""
    left = {name: set(others) for name, others in before.items()}
    after: dict[str, list[str]] = {}
    for name, others in left.items():
        for other in others:
            after.setdefault(other, []).append(name)
    free = [name for name, others in left.items() if not others]
    while free:
        done = free.pop()
        del left[done]
        for name in after.get(done, ()):
            left[name].discard(done)
            if not left[name]:
                free.append(name)
    if not left:
        return []
    # Each one that is left waits for another that is left: going back along these ends in a circle.
    path = [next(iter(left))]
    while True:
        other = min(left[path[-1]])
        if other in path:
            return [other, *reversed(path[path.index(other) :])]
        path.append(other)
