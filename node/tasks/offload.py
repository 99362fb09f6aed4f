"""Work on large values in a thread, so that the event loop goes on.

Only for work that computes values from values: no waiting, no shared state. One long call into C
holds the loop all the same, so such calls are bounded where they are made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import trio

_SMALL = 32_768  # bytes that are worked on at once: about a millisecond
NODE = 100  # bytes that a node of a workflow counts as

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


async def apart(size: int, work: Callable[[*Ts], T], *args: *Ts) -> T:
    """Return `work(*args)`, which is about `size` bytes of work; raises what it raises."""
    if size <= _SMALL:
        return work(*args)
    # A thread: Python lets the loop run again after 5 ms; starting a process would take longer.
    return await trio.to_thread.run_sync(work, *args)
