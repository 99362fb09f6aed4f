"""The command lines of the modules here, and what options of them mean."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import NoReturn


class CommandLine(argparse.ArgumentParser):
    """A parser for a command whose help is shown as it is written; a mistake is told in a line."""

    def __init__(self, command: str, about: str | None) -> None:
        form = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=command, description=about, formatter_class=form)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and exit with 2."""
        self.exit(2, f"{self.prog}: {message}; see --help\n")

    def add_places(self, *, figures: str = "") -> None:
        """Add `--dir` and `--keep`, and `--json` when there are figures to write."""
        place = Path("/var/tmp")
        self.add_argument("--dir", type=directory, default=place, help="where the stores lie")
        self.add_argument("--keep", action="store_true", help="leave the homes and logs in place")
        if figures:
            self.add_argument("--json", type=file, help=f"also write {figures} to this file")


def directory(text: str) -> Path:
    """Return a directory that takes files. Raises ArgumentTypeError for anything else."""
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a directory")
    if not os.access(path, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(f"{text} may not be written to")
    return path


def file(text: str) -> Path:
    """Return the path of a file in such a directory. Raises ArgumentTypeError for others."""
    path = Path(text)
    return directory(str(path.parent)) / path.name


def named_pid(text: str) -> tuple[str, int]:
    """Return the parts of NAME=PID. Raises ArgumentTypeError when it is not of this form."""
    name, _, pid = text.partition("=")
    if not name or not pid.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PID")
    return name, int(pid)
