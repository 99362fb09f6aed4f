"""The registration of an executor: made known, approved, and its functions listed."""

from __future__ import annotations

import json
import random
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio

from colonyd.errors import (
    ColonyError,
    Conflict,
    Denied,
    Invalid,
    NotFound,
    NotPermitted,
    RpcError,
    Unavailable,
)
from colonyd.keys import PrivateKey
from colonyd.replies import rows_of
from colonyd.rpc import RpcClient, Unreachable

PENDING, APPROVED, REJECTED, UNREGISTERED = range(4)
RETRY_FIRST, RETRY_MOST = 0.2, 10.0  # seconds of back-off while the server is away
_APPROVAL = 2.0  # seconds between looks at whether the owner has approved

Report = Callable[[str, Mapping[str, object]], None]


def line_of(event: str, details: Mapping[str, object]) -> str:
    """Return what happened as a line for people; ids of processes are cut short."""
    shown = dict(details)
    if "processid" in shown:
        shown["processid"] = str(shown["processid"])[:12]
    values = (
        f"{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in shown.items()
    )
    return " ".join((event, *values))


async def pause(stop: anyio.Event, seconds: float) -> float:
    """Wait about `seconds`, or until `stop` is set; return the seconds of the next pause."""
    with anyio.move_on_after(seconds * random.uniform(0.7, 1.3)):
        await stop.wait()
    return min(seconds * 2, RETRY_MOST)


@dataclass
class Registration:
    """One executor. `owner` gives the colony's key, read only when it must sign."""

    client: RpcClient
    colony: str
    name: str
    kind: str
    functions: Mapping[str, list[dict[str, str]]]  # each with its parameters, {name, type}
    key: PrivateKey
    owner: Callable[[], PrivateKey]
    approve: bool  # whether the owner's key approves it
    report: Report
    stop: anyio.Event
    _turn: anyio.Lock = field(default_factory=anyio.Lock)

    async def register(self) -> None:
        """Make this executor known and approved, and list its functions. Safe to repeat.

        Raises ColonyError, RpcError, Unreachable.
        """
        async with self._turn:  # slots find out at the same time that they are unknown
            await self._register()

    async def _register(self) -> None:
        mine = await self._me()
        if mine is None or mine.get("state") == UNREGISTERED:
            mine = await self._add()
        if (kind := mine.get("executortype")) != self.kind:
            raise ColonyError(
                f"executor {self.name} is registered with type {kind!r}",
                next_step="use that type, or another name",
            )
        if mine.get("state") == REJECTED:
            raise NotPermitted(
                f"executor {self.name} was rejected by the colony's owner",
                next_step=f"`colony executor approve {shlex.quote(self.name)}`",
            )
        if mine.get("state") == PENDING:
            await self._approval()
        await self._list_functions()

    async def _add(self) -> Mapping[str, Any]:
        executor = {
            "executorid": self.key.id,
            "executorname": self.name,
            "executortype": self.kind,
            "colonyname": self.colony,
        }
        try:
            await self.again("addexecutormsg", {"executor": executor}, self.owner())
        except RpcError as error:
            mine = await self._me()  # an earlier try may have succeeded and its reply been lost
            if mine is not None and mine.get("state") != UNREGISTERED:
                return mine
            if not isinstance(error, Invalid | Conflict):
                raise
            raise ColonyError(
                f"can't register executor {self.name}: {error.message}",
                next_step="is the name taken? try another name; `colony executor ls` shows all",
            ) from None
        self.report("registered", {"name": self.name, "id": self.key.id})
        return {"state": PENDING, "executortype": self.kind}

    async def _me(self) -> Mapping[str, Any] | None:
        try:
            rows = await self.again("getexecutorsmsg", {"colonyname": self.colony}, self.key)
        except (Denied, NotFound):
            return None  # not known at all yet
        return next((row for row in rows_of(rows) if row.get("executorid") == self.key.id), None)

    async def _approval(self) -> None:
        name = {"colonyname": self.colony, "executorname": self.name}
        if self.approve:
            await self.again("approveexecutormsg", name, self.owner())
            return
        self.report("pending", {"next": f"colony executor approve {shlex.quote(self.name)}"})
        while not self.stop.is_set():
            mine = await self._me()
            if mine is not None and mine.get("state") == APPROVED:
                return
            if mine is not None and mine.get("state") == REJECTED:
                raise NotPermitted(f"executor {self.name} was rejected")
            with anyio.move_on_after(_APPROVAL):
                await self.stop.wait()

    async def _list_functions(self) -> None:
        if self.stop.is_set():
            return
        where = {"colonyname": self.colony, "executorname": self.name}
        rows = await self.again("getfunctionsmsg", where, self.key)
        there = [row.get("funcname") for row in rows_of(rows)]
        for name, args in self.functions.items():
            if name not in there:
                fun = {**where, "executortype": self.kind, "funcname": name, "args": args}
                await self.again("addfunctionmsg", {"fun": fun}, self.key)

    async def again(self, kind: str, fields: dict[str, Any], key: PrivateKey) -> Any:
        """Call, and repeat with back-off while the server or its store is away.

        For calls that may be repeated.
        """
        seconds = RETRY_FIRST
        while True:
            try:
                return await self.client.call(kind, fields, key)
            except (Unreachable, Unavailable) as error:
                if self.stop.is_set():
                    raise
                self.report("unreachable", {"error": str(error)})
                seconds = await pause(self.stop, seconds)
