"""Wake-ups and waits that tasks share."""

from __future__ import annotations

import trio


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
