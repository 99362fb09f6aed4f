"""Workers in Python: an executor whose functions are functions of the program."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, overload

import anyio
import anyio.abc
import trio

from colonyd.errors import ColonyError, RpcError
from colonyd.keys import PrivateKey
from colonyd.places import key_file
from colonyd.rpc import Unreachable
from colonyd.settings import Settings
from colonyd.worker.engine import Engine
from colonyd.worker.functions import FunctionHandler, Retry, Signature
from colonyd.worker.leaving import leave_on_signal
from colonyd.worker.place import alone, default_name, executor_key, results_of
from colonyd.worker.registration import Registration, Report, line_of
from colonyd.worker.results import Results

F = TypeVar("F", bound=Callable[..., Any])
MOST_SLOTS = 1024


class Worker:
    """An executor of a colony. Declare functions with `function`, then `run` it, or `serve` it in
    a loop of your own.

        worker = Worker()

        @worker.function
        def upper(text: str) -> str:
            return text.upper()

        worker.run()
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        type: str = "cli",
        slots: int = 1,
        settings: Settings | None = None,
        state: Path | None = None,
        key: PrivateKey | None = None,
        approve: bool = True,
        grace: float = 30.0,
        report: Report | None = None,
    ) -> None:
        """Name the executor: by default after the host and `type`.

        `slots` processes run at a time, sync functions in as many threads. `settings` say where the
        colony is; by default they are found as the `colony` command finds them. `state` is the
        directory for its key and for results that are not acknowledged yet. `key` is its private
        key, by default one that it makes and keeps there. With `approve` it approves itself if it
        can read the key of the colony's owner. When it is to stop, it finishes what it has begun
        for `grace` seconds. `report` gets what happens, as name and details.
        """
        if not 1 <= slots <= MOST_SLOTS:
            raise ValueError(f"slots: 1 to {MOST_SLOTS}")
        self.name = name or default_name(type)
        self.type = type
        self._slots, self._settings, self._state, self._key = slots, settings, state, key
        self._approve, self._grace, self._report = approve, grace, report or _tell
        self._functions: dict[str, tuple[Callable[..., Any], Signature, Retry, bool]] = {}
        self._stop: anyio.Event | None = None
        self._ask: Callable[[], object] | None = None  # sets `_stop`, from any thread
        self._stopped = False  # `stop` was called, and no `serve` has ended since

    @overload
    def function(self, function: F, /) -> F: ...

    @overload
    def function(
        self,
        name: str | None = None,
        /,
        *,
        retry_on: type[Exception] | tuple[type[Exception], ...] = (),
        attempts: int = 3,
        pause: float = 1.0,
        rerun: bool = False,
    ) -> Callable[[F], F]: ...

    def function(
        self,
        name: Any = None,
        /,
        *,
        retry_on: type[Exception] | tuple[type[Exception], ...] = (),
        attempts: int = 3,
        pause: float = 1.0,
        rerun: bool = False,
    ) -> Any:
        """Declare a function of this executor, under its own name or `name`.

        Its arguments are converted to the annotated types, with msgspec: a wrong one fails the
        process, which then names it. Its result is the output. After an exception of `retry_on` it
        is called again, `attempts` times in all, `pause` seconds later and then twice that. Other
        exceptions fail the process. With `rerun`, a process that was interrupted because the worker
        was killed is run again when it starts; without, it fails, since it may have had effects. A
        parameter annotated with `Context` (in sync functions
        `BlockingContext`) gets what the function may know of its process.
        """
        on = retry_on if isinstance(retry_on, tuple) else (retry_on,)
        retry = Retry(on, attempts if on else 1, pause)

        def declare(function: F) -> F:
            called = name if isinstance(name, str) else getattr(function, "__name__", "")
            if not called:
                raise TypeError(f"{function!r} has no name: write @worker.function('NAME')")
            if called in self._functions:
                raise ValueError(f"{called}: declared twice")
            self._functions[called] = (function, Signature.of(function, called), retry, rerun)
            return function

        return declare(name) if callable(name) else declare

    def run(self, *, backend: str = "trio") -> None:
        """Work until SIGTERM or SIGINT. `backend` is the loop of async functions: trio or asyncio.

        Raises ColonyError, RpcError, Unreachable.
        """
        if trio.lowlevel.in_trio_run() or _asyncio_runs():
            raise ColonyError(
                "an event loop runs in this thread already, as in a notebook",
                next_step="use `await worker.serve()`",
            )
        if threading.current_thread() is not threading.main_thread():
            raise ColonyError(
                "run is for the main thread, which is the one that gets signals",
                next_step="in another thread, call anyio.run(worker.serve)",
            )
        try:
            anyio.run(self._run, backend=backend)
        except* (ColonyError, RpcError, Unreachable) as group:
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            raise error from None

    async def _run(self) -> None:
        async with anyio.create_task_group() as group:
            stop = anyio.Event()
            note: Callable[[str], None] = lambda text: self._report(text, {})  # noqa: E731
            await group.start(leave_on_signal, stop, group.cancel_scope, self._grace, note)
            await self._serve(stop)
            group.cancel_scope.cancel()

    def stop(self) -> None:
        """Take no more processes; `serve` returns when those in hand are finished.

        Any thread may call it, as a sync function does. Called before `serve`, it counts for that.
        """
        self._stopped = True
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            if (ask := self._ask) is not None:
                ask()

    async def serve(
        self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Work until `stop`, in the caller's loop; started when the colony knows the functions.

        When it is cancelled, the processes in hand are closed as failed.
        Raises ColonyError, RpcError, Unreachable.
        """
        await self._serve(anyio.Event(), task_status)

    async def _serve(
        self,
        stop: anyio.Event,
        task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        if self._stop is not None:
            raise ColonyError("the worker serves already", next_step="make another Worker for that")
        self._stop, self._ask = stop, _in_this_loop(stop.set)
        if self._stopped:
            stop.set()
        try:
            await self._work(stop, task_status)
        finally:
            self._stop, self._ask, self._stopped = None, None, False

    async def _work(self, stop: anyio.Event, task_status: anyio.abc.TaskStatus[None]) -> None:
        if not self._functions:
            raise ColonyError(
                "the worker has no functions", next_step="declare one with @worker.function"
            )
        settings = self._settings or Settings.find()
        state = self._state or settings.state()
        threads = anyio.CapacityLimiter(self._slots)
        handlers = {
            name: FunctionHandler(function, signature, retry, threads, rerun)
            for name, (function, signature, retry, rerun) in self._functions.items()
        }
        described = {name: handler.signature.described() for name, handler in handlers.items()}
        with alone(state, settings.colony, self.name, self.type):
            key = self._key or executor_key(key_file(state, f"executor-{self.name}"))
            async with settings.client() as client:

                def report(event: str, details: Mapping[str, object]) -> None:
                    if event == "ready":
                        task_status.started()
                    self._report(event, details)

                registration = Registration(
                    client,
                    settings.colony,
                    self.name,
                    self.type,
                    described,
                    key,
                    settings.owner_key,
                    self._approve,
                    report,
                    stop,
                )
                results = Results(results_of(state, self.name))
                engine = Engine(registration, handlers, results, self._slots, settings=settings)
                await engine.work()


def _asyncio_runs() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _in_this_loop(work: Callable[[], None]) -> Callable[[], object]:
    """Return a function that has the running loop do `work` soon, from whatever thread."""
    if trio.lowlevel.in_trio_run():
        token = trio.lowlevel.current_trio_token()
        return lambda: token.run_sync_soon(work)
    loop = asyncio.get_running_loop()
    return lambda: loop.call_soon_threadsafe(work)


def _tell(event: str, details: Mapping[str, object]) -> None:
    """Write what happens to stderr, a line each."""
    print(line_of(event, details), file=sys.stderr, flush=True)
