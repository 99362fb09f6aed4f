"""All of `colony process`: adds assigning, closing, removing, counting to `cli.work.process`.

An executor's commands are signed by its key: --as, or the SDKs' variables.
"""

from __future__ import annotations

from typing import Any

import click

from cli.core.lookup import call_about
from cli.core.output import (
    STATES,
    print_done,
    print_json,
    print_rows,
    print_value,
    short,
    state_name,
    when,
)
from cli.core.session import Session, as_executor, colony_command
from cli.core.terminal import print_line
from cli.work.process import process, process_fields
from cli.work.removal import removal_options, removed_all
from cli.work.resolve import resolve
from cli.work.run import argument, called


@colony_command("assign", "colony process assign --as camera-1 --timeout 60")
@as_executor
@click.option("--timeout", type=click.IntRange(0), default=0, help="Seconds to wait for one.")
@click.option("--cpu", default="", help="What the executor has to give, such as 2000m.")
@click.option("--memory", default="", help="What the executor has to give, such as 4GiB.")
def assign(session: Session, executor: str | None, timeout: int, cpu: str, memory: str) -> None:
    """Take the next process as an executor; exit 3 when there is none."""
    fields = {"colonyname": session.colony(), "timeout": timeout or -1}
    fields |= {"availablecpu": cpu, "availablemem": memory}
    found: dict[str, Any] = session.call(
        "assignprocessmsg", fields, key=session.signer(executor), timeout=timeout + 15.0
    )
    print_value(session, found, process_fields(found))


def _end(session: Session, executor: str | None, text: str, word: str, fields: Any) -> None:
    payloadtype = "closesuccessfulmsg" if word == "closed" else "closefailedmsg"
    full = call_about(session, session.signer(executor), text, payloadtype, fields, attempts=4)
    print_done(session, {"processid": full, **fields}, f"{word} {full}")


@colony_command("close", "colony process close 3fa2b1c09d7e --as camera-1 done 42")
@click.argument("processid")
@click.argument("out", nargs=-1)
@as_executor
@click.option("--json-out", is_flag=True, help="Read outputs as JSON where they are JSON.")
def close(
    session: Session, processid: str, out: tuple[str, ...], executor: str | None, json_out: bool
) -> None:
    """Report success of a process with its OUTputs, as the executor that runs it."""
    outputs = [argument(text, json_out) for text in out]
    _end(session, executor, processid, "closed", {"out": outputs})


@colony_command("fail", "colony process fail 3fa2b1c09d7e --as camera-1 'lens is dirty'")
@click.argument("processid")
@click.argument("errors", nargs=-1, required=True)
@as_executor
def fail(session: Session, processid: str, errors: tuple[str, ...], executor: str | None) -> None:
    """Report failure of a process with ERRORS, as the executor that runs it."""
    _end(session, executor, processid, "failed", {"errors": list(errors)})


@colony_command("set-output", "colony process set-output 3fa2b1c09d7e --as camera-1 half")
@click.argument("processid")
@click.argument("out", nargs=-1, required=True)
@as_executor
def set_output(
    session: Session, processid: str, out: tuple[str, ...], executor: str | None
) -> None:
    """Set the OUTputs of a process that goes on running, as its executor."""
    key, fields = session.signer(executor), {"out": list(out)}
    full = call_about(session, key, processid, "setoutputmsg", fields)
    print_done(session, {"processid": full, "out": list(out)}, f"set the output of {full}")


@colony_command(
    "rm", "colony process rm 3fa2b1c09d7e", "colony process rm --all --state successful --yes"
)
@click.argument("processid", required=False)
@removal_options
def rm(session: Session, processid: str | None, **given: Any) -> None:
    """Remove a process that doesn't run and is in no workflow; or, as the owner, --all.

    With --all but without --state running ones are cancelled and removed, too. Workflows keep
    theirs.
    """
    if not removed_all(session, "removeallprocessesmsg", "processes", processid, **given):
        key, about = session.member_key(), str(processid)
        full = call_about(session, key, about, "removeprocessmsg", {"all": False})
        print_done(session, {"processid": full, "removed": True}, f"removed {full}")


@colony_command("pause", "colony pause", "colony process pause")
def pause(session: Session) -> None:
    """Hand out no more work, as the colony's owner; submissions go on."""
    session.call("pauseassignmentsmsg", {"colonyname": session.colony()}, owner=True)
    print_done(session, {"ispaused": True}, f"paused: no work is handed out in {session.colony()}")


@colony_command("resume", "colony resume", "colony process resume")
def resume(session: Session) -> None:
    """Hand out work again, as the colony's owner."""
    session.call("resumeassignmentsmsg", {"colonyname": session.colony()}, owner=True)
    print_done(session, {"ispaused": False}, f"resumed: work is handed out in {session.colony()}")


@colony_command("status", "colony process status")
def status(session: Session) -> None:
    """Say whether work is handed out."""
    reply: dict[str, Any] = session.call("getpausestatusmsg", {"colonyname": session.colony()})
    paused = bool(reply.get("ispaused"))
    value = {"colonyname": session.colony(), "ispaused": paused}
    print_done(session, value, "paused" if paused else "running")


@colony_command("stats", "colony process stats")
def stats(session: Session) -> None:
    """Count the colony's processes by state."""
    counts: dict[str, int] = session.call("getcolonystatsmsg", {"colonyname": session.colony()})
    found = {state: counts.get(f"{state}processes", 0) for state in STATES}
    print_value(session, found, list(found.items()))


@colony_command(
    "history",
    "colony process history --seconds 3600",
    "colony process history --state failed",
)
@click.option("--state", type=click.Choice(STATES), default="successful", show_default=True)
@click.option("--seconds", type=click.IntRange(1), default=86400, show_default=True)
@click.option("--executor-id", default="", help="Only of the executor with this id.")
def history(session: Session, state: str, seconds: int, executor_id: str) -> None:
    """List all processes of one state that were submitted in the last so many seconds."""
    fields = {"colonyname": session.colony(), "executorid": executor_id, "seconds": seconds}
    fields["state"] = STATES.index(state)
    rows: list[dict[str, Any]] = session.call("getprocesshistmsg", fields, timeout=120.0) or []
    print_rows(
        session,
        rows,
        ["ID", "FUNCTION", "STATE", "SUBMITTED", "STARTED", "ENDED", "EXECUTOR"],
        lambda row: [
            short(row["processid"]),
            (row.get("spec") or {}).get("funcname"),
            state_name(row.get("state")),
            when(row.get("submissiontime")),
            when(row.get("starttime")),
            when(row.get("endtime")),
            short(row.get("assignedexecutorid")),
        ],
        f"no {state} processes in the last {seconds} s",
    )


@colony_command("add-child", "colony process add-child 9d… 3f… --spec next.json --as camera-1")
@click.argument("workflowid")
@click.argument("parentid")
@click.option("--spec", "file", required=True, metavar="FILE", help="Function spec, JSON.")
@click.option("--before", "childid", default="", help="Let this process wait for it, too.")
@click.option("--insert", is_flag=True, help="Put it between the parent and all its children.")
@as_executor
def add_child(
    session: Session,
    workflowid: str,
    parentid: str,
    file: str,
    childid: str,
    insert: bool,
    executor: str | None,
) -> None:
    """Add a node to a running workflow, as the executor that runs its parent (full ids)."""
    from cli.core.inputs import read_object

    spec = read_object(file, "spec")
    spec.setdefault("conditions", {}).setdefault("colonyname", session.colony())
    fields = {"processgraphid": workflowid, "parentprocessid": parentid, "childprocessid": childid}
    added: dict[str, Any] = session.call(
        "addchildmsg", fields | {"spec": spec, "insert": insert}, key=session.signer(executor)
    )
    if session.as_json:
        print_json(added)
    else:
        print_line(added["processid"])


for _command in (
    assign, close, fail, set_output, rm, pause, resume, status, stats, history, add_child,
    resolve,
):  # fmt: skip
    process.add_command(_command)
process.add_command(called("process run"))
