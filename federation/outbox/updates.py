"""The update consumer: stores a peer's updates as our own logs, attributes and output, once.

`forward.updates` decides what is new and how much of it is kept; `outbox.outcomes` polls. Each
update is stored in one transaction with the cursor that it moves, and the transaction compares the
cursor. A crash before it changes nothing. An update that comes twice, or to two daemons of this
colony, finds the cursor moved.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec
import trio

from colonyd.errors import Conflict, Invalid, NotFound, RpcError
from federation.forward import channels as words
from federation.forward import updates as progress
from federation.forward.updates import FollowState, PollLimiter
from federation.limits.accounts import PeerQuotas
from federation.outbox.outbox import Outbox
from federation.peers.context import Context
from federation.peers.log_limit import LogLimiter
from federation.transport.connection import PeerConnection
from federation.wire.envelope import Rejected
from federation.wire.messages import MOST_FOLLOWED, Follow, Line, News, Outcomes, Said, load
from node.etcd.errors import EtcdTooLarge
from node.etcd.pressure import Need
from node.etcd.txn import Compare, Delete, Get, ModRevision, Op, Present, Put, Txn
from node.host.log import get_logger
from node.model.codec import pack, unpack
from node.model.types import SECOND, Log, Process
from node.processes.spec import attribute_id
from node.store import keys
from node.store.work import channels as store_channels
from node.store.work import processes as store
from node.store.work.channels import ChannelHead
from node.streams.logs import puts

# Lines stored in one transaction: each takes three of its 128 operations.
_LINES = 38
_BYTES = 400_000  # of lines in one transaction: a request holds three copies
_TRIES = 5
_NEVER = 2**40  # entries, more than any channel has: no further messages are taken
_LINE = 300  # of keys and framing for a line, attribute or message, about
_TURN = 2  # seconds that a poll waits if it cannot ask about all processes

log = get_logger("following")


class _Overtaken(Exception):
    """The cursor was changed by others several times in a row."""


class FollowStates(dict[str, tuple[FollowState, int]]):
    """The states by process id; those of ended processes, by peer as well."""

    def __init__(self) -> None:
        super().__init__()
        self._tails: dict[str, dict[str, None]] = {}

    def __setitem__(self, pid: str, found: tuple[FollowState, int]) -> None:
        self.pop(pid, None)
        super().__setitem__(pid, found)
        if found[0].tail:
            self._tails.setdefault(found[0].peer, {})[pid] = None

    def pop(self, pid: str, *default: Any) -> Any:
        """Remove a state and return it; the default, if one is given, for an unknown id."""
        if (found := self.get(pid)) is not None and found[0].tail:
            self._tails[found[0].peer].pop(pid)
            if not self._tails[found[0].peer]:
                del self._tails[found[0].peer]
        return super().pop(pid, *default)

    def tails(self, peerid: str) -> list[str]:
        """Return the ended processes of a peer that are still followed."""
        return list(self._tails.get(peerid, ()))


@dataclass
class UpdateConsumer:
    """The state of our processes at peers, in the store and in memory.

    `counters` count updates `taken`, `lines`, and channel messages `said`. They also count what was
    dropped: `stray` updates (of processes not at that peer), `malformed` ones, and `unfit` ones
    (the process takes no more, or `peer_quotas` have no room).
    """

    context: Context
    outbox: Outbox
    peer_quotas: PeerQuotas
    known: FollowStates = field(default_factory=FollowStates)
    counters: Counter[str] = field(default_factory=Counter)
    _poll_limiters: dict[str, PollLimiter] = field(default_factory=dict)
    _turns: Counter[str] = field(default_factory=Counter)
    _log_limiter: LogLimiter = field(default_factory=LogLimiter)

    async def load(self) -> None:
        """Read the states from the store."""
        prefix = self.context.keys.followed_all
        items, _ = await self.context.client.range_all(prefix)
        for item in items:
            pid = item.key[len(prefix) :]
            self.known[pid] = (unpack(item.value, FollowState), item.mod_revision)

    def of(self, processid: str) -> tuple[FollowState, int] | None:
        """Return a process's state at its peer, and the revision of that."""
        return self.known.get(processid)

    @property
    def full(self) -> bool:
        """Return whether the store is too full for updates: then polls ask for none."""
        return self.context.client.pressure.refuses(Need.GROWS)

    # -- asking ----------------------------------------------------------------------------

    def tails(self, peerid: str) -> list[str]:
        """Return the ended processes of which the peer still has updates."""
        if self.full:
            return []
        return self.known.tails(peerid)

    def wanted(self, peerid: str, wait: int) -> tuple[list[Follow], bool, int]:
        """Return what to ask a peer about, whether that is all, and the seconds of the poll."""
        if self.full:
            return [], False, wait
        there, tails = self.outbox.entries.followed(peerid), self.tails(peerid)
        count = len(there) + len(tails)
        # Start where the last poll ended, if that could not ask about all processes.
        start = self._turns[peerid] if self._turns[peerid] < count else 0
        follows: list[Follow] = []
        looked = room = 0
        for place in (each % count for each in range(start, start + count)):
            rest = place - len(there)
            pid = there.peekitem(place)[1].forward.processid if rest < 0 else tails[rest]
            if (each := self._begun(pid, peerid)) is not None:
                follow = progress.follow_of(pid, each)
                room += progress.weight_of(follow)
                if len(follows) == MOST_FOLLOWED or (follows and room > progress.MOST_WEIGHT):
                    break
                follows.append(follow)
            looked += 1
        whole = looked == count
        self._turns[peerid] = 0 if whole else (start + looked) % count
        return follows, whole, wait if whole else min(wait, _TURN)

    def _begun(self, pid: str, peerid: str) -> FollowState | None:
        """Return a process's state at a peer; None if the process is not there."""
        known, entry = self.known.get(pid), self.outbox.entries.get(pid)
        if entry is not None and entry.forward.peer == peerid and entry.forward.outstanding:
            return progress.begin(known[0] if known else None, peerid, entry.forward.attempt)
        if known is not None and known[0].tail and known[0].peer == peerid:
            return known[0]
        return None

    async def pace(self, peerid: str) -> None:
        """Wait a moment if the peer sent updates very often of late."""
        wait = self._poll_limiters.setdefault(peerid, PollLimiter()).take(trio.current_time())
        await trio.sleep(wait)

    # -- receiving ---------------------------------------------------------------------------

    async def take(
        self, connection: PeerConnection, answer: Outcomes, asked: Collection[str] | None = None
    ) -> set[str] | None:
        """Store updates. Return the processes that have more; None if any process may have more.

        `asked` are the processes of the poll, None for all. An invalid update is counted, and not
        stored. Raises EtcdError.
        """
        if self.full:
            return None  # a later poll asks again, when there is room
        if answer.news is None:
            return set()
        more: set[str] = set()
        for data in answer.news:
            await trio.lowlevel.checkpoint()  # each update may take milliseconds
            try:
                news = load(data, News)
            except Rejected as rejected:
                self.counters["malformed"] += 1
                if (cut := self._log_limiter.line(trio.current_time())) is not None:
                    log.warning("news not understood", peer=connection.id, error=rejected, **cut)
                continue
            if await self._take_one(connection, news):
                more.add(news.pid)
        if answer.cut:
            return None
        for pid in self.tails(connection.id):
            if pid not in more and (asked is None or pid in asked):
                await self.drop(pid)
        return more

    async def _take_one(self, connection: PeerConnection, news: News) -> bool:
        """Store the update of one process. Return whether the peer has more of it."""
        begun = self._begun(news.pid, connection.id)
        if begun is None or begun.attempt != news.attempt:
            self.counters["stray"] += 1
            return False
        try:
            kept = await self._take_lines(connection, news)
            kept = await self._take_said(connection, news) or kept
            kept = await self._take_changes(connection, news) or kept
        except _Overtaken:
            # The next poll asks again for what was not stored.
            log.info("news overtaken", process=news.pid, peer=connection.id)
            await self._reload(news.pid)
            return True
        except (RpcError, EtcdTooLarge) as error:
            # The process is gone or full: skip what it cannot take.
            self.counters["unfit"] += 1
            if (more := self._log_limiter.line(trio.current_time())) is not None:
                log.info("news left", process=news.pid, peer=connection.id, error=error, **more)
            await self._reload(news.pid)
            return await self._pass_over(connection, news) and news.more
        self.counters["taken"] += kept
        if kept:
            known = await self.context.processes.recall(self.context.home, news.pid)
            if known is not None and known[0].origin:
                self.context.processes.hooks.progressed(known[0])
        return news.more

    async def _take_lines(self, connection: PeerConnection, news: News) -> bool:
        """Store new lines in order, some in each transaction. Return whether any was stored.

        Raises NotFound when the process is gone.
        """
        home, name = self.context.home, self.context.peers.name(connection.id)
        ahead = (connection.seconds - self.context.clock.seconds) * SECOND
        lines, kept, lost = news.lines, False, 0
        while lines:
            part = _part(lines)
            before, revision = self._before(news, connection.id)
            now = self.context.clock.now()
            after, shown = progress.admit(
                before, msgspec.structs.replace(news, lines=part), name, ahead, now
            )
            if after == before:
                lines = lines[len(part) :]
                continue
            if not self.peer_quotas.news(
                connection.id, sum(len(each[2].encode()) + _LINE for each in shown)
            ):
                raise _full(name)
            key = self.context.keys.followed(news.pid)
            ops: list[Op] = [Put(key, pack(after))]
            for at, executor, message in shown:
                ops.extend(puts(Log(news.pid, home, executor, message, at)))
            compare: list[Compare] = [
                ModRevision(key, revision),
                Present(keys.process(home, news.pid)),
            ]
            result = await self.context.client.commit(Txn(compare, ops))
            if not result.succeeded:
                lost += 1
                await self._overtaken(news.pid, lost)
                continue  # the same lines again, without those stored by now
            lines = lines[len(part) :]
            self.known[news.pid] = (after, result.revision)
            self.counters["lines"] += len(shown)
            kept = True
        return kept

    async def _overtaken(self, pid: str, times: int) -> None:
        """Read the cursor again, which another daemon moved.

        Raises _Overtaken after several times in a row, and NotFound when the process is gone.
        """
        await self._reload(pid)
        if await self.context.processes.load(self.context.home, pid) is None:
            raise NotFound("news: the process is gone")
        if times >= _TRIES:
            raise _Overtaken

    async def _take_said(self, connection: PeerConnection, news: News) -> bool:
        """Store channel messages in order, also after the process has ended.

        If a channel cannot take a message, that message and all later ones are dropped.
        """
        kept = False
        for name, after in news.heard.items():
            said = [each for each in news.said if each.name == name]
            for _ in range(_TRIES):
                stored = await self._extend(connection, news, name, said, after)
                if stored is not None:
                    kept = kept or stored
                    break
            else:
                raise _Overtaken
        return kept

    async def _extend(
        self, connection: PeerConnection, news: News, name: str, said: list[Said], after: int
    ) -> bool | None:
        """Try once to store the messages of one channel. Return None if overtaken."""
        home, pid, client = self.context.home, news.pid, self.context.client
        before, revision = self._before(news, connection.id)
        start = before.heard.get(name, 0)
        if after <= start:
            return False
        head = store_channels.head(home, pid, name)
        there, found = (
            await client.commit(Txn([], [Get(keys.process(home, pid)), Get(head)]))
        ).responses
        if not there or name not in (unpack(there[0].value, Process).spec.channels or ()):
            raise Invalid("news: the process has no such channel")
        holds = unpack(found[0].value, ChannelHead) if found else ChannelHead()
        entries = words.entries(said, start, after, connection.id, self.context.clock.now())
        if (
            entries is None
            or not words.fits(holds, entries)
            or not self.peer_quotas.news(
                connection.id, sum(len(each.payload) + _LINE for each in entries)
            )
        ):
            self.counters["unfit"] += 1
            entries, after = [], _NEVER
        more = msgspec.structs.replace(before, heard=before.heard | {name: after})
        key = self.context.keys.followed(pid)
        at = found[0].mod_revision if found else 0
        compare, ops = store_channels.extend(home, pid, name, entries, holds, at)
        txn = Txn([ModRevision(key, revision), *compare], [Put(key, pack(more)), *ops])
        result = await client.commit(txn)
        if not result.succeeded:
            await self._reload(pid)
            return None
        self.known[pid] = (more, result.revision)
        self.counters["said"] += len(entries)
        return True

    async def _take_changes(self, connection: PeerConnection, news: News) -> bool:
        """Store state, attributes and output, with their version."""
        lost = 0
        while True:
            with suppress(Conflict):
                return await self._change(connection, news)
            lost += 1
            await self._overtaken(news.pid, lost)

    async def _change(self, connection: PeerConnection, news: News) -> bool:
        """Try once to store the changes. Raises Conflict if overtaken."""
        before, revision = self._before(news, connection.id)
        changes: dict[str, object] = {}
        if news.version != before.version:
            executor = ""
            if news.executor:
                executor = progress.named(news.executor, self.context.peers.name(connection.id))
            changes |= {"state": news.state, "executor": executor, "start": news.start}
        after = msgspec.structs.replace(
            before,
            version=news.version,
            attributes=max(before.attributes, news.attributes),
            output=news.output,
            **changes,
        )
        if after == before:
            return False
        added = sum(len(each.key) + len(each.value) + _LINE for each in news.added)
        if not self.peer_quotas.news(connection.id, added + len(news.out)):
            raise _full(self.context.peers.name(connection.id))
        key = self.context.keys.followed(news.pid)
        compare = [ModRevision(key, revision)]
        put = Put(key, pack(after))
        tried = 0

        def step(process: Process, at: int) -> store.Transition:
            nonlocal tried
            if process.closed:
                raise Invalid("the process has ended, and stays as it is")
            if at == tried:
                raise Conflict("what is known of it is not what it was")
            tried = at
            changed, extra = _changed(process, news)
            taken = store.update(changed, at, [put, *extra])
            return store.Transition(
                taken.process, Txn([*taken.txn.compare, *compare], taken.txn.success)
            )

        process = await self.context.processes.change(self.context.home, news.pid, step)
        known = await self.context.processes.recall(self.context.home, process.processid)
        self.known[news.pid] = (after, known[1] if known is not None else 0)
        return True

    async def _pass_over(self, connection: PeerConnection, news: News) -> bool:
        """Move the cursor past an update. Return False if the process is gone."""
        lost = 0
        while not await self._skip(connection, news):
            lost += 1
            try:
                await self._overtaken(news.pid, lost)
            except _Overtaken:
                return True
            except RpcError:
                return False
        return True

    async def _skip(self, connection: PeerConnection, news: News) -> bool:
        """Try once to move the cursor. Return False if overtaken."""
        before, revision = self._before(news, connection.id)
        after = msgspec.structs.replace(
            before,
            version=news.version,
            line=max([before.line, *(line.at for line in news.lines)]),
            attributes=max(before.attributes, news.attributes),
            output=news.output,
        )
        key = self.context.keys.followed(news.pid)
        there = Present(keys.process(self.context.home, news.pid))
        txn = Txn([ModRevision(key, revision), there], [Put(key, pack(after))])
        result = await self.context.client.commit(txn)
        if result.succeeded:
            self.known[news.pid] = (after, result.revision)
        return result.succeeded

    def _before(self, news: News, peerid: str) -> tuple[FollowState, int]:
        known = self.known.get(news.pid)
        begun = progress.begin(known[0] if known else None, peerid, news.attempt)
        return begun, known[1] if known else 0

    async def _reload(self, pid: str) -> None:
        """Read the cursor of a process again, which another daemon changed."""
        found = await self.context.client.get(self.context.keys.followed(pid))
        if found is None:
            self.known.pop(pid, None)
        else:
            self.known[pid] = (unpack(found.value, FollowState), found.mod_revision)

    # -- the end ---------------------------------------------------------------------------

    def ending(self, peerid: str, pid: str, attempt: int, *, more: bool) -> list[Op]:
        """Return the operations that join the transaction of an outcome; `more` updates may follow.

        Another daemon may store updates at the same moment. Then a few may come twice, as only the
        outcome itself is guarded here.
        """
        known = self.known.get(pid)
        if not more:
            return [Delete(self.context.keys.followed(pid))] if known else []
        begun = progress.begin(known[0] if known else None, peerid, attempt)
        after = msgspec.structs.replace(begun, tail=True)
        return [Put(self.context.keys.followed(pid), pack(after))]

    async def ended(self, pid: str) -> None:
        """Read the cursor of a process again, after its outcome was stored."""
        await self._reload(pid)

    async def drop(self, pid: str) -> None:
        """Delete the cursor of a process: its peer has no more updates."""
        await self.context.client.delete(self.context.keys.followed(pid))
        self.known.pop(pid, None)


def _full(peer: str) -> RpcError:
    return Invalid(
        f"news: colony {peer} told all that it may in a day (policy.max_kept); see there"
    )


def _part(lines: list[Line]) -> list[Line]:
    """Return the first lines, as many as one transaction takes."""
    part: list[Line] = []
    size = 0
    for line in lines[:_LINES]:
        size += len(line.message.encode())
        if part and size > _BYTES:
            break
        part.append(line)
    return part


def _changed(process: Process, news: News) -> tuple[Process, list[Op]]:
    """Return a process with the changes of an update, and the operations for its attributes."""
    extras = progress.fresh_extras(news, process)
    attributes = list(process.attributes)
    ops: list[Op] = []
    for extra in extras:
        name = attribute_id(process.processid, extra.key, extra.kind)
        attributes.append(progress.as_attribute(extra, process, name))
        ops.append(Put(keys.attribute(process.colonyname, name), process.processid.encode()))
    output = process.output
    if news.out and not process.closed:
        output = progress.output_of(news.out)
    return msgspec.structs.replace(process, attributes=attributes, output=output), ops
