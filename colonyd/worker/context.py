"""What a function in Python knows of its process, and may do for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio.from_thread
import msgspec

from colonyd.client.client import Client
from colonyd.client.values import Message
from colonyd.errors import ColonyError
from colonyd.replies import parse_time
from colonyd.worker.handler import Execution

T = TypeVar("T")
_MOST_PROGRESS = 200  # characters


class Withdrawn(Exception):
    """The process is not this worker's any more, or the worker leaves: the function should end."""


class _About:
    """What both contexts tell of the process."""

    def __init__(self, execution: Execution, attempt: int = 1) -> None:
        self.execution = execution
        self.attempt = attempt  # 1 for the first; more after a failure that the function retries

    @property
    def id(self) -> str:
        """Return the id of the process."""
        return self.execution.id

    @property
    def function(self) -> str:
        """Return the name under which the function was called."""
        return self.execution.function

    @property
    def process(self) -> Mapping[str, Any]:
        """Return the process as the server sent it."""
        return self.execution.process

    @property
    def env(self) -> Mapping[str, str]:
        """Return the variables of the function spec; whoever submitted it chose them."""
        found = self.execution.spec.get("env")
        return found if isinstance(found, Mapping) else {}

    @property
    def deadline(self) -> datetime | None:
        """Return when the server takes the process away, by the server's clock; None for never."""
        return parse_time(self.execution.process.get("execdeadline"))


class Context(_About):
    """The context of an async function. Its methods are for the task that runs the function."""

    def log(self, text: str) -> None:
        """Log lines: they are in the process's log about a second later, within its bounds."""
        self.execution.stderr(f"{text}\n".encode(errors="replace"))

    def progress(self, told: str | float) -> None:
        """Tell progress: a text such as "3 of 10", or a share from 0 to 1."""
        text = told if isinstance(told, str) else f"{100 * told:.0f}%"
        line = " ".join(text[:_MOST_PROGRESS].split())
        self.execution.progress(f"{line}\n".encode(errors="replace"))

    async def output(self, *values: Any) -> None:
        """Set the output so far; the result of the function replaces it."""
        await self._call("setoutputmsg", {"out": msgspec.to_builtins(list(values), str_keys=True)})

    async def attribute(self, key: str, value: str) -> None:
        """Add a key and value to the process."""
        attribute = {
            "targetid": self.id,
            "targetcolonyname": self._colony,
            "attributetype": 1,
            "key": key,
            "value": value,
        }
        await self.execution.signed.call("addattributemsg", {"attribute": attribute})

    @asynccontextmanager
    async def colony(self) -> AsyncIterator[Client]:
        """Give a client of the colony that signs as this executor: for files, channels, and work
        of its own.
        """
        if self.execution.settings is None:
            raise ColonyError("this worker has no settings of its colony")
        async with Client.of(self.execution.signed, self.execution.settings) as client:
            yield client

    async def put_file(self, content: bytes | Path, label: str, name: str) -> str:
        """Upload a file as the newest version of LABEL/NAME, and return its id."""
        async with self.colony() as colony:
            return await colony.put_file(content, label, name)

    async def get_file(self, label: str, name: str, target: Path) -> None:
        """Download the newest version of LABEL/NAME to `target`, which must not exist yet."""
        async with self.colony() as colony:
            await colony.get_file(label, name, target)

    async def send(self, channel: str, payload: bytes | str, kind: str = "") -> None:
        """Send a message to a channel of the process that its spec names."""
        async with self.colony() as colony:
            await colony.send(self.id, channel, payload, kind=kind)

    async def messages(self, channel: str, *, after: int = 0) -> list[Message]:
        """Return the messages of a channel of the process, after the first `after`."""
        async with self.colony() as colony:
            return await colony.read(self.id, channel, after=after)

    @property
    def _colony(self) -> str:
        conditions = self.execution.spec.get("conditions")
        return str(conditions.get("colonyname", "")) if isinstance(conditions, Mapping) else ""

    async def _call(self, kind: str, fields: dict[str, Any]) -> Any:
        return await self.execution.signed.call(kind, {"processid": self.id, **fields})


class BlockingContext(_About):
    """The context of a sync function, for the thread that runs it.

    Its methods raise Withdrawn once the process is taken away or the worker leaves.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context.execution, context.attempt)
        self._context = context
        self.cancelled = self.ended = False

    def check(self) -> None:
        """Raise Withdrawn when the function should end: nobody takes its result."""
        if self.cancelled:
            raise Withdrawn("the process is not this worker's any more")

    def log(self, text: str) -> None:
        """As `Context.log`."""
        self.check()
        anyio.from_thread.run_sync(self._context.log, text)

    def progress(self, told: str | float) -> None:
        """As `Context.progress`."""
        self.check()
        anyio.from_thread.run_sync(self._context.progress, told)

    def output(self, *values: Any) -> None:
        """As `Context.output`."""
        self._wait(self._context.output, *values)

    def attribute(self, key: str, value: str) -> None:
        """As `Context.attribute`."""
        self._wait(self._context.attribute, key, value)

    def put_file(self, content: bytes | Path, label: str, name: str) -> str:
        """As `Context.put_file`."""
        return self._wait(self._context.put_file, content, label, name)

    def get_file(self, label: str, name: str, target: Path) -> None:
        """As `Context.get_file`."""
        self._wait(self._context.get_file, label, name, target)

    def send(self, channel: str, payload: bytes | str, kind: str = "") -> None:
        """As `Context.send`."""
        self._wait(self._context.send, channel, payload, kind)

    def messages(self, channel: str, *, after: int = 0) -> list[Message]:
        """As `Context.messages`, after the first `after`."""
        return self._wait(partial(self._context.messages, channel, after=after))

    def _wait(self, method: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
        self.check()
        return anyio.from_thread.run(method, *args)
