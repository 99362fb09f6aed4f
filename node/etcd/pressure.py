"""The pressure: how full the store is, as one value, and which kinds of writes it still takes.

Nothing here talks to etcd: `etcdserver.maintenance` updates the value, and writers ask it first.
"""

from __future__ import annotations

import enum
import sys
from dataclasses import dataclass, field

import trio

from node.etcd.errors import StoreFull

# etcd allocates its write-ahead log in files of 64 MB, two of them at the start.
MIN_FREE = 160 * 1024 * 1024

DEFAULT_QUOTA = 2 * 2**30  # bytes: the quota that etcd takes for 0
BATCH = 2  # seconds for which our own etcd gathers writes before it puts them into its file
_UNSEEN = BATCH + 1  # seconds for which writes are not in the size that etcd reports
_BACK = 2  # percent: how far the use must fall below a limit until that is lifted again
_MIB = 2**20


class Need(enum.IntEnum):
    """The effect of a write on the store; the value is the use, in percent of the quota, from which
    it is refused.

    The space above a limit is reserved for the kinds below it in this list.
    """

    GROWS = 80
    """Adds what stays until somebody removes it: submissions, files, log lines, members."""
    WORKS = 90
    """Goes on with what is there: hand-outs, outputs, states, changes of members."""
    ENDS = 95
    """Ends what runs, with its output."""
    FREES = 101
    """Reads, removes, cancels, blocks or limits. It is never refused here."""


class Level(enum.StrEnum):
    """The levels of use: as always; nothing is added; only what ends and frees is done."""

    OK = "ok"
    SOFT = "soft"
    FULL = "full"


@dataclass
class Pressure:
    """The store's use as last seen, and the bytes written since. Sizes in bytes.

    `quota` is etcd.quota; 0 means that nothing watches, and nothing is refused. `own`: etcd is the
    daemon's. `used` is how much of the file (`size`) is in use, `alarm` that etcd itself refuses
    writes, `disk_free` the space left below `place`, None if it is not watched. `written` is the
    sum of all writes.

    `look` is set when `maintenance` should look at once; `logged` is the level last logged.

    `wanted` is the revision at which something left to make room, to be compacted soon.

    `tight` is whether anything is refused: the one value that is read for each call.
    """

    quota: int = 0
    own: bool = True
    place: str = ""
    size: int = 0
    used: int = 0
    alarm: bool = False
    disk_free: int | None = None
    percent: int = 0
    tight: bool = False
    wanted: int = 0
    since: int = 0
    written: int = 0
    logged: Level = Level.OK
    look: trio.Event = field(default_factory=trio.Event)
    _next: int = 0
    _by_use: int = 0
    _marks: list[tuple[float, int]] = field(default_factory=list)

    # -- feeding -------------------------------------------------------------------------

    def wrote(self, size: int) -> None:
        """Count bytes sent to be written; each hundredth of the quota asks for a look."""
        self.since += size
        self.written += size
        if self.since >= self._next:
            self._next = self.since + (self.quota // 100 or sys.maxsize)
            self._judge()
            self.look.set()

    def refused(self) -> None:
        """Note that etcd refused a write for want of space."""
        self.alarm = True
        self._judge()
        self.look.set()

    def counted(self, now: float) -> int:
        """Return how many of the bytes in `since` are in the size that etcd reports at `now`, in
        seconds.
        """
        seen = [since for when, since in self._marks if when <= now - _UNSEEN]
        done = seen[-1] if seen else 0
        later = [(when, since - done) for when, since in self._marks[len(seen) :]]
        self._marks = [*later, (now, self.since - done)]
        return done

    def take_in(self, *, size: int, used: int, alarm: bool, counted: int) -> None:
        """Note the sizes that etcd reports; `counted` of the bytes in `since` are in them
        already.
        """
        self.size, self.used, self.alarm = size, used, alarm
        self.since = max(0, self.since - counted)
        self._next = self.since + (self.quota // 100 or sys.maxsize)
        self._judge()

    def take_disk(self, free: int | None) -> None:
        """Note how much space the disk has left."""
        self.disk_free = free
        self._judge()

    def _judge(self) -> None:
        if not self.quota:
            return
        percent = 100 if self.alarm else min(100, 100 * (self.used + self.since) // self.quota)
        for need in Need:
            if self._by_use >= need > percent >= need - _BACK:
                percent = int(need)
        self._by_use = percent
        if self.disk_low:
            percent = max(percent, int(Need.GROWS))
        self.percent = percent
        self.tight = percent >= Need.GROWS

    # -- asking --------------------------------------------------------------------------

    @property
    def disk_low(self) -> bool:
        """Return whether the disk has so little space left that etcd may soon fail to write its
        log.
        """
        return self.disk_free is not None and self.disk_free < MIN_FREE

    @property
    def level(self) -> Level:
        """Return the level of the use."""
        if not self.tight:
            return Level.OK
        return Level.FULL if self.percent >= Need.WORKS else Level.SOFT

    def refuses(self, need: Need) -> bool:
        """Return whether writes of this kind are refused now."""
        return self.tight and self.percent >= need

    def demand(self, need: Need) -> None:
        """Raise StoreFull, before anything is written, if writes of this kind are refused now."""
        if self.refuses(need):
            raise StoreFull(f"the store is {'nearly ' * (not self.alarm)}full: {self.told()}")

    def told(self) -> str:
        """Return what is wrong and what to do about it, for members; "" when nothing is."""
        return f"{self.why}; {self.cure}" if self.tight else ""

    @property
    def why(self) -> str:
        """Return what is wrong; "" when nothing is."""
        if not self.tight:
            return ""
        if self.alarm:
            return f"etcd refuses writes (alarm NOSPACE), with {self.size // _MIB} MiB in its file"
        if self._by_use < Need.GROWS:
            free = (self.disk_free or 0) // _MIB
            return (
                f"{free} MiB are left on the disk of {self.place}; below {MIN_FREE // _MIB} MiB "
                "nothing is added"
            )
        return (
            f"{(self.used + self.since) // _MIB} of {self.quota // _MIB} MiB are in use "
            f"(etcd.quota); from {Need.GROWS} % on nothing is added, from {Need.WORKS} % on work "
            "only ends"
        )

    @property
    def cure(self) -> str:
        """Return what to do about it; "" when nothing is wrong."""
        if not self.tight:
            return ""
        if not self.alarm and self._by_use < Need.GROWS:
            return "make room on that disk"
        cure = (
            "`colony process rm --all`, `colony workflow rm --all`, a shorter history.keep or a "
            "larger etcd.quota make room"
        )
        if self.own:
            return cure
        return (
            f"{cure}; a cluster's operators also compact and defragment it, and clear an alarm "
            "(`etcdctl alarm disarm`)"
        )
