"""The buttons of the pages: each is one call of the daemon, and needs `--write`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from cli.ui.api import Api, Nothing
from cli.ui.context import Context
from cli.ui.processes import ById

api = Api()


class ByName(msgspec.Struct, forbid_unknown_fields=True):
    """The name of an executor."""

    name: str


def _by_id(kind: str, field: str) -> Callable[[Context, ById], Awaitable[Any]]:
    async def act(context: Context, params: ById) -> Any:
        await context.call(kind, timeout=60, **{field: params.id})
        return {}

    return act


def _of_executor(kind: str) -> Callable[[Context, ByName], Awaitable[Any]]:
    async def act(context: Context, params: ByName) -> Any:
        await context.owned(kind, colonyname=context.colony, executorname=params.name)
        return {}

    return act


def _of_colony(kind: str) -> Callable[[Context, Nothing], Awaitable[Any]]:
    async def act(context: Context, params: Nothing) -> Any:
        await context.owned(kind, colonyname=context.colony)
        return {}

    return act


for _name, _kind in (
    ("approve", "approveexecutormsg"),
    ("reject", "rejectexecutormsg"),
    ("remove-executor", "removeexecutormsg"),
):
    api.row(_name, ByName, changes=True)(_of_executor(_kind))
for _name, _kind in (("pause", "pauseassignmentsmsg"), ("resume", "resumeassignmentsmsg")):
    api.row(_name, Nothing, changes=True)(_of_colony(_kind))
for _name, _kind, _field in (
    ("cancel", "cancelprocessmsg", "processid"),
    ("remove", "removeprocessmsg", "processid"),
    ("cancel-workflow", "cancelprocessgraphmsg", "processgraphid"),
    ("remove-workflow", "removeprocessgraphmsg", "processgraphid"),
    ("run-cron", "runcronmsg", "cronid"),
    ("remove-cron", "removecronmsg", "cronid"),
    ("remove-generator", "removegeneratormsg", "generatorid"),
):
    api.row(_name, ById, changes=True)(_by_id(_kind, _field))
