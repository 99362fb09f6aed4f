"""`colony executor`: lists executors and lets the colony's owner approve or reject them.

Being an executor is `cli.worker`'s work.
"""

from __future__ import annotations

from typing import Any

import click

from cli.output import ago, parse_time, print_json, print_table, short
from cli.session import Session, colony_command, colony_group

STATES = ("pending", "approved", "rejected", "unregistered")

executor = colony_group(
    "executor",
    "List executors; approve and reject them as the colony's owner.",
    "colony executor ls",
    "colony executor approve worker-1",
)


@colony_command("ls", "colony executor ls")
@click.option("--all", "show_all", is_flag=True, help="Unregistered ones too.")
def ls(session: Session, show_all: bool) -> None:
    """List the colony's executors."""
    fields = {"colonyname": session.colony()}
    rows: list[dict[str, Any]] = session.call("getexecutorsmsg", fields) or []
    rows = [row for row in rows if show_all or row.get("state") != 3]
    if session.as_json:
        print_json(rows)
        return
    print_table(
        ["NAME", "TYPE", "STATE", "HEARD FROM", "ID"],
        [
            [
                row.get("executorname"),
                row.get("executortype"),
                state_name(row.get("state")),
                ago(parse_time(row.get("lastheardfromtime"))) or "never",
                short(row.get("executorid")),
            ]
            for row in rows
        ],
        "no executors; start one with `colony worker`",
    )


def state_name(state: object) -> str:
    """The word for an executor state number."""
    if isinstance(state, int) and 0 <= state < len(STATES):
        return STATES[state]
    return f"unknown ({state})"


def _decide(session: Session, payloadtype: str, name: str, word: str) -> None:
    fields = {"colonyname": session.colony(), "executorname": name}
    session.call(payloadtype, fields, owner=True)
    if session.as_json:
        print_json({"executorname": name, "state": word})
    else:
        click.echo(f"{word} {name}")


@colony_command("approve", "colony executor approve worker-1")
@click.argument("name")
def approve(session: Session, name: str) -> None:
    """Let an executor take work."""
    _decide(session, "approveexecutormsg", name, "approved")


@colony_command("reject", "colony executor reject worker-1")
@click.argument("name")
def reject(session: Session, name: str) -> None:
    """Let an executor take no more work."""
    _decide(session, "rejectexecutormsg", name, "rejected")


for _command in (ls, approve, reject):
    executor.add_command(_command)
