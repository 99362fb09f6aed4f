"""Crons: workflows that start by the clock, each due time exactly once.

Expressions are read by `timers.cronexpr`, transactions made by `store.crons`; which daemon follows
the clock is decided in `timers.runner`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from zoneinfo import ZoneInfo

import msgspec

from colonyd.errors import Conflict, Invalid, NotFound, RpcError, TooMany
from node.etcd.client import EtcdClient, KeyValue
from node.etcd.errors import EtcdError
from node.etcd.pages import Pages, each, values
from node.etcd.pressure import Need
from node.etcd.txn import Compare, ModRevision
from node.host.log import get_logger
from node.model.codec import unpack
from node.model.ids import MAX_SECONDS, new_id
from node.model.types import SECOND, State
from node.processes.observer import Observer
from node.store import crons as store
from node.store.crons import Cron, CronFiring
from node.store.directory import Directory
from node.tasks.offload import apart
from node.timers import cronexpr as schedule
from node.timers.election import Leader
from node.timers.timerqueue import TimerIndex
from node.timers.trigger import (
    LATER,
    WarningLimiter,
    check_name,
    check_workflow,
    is_final,
    may_start,
)
from node.workflows.service import Workflows
from node.workflows.spec import read_workflow

log = get_logger("crons")

# Tries of one change, each with fresh values after a lost race. More mean that something is wrong.
_TRIES = 8
# Nanoseconds that the writer of a firing has to submit it before the leader does.
_GRACE = 2 * SECOND
# Seconds until a cron is looked at again that neither changed nor could be written.
_PATIENCE = 1.0
# ... after the store was too full; the log tells that once for all crons.
_NO_ROOM = 5.0
_PAGE = 16


def check_cron(cron: Cron, local: ZoneInfo) -> None:
    """Raise Invalid that names the field of a cron that has no usable value."""
    check_name(cron.name, "cron.name")
    if cron.interval == 0 or cron.interval < -1 or cron.interval > MAX_SECONDS:
        raise Invalid(f"cron.interval: seconds up to {MAX_SECONDS}, or -1 for the expression")
    if cron.interval > 0:
        return
    if cron.random:
        raise Invalid("cron.random: needs cron.interval, in which a random moment is chosen")
    try:
        schedule.parse(cron.cronexpression, local)
    except schedule.ScheduleError as error:
        raise Invalid(f"cron.cronexpression: {error}") from None


def next_run(cron: Cron, now: int, local: ZoneInfo, dice: Callable[[], float]) -> tuple[int, int]:
    """Return when a cron that runs, or is added, at `now` runs next; and the end of its random
    interval.

    All in Unix ns. The next run is always after `now`: missed runs are not made up for. The beat of
    an interval is kept unless a run was missed. `dice` gives numbers in [0, 1). Raises
    ScheduleError when there is no next time.
    """
    if cron.interval > 0 and cron.random:
        start = cron.window if cron.nextrun <= now < cron.window else now
        span = cron.interval * SECOND
        return start + 1 + int(dice() * (span - 1)), start + span
    if cron.interval > 0:
        return _beat(cron.nextrun, now, cron.interval), 0
    plan = schedule.parse(cron.cronexpression, local)
    if isinstance(plan, schedule.FixedInterval):
        return _beat(cron.nextrun, now, plan.seconds), 0
    return schedule.next_moment(plan, now), 0


def _beat(due: int, now: int, seconds: int) -> int:
    following = due + seconds * SECOND
    return following if due <= now < following else now + seconds * SECOND


def due(cron: Cron) -> int | None:
    """Return when the leader has to look after a cron, in Unix ns; None for never."""
    if cron.firing is not None:
        return cron.firing.at + _GRACE
    return cron.nextrun or None


def owner(cron: Cron) -> tuple[str, str]:
    """Return the colony of a cron and the id of its member."""
    return cron.colonyname, cron.initiatorid


@dataclass
class Crons(Observer):
    """The crons of a node. `now` gives Unix nanoseconds, `dice` numbers in [0, 1)."""

    client: EtcdClient
    directory: Directory
    workflows: Workflows
    leader: Leader
    now: Callable[[], int]
    dice: Callable[[], float]
    local: ZoneInfo = field(default_factory=schedule.environment_zone)
    index: TimerIndex[Cron] = field(default_factory=lambda: TimerIndex(Cron, due, owner))
    _told: WarningLimiter = field(default_factory=WarningLimiter)
    # The keys of the crons that are due and wait for a workflow, by its colony and id.
    _waiting: dict[tuple[str, str], set[str]] = field(default_factory=dict)

    # -- for callers ---------------------------------------------------------------------

    async def add(self, cron: Cron, workflowspec: str) -> Cron:
        """Store a new cron and set its first run; an empty id is filled in.

        A repeat with the same id returns the stored cron. Raises Invalid, NotFound, or TooMany.
        """
        check_cron(cron, self.local)
        place = "cron.workflowspec"
        await apart(len(workflowspec), check_workflow, workflowspec, cron.colonyname, place)
        try:
            nextrun, window = next_run(cron, self.now(), self.local, self.dice)
        except schedule.ScheduleError as error:
            raise Invalid(f"cron.cronexpression: {error}") from None
        cron = msgspec.structs.replace(
            cron, cronid=cron.cronid or new_id(), nextrun=nextrun, window=window
        )
        if self.index.get(store.key(cron.colonyname, cron.cronid)) is None:
            self._require_room(cron)
        result = await self.client.commit(store.add(cron, workflowspec))
        if not result.succeeded:
            mine, name = result.responses
            if mine:
                return unpack(mine[0].value, Cron)
            if name:
                raise Invalid(f"cron.name: a cron {cron.name!r} exists already")
            raise NotFound(f"cron.colonyname: {cron.colonyname!r} is not hosted here")
        self.index.learn(store.key(cron.colonyname, cron.cronid), cron, result.revision)
        return cron

    def _require_room(self, cron: Cron) -> None:
        quotas, colony, owners = self.workflows.processes.quotas, cron.colonyname, self.index.owners
        member = f"{cron.initiatorname!r} in colony {colony!r}"
        quotas.require("member_crons", member, owners.get(owner(cron), 0), "crons")
        quotas.require("colony_crons", f"colony {colony!r}", owners.get((colony, ""), 0), "crons")

    async def remove(self, colony: str, cronid: str) -> None:
        """Remove a cron. Raises NotFound."""
        cron = await self.get(colony, cronid)
        result = await self.client.commit(store.remove(cron))
        self.index.apply(store.key(colony, cronid), None, result.revision)

    async def get(self, colony: str, cronid: str) -> Cron:
        """Return the cron from the store. Raises NotFound."""
        found = await self.load(colony, cronid)
        if found is None:
            raise NotFound(f"cronid: no cron {cronid[:80]!r} in colony {colony}")
        return found[0]

    async def find(self, colony: str, name: str) -> Cron | None:
        """Return the cron with a name, or None."""
        found = await self.client.get(store.name_key(colony, name))
        known = await self.load(colony, found.value.decode()) if found is not None else None
        return known[0] if known is not None else None

    def listing(self, colony: str, count: int) -> list[Cron]:
        """Return at most `count` crons of a colony, by name, as the index has them."""
        return self.index.first(colony, count)

    async def spec(self, cron: Cron) -> str:
        """Return the workflow of a cron, as it was sent; "" if the cron is gone."""
        found = await self.client.get(store.spec_key(cron.colonyname, cron.cronid))
        return found.value.decode() if found is not None else ""

    def with_specs(self, found: Sequence[Cron]) -> Pages[tuple[Cron, str]]:
        """Return crons with their workflows, in pages; without crons that are gone by now."""
        owners = {store.spec_key(each.colonyname, each.cronid): each for each in found}
        return each(
            values(self.client, list(owners)), lambda kv: (owners[kv.key], kv.value.decode())
        )

    async def run_now(self, colony: str, cronid: str, token: str) -> Cron:
        """Start a cron's workflow now and move its next run; the same token starts it once.

        A cron that waits for its previous workflow stays unchanged while that runs. Raises
        RpcError.
        """
        graphid = store.graph_token(cronid, token)
        for _ in range(_TRIES):
            known = await self.load(colony, cronid)
            if known is None:
                raise NotFound(f"cronid: no cron {cronid[:80]!r} in colony {colony}")
            if known[0].firing is not None:
                await self._submit(*known, ())
                continue
            if await self.workflows.load(colony, graphid) is not None:
                return known[0]
            if not await self._free(known[0]):
                return known[0]
            self._require_processes(known[0])
            written = await self._write(*known, graphid, ())
            if written is not None:
                await self._submit(*written, ())
                return await self.get(colony, cronid)
        raise Conflict("cronid: the cron changes too fast; try again")

    # -- for the leader ------------------------------------------------------------------

    async def act(self, key: str) -> float:
        """Start the workflow of a cron that is due, as the leader.

        Returns the seconds for which the cron is then left alone. Raises EtcdError.
        """
        known = self.index.get(key)
        if known is None:
            return 0.0
        cron = known[0]
        if cron.firing is not None:
            if self.client.pressure.refuses(Need.GROWS):
                return _NO_ROOM
            return await self._submit(*known, self.leader.fence)
        if not 0 < cron.nextrun <= self.now():
            return 0.0
        if not may_start(self.directory, cron.colonyname, cron.initiatorid, cron.initiatorname):
            return await self._skip(*known, "its creator left the colony")
        if not await self._free_or_waits(key, cron):
            return 0.0
        if self.client.pressure.refuses(Need.GROWS):
            return _NO_ROOM  # it stays due: one run follows when there is room again
        try:
            self._require_processes(cron)
        except TooMany as error:
            return await self._skip(*known, error.message)
        graphid = store.graph_id(cron.cronid, cron.nextrun)
        written = await self._write(*known, graphid, self.leader.fence)
        if written is None:
            # Changed, and known by now; or this daemon no longer leads, and is about to hear of it.
            return 0.0 if self.index.get(key) != known else _PATIENCE
        return await self._submit(*written, self.leader.fence)

    async def _free_or_waits(self, key: str, cron: Cron) -> bool:
        """Return whether no workflow has to be waited for; otherwise the end of that one makes the
        cron due again.
        """
        place = (cron.colonyname, cron.prevprocessgraphid)
        # Before the look: an end that comes during it must not be missed.
        self._waiting.setdefault(place, set()).add(key)
        free = True
        try:
            free = await self._free(cron)
        finally:
            there = self._waiting.get(place, set())
            if free:
                there.discard(key)
            elif key in there:
                self.index.put_off(key)
            if not there:
                self._waiting.pop(place, None)
        return free

    def advanced(self, colony: str, graphid: str) -> None:
        """Make the crons due that wait for a workflow, which may be over."""
        for key in self._waiting.pop((colony, graphid), ()):
            self.index.resume(key)

    def listed(self) -> None:
        """Make all crons due that wait for a workflow: each may be over."""
        for place in list(self._waiting):
            self.advanced(*place)

    def _require_processes(self, cron: Cron) -> None:
        quotas = self.workflows.processes.quotas
        quotas.require_processes(cron.colonyname, cron.initiatorname, timed=True)

    async def _skip(self, cron: Cron, revision: int, reason: str) -> float:
        """Leave a run out, and say so in the cron; return the seconds until the next try.

        It is written once, and logged once in a while for all crons of a member: a cron that may
        not start must not make work of its own.
        """
        self._tell(cron, reason)
        if not cron.skipped:
            moved = msgspec.structs.replace(self._moved(cron), skipped=reason)
            await self._commit(moved, revision, self.leader.fence)
        return LATER

    def _tell(self, cron: Cron, reason: str) -> None:
        if self._told.first(owner(cron), self.now()):
            log.warning("crons skip their runs", cron=cron.cronid, name=cron.name, error=reason)

    def _moved(self, cron: Cron) -> Cron:
        try:
            nextrun, window = next_run(cron, self.now(), self.local, self.dice)
        except schedule.ScheduleError as error:
            log.error("a cron has no next run", cron=cron.cronid, name=cron.name, error=error)
            nextrun, window = 0, 0
        return msgspec.structs.replace(cron, nextrun=nextrun, window=window)

    async def _free(self, cron: Cron) -> bool:
        """Return whether no workflow has to be waited for: failed, cancelled or removed is over,
        too.
        """
        if not cron.waitforprevprocessgraph or not cron.prevprocessgraphid:
            return True
        graph = await self.workflows.load(cron.colonyname, cron.prevprocessgraphid)
        return graph is None or graph.state >= State.SUCCESSFUL

    async def _write(
        self, cron: Cron, revision: int, graphid: str, fence: Sequence[Compare]
    ) -> tuple[Cron, int] | None:
        """Write down that a workflow is to be submitted, and move the cron; return None after a
        lost race.
        """
        now = self.now()
        after = msgspec.structs.replace(
            self._moved(cron),
            lastrun=now,
            prevprocessgraphid=graphid,
            firing=CronFiring(graphid, cron.prevprocessgraphid, now),
        )
        return await self._commit(after, revision, fence)

    async def _commit(
        self, cron: Cron, revision: int, fence: Sequence[Compare]
    ) -> tuple[Cron, int] | None:
        """Store another value of a cron read at `revision`, or learn the present one."""
        key = store.key(cron.colonyname, cron.cronid)
        result = await self.client.commit(store.update(cron, revision, fence))
        if result.succeeded:
            self.index.learn(key, cron, result.revision)
            return cron, result.revision
        self._take_in(key, result.responses[0])
        return None

    def _take_in(self, key: str, found: Sequence[KeyValue]) -> None:
        if found:
            self.index.apply(key, found[0].value, found[0].mod_revision)
        else:
            self.index.forget(key)

    async def load(self, colony: str, cronid: str) -> tuple[Cron, int] | None:
        """Return the cron and its revision from the store, or None."""
        if "/" in cronid:
            return None
        found = await self.client.get(store.key(colony, cronid))
        return (unpack(found.value, Cron), found.mod_revision) if found is not None else None

    async def _submit(self, cron: Cron, revision: int, fence: Sequence[Compare]) -> float:
        """Submit the workflow of a firing, and remove the firing; return the seconds to leave the
        cron alone.

        Submitting compares the cron's revision: once the firing or the cron is removed, no daemon
        can submit it again, however long ago it began to.
        """
        firing = cron.firing
        assert firing is not None
        colony = cron.colonyname
        key = store.key(colony, cron.cronid)
        spec = await self.client.get(store.spec_key(colony, cron.cronid))
        if spec is None:
            self._take_in(key, [])
            return 0.0
        given = (
            await self.workflows.leaf_outputs(colony, firing.previous) if firing.previous else []
        )
        after, pause = msgspec.structs.replace(cron, firing=None, skipped=""), 0.0
        try:
            # An older release may have accepted a workflow that this one refuses.
            _, specs = await apart(
                len(spec.value), read_workflow, spec.value.decode(), "cron.workflowspec"
            )
            await self.workflows.submit(
                colony,
                specs,
                graphid=firing.graphid,
                initiatorid=cron.initiatorid,
                initiatorname=cron.initiatorname,
                root_input=given,
                field="cron.workflowspec",
                guard=[ModRevision(key, revision), *fence],
                timed=True,
            )
        except TooMany as error:
            self._tell(cron, error.message)
            after = msgspec.structs.replace(
                after, prevprocessgraphid=firing.previous, skipped=error.message
            )
            pause = LATER
        except Conflict:
            self._take_in(key, [kv] if (kv := await self.client.get(key)) is not None else [])
            return 0.0
        except (RpcError, EtcdError) as error:
            if isinstance(error, EtcdError) and not is_final(error):
                raise
            self._tell(cron, f"its workflow is refused: {error}")
            after = msgspec.structs.replace(after, prevprocessgraphid="", skipped=str(error))
            pause = LATER if cron.skipped else 0.0
        await self._commit(after, revision, fence)
        return pause
