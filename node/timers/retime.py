"""Retiming: stored times that a step of the wall clock made wrong get other values.

`host.clock` notices steps, and judges deadlines meanwhile. Here crons, generators and processes are
changed; docs/architecture.md ("Clocks") has the rest.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import trio

from colonyd.errors import RpcError
from node.etcd.client import EtcdClient
from node.etcd.errors import EtcdError
from node.etcd.txn import ModRevision, Put, Txn
from node.host.clock import JUMP, Clock
from node.host.log import get_logger
from node.model.codec import pack, unpack
from node.model.types import SECOND, Process, State
from node.processes.older import complete
from node.processes.queue import QueueEntry
from node.processes.service import Processes
from node.store import clock as store
from node.store.clock import ClockRecord
from node.store.crons import Cron
from node.store.generators import Generator
from node.store.work import processes as transitions
from node.timers import cronexpr as schedule
from node.timers.crons import Crons, next_run
from node.timers.election import Leader
from node.timers.generators import Generators
from node.timers.timerqueue import TimerIndex

_TICK = 1.0  # seconds between looks at the clocks
# Seconds between two writes of the clock record: it has 100 bytes, and flash wears out.
_KEEP = 300.0
_AGAIN = 4.0  # more seconds after the store did not answer, or took nothing
_ELECTION = 10.0  # seconds that a step waits for this daemon to lead
_GOODBYE = 1.0  # seconds that the last write may take
_SLACK = int(JUMP * SECOND)
_AT_ONCE = 200  # values looked at without a pause

log = get_logger("clock")


def retimed_cron(
    cron: Cron, before: int, now: int, seen: int, local: ZoneInfo, dice: Callable[[], float]
) -> Cron | None:
    """Return a cron with the times it should have, or None when it has them. All times in Unix ns.

    The clock shows `now` and would show `before` without the step; they are equal without a step.
    `seen` is the latest time that it is known to have shown before. A next run is never further
    away than the schedule allows. A constant distance keeps what is left of it. A moment of an
    expression that the clock jumped over is not made up for.
    """
    after, by = cron, now - before
    if cron.firing is not None and cron.firing.at > now + _SLACK:
        after = msgspec.structs.replace(after, firing=msgspec.structs.replace(cron.firing, at=now))
    if not cron.nextrun:
        return after if after != cron else None
    afresh = msgspec.structs.replace(after, nextrun=0, window=0)
    try:
        nextrun, window = next_run(afresh, now, local, dice)
        plan = None if cron.interval > 0 else schedule.parse(cron.cronexpression, local)
        if isinstance(plan, schedule.CronTimes):
            furthest, left = nextrun, cron.nextrun
            if before < cron.nextrun <= now and schedule.next_moment(plan, max(before, seen)) > now:
                left = nextrun
        else:
            seconds = plan.seconds if plan is not None else cron.interval
            # The next window of a random moment may begin where this one ends.
            furthest = now + seconds * SECOND * (2 if cron.random else 1)
            left = cron.nextrun + by if by and cron.nextrun > before else cron.nextrun
    except schedule.ScheduleError:
        return after if after != cron else None  # said when it is due
    if left > furthest + _SLACK:
        after = msgspec.structs.replace(after, nextrun=nextrun, window=window)
    elif left != cron.nextrun:
        moved = cron.window + by if cron.window else 0
        after = msgspec.structs.replace(after, nextrun=left, window=moved)
    return after if after != cron else None


def retimed_generator(generator: Generator, before: int, now: int) -> Generator | None:
    """Return a generator with its oldest argument's time by this clock, or None if it has it."""
    oldest, by = generator.oldest, now - before
    if not generator.queuesize or not oldest:
        return None
    came = oldest
    if oldest > now or (by > 0 and oldest <= before):
        came = min(oldest + by, now)
    if abs(came - oldest) <= _SLACK:
        return None
    return msgspec.structs.replace(generator, oldest=came)


@dataclass
class Retiming:
    """Gives stored times other values after a step of the clock.

    `kept` is the clock record that the store has, or is to have, with the last step.
    """

    client: EtcdClient
    clock: Clock
    processes: Processes
    crons: Crons
    generators: Generators
    leader: Leader
    boot: str = ""
    # Other actions for a step: they get its size in ns, and the time that the clock would show
    # without it.
    also: Sequence[Callable[[int, int], Awaitable[None]]] = ()
    kept: ClockRecord | None = None
    behind: int = 0  # the latest time seen before, as long as the clock is behind it
    latest: int = 0  # the latest time that is known to have been shown before a step
    _kept_at: float = 0.0
    _written: int = 0
    _begun: bool = False
    # Whether the store is known to have the times that memory goes by.
    _rewritten: bool = False

    async def load(self) -> None:
        """Read the stored clock record, before anything is judged by the clock. Raises EtcdError.

        Within the same start of the machine, a step since then is still to be dealt with.
        """
        found = await self.client.get(store.seen(self.leader.identity))
        self.kept = unpack(found.value, ClockRecord) if found is not None else None
        if self.kept is None:
            return
        if self.boot and self.kept.boot == self.boot:
            self.clock.resume(self.kept.wall, self.kept.steady)
        now, self.latest = self.clock.now(), self.kept.wall
        if self.kept.wall > now + _SLACK:
            self.behind = self.kept.wall
            log.warning(
                "the clock is behind the last time that the store saw",
                seconds=round((self.behind - now) / SECOND),
                next="is it right (`date`)? If not, set it, or enable NTP",
            )
            # At least: the time for which the machine was off is unknown.
            self.kept = msgspec.structs.replace(
                self.kept, by=now - self.kept.wall, at=now, crons=0, generators=0, processes=0
            )

    async def run(self) -> None:
        """Look at the clock each second, and repair what a step made wrong, until cancelled."""
        try:
            while True:
                try:
                    await self._look()
                    await self._keep()
                except EtcdError as error:
                    log.warning("times are mended later", error=error)
                    await trio.sleep(_AGAIN)
                await trio.sleep(_TICK)
        finally:
            with trio.move_on_after(_GOODBYE, shield=True):
                try:
                    await self._write()
                except EtcdError as error:
                    log.warning("the time is not kept", error=error)

    async def _look(self) -> None:
        if (by := self.clock.step()) != 0:
            await self._mend(by)
        elif not self._begun and self.behind:
            # The step was not seen, and was at least this one.
            await self._tell_others(self.clock.now() - self.behind, self.behind)
        self._begun = True
        if not self._rewritten:
            self._count(processes=await self._rewrite())
            self._rewritten = True

    def view(self) -> dict[str, int]:
        """Return the state of the clock for people: seconds, and how many things were given other
        times.
        """
        now, kept = self.clock.now(), self.kept or ClockRecord(0, 0, "")
        return {
            "now": now // SECOND,
            "behind": max(0, self.behind - now) // SECOND,
            "steppedby": round(kept.by / SECOND),
            "steppedat": kept.at // SECOND,
            "crons": kept.crons,
            "generators": kept.generators,
            "processes": kept.processes,
        }

    async def begin_term(self) -> None:
        """Look through crons and generators before they are followed. Raises EtcdError."""
        now = self.clock.now()
        crons, generators = await self._retime_timed(now, now)
        self._count(crons, generators)

    async def _tell_others(self, by: int, before: int) -> None:
        for act in self.also:
            await act(by, before)
        if self.client.pressure.own:  # the clock of one host means nothing to several
            await self.processes.hooks.clock_set(by, before)

    def _count(self, crons: int = 0, generators: int = 0, processes: int = 0) -> None:
        """Count what was given other times."""
        if not crons + generators + processes:
            return
        log.warning("times mended", crons=crons, generators=generators, processes=processes)
        kept = self.kept or ClockRecord(0, 0, "")
        self.kept = msgspec.structs.replace(
            kept,
            at=kept.at or self.clock.now(),
            crons=kept.crons + crons,
            generators=kept.generators + generators,
            processes=kept.processes + processes,
        )
        self._kept_at = 0.0

    # -- after a step --------------------------------------------------------------------

    async def _mend(self, by: int) -> None:
        """Deal with a step by so many ns.

        Raises EtcdError; then the step is still to be dealt with.
        """
        crons = generators = 0
        self.latest = max(self.latest, self.clock.judged)
        with trio.move_on_after(_ELECTION if self.client.pressure.own else 0):
            await self.leader.elected()
        if self.leader.holds:
            crons, generators = await self._retime_timed(self.clock.judged, self.clock.now())
        await self._tell_others(by, self.clock.judged)
        self.clock.adopt()
        now = self.clock.now()
        if by < 0 or now >= self.behind:
            self.behind = 0
        self._rewritten, self._kept_at = False, 0.0
        self.kept = ClockRecord(now, 0, "", by, now)
        log.warning("clock stepped", seconds=round(by / SECOND))
        self._count(crons, generators)
        self.crons.index.timer_queue.look_again()
        self.generators.index.timer_queue.look_again()

    async def _retime_timed(self, before: int, now: int) -> tuple[int, int]:
        """Give crons and generators other times, as the leader; return how many of each."""
        crons = self.crons

        def cron(value: Cron) -> Cron | None:
            return retimed_cron(value, before, now, self.latest, crons.local, crons.dice)

        def generator(value: Generator) -> Generator | None:
            return retimed_generator(value, before, now)

        moved = await self._retime_index(crons.index, cron)
        return moved, await self._retime_index(self.generators.index, generator)

    async def _retime_index(self, index: TimerIndex[Any], retimed: Callable[[Any], Any]) -> int:
        count = 0
        for key in index.all_keys():
            await trio.lowlevel.checkpoint()  # a next moment may take milliseconds to find
            known = index.get(key)
            after = retimed(known[0]) if known is not None else None
            if known is None or after is None:
                continue
            # A value that changed meanwhile was given its times by the present clock.
            compare = [ModRevision(key, known[1]), *self.leader.fence]
            result = await self.client.commit(Txn(compare, [Put(key, pack(after))]))
            if result.succeeded:
                index.learn(key, after, result.revision)
                count += 1
        return count

    async def _rewrite(self) -> int:
        """Write the deadlines and places that memory goes by into the store; return how many
        processes.

        Not where several daemons share a store: one host's clock means nothing to the others, and
        each goes by its own memory. Raises EtcdError.
        """
        await complete(self.processes)
        await self._place()
        if not self.client.pressure.own:
            return 0
        count = 0
        for number, entry in enumerate(list(self.processes.queue.entries.values())):
            if number % _AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
            deadline = self._deadline(
                self.processes.queue.due.get(entry.processid), entry.waiting.waitdeadline
            )
            if entry.moved or deadline != entry.waiting.waitdeadline:
                step = partial(_retime_waiting, entry, deadline)
                count += await self._change(entry.colony, entry.processid, step)
        for number, (processid, item) in enumerate(list(self.processes.running.entries.items())):
            if number % _AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
            colony, running, _ = item
            deadline = self._deadline(
                self.processes.running.due.get(processid), running.execdeadline
            )
            if deadline != running.execdeadline:
                step = partial(_retime_running, running.execdeadline, deadline)
                count += await self._change(colony, processid, step)
        return count

    async def _place(self) -> None:
        """Place processes that were submitted in the future as if they had come now, in order."""
        now, queue = self.clock.now(), self.processes.queue
        found: list[tuple[int, QueueEntry]] = []
        for number, entry in enumerate(list(queue.entries.values())):
            if number % _AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
            came = entry.waiting.submitted(entry.prioritytime)
            if came > now + _SLACK:
                found.append((came, entry))
        found.sort(key=lambda item: (item[0], item[1].processid))
        for rank, (came, entry) in enumerate(found):
            shift = came - entry.prioritytime
            queue.move(entry.processid, now - shift + rank - len(found))

    def _deadline(self, due: int, stored: int) -> int:
        """Return the stored form of a deadline that is due then; the stored value, if it is
        right.
        """
        if not stored or due <= self.clock.steady():
            return stored  # none, or dealt with at this moment
        right = self.clock.deadline(due)
        return right if abs(right - stored) > _SLACK else stored

    async def _change(
        self,
        colony: str,
        processid: str,
        step: Callable[[Process, int], transitions.Transition | None],
    ) -> bool:
        """Give one process other times; return whether it still needed them. Raises EtcdError."""
        done: list[bool] = []

        def noted(process: Process, revision: int) -> transitions.Transition | None:
            taken = step(process, revision)
            done[:] = [taken is not None]
            return taken

        try:
            await self.processes.change_quietly(colony, processid, noted)
        except RpcError as error:
            log.warning("times not mended", process=processid, error=error)
            return False
        return done == [True]

    # -- what the store keeps ------------------------------------------------------------

    async def _keep(self) -> None:
        """Write the clock record, if others wrote since and the last time is a while ago."""
        written, now = self.client.pressure.written, trio.current_time()
        if self._kept_at and (written == self._written or now < self._kept_at + _KEEP):
            return
        self._kept_at = now  # a failed write is not repeated at once, either
        await self._write()

    async def _write(self) -> None:
        wall, steady = self.clock.now(), self.clock.steady()
        if not self._rewritten or abs(wall - steady - self.clock.offset) > _SLACK:
            return  # an open step: the store must know the time before it
        kept = self.kept or ClockRecord(0, 0, "")
        self.kept = msgspec.structs.replace(kept, wall=wall, steady=steady, boot=self.boot)
        await self.client.put(store.seen(self.leader.identity), pack(self.kept))
        self._written = self.client.pressure.written


def _retime_waiting(
    entry: QueueEntry, deadline: int, process: Process, revision: int
) -> transitions.Transition | None:
    away = process.peer and not process.waitforparents
    known = process.waitdeadline == entry.waiting.waitdeadline
    if process.state != State.WAITING or away or not known:
        return None
    return transitions.retime(
        process,
        revision,
        prioritytime=entry.prioritytime,
        waitdeadline=deadline,
        execdeadline=process.execdeadline,
    )


def _retime_running(
    stored: int, deadline: int, process: Process, revision: int
) -> transitions.Transition | None:
    if process.state != State.RUNNING or process.execdeadline != stored:
        return None
    return transitions.retime(
        process,
        revision,
        prioritytime=process.prioritytime,
        waitdeadline=process.waitdeadline,
        execdeadline=deadline,
    )
