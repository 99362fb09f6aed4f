"""The client of a colony: submits work, waits for it, and reads what the colony has.

    async with Client() as colony:
        print(await colony.run("add", 1, 2))

Runs in trio and in asyncio. `colonyd.client.blocking` has the same for programs without a loop.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Generic, TypeVar, overload

import anyio
import anyio.abc
import anyio.to_thread
import msgspec

from colonyd.client.events import Events
from colonyd.client.files import DaemonStore, digest, fetch
from colonyd.client.values import (
    Attribute,
    Conditions,
    Cron,
    Executor,
    File,
    Function,
    Graph,
    Log,
    Message,
    OddReply,
    Process,
    Spec,
    State,
    converted,
    read,
    read_list,
    written,
)
from colonyd.client.workflow import Workflow
from colonyd.errors import ColonyError, NotFound, RpcError, Unavailable
from colonyd.keys import PrivateKey
from colonyd.rpc import RpcClient, Signed, Unreachable
from colonyd.settings import Settings

T = TypeVar("T")

ATTEMPTS = 8  # of sending the same bytes after lost connections: half a minute
_FIRST, _LAST, _LIVE = 0.05, 3.0, 15.0  # seconds between polls; the last where a socket tells, too
_PAGE = 500  # log messages of one call
# Submissions of a map at a time: more keep no server busier, and as many connections cost CPU.
_SUBMISSIONS = 8
_POLLS = 8  # polls at a time, however much is waited for


class ProcessFailed(ColonyError):
    """A process that ended without success; `process` has its errors."""

    def __init__(self, process: Process, *, name: str = "") -> None:
        """Tell of the end of a process, the step `name` of a workflow if that is given."""
        self.process = process
        what = f"step {name} ({process.spec.funcname})" if name else process.spec.funcname
        why = "; ".join(process.errors) or "no reason was given"
        if process.state is State.CANCELLED:
            super().__init__(f"{what} was cancelled (process {process.id})")
        else:
            super().__init__(f"{what} failed: {why} (process {process.id})")

    @property
    def errors(self) -> list[str]:
        """Return the errors that the executor or the server told."""
        return self.process.errors


class WorkflowFailed(ColonyError):
    """A workflow that ended without success; `failed` are its failed steps, by name."""

    def __init__(self, graph: Graph, failed: dict[str, Process]) -> None:
        """Tell of the end of a workflow."""
        self.graph, self.failed = graph, failed
        told = [f"{name}: {'; '.join(each.errors)}" for name, each in failed.items() if each.errors]
        how = graph.state.name.lower()
        named = " | ".join(told) or ", ".join(failed) or "no step tells why"
        super().__init__(f"workflow {graph.id} {how}: {named}")


class NotEnded(ColonyError, TimeoutError):
    """Something had not ended within the time that was given for it."""


class Job:
    """A submitted process."""

    def __init__(self, colony: Client, process: Process) -> None:
        """Stand for `process`, as it was submitted."""
        self._colony, self.process = colony, process

    @property
    def id(self) -> str:
        """Return the id of the process."""
        return self.process.id

    async def wait(self, timeout: float | None = None) -> Process:
        """Wait as `Client.wait`, and return the process at its end."""
        self.process = await self._colony.wait(self.id, timeout)
        return self.process

    async def result(self, timeout: float | None = None) -> Any:
        """Wait, and return the output. Raises ProcessFailed, NotEnded."""
        return output_of(await self.wait(timeout))

    async def cancel(self) -> None:
        """Cancel the process."""
        await self._colony.cancel(self.id)

    def logs(self, *, follow: bool = True) -> AsyncIterator[Log]:
        """Iterate over its log, as `Client.logs`."""
        return self._colony.logs(self.id, follow=follow)


class WorkflowRun:
    """A submitted workflow."""

    def __init__(self, colony: Client, graph: Graph) -> None:
        """Stand for `graph`, as it was submitted."""
        self._colony, self.graph = colony, graph

    @property
    def id(self) -> str:
        """Return the id of the workflow."""
        return self.graph.id

    async def wait(self, timeout: float | None = None) -> dict[str, Any]:
        """Wait for the end, and return the outputs by names of steps. `timeout` in seconds.

        Raises WorkflowFailed, NotEnded.
        """
        self.graph = await self._colony.wait_workflow(self.id, timeout)
        steps = await self.steps()
        if self.graph.state is not State.SUCCESSFUL:
            # Upstream fails all steps of a workflow with one, without saying why.
            failed = {n: s for n, s in steps.items() if s.state is State.FAILED}
            raise WorkflowFailed(
                self.graph, {n: s for n, s in failed.items() if s.errors} or failed
            )
        return {name: output_of(step) for name, step in steps.items()}

    async def steps(self) -> dict[str, Process]:
        """Return the processes as they are now, by names of steps."""
        graph = await self._colony.get_workflow(self.id)
        found: dict[str, Process] = {}
        rows = await self._colony.get_many(graph.processids)
        for each in rows:
            found[each.spec.nodename or each.id] = each
        return found

    async def cancel(self) -> None:
        """Cancel all steps that have not ended."""
        await self._colony.cancel_workflow(self.id)


def output_of(process: Process) -> Any:
    """Return the output of a process: None, its only value, or a list of several.

    Raises ProcessFailed if it was not successful.
    """
    if process.state is not State.SUCCESSFUL:
        raise ProcessFailed(process)
    out = process.output
    return None if not out else out[0] if len(out) == 1 else out


class _Results(Generic[T]):
    """Places for results that come in any order."""

    def __init__(self) -> None:
        self.found: dict[int, T] = {}
        self.error: Exception | None = None


class Client:
    """A client of one colony, as an async context manager; safe for concurrent calls."""

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        server: str = "",
        colony: str = "",
        key: PrivateKey | None = None,
        timeout: float = 10.0,
    ) -> None:
        """Take the settings of `Settings.find(server=..., colony=...)` unless some are given.

        `key` signs, by default the member's key of the settings. `timeout` is seconds of one call.
        Raises ColonyError when there is no colony or no key.
        """
        self.settings = settings or Settings.find(server=server, colony=colony)
        self.colony = self.settings.colony
        self.key = key or self.settings.member_key()
        self._timeout = timeout
        self._stack = AsyncExitStack()
        self._shared: RpcClient | None = None
        self._rpc: RpcClient | None = None
        self._events: Events | None = None
        self._group: anyio.abc.TaskGroup | None = None

    @classmethod
    def of(cls, signed: Signed, settings: Settings) -> Client:
        """Return a client for the calls of `signed`, whose connections it shares."""
        made = cls(settings, key=signed.key)
        made._shared = signed.client
        return made

    async def __aenter__(self) -> Client:
        client = self._shared
        if client is None:
            client = await self._stack.enter_async_context(self.settings.client())
        self._rpc = client
        self._events = Events(client, self.key)
        self._polls = anyio.CapacityLimiter(_POLLS)
        group = anyio.create_task_group()
        self._group = await group.__aenter__()
        group.start_soon(self._events.run)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        group, self._group = self._group, None
        try:
            if group is not None:
                group.cancel_scope.cancel()
                # The error of the block is the caller's: in here, it would come out in a group.
                await group.__aexit__(None, None, None)
        finally:
            self._rpc = self._events = None
            await self._stack.aclose()

    # -- calls -----------------------------------------------------------------------------

    @property
    def rpc(self) -> RpcClient:
        """Return the client of single calls. Raises ColonyError outside the context."""
        if self._rpc is None:
            raise ColonyError(
                "the client is not open", next_step="use `async with Client() as ...`"
            )
        return self._rpc

    async def call(
        self, payloadtype: str, fields: dict[str, Any], *, attempts: int = ATTEMPTS
    ) -> Any:
        """Make one call of docs/protocol.md, and return its reply.

        After a lost connection the same bytes are sent again, `attempts` times in all: colonyd then
        changes nothing twice. Raises RpcError, Unreachable.
        """
        return await self.rpc.call(payloadtype, fields, self.key, self._timeout, attempts=attempts)

    async def _of_colony(self, payloadtype: str, **fields: Any) -> Any:
        return await self.call(payloadtype, {"colonyname": self.colony, **fields})

    # -- processes -------------------------------------------------------------------------

    @overload
    async def submit(self, what: Workflow, /) -> WorkflowRun: ...

    @overload
    async def submit(
        self, what: Spec | str, /, *args: Any, spec: Spec | None = None, **kwargs: Any
    ) -> Job: ...

    async def submit(
        self, what: Workflow | Spec | str, /, *args: Any, spec: Spec | None = None, **kwargs: Any
    ) -> Job | WorkflowRun:
        """Submit a call of a function, a spec or a workflow.

        Arguments are put behind those of `spec`, which has everything else, such as its conditions.
        Raises RpcError, Unreachable, and WrongWorkflow before anything is sent.
        """
        if isinstance(what, Workflow):
            specs = [self._spec(each) for each in what.specs(self.colony)]
            fields = {"colonyname": self.colony, "functionspecs": specs}
            raw = await self.call("submitworkflowspecmsg", {"spec": fields})
            return WorkflowRun(self, read(Graph, raw))
        given = what if isinstance(what, Spec) else spec or Spec()
        sent = msgspec.structs.replace(
            given,
            funcname=what if isinstance(what, str) else given.funcname,
            args=[*given.args, *args],
            kwargs={**given.kwargs, **kwargs},
        )
        raw = await self.call("submitfuncspecmsg", {"spec": self._spec(sent)})
        return Job(self, read(Process, raw))

    def _spec(self, spec: Spec) -> dict[str, Any]:
        """Return a spec for the wire, of this colony and, unless it says other, for executors of
        type cli.
        """
        given = spec.conditions
        open_to_all = given.executortype or given.executornames
        conditions: Conditions = msgspec.structs.replace(
            given,
            colonyname=given.colonyname or self.colony,
            executortype=given.executortype if open_to_all else "cli",
        )
        try:
            sent: dict[str, Any] = written(msgspec.structs.replace(spec, conditions=conditions))
        except (TypeError, ValueError, RecursionError) as error:
            raise ColonyError(
                f"an argument of {spec.funcname} has no form in JSON: {error}",
                next_step="give numbers, texts, lists, dicts, dataclasses or msgspec structs",
            ) from None
        for name in ("gpu",):
            if not sent["conditions"][name]:
                del sent["conditions"][name]
        for name in ("fs", "channels"):
            if not sent[name]:
                del sent[name]
        return sent

    @overload
    async def run(
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
    async def run(
        self,
        what: Spec | str,
        /,
        *args: Any,
        result: None = None,
        timeout: float | None = None,
        spec: Spec | None = None,
        **kwargs: Any,
    ) -> Any: ...

    async def run(
        self,
        what: Spec | str,
        /,
        *args: Any,
        result: Any = None,
        timeout: float | None = None,
        spec: Spec | None = None,
        **kwargs: Any,
    ) -> Any:
        """Submit a call of a function, wait, and return its output.

        One value of output is returned as it is, several as a list. `result` is a type that the
        output is converted to. The process goes on after `timeout` seconds.
        Raises ProcessFailed, NotEnded, OddReply for an output of another type, RpcError,
        Unreachable.
        """
        job = await self.submit(what, *args, spec=spec, **kwargs)
        found = await job.result(timeout)
        name = what if isinstance(what, str) else what.funcname
        return found if result is None else converted(found, result, f"output of {name}")

    async def wait(self, processid: str, timeout: float | None = None) -> Process:
        """Wait for the end of a process, however it ends, and return it.

        A server that is away or starts again meanwhile is waited for, too. `timeout` in seconds.
        Raises NotEnded, RpcError.
        """
        if self._events is None:
            raise ColonyError(
                "the client is not open", next_step="use `async with Client() as ...`"
            )
        pause = _FIRST
        found: Process | None = None
        last: Process | None = None
        with self._events.watch(processid) as watched, anyio.move_on_after(timeout):
            while found is None:
                with anyio.move_on_after(pause):
                    await watched.news.wait()
                if watched.process is not None:
                    found = watched.process
                    break
                pause = _LIVE if watched.live else min(pause * 1.6, _LAST)
                seen = await self._look(processid)
                last = seen or last
                if seen is not None and seen.state.ended:
                    found = seen
        if found is None:
            step = "it goes on: wait longer, or cancel it"
            if last is not None and last.state is State.WAITING:
                kind = last.spec.conditions.executortype
                wanted = f"type {kind!r}" if kind else "those that it names"
                step = (
                    f"no executor of {wanted} has taken it: `colony process why {processid[:12]}`"
                    " says why; it goes on waiting"
                )
            raise NotEnded(f"process {processid} has not ended after {timeout:g} s", next_step=step)
        return found

    async def _look(self, processid: str) -> Process | None:
        """Return a process, or None while the server does not answer."""
        async with self._polls:
            try:
                raw = await self.call("getprocessmsg", {"processid": processid}, attempts=1)
            except (Unreachable, Unavailable):
                return None
        return read(Process, raw)

    @overload
    async def map(
        self,
        what: Spec | str,
        items: Iterable[Any],
        *,
        result: type[T],
        limit: int = 50,
        spec: Spec | None = None,
    ) -> list[T]: ...

    @overload
    async def map(
        self,
        what: Spec | str,
        items: Iterable[Any],
        *,
        result: None = None,
        limit: int = 50,
        spec: Spec | None = None,
    ) -> list[Any]: ...

    async def map(
        self,
        what: Spec | str,
        items: Iterable[Any],
        *,
        result: Any = None,
        limit: int = 50,
        spec: Spec | None = None,
    ) -> list[Any]:
        """Run a function on each item, and return the outputs in the order of the items.

        `limit` processes are in the colony at a time. The first that fails ends all: those in
        flight are cancelled, as when this is cancelled; one whose submission was not answered yet
        goes on. Items are taken as places become free. Raises as `run`.
        """
        if limit < 1:
            raise ValueError("limit: at least 1")
        left = enumerate(items)
        results: _Results[Any] = _Results()
        submitting = anyio.Semaphore(_SUBMISSIONS)

        async def one_after_another() -> None:
            job: Job | None = None
            try:
                for place, item in left:
                    async with submitting:
                        job = await self.submit(what, item, spec=spec)
                    found = await job.result()
                    if result is not None:
                        found = converted(found, result, f"output {place}")
                    results.found[place] = found
                    job = None
            except Exception as error:
                results.error = results.error or error
                group.cancel_scope.cancel()
            finally:
                if job is not None and not job.process.state.ended:
                    with anyio.move_on_after(5, shield=True):
                        await self._drop(job)

        async with anyio.create_task_group() as group:
            for _ in range(limit):
                group.start_soon(one_after_another)
        if results.error is not None:
            raise results.error
        return [results.found[place] for place in range(len(results.found))]

    async def _drop(self, job: Job) -> None:
        """Cancel a process that nobody waits for any more, if the server answers."""
        try:
            fields = {"processid": job.id}
            await self.call("cancelprocessmsg", fields, attempts=1)
        except (RpcError, Unreachable):
            return

    async def get(self, processid: str) -> Process:
        """Return a process. Raises NotFound."""
        return read(Process, await self.call("getprocessmsg", {"processid": processid}))

    async def get_many(self, processids: Sequence[str]) -> list[Process]:
        """Return processes by their ids, a few calls at a time. Raises NotFound."""
        left = enumerate(processids)
        results: _Results[Process] = _Results()

        async def some() -> None:
            try:
                for place, processid in left:
                    results.found[place] = await self.get(processid)
            except Exception as error:
                results.error = results.error or error
                group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            for _ in range(_POLLS):
                group.start_soon(some)
        if results.error is not None:
            raise results.error
        return [results.found[place] for place in range(len(processids))]

    async def processes(
        self,
        state: State,
        *,
        count: int = 100,
        executortype: str = "",
        label: str = "",
        initiator: str = "",
    ) -> list[Process]:
        """List processes in a state: waiting ones in the order of the queue, ended ones the newest
        first. Servers list at most 100.
        """
        raw = await self._of_colony(
            "getprocessesmsg",
            count=count,
            state=int(state),
            executortype=executortype,
            label=label,
            initiator=initiator,
        )
        return read_list(Process, raw)

    async def cancel(self, processid: str) -> None:
        """Cancel a process that waits or runs. Raises Conflict or Invalid after its end."""
        await self.call("cancelprocessmsg", {"processid": processid})

    async def remove(self, processid: str) -> None:
        """Remove a process that does not run and belongs to no workflow."""
        await self.call("removeprocessmsg", {"processid": processid, "all": False})

    async def logs(self, processid: str, *, follow: bool = False) -> AsyncIterator[Log]:
        """Iterate over the log of a process, with `follow` until the end of the process.

        Raises RpcError, of class OddReply from a server that tells the same messages for ever.
        """
        since, pause = 0, _FIRST
        while True:
            try:
                # Looked at before the log is: what comes after its end is not missed.
                ended = not follow or (await self.get(processid)).state.ended
                raw = await self._of_colony(
                    "getlogsmsg",
                    processid=processid,
                    executorname="",
                    count=_PAGE,
                    since=since,
                    latest=False,
                )
            except (Unreachable, Unavailable):
                if not follow:
                    raise
                await anyio.sleep(_LAST)
                continue
            told = read_list(Log, raw)
            rows = [row for row in told if row.timestamp > since]
            for row in rows:
                yield row
            if rows:
                since, pause = max(row.timestamp for row in rows), _FIRST
            if len(told) >= _PAGE:
                if not rows:
                    raise OddReply("the server sent the same messages of the log again")
                continue
            if ended:
                return
            await anyio.sleep(pause)
            pause = min(pause * 1.6, 1.0)

    async def attributes(self, processid: str) -> dict[str, str]:
        """Return the attributes that executors added to a process."""
        found: list[Attribute] = (await self.get(processid)).attributes
        return {each.key: each.value for each in found}

    # -- executors and functions -----------------------------------------------------------

    async def executors(self) -> list[Executor]:
        """List the executors, unregistered ones too."""
        return read_list(Executor, await self._of_colony("getexecutorsmsg"))

    async def functions(self, executor: str = "") -> list[Function]:
        """List the functions of an executor, or of all."""
        return read_list(Function, await self._of_colony("getfunctionsmsg", executorname=executor))

    # -- workflows -------------------------------------------------------------------------

    async def get_workflow(self, workflowid: str) -> Graph:
        """Return a workflow. Raises NotFound."""
        return read(Graph, await self.call("getprocessgraphmsg", {"processgraphid": workflowid}))

    async def workflows(self, state: State, *, count: int = 100) -> list[Graph]:
        """List workflows in a state, the newest first. Servers list at most 100."""
        raw = await self._of_colony("getprocessgraphsmsg", count=count, state=int(state))
        return read_list(Graph, raw)

    async def wait_workflow(self, workflowid: str, timeout: float | None = None) -> Graph:
        """Wait for the end of a workflow, however it ends, and return it. `timeout` in seconds.

        Raises NotEnded, RpcError.
        """
        pause = _FIRST
        graph: Graph | None = None
        with anyio.move_on_after(timeout):
            while graph is None or not graph.state.ended:
                try:
                    async with self._polls:
                        graph = await self.get_workflow(workflowid)
                except (Unreachable, Unavailable):
                    pause = _LAST
                if graph is not None and graph.state.ended:
                    break
                await anyio.sleep(pause)
                pause = min(pause * 1.6, _LAST)
        if graph is None or not graph.state.ended:
            raise NotEnded(
                f"workflow {workflowid} has not ended after {timeout:g} s",
                next_step="it goes on: wait longer, or cancel it",
            )
        return graph

    async def cancel_workflow(self, workflowid: str) -> None:
        """Cancel all steps of a workflow that have not ended."""
        await self.call("cancelprocessgraphmsg", {"processgraphid": workflowid})

    async def addchild(
        self,
        parent: Process,
        spec: Spec,
        *,
        before: str = "",
        insert: bool = False,
    ) -> Process:
        """Add a step after a running one, as the executor that runs it; return its process.

        `before` is the id of a step that then also waits for the new one. With `insert` all that
        followed the parent follow the new step instead.
        """
        fields = {
            "processgraphid": parent.workflowid,
            "parentprocessid": parent.id,
            "childprocessid": before,
            "spec": self._spec(spec),
            "insert": insert,
        }
        return read(Process, await self.call("addchildmsg", fields))

    # -- crons -----------------------------------------------------------------------------

    async def addcron(
        self,
        name: str,
        workflow: Workflow | Spec | str,
        *,
        every: float | timedelta | None = None,
        at: str = "",
        wait: bool = False,
    ) -> Cron:
        """Let the server start a workflow, or a function, by the clock.

        Either `every` so many whole seconds, or `at` a cron expression with seconds. With `wait`
        a run begins only after the one before has ended.
        """
        seconds = every.total_seconds() if isinstance(every, timedelta) else every or 0
        if (seconds > 0) == bool(at) or seconds != int(seconds):
            raise ColonyError(
                f"{name}: a cron needs either an interval in whole seconds or an expression",
                next_step='give every=60 or at="0 * * * * *"',
            )
        if isinstance(workflow, Workflow):
            specs = workflow.specs(self.colony)
        else:
            given = Spec(funcname=workflow) if isinstance(workflow, str) else workflow
            node = given.nodename or given.funcname
            specs = [msgspec.structs.replace(given, nodename=node)]
        told = {"colonyname": self.colony, "functionspecs": [self._spec(each) for each in specs]}
        cron = {
            "colonyname": self.colony,
            "name": name,
            "cronexpression": at,
            "interval": int(seconds) or -1,
            "waitforprevprocessgraph": wait,
            "workflowspec": msgspec.json.encode(told).decode(),
        }
        return read(Cron, await self.call("addcronmsg", {"cron": cron}))

    async def crons(self, *, count: int = 100) -> list[Cron]:
        """List the crons."""
        return read_list(Cron, await self._of_colony("getcronsmsg", count=count))

    async def runcron(self, cronid: str) -> Cron:
        """Start the workflow of a cron now; return the cron, whose `previous` is that workflow."""
        return read(Cron, await self.call("runcronmsg", {"cronid": cronid}))

    async def removecron(self, cronid: str) -> None:
        """Remove a cron; workflows that it has started go on."""
        await self.call("removecronmsg", {"cronid": cronid, "all": False})

    # -- channels --------------------------------------------------------------------------

    async def send(
        self,
        processid: str,
        channel: str,
        payload: bytes | str,
        *,
        sequence: int = 0,
        inreplyto: int = 0,
        kind: str = "",
    ) -> None:
        """Send a message to a channel that the spec of the process names.

        `sequence` is the sender's own number of it; `kind` is "end" or "error" for what these mean.
        """
        data = payload.encode() if isinstance(payload, str) else payload
        fields = {
            "processid": processid,
            "name": channel,
            "sequence": sequence,
            "inreplyto": inreplyto,
            "payload": base64.b64encode(data).decode(),
            "payloadtype": kind,
        }
        await self.call("channelappendmsg", fields)

    async def read(
        self, processid: str, channel: str, *, after: int = 0, count: int = 100
    ) -> list[Message]:
        """Return at most `count` messages of a channel, after the first `after`."""
        fields = {"processid": processid, "name": channel, "afterseq": after, "limit": count}
        return read_list(Message, await self.call("channelreadmsg", fields))

    async def follow(
        self, processid: str, channel: str, *, after: int = 0
    ) -> AsyncIterator[Message]:
        """Iterate over the messages of a channel until one of kind "end", or until the process
        ends.
        """
        pause = _FIRST
        while True:
            try:
                ended = (await self.get(processid)).state.ended
                rows = await self.read(processid, channel, after=after)
            except (Unreachable, Unavailable):
                await anyio.sleep(_LAST)
                continue
            except RpcError:
                # Servers drop the channels of a process with its end.
                if (await self.get(processid)).state.ended:
                    return
                raise
            for row in rows:
                yield row
                if row.kind == "end":
                    return
            after += len(rows)
            if rows:
                pause = _FIRST
                continue
            if ended:
                return
            await anyio.sleep(pause)
            pause = min(pause * 1.6, 1.0)

    # -- files -----------------------------------------------------------------------------

    async def put_file(self, content: bytes | Path, label: str, name: str) -> str:
        """Upload a file as the newest version of LABEL/NAME, and return its id.

        Its bytes go to the daemon's own directory. Raises ColonyError, RpcError, Unreachable.
        """
        async with AsyncExitStack() as stack:
            if isinstance(content, bytes):
                directory = stack.enter_context(TemporaryDirectory(prefix="colonyd-"))
                path = anyio.Path(directory) / "content"
                await path.write_bytes(content)
            else:
                path = anyio.Path(content)
            found = await anyio.to_thread.run_sync(digest, Path(path))
            store = await stack.enter_async_context(DaemonStore(self.rpc, self.colony, self.key))
            ref = await store.put(Path(path), found, _unseen)
        new = {
            "colonyname": self.colony,
            "label": label,
            "name": name,
            "size": found.size,
            "checksum": found.checksum,
            "checksumalg": "SHA256",
            "ref": ref,
        }
        return read(File, await self.call("addfilemsg", {"file": new})).id

    async def get_file(self, label: str, name: str, target: Path) -> None:
        """Download the newest version of LABEL/NAME to `target`, which must not exist yet.

        It appears there whole and with the right checksum, or not at all. Raises ColonyError,
        RpcError, Unreachable.
        """
        fields = {"label": label, "name": name, "latest": True}
        found = read_list(File, await self._of_colony("getfilemsg", **fields))
        if not found:
            raise NotFound(f"no file {label}/{name}")
        version = found[0]
        if version.protocol != "colonyd":
            raise ColonyError(
                f"{name}: its bytes are on an S3 server",
                next_step="`colony file get` with the AWS_S3_* variables downloads it",
            )
        async with DaemonStore(self.rpc, self.colony, self.key) as store:
            told = {"name": name, "size": version.size, "checksum": version.checksum}
            await fetch(store, told, Path(target), _unseen)


def _unseen(size: int) -> None:
    """Show no progress."""
