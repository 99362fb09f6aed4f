"""`colony function`: what executors say they can do, and how long that took so far.

Functions are run by `cli.work.run`.
"""

from __future__ import annotations

from typing import Any

import click

from cli.core.inputs import pick, read_object
from cli.core.output import print_done, print_rows, short
from cli.core.session import Session, as_executor, colony_command, colony_group
from cli.work.run import called

function = colony_group(
    "function",
    "The functions that executors offer; `colony run` runs one.",
    "colony function ls",
    "colony function add resize --as camera-1",
    aliases={"register": "add", "submit": "exec"},
)


def _all(session: Session, executor: str) -> list[dict[str, Any]]:
    fields = {"colonyname": session.colony(), "executorname": executor}
    return session.call("getfunctionsmsg", fields) or []


@colony_command("ls", "colony function ls", "colony function ls --executor camera-1")
@click.option("--executor", default="", help="Only of this executor.")
def ls(session: Session, executor: str) -> None:
    """List functions with their calls and mean times."""
    rows = _all(session, executor)
    rows.sort(key=lambda row: (str(row["funcname"]), str(row["executorname"])))
    print_rows(
        session,
        rows,
        ["FUNCTION", "EXECUTOR", "TYPE", "CALLS", "MEAN WAIT", "MEAN RUN", "LOCATION", "ID"],
        lambda row: [
            row["funcname"],
            row["executorname"],
            row.get("executortype"),
            row.get("counter"),
            f"{float(row.get('avgwaittime') or 0):.3f} s",
            f"{float(row.get('avgexectime') or 0):.3f} s",
            row.get("locationname"),
            short(row["functionid"]),
        ],
        "no functions registered",
    )


@colony_command(
    "add",
    "colony function add resize --as camera-1",
    "colony function add resize --as camera-1 --spec resize.json",
)
@click.argument("name")
@as_executor
@click.option("--description", default="")
@click.option("--spec", "file", default=None, metavar="FILE", help="JSON: description, args.")
def add(
    session: Session, name: str, executor: str | None, description: str, file: str | None
) -> None:
    """Say that an executor offers a function, as that executor; prints the function's id."""
    given = read_object(file, "fun") if file else {}
    fields = given | {
        "executorname": session.executor_name(executor),
        "colonyname": session.colony(),
        "funcname": name,
    }
    if description:
        fields["description"] = description
    key = session.signer(executor)
    added: dict[str, Any] = session.call("addfunctionmsg", {"fun": fields}, key=key)
    print_done(session, added, added["functionid"])


@colony_command("rm", "colony function rm resize --as camera-1")
@click.argument("function")
@as_executor
def rm(session: Session, function: str, executor: str | None) -> None:
    """Take back a function of an executor, by name or id, as that executor."""
    rows = _all(session, session.executor_name(executor))
    found = pick(rows, function, ["funcname", "functionid"], "function", "colony function ls")
    key = session.signer(executor)
    session.call("removefunctionmsg", {"functionid": found["functionid"]}, key=key)
    print_done(session, {"functionid": found["functionid"], "removed": True}, f"removed {function}")


for _command in (ls, add, rm):
    function.add_command(_command)
function.add_command(called("function exec"))
