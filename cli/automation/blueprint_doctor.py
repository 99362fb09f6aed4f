"""`colony blueprint doctor` and `log`: why a blueprint is not what it should be.

It changes nothing unless --fix is given; each finding says what to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
import trio

from cli.core.errors import FAILED, NOT_FOUND, OK, Failure
from cli.core.output import Check, print_json, short
from cli.core.session import Session, colony_command, finish
from cli.core.terminal import print_line, print_note
from cli.work import log as log_lines
from colonyd.replies import newest
from colonyd.rpc import Signed

_POLL = 1.0  # seconds
_RECENT = 100  # processes of a state looked at for a blueprint's name
_APPROVED = 1
_FAILED = 3


def check(
    blueprint: dict[str, Any],
    definitions: list[dict[str, Any]],
    executors: list[dict[str, Any]],
    crons: list[dict[str, Any]],
    last: dict[str, Any] | None,
) -> Iterator[Check]:
    """Return what can keep one blueprint from becoming real.

    `last` is its last reconciling process.
    """
    name, kind = blueprint["metadata"]["name"], blueprint.get("kind")
    place = blueprint["metadata"].get("locationname") or ""
    found = [d for d in definitions if d["spec"]["names"]["kind"] == kind]
    if not found:
        yield Check(name, False, f"kind {kind} has no definition", "`colony blueprint definition`")
        return
    handler = found[0]["spec"].get("handler") or {}
    wanted = handler.get("executorType")
    if not wanted or not handler.get("functionName"):
        yield Check(name, None, f"kind {kind} names no executor type and function: nobody acts")
        return
    able = [
        row
        for row in executors
        if row.get("executortype") == wanted
        and row.get("state") == _APPROVED
        and (not place or str(row.get("locationname", "")).lower() == place.lower())
    ]
    where = f" at {place}" if place else ""
    if able:
        yield Check(name, True, f"{len(able)} executors of type {wanted}{where}")
    else:
        yield Check(
            name,
            False,
            f"no approved executor of type {wanted}{where}",
            "start one, or `colony executor approve NAME`",
        )
    cron = f"reconcile-{kind}" + (f"-{place}" if place else "")
    if not any(row.get("name") == cron for row in crons):
        yield Check(name, None, f"no cron {cron}: it is reconciled on changes only", "--fix")
    if last is not None and last.get("state") == _FAILED:
        why = "; ".join(str(error) for error in last.get("errors") or []) or "no reason given"
        process = short(last["processid"])
        yield Check(
            name, False, f"the last reconciliation failed: {why}", f"`colony log show -p {process}`"
        )


async def _reconciled_by(
    client: Signed, colony: str, name: str, kind: str, executortype: str
) -> list[dict[str, Any]]:
    """Return recent processes that reconciled a blueprint, or all of its kind, oldest first."""
    found: dict[str, dict[str, Any]] = {}
    for state in (1, 2, 3):
        fields = {"colonyname": colony, "count": _RECENT, "state": state}
        fields |= {"executortype": executortype, "label": "", "initiator": ""}
        rows, _ = await newest(lambda asked: client.call("getprocessesmsg", asked), fields)
        for row in rows:
            kwargs = (row.get("spec") or {}).get("kwargs") or {}
            if kwargs.get("blueprintName", name) == name and kwargs.get("kind") == kind:
                found[row["processid"]] = row
    return sorted(found.values(), key=lambda row: str(row.get("submissiontime")))


@colony_command("doctor", "colony blueprint doctor", "colony blueprint doctor camera-1 --fix")
@click.argument("name", required=False)
@click.option("--fix", is_flag=True, help="Reconcile each blueprint that has a finding.")
def doctor(session: Session, name: str | None, fix: bool) -> None:
    """Say what keeps blueprints from becoming real; exit 1 if something does."""
    key, colony = session.member_key(), session.colony()

    async def work() -> tuple[list[Check], list[str]]:
        async with session.signed(key) as client:
            every = {"namespace": colony, "kind": "", "locationname": ""}
            blueprints = await client.call("getblueprintsmsg", every) or []
            blueprints = [b for b in blueprints if name in (None, b["metadata"]["name"])]
            if name and not blueprints:
                raise Failure(f"no blueprint {name!r}", code=NOT_FOUND,
                              next_step="`colony blueprint ls`")  # fmt: skip
            here = {"colonyname": colony}
            definitions = await client.call("getblueprintdefinitionsmsg", here) or []
            executors = await client.call("getexecutorsmsg", here) or []
            crons = await client.call("getcronsmsg", here | {"count": 1000}) or []
            checks: list[Check] = []
            fixed: list[str] = []
            for found in blueprints:
                title, kind = found["metadata"]["name"], found["kind"]
                runs = await _reconciled_by(client, colony, title, kind, "")
                mine = list(check(found, definitions, executors, crons, runs[-1] if runs else None))
                checks += mine
                if fix and any(each.ok is not True for each in mine):
                    fields = {"namespace": colony, "name": title, "force": False}
                    await client.call("reconcileblueprintmsg", fields)
                    fixed.append(title)
            return checks, fixed

    checks, fixed = session.run(work)
    wrong = [each for each in checks if each.ok is False]
    if session.as_json:
        print_json(
            {
                "ok": not wrong,
                "checks": [{"name": c.name, "ok": c.ok, "detail": c.detail} for c in checks],
                "reconciled": fixed,
            }
        )
    else:
        for each in checks:
            mark = {True: "✓", False: "✗", None: "!"}[each.ok]
            print_line(f"{mark} {each.name}: {each.detail}")
            if each.next and each.ok is not True:
                print_line(f"  next: {each.next}")
        for title in fixed:
            print_note(f"reconciling {title}")
    finish(FAILED if wrong else OK)


@colony_command("logs", "colony blueprint logs camera-1", "colony blueprint logs --follow")
@click.argument("name", required=False)
@click.option("--count", type=click.IntRange(1, log_lines.PAGE), default=100, show_default=True)
@click.option("--follow", "-f", is_flag=True, help="Go on until interrupted.")
def logs(session: Session, name: str | None, count: int, follow: bool) -> None:
    """Print what was logged while a blueprint was made real; without NAME, by all who do that."""
    key, colony = session.member_key(), session.colony()
    kept: list[log_lines.Line] = []
    show = kept.append if session.as_json else log_lines.stamped

    async def sources(client: Signed) -> list[dict[str, str]]:
        """Return which logs to read: of processes when one is named, else of executors."""
        here = {"colonyname": colony}
        if name:
            fields = {"namespace": colony, "name": name}
            kind = (await client.call("getblueprintmsg", fields))["kind"]
            runs = await _reconciled_by(client, colony, name, kind, "")
            return [here | {"processid": run["processid"]} for run in runs]
        definitions = await client.call("getblueprintdefinitionsmsg", here) or []
        types = {(d["spec"].get("handler") or {}).get("executorType") for d in definitions}
        executors = await client.call("getexecutorsmsg", here) or []
        return [
            here | {"executorname": row["executorname"]}
            for row in executors
            if row.get("executortype") in types
        ]

    async def work() -> None:
        async with session.signed(key) as client:
            since = 0
            while True:
                lines: list[log_lines.Line] = []
                for source in await sources(client):
                    asked: dict[str, Any] = {**source, "since": since, "count": count}
                    lines += await log_lines.fetch(client, latest=since == 0, **asked)
                lines.sort(key=lambda line: int(line["timestamp"]))
                for line in lines[-count:] if since == 0 else lines:
                    show(line)
                since = max([since, *(int(line["timestamp"]) for line in lines)])
                if not follow:
                    return
                await trio.sleep(_POLL)

    session.run(work)
    if session.as_json:
        print_json(kept)
