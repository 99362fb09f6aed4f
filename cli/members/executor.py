"""`colony executor`: the colony's executors: added, approved, rejected, shown, removed.

The shell worker is in `cli.worker.command`; the functions of executors are in
`cli.members.function`.
"""

from __future__ import annotations

import shlex
from typing import Any

import click

from cli.core.errors import USAGE, Failure
from cli.core.inputs import read_object
from cli.core.keyfiles import accepts, check_id, check_member_name, key_path, read_or_make, rotate
from cli.core.output import (
    ago,
    name_text,
    print_done,
    print_rows,
    print_value,
    short,
    when,
)
from cli.core.session import Session, as_executor, colony_command, colony_group
from cli.core.terminal import print_note
from colonyd.replies import parse_time

STATES = ("pending", "approved", "rejected", "unregistered")

executor = colony_group(
    "executor",
    "The colony's executors: who may take work.",
    "colony executor ls",
    "colony executor add camera-1 --type camera --approve",
    aliases={"create": ("add", "--approve"), "log": "add-log"},
)


@colony_command("ls", "colony executor ls", "colony executor ls --type gpu --location hall-3")
@click.option("--all", "show_all", is_flag=True, help="Unregistered ones too.")
@click.option("--type", "-T", "kind", default=None, help="Only of this type.")
@click.option("--location", default=None, help="Only at this location.")
@click.option("--filter", "part", default="", help="Only with this text in name or type.")
def ls(session: Session, show_all: bool, kind: str | None, location: str | None, part: str) -> None:
    """List the colony's executors."""
    fields = {"colonyname": session.colony()}
    rows: list[dict[str, Any]] = session.call("getexecutorsmsg", fields) or []
    rows = [
        row
        for row in rows
        if (show_all or row.get("state") != 3)
        and kind in (None, row.get("executortype"))
        and location in (None, row.get("locationname", ""))
        and part in f"{row.get('executorname')} {row.get('executortype')}"
    ]
    print_rows(
        session,
        rows,
        ["NAME", "TYPE", "STATE", "HEARD FROM", "LOCATION", "ID"],
        lambda row: [
            name_text(row.get("executorname")),
            row.get("executortype"),
            state_name(row.get("state")),
            ago(parse_time(row.get("lastheardfromtime"))) or "never",
            name_text(row.get("locationname")),
            short(row.get("executorid")),
        ],
        "no executors; start one with `colony worker`",
    )


def state_name(state: object) -> str:
    """Return the word for an executor state number."""
    if isinstance(state, int) and 0 <= state < len(STATES):
        return STATES[state]
    return f"unknown ({state})"


@colony_command("show", "colony executor show camera-1", "colony executor show 3fa2b1c0…")
@click.argument("name")
def show(session: Session, name: str) -> None:
    """Show one executor and its functions, by name or by all 64 characters of the id."""
    colony = session.colony()
    if len(name) == 64:
        row = session.call("getexecutorbyidmsg", {"colonyname": colony, "executorid": name})
    else:
        row = session.call("getexecutormsg", {"colonyname": colony, "executorname": name})
    fields = {"colonyname": colony, "executorname": row["executorname"]}
    functions: list[dict[str, Any]] = session.call("getfunctionsmsg", fields) or []
    print_value(
        session,
        {**row, "functions": functions},
        [
            ("executor", row.get("executorname")),
            ("id", row.get("executorid")),
            ("type", row.get("executortype")),
            ("colony", row.get("colonyname")),
            ("state", state_name(row.get("state"))),
            ("location", row.get("locationname")),
            ("added", when(row.get("commissiontime"))),
            ("heard from", when(row.get("lastheardfromtime"))),
            ("functions", ", ".join(str(function["funcname"]) for function in functions)),
            ("hardware", (row.get("capabilities") or {}).get("hardware")),
            ("software", (row.get("capabilities") or {}).get("software")),
            ("allocations", (row.get("allocations") or {}).get("projects")),
        ],
    )


def _decide(session: Session, payloadtype: str, name: str, word: str) -> None:
    fields = {"colonyname": session.colony(), "executorname": name}
    session.call(payloadtype, fields, owner=True)
    print_done(session, {"executorname": name, "state": word}, f"{word} {name}")


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


@colony_command("rm", "colony executor rm worker-1")
@click.argument("name")
def rm(session: Session, name: str) -> None:
    """Unregister an executor: its functions go, and what it runs waits for another one."""
    _decide(session, "removeexecutormsg", name, "unregistered")


@colony_command(
    "add",
    "colony executor add camera-1 --type camera --approve",
    "colony executor add gpu-7 --id 3fa2b1c0… --spec gpu.json",
)
@click.argument("name")
@click.option("--type", "-T", "kind", default=None, help="Type of executor [cli].")
@click.option("--location", default="", help="Name of the location it stands at.")
@click.option("--spec", "file", default=None, metavar="FILE", help="JSON with the rest.")
@click.option("--id", "identity", default=None, help="Its id, if it has a key [make one].")
@click.option("--approve", is_flag=True, help="Approve it, too.")
def add(
    session: Session,
    name: str,
    kind: str | None,
    location: str,
    file: str | None,
    identity: str | None,
    approve: bool,
) -> None:
    """Add an executor, as the colony's owner, and print its id.

    Without --id its key is made at keys/executor-NAME.key, where --as NAME finds it.
    """
    given = read_object(file, "executor") if file else {}
    path = key_path(session, f"executor-{check_member_name(name)}")
    known = check_id(identity) if identity else read_or_make(path)[0].id
    fields = given | {"executorname": name, "executorid": known, "colonyname": session.colony()}
    fields["executortype"] = kind or given.get("executortype") or "cli"
    if location:
        fields["locationname"] = location
    added: dict[str, Any] = session.call("addexecutormsg", {"executor": fields}, owner=True)
    if approve:
        named = {"colonyname": fields["colonyname"], "executorname": name}
        session.call("approveexecutormsg", named, owner=True)
        added["state"] = 1
    else:
        print_note(f"next: `colony executor approve {shlex.quote(name)}`")
    if not identity:
        added["keyfile"] = str(path)
        print_note(f"its key: {path}")
    print_done(session, added, known)


@colony_command("change-id", "colony executor change-id --as camera-1")
@as_executor
@click.option("--id", "identity", default=None, help="The new id [of a key made here].")
def change_id(session: Session, executor: str | None, identity: str | None) -> None:
    """Give an executor another key, signed by the one it has; that one loses its rights.

    Without --id a new key is made and put in the place of keys/executor-NAME.key; the old one is
    kept beside it with the ending .old.
    """
    colony, name = session.colony(), session.executor_name(executor)
    old = session.signer(executor)

    def change(key: Any, new: str) -> None:
        session.call("changeexecutoridmsg", {"colonyname": colony, "executorid": new}, key=key)

    if identity:
        change(old, check_id(identity))
        new = identity
    else:
        path = key_path(session, f"executor-{name}")
        if executor is None:
            raise Failure(
                "the key comes from $COLONIES_PRVKEY and can't be replaced there",
                code=USAGE,
                next_step="`colony key add`, then give its id with --id",
            )
        probe = accepts(session, "getexecutorsmsg", {"colonyname": colony})
        new = rotate(session, old, path, change, probe)
    print_done(session, {"executorname": name, "executorid": new}, new)


@colony_command("add-log", "colony executor add-log --as camera-1 'lens cleaned'")
@as_executor
@click.argument("message")
def add_log(session: Session, executor: str | None, message: str) -> None:
    """Log a line about an executor, as that executor; `colony log show -e` shows it."""
    name = session.executor_name(executor)
    fields = {"colonyname": session.colony(), "executorname": name, "message": message}
    session.call("addexecutorlogmsg", fields, key=session.signer(executor))
    print_done(session, fields, f"logged for {name}")


for _command in (ls, show, add, approve, reject, rm, change_id, add_log):
    executor.add_command(_command)
