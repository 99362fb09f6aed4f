"""The client for programs without an event loop, and for their threads.

    with BlockingClient() as colony:
        print(colony.run("add", 1, 2))

Each method is that of `colonyd.client.client.Client`, which runs in a thread of its own, on trio.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal

from colonyd.client.client import Client, Job, WorkflowRun
from colonyd.client.values import Log, Process, Spec
from colonyd.client.workflow import Workflow
from colonyd.errors import ColonyError
from colonyd.keys import PrivateKey
from colonyd.settings import Settings

P = ParamSpec("P")
T = TypeVar("T")


class _Waiting(Generic[P, T]):
    """A method of the client that is called and waited for."""

    def __init__(self, method: Callable[Concatenate[Client, P], Coroutine[Any, Any, T]]) -> None:
        self._method = method
        self.__doc__ = method.__doc__

    def __get__(self, client: BlockingClient, owner: object = None) -> Callable[P, T]:
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            return client.wait_for(lambda inner: self._method(inner, *args, **kwargs))

        return call


class _Iterating(Generic[P, T]):
    """A method of the client that is iterated over."""

    def __init__(self, method: Callable[Concatenate[Client, P], AsyncIterator[T]]) -> None:
        self._method = method
        self.__doc__ = method.__doc__

    def __get__(self, client: BlockingClient, owner: object = None) -> Callable[P, Iterator[T]]:
        def call(*args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
            return client.iterate(lambda inner: self._method(inner, *args, **kwargs))

        return call


class BlockingJob:
    """A submitted process."""

    def __init__(self, colony: BlockingClient, job: Job) -> None:
        """Stand for `job`."""
        self._colony, self._job = colony, job

    @property
    def id(self) -> str:
        """Return the id of the process."""
        return self._job.id

    @property
    def process(self) -> Process:
        """Return the process as it was last seen."""
        return self._job.process

    def wait(self, timeout: float | None = None) -> Process:
        """Wait for the end, and return the process. Raises NotEnded."""
        return self._colony.wait_for(lambda _: self._job.wait(timeout))

    def result(self, timeout: float | None = None) -> Any:
        """Wait, and return the output. Raises ProcessFailed, NotEnded."""
        return self._colony.wait_for(lambda _: self._job.result(timeout))

    def cancel(self) -> None:
        """Cancel the process."""
        self._colony.wait_for(lambda _: self._job.cancel())

    def logs(self, *, follow: bool = True) -> Iterator[Log]:
        """Iterate over its log, with `follow` until its end."""
        return self._colony.iterate(lambda _: self._job.logs(follow=follow))


class BlockingRun:
    """A submitted workflow."""

    def __init__(self, colony: BlockingClient, run: WorkflowRun) -> None:
        """Stand for `run`."""
        self._colony, self._run = colony, run

    @property
    def id(self) -> str:
        """Return the id of the workflow."""
        return self._run.id

    def wait(self, timeout: float | None = None) -> dict[str, Any]:
        """Wait, and return outputs by names of steps. Raises WorkflowFailed, NotEnded."""
        return self._colony.wait_for(lambda _: self._run.wait(timeout))

    def steps(self) -> dict[str, Process]:
        """Return the processes as they are now, by names of steps."""
        return self._colony.wait_for(lambda _: self._run.steps())

    def cancel(self) -> None:
        """Cancel all steps that have not ended."""
        self._colony.wait_for(lambda _: self._run.cancel())


class BlockingClient:
    """A client of one colony, as a context manager; all threads may use it."""

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        server: str = "",
        colony: str = "",
        key: PrivateKey | None = None,
        timeout: float = 10.0,
    ) -> None:
        """Take the arguments of `Client`. Raises ColonyError."""
        self._client = Client(settings, server=server, colony=colony, key=key, timeout=timeout)
        self._stack = ExitStack()
        self._portal: BlockingPortal | None = None

    def __enter__(self) -> BlockingClient:
        _refuse_in_loop()
        self._portal = self._stack.enter_context(start_blocking_portal(backend="trio"))
        try:
            self._stack.enter_context(self._portal.wrap_async_context_manager(self._client))
        except BaseException:
            self._portal = None
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._stack.close()
        finally:
            self._portal = None

    @property
    def colony(self) -> str:
        """Return the colony's name."""
        return self._client.colony

    def wait_for(self, work: Callable[[Client], Coroutine[Any, Any, T]]) -> T:
        """Run async work with the client to its end, and return its result."""
        _refuse_in_loop()
        if self._portal is None:
            raise ColonyError(
                "the client is not open", next_step="use `with BlockingClient() as ...`"
            )

        async def done() -> T:
            return await work(self._client)

        return self._portal.call(done)

    def iterate(self, work: Callable[[Client], AsyncIterator[T]]) -> Iterator[T]:
        """Iterate over what async work with the client yields."""
        rows = work(self._client)

        async def following() -> tuple[T] | None:
            try:
                return (await anext(rows),)
            except StopAsyncIteration:
                return None

        try:
            while (found := self.wait_for(lambda _: following())) is not None:
                yield found[0]
        finally:
            close = getattr(rows, "aclose", None)
            if close is not None and self._portal is not None:
                self._portal.call(close)

    @overload
    def submit(self, what: Workflow, /) -> BlockingRun: ...

    @overload
    def submit(
        self, what: Spec | str, /, *args: Any, spec: Spec | None = None, **kwargs: Any
    ) -> BlockingJob: ...

    def submit(self, what: Any, /, *args: Any, **kwargs: Any) -> BlockingJob | BlockingRun:
        """Submit a call of a function, a spec or a workflow, as `Client.submit`."""
        found: Job | WorkflowRun = self.wait_for(lambda c: c.submit(what, *args, **kwargs))
        if isinstance(found, WorkflowRun):
            return BlockingRun(self, found)
        return BlockingJob(self, found)

    @overload
    def run(
        self,
        what: Spec | str,
        /,
        *args: Any,
        result: type[T],
        timeout: float | None = None,
        spec: Spec | None = None,
        **kwargs: Any,
    ) -> T: ...

    @overload
    def run(
        self,
        what: Spec | str,
        /,
        *args: Any,
        result: None = None,
        timeout: float | None = None,
        spec: Spec | None = None,
        **kwargs: Any,
    ) -> Any: ...

    def run(self, what: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Submit a call, wait, and return its output, as `Client.run`."""
        return self.wait_for(lambda c: c.run(what, *args, **kwargs))

    @overload
    def map(
        self,
        what: Spec | str,
        items: Iterable[Any],
        *,
        result: type[T],
        limit: int = 50,
        spec: Spec | None = None,
    ) -> list[T]: ...

    @overload
    def map(
        self,
        what: Spec | str,
        items: Iterable[Any],
        *,
        result: None = None,
        limit: int = 50,
        spec: Spec | None = None,
    ) -> list[Any]: ...

    def map(self, what: Any, items: Iterable[Any], **kwargs: Any) -> list[Any]:
        """Run a function on each item, and return the outputs in order, as `Client.map`."""
        return self.wait_for(lambda c: c.map(what, items, **kwargs))

    call = _Waiting(Client.call)
    wait = _Waiting(Client.wait)
    get = _Waiting(Client.get)
    get_many = _Waiting(Client.get_many)
    processes = _Waiting(Client.processes)
    cancel = _Waiting(Client.cancel)
    remove = _Waiting(Client.remove)
    logs = _Iterating(Client.logs)
    attributes = _Waiting(Client.attributes)
    executors = _Waiting(Client.executors)
    functions = _Waiting(Client.functions)
    get_workflow = _Waiting(Client.get_workflow)
    workflows = _Waiting(Client.workflows)
    wait_workflow = _Waiting(Client.wait_workflow)
    cancel_workflow = _Waiting(Client.cancel_workflow)
    addchild = _Waiting(Client.addchild)
    addcron = _Waiting(Client.addcron)
    crons = _Waiting(Client.crons)
    runcron = _Waiting(Client.runcron)
    removecron = _Waiting(Client.removecron)
    send = _Waiting(Client.send)
    read = _Waiting(Client.read)
    follow = _Iterating(Client.follow)
    put_file = _Waiting(Client.put_file)
    get_file = _Waiting(Client.get_file)


def _refuse_in_loop() -> None:
    """Raise ColonyError in the thread of an event loop, which would stand still."""
    try:
        anyio.get_current_task()
    except Exception:
        return  # there is none: anyio's error for that changed its class between versions
    raise ColonyError(
        "a BlockingClient would stop the event loop that runs here",
        next_step="use `async with Client() as ...`, or call it in a thread",
    )
