"""Shell commands as the functions of an executor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from cli.worker.subprocess import OutputSink, Reaper, run_command
from colonyd.worker.handler import Ending, Execution


@dataclass(frozen=True)
class ShellHandler:
    """Runs a command for each process, with its arguments as JSON on stdin."""

    command: str
    environ: Mapping[str, str]
    guard: Reaper | None = None
    reruns: bool = False
    resumes = False

    async def __call__(self, execution: Execution) -> Ending:
        """Run the command; its stdout is the output."""
        hearing = OutputSink(execution.stderr, execution.progress)
        environ = {**self.environ, **variables(execution)}
        return await run_command(
            self.command, execution.args, environ, hearing=hearing, guard=self.guard
        )


def variables(execution: Execution) -> dict[str, str]:
    """Return the variables that tell a command of its process.

    The spec's own `env` is not among them: a submitter must not set PATH or LD_PRELOAD here.
    """
    return {
        "COLONYD_PROCESS_ID": execution.id,
        "COLONYD_FUNCTION": execution.function,
        "COLONYD_KWARGS": json.dumps(execution.kwargs),
    }
