"""Completion of ids, peers, functions and executors in a shell: asked of the daemon, quickly.

A shell waits while this runs: after a second, or without a daemon, there are no suggestions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click
from click.shell_completion import CompletionItem

from cli.core.output import cell_text, short, state_name
from cli.core.session import Session
from cli.core.terminal import printable

_PATIENCE = 1.0  # seconds
_MOST = 100  # suggestions

Suggestions = list[tuple[str, str]]  # value, help
Source = Callable[[Session, str], Suggestions]  # of the command's name


def _ask(session: Session, payloadtype: str, fields: dict[str, Any], owner: bool) -> Any:
    import trio

    key = session.owner_key() if owner else session.member_key()

    async def work() -> Any:
        with trio.fail_after(_PATIENCE):
            async with session.client() as client:
                return await client.call(payloadtype, fields, key, timeout=_PATIENCE)

    return trio.run(work)


def _here(session: Session, **fields: Any) -> dict[str, Any]:
    return {"colonyname": session.colony(), **fields}


def _processes(session: Session, command: str) -> Suggestions:
    # What a command can be about, so that the list is short and of use.
    states = {
        "cancel": (1, 0),
        "why": (0,),
        "close": (1,),
        "fail": (1,),
        "wait": (1, 0),
        "set-output": (1,),
    }
    found: Suggestions = []
    listing = {"count": 50, "executortype": "", "label": "", "initiator": ""}
    for state in states.get(command, (1, 0, 3, 2)):
        fields = _here(session, state=state, **listing)
        for row in _ask(session, "getprocessesmsg", fields, False) or []:
            name = (row.get("spec") or {}).get("funcname")
            found.append((short(row["processid"]), f"{name}, {state_name(state)}"))
    return found


def _workflows(session: Session, command: str) -> Suggestions:
    found: Suggestions = []
    for state in (1, 0, 3, 2):
        fields = _here(session, state=state, count=50)
        rows = _ask(session, "getprocessgraphsmsg", fields, False) or []
        found += [(short(row["processgraphid"]), state_name(state)) for row in rows]
    return found


def _named(
    payloadtype: str, name: str, about: str = "", *, owner: bool = False, colony: bool = True
) -> Source:
    """Return a source of the names in one listing; `about` is the field that explains them."""

    def names(session: Session, command: str) -> Suggestions:
        fields = _here(session) if colony else {}
        rows = _ask(session, payloadtype, fields, owner) or []
        return [(cell_text(row.get(name)), cell_text(row.get(about))) for row in rows]

    return names


def _functions(session: Session, command: str) -> Suggestions:
    rows = _ask(session, "getfunctionsmsg", _here(session, executorname=""), False) or []
    return [(cell_text(row["funcname"]), cell_text(row.get("executortype"))) for row in rows]


def _peers(session: Session, command: str) -> Suggestions:
    rows = _ask(session, "getpeersmsg", {}, True) or []
    return [(cell_text(row.get("petname") or row["name"]), cell_text(row["state"])) for row in rows]


_executors = _named("getexecutorsmsg", "executorname", "executortype")
_SOURCES: Mapping[str, Source] = {
    "processid": _processes,
    "workflowid": _workflows,
    "peer": _peers,
    "--colony": _peers,
    "--func": _functions,
    "function": _functions,
    "--executor": _executors,
    "--as": _executors,
    "--process": _processes,
    "cron": _named("getcronsmsg", "name"),
    "generator": _named("getgeneratorsmsg", "name"),
    "executor name": _executors,
    "user name": _named("getusersmsg", "name"),
    "location name": _named("getlocationsmsg", "name"),
    "snapshot name": _named("getsnapshotsmsg", "name", "label"),
}


def source_of(command: click.Command, group: str, parameter: click.Parameter) -> str:
    """Return which source completes a parameter, or ""."""
    if group == "history":
        return ""  # of files, which no daemon is asked for
    if isinstance(parameter, click.Option):
        return next((name for name in parameter.opts if name in _SOURCES), "")
    name = parameter.name or ""
    if command.name == "add":  # a name that nobody has yet
        return name if name in ("processid", "workflowid") else ""
    return next((each for each in (f"{group} {name}", name) if each in _SOURCES), "")


def complete(context: click.Context, parameter: click.Parameter, text: str) -> list[CompletionItem]:
    """Return what the daemon has for a parameter; nothing if it has no source, or no answer."""
    group = context.parent.command.name if context.parent is not None else ""
    source = source_of(context.command, group or "", parameter)
    if not source:
        return []
    try:
        found = _SOURCES[source](context.ensure_object(Session), context.command.name or "")
    except (Exception, KeyboardInterrupt):  # no home, no daemon, no right: a shell wants no words
        return []
    begun = {value: about for value, about in found if value and value.startswith(text)}
    usable = [(value, about) for value, about in begun.items() if value.isprintable()]
    return [CompletionItem(value, help=printable(about)) for value, about in usable[:_MOST]]
