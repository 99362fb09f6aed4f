"""The page of the history: what has left the store, read from the home's files, and its check.

The files are on the daemon's machine, so this page is empty elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import trio

from cli.core.errors import Failure
from cli.core.output import cell_text, output_lines, short
from cli.daemon.history import directory_of, ended, read, record_of
from cli.ui.api import Api, Nothing
from cli.ui.clip import clip
from cli.ui.context import Context
from cli.ui.processes import LOGS, ProcessPage, ProcessRow, log_line, process_row
from cli.ui.story import Event, story
from node.model.codec import wire_time

api = Api()

_LIST = 100
_MOST_KEPT = 32  # processes whose lines are remembered

T = TypeVar("T")


class VerifyParams(msgspec.Struct, forbid_unknown_fields=True):
    """A digest that was noted elsewhere, or ""."""

    contains: str = ""


class Archive(msgspec.Struct):
    """The newest processes of the history."""

    directory: str
    there: bool
    rows: list[ProcessRow]


class Verified(msgspec.Struct):
    """The result of the check: without problems, all is as it was written."""

    files: int
    records: int
    head: str
    problems: list[str]


@api.row("history", Nothing)
async def history(context: Context, params: Nothing) -> Archive:
    """Return what ended last of the processes in the history."""
    directory = directory_of(context.session, context.colony)
    if not directory.is_dir():
        return Archive(str(directory), False, [])
    records = await _beside(lambda: read(directory, _process, _LIST))
    records.sort(key=ended, reverse=True)
    executors = await context.here("getexecutorsmsg") or []
    names = {str(each["executorid"]): str(each["executorname"]) for each in executors}
    rows = [process_row(_wire(each["process"]), names) for each in records[:_LIST]]
    return Archive(str(directory), True, rows)


@api.row("verify", VerifyParams)
async def verify(context: Context, params: VerifyParams) -> Verified:
    """Check that every record follows the one before."""
    from node.archive.chain import verify as check

    directory = directory_of(context.session, context.colony)
    digest = params.contains.strip().lower()
    found = await _beside(lambda: check(directory, digest))
    problems = list(found.problems)
    if digest and not found.contains:
        problems.append(f"no record has the digest {digest[:80]}")
    return Verified(found.files, found.records, found.head.digest, problems)


async def archived(context: Context, processid: str) -> ProcessPage:
    """Return the page of a process that has left the store. Raises Failure."""
    directory: Path = directory_of(context.session, context.colony)
    record = await _beside(lambda: record_of(directory, processid))
    if record is None:
        raise Failure(
            f"no process {processid[:64]!r} is known here",
            next_step="it was removed, or is another colony's",
        )
    found = _wire(record["process"])
    lived = story(found, context.colony, {}, None, [])
    lived.events += signed_events(record)
    lived.events.sort(key=lambda each: (each.at is None, each.at or 0))
    return ProcessPage(
        row=process_row(found, {}),
        spec=found.get("spec") or {},
        output=[clip(line) for line in output_lines(found.get("out"))],
        errors=[clip(cell_text(each)) for each in found.get("errors") or []],
        attributes=found.get("attributes") or [],
        retries=int(found.get("retries") or 0),
        workflow=str(found.get("processgraphid") or ""),
        parents=[],
        children=[],
        executorid=str(found.get("assignedexecutorid") or ""),
        initiatorid=str(found.get("initiatorid") or ""),
        logs=[log_line(each) for each in record["logs"]],
        story=lived,
        why=None,
        forward=None,
    )


async def kept_logs(context: Context, processid: str) -> list[dict[str, Any]]:
    """Return the last log lines of a closed process that are in history files; they are read once.

    The daemon knows a process that has left the store, and not its lines.
    """
    known = context.kept_logs
    if processid not in known:
        directory = directory_of(context.session, context.colony)
        record = None
        with suppress(Failure):
            record = await _beside(lambda: record_of(directory, processid))
        if len(known) >= _MOST_KEPT:
            del known[next(iter(known))]
        known[processid] = record["logs"][-LOGS:] if record else []
    return known[processid]


def signed_events(record: dict[str, Any]) -> list[Event]:
    """Return what other colonies signed about a process of the history, verified now."""
    from federation.outbox.evidence import asked, check

    events: list[Event] = []
    if not record.get("forward"):
        return events
    for what, verdict in (("asked for it", asked(record)), ("signed its outcome", check(record))):
        if verdict is not None:
            name = verdict.name or f"colony {short(verdict.issuer)}"
            detail = "; ".join(filter(None, (verdict.problem, verdict.note)))
            kind = "signed"
            events.append(
                Event(None, name, what, detail, not verdict.problem, kind, verdict.issuer)
            )
    return events


def _process(record: dict[str, Any]) -> bool:
    return bool(record["kind"] == "process")


def _wire(stored: dict[str, Any]) -> dict[str, Any]:
    """Return a process of the history with the times and the output as calls tell them."""
    times = ("submissiontime", "starttime", "endtime")
    told = {name: wire_time(int(stored.get(name) or 0)) for name in times}
    return stored | told | {"out": stored.get("output") or [], "waitdeadline": ""}


async def _beside(work: Callable[[], T]) -> T:
    """Run work on files in a thread. Raises Failure for files of another user."""
    try:
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True)
    except PermissionError as error:
        raise Failure(
            f"{error.filename}: not readable by this user",
            next_step="run `colony ui` as the daemon's user",
        ) from None
