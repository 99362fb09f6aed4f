"""What runs the processes of one function: a shell command, a container, a Slurm job, or a function
in Python.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import anyio

from colonyd.rpc import Signed
from colonyd.settings import Settings
from colonyd.worker.livelog import LiveLog

MOST_JSON = 12_000_000  # bytes of an output as JSON: with base64 it fits into rpc.max_body, 16 MiB
_MOST_ERROR = 12_000  # characters of one error
_MOST_ERRORS = 100


@dataclass(frozen=True)
class Ending:
    """The end of a process: its output, or the errors to report."""

    out: list[Any]
    errors: list[str]

    @property
    def ok(self) -> bool:
        """Return whether the process was successful."""
        return not self.errors

    def sendable(self) -> Ending:
        """Return it as a server can take it: errors cut to their bounds, and an output that is too
        large, or has no form in JSON, replaced by an error.
        """
        if self.errors:
            # Text from outside, such as the name of a file, may have surrogates.
            texts = (str(each)[:_MOST_ERROR] for each in self.errors[:_MOST_ERRORS])
            return Ending([], [text.encode(errors="replace").decode() for text in texts])
        try:
            # As the call that sends it: msgspec would write NaN as null.
            text = json.dumps(self.out, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
            size = len(text.encode())
        except (TypeError, ValueError, RecursionError) as error:
            return Ending([], [f"the output has no form in JSON: {error}"])
        if size > MOST_JSON:
            return Ending([], [f"the output is larger than {MOST_JSON} bytes as JSON"])
        return self


@dataclass
class Execution:
    """A process that this executor runs now."""

    process: Mapping[str, Any]  # as the server sent it
    signed: Signed  # calls with the executor's key
    feed: LiveLog  # lines for the process's log
    settings: Settings | None = None  # of the colony, for handlers that make clients
    resumed: bool = False  # a worker that was stopped or killed began it
    # Whether it is no longer ours: cancelled, past its deadline, or given to another executor.
    withdrawn: bool = False
    # Set when nobody needs to wait any more for what runs: the worker leaves.
    released: anyio.Event = field(default_factory=anyio.Event)

    @property
    def id(self) -> str:
        """Return the id of the process."""
        return str(self.process["processid"])

    @property
    def spec(self) -> Mapping[str, Any]:
        """Return the function spec."""
        spec = self.process.get("spec")
        return spec if isinstance(spec, Mapping) else {}

    @property
    def function(self) -> str:
        """Return the name of the function."""
        return str(self.spec.get("funcname"))

    @property
    def args(self) -> list[Any]:
        """Return the arguments: the spec's, then in a workflow the outputs of the nodes before."""
        given = (self.spec.get("args"), self.process.get("in"))
        return [value for values in given if isinstance(values, list) for value in values]

    @property
    def kwargs(self) -> Mapping[str, Any]:
        """Return the named arguments."""
        named = self.spec.get("kwargs")
        return named if isinstance(named, Mapping) else {}

    def stderr(self, data: bytes) -> None:
        """Log lines: each goes to the process's log about a second later, within its bounds."""
        self.feed.stderr(data)

    def progress(self, data: bytes) -> None:
        """Tell progress: each line replaces the one before."""
        self.feed.progress(data)


def line_of_error(error: BaseException) -> str:
    """Return the class and the text of an exception, whose text may itself raise one."""
    try:
        text = str(error)
    except Exception as another:
        text = f"its text raised {type(another).__name__}"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class Handler(Protocol):
    """Runs the processes of one function."""

    @property
    def reruns(self) -> bool:
        """Return whether a process that a killed worker leaves is run again by one that starts."""

    @property
    def resumes(self) -> bool:
        """Return whether what runs survives the worker.

        When the worker stops, the handler is cancelled and the process stays running; a worker that
        starts hands it to the handler again, as `resumed`.
        """

    async def __call__(self, execution: Execution) -> Ending:
        """Run one process to its end. Cancelled when it is withdrawn, and when the worker leaves.

        An exception fails the process.
        """
