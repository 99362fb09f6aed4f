"""Wake-ups and waits that tasks share."""

from __future__ import annotations

import trio


class Bell:
    """Wakes those who wait. Take `event` before looking at what may change, then wait for it."""

    def __init__(self) -> None:
        self.event = trio.Event()

    def ring(self) -> None:
        """Wake all."""
        self.event.set()
        self.event = trio.Event()
