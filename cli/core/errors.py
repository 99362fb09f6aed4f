"""Exit codes, and the error that ends a command with one."""

from __future__ import annotations

from typing import Any

import click

from cli.core.terminal import print_note

OK, FAILED, USAGE, NOT_FOUND, DENIED, TIMEOUT, UNREACHABLE = 0, 1, 2, 3, 4, 5, 69
EXIT_CODES = (
    "0 ok, 1 failed (or the process failed), 2 wrong usage, 3 not found, 4 denied, "
    "5 timeout, 69 daemon not reachable."
)


class Failure(click.ClickException):
    """An error for people: what happened, what to do next, and the exit code."""

    def __init__(self, message: str, *, code: int = FAILED, next_step: str = "") -> None:
        super().__init__(message)
        vars(self)["exit_code"] = code  # a class variable in click's types, read per instance
        self.next_step = next_step

    def show(self, file: Any = None) -> None:
        """Print to stderr; stdout carries results only."""
        print_note(f"error: {self.message}")
        if self.next_step:
            print_note(f"  next: {self.next_step}")
