"""Whoever looks at what a worker runs."""

from __future__ import annotations


class Watcher:
    """What a worker runs, for whoever looks at it; this one shows nothing."""

    def begin(self, processid: str, name: str) -> None:
        """Show a process that begins."""

    def tell(self, processid: str, text: str) -> None:
        """Show what a process says about its progress."""

    def end(self, processid: str) -> None:
        """Show a process no longer."""
