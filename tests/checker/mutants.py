"""Daemons that do wrong now and then: `python -m tests.checker.mutants NAME` and colonyd's words.

The checker must notice each.
"""

from __future__ import annotations

import itertools
import sys
from typing import Any

import msgspec

from cli.daemon.colonyd import main
from node.model.types import Process, State
from node.processes.assignment import Assigner
from node.processes.queue import Candidate
from node.processes.service import Processes

__all__ = ["MUTANTS"]

_EACH = 4  # one in so many goes wrong


def losing_submission() -> None:
    """A submission is answered, and not stored."""
    submit, numbers = Assigner.submit, itertools.count(1)

    async def lose(self: Assigner, process: Process, *more: Any) -> Process:
        if next(numbers) % _EACH == 0:
            return process
        return await submit(self, process, *more)

    Assigner.submit = lose  # type: ignore[method-assign, assignment]


def second_hand_out() -> None:
    """What somebody has is handed to somebody else."""
    assign, numbers = Assigner.assign, itertools.count(1)
    last: list[Process] = []

    async def again(self: Assigner, candidate: Candidate, *more: Any) -> Process:
        if last and next(numbers) % _EACH == 0:
            return last.pop()
        process = await assign(self, candidate, *more)
        last[:] = [process]
        return process

    Assigner.assign = again  # type: ignore[method-assign, assignment]


def forgotten_close() -> None:
    """A close is answered, and not stored."""
    close, numbers = Processes.close, itertools.count(1)

    async def forget(self: Processes, colony: str, pid: str, *more: Any, **fields: Any) -> Process:
        if next(numbers) % _EACH == 0:
            known = await self.load(colony, pid)
            assert known is not None
            return msgspec.structs.replace(known[0], state=State.SUCCESSFUL)
        return await close(self, colony, pid, *more, **fields)

    Processes.close = forget  # type: ignore[assignment]


def wrong_output() -> None:
    """An output is not the one that was given."""
    close, numbers = Processes.close, itertools.count(1)

    async def change(self: Processes, *more: Any, **fields: Any) -> Process:
        if fields.get("output") and next(numbers) % _EACH == 0:
            fields["output"] = ["another"]
        return await close(self, *more, **fields)

    Processes.close = change  # type: ignore[method-assign]


def forgotten_line() -> None:
    """A log line is answered, and not stored."""
    from node.streams import logs as logs

    write, numbers = logs.write, itertools.count(1)

    async def forget(client: Any, log: Any) -> None:
        if next(numbers) % _EACH != 0:
            await write(client, log)

    logs.write = forget


MUTANTS = {
    mutant.__name__: mutant
    for mutant in (
        losing_submission,
        second_hand_out,
        forgotten_close,
        wrong_output,
        forgotten_line,
    )
}

if __name__ == "__main__":
    MUTANTS[sys.argv.pop(1)]()
    main()
