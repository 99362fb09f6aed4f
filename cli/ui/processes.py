"""The pages of processes: the list with its filters, and one process with all about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import trio

from cli.core.errors import Failure
from cli.core.lookup import SUCCESSFUL
from cli.core.output import STATES, at, cell_text, output_lines, state_name
from cli.ui.api import Api
from cli.ui.clip import clip
from cli.ui.context import Context
from cli.ui.story import Story, story
from cli.work.why import Answers, Kind, Why, complete, explain
from colonyd.errors import NotFound
from colonyd.replies import newest
from colonyd.rpc import RpcError

api = Api()

_PAGE = 25  # rows of a page
_LIST = 100  # the most that one call of the daemon returns
_CLIP = 160  # characters of arguments in a row
_NAME = 300  # characters of a name; the daemon takes longer ones
LOGS = 300  # lines of a process's page
WINDOWS = {"newest": 0, "hour": 3600, "day": 86_400, "week": 7 * 86_400}


class ProcessRow(msgspec.Struct):
    """One process in a list; times are Unix s."""

    id: str
    func: str
    args: str
    state: str
    submitted: float | None
    started: float | None
    ended: float | None
    by: str
    type: str
    colony: str
    executor: str
    label: str
    node: str
    error: str


class ListParams(msgspec.Struct, forbid_unknown_fields=True):
    """Filters; an empty one lets everything pass. `window` names how far to look back."""

    state: str = ""
    func: str = ""
    executor: str = ""
    text: str = ""
    window: str = "newest"
    page: int = 0


class ProcessList(msgspec.Struct):
    """One page of a list. `cut`: the daemon has more than were looked at."""

    rows: list[ProcessRow]
    total: int
    page: int
    pages: int
    cut: bool
    functions: list[str]
    executors: list[str]


class ProcessPage(msgspec.Struct):
    """One process."""

    row: ProcessRow
    spec: dict[str, Any]
    output: list[str]
    errors: list[str]
    attributes: list[dict[str, Any]]
    retries: int
    workflow: str
    parents: list[str]
    children: list[str]
    executorid: str
    initiatorid: str
    logs: list[dict[str, Any]]
    story: Story
    why: Why | None
    forward: dict[str, Any] | None


class ById(msgspec.Struct, forbid_unknown_fields=True):
    """An id."""

    id: str


def process_row(process: Mapping[str, Any], names: Mapping[str, str]) -> ProcessRow:
    """Return the row of a process; `names` are those of executors by id."""
    spec = process.get("spec") or {}
    conditions = spec.get("conditions") or {}
    words = [cell_text(each) for each in spec.get("args") or []]
    words += [f"{name}={cell_text(value)}" for name, value in (spec.get("kwargs") or {}).items()]
    executor = str(process.get("assignedexecutorid") or "")
    return ProcessRow(
        id=str(process.get("processid")),
        func=_name(spec.get("funcname")),
        args=clip(", ".join(words), _CLIP),
        state=state_name(process.get("state")),
        submitted=at(process.get("submissiontime")),
        started=at(process.get("starttime")),
        ended=at(process.get("endtime")),
        by=_name(process.get("initiatorname")),
        type=_name(conditions.get("executortype")),
        colony=_name(conditions.get("colonyname")),
        executor=_name(names.get(executor) or _peer_name(process, executor)),
        label=_name(spec.get("label")),
        node=_name(spec.get("nodename")),
        error=clip("; ".join(map(cell_text, process.get("errors") or [])), _CLIP),
    )


def _name(text: object) -> str:
    return clip(str(text or ""), _NAME)


def _peer_name(process: Mapping[str, Any], executor: str) -> str:
    """Return the colony that runs a process which no executor of this one does."""
    if not executor:
        return ""
    wanted = str(((process.get("spec") or {}).get("conditions") or {}).get("colonyname") or "")
    return f"colony {wanted or executor[:12]}"


@api.row("processes", ListParams)
async def processes(context: Context, params: ListParams) -> ProcessList:
    """Return one page of the processes that pass the filters, the newest first."""
    if params.state not in ("", *STATES) or params.window not in WINDOWS:
        raise Failure("no such state or time", next_step="reload the page")
    states = range(len(STATES)) if not params.state else [STATES.index(params.state)]
    found: list[dict[str, Any]] = []
    cut = False
    executors: list[dict[str, Any]] = []

    async def look(state: int) -> None:
        nonlocal cut
        if seconds := WINDOWS[params.window]:
            found.extend(
                await context.here("getprocesshistmsg", state=state, seconds=seconds) or []
            )
            return
        fields = {"colonyname": context.colony, "state": state, "count": _LIST}
        rows, most = await newest(lambda asked: context.call("getprocessesmsg", **asked), fields)
        found.extend(rows)
        cut = cut or len(rows) >= most

    async def who() -> None:
        executors.extend(await context.here("getexecutorsmsg") or [])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(who)
        for state in states:
            nursery.start_soon(look, state)
    names = {str(each["executorid"]): str(each["executorname"]) for each in executors}
    rows = [process_row(each, names) for each in found]
    functions, busy = {row.func for row in rows}, {row.executor for row in rows if row.executor}
    rows = [row for row in rows if _passes(row, params)]
    rows.sort(key=lambda row: (-(row.submitted or 0), row.id))
    pages = max(1, -(-len(rows) // _PAGE))
    page = min(max(params.page, 0), pages - 1)
    return ProcessList(
        rows=rows[page * _PAGE : (page + 1) * _PAGE],
        total=len(rows),
        page=page,
        pages=pages,
        cut=cut,
        functions=sorted(functions)[:_LIST],
        executors=sorted(busy)[:_LIST],
    )


def _passes(row: ProcessRow, params: ListParams) -> bool:
    if params.func and row.func != params.func:
        return False
    if params.executor and params.executor not in (row.executor, row.type):
        return False
    if not params.text:
        return True
    words = (row.id, row.func, row.args, row.by, row.type, row.colony, row.executor, row.label)
    text = "\n".join((*words, row.node, row.error)).casefold()
    return params.text.casefold() in text


@api.row("process", ById)
async def process(context: Context, params: ById) -> ProcessPage:
    """Return all about one process: its way, its logs, and why it does not run."""
    try:
        found: dict[str, Any] = await context.call("getprocessmsg", processid=params.id)
    except NotFound:
        from cli.ui.archive import archived

        return await archived(context, params.id)
    seen: dict[str, Any] = {"hops": None}

    async def logs() -> None:
        fields = {"processid": params.id, "count": LOGS, "since": 0, "latest": True}
        try:
            seen["logs"] = await context.here("getlogsmsg", **fields) or []
        except RpcError:
            seen["logs"] = []

    async def way() -> None:
        seen["forward"] = await context.maybe("getforwardmsg", processid=params.id) or None
        if str(found.get("initiatorname")).startswith("colony/"):
            seen["hops"] = await context.maybe("getoriginmsg", processid=params.id)

    async def who() -> None:
        seen["executors"] = await context.here("getexecutorsmsg") or []

    async with trio.open_nursery() as nursery:
        for each in (logs, way, who):
            nursery.start_soon(each)
    if not seen["logs"] and int(found.get("state") or 0) >= SUCCESSFUL:
        from cli.ui.archive import kept_logs

        seen["logs"] = await kept_logs(context, params.id)
    names = {str(each["executorid"]): str(each["executorname"]) for each in seen["executors"]}
    known = Answers(
        found, seen["forward"], executors=seen["executors"], now=context.activity.clock()
    )
    why = explain(await complete(*context.callers(), known))
    return ProcessPage(
        row=process_row(found, names),
        spec=found.get("spec") or {},
        output=[clip(line) for line in output_lines(found.get("out"))],
        errors=[clip(cell_text(each)) for each in found.get("errors") or []],
        attributes=found.get("attributes") or [],
        retries=int(found.get("retries") or 0),
        workflow=str(found.get("processgraphid") or ""),
        parents=found.get("parents") or [],
        children=found.get("children") or [],
        executorid=str(found.get("assignedexecutorid") or ""),
        initiatorid=str(found.get("initiatorid") or ""),
        logs=[log_line(each) for each in seen["logs"]],
        story=story(found, context.colony, names, seen["forward"], seen["hops"] or []),
        why=None if why.kind in (Kind.RUNNING, Kind.ENDED) else why,
        forward=seen["forward"],
    )


def log_line(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return a log line with its time in Unix s."""
    return {
        "at": int(line.get("timestamp") or 0) / 1e9,
        "executor": line.get("executorname"),
        "text": clip(str(line.get("message")).rstrip("\n"), 20_000),
    }
