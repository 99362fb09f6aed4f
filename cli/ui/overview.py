"""The first page: counters, the last hour, executors and what they do, peers, and what is wrong."""

from __future__ import annotations

from typing import Any

import msgspec
import trio

from cli.core.output import at
from cli.members.executor import state_name as executor_state
from cli.ui.activity import Slot
from cli.ui.api import Api, Nothing
from cli.ui.clip import clip_all
from cli.ui.context import Context
from cli.ui.processes import ProcessRow, process_row

api = Api()

_TOLD = ("waiting", "paused")  # findings that the page shows by itself, as they are now
_LONGEST = 1000  # characters of a text about a group of processes that nobody can take
_MOST_EXECUTORS = 200  # on the page; the rest are counted


class Hello(msgspec.Struct):
    """What the page needs to know before it draws anything."""

    colony: str
    write: bool
    owner: bool


class ExecutorRow(msgspec.Struct):
    """One executor, and what it does."""

    name: str
    id: str
    type: str
    state: str
    heard: float | None
    location: str
    functions: list[str]
    running: list[ProcessRow]


class Finding(msgspec.Struct):
    """One finding of the doctor: `ok` is null for what may matter and need not."""

    name: str
    ok: bool | None
    detail: str
    next: str


class Overview(msgspec.Struct):
    """The first page."""

    counts: dict[str, int]
    workflows: dict[str, int]
    slots: list[Slot]
    paused: bool
    node: dict[str, Any]
    stuck: list[dict[str, Any]]
    executors: list[ExecutorRow]
    more: int
    peers: list[dict[str, Any]] | None
    findings: list[Finding]
    diagnosed: float


@api.row("hello", Nothing)
async def hello(context: Context, params: Nothing) -> Hello:
    """Return the colony's name, and what this page may do."""
    return Hello(context.colony, context.write, context.owner is not None)


@api.row("diagnose", Nothing)
async def diagnose(context: Context, params: Nothing) -> Nothing:
    """Run the doctor's checks now."""
    await context.diagnose()
    return params


@api.row("overview", Nothing)
async def overview(context: Context, params: Nothing) -> Overview:
    """Return the first page."""
    seen: dict[str, Any] = {}

    async def ask(name: str, kind: str, **fields: Any) -> None:
        seen[name] = await context.here(kind, **fields)

    async def ask_rest() -> None:
        seen["node"] = await context.maybe("getnodestatusmsg")
        seen["peers"] = await context.maybe_owned("getpeersmsg")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, "counts", "getcolonystatsmsg")
        nursery.start_soon(ask, "executors", "getexecutorsmsg")
        nursery.start_soon(ask, "functions", "getfunctionsmsg")
        nursery.start_soon(lambda: ask("running", "getprocessesmsg", state=1, count=100))
        nursery.start_soon(ask, "paused", "getpausestatusmsg")
        nursery.start_soon(ask_rest)
    counts, node = seen["counts"], seen["node"] or {}
    rows = executor_rows(seen["executors"] or [], seen["functions"] or [], seen["running"] or [])
    states = ("waiting", "running", "successful", "failed", "cancelled")
    return Overview(
        counts={each: int(counts.get(f"{each}processes") or 0) for each in states},
        workflows={each: int(counts.get(f"{each}workflows") or 0) for each in states},
        slots=context.activity.slots(),
        paused=bool((seen["paused"] or {}).get("ispaused")),
        node={
            "version": node.get("version"),
            # A minute each: the page is not drawn anew for a second.
            "started": round((context.activity.clock() - float(node.get("uptime") or 0)) / 60) * 60,
            "store": (node.get("etcd") or {}).get("inuse"),
            "quota": (node.get("etcd") or {}).get("quota"),
        },
        stuck=clip_all(node.get("stuck") or [], _LONGEST),
        executors=rows[:_MOST_EXECUTORS],
        more=max(0, len(rows) - _MOST_EXECUTORS),
        peers=None if seen["peers"] is None else [_peer(each) for each in seen["peers"]],
        findings=[
            Finding(each.name, each.ok, each.detail, each.next)
            for each in context.findings
            if each.name not in _TOLD
        ],
        diagnosed=context.diagnosed,
    )


def executor_rows(
    executors: list[dict[str, Any]],
    functions: list[dict[str, Any]],
    running: list[dict[str, Any]],
) -> list[ExecutorRow]:
    """Return the executors that are registered: those that wait for approval first."""
    offered: dict[str, list[str]] = {}
    for each in functions:
        offered.setdefault(str(each.get("executorname")), []).append(str(each.get("funcname")))
    names = {str(each.get("executorid")): str(each.get("executorname")) for each in executors}
    work: dict[str, list[ProcessRow]] = {}
    for process in running:
        row = process_row(process, names)
        work.setdefault(str(process.get("assignedexecutorid")), []).append(row)
    rows = [
        ExecutorRow(
            name=str(each.get("executorname")),
            id=str(each.get("executorid")),
            type=str(each.get("executortype")),
            state=executor_state(each.get("state")),
            heard=at(each.get("lastheardfromtime")),
            location=str(each.get("locationname") or ""),
            functions=sorted(offered.get(str(each.get("executorname")), [])),
            running=work.get(str(each.get("executorid")), []),
        )
        for each in executors
        if each.get("state") != 3
    ]
    order = {"pending": 0, "approved": 1}
    rows.sort(key=lambda row: (order.get(row.state, 2), not row.running, -(row.heard or 0)))
    return rows


def _peer(peer: dict[str, Any]) -> dict[str, Any]:
    return {name: peer.get(name) for name in ("id", "name", "state", "outstanding", "error")}
