"""`colony process`: lists, shows, awaits and cancels processes, and prints their logs.

Submitting is in `cli.work.run`.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import click
import trio

from cli.core.errors import USAGE, Failure
from cli.core.lookup import _PAGE, _POLL_MOST, SUCCESSFUL, call_about, explain_end, full_id
from cli.core.output import (
    STATES,
    ago,
    cell_text,
    name_text,
    output_lines,
    print_done,
    print_fields,
    print_json,
    print_lines,
    short,
    state_name,
)
from cli.core.seconds import Seconds
from cli.core.session import Session, colony_command, colony_group, finish
from cli.core.terminal import print_line, print_note, print_result
from cli.work import log as log_lines
from cli.work.removal import OLD_WORDS
from colonyd.errors import Denied, Invalid, NotFound
from colonyd.replies import newest, parse_time
from colonyd.rpc import RpcError

_CALL = 48  # cells of a function with its arguments in a listing

process = colony_group(
    "process",
    "Processes: list, show, await, cancel, and act as the executor of one. "
    "An id may be cut to its first characters.",
    "colony process ls --state running",
    "colony process show 3fa2b1c09d7e",
    aliases={"hist": "history", "output": "set-output", **OLD_WORDS},
)


@colony_command("ls", "colony process ls", "colony process ls --state failed --count 5")
@click.option("--state", type=click.Choice(STATES), default=None, help="Only this state.")
@click.option("--count", type=click.IntRange(1, _PAGE), default=20, show_default=True)
@click.option("--executor-type", default="", help="Only for this type of executor.")
@click.option("--initiator", default="", help="Only what this user or executor submitted.")
@click.option("--label", default="", help="Only with this label.")
def ls(
    session: Session, state: str | None, count: int, executor_type: str, initiator: str, label: str
) -> None:
    """List the newest processes, of one state or of all; at most one of the filters."""
    filters = {"executortype": executor_type, "initiator": initiator, "label": label}
    if sum(map(bool, filters.values())) > 1:
        raise Failure("--executor-type, --initiator, --label: one at a time", code=USAGE)
    key, colony = session.member_key(), session.colony()
    states = range(5) if state is None else [STATES.index(state)]

    async def work() -> tuple[list[dict[str, Any]], int]:
        async with session.signed(key) as client:
            rows: list[dict[str, Any]] = []
            most = count
            unknown: RpcError | None = None
            for number in states:
                try:
                    fields = {"colonyname": colony, "count": most, "state": number, **filters}
                    more, most = await newest(
                        lambda asked: client.call("getprocessesmsg", asked), fields
                    )
                    rows += more
                except Invalid as error:
                    # A former member is known in the states of its processes only.
                    if not initiator:
                        raise
                    unknown = error
            if unknown is not None and not rows:
                raise unknown
            return rows, most

    rows, most = session.run(work)
    oldest = datetime.min.replace(tzinfo=UTC)
    rows.sort(key=lambda row: parse_time(row.get("submissiontime")) or oldest, reverse=True)
    if most < count:
        print_note(f"only the newest {most}: an answer with {count} is too large (--count)")
    rows = rows[:most]
    if session.as_json:
        print_json(rows)
        return
    columns = ["ID", "FUNCTION", "STATE", "SUBMITTED", "BY", "TYPE", "COLONY"]
    print_lines(columns, [_row(row) for row in rows], "no processes")


def _row(row: dict[str, Any]) -> list[object]:
    from cli.core.layout import cut, one_line

    spec = row.get("spec") or {}
    conditions = spec.get("conditions") or {}
    arguments = ", ".join(cell_text(value) for value in spec.get("args") or [])
    call = f"{spec.get('funcname')}({arguments})"
    return [
        short(row["processid"]),
        cut(one_line(call), _CALL),
        state_name(row.get("state")),
        ago(parse_time(row.get("submissiontime"))),
        name_text(row.get("initiatorname")),
        conditions.get("executortype"),
        conditions.get("colonyname"),
    ]


@colony_command("show", "colony process show 3fa2b1c09d7e")
@click.argument("processid")
def show(session: Session, processid: str) -> None:
    """Show one process: state, result, and which colony ran it, with its signature."""
    key = session.member_key()

    async def work() -> tuple[dict[str, Any], dict[str, Any] | None, list[dict[str, Any]]]:
        async with session.signed(key) as client:
            full = await full_id(session, client, processid)
            found = await client.call("getprocessmsg", {"processid": full})
            try:
                forward = await client.call("getforwardmsg", {"processid": full})
            except (Invalid, Denied, NotFound):
                forward = None  # never forwarded, or a server without federation
            asked: list[dict[str, Any]] = []
            if str(found.get("initiatorname")).startswith("colony/"):
                with suppress(RpcError):  # a server that can't tell
                    asked = await client.call("getoriginmsg", {"processid": full}) or []
            return found, forward or None, asked

    found, forward, asked = session.run(work)
    if session.as_json:
        print_json({**found, "forward": forward, **({"asked": asked} if asked else {})})
        return
    fields = process_fields(found) + (forward_fields(forward) if forward else [])
    print_fields(fields + origin_fields(asked))


def process_fields(found: dict[str, Any]) -> list[tuple[str, object]]:
    """Return what `show` prints about a process."""
    spec = found.get("spec") or {}
    conditions = spec.get("conditions") or {}

    def when(name: str) -> str:
        moment = parse_time(found.get(name))
        return f"{moment.isoformat(sep=' ', timespec='milliseconds')}" if moment else ""

    return [
        ("process", found["processid"]),
        ("state", state_name(found.get("state"))),
        ("function", spec.get("funcname")),
        ("arguments", spec.get("args")),
        ("named arguments", spec.get("kwargs")),
        ("colony", conditions.get("colonyname")),
        ("executor type", conditions.get("executortype")),
        ("submitted by", found.get("initiatorname") or found.get("initiatorid")),
        ("executor id", found.get("assignedexecutorid")),
        ("submitted", when("submissiontime")),
        ("started", when("starttime")),
        ("ended", when("endtime")),
        ("retries", found.get("retries") or None),
        ("output", "\n".join(output_lines(found.get("out")))),
        ("errors", "\n".join(cell_text(error) for error in found.get("errors") or [])),
    ]


def forward_fields(forward: dict[str, Any]) -> list[tuple[str, object]]:
    """Return what `show` prints about a process's way to another colony."""
    outcome = forward.get("outcome") or {}
    fields: list[tuple[str, object]] = [
        ("forwarded to", forward.get("peername") or forward.get("peer")),
        ("peer id", forward.get("peer")),
        ("forward", forward.get("state")),
        ("sent", f"{forward.get('attempts', 0)} times"),
        ("last error", forward.get("lasterror")),
        ("process there", forward.get("remoteprocessid")),
        ("state there", _there_line(forward.get("there"))),
        ("routed by", forward.get("route")),
        ("tried before", "\n".join(tried["error"] for tried in forward.get("tried") or [])),
    ]
    if outcome:
        issued = datetime.fromtimestamp(float(outcome.get("issued") or 0), UTC)
        fields += [
            ("outcome by", outcome.get("issuer")),
            ("outcome issued", issued.isoformat(sep=" ", timespec="seconds")),
            ("outcome", _signed(outcome)),
        ]
    late = forward.get("late")
    if late:
        fields.append(("came too late", _late_line(late)))
    chain = forward.get("chain") or []
    if len(chain) > 1:
        fields.append(("ran at", "\n".join(map(_chain_line, chain))))
    if outcome:
        fields.append(("named", "\n".join(map(_named_line, forward.get("named") or []))))
    return fields


def _signed(outcome: dict[str, Any]) -> str:
    """Return what was checked of a signed outcome: the signature, and that it answers the
    submission.
    """
    if not outcome.get("signaturevalid"):
        return "✗ SIGNATURE NOT VALID"
    answers = outcome.get("answers")
    if answers is None:
        return "✓ signature valid; what it was asked is not known any more"
    if not answers:
        return "✗ NOT FOR WHAT WAS SENT: the signature is valid, for another submission"
    return "✓ signature valid, for the very submission that was sent"


def _named_line(named: dict[str, Any]) -> str:
    """Return whether a colony beyond the peer was checked to be the one that the target names."""
    name = cell_text(named.get("name"))
    if len(name) == 64:
        return f"{short(name)} ✓ checked by its id"
    if named.get("ids"):
        return f"{name} ✓ checked: the colony trusted here by that name"
    return f"{name} ? not checked: no colony is trusted here by that name, it may be any"


def _there_line(there: dict[str, Any] | None) -> str:
    """Return the state of a process at the other colony."""
    if not there:
        return ""
    text = state_name(there.get("state"))
    if not there.get("executor"):
        return text
    began = parse_time(there.get("starttime"))
    return f"{text}, by {there['executor']}" + (f" since {ago(began)}" if began else "")


def _late_line(late: dict[str, Any]) -> str:
    """Return the late outcome of a peer, after the process was closed here."""
    name = f"{late.get('name') or 'colony'} {short(late.get('issuer'))}"
    return f"{state_name(late.get('state'))} at {name} {_signed(late)}"


def _chain_line(step: dict[str, Any]) -> str:
    """Return one colony of the way back; the last one ran the process."""
    name = f"{step.get('name') or 'colony'} {short(step.get('issuer'))}"
    if not step.get("signaturevalid"):
        return f"{name} ✗ SIGNATURE NOT VALID"
    problem = step.get("problem")
    return f"{name} ✓ signature valid" + (f" ✗ BUT {problem}" if problem else "")


def origin_fields(asked: list[dict[str, Any]]) -> list[tuple[str, object]]:
    """Return what `show` prints about the colonies that a process came from, its origin first."""
    lines = [_chain_line(hop) for hop in asked]
    first = asked[0].get("initiator") if asked else ""
    return [("asked for by", "\n".join(lines)), ("submitted there by", first)] if lines else []


@colony_command("wait", "colony process wait 3fa2b1c09d7e --timeout 60")
@click.argument("processid")
@click.option("--timeout", type=Seconds(), default=None, help="Seconds to wait [no limit].")
def wait(session: Session, processid: str, timeout: float | None) -> None:
    """Wait for a process, print its output; exit 0 if successful, 1 if failed or cancelled."""
    from cli.work.waiting import unfinished, wait_told

    key = session.member_key()

    async def work() -> dict[str, Any]:
        async with session.signed(key) as client:
            full = await full_id(session, client, processid)
            return await wait_told(session, client, full, timeout)

    try:
        found = session.run(work)
    except TimeoutError as error:
        what = f"process {processid} is not finished after {timeout:g} s"
        raise unfinished(what, processid, error) from None
    if session.as_json:
        print_json(found)
    else:
        for line in output_lines(found.get("out")):
            print_result(line)
    finish(explain_end(found))


@colony_command("why", "colony process why 3fa2b1c09d7e")
@click.argument("processid")
def why(session: Session, processid: str) -> None:
    """Tell what a process waits for: who could take it, what comes before it, what hinders it."""
    from msgspec import to_builtins

    from cli.work.waiting import why_waiting, words
    from cli.work.why import Why

    key = session.member_key()

    async def work() -> tuple[str, Why]:
        async with session.signed(key) as client:
            full = await full_id(session, client, processid)
            return full, await why_waiting(session, client, full)

    full, reason = session.run(work)
    print_done(session, {"processid": full, **to_builtins(reason)}, words(full, reason))


@colony_command("cancel", "colony process cancel 3fa2b1c09d7e")
@click.argument("processid")
def cancel(session: Session, processid: str) -> None:
    """Cancel a waiting or running process."""
    full = call_about(session, session.member_key(), processid, "cancelprocessmsg", {})
    if session.as_json:
        print_json({"processid": full, "cancelled": True})
    else:
        print_line(f"cancelled {full}")


@colony_command("logs", "colony process logs 3fa2b1c09d7e --follow")
@click.argument("processid")
@click.option("--follow", "-f", is_flag=True, help="Go on until the process ends.")
def logs(session: Session, processid: str, follow: bool) -> None:
    """Print what the executor logged about a process, oldest first."""
    key, colony = session.member_key(), session.colony()
    kept: list[dict[str, Any]] = []
    keep = kept.append if session.as_json else log_lines.plain

    async def work() -> None:
        async with session.signed(key) as client:
            full = await full_id(session, client, processid)
            fields = {"colonyname": colony, "processid": full}
            since = await log_lines.drain(client, keep, 0, **fields)
            while follow:
                found = await client.call("getprocessmsg", {"processid": full})
                since = await log_lines.drain(client, keep, since, **fields)
                if found["state"] >= SUCCESSFUL:
                    return
                await trio.sleep(_POLL_MOST)

    session.run(work)
    if session.as_json:
        print_json(kept)


for _command in (ls, show, wait, why, cancel, logs):
    process.add_command(_command)
