"""`colony top`: the colony at work, drawn anew each second.

It asks by the same calls as the other commands, and changes nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
import trio

from cli.core.errors import Failure
from cli.core.output import STATES, ago, cell_text, print_json, short, span
from cli.core.seconds import Seconds
from cli.core.session import Session, colony_command
from cli.members.executor import state_name as executor_state
from cli.ops.status import counts, vain
from colonyd.replies import parse_time
from colonyd.rpc import RpcClient, RpcError, Unreachable

if TYPE_CHECKING:
    from rich.text import Text

    from colonyd.keys import PrivateKey

_ROWS = 12  # rows of each list, where there is room
_FAILURES = 5
_WHY = 500  # characters of an error
_PIPE_WIDTH = 160  # columns when stdout is no terminal


async def look(
    client: RpcClient, key: PrivateKey, owner: PrivateKey | None, colony: str
) -> dict[str, Any]:
    """Return all that is shown, in one round of calls at the same time.

    Raises RpcError, Unreachable.
    """
    seen: dict[str, Any] = {}

    async def ask(name: str, payloadtype: str, who: PrivateKey, **fields: Any) -> None:
        try:
            seen[name] = await client.call(payloadtype, fields, who, timeout=5.0)
        except RpcError as error:
            if name in ("counts", "running"):
                raise
            # No home colony of this key, a server without federation: that part stays empty.
            seen[name] = None
            seen.setdefault("missing", {})[name] = error.message

    listing = {"colonyname": colony, "count": 100, "executortype": "", "label": ""}
    listing["initiator"] = ""
    async with trio.open_nursery() as nursery:
        for state in ("waiting", "running", "failed"):
            fields = {**listing, "state": STATES.index(state)}
            if state == "failed":
                fields["count"] = _FAILURES
            nursery.start_soon(
                lambda s=state, f=fields: ask(s, "getprocessesmsg", key, **f)  # type: ignore[misc]
            )
        here = {"colonyname": colony}
        for name, payloadtype in (
            ("counts", "getcolonystatsmsg"),
            ("executors", "getexecutorsmsg"),
            ("paused", "getpausestatusmsg"),
        ):
            nursery.start_soon(
                lambda n=name, p=payloadtype: ask(n, p, key, **here)  # type: ignore[misc]
            )
        nursery.start_soon(lambda: ask("node", "getnodestatusmsg", key))
        if owner is not None:
            nursery.start_soon(lambda: ask("peers", "getpeersmsg", owner))
    return seen


@dataclass(frozen=True)
class Section:
    """One list of the screen: its heading's first word, its rows, and how many there are in all."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    total: int
    most: int = 1000  # lines below the heading


def shared(wanted: Sequence[int], room: int) -> list[int]:
    """Return how many of the `wanted` lines each list gets of `room` lines, in turns.

    Each gets one line before any gets two, so that nothing is pushed off by what stands above.
    """
    given = [0] * len(wanted)
    while room > 0 and (open_ := [at for at, most in enumerate(wanted) if given[at] < most]):
        for at in open_[:room]:
            given[at] += 1
        room -= min(room, len(open_))
    return given


def _drawn(sections: Sequence[Section], width: int, height: int | None) -> list[Text]:
    """Return the lists as lines; of what does not fit, a last line says how much there is more."""
    from rich.text import Text

    from cli.core.layout import fitted, row_text

    kept = [section for section in sections if section.total]
    wanted = [min(section.total, section.most) for section in kept]
    spaced = height is None or sum(wanted) + 2 * len(kept) <= height
    lines = wanted
    if height is not None:
        lines = shared(wanted, height - len(kept) * (2 if spaced else 1))
    found: list[Text] = []
    for section, most in zip(kept, lines, strict=True):
        shown = min(len(section.rows), most)
        if shown < section.total and shown == most:
            shown = max(0, most - 1)  # the last line tells of the rest
        if spaced:
            found.append(Text(""))
        rows = [[cell_text(cell) for cell in row] for row in section.rows[:shown]]
        heading, *body = fitted(section.columns, rows, width)
        found.append(row_text(heading, style="bold"))
        found += map(row_text, body)
        if shown < section.total and most:
            found.append(Text(f"  {section.total - shown} more", style="dim"))
    return found


def _processes(title: str, rows: list[dict[str, Any]], total: int, since: str, who: Any) -> Section:
    return Section(
        [title, "FUNCTION", "TYPE", "BY", "SINCE", "EXECUTOR"],
        [
            [
                short(row["processid"]),
                (row.get("spec") or {}).get("funcname"),
                ((row.get("spec") or {}).get("conditions") or {}).get("executortype"),
                row.get("initiatorname"),
                ago(parse_time(row.get(since))),
                who(row),
            ]
            for row in rows
        ],
        total,
        _ROWS,
    )


def _failures(rows: list[dict[str, Any]], total: int) -> Section:
    return Section(
        ["FAILED", "FUNCTION", "ENDED", "WHY"],
        [
            [
                short(row["processid"]),
                (row.get("spec") or {}).get("funcname"),
                ago(parse_time(row.get("endtime"))),
                "; ".join(cell_text(error)[:_WHY] for error in row.get("errors") or []),
            ]
            for row in rows
        ],
        total,
        _FAILURES,
    )


def _executors(rows: list[dict[str, Any]], does: dict[str, str]) -> Section:
    # Who waits for a decision first, then who was heard last.
    rows = sorted(rows, key=lambda row: str(row.get("lastheardfromtime")), reverse=True)
    rows.sort(key=lambda row: row.get("state") != 0)
    return Section(
        ["EXECUTOR", "TYPE", "STATE", "HEARD FROM", "DOES"],
        [
            [
                row.get("executorname"),
                row.get("executortype"),
                executor_state(row.get("state")),
                ago(parse_time(row.get("lastheardfromtime"))) or "never",
                does.get(str(row.get("executorid")), ""),
            ]
            for row in rows
        ],
        len(rows),
        _ROWS,
    )


def _peers(rows: list[dict[str, Any]]) -> Section:
    rows = sorted(rows, key=lambda row: row.get("state") != "trusted")
    return Section(
        ["PEER", "ID", "STATE", "OUTSTANDING", "ERROR"],
        [
            [
                row.get("name") or short(row.get("id")),
                short(row.get("id")),
                row.get("state"),
                row.get("outstanding"),
                row.get("error"),
            ]
            for row in rows
        ],
        len(rows),
        _ROWS,
    )


def _head(colony: str, seen: dict[str, Any], width: int) -> list[Text]:
    """Return the first lines: the daemon, the counts, and what is wrong."""
    from rich.text import Text

    from cli.core.layout import cut, one_line

    numbers: dict[str, int] = seen["counts"]
    node = seen.get("node") or {}
    etcd = node.get("etcd") or {}
    head = f"colony {colony}"
    if node:
        head += f" · colonyd {node.get('version')} up {span(float(node.get('uptime') or 0))}"
        head += f" · store {int(etcd.get('dbsize') or 0) / 2**20:.1f} MiB"
    lines = [(head, "bold")]
    if (seen.get("paused") or {}).get("ispaused"):
        lines.append(("PAUSED: no work is handed out; `colony resume`", "bold yellow"))
    if etcd.get("why"):
        lines.append((f"store is {etcd.get('level')}: {etcd['why']}; {etcd.get('next')}", "red"))
    lines += [(f"nobody takes {vain(each)}", "yellow") for each in (node.get("stuck") or [])[:2]]
    for noun in ("processes", "workflows"):
        told = counts({state: numbers.get(f"{state}{noun}", 0) for state in STATES})
        if noun == "processes" or told != "none":
            lines.append((f"{noun}: {told}", ""))
    return [Text(cut(one_line(text), width), style=style) for text, style in lines]


def draw(colony: str, seen: dict[str, Any], width: int, height: int | None) -> list[Text]:
    """Return the result of `look` as at most `height` lines of at most `width` cells.

    Without a height the lists have their usual lengths.
    """
    numbers: dict[str, int] = seen["counts"]
    running = seen["running"] or []
    everyone = [row for row in seen.get("executors") or [] if row.get("state") != 3]
    names = {str(row.get("executorid")): cell_text(row.get("executorname")) for row in everyone}
    does = {
        str(row.get("assignedexecutorid")): cell_text((row.get("spec") or {}).get("funcname"))
        for row in running
    }

    def by(row: dict[str, Any]) -> str:
        executor = str(row.get("assignedexecutorid") or "")
        return names.get(executor, short(executor))

    head = _head(colony, seen, width)
    sections = [
        _processes("RUNNING", running, numbers.get("runningprocesses", 0), "starttime", by),
        _processes(
            "WAITING",
            seen["waiting"] or [],
            numbers.get("waitingprocesses", 0),
            "submissiontime",
            by,
        ),
        _failures(seen.get("failed") or [], numbers.get("failedprocesses", 0)),
        _executors(everyone, does),
        _peers([row for row in seen.get("peers") or [] if row.get("state") != "blocked"]),
    ]
    lines = head + _drawn(sections, width, None if height is None else height - len(head))
    return lines if height is None else lines[:height]


@colony_command("top", "colony top", "colony top --once --json")
@click.option("--once", is_flag=True, help="Draw it once and leave, as scripts want it.")
@click.option("--every", type=Seconds(0.2), default=1.0, show_default=True)
def top(session: Session, once: bool, every: float) -> None:
    """Watch queue, running work, executors and peers; Ctrl-C leaves."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    key, colony = session.member_key(), session.colony()
    owner: PrivateKey | None = None
    with suppress(Failure):
        owner = session.owner_key()  # only the owner may list peers
    console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)

    async def look_once() -> None:
        async with session.client() as client:
            seen = await look(client, key, owner, colony)
        if session.as_json:
            print_json(seen)
        else:
            console.print(Group(*draw(colony, seen, console.width, None)))

    async def watch() -> None:
        async with session.client() as client:
            with Live(console=console, screen=True, auto_refresh=False) as live:
                while True:
                    try:
                        seen = await look(client, key, owner, colony)
                        screen = draw(colony, seen, console.width, console.height)
                    except Unreachable as error:
                        screen = [Text(f"daemon not reachable at {error}; asking again")]
                    except BaseExceptionGroup as group:
                        unreachable, others = group.split(Unreachable)
                        if others is not None or unreachable is None:
                            raise
                        screen = [Text("daemon not reachable; asking again")]
                    live.update(Group(*screen), refresh=True)
                    await trio.sleep(every)

    if once or session.as_json or not sys.stdout.isatty():
        session.run(look_once)
        return
    with suppress(KeyboardInterrupt):
        session.run(watch)
