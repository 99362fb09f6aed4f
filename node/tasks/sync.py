"""Wake-ups and waits that tasks share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import trio

from node.host.log import get_logger

log = get_logger("tasks")
T = TypeVar("T")
R = TypeVar("R")


async def gather(work: Callable[[T], Awaitable[R]], items: Iterable[T], most: int) -> list[R]:
    """Return the results of `work` for all items, in order; at most `most` are worked on at once.

    Raises the first error, alone, after all work has ended; others are logged.
    """
    slots, results, errors = trio.CapacityLimiter(most), dict[int, R](), list[Exception]()

    async def one(place: int, item: T) -> None:
        try:
            async with slots:
                results[place] = await work(item)
        except Exception as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        for place, item in enumerate(items):
            nursery.start_soon(one, place, item)
    if errors:
        for error in errors[1:]:
            log.warning("one of several failed", error=repr(error))
        raise errors[0]
    return [results[place] for place in sorted(results)]


class WakeUp:
    """Wakes waiting tasks. Take `event` before reading the state that may change, then wait
    for it.
    """

    def __init__(self) -> None:
        self.event = trio.Event()

    def wake(self) -> None:
        """Wake all waiting tasks."""
        self.event.set()
        self.event = trio.Event()


class WakeUps(dict[str, WakeUp]):
    """WakeUps by name; one is made when it is first asked for."""

    def __missing__(self, name: str) -> WakeUp:
        wakeup = self[name] = WakeUp()
        return wakeup

    def wake(self) -> None:
        """Wake the tasks that wait at any of them."""
        for wakeup in list(self.values()):
            wakeup.wake()
