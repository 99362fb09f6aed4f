"""`colony log`: what executors logged, about processes and about themselves.

`colony process logs` and `colony blueprint logs` read through here, too.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import click
import trio

from cli.core.errors import USAGE, Failure
from cli.core.inputs import since as moment
from cli.core.output import print_done, print_json, print_table, short
from cli.core.session import Session, as_executor, colony_command, colony_group
from cli.core.terminal import json_text, print_line, print_result
from colonyd.rpc import Signed

PAGE = 500  # the most log lines one call returns
_POLL = 1.0  # seconds between two looks when following
_CLOSED = 2

log = colony_group(
    "log",
    "What executors logged, about processes and about themselves.",
    "colony log show -p 3fa2b1c09d7e --follow",
    "colony log search 'no space' --days 7",
)

Line = dict[str, Any]
Show = Callable[[Line], None]


async def fetch(client: Signed, **fields: Any) -> list[Line]:
    """Return one page of lines, oldest first; fields as in `getlogsmsg`."""
    asked = {"processid": "", "executorname": "", "count": PAGE, "since": 0, "latest": False}
    return await client.call("getlogsmsg", asked | fields) or []


async def drain(client: Signed, show: Show, since: int, **fields: Any) -> int:
    """Show every line after `since` (Unix ns), page by page; return the last one's time."""
    while True:
        lines = await fetch(client, since=since, **fields)
        for line in lines:
            since = max(since, int(line["timestamp"]))
            show(line)
        if len(lines) < PAGE:
            return since


def plain(line: Line) -> None:
    """Print a line's text alone: the text is data."""
    print_result(str(line["message"]).rstrip("\n"))


def stamped(line: Line) -> None:
    """Print a line with its time and executor."""
    at = datetime.fromtimestamp(int(line["timestamp"]) / 1e9, UTC)
    # Indented, so that a message cannot pass for another executor's line.
    text = str(line["message"]).rstrip("\n").replace("\n", "\n    ")
    print_line(f"{at:%Y-%m-%d %H:%M:%S.%f} {line.get('executorname')}: {text}")


def as_json_line(line: Line) -> None:
    """Print a line as one line of JSON, for `--follow --json`."""
    print_line(json_text(line))


@colony_command(
    "show",
    "colony log show -p 3fa2b1c09d7e --follow",
    "colony log show -e camera-1 --since 2h",
)
@click.option("--process", "-p", "processid", default=None, help="Of this process.")
@click.option("--executor", "-e", "executorname", default=None, help="Of this executor.")
@click.option("--since", default=None, metavar="TIME", help="An age (10min, 2h, 1d), time or ns.")
@click.option("--count", type=click.IntRange(1, PAGE), default=100, show_default=True)
@click.option("--latest/--first", default=True, help="The last lines (default), or the first.")
@click.option("--follow", "-f", is_flag=True, help="Go on: to the process's end, or for ever.")
@click.option("--time", "-t", "times", is_flag=True, help="With time and executor.")
def show_(
    session: Session,
    processid: str | None,
    executorname: str | None,
    since: str | None,
    count: int,
    latest: bool,
    follow: bool,
    times: bool,
) -> None:
    """Print log lines of a process or an executor, oldest first.

    With --follow and --json each line is a JSON document of its own.
    """
    from cli.core.lookup import full_id

    if (processid is None) == (executorname is None):
        raise Failure("give --process or --executor, one of them", code=USAGE)
    key = session.member_key()
    begin = moment(since) if since else 0
    kept: list[Line] = []

    def show(line: Line) -> None:
        if not session.as_json:
            (stamped if times else plain)(line)
        elif follow:
            as_json_line(line)
        else:
            kept.append(line)

    async def work() -> None:
        async with session.signed(key) as client:
            fields: dict[str, Any] = {"colonyname": session.colony()}
            if processid:
                fields["processid"] = await full_id(session, client, processid)
            else:
                fields["executorname"] = executorname
            # A line that comes between two looks has a later time than all before.
            lines = await fetch(client, since=begin, count=count, latest=latest, **fields)
            for line in lines:
                show(line)
            last = max([begin, *(int(line["timestamp"]) for line in lines)])
            while follow:
                closed = processid and await _closed(client, fields["processid"])
                last = await drain(client, show, last, **fields)
                if closed:
                    return
                await trio.sleep(_POLL)

    session.run(work)
    if session.as_json and not follow:
        print_json(kept)


async def _closed(client: Signed, processid: str) -> bool:
    found = await client.call("getprocessmsg", {"processid": processid})
    return bool(found["state"] >= _CLOSED)


@colony_command("add", "colony log add 3fa2b1c0… 'half done' --as camera-1")
@click.argument("processid")
@click.argument("message")
@as_executor
def add(session: Session, processid: str, message: str, executor: str | None) -> None:
    """Log a line about a running process, as the executor that runs it."""
    from cli.core.lookup import call_about

    key = session.signer(executor)
    full = call_about(session, key, processid, "addlogmsg", {"message": message})
    print_done(session, {"processid": full, "message": message}, f"logged for {short(full)}")


@colony_command("search", "colony log search 'no space' --days 7")
@click.argument("text")
@click.option("--days", type=click.IntRange(1, 30), default=1, show_default=True)
@click.option("--count", type=click.IntRange(1, 100), default=20, show_default=True)
@click.option("--print", "in_full", is_flag=True, help="Print what was logged around each hit.")
@click.option("--seconds", type=click.IntRange(0), default=1, help="So much before each hit.")
def search(session: Session, text: str, days: int, count: int, in_full: bool, seconds: int) -> None:
    """Find log lines that contain TEXT."""
    key, colony = session.member_key(), session.colony()

    async def work() -> tuple[list[Line], list[list[Line]]]:
        async with session.signed(key) as client:
            fields = {"colonyname": colony, "text": text, "days": days, "count": count}
            hits: list[Line] = await client.call("searchlogsmsg", fields, 60.0) or []
            hits.sort(key=lambda hit: int(hit["timestamp"]))
            around = []
            for hit in hits if in_full else []:
                before = int(hit["timestamp"]) - seconds * 10**9 - 1
                which = "processid" if hit.get("processid") else "executorname"
                fields = {"colonyname": colony, which: hit[which], "since": before}
                around.append(await fetch(client, **fields))
            return hits, around

    hits, around = session.run(work)
    if session.as_json:
        print_json([hit | {"around": lines} for hit, lines in zip(hits, around, strict=True)]
                   if in_full else hits)  # fmt: skip
        return
    if in_full:
        for hit, lines in zip(hits, around, strict=True):
            print_line(f"— process {short(hit.get('processid')) or '(none)'}")
            for line in lines:
                stamped(line)
        return
    print_table(
        ["TIME", "EXECUTOR", "PROCESS", "MESSAGE"],
        [
            [
                f"{datetime.fromtimestamp(int(hit['timestamp']) / 1e9, UTC):%Y-%m-%d %H:%M:%S}",
                hit.get("executorname"),
                short(hit.get("processid")),
                str(hit["message"]).strip(),
            ]
            for hit in hits
        ],
        f"nothing logged in {days} days contains {text!r}",
    )


for _command in (show_, add, search):
    log.add_command(_command)
