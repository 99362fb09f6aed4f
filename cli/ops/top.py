"""`colony top`: the colony at work, drawn anew each second.

It asks by the same calls as the other commands, and changes nothing.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click
import trio

from cli.core.client import Client, RpcError, Unreachable
from cli.core.errors import Failure
from cli.core.output import STATES, ago, cell_text, parse_time, print_json, short, span
from cli.core.session import Session, colony_command
from cli.core.terminal import printable
from cli.members.executor import state_name as executor_state
from cli.ops.status import counts

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from node.host.keys import PrivateKey

_ROWS = 12  # rows of each table
_PIPE_WIDTH = 160  # columns when stdout is no terminal


async def look(
    client: Client, key: PrivateKey, owner: PrivateKey | None, colony: str
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
        for state in ("waiting", "running"):
            fields = {**listing, "state": STATES.index(state)}
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


def _table(title: str, columns: list[str], rows: list[list[object]], total: int) -> Table:
    from rich.table import Table
    from rich.text import Text

    more = f" ({total})" if total > _ROWS else ""
    table = Table(
        title=title + more, title_justify="left", box=None, pad_edge=False, header_style="bold"
    )
    for column in columns:
        table.add_column(column, overflow="ellipsis", no_wrap=True)
    for row in rows[:_ROWS]:
        table.add_row(*(Text(printable(cell_text(cell))) for cell in row))
    return table


def _processes(title: str, rows: list[dict[str, Any]], total: int, since: str) -> Table:
    return _table(
        title,
        ["ID", "FUNCTION", "TYPE", "BY", "SINCE", "EXECUTOR"],
        [
            [
                short(row["processid"]),
                (row.get("spec") or {}).get("funcname"),
                ((row.get("spec") or {}).get("conditions") or {}).get("executortype"),
                row.get("initiatorname"),
                ago(parse_time(row.get(since))),
                short(row.get("assignedexecutorid")),
            ]
            for row in rows
        ],
        total,
    )


def draw(colony: str, seen: dict[str, Any]) -> RenderableType:
    """Return the result of `look` as a screen."""
    from rich.console import Group
    from rich.text import Text

    numbers: dict[str, int] = seen["counts"]
    node = seen.get("node") or {}
    head = f"colony {colony}"
    if node:
        etcd = node.get("etcd") or {}
        head += f" · colonyd {node.get('version')} up {span(float(node.get('uptime') or 0))}"
        head += f" · store {int(etcd.get('dbsize') or 0) / 2**20:.1f} MiB"
    if (seen.get("paused") or {}).get("ispaused"):
        head += " · PAUSED"
    queue = ", ".join(f"{numbers.get(f'{state}processes', 0)} {state}" for state in STATES)
    parts: list[RenderableType] = [
        Text(printable(head), style="bold"),
        Text(f"processes: {queue}"),
        Text(f"workflows: {counts({s: numbers.get(f'{s}workflows', 0) for s in STATES})}"),
        Text(""),
        _processes(
            "Running", seen["running"] or [], numbers.get("runningprocesses", 0), "starttime"
        ),
        Text(""),
        _processes(
            "Waiting", seen["waiting"] or [], numbers.get("waitingprocesses", 0), "submissiontime"
        ),
    ]
    executors = [row for row in seen.get("executors") or [] if row.get("state") != 3]
    executors.sort(key=lambda row: str(row.get("lastheardfromtime")), reverse=True)
    parts += [
        Text(""),
        _table(
            "Executors",
            ["NAME", "TYPE", "STATE", "HEARD FROM"],
            [
                [
                    row.get("executorname"),
                    row.get("executortype"),
                    executor_state(row.get("state")),
                    ago(parse_time(row.get("lastheardfromtime"))) or "never",
                ]
                for row in executors
            ],
            len(executors),
        ),
    ]
    peers = [row for row in seen.get("peers") or [] if row.get("state") != "blocked"]
    if peers:
        rows: list[list[object]] = [
            [row.get("name"), short(row.get("id")), row.get("state"), row.get("outstanding")]
            for row in peers
        ]
        parts += [
            Text(""),
            _table("Peers", ["NAME", "ID", "STATE", "OUTSTANDING"], rows, len(rows)),
        ]
    return Group(*parts)


@colony_command("top", "colony top", "colony top --once --json")
@click.option("--once", is_flag=True, help="Draw it once and leave, as scripts want it.")
@click.option("--every", type=click.FloatRange(0.2), default=1.0, show_default=True)
def top(session: Session, once: bool, every: float) -> None:
    """Watch queue, running work, executors and peers; Ctrl-C leaves."""
    from rich.console import Console
    from rich.live import Live

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
            console.print(draw(colony, seen))

    async def watch() -> None:
        async with session.client() as client:
            with Live(console=console, screen=True, auto_refresh=False) as live:
                while True:
                    try:
                        screen = draw(colony, await look(client, key, owner, colony))
                    except Unreachable as error:
                        screen = f"daemon not reachable at {error}; asking again"
                    except BaseExceptionGroup as group:
                        unreachable, others = group.split(Unreachable)
                        if others is not None or unreachable is None:
                            raise
                        screen = "daemon not reachable; asking again"
                    live.update(screen, refresh=True)
                    await trio.sleep(every)

    if once or session.as_json or not sys.stdout.isatty():
        session.run(look_once)
        return
    with suppress(KeyboardInterrupt):
        session.run(watch)
