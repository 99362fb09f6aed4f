"""How a worker leaves: it finishes what it has begun, within some seconds."""

from __future__ import annotations

import signal
from collections.abc import Callable

import anyio
import anyio.abc


async def leave_on_signal(
    stop: anyio.Event,
    scope: anyio.CancelScope,
    grace: float,
    note: Callable[[str], None],
    *,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Set `stop` at the first SIGTERM or SIGINT: no process is taken any more.

    Cancel `scope` `grace` seconds later, or at the second signal.
    """
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for _ in signals:
            if stop.is_set():
                scope.cancel()
                return
            stop.set()
            scope.deadline = anyio.current_time() + grace
            note("finishing; once more to leave at once")
