"""The update publisher: answers the polls of colonies with updates of their processes here.

`forward.updates` decides what is new and what fits. The origin keeps all cursors, so nothing is
stored here, and a lost answer is sent again.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field

import msgspec
import trio

from federation.forward import channels as words
from federation.forward import updates as progress
from federation.forward.receipt import ReceivedProcess
from federation.outbox.updates import UpdateConsumer
from federation.peers.context import Context
from federation.wire.messages import Follow, Line, News, Poll, Said, dump
from node.etcd.errors import EtcdTooLarge
from node.etcd.txn import GetFirst, Txn
from node.members.service import Members
from node.model.codec import unpack
from node.model.types import Log, Process, State
from node.store import keys as node_keys
from node.tasks.sync import gather

_BYTES = 600_000  # bytes of updates in one answer, before the last one
_TOGETHER = 16  # processes read at a time
_PAGE = 101  # lines read in one transaction
_REMEMBERED = 4096
_SAID = 100  # messages of one process in one answer
_PART = 256 * 2**10  # bytes of these messages, unless one is larger
_RECENT = 256  # processes of one colony whose updates are remembered
# Seconds from an update of a process to the answer that tells of it. What ends sooner is told by
# its outcome alone; later updates go with the first.
_GATHERING = 0.1


@dataclass
class UpdatePublisher:
    """Builds updates. `update_consumer` has those of processes that we passed on.

    `members` have the names of our executors; without them, executors are named by id.
    """

    context: Context
    update_consumer: UpdateConsumer
    members: Members | None = None
    told: int = 0
    _places: OrderedDict[tuple[str, str], ReceivedProcess] = field(default_factory=OrderedDict)
    _recent: dict[str, OrderedDict[str, str]] = field(default_factory=dict)
    _turns: dict[str, int] = field(default_factory=dict)
    # When a process got an update that is not told yet, in trio's time; the first of each colony is
    # the oldest.
    _fresh: dict[str, OrderedDict[str, float]] = field(default_factory=dict)
    _quiet: OrderedDict[str, Follow] = field(default_factory=OrderedDict)
    # By process and channel: from where to where the channel has only messages of the origin.
    _passed: OrderedDict[tuple[str, str], tuple[int, int]] = field(default_factory=OrderedDict)

    def progressed(self, process: Process) -> None:
        """Note that a process of another colony has an update."""
        pid = process.processid
        self._turns[pid] = self._turns.get(pid, 0) + 1
        if len(self._turns) > _REMEMBERED:
            del self._turns[next(iter(self._turns))]
        self._quiet.pop(pid, None)
        fresh = self._fresh.setdefault(process.origin, OrderedDict())
        fresh.setdefault(pid, trio.current_time())
        if len(fresh) > _RECENT:
            fresh.popitem(last=False)
        recent = self._recent.setdefault(process.origin, OrderedDict())
        recent[process.notify.rpartition("/")[2]] = pid
        recent.move_to_end(process.notify.rpartition("/")[2])
        if len(recent) > _RECENT:
            recent.popitem(last=False)

    def ended(self, process: Process) -> None:
        """Note that a process of another colony has ended: its outcome tells the rest."""
        self._told(process.origin, process.processid)
        # Or each poll would look at all those that ended before the colony could name them.
        self._recent.get(process.origin, OrderedDict()).pop(process.notify.rpartition("/")[2], None)

    def _told(self, issuer: str, localpid: str) -> None:
        fresh = self._fresh.get(issuer, OrderedDict())
        fresh.pop(localpid, None)
        if not fresh:
            self._fresh.pop(issuer, None)

    def due(self, issuer: str) -> float:
        """Return when the next update of a colony's processes is to be told, in trio's time."""
        fresh = self._fresh.get(issuer)
        return fresh[next(iter(fresh))] + _GATHERING if fresh else math.inf

    def look_again(self) -> None:
        """Check all processes again, which another daemon of this colony may have changed."""
        self._quiet.clear()

    async def news(
        self, issuer: str, poll: Poll, ended: Collection[str]
    ) -> tuple[list[bytes] | None, bool]:
        """Return the updates for a colony, and whether there may be more; None if it did not ask.

        Processes in `ended`, whose outcomes are in the same answer, get their last updates, too.
        """
        if poll.follow is None:
            return None, False
        follows = {follow.pid: follow for follow in poll.follow}
        unlisted = list(ended)
        for pid in ended:
            # Unnoticed changes by another daemon go with the outcome or never.
            if (known := await self.place(issuer, pid)) is not None:
                self._quiet.pop(known.localpid, None)
                # Another daemon may have ended it, and no later answer tells of it.
                self._told(issuer, known.localpid)
        recent = self._recent.get(issuer, OrderedDict())
        for pid in follows:
            recent.pop(pid, None)
        if poll.whole:
            # Processes that the colony does not name yet: accepted while its last poll was on its
            # way.
            unlisted += recent
        for pid in unlisted:
            if pid not in follows and (known := await self.place(issuer, pid)) is not None:
                follows[pid] = Follow(pid, known.attempt)

        async def place_of(follow: Follow) -> ReceivedProcess | None:
            return await self.place(issuer, follow.pid, follow.attempt)

        wanted = list(follows.values())
        places = await gather(place_of, wanted, _TOGETHER)
        held = self._held(issuer)
        asked: list[tuple[Follow, str]] = []
        for follow, known in zip(wanted, places, strict=True):
            if known is None or known.attempt != follow.attempt or known.localpid in held:
                continue
            if self._quiet.get(known.localpid) != follow:
                asked.append((follow, known.localpid))
        found: list[bytes] = []
        room = _BYTES
        for start in range(0, len(asked), _TOGETHER):
            part = asked[start : start + _TOGETHER]
            for news in await self._about_some(issuer, part):
                if room <= 0:
                    return found, True
                if news is not None:
                    data = dump(news)
                    room -= len(data)
                    found.append(data)
        self.told += len(found)
        return found, False

    async def place(
        self, issuer: str, pid: str, attempt: int = 0, localpid: str = ""
    ) -> ReceivedProcess | None:
        """Return our process for another colony's process id, and for a later attempt another.

        With `attempt` or `localpid`, the store is read unless memory has that one, as another
        daemon may have accepted a later attempt.
        """
        known = self._places.get((issuer, pid))
        if known is None or known.attempt < attempt or localpid not in ("", known.localpid):
            key = self.context.keys.receipt_record(issuer, pid)
            found = await self.context.processes.reads.get(key)
            receipt_record = unpack(found.value, ReceivedProcess) if found is not None else None
            if receipt_record is None or not receipt_record.localpid:
                return None
            known = receipt_record
            self.received(issuer, pid, known)
        return known

    def received(self, issuer: str, pid: str, process: ReceivedProcess) -> None:
        """Remember a process that is in the store: a colony's id of it, and the record."""
        self._places[issuer, pid] = process
        if len(self._places) > _REMEMBERED:
            self._places.popitem(last=False)

    def _held(self, issuer: str) -> set[str]:
        """Return our ids of the processes whose updates are not due; forget those that are due."""
        fresh, now = self._fresh.get(issuer, OrderedDict()), trio.current_time()
        held = {pid for pid, at in fresh.items() if now < at + _GATHERING}
        for pid in [pid for pid in fresh if pid not in held]:
            self._told(issuer, pid)
        return held

    async def _about_some(self, issuer: str, asked: list[tuple[Follow, str]]) -> list[News | None]:
        """Return the updates of some processes, given as what is asked and our id of each."""
        turns = {localpid: self._turns.get(localpid, 0) for _, localpid in asked}
        # Most processes have no line at all, which one transaction tells of all of them.
        wanted = [localpid for follow, localpid in asked if follow.line < progress.NEVER]
        firsts = [GetFirst(node_keys.process_logs(self.context.home, pid)) for pid in wanted]
        result = await self.context.client.commit(Txn([], firsts)) if firsts else None
        responses = result.responses if result is not None else []
        lined = {pid for pid, first in zip(wanted, responses, strict=True) if first}

        async def about(each: tuple[Follow, str]) -> News | None:
            follow, localpid = each
            return await self._about(issuer, follow, localpid, turns[localpid], localpid in lined)

        return await gather(about, asked, _TOGETHER)

    async def _about(
        self, issuer: str, follow: Follow, localpid: str, turn: int, lined: bool
    ) -> News | None:
        """Return the update of one process, which was `lined` in its latest `turn` or later."""
        loaded = await self.context.processes.ended(self.context.home, localpid)
        if loaded is None:
            self._places.pop((issuer, follow.pid), None)
            return None
        news = self._changes(follow, *loaded)
        lines, more = await self._lines(follow, localpid) if lined else ([], False)
        said, heard, further = await self._said(follow, loaded[0])
        if lines or said:
            news = news or _bare(follow, loaded[0])
            more = more or further or news.more
            news = msgspec.structs.replace(news, lines=lines, said=said, heard=heard, more=more)
        if news is None and self._turns.get(localpid, 0) == turn:
            self._quiet[localpid] = follow
            if len(self._quiet) > _REMEMBERED:
                self._quiet.popitem(last=False)
        return news

    def _changes(self, follow: Follow, process: Process, revision: int) -> News | None:
        """Return the update of a process's own fields, or None.

        A process that has not started needs none, and the outcome tells the end.
        """
        state, executor, start, version = self._standing(process, revision)
        if version == follow.version:
            return None
        added, attributes, more = progress.added_after(process, follow.attributes)
        output, out = follow.output, b""
        if not process.closed and process.output:
            out = msgspec.json.encode(process.output)
            output = progress.digest_of(out)
            if output == follow.output or len(out) > progress.MAX_OUTPUT:
                out, output = b"", follow.output
        fresh = added or out or (state == State.RUNNING and not process.closed)
        waits_again = state == State.WAITING and follow.version and not process.closed
        if not fresh and not waits_again:
            return None
        return News(
            follow.pid,
            follow.attempt,
            int(state),
            executor,
            start,
            follow.version if more else version,
            attributes=attributes,
            added=added,
            output=output,
            out=out,
            more=more,
        )

    def _standing(self, process: Process, revision: int) -> tuple[State, str, int, int]:
        """Return state, executor and start of a process wherever it runs, and their version."""
        if not process.peer:
            running = process.state == State.RUNNING
            executor = self._name_of(process.assignedexecutorid) if running else ""
            return process.state, executor, process.starttime if running else 0, revision
        heard = self.update_consumer.of(process.processid)
        if heard is None or process.closed:
            return process.state if process.closed else State.WAITING, "", 0, revision
        followed, version = heard
        # The sum moves with either: what was heard may be known only after the process that changed
        # with it has been told.
        return State(followed.state), followed.executor, followed.start, revision + version

    def _name_of(self, executorid: str) -> str:
        home, members = self.context.home, self.members
        executor = members.directory.executor_of(home, executorid) if members else None
        return executor.executorname if executor else executorid[:12]

    async def _said(
        self, follow: Follow, process: Process
    ) -> tuple[list[Said], dict[str, int], bool]:
        """Return messages for the initiator, new places by channel, and whether there are more."""
        said: list[Said] = []
        heard: dict[str, int] = {}
        size = 0
        for name in process.spec.channels or ():
            start, place = follow.heard.get(name, 0), (process.processid, name)
            passed = self._passed.get(place, (0, 0))
            begin = passed[1] if passed[0] <= start <= passed[1] else start
            found, after, more = await words.read(
                self.context.client,
                self.context.home,
                process.processid,
                name,
                begin,
                process.origin,
            )
            if not found:
                self._passed[place] = (start, after)
                if len(self._passed) > _REMEMBERED:
                    self._passed.popitem(last=False)
                continue
            size += sum(len(each.payload) for each in found)
            if said and (len(said) + len(found) > _SAID or size > _PART):
                return said, heard, True
            said += found
            heard[name] = after
            if more:
                return said, heard, True
        return said, heard, False

    async def _lines(self, follow: Follow, localpid: str) -> tuple[list[Line], bool]:
        prefix = node_keys.process_logs(self.context.home, localpid)
        start = prefix + node_keys.log_place(follow.line + 1)
        try:
            page = await self.context.client.range(prefix, limit=_PAGE, start=start)
        except EtcdTooLarge:
            page = await self.context.client.range(prefix, limit=1, start=start)
        lines, more = progress.lines_of([unpack(item.value, Log) for item in page.items])
        return lines, more or page.more


def _bare(follow: Follow, process: Process) -> News:
    """Return an update without changes, for lines and messages."""
    return News(
        follow.pid,
        follow.attempt,
        int(process.state),
        version=follow.version,
        attributes=follow.attributes,
        output=follow.output,
    )
