"""Exit codes, and the error that ends a command with one."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import click

from cli.core.terminal import print_error
from colonyd.errors import ColonyError, NotPermitted, NotThere, WrongSetting

P = ParamSpec("P")
T = TypeVar("T")

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
        print_error(f"error: {self.message}")
        if self.next_step:
            print_error(f"  next: {self.next_step}")


_CODES = ((NotPermitted, DENIED), (NotThere, NOT_FOUND), (WrongSetting, USAGE))


def failure_of(error: ColonyError) -> Failure:
    """Return the error of the package `colonyd` as one for people at a terminal."""
    code = next((code for kind, code in _CODES if isinstance(error, kind)), FAILED)
    return Failure(error.message, code=code, next_step=error.next_step)


_BY_ERRNO = {
    errno.EACCES: "`ls -ld` shows whose it is: run this as that user, or choose another place",
    errno.EPERM: "`ls -ld` shows whose it is: run this as that user, or choose another place",
    errno.EROFS: "choose another place, or mount this one for writing",
    errno.ENOSPC: "make room where it writes: its output, the home, or a file that was named",
    errno.EDQUOT: "make room where it writes: its output, the home, or a file that was named",
    errno.EIO: "is the disk broken? `dmesg` shows what the kernel says",
}


def failure_of_system(error: OSError) -> Failure:
    """Return an error of the system as one for people. A write that fails names no file."""
    where = f"{error.filename}: " if error.filename is not None else ""
    return Failure(
        f"{where}{error.strerror or error}",
        next_step=_BY_ERRNO.get(error.errno or 0, "is this the right place?"),
    )


def failing(function: Callable[P, T]) -> Callable[P, T]:
    """Have a function raise Failure where the package `colonyd` raises ColonyError."""

    @wraps(function)
    def told(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except ColonyError as error:
            raise failure_of(error) from None

    return told
