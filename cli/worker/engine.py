"""The engine of `colony worker`: registers an executor, takes processes, runs commands, closes.

Commands run in `cli.worker.subprocess`; options, signals and printing are in `cli.worker.command`.
"""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from cli.core.client import Client, RpcError, Unreachable
from cli.core.errors import DENIED, Failure
from cli.core.lookup import newest
from cli.core.output import parse_time
from cli.worker.livelog import LiveLog, relay
from cli.worker.subprocess import CommandResult, OutputSink, Reaper, run_command
from node.model.errors import Conflict, Denied, Invalid, NotFound, TimedOut, TooLarge, Unavailable

if TYPE_CHECKING:
    from node.host.keys import PrivateKey

PENDING, APPROVED, REJECTED, UNREGISTERED = range(4)
RUNNING = 1
_POLL = 30  # seconds of one assign long-poll; each writes a few bytes to the store
_LOOK = 5.0  # seconds between looks at a running process: a heartbeat, and sees a cancel
_RETRY_FIRST, _RETRY_MOST = 0.2, 10.0  # seconds of back-off while the daemon is away
_AFTER_DEADLINE = 60.0  # seconds past its deadline for which a result is still offered
_CLOSING = 60.0  # seconds of one try to close: an output may be large, and the way slow
_LAST_LINES = 3.0  # seconds for the last lines of a command's log
_LAST_WORDS = 5.0  # seconds for the closing call of a command that was stopped
_AMISS = ("issuedat", "audience")  # clock and server's id can be set right: results last till then
_ID = re.compile("[0-9A-Za-z]{1,128}")
_OVER = ", not running"  # the process ended otherwise: the result is not wanted
_STOPPED = "the worker was stopped before the command had ended"

Report = Callable[[str, Mapping[str, object]], None]


@dataclass(frozen=True)
class WorkerSettings:
    """The settings of a worker: its name and type, its functions (name → shell command), its
    slots.
    """

    colony: str
    name: str
    kind: str
    functions: Mapping[str, str]
    slots: int
    results: Path  # directory for results that the daemon has not acknowledged yet
    approve: bool
    environ: Mapping[str, str] = field(default_factory=dict)  # for commands


@dataclass
class Worker:
    """One executor. `owner` gives the colony's key, read only when it must sign."""

    client: Client
    settings: WorkerSettings
    key: PrivateKey
    owner: Callable[[], PrivateKey]
    report: Report
    stop: trio.Event
    guard: Reaper | None = None
    _active: set[str] = field(default_factory=set)
    _registering: trio.Lock = field(default_factory=trio.Lock)

    # -- registration ---------------------------------------------------------------------------

    async def register(self) -> None:
        """Make this executor known and approved, and list its functions. Safe to repeat."""
        async with self._registering:  # slots find out at the same time that they are unknown
            await self._register()

    async def _register(self) -> None:
        mine = await self._me()
        if mine is None or mine["state"] == UNREGISTERED:
            mine = await self._add()
        if mine["executortype"] != self.settings.kind:
            raise Failure(
                f"executor {self.settings.name} is registered with type {mine['executortype']!r}",
                next_step="use that --type, or another --name",
            )
        if mine["state"] == REJECTED:
            raise Failure(
                f"executor {self.settings.name} was rejected by the colony's owner",
                code=DENIED,
                next_step=f"`colony executor approve {shlex.quote(self.settings.name)}`",
            )
        if mine["state"] == PENDING:
            await self._approval()
        await self._list_functions()

    async def _add(self) -> dict[str, Any]:
        executor = {
            "executorid": self.key.id,
            "executorname": self.settings.name,
            "executortype": self.settings.kind,
            "colonyname": self.settings.colony,
        }
        try:
            await self._again("addexecutormsg", {"executor": executor}, self.owner())
        except RpcError as error:
            mine = await self._me()  # an earlier try may have succeeded and its reply been lost
            if mine is not None and mine["state"] != UNREGISTERED:
                return mine
            if not isinstance(error, Invalid | Conflict):
                raise
            raise Failure(
                f"can't register executor {self.settings.name}: {error.message}",
                next_step="is the name taken? try another --name, or `colony executor ls`",
            ) from None
        self.report("registered", {"name": self.settings.name, "id": self.key.id})
        return {"state": PENDING, "executortype": self.settings.kind}

    async def _me(self) -> dict[str, Any] | None:
        fields = {"colonyname": self.settings.colony}
        try:
            rows = await self._again("getexecutorsmsg", fields, self.key)
        except (Denied, NotFound):
            return None  # not known at all yet
        return next((row for row in rows or [] if row["executorid"] == self.key.id), None)

    async def _approval(self) -> None:
        name = {"colonyname": self.settings.colony, "executorname": self.settings.name}
        if self.settings.approve:
            await self._again("approveexecutormsg", name, self.owner())
            return
        self.report(
            "pending", {"next": f"colony executor approve {shlex.quote(self.settings.name)}"}
        )
        while not self.stop.is_set():
            mine = await self._me()
            if mine is not None and mine["state"] == APPROVED:
                return
            if mine is not None and mine["state"] == REJECTED:
                raise Failure(f"executor {self.settings.name} was rejected", code=DENIED)
            with trio.move_on_after(2.0):
                await self.stop.wait()

    async def _list_functions(self) -> None:
        if self.stop.is_set():
            return
        where = {"colonyname": self.settings.colony, "executorname": self.settings.name}
        rows = await self._again("getfunctionsmsg", where, self.key)
        there = {row["funcname"] for row in rows or []}
        for name in self.settings.functions:
            if name not in there:
                fun = {**where, "executortype": self.settings.kind, "funcname": name}
                await self._again("addfunctionmsg", {"fun": fun}, self.key)

    async def _again(self, kind: str, fields: dict[str, Any], key: PrivateKey) -> Any:
        """Call, and repeat with back-off while the daemon is away. For idempotent calls."""
        pause = _RETRY_FIRST
        while True:
            try:
                return await self.client.call(kind, fields, key)
            except Unreachable as error:
                if self.stop.is_set():
                    raise
                self.report("unreachable", {"error": str(error)})
                pause = await self._pause(pause)

    async def _pause(self, pause: float) -> float:
        with trio.move_on_after(pause * random.uniform(0.7, 1.3)):
            await self.stop.wait()
        return min(pause * 2, _RETRY_MOST)

    # -- work -----------------------------------------------------------------------------------

    async def work(self) -> None:
        """Register, settle the processes of an earlier run, then work until `stop` is set."""
        await self.register()
        await self._settle()
        self.report("ready", {"name": self.settings.name, "functions": [*self.settings.functions]})
        async with trio.open_nursery() as nursery:
            for _ in range(self.settings.slots):
                nursery.start_soon(self._slot)

    async def _settle(self) -> None:
        """Close processes of an earlier run: with the kept result, else as failed.

        An interrupted command is not run again: it may have had effects.
        """
        for path in sorted(self.settings.results.glob("*.json")):
            if not path.is_file():
                self._set_aside(path, "no regular file")  # reading a FIFO might never end
                continue
            try:
                kept = msgspec.json.decode(path.read_bytes(), type=_SavedResult)
            except (OSError, msgspec.MsgspecError) as error:
                self._set_aside(path, str(error))
                continue
            await self._close(path.stem, CommandResult(kept.out, kept.errors), None)
        for process in await self._assigned():
            await self._close(process["processid"], CommandResult([], [_STOPPED]), None)

    async def _assigned(self) -> list[dict[str, Any]]:
        """Return running processes that are assigned to this executor but that it doesn't
        know of.
        """
        fields = {
            "colonyname": self.settings.colony,
            "count": 100,
            "state": RUNNING,
            "executortype": self.settings.kind,
            "label": "",
            "initiator": "",
        }
        rows, _ = await newest(
            lambda asked: self._again("getprocessesmsg", asked, self.key), fields
        )
        return [
            row
            for row in rows
            if row.get("assignedexecutorid") == self.key.id
            and row["processid"] not in self._active
            and self._usable(row)
        ]

    async def _slot(self) -> None:
        pause = _RETRY_FIRST
        while not self.stop.is_set():
            try:
                process = await self._assign()
                pause = _RETRY_FIRST
            except Unreachable as error:
                self.report("unreachable", {"error": str(error)})
                pause = await self._pause(pause)
                if error.sent:
                    await self._adopt()
                continue
            except RpcError as error:
                if isinstance(error, Denied):
                    await self.register()  # unregistered while away; raises when rejected
                else:
                    self.report("refused", {"error": str(error)})
                pause = await self._pause(pause)
                continue
            if process is not None:
                await self._run(process)
        await self._adopt()

    async def _assign(self) -> dict[str, Any] | None:
        """Make one long-poll, given up when `stop` is set: `_adopt` then finds a process that it
        may have won.
        """
        fields = {"colonyname": self.settings.colony, "timeout": _POLL}
        fields |= {"availablecpu": "", "availablemem": ""}
        began = trio.current_time()
        got: dict[str, Any] | None = None
        failed: RpcError | Unreachable | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cancel_on_stop, nursery.cancel_scope)
            try:
                got = await self.client.call("assignprocessmsg", fields, self.key, _POLL + 15.0)
            except (NotFound, TimedOut, Unavailable):
                pass  # there is none
            except (RpcError, Unreachable) as error:
                failed = error
            nursery.cancel_scope.cancel()
        if failed is not None:
            raise failed
        if got is not None and not self._usable(got):
            got = None
        if got is None and trio.current_time() - began < 1.0:
            await self._pause(1.0)  # a server that answers "none" at once must not be hammered
        return got

    def _usable(self, process: Mapping[str, Any]) -> bool:
        """Return whether a process has an id that can name a file: the server may not be ours."""
        processid = str(process["processid"])
        if _ID.fullmatch(processid):
            return True
        self.report("refused", {"error": f"the server names a process {processid[:80]!r}"})
        return False

    async def _cancel_on_stop(self, scope: trio.CancelScope) -> None:
        await self.stop.wait()
        scope.cancel()

    async def _adopt(self) -> None:
        """Run processes won by an assign whose reply was lost: they have never been started."""
        try:
            won = await self._assigned()
        except (Unreachable, RpcError) as error:
            self.report("unreachable", {"error": str(error)})
            return
        for process in won:
            if process["processid"] not in self._active:
                await self._run(process)

    async def _run(self, process: dict[str, Any]) -> None:
        processid: str = process["processid"]
        if processid in self._active:
            return  # two slots learned of it: one by the reply, one by `_adopt`
        spec = process.get("spec") or {}
        name = str(spec.get("funcname"))
        command = self.settings.functions.get(name)
        self._active.add(processid)
        try:
            self.report("started", {"processid": processid, "function": name})
            began = trio.current_time()
            if command is None:
                known = ", ".join(sorted(self.settings.functions))
                text = f"executor {self.settings.name} has no function {name!r}; it has: {known}"
                ending: CommandResult | None = CommandResult([], [text])
            else:
                ending = await self._command(command, process)
            took = round(trio.current_time() - began, 3)
            if ending is None:
                self.report("withdrawn", {"processid": processid, "function": name})
                return
            self._keep(processid, ending)
            closed = await self._close(processid, ending, deadline_of(process))
            if closed is None:
                return
            self.report(
                "successful" if closed.ok else "failed",
                {"processid": processid, "function": name, "seconds": took}
                | ({} if closed.ok else {"errors": closed.errors}),
            )
        finally:
            self._active.discard(processid)

    async def _command(self, command: str, process: dict[str, Any]) -> CommandResult | None:
        """Run the command; return None when the process was cancelled or given to another
        meanwhile.
        """
        spec = process["spec"]
        # Not the spec's own `env`: a submitter must not set PATH or LD_PRELOAD here.
        environ = {
            **self.settings.environ,
            "COLONYD_PROCESS_ID": process["processid"],
            "COLONYD_FUNCTION": spec["funcname"],
            "COLONYD_KWARGS": json.dumps(spec.get("kwargs") or {}),
        }
        ending: CommandResult | None = None
        left = False
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, process["processid"], nursery.cancel_scope)
                feed = LiveLog()
                nursery.start_soon(relay, feed, partial(self._log, process["processid"]))
                hearing = OutputSink(feed.stderr, feed.progress)
                ending = await run_command(
                    command, spec.get("args") or [], environ, hearing=hearing, guard=self.guard
                )
                feed.finish()
                if message := feed.take():
                    with trio.move_on_after(_LAST_LINES):
                        await self._log(process["processid"], message)
                nursery.cancel_scope.cancel()
            left = True
        finally:
            if not left and ending is not None:
                self._keep(process["processid"], ending)
            elif not left:
                await self._last_words(process["processid"])
        return ending

    async def _log(self, processid: str, message: str) -> bool:
        """Log output of a command; return False when further lines are of no use."""
        fields = {"processid": processid, "message": message}
        try:
            await self.client.call("addlogmsg", fields, self.key)
        except Unreachable:
            return True  # these lines are lost: the command must not wait for its log
        except RpcError as error:
            self.report("not logged", {"processid": processid, "error": str(error)})
            return False
        return True

    async def _last_words(self, processid: str) -> None:
        """Close the process before leaving, so that no caller waits for it: the grace is over."""
        with trio.move_on_after(_LAST_WORDS, shield=True):
            try:
                await self._close_once(processid, CommandResult([], [_STOPPED]))
            except Unreachable as error:
                self.report("unreachable", {"processid": processid, "error": str(error)})

    async def _watch(self, processid: str, scope: trio.CancelScope) -> None:
        """Look at a running process now and then; end its command when it is no longer ours."""
        while True:
            await trio.sleep(_LOOK)
            try:
                found = await self.client.call("getprocessmsg", {"processid": processid}, self.key)
            except Unreachable:
                continue
            except NotFound:
                scope.cancel()
                continue
            except RpcError:
                continue
            if found["state"] != RUNNING or found["assignedexecutorid"] != self.key.id:
                scope.cancel()

    # -- results --------------------------------------------------------------------------------

    def _path(self, processid: str) -> Path:
        return self.settings.results / f"{processid}.json"

    def _keep(self, processid: str, ending: CommandResult) -> None:
        """Write a result down, durably, before it is offered: a crash must not lose it.

        If the disk takes no more, it is offered from memory alone.
        """
        path = self._path(processid)
        part = path.with_suffix(".part")
        try:
            with part.open("wb") as file:
                file.write(msgspec.json.encode(_SavedResult(ending.out, ending.errors)))
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError as error:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            self.report(
                "not kept", {"processid": processid, "error": str(error), "next": "free the disk"}
            )

    def _set_aside(self, path: Path, why: str) -> None:
        """Move a result that can't be offered out of the way, for people to look at."""
        aside = path.with_suffix(".unusable")
        try:
            path.replace(aside)
        except OSError as error:
            why = f"{why}; {error}"
        self.report("set aside", {"file": str(aside), "error": why})

    async def _close(
        self, processid: str, ending: CommandResult, deadline: float | None
    ) -> CommandResult | None:
        """Close with back-off until acknowledged or refused, or (Unix s) past the deadline.

        Returns what the colony has acknowledged, None for nothing. A result that is given up stays
        in its file and is offered again by the next start.
        """
        pause = _RETRY_FIRST
        while True:
            try:
                return await self._close_once(processid, ending)
            except Unreachable as error:
                if deadline is not None and time.time() > deadline + _AFTER_DEADLINE:
                    self.report("kept", {"processid": processid, "error": str(error)})
                    return None
                self.report("unreachable", {"processid": processid, "error": str(error)})
                await trio.sleep(pause * random.uniform(0.7, 1.3))
                pause = min(pause * 2, _RETRY_MOST)

    async def _close_once(self, processid: str, ending: CommandResult) -> CommandResult | None:
        """Return what was acknowledged, or None when the result is no longer wanted."""
        fields: dict[str, Any] = {"processid": processid}
        kind = "closesuccessfulmsg" if ending.ok else "closefailedmsg"
        fields |= {"out": ending.out} if ending.ok else {"errors": ending.errors}
        try:
            await self.client.call(kind, fields, self.key, _CLOSING)
        except RpcError as error:
            if error.status in (408, 429, *range(500, 600)) or error.message.startswith(_AMISS):
                raise Unreachable(str(error), sent=True) from None
            self.report("refused", {"processid": processid, "error": str(error)})
            if error.message.endswith(_OVER):
                self._path(processid).unlink(missing_ok=True)
                return None
            if isinstance(error, Invalid | TooLarge) and ending.ok:
                reason = f"the colony refused the output: {error.message}"
                return await self._close_once(processid, CommandResult([], [reason]))
            if isinstance(error, Invalid | TooLarge):
                self._set_aside(self._path(processid), error.message)
                return None
            # Cancelled, past its deadline, or given to another: the result is not wanted.
            self._path(processid).unlink(missing_ok=True)
            return None
        self._path(processid).unlink(missing_ok=True)
        return ending


class _SavedResult(msgspec.Struct):
    """A result in its file."""

    out: list[Any]
    errors: list[str]


def deadline_of(process: Mapping[str, Any]) -> float | None:
    """Return the Unix time by which a process must be closed; None without a limit."""
    moment = parse_time(process.get("execdeadline"))
    return moment.timestamp() if moment else None
