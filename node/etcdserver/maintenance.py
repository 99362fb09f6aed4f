"""Maintenance of the store: watches its use, compacts overwritten values, clears NOSPACE.

A cluster that others run is only watched. `archive` decides what stays in the store, `pressure`
what is let in.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import trio

from node.etcd.client import EtcdClient, Status
from node.etcd.errors import Compacted, EtcdError
from node.etcd.pressure import Level, Pressure
from node.host.log import get_logger

log = get_logger("etcd")

_WORTH_IT = 1000  # revisions: fewer are not worth a compaction, which costs writes to flash
_LOOK = 5.0  # seconds between two looks, at most; writes ask for one earlier
_LEAST = 0.1  # ... at least, however much is written
_CROWDED = 70  # percent of the quota from which overwritten values are kept for less time
_AGAIN = 30.0  # seconds between two tries to make room below an alarm
# Looks after a compaction at which etcd is asked to count: meanwhile it removes compacted values.
_COUNTS = 10
_WASTE = 16 * 2**20  # bytes that are free in the file, and half of it, before it is defragmented
# Revisions a second, and bytes that this daemon writes, of a store that has time for a
# defragmentation, at most. A revision may be that of many transactions.
_QUIET, _QUIET_BYTES = 10, 20_000
_STOP = 2.0  # seconds that it may take then: callers wait 5
_RATE = 20 * 2**20  # bytes of use defragmented in a second, until measured: that of slow flash


async def observe(client: EtcdClient, disk: Path | None = None) -> Status:
    """Bring the client's `pressure` up to date, and log when its level changes.

    `disk` is a directory whose file system is watched as well, even while etcd does not answer.
    Raises EtcdError.
    """
    pressure = client.pressure
    pressure.look = trio.Event()
    try:
        if disk is not None:
            pressure.place = str(disk)
            pressure.take_disk(await trio.to_thread.run_sync(_free, disk))
        counted = pressure.counted(trio.current_time())
        status = await client.status()
        pressure.take_in(
            size=status.db_size, used=status.db_in_use, alarm=status.no_space, counted=counted
        )
        return status
    finally:
        if pressure.level != pressure.logged:
            pressure.logged = pressure.level
            _tell(pressure)


def _free(disk: Path) -> int | None:
    try:
        return shutil.disk_usage(disk).free
    except OSError:
        return None


def _tell(pressure: Pressure) -> None:
    if pressure.level is Level.OK:
        log.info("store takes everything again", used=pressure.used, quota=pressure.quota)
    elif pressure.level is Level.SOFT:
        log.warning("store is nearly full", because=pressure.told())
    else:
        log.error("store is full", because=pressure.told())


async def watch_use(client: EtcdClient) -> NoReturn:
    """Watch the use of a cluster that others run, until cancelled; log trouble once."""
    trouble = ""
    while True:
        try:
            await observe(client)
            trouble = ""
        except EtcdError as error:
            if str(error) != trouble:
                log.warning("store is not watched", because=error)
            trouble = str(error)
        await _until_next(client, _LOOK)


async def clear_alarm(client: EtcdClient) -> None:
    """Make our own etcd take writes again if an alarm of an earlier run stands.

    Its limit is above the size of its file (`supervisor.own_limit`). Raises EtcdError.
    """
    if (await client.status()).no_space:
        log.warning("an alarm of an earlier run is cleared", alarm="NOSPACE")
        await client.disarm()


async def maintain(
    client: EtcdClient,
    *,
    quota_bytes: int,
    interval: float = 30.0,
    hold: str = "",
    disk: Path | None = None,
    listing: Callable[[], bool] = lambda: False,
) -> NoReturn:
    """Keep the store below its quota, until cancelled; `client.pressure` tells how full it is.

    While there is a key `hold`, or `listing` returns True (for a listing of a whole index, which
    would have to begin again), nothing is compacted unless etcd itself has no space.

    Overwritten values are kept for one to two intervals, within which any other paged listing has
    to be done; shorter while the store fills. etcd's own compaction, every five minutes at best,
    lets a busy queue fill the quota in between.
    """
    pressure = client.pressure
    pressure.quota = quota_bytes
    rewriting = Defragmenter()
    due = compacted = stale = 0
    turn = tried = float("-inf")
    while True:
        pause = interval
        try:
            status = await observe(client, disk)
            now = trio.current_time()
            if pressure.percent >= _CROWDED:
                pause = min(interval, 2.0 if pressure.tight else 5.0)
            if pressure.alarm and now - tried >= _AGAIN:
                tried = now
                await _make_room(client, status.revision)
                await observe(client, disk)
                compacted, stale = status.revision, _COUNTS
            elif now - turn >= pause:
                # One revision may have removed much.
                worth = 1 if pressure.tight or pressure.wanted > compacted else _WORTH_IT
                held = listing() or (hold and await client.get(hold))
                if due - compacted >= worth and not held:
                    await _compact(client, due)
                    compacted, stale = due, _COUNTS
                elif pressure.tight and stale:
                    stale -= 1
                    await _count_again(client)
                due, turn = status.revision, now
            if rewriting.due(status, trio.current_time(), quota_bytes, pressure.written):
                await rewriting.do(client, status)
        except EtcdError as error:
            log.warning("store maintenance failed", because=error)
        await _until_next(client, min(pause, _LOOK))


@dataclass
class Defragmenter:
    """Decides when the file of a store is defragmented: that stops everything meanwhile.

    `rate` is how many bytes of use a second it takes, as last measured.
    """

    rate: float = _RATE
    _revision: int = 0
    _written: int = 0
    _looked: float | None = None

    def due(self, status: Status, now: float, quota: int, written: int) -> bool:
        """Return whether to defragment at `now`, in seconds: the file is too large, or the stop is
        short. This daemon has written so many bytes so far.
        """
        free = status.db_size - status.db_in_use
        if status.db_size > quota:
            # etcd's own limit is on the file, free pages included.
            return free > quota // 8
        looked = self._looked
        if looked is not None and now - looked < 1:
            return False
        revisions, more = status.revision - self._revision, written - self._written
        self._revision, self._written, self._looked = status.revision, written, now
        quiet = (
            looked is not None
            and revisions <= _QUIET * (now - looked)
            and more <= _QUIET_BYTES * (now - looked)
        )
        short = status.db_in_use <= self.rate * _STOP
        return quiet and short and free >= max(_WASTE, status.db_size // 2)

    async def do(self, client: EtcdClient, status: Status) -> None:
        """Defragment the file, and note how long that takes. Raises EtcdError."""
        began = trio.current_time()
        await client.defragment()
        took = max(0.001, trio.current_time() - began)
        # For a small file, most of the time is overhead.
        if status.db_in_use > _WASTE:
            self.rate = status.db_in_use / took
        log.info(
            "store is defragmented",
            size=status.db_size,
            used=status.db_in_use,
            seconds=round(took, 3),
        )


async def _until_next(client: EtcdClient, seconds: float) -> None:
    """Wait until the next look is due or requested."""
    await trio.sleep(min(_LEAST, seconds))
    with trio.move_on_after(seconds):
        await client.pressure.look.wait()


async def _compact(client: EtcdClient, revision: int, *, physical: bool = False) -> None:
    try:
        await client.compact(revision, physical=physical)
    except Compacted:
        log.debug("store was compacted by others", revision=revision)


async def _count_again(client: EtcdClient) -> None:
    """Make etcd count its free pages: it does so at a write only, and a lease leaves no key."""
    await client.revoke(await client.grant(1))


async def _make_room(client: EtcdClient, revision: int) -> None:
    """Compact, defragment, and clear the alarm, in the order etcd demands.

    etcd raises it again if that was not enough.
    """
    # What is still in the file would be defragmented with the rest, and no room made.
    await _compact(client, revision, physical=True)
    await client.defragment()
    await client.disarm()
    status = await client.status()
    log.info("store has room again", size=status.db_size, quota=client.pressure.quota)
