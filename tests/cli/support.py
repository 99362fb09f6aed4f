"""`colony` and `colony worker` as processes, at a real daemon."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import click

from cli.main import main
from tests.support.daemons import REPOSITORY, Daemon

COLONY = [sys.executable, "-m", "cli.main"]
ENVIRON = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "PYTHONPATH": str(REPOSITORY)}


class Worker:
    """A `colony worker` process; `event` waits for what it says."""

    def __init__(self, command: list[str], environ: dict[str, str] = ENVIRON) -> None:
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environ, cwd="/"
        )
        self.seen: list[dict[str, Any]] = []

    def event(self, *names: str) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.seen.append(json.loads(line))
            if self.seen[-1]["event"] in names:
                return self.seen[-1]
        raise AssertionError(f"no {names} in {self.seen}")


def colony(daemon: Daemon, *args: str) -> subprocess.CompletedProcess[str]:
    command = [*COLONY, "--home", str(daemon.home), "--server", f"127.0.0.1:{daemon.port}", *args]
    return subprocess.run(
        command, capture_output=True, text=True, env=ENVIRON, cwd="/", check=False, timeout=120
    )


def shown(daemon: Daemon, processid: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        colony(daemon, "process", "show", processid, "--json").stdout
    )
    return found


def tree(
    command: click.Command = main, path: tuple[str, ...] = ()
) -> Iterator[tuple[str, click.Command]]:
    """Every command below `command`, with its words."""
    if path:
        yield " ".join(path), command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from tree(inner, (*path, name))


TREE = dict(tree())
