"""The engine of a worker: takes processes, has handlers run them, closes them."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import anyio

from colonyd.errors import Denied, Invalid, NotFound, RpcError, TimedOut, TooLarge, Unavailable
from colonyd.replies import newest, parse_time
from colonyd.rpc import Signed, Unreachable
from colonyd.settings import Settings
from colonyd.worker.handler import Ending, Execution, Handler, line_of_error
from colonyd.worker.livelog import LiveLog, relay
from colonyd.worker.registration import RETRY_FIRST, Registration, pause
from colonyd.worker.results import Results, Unusable
from colonyd.worker.watcher import Watcher

RUNNING = 1
_POLL = 30  # seconds of one assign long-poll; each writes a few bytes to the store
_LOOK = 5.0  # seconds between looks at a running process: a heartbeat, and sees a cancel
_AFTER_DEADLINE = 60.0  # seconds past its deadline for which a result is still offered
_CLOSING = 60.0  # seconds of one try to close: an output may be large, and the way slow
_LAST_LINES = 30.0  # seconds for the last lines of a process's log, to a server that is away
_LOG_ATTEMPTS = 8  # of sending the same lines to a server that is away: half a minute
_REMEMBERED = 10_000  # processes that were taken: a listing may be older than their end
_LAST_WORDS = 5.0  # seconds for the closing call of a process that was stopped
_AMISS = ("issuedat", "audience")  # clock and server's id can be set right: results last till then
_ID = re.compile("[0-9A-Za-z]{1,128}")
_OVER = ", not running"  # the process ended otherwise: the result is not wanted
STOPPED = "the worker was stopped before the process had ended"


class _Feed(LiveLog):
    """A live log whose progress a watcher sees, too."""

    def __init__(self, watcher: Watcher, processid: str) -> None:
        super().__init__()
        self._tell = partial(watcher.tell, processid)

    def progress(self, data: bytes) -> None:
        super().progress(data)
        self._tell(self.latest)


@dataclass
class Engine:
    """The work of one executor, `slots` processes at a time."""

    registration: Registration
    handlers: Mapping[str, Handler]  # function → what runs it
    results: Results
    slots: int = 1
    watcher: Watcher = field(default_factory=Watcher)
    settings: Settings | None = None  # of the colony, for handlers that make clients
    _active: dict[str, Execution] = field(default_factory=dict)
    _taken: dict[tuple[str, str], None] = field(default_factory=dict)  # the oldest first

    def __post_init__(self) -> None:
        of = self.registration
        self._name, self._colony, self._kind = of.name, of.colony, of.kind
        self._signed = Signed(of.client, of.key)
        self._report, self._stop = of.report, of.stop

    async def work(self) -> None:
        """Register, settle the processes of an earlier run, then work until `stop` is set.

        Raises ColonyError, RpcError, Unreachable.
        """
        await self.registration.register()
        left = await self._settle()
        self._report("ready", {"name": self._name, "functions": [*self.handlers]})
        async with anyio.create_task_group() as group:
            group.start_soon(self._release)
            try:
                async with anyio.create_task_group() as slots:
                    for _ in range(self.slots):
                        slots.start_soon(self._slot, left, group.cancel_scope)
            finally:
                group.cancel_scope.cancel()

    async def _release(self) -> None:
        """Release all executions when the worker is cancelled."""
        try:
            await anyio.sleep_forever()
        finally:
            for execution in self._active.values():
                execution.released.set()

    # -- processes of an earlier run --------------------------------------------------------------

    async def _settle(self) -> list[Mapping[str, Any]]:
        """Close the processes of an earlier run: with the kept result, else as failed.

        What was interrupted may have had effects: it is run again only if its handler says so.
        Returns those that a handler goes on with, or begins again.
        """
        for kept in self.results.kept():
            if isinstance(kept, Unusable):
                self._aside(kept)
            else:
                await self._close(*kept, None)
        going_on = list[Mapping[str, Any]]()
        for process in await self._assigned():
            self._remember(process)
            handler = self.handlers.get(Execution(process, self._signed, LiveLog()).function)
            if handler is not None and (handler.resumes or handler.reruns):
                going_on.append(process)
            else:
                await self._close(process["processid"], Ending([], [STOPPED]), None)
        return going_on

    async def _assigned(self) -> list[dict[str, Any]]:
        """Return running processes that are assigned to this executor but that it doesn't
        know of.
        """
        fields = {
            "colonyname": self._colony,
            "count": 100,
            "state": RUNNING,
            "executortype": self._kind,
            "label": "",
            "initiator": "",
        }
        key = self._signed.key
        again = self.registration.again
        rows, _ = await newest(lambda asked: again("getprocessesmsg", asked, key), fields)
        return [
            row
            for row in rows
            if row.get("assignedexecutorid") == key.id
            and self._usable(row)
            and row["processid"] not in self._active
            and _attempt(row) not in self._taken
        ]

    def _remember(self, process: Mapping[str, Any]) -> None:
        """Remember that a process was taken: it is not taken again for one that was never begun."""
        self._taken[_attempt(process)] = None
        if len(self._taken) > _REMEMBERED:
            del self._taken[next(iter(self._taken))]

    # -- assignment -------------------------------------------------------------------------------

    async def _slot(self, left: list[Mapping[str, Any]], all_slots: anyio.CancelScope) -> None:
        """Take processes one after the other: first those of an earlier run.

        Where one slot fails the worker leaves, and no other waits for what can't be ended.
        """
        try:
            await self._take(left)
        except Exception:
            all_slots.cancel()
            raise

    async def _take(self, left: list[Mapping[str, Any]]) -> None:
        while left and not self._stop.is_set():
            await self._run(left.pop(), resumed=True)
        seconds = RETRY_FIRST
        while not self._stop.is_set():
            try:
                process = await self._assign()
                seconds = RETRY_FIRST
            except Unreachable as error:
                self._report("unreachable", {"error": str(error)})
                seconds = await pause(self._stop, seconds)
                if error.sent:
                    await self._adopt()
                continue
            except RpcError as error:
                if isinstance(error, Denied):
                    # Unregistered while away; raises when rejected.
                    with suppress(Unreachable, Unavailable):  # raised once the worker is to stop
                        await self.registration.register()
                else:
                    self._report("refused", {"error": str(error)})
                seconds = await pause(self._stop, seconds)
                continue
            if process is not None:
                await self._run(process)
        await self._adopt()

    async def _assign(self) -> dict[str, Any] | None:
        """Make one long-poll, given up when `stop` is set: `_adopt` then finds a process that it
        may have won.
        """
        fields = {"colonyname": self._colony, "timeout": _POLL}
        fields |= {"availablecpu": "", "availablemem": ""}
        began = anyio.current_time()
        got: dict[str, Any] | None = None
        failed: RpcError | Unreachable | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(self._cancel_on_stop, group.cancel_scope)
            try:
                got = await self._signed.call("assignprocessmsg", fields, _POLL + 15.0)
            except (NotFound, TimedOut, Unavailable):
                pass  # there is none
            except (RpcError, Unreachable) as error:
                failed = error
            group.cancel_scope.cancel()
        if failed is not None:
            raise failed
        if got is not None and not self._usable(got):
            got = None
        if got is None and anyio.current_time() - began < 1.0:
            # A server that answers "none" at once must not be hammered.
            await pause(self._stop, 1.0)
        return got

    def _usable(self, process: object) -> bool:
        """Return whether a process has an id that can name a file: the server may not be ours."""
        processid = process.get("processid") if isinstance(process, dict) else None
        if isinstance(processid, str) and _ID.fullmatch(processid):
            return True
        named = repr(processid)[:80]
        self._report("refused", {"error": f"the server names a process {named}"})
        return False

    async def _cancel_on_stop(self, scope: anyio.CancelScope) -> None:
        await self._stop.wait()
        scope.cancel()

    async def _adopt(self) -> None:
        """Run processes won by an assign whose reply was lost: they have never been started."""
        try:
            won = await self._assigned()
        except (Unreachable, RpcError) as error:
            self._report("unreachable", {"error": str(error)})
            return
        for process in won:
            # Another slot may have learned of it meanwhile, and be done with it.
            if _attempt(process) not in self._taken:
                await self._run(process)

    # -- one process ------------------------------------------------------------------------------

    async def _run(self, process: Mapping[str, Any], *, resumed: bool = False) -> None:
        processid: str = process["processid"]
        if processid in self._active:
            return  # two slots learned of it: one by the reply, one by `_adopt`
        feed = _Feed(self.watcher, processid)
        execution = Execution(process, self._signed, feed, self.settings, resumed)
        name = execution.function
        handler = self.handlers.get(name)
        self._active[processid] = execution
        self._remember(process)
        try:
            started = "resumed" if resumed else "started"
            self._report(started, {"processid": processid, "function": name})
            began = anyio.current_time()
            if handler is None:
                known = ", ".join(sorted(self.handlers))
                text = f"executor {self._name} has no function {name!r}; it has: {known}"
                unknown = Ending([], [text])
                self._keep(processid, unknown)
                ending: Ending | None = unknown
            else:
                ending = await self._handle(handler, execution)
            took = round(anyio.current_time() - began, 3)
            if ending is None:
                how = "withdrawn" if execution.withdrawn else "left running"
                self._report(how, {"processid": processid, "function": name})
                return
            closed = await self._close(processid, ending, deadline_of(process))
            if closed is None:
                return
            self._report(
                "successful" if closed.ok else "failed",
                {"processid": processid, "function": name, "seconds": took}
                | ({} if closed.ok else {"errors": closed.errors}),
            )
        finally:
            del self._active[processid]

    async def _handle(self, handler: Handler, execution: Execution) -> Ending | None:
        """Run the handler; return None when the process is not ours any more, or goes on without
        us.
        """
        ending: Ending | None = None
        left = False
        self.watcher.begin(execution.id, execution.function)
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._watch, execution, group.cancel_scope)
                group.start_soon(relay, execution.feed, partial(self._log, execution.id))
                if handler.resumes:
                    group.start_soon(self._cancel_on_stop, group.cancel_scope)
                ending = await _ending(handler, execution)
                if ending is not None:
                    self._keep(execution.id, ending)
                execution.feed.finish()
                with anyio.move_on_after(_LAST_LINES):
                    await execution.feed.sent.wait()
                group.cancel_scope.cancel()
            left = True
        finally:
            self.watcher.end(execution.id)
            if not left and ending is None and not self._outlives(handler, execution):
                await self._last_words(execution.id)
        return ending

    @staticmethod
    def _outlives(handler: Handler, execution: Execution) -> bool:
        """Return whether a process may stay running without its worker: it goes on by itself, or
        another worker gets it at its deadline, and may run it again.
        """
        return handler.resumes or (handler.reruns and deadline_of(execution.process) is not None)

    async def _log(self, processid: str, message: str) -> bool:
        """Log lines of a process; return False when further lines are of no use."""
        fields = {"processid": processid, "message": message}
        try:
            await self._signed.call("addlogmsg", fields, attempts=_LOG_ATTEMPTS)
        except Unreachable:
            return True  # these lines are lost
        except RpcError as error:
            self._report("not logged", {"processid": processid, "error": str(error)})
            return False
        return True

    async def _last_words(self, processid: str) -> None:
        """Close the process before leaving, so that no caller waits for it: the grace is over."""
        with anyio.move_on_after(_LAST_WORDS, shield=True):
            try:
                await self._close_once(processid, Ending([], [STOPPED]))
            except Unreachable as error:
                self._report("unreachable", {"processid": processid, "error": str(error)})

    async def _watch(self, execution: Execution, scope: anyio.CancelScope) -> None:
        """Look at a running process now and then; end its handler when it is no longer ours."""
        while True:
            await anyio.sleep(_LOOK)
            try:
                found = await self._signed.call("getprocessmsg", {"processid": execution.id})
            except NotFound:
                found = {}
            except (Unreachable, RpcError):
                continue
            if not isinstance(found, dict):
                continue
            mine = found.get("assignedexecutorid") == self._signed.key.id
            if found.get("state") != RUNNING or not mine:
                execution.withdrawn = True
                scope.cancel()
                return

    # -- results ----------------------------------------------------------------------------------

    def _keep(self, processid: str, ending: Ending) -> None:
        """Write a result down before it is offered; a full disk leaves it in memory alone."""
        try:
            self.results.keep(processid, ending)
        except (OSError, ValueError, RecursionError) as error:
            details = {"processid": processid, "error": str(error), "next": "free the disk"}
            self._report("not kept", details)

    def _aside(self, unusable: Unusable) -> None:
        self._report("set aside", {"file": str(unusable.path), "error": unusable.why})

    async def _close(self, processid: str, ending: Ending, deadline: float | None) -> Ending | None:
        """Close with back-off until acknowledged or refused, or (Unix s) past the deadline.

        Returns what the colony has acknowledged, None for nothing. A result that is given up stays
        in its file and is offered again by the next start.
        """
        seconds = RETRY_FIRST
        while True:
            try:
                return await self._close_once(processid, ending)
            except Unreachable as error:
                if deadline is not None and time.time() > deadline + _AFTER_DEADLINE:
                    self._report("kept", {"processid": processid, "error": str(error)})
                    return None
                self._report("unreachable", {"processid": processid, "error": str(error)})
                # Not ended by `stop`: what is done should be told.
                seconds = await pause(anyio.Event(), seconds)

    async def _close_once(self, processid: str, ending: Ending) -> Ending | None:
        """Return what was acknowledged, or None when the result is no longer wanted."""
        fields: dict[str, Any] = {"processid": processid}
        kind = "closesuccessfulmsg" if ending.ok else "closefailedmsg"
        fields |= {"out": ending.out} if ending.ok else {"errors": ending.errors}
        try:
            await self._signed.call(kind, fields, _CLOSING)
        except RpcError as error:
            if error.status in (408, 429, *range(500, 600)) or error.message.startswith(_AMISS):
                raise Unreachable(str(error), sent=True) from None
            self._report("refused", {"processid": processid, "error": str(error)})
            wanted = isinstance(error, Invalid | TooLarge) and not error.message.endswith(_OVER)
            if wanted and ending.ok:
                reason = f"the colony refused the output: {error.message}"
                return await self._close_once(processid, Ending([], [reason]))
            if wanted:
                self._aside(self.results.set_aside(processid, error.message))
                return None
            # Cancelled, past its deadline, or given to another: the result is not wanted.
            self.results.forget(processid)
            return None
        self.results.forget(processid)
        return ending


async def _ending(handler: Handler, execution: Execution) -> Ending:
    """Return the end of a process. An exception fails the process, never the worker."""
    try:
        ending = await handler(execution)
    except (Exception, SystemExit) as error:
        ending = Ending([], [line_of_error(error)])
    except anyio.get_cancelled_exc_class() as error:
        if _is_cancelled():
            raise
        # In asyncio, whoever waits for a task that was cancelled gets its CancelledError.
        ending = Ending([], [line_of_error(error)])
    return ending.sendable()


def _is_cancelled() -> bool:
    """Return whether the running task is cancelled from outside of what it calls."""
    if anyio.current_effective_deadline() == -math.inf:
        return True
    import asyncio

    if anyio.get_cancelled_exc_class() is not asyncio.CancelledError:
        return True
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _attempt(process: Mapping[str, Any]) -> tuple[str, str]:
    """Return what names one attempt at a process; another follows when it is taken back."""
    return str(process["processid"]), str(process.get("retries"))[:40]


def deadline_of(process: Mapping[str, Any]) -> float | None:
    """Return the Unix time by which a process must be closed; None without a limit."""
    moment = parse_time(process.get("execdeadline"))
    try:
        return moment.timestamp() if moment else None
    except (ValueError, OverflowError, OSError):
        return None  # the first or last day of the calendar
