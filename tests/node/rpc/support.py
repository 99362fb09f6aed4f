"""How long one task keeps all others waiting."""

from __future__ import annotations

import time

import trio


class Steps(trio.abc.Instrument):
    """The longest time of this thread in one turn of a task, in seconds of the CPU."""

    def __init__(self) -> None:
        self.longest, self._began = 0.0, time.thread_time()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._began = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.longest = max(self.longest, time.thread_time() - self._began)
