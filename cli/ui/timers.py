"""The page of crons and generators: what starts workflows, and when next."""

from __future__ import annotations

from typing import Any

import msgspec

from cli.automation.cron import schedule
from cli.core.output import at
from cli.ui.api import Api, Nothing
from cli.ui.clip import clip
from cli.ui.context import Context

api = Api()

_MOST = 200


class CronRow(msgspec.Struct):
    """One cron; times are Unix s."""

    id: str
    name: str
    schedule: str
    next: float | None
    last: float | None
    workflow: str
    by: str
    spec: str


class GeneratorRow(msgspec.Struct):
    """One generator: `waiting` of `trigger` arguments are there."""

    id: str
    name: str
    trigger: int
    waiting: int
    timeout: int
    first: float | None
    last: float | None
    by: str
    spec: str


class Timers(msgspec.Struct):
    """All that starts workflows."""

    crons: list[CronRow]
    generators: list[GeneratorRow]


def _spec(row: dict[str, Any]) -> str:
    return clip(str(row.get("workflowspec") or ""), 20_000)


@api.row("timers", Nothing)
async def timers(context: Context, params: Nothing) -> Timers:
    """Return crons, the next to run first, and generators by name."""
    crons = [
        CronRow(
            id=str(row["cronid"]),
            name=str(row.get("name") or ""),
            schedule=schedule(row),
            next=at(row.get("nextrun")),
            last=at(row.get("lastrun")),
            workflow=str(row.get("prevprocessgraphid") or ""),
            by=str(row.get("initiatorname") or ""),
            spec=_spec(row),
        )
        for row in await context.here("getcronsmsg", count=_MOST) or []
    ]
    generators = [
        GeneratorRow(
            id=str(row["generatorid"]),
            name=str(row.get("name") or ""),
            trigger=int(row.get("trigger") or 0),
            waiting=int(row.get("queuesize") or 0),
            timeout=max(0, int(row.get("timeout") or 0)),
            first=at(row.get("firstpack")),
            last=at(row.get("lastrun")),
            by=str(row.get("initiatorname") or ""),
            spec=_spec(row),
        )
        for row in await context.here("getgeneratorsmsg", count=_MOST) or []
    ]
    crons.sort(key=lambda row: (row.next is None, row.next or 0, row.name))
    generators.sort(key=lambda row: row.name)
    return Timers(crons, generators)
