"""Each part of what follows from a step of the clock is taken away, and its test must notice."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from node.etcd.pressure import Pressure
from node.host import clock as steps
from node.host.clock import Clock
from node.timers import retime as retiming
from node.timers.retime import Retiming
from tests.node.timers import test_clock_steps as named
from tests.support.clocked import World, world

Patch = Callable[[pytest.MonkeyPatch], None]

_due = Clock.due


def by_the_wall(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines are judged by the wall clock, whatever happened to it."""
    monkeypatch.setattr(Clock, "late", lambda self: self.now())


def by_the_old_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines are judged by the clock as it was before the step, also the new ones."""
    monkeypatch.setattr(Clock, "late", lambda self: self.judged)


def without_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deadline of the future is waited for."""
    monkeypatch.setattr(Clock, "due", lambda self, deadline, limit: _due(self, deadline, 0))


def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was submitted in the future stands there."""

    async def nothing(self: Retiming) -> None:
        pass

    monkeypatch.setattr(steps, "place", lambda prioritytime, priority, now: prioritytime)
    monkeypatch.setattr(Retiming, "_place", nothing)


def in_memory_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store keeps the times of the wrong clock."""

    async def nothing(self: Retiming) -> int:
        return 0

    monkeypatch.setattr(Retiming, "_rewrite", nothing)


def for_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    """The times of other daemons are written anew, too."""
    own = property(lambda self: True, lambda self, value: None)
    monkeypatch.setattr(Pressure, "own", own, raising=False)


def always_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clocks are written down each second."""
    monkeypatch.setattr(retiming, "_KEEP", 0.0)


def plain(
    patch: Patch, test: Callable[[], None]
) -> tuple[Patch, Callable[[World, pytest.MonkeyPatch], Awaitable[None]]]:
    async def run(dev: World, monkeypatch: pytest.MonkeyPatch) -> None:
        test()

    return patch, run


def stored(
    patch: Patch, test: Callable[..., Awaitable[None]], **more: Any
) -> tuple[Patch, Callable[[World, pytest.MonkeyPatch], Awaitable[None]]]:
    async def run(dev: World, monkeypatch: pytest.MonkeyPatch) -> None:
        await test(dev, **more)

    return patch, run


MUTANTS = [
    plain(by_the_wall, named.test_a_deadline_is_due_when_its_limit_has_passed),
    plain(by_the_old_clock, named.test_a_step_is_told_until_it_is_dealt_with),
    plain(without_limit, named.test_a_deadline_is_due_when_its_limit_has_passed),
    stored(anywhere, named.test_what_was_submitted_ahead_keeps_its_order_for_good),
    stored(
        in_memory_only, named.test_deadlines_keep_what_is_left_of_them, by=-named.YEAR, mended=True
    ),
    stored(in_memory_only, named.test_a_host_that_was_corrected_while_it_was_off),
    stored(for_everybody, named.test_a_step_of_one_host_is_nothing_to_a_store_of_several),
    (always_kept, named.test_the_clocks_are_kept_rarely),
]


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant[0].__name__)
async def test_each_part_is_missed(
    mutant: tuple[Patch, Callable[..., Awaitable[None]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    patch, run = mutant
    patch(monkeypatch)
    with pytest.RaisesGroup(AssertionError, flatten_subgroups=True, allow_unwrapped=True):
        async with world(tmp_path) as dev:
            await run(dev, monkeypatch)
