"""Group commit: transactions that come while others are under way go together in the next request.

All of a request is one entry of etcd's log and one sync of its disk. Which ones may go together is
decided by `touch` and `plan`, values in, values out; `Groups` does the waiting.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import msgspec
import trio
from google.protobuf.message import DecodeError

from node.etcd.errors import EtcdError, EtcdNoSpace, EtcdTooLarge, EtcdUnavailable
from node.etcd.generated import pb
from node.etcd.pressure import Pressure
from node.etcd.transport.channel import Channel
from node.etcd.txn import Delete, Get, Put, Txn
from node.host.log import get_logger

__all__ = ["ALONE", "MOST", "ROOM", "Groups", "Seat", "Touch", "nest", "plan", "touch"]

# etcd's --max-txn-ops, 128 where nobody set it: it counts the transactions of a request and the
# operations, or compares, of the largest one of them.
MOST = 128
# Bytes of one request. etcd takes far more, but keeps its last entries in memory whatever they
# hold: ours 5,000 to 7,000, a cluster of somebody else's by default 105,000.
ROOM, ROOM_ELSEWHERE = 8 * 1024, 4 * 1024
# Bytes of a transaction from which on it goes alone: there is little to gain, and others wait.
ALONE = 4 * 1024
# Keys read or compared by one request: values that lie whole have 256 KiB at most.
_MOST_READ = 100
# Runs of all tasks before a turn: in the first, those that were answered are woken.
_RUNS = 2
# How many of those that wait go in one turn.
_LOOKED_AT = 256

log = get_logger("etcd")


class Touch(msgspec.Struct, frozen=True):
    """What a transaction reads or compares, what it writes, in either case; its size in bytes.

    `ops` are the compares, or the operations of a branch, whichever are most; `adds` is whether it
    puts something into the store.
    """

    reads: set[str]
    writes: set[str]
    ops: int
    size: int
    adds: bool


def touch(txn: Txn, size: int) -> Touch | None:
    """What a transaction of `size` bytes touches; None when it must go alone.

    That are those that only read (they need no entry of the log); that have to do with ranges, past
    revisions or leases (one that is gone would have all refused); and large ones.
    """
    ops = max(len(txn.compare), len(txn.success), len(txn.failure))
    if size > ALONE or ops > MOST - 2:
        return None
    reads, writes, adds = {compare.key for compare in txn.compare}, set(), False
    for op in (*txn.success, *txn.failure):
        if type(op) is Put and not op.lease:
            writes.add(op.key)
            adds = True
        elif type(op) is Delete:
            writes.add(op.key)
        elif type(op) is Get and not op.revision:
            reads.add(op.key)
        else:
            return None
    return Touch(reads, writes, ops, size, adds) if writes else None


def plan(line: Iterable[Touch], most: int = MOST, room: int = ROOM) -> list[list[int]]:
    """Return the requests of a turn: for each, the places of its transactions in the line.

    etcd evaluates all compares of a request before it applies anything, lets reads see what was
    written before them, and does not notice all of this. So no key that one transaction of a
    request writes is touched by another one of it: a transaction that meets one of the last request
    begins the next request. So does one that puts something in after some that do not, or the other
    way round: a full store refuses the one kind and must take the other. etcd has the requests of a
    turn in any order. A request has at most `most` operations and `room` bytes.
    """
    groups: list[list[int]] = []
    read: set[str] = set()
    written: set[str] = set()
    adds, largest, size, gets = False, 0, 0, 0
    for place, each in enumerate(islice(line, _LOOKED_AT)):
        largest, size = max(largest, each.ops), size + each.size
        gets += len(each.reads)
        if (
            not groups
            or len(groups[-1]) + 1 + largest > most
            or size > room
            or gets > _MOST_READ
            or adds != each.adds
            or not written.isdisjoint(each.writes)
            or not written.isdisjoint(each.reads)
            or not read.isdisjoint(each.writes)
        ):
            groups.append([])
            read, written = set(), set()
            adds, largest, size, gets = each.adds, each.ops, each.size, len(each.reads)
        groups[-1].append(place)
        read |= each.reads
        written |= each.writes
    return groups


def nest(requests: Sequence[bytes], *, adds: bool = False) -> bytes:
    """Return the request that holds these requests of transactions.

    It is made by hand: they are encoded already, and filling messages in would do all of it again.

    etcd does not look for puts into nested transactions when it judges whether its quota has room.
    So a request that `adds` has a put of its own, in the branch for a compare that does not hold,
    without any compare.
    """
    out: list[bytes] = [_NEVER] if adds else []
    for request in requests:
        # RequestOp.request_txn, in TxnRequest.success.
        inner = b"\x22" + _varint(len(request))
        out += (b"\x12", _varint(len(inner) + len(request)), inner, request)
    return b"".join(out)


# TxnRequest.failure: a RequestOp.request_put of a key of one byte.
_NEVER = b"\x1a\x05\x12\x03\x0a\x01-"


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _decode(data: bytes, count: int | None = None) -> Any:
    """The answer to a transaction, with `count` responses. Raises EtcdError."""
    try:
        answer = pb.TxnResponse.FromString(data)
    except DecodeError as error:
        raise EtcdError(f"the answer is malformed: {error}") from None
    if count is not None and len(answer.responses) != count:
        raise EtcdError(f"the answer has {len(answer.responses)} responses for {count}")
    return answer


class Seat:
    """A transaction that waits: in line for its request, then for the answer to that.

    `task` is None once it has an answer or an error, or nobody waits for one any more.
    """

    __slots__ = ("answer", "deadline", "error", "request", "task", "touch")

    def __init__(self, request: bytes, touch: Touch, deadline: float) -> None:
        self.request = request
        self.touch = touch
        self.deadline = deadline
        self.answer: Any = None
        self.error: EtcdError | None = None
        self.task: trio.lowlevel.Task | None = trio.lowlevel.current_task()

    def end(self, answer: Any, error: EtcdError | None = None) -> None:
        """Wake who waits, if it still does."""
        task, self.task = self.task, None
        if task is not None:
            self.answer, self.error = answer, error
            trio.lowlevel.reschedule(task)


# Sends an encoded transaction within seconds; whether it adds to the store.
Send = Callable[[bytes, float, bool], Awaitable[bytes]]


class Groups:
    """The transactions of one client: they take turns, and all that waits goes in the next one.

    A transaction that finds none under way is sent at once, as it is. A turn is one request, or as
    many as it takes.
    """

    def __init__(self, channel: Channel, pressure: Pressure, send: Send) -> None:
        self._channel = channel
        self._pressure = pressure
        self._send = send
        self._busy = False
        self._line: dict[Seat, None] = {}
        self._most, self._room = MOST, ROOM

    async def commit(self, request: bytes, touch: Touch, timeout: float) -> Any:
        """The answer to an encoded transaction, within `timeout` seconds. Raises EtcdError.

        Cancelled while it waits in line it does not happen; once it is sent nobody knows.
        """
        if not self._busy:
            self._busy = True
            try:
                data = await self._send(request, timeout, touch.adds)
            finally:
                self._go_on()
            return _decode(data)
        await trio.lowlevel.checkpoint_if_cancelled()
        seat = Seat(request, touch, trio.current_time() + timeout)
        self._line[seat] = None
        late = "etcd did not answer in time (DEADLINE_EXCEEDED)"

        def leave(_: object) -> trio.lowlevel.Abort:
            nonlocal late
            seat.task = None
            if seat in self._line:
                del self._line[seat]
                late = "not sent: etcd did not answer what was sent before (DEADLINE_EXCEEDED)"
            return trio.lowlevel.Abort.SUCCEEDED

        with trio.move_on_at(seat.deadline) as patience:
            await trio.lowlevel.wait_task_rescheduled(leave)
        if patience.cancelled_caught:
            raise EtcdUnavailable(late)
        if seat.error is not None:
            raise seat.error
        return seat.answer

    def _go_on(self) -> None:
        """A request is over: those that wait are served by a task, which nobody's leaving ends."""
        if not self._line:
            self._busy = False
        elif self._channel.nursery is None:
            self._fail(self._line)
        else:
            self._channel.nursery.start_soon(self._serve)

    def _fail(self, seats: Iterable[Seat]) -> None:
        for seat in list(seats):
            self._line.pop(seat, None)
            seat.end(None, EtcdUnavailable("the client was closed during the call"))
        self._busy = False

    async def _serve(self) -> None:
        """Send what waits, all that can go at the same time, until nothing waits."""
        sent: list[Seat] = []
        try:
            while True:
                # Those that were just answered run first: what they ask for next goes along.
                for _ in range(_RUNS):
                    await trio.lowlevel.checkpoint()
                if not self._line:
                    break
                line = list(islice(self._line, _LOOKED_AT))
                # A full etcd refuses what adds to it, and does not look for that into groups.
                most = 1 if self._pressure.alarm else self._most
                room = min(self._room, ROOM if self._pressure.own else ROOM_ELSEWHERE)
                places = plan((seat.touch for seat in line), most, room)
                sent = [line[place] for group in places for place in group]
                for seat in sent:
                    del self._line[seat]
                if len(places) == 1:
                    await self._send_group(sent)
                    continue
                # etcd syncs them together.
                async with trio.open_nursery() as nursery:
                    for group in places:
                        nursery.start_soon(self._send_group, [line[place] for place in group])
            self._busy = False
        except BaseException:
            # The client was closed: who is not below it must not wait for ever.
            self._fail([*sent, *self._line])
            raise

    async def _send_alone(self, seat: Seat) -> bool:
        """Whether etcd took the transaction."""
        left = max(0.0, seat.deadline - trio.current_time())
        try:
            answer = _decode(await self._send(seat.request, left, seat.touch.adds))
        except EtcdError as error:
            seat.end(None, error)
            return False
        seat.end(answer)
        return True

    async def _send_group(self, group: list[Seat]) -> None:
        if len(group) == 1:
            await self._send_alone(group[0])
            return
        left = max(seat.deadline for seat in group) - trio.current_time()
        adds = any(seat.touch.adds for seat in group)
        request = nest([seat.request for seat in group], adds=adds)
        try:
            answer = _decode(await self._send(request, max(0.0, left), adds), len(group))
        except EtcdError as error:
            # The request that fills the store is told so, and happens all the same.
            if error.refused and not isinstance(error, EtcdNoSpace):
                await self._send_one_by_one(group, error, len(request))
                return
            # Each has one of its own: raised in several tasks, tracebacks would mix.
            for seat in group:
                seat.end(None, type(error)(*error.args))
            return
        for seat, response in zip(group, answer.responses, strict=True):
            inner = response.response_txn
            inner.header.revision = answer.header.revision  # that of its own is 0
            seat.end(inner)

    async def _send_one_by_one(self, group: list[Seat], error: EtcdError, size: int) -> None:
        """Find out whom etcd refuses; when it takes each one, requests get smaller for good.

        A cluster elsewhere may have smaller limits than etcd comes with, and does not tell them.
        """
        taken: list[Seat] = []

        async def send(seat: Seat) -> None:
            if await self._send_alone(seat):
                taken.append(seat)

        async with trio.open_nursery() as nursery:
            for seat in group:
                if seat.task is not None:  # else it left: nothing of it has happened
                    nursery.start_soon(send, seat)
        if len(taken) < len(group):
            return
        before = self._most, self._room
        if isinstance(error, EtcdTooLarge):
            self._room = min(self._room, size // 2)
        else:
            largest = max(seat.touch.ops for seat in group)
            self._most = min(self._most, (len(group) + largest) // 2)
        if (self._most, self._room) != before:
            log.warning("groups get smaller", most=self._most, room=self._room, because=error)
