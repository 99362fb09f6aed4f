"""The form of a submission: the functions that are known, here and at peers, and the call."""

from __future__ import annotations

from typing import Any

import msgspec

from cli.core.errors import Failure
from cli.ui.api import Api, Nothing
from cli.ui.context import Context

api = Api()

_MOST = 500  # functions in the form


class Argument(msgspec.Struct):
    """One argument of a function, as its executor registered it."""

    name: str
    type: str
    description: str
    required: bool
    enum: list[str]


class Offer(msgspec.Struct):
    """One function that executors of a type offer; `colony` is "" for this one."""

    func: str
    type: str
    colony: str
    description: str
    args: list[Argument]
    executors: list[str]


class SubmitParams(msgspec.Struct, forbid_unknown_fields=True):
    """What a person filled in; times are seconds, 0 means no limit."""

    func: str
    type: str
    colony: str = ""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    label: str = ""
    priority: int = 0
    maxwaittime: int = 0
    maxexectime: int = 0
    maxretries: int = 0


@api.row("offers", Nothing)
async def offers(context: Context, params: Nothing) -> list[Offer]:
    """Return the functions that can be asked for."""
    found: dict[tuple[str, str, str], Offer] = {}
    for row in await context.here("getfunctionsmsg") or []:
        key = (str(row.get("funcname")), str(row.get("executortype") or ""), "")
        offer = found.setdefault(key, Offer(*key, str(row.get("description") or ""), [], []))
        offer.executors.append(str(row.get("executorname")))
        offer.args = offer.args or [_argument(each) for each in row.get("args") or []]
    for peer in await context.maybe_owned("getpeersmsg") or []:
        if peer.get("state") != "trusted":
            continue
        told = await context.maybe_owned("getpeermsg", peer=peer["id"]) or {}
        for kind, said in ((told.get("capabilities") or {}).get("types") or {}).items():
            for func in said.get("functions") or []:
                key = (str(func), str(kind), str(peer.get("name")))
                found.setdefault(key, Offer(*key, "", [], []))
    ordered = sorted(found.values(), key=lambda each: (each.colony, each.func, each.type))
    return ordered[:_MOST]


def _argument(row: dict[str, Any]) -> Argument:
    return Argument(
        str(row.get("name") or ""),
        str(row.get("type") or ""),
        str(row.get("description") or ""),
        bool(row.get("required")),
        [str(each) for each in row.get("enum") or []],
    )


@api.row("submit", SubmitParams, changes=True)
async def submit(context: Context, params: SubmitParams) -> dict[str, str]:
    """Submit a process; return its id."""
    if not params.func or not params.type:
        raise Failure("a function and an executor type are needed", next_step="fill both in")
    spec = {
        "funcname": params.func,
        "args": params.args,
        "kwargs": params.kwargs,
        "label": params.label,
        "priority": params.priority,
        "maxwaittime": params.maxwaittime,
        "maxexectime": params.maxexectime,
        "maxretries": params.maxretries,
        "conditions": {
            "colonyname": params.colony or context.colony,
            "executortype": params.type,
        },
    }
    found = await context.client.call(
        "submitfuncspecmsg", {"spec": spec}, context.member, attempts=3
    )
    return {"id": str(found["processid"])}
