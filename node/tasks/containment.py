"""Containment: the failure of one task or one request must not end the daemon.

A task whose exception leaves it ends its nursery, and with that everything. Expected errors are
caught where they are expected; here are the unexpected ones, such as a MemoryError. Cancellation is
never caught.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import trio

from node.host.log import get_logger

_PAUSE = (1.0, 60.0)  # seconds until a failed task is started again; doubles
_STABLE = 60.0  # seconds after which earlier failures no longer count
_ADVICE = "the daemon goes on; if it comes again, report it with this traceback"

log = get_logger("containment")


@contextmanager
def contained(what: str, **context: object) -> Iterator[None]:
    """Log an unexpected exception of the block and go on after it.

    Exceptions that come together with a cancellation are logged, and the cancellation goes on.
    """
    try:
        yield
    except* Exception as group:
        log.exception(f"{what} failed", error=_reason(group), advice=_ADVICE, **context)


async def keep_going(
    name: str, task: Callable[..., Awaitable[None]], *, task_status: Any = None
) -> None:
    """Run `task` until it returns; start it again after an unexpected exception, with back-off.

    With `nursery.start` the task gets the status. An exception before it has started is raised: a
    daemon that can't start must say so.
    """
    status = _Status(task_status)
    failures, failed = 0, True
    while failed:
        began, failed, pause = trio.current_time(), False, 0.0
        try:
            await (task() if task_status is None else task(task_status=status))
        except* Exception as group:
            if task_status is not None and not status.done:
                raise
            failed = True
            failures = 1 if trio.current_time() - began > _STABLE else failures + 1
            pause = min(_PAUSE[1], _PAUSE[0] * 2.0 ** min(failures - 1, 16))
            log.exception(
                f"{name} failed and is started again",
                error=_reason(group),
                seconds=pause,
                advice=_ADVICE,
            )
        await trio.sleep(pause)


class _Status:
    """Passes on that a task has started, once."""

    def __init__(self, status: Any) -> None:
        self._status = status
        self.done = False

    def started(self, value: object = None) -> None:
        if not self.done:
            self.done = True
            self._status.started(value)


def _reason(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(_reason(each) for each in error.exceptions)
    return f"{type(error).__name__}: {error}"[:300]
