"""`colony cron`: workflows that start by the clock.

The daemon decides when a cron is due.
"""

from __future__ import annotations

import json
from typing import Any

import click

from cli.core.errors import USAGE, Failure
from cli.core.inputs import pick, workflow_spec
from cli.core.output import print_done, print_rows, print_value, short, when
from cli.core.session import Session, colony_command, colony_group

_MOST = 1000  # crons listed

cron = colony_group(
    "cron",
    "Workflows that start by the clock. CRON is a name, an id, or the first characters of an id.",
    "colony cron add --name nightly --workflow etl.json --cron '0 30 2 * * *'",
    "colony cron ls",
)


def _all(session: Session) -> list[dict[str, Any]]:
    return session.call("getcronsmsg", {"colonyname": session.colony(), "count": _MOST}) or []


def _find(session: Session, text: str) -> str:
    if len(text) == 64:
        return text
    found = pick(_all(session), text, ["name", "cronid"], "cron", "colony cron ls")
    return str(found["cronid"])


def schedule(row: dict[str, Any]) -> str:
    """Return when a cron runs: its expression, or its interval."""
    if (interval := int(row.get("interval") or 0)) > 0:
        return f"every {interval} s" + (", at random" if row.get("random") else "")
    return str(row.get("cronexpression") or "")


@colony_command(
    "add",
    "colony cron add --name nightly --workflow etl.json --cron '0 30 2 * * *'",
    "colony cron add --name beat --workflow ping.json --every 60 --wait-previous",
)
@click.option("--name", required=True, help="Name, unique in the colony.")
@click.option("--workflow", "file", required=True, metavar="FILE", help="JSON; - reads stdin.")
@click.option("--cron", "expression", default="", help="Second, minute, hour, day, month, weekday.")
@click.option("--every", type=click.IntRange(1), default=None, metavar="SECONDS")
@click.option("--random", is_flag=True, help="At a random moment within each --every.")
@click.option("--wait-previous", is_flag=True, help="Not while the last workflow runs.")
def add(
    session: Session,
    name: str,
    file: str,
    expression: str,
    every: int | None,
    random: bool,
    wait_previous: bool,
) -> None:
    """Start a workflow at the times of an expression, or every so many seconds."""
    if bool(expression) == (every is not None):
        raise Failure("give --cron or --every, one of them", code=USAGE)
    if random and every is None:
        raise Failure("--random needs --every", code=USAGE)
    colony = session.colony()
    fields = {
        "colonyname": colony,
        "name": name,
        "cronexpression": expression,
        "interval": every or -1,
        "random": random,
        "workflowspec": json.dumps(workflow_spec(file, colony)),
        "waitforprevprocessgraph": wait_previous,
    }
    added: dict[str, Any] = session.call("addcronmsg", {"cron": fields})
    print_done(session, added, added["cronid"])


@colony_command("ls", "colony cron ls")
def ls(session: Session) -> None:
    """List the crons and when they run next."""
    print_rows(
        session,
        _all(session),
        ["ID", "NAME", "SCHEDULE", "NEXT RUN", "LAST RUN", "LAST WORKFLOW"],
        lambda row: [
            short(row["cronid"]),
            row.get("name"),
            schedule(row),
            when(row.get("nextrun"))[:19],
            when(row.get("lastrun"))[:19] or "never",
            short(row.get("prevprocessgraphid")),
        ],
        "no crons; make one with `colony cron add`",
    )


def _print(session: Session, row: dict[str, Any]) -> None:
    print_value(
        session,
        row,
        [
            ("cron", row["cronid"]),
            ("name", row.get("name")),
            ("schedule", schedule(row)),
            ("waits for the last", "yes" if row.get("waitforprevprocessgraph") else ""),
            ("next run", when(row.get("nextrun"))),
            ("last run", when(row.get("lastrun"))),
            ("skipped", row.get("skipped")),
            ("last workflow", row.get("prevprocessgraphid")),
            ("added by", row.get("initiatorname")),
            ("workflow", row.get("workflowspec")),
        ],
    )


@colony_command("show", "colony cron show nightly")
@click.argument("cron")
def show(session: Session, cron: str) -> None:
    """Show one cron."""
    _print(session, session.call("getcronmsg", {"cronid": _find(session, cron)}))


@colony_command("run", "colony cron run nightly")
@click.argument("cron")
def run(session: Session, cron: str) -> None:
    """Start a cron's workflow now."""
    _print(session, session.call("runcronmsg", {"cronid": _find(session, cron)}))


@colony_command("rm", "colony cron rm nightly")
@click.argument("cron")
def rm(session: Session, cron: str) -> None:
    """Remove a cron; what it started stays."""
    full = _find(session, cron)
    session.call("removecronmsg", {"cronid": full, "all": False})
    print_done(session, {"cronid": full, "removed": True}, f"removed {cron}")


for _command in (add, ls, show, run, rm):
    cron.add_command(_command)
