"""`colony history`: lists, shows and verifies what has left the store for the home's history files.

The daemon writes the files; their form is in `node.archive.chain`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.core.errors import FAILED, NOT_FOUND, USAGE, Failure
from cli.core.output import (
    STATES,
    ago,
    cell_text,
    output_lines,
    print_fields,
    print_json,
    print_rows,
    short,
    state_name,
)
from cli.core.session import Session, colony_command, colony_group
from cli.core.terminal import print_line, print_note

if TYPE_CHECKING:
    from node.archive.chain import Dropped

history = colony_group(
    "history",
    "Closed processes, workflows and log lines that are past `history.keep`. Unlike all other "
    "commands, these ask no daemon: they read the files below the home directory, so run them on "
    "the daemon's machine as its user.",
    "colony history ls --func render",
    "colony history verify",
)

_colony = click.option("--colony", default=None, help="A colony hosted here [the home colony].")


def directory_of(session: Session, colony: str | None) -> Path:
    """Return where the history of a colony is. Raises Failure for a name that can't be one."""
    from node.model.ids import valid_name

    name = colony or session.colony()
    if not valid_name(name):
        raise Failure(f"colony name {name!r}: not a usable name", code=USAGE)
    return session.home / "history" / name


def read(
    directory: Path, wanted: Callable[[dict[str, Any]], bool], newest: int = 0
) -> list[dict[str, Any]]:
    """Return each wanted record once: of two about one thing the later one is at least as complete.

    With `newest`, at least that many of those that ended last are among them, and not all.
    """
    from node.archive.chain import HistoryError, records

    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    try:
        for record in filter(wanted, records(directory)):
            found[str(record["kind"]), str(record["id"]), int(record.get("part", -1))] = record
            if newest and len(found) > 2 * newest + 1000:
                kept = sorted(found.items(), key=lambda item: ended(item[1]))[-newest:]
                found = dict(kept)
    except HistoryError as error:
        raise Failure(
            str(error), next_step="`colony history verify`; restore the file from a backup"
        ) from None
    except PermissionError as error:
        raise Failure(
            f"{error.filename}: not readable by this user", next_step="run as the daemon's user"
        ) from None
    return list(found.values())


def _dropped_note(directory: Path) -> str:
    """Return what to say of records that were dropped for the quota, or nothing."""
    from node.archive.chain import HistoryError, dropped

    with suppress(HistoryError, OSError):
        if (gone := dropped(directory)).number:
            return f"; what was written before {_iso(gone.written)} was dropped: history.quota"
    return ""


def ended(record: dict[str, Any]) -> int:
    """Return when the process or workflow of a record ended, in Unix ns."""
    return int(record[record["kind"]]["endtime"])


def _moment(nanoseconds: object) -> datetime | None:
    return datetime.fromtimestamp(int(str(nanoseconds)) / 1e9, UTC) if nanoseconds else None


def _iso(nanoseconds: object) -> str:
    moment = _moment(nanoseconds)
    return moment.isoformat(sep=" ", timespec="milliseconds") if moment else ""


@colony_command("ls", "colony history ls", "colony history ls --state failed --count 100")
@_colony
@click.option("--state", type=click.Choice(STATES[2:]), default=None, help="Only this state.")
@click.option("--func", default="", help="Only this function.")
@click.option("--workflows", is_flag=True, help="Workflows instead of processes.")
@click.option("--count", type=click.IntRange(1), default=20, show_default=True)
def ls(
    session: Session, colony: str | None, state: str | None, func: str, workflows: bool, count: int
) -> None:
    """List what ended last, of the processes (or workflows) that are in history."""
    kind = "workflow" if workflows else "process"

    def wanted(record: dict[str, Any]) -> bool:
        if record["kind"] != kind:
            return False
        if state is not None and state_name(record[kind]["state"]) != state:
            return False
        return workflows or not func or record[kind]["spec"]["funcname"] == func

    found = read(directory_of(session, colony), wanted, count)
    rows = [record[kind] for record in sorted(found, key=ended, reverse=True)[:count]]
    if workflows:
        columns = ["ID", "NODES", "STATE", "ENDED", "BY"]
    else:
        columns = ["ID", "FUNCTION", "STATE", "ENDED", "BY", "TYPE"]

    def cells(thing: Any) -> list[object]:
        from cli.core.layout import cut, one_line

        if workflows:
            return [
                short(thing["processgraphid"]),
                thing["count"],
                state_name(thing["state"]),
                ago(_moment(thing["endtime"])),
                thing["initiatorname"],
            ]
        arguments = ", ".join(cell_text(value) for value in thing["spec"]["args"] or [])
        call = f"{thing['spec']['funcname']}({arguments})"
        return [
            short(thing["processid"]),
            cut(one_line(call), 48),
            state_name(thing["state"]),
            ago(_moment(thing["endtime"])),
            thing["initiatorname"],
            thing["spec"]["conditions"]["executortype"],
        ]

    print_rows(session, rows, columns, cells, "nothing in history")


@colony_command("show", "colony history show 3fa2b1c09d7e", "colony history show 3fa2 --json")
@_colony
@click.argument("identifier", metavar="ID")
def show(session: Session, colony: str | None, identifier: str) -> None:
    """Show a process or workflow with its logs; the start of an id is enough if it is unique."""
    start = identifier.lower()

    def wanted(record: dict[str, Any]) -> bool:
        if record["kind"] in ("process", "workflow", "logs") and record["id"].startswith(start):
            return True
        return record["kind"] == "process" and bool(
            record["process"]["processgraphid"].startswith(start)
        )

    everything = read(directory_of(session, colony), wanted)
    found = [
        record
        for record in everything
        if record["kind"] in ("process", "workflow") and record["id"].startswith(start)
    ]
    if not found:
        raise Failure(
            f"nothing in history begins with {identifier!r}",
            code=NOT_FOUND,
            next_step="`colony history ls`; what is not old enough: `colony process show`"
            + _dropped_note(directory_of(session, colony)),
        )
    if len(found) > 1:
        raise Failure(
            f"{len(found)} things begin with {identifier!r}",
            code=USAGE,
            next_step="give more of it",
        )
    (record,) = found
    if record["kind"] == "workflow":
        _show_workflow(session, record, everything)
        return
    _join_logs(record, everything)
    if session.as_json:
        print_json(record)
        return
    it = record["process"]
    print_fields(
        [
            ("process", it["processid"]),
            ("function", it["spec"]["funcname"]),
            ("args", it["spec"]["args"]),
            ("kwargs", it["spec"]["kwargs"]),
            ("state", state_name(it["state"])),
            ("by", f"{it['initiatorname']} {it['initiatorid']}"),
            ("executor", it["assignedexecutorid"]),
            ("forwarded to", it["peer"]),
            ("came from", it["origin"]),
            ("workflow", it["processgraphid"]),
            ("submitted", _iso(it["submissiontime"])),
            ("started", _iso(it["starttime"])),
            ("ended", _iso(it["endtime"])),
            ("retries", it["retries"] or None),
            ("output", "\n".join(output_lines(it["output"]))),
            ("errors", "\n".join(map(cell_text, it["errors"]))),
            *_forward(record),
            ("signed request", "kept; --json shows it" if record["submission"] else ""),
            ("logs", "\n".join(_log_line(line) for line in record["logs"])),
            ("record", f"{record['number']}, written {_iso(record['written'])}"),
        ]
    )


def record_of(directory: Path, processid: str) -> dict[str, Any] | None:
    """Return the record of one process with all its log lines, or None. Raises Failure."""
    everything = read(directory, lambda each: bool(each["id"] == processid))
    record = next((each for each in everything if each["kind"] == "process"), None)
    if record is not None:
        _join_logs(record, everything)
    return record


def _join_logs(record: dict[str, Any], everything: list[dict[str, Any]]) -> None:
    """Put all log lines of a process into its record: what is long was written in parts."""
    parts = [r for r in everything if r["kind"] == "logs" and r["id"] == record["id"]]
    parts.sort(key=lambda part: int(part["part"]))
    record["logs"] = [line for part in [*parts, record] for line in part["logs"]]


def _forward(record: dict[str, Any]) -> list[tuple[str, object]]:
    """Return what other colonies signed about a process: its request and its outcome; checked
    now.
    """
    told = record.get("forward")
    if not told:
        return []
    from federation.outbox.evidence import OutcomeVerdict, asked, check

    def signed(verdict: OutcomeVerdict) -> str:
        held = f"NOT VALID: {verdict.problem}" if verdict.problem else "valid"
        return f"signed by {f'{verdict.name} {short(verdict.issuer)}'.strip()}, {held}"

    fields: list[tuple[str, object]] = []
    if (request := asked(record)) is not None:
        fields += [("request", signed(request)), ("came over", request.ran)]
    if told.get("peer"):
        outcome = check(record)
        ran = outcome.ran if outcome is not None and not outcome.problem else ""
        fields += [
            ("sent by", told.get("route")),
            ("outcome", signed(outcome) if outcome is not None else "none is kept"),
            ("not checked", outcome.note if outcome is not None else ""),
            ("ran at", ran),
        ]
    return fields


def _log_line(line: dict[str, Any]) -> str:
    return f"{_iso(line['timestamp'])} {line['executorname']}: {line['message']}".rstrip("\n")


def _show_workflow(session: Session, record: dict[str, Any], everything: list[Any]) -> None:
    nodes = [
        other["process"]
        for other in everything
        if other["kind"] == "process" and other["process"]["processgraphid"] == record["id"]
    ]
    nodes.sort(key=lambda node: int(node["graphindex"]))
    if session.as_json:
        print_json(record | {"nodes": nodes})
        return
    it = record["workflow"]
    print_fields(
        [
            ("workflow", it["processgraphid"]),
            ("state", state_name(it["state"])),
            ("by", f"{it['initiatorname']} {it['initiatorid']}"),
            ("submitted", _iso(it["submissiontime"])),
            ("ended", _iso(it["endtime"])),
            ("record", f"{record['number']}, written {_iso(record['written'])}"),
        ]
    )
    for node in nodes:
        name = node["spec"]["nodename"] or node["spec"]["funcname"]
        print_line(f"  {short(node['processid'])}  {name}  {state_name(node['state'])}")


@colony_command("verify", "colony history verify", "colony history verify --contains 5d41402a…")
@_colony
@click.option(
    "--contains",
    "digest",
    default="",
    metavar="DIGEST",
    help="Also demand the record with this digest: the `head` of an earlier run, noted elsewhere.",
)
def verify(session: Session, colony: str | None, digest: str) -> None:
    """Check that every record follows the one before, and print the digest of the last.

    The chain shows any change, removal or insertion in between. That the whole was not written
    anew, or cut at its end, only a digest shows that was noted elsewhere: --contains. It begins
    behind what was dropped for `history.quota`. (The daemon
    notes the last one in its store, and complains at its next record if it is gone.)
    """
    from cli.core.progress import meter
    from node.archive.chain import files
    from node.archive.chain import verify as check

    directory = directory_of(session, colony)
    try:
        total = sum(path.stat().st_size for path in files(directory))
        with meter("verify", total) as progress:
            found = check(directory, digest.lower(), progress)
    except PermissionError as error:
        raise Failure(
            f"{error.filename}: not readable by this user", next_step="run as the daemon's user"
        ) from None
    problems = list(found.problems)
    if digest and not found.contains:
        gone = " that is still there" if found.dropped.number else ""
        problems.append(f"no record{gone} has the digest {digest}")
    if session.as_json:
        print_json(
            {
                "directory": str(directory),
                "files": found.files,
                "records": found.records,
                "head": found.head.digest,
                "dropped": found.dropped.number,
                "problems": problems,
            }
        )
    else:
        print_fields(
            [
                ("directory", str(directory)),
                ("files", found.files),
                ("records", found.records),
                ("head", found.head.digest),
                ("dropped", _dropped(found.dropped)),
            ]
        )
        for problem in problems:
            print_note(f"problem: {problem}")
    if problems:
        raise Failure(
            f"history is not what was written: {len(problems)} problems",
            code=FAILED,
            next_step="compare with a backup; `colony history ls` shows what can be read",
        )


def _dropped(last: Dropped) -> str:
    if not last.number:
        return ""
    return f"records 1 to {last.number}, written before {_iso(last.written)}: history.quota"


for command in (ls, show, verify):
    history.add_command(command)
