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


class Bells(dict[str, Bell]):
    """Bells by name; one is made when it is first asked for."""

    def __missing__(self, name: str) -> Bell:
        bell = self[name] = Bell()
        return bell

    def ring(self) -> None:
        """Wake all who wait at any of them."""
        for bell in list(self.values()):
            bell.ring()
