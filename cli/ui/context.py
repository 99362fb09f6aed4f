"""The context of the page's calls: keys, client, and what is watched beside the requests."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import trio

from cli.core.errors import NOT_FOUND, Failure
from cli.core.output import Check, at
from cli.core.session import Session
from cli.ui.activity import Activity
from colonyd.rpc import RpcClient, RpcError, Signed, Unreachable

if TYPE_CHECKING:
    from colonyd.keys import PrivateKey

_SAMPLE = 5.0  # seconds between two looks at the counters
_DIAGNOSE = 60.0  # seconds between two runs of the doctor
_BACKFILL = 3600  # seconds
# What comes of an answer of another shape than that of a daemon: the server may be any.
ODD = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


@dataclass
class Context:
    """What all calls of the page share. The keys stay here; the browser never gets one."""

    session: Session
    client: RpcClient
    colony: str
    member: PrivateKey
    owner: PrivateKey | None
    write: bool
    activity: Activity = field(default_factory=Activity)
    findings: list[Check] = field(default_factory=list)
    diagnosed: float = 0.0
    kept_logs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    _diagnosing: trio.Lock = field(default_factory=trio.Lock)

    async def call(self, kind: str, timeout: float = 15.0, **fields: Any) -> Any:
        """Make one call as the member. Raises RpcError, Unreachable."""
        return await self.client.call(kind, fields, self.member, timeout)

    async def here(self, kind: str, **fields: Any) -> Any:
        """Make one call about this colony as the member. Raises RpcError, Unreachable."""
        return await self.call(kind, colonyname=self.colony, **fields)

    async def owned(self, kind: str, timeout: float = 15.0, **fields: Any) -> Any:
        """Make one call as the colony's owner. Raises Failure without that key, RpcError,
        Unreachable.
        """
        if self.owner is None:
            raise Failure(
                "this needs the colony owner's key, and the command does not have it",
                code=NOT_FOUND,
                next_step="run `colony ui` on the daemon's machine as its user, or set"
                " COLONIES_COLONY_PRVKEY",
            )
        return await self.client.call(kind, fields, self.owner, timeout)

    def callers(self) -> tuple[Signed, Signed | None]:
        """Return the calls of the member, and those of the owner if its key is here."""
        owner = Signed(self.client, self.owner) if self.owner is not None else None
        return Signed(self.client, self.member), owner

    async def maybe(self, kind: str, **fields: Any) -> Any:
        """Make one call as the member; return None for what is refused or not there."""
        with suppress(RpcError):
            return await self.call(kind, **fields)
        return None

    async def maybe_owned(self, kind: str, **fields: Any) -> Any:
        """Make one call as the owner; return None without the key, or if it is refused."""
        with suppress(RpcError, Failure):
            return await self.owned(kind, **fields)
        return None

    async def diagnose(self) -> None:
        """Run the doctor's checks beside the event loop. Only one run is under way at a time."""
        from cli.ops.doctor import checks

        if self._diagnosing.locked():
            async with self._diagnosing:
                return
        async with self._diagnosing:
            try:
                self.findings = await trio.to_thread.run_sync(
                    lambda: list(checks(self.session)), abandon_on_cancel=True
                )
            except ODD as error:
                text = f"the daemon's answers are not as expected ({type(error).__name__})"
                step = "`colony version`: is the daemon of this command's version?"
                self.findings = [Check("daemon", False, text, step)]
            self.diagnosed = self.activity.clock()

    async def watch(self) -> None:
        """Keep the counters and the doctor's findings fresh, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._sample)
            while True:
                await self.diagnose()
                await trio.sleep(_DIAGNOSE)

    async def _sample(self) -> None:
        with suppress(RpcError, Unreachable, *ODD):
            await self._look_back()
        while True:
            with suppress(RpcError, Unreachable, *ODD):
                self.activity.note(await self.here("getcolonystatsmsg"))
            await trio.sleep(_SAMPLE)

    async def _look_back(self) -> None:
        for state in range(5):
            rows = await self.here("getprocesshistmsg", state=state, seconds=_BACKFILL)
            for row in rows or []:
                times = (at(row.get(name)) for name in ("submissiontime", "starttime", "endtime"))
                self.activity.recall(int(row.get("state") or 0), *times)
