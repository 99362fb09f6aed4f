"""`colony generator`: collects arguments and starts a workflow with them, by number or by time.

The daemon decides when a generator starts its workflow.
"""

from __future__ import annotations

import json
from typing import Any

import click

from cli.core.inputs import pick, workflow_spec
from cli.core.output import print_done, print_rows, print_value, short, when
from cli.core.session import Session, colony_command, colony_group

_MOST = 1000  # generators listed

generator = colony_group(
    "generator",
    "Collect arguments and start a workflow with them. GENERATOR is a name, an id, or the first "
    "characters of an id.",
    "colony generator add --name frames --workflow f.json --trigger 9 --timeout 9",
    "colony generator pack frames frame-0001.png",
)


def _all(session: Session) -> list[dict[str, Any]]:
    fields = {"colonyname": session.colony(), "count": _MOST}
    return session.call("getgeneratorsmsg", fields) or []


def _find(session: Session, text: str) -> str:
    if len(text) == 64:
        return text
    found = pick(_all(session), text, ["name", "generatorid"], "generator", "colony generator ls")
    return str(found["generatorid"])


@colony_command(
    "add", "colony generator add --name frames --workflow f.json --trigger 9 --timeout 9"
)
@click.option("--name", required=True, help="Name, unique in the colony.")
@click.option("--workflow", "file", required=True, metavar="FILE", help="JSON; - reads stdin.")
@click.option("--trigger", type=click.IntRange(1), required=True, help="Arguments that start it.")
@click.option("--timeout", type=click.IntRange(0), default=0, help="Seconds; then with fewer.")
def add(session: Session, name: str, file: str, trigger: int, timeout: int) -> None:
    """Start a workflow whenever so many arguments are packed, or some waited for long enough."""
    colony = session.colony()
    fields = {
        "colonyname": colony,
        "name": name,
        "workflowspec": json.dumps(workflow_spec(file, colony)),
        "trigger": trigger,
        "timeout": timeout or -1,
    }
    added: dict[str, Any] = session.call("addgeneratormsg", {"generator": fields})
    print_done(session, added, added["generatorid"])


@colony_command("pack", "colony generator pack frames frame-0001.png frame-0002.png")
@click.argument("generator")
@click.argument("args", nargs=-1, required=True)
def pack(session: Session, generator: str, args: tuple[str, ...]) -> None:
    """Add arguments to a generator, in this order."""
    full, key = _find(session, generator), session.member_key()

    async def work() -> None:
        async with session.signed(key) as client:
            for arg in args:
                await client.call("packgeneratormsg", {"generatorid": full, "arg": arg})

    session.run(work)
    print_done(session, {"generatorid": full, "packed": len(args)}, f"packed {len(args)}")


@colony_command("ls", "colony generator ls")
def ls(session: Session) -> None:
    """List the generators."""
    print_rows(
        session,
        _all(session),
        ["ID", "NAME", "TRIGGER", "TIMEOUT", "LAST RUN"],
        lambda row: [
            short(row["generatorid"]),
            row.get("name"),
            row.get("trigger"),
            f"{row['timeout']} s" if int(row.get("timeout") or 0) > 0 else "",
            when(row.get("lastrun"))[:19] or "never",
        ],
        "no generators; make one with `colony generator add`",
    )


@colony_command("show", "colony generator show frames")
@click.argument("generator")
def show(session: Session, generator: str) -> None:
    """Show one generator and how many arguments wait in it."""
    full = _find(session, generator)
    row: dict[str, Any] = session.call("getgeneratormsg", {"generatorid": full})
    print_value(
        session,
        row,
        [
            ("generator", row["generatorid"]),
            ("name", row.get("name")),
            ("trigger", row.get("trigger")),
            ("timeout", f"{row['timeout']} s" if int(row.get("timeout") or 0) > 0 else ""),
            ("waiting", row.get("queuesize")),
            ("first packed", when(row.get("firstpack"))),
            ("last run", when(row.get("lastrun"))),
            ("added by", row.get("initiatorname")),
            ("workflow", row.get("workflowspec")),
        ],
    )


@colony_command("rm", "colony generator rm frames")
@click.argument("generator")
def rm(session: Session, generator: str) -> None:
    """Remove a generator and the arguments that wait in it."""
    full = _find(session, generator)
    session.call("removegeneratormsg", {"generatorid": full, "all": False})
    print_done(session, {"generatorid": full, "removed": True}, f"removed {generator}")


for _command in (add, pack, ls, show, rm):
    generator.add_command(_command)
