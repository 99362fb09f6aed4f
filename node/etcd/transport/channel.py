"""A connection to etcd that lasts: calls of one answer and streams, deadlines, new connections.

All of it runs on trio's own thread: gRPC's library hands every answer over from another one, and
that alone cost more than all the rest of a request. Frames are made and read in `http2`.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import NoReturn

import trio

from node.etcd.errors import (
    EtcdDenied,
    EtcdError,
    EtcdTooLarge,
    EtcdUnauthenticated,
    EtcdUnavailable,
)
from node.etcd.generated import pb
from node.etcd.transport.connection import Wire
from node.etcd.transport.dial import AUTHENTICATE, Access, connect, read_token
from node.etcd.transport.frames import ProtocolFault, request_headers
from node.etcd.transport.http2 import MAX_MESSAGE, GrpcCall
from node.host.log import get_logger

_FIRST_BACKOFF, _MAX_BACKOFF = 0.05, 1.0  # seconds between two attempts to connect
_CONNECT_TIMEOUT = 5.0  # seconds until the server has said that it speaks HTTP/2
_LEAVE = 5.0  # seconds that calls get to finish on a connection that takes no new ones
# Seconds in which a server in doubt has to answer something, or the next one is asked; between two
# questions that it refuses.
_PROOF, _PROOF_AGAIN = 3.0, 0.2
# What it is asked: to read one key as the whole cluster has it, the least that needs all of it.
_QUESTION = ("/etcdserverpb.KV/Range", pb.RangeRequest(key=b"\0", limit=1).SerializeToString())

log = get_logger("etcd")


class _Pending(GrpcCall):
    """What the channel keeps of either kind of call."""

    __slots__ = ("deadline", "first", "path", "single", "wire")

    def __init__(self, path: str, first: bytes, deadline: float, *, single: bool) -> None:
        super().__init__()
        self.path = path
        self.first = first
        self.deadline = deadline
        self.single = single  # one message to the server, and no more
        self.wire: Wire | None = None  # none while the call waits for a connection


class _Unary(_Pending):
    """A call of one question and one answer: wakes the task that asked."""

    __slots__ = ("answer", "error", "task")

    def __init__(self, path: str, first: bytes, deadline: float) -> None:
        super().__init__(path, first, deadline, single=True)
        self.answer: bytes | None = None
        self.error: EtcdError | None = None
        self.task: trio.lowlevel.Task | None = trio.lowlevel.current_task()

    def on_message(self, message: bytes) -> None:
        self.answer = message

    def on_end(self, error: EtcdError | None) -> None:
        task, self.task = self.task, None
        if task is not None:  # else it was cancelled
            self.error = error
            trio.lowlevel.reschedule(task)


class Stream(_Pending):
    """A call of many answers; made by `Channel.stream`, to be closed."""

    __slots__ = ("_arrived", "_channel", "_messages", "_over")

    def __init__(self, channel: Channel, path: str, first: bytes, *, single: bool) -> None:
        super().__init__(path, first, math.inf, single=single)
        self._channel = channel
        self._messages: list[bytes] = []
        self._arrived = trio.Event()
        self._over: EtcdError | trio.EndOfChannel | None = None

    def on_message(self, message: bytes) -> None:
        self.held += len(message) + 5
        self._messages.append(message)
        self._arrived.set()

    def on_end(self, error: EtcdError | None) -> None:
        self._over = error or trio.EndOfChannel()
        self._arrived.set()

    def send(self, message: bytes) -> None:
        """One more message to the server, without waiting; lost while there is no connection."""
        if self.wire is not None:
            self.wire.session.send(self, message)
            self.wire.flush()

    async def receive(self) -> list[bytes]:
        """The messages that came, one at least; raises EtcdError, or EndOfChannel when all is well.

        The server sends on only as far as messages are taken.
        """
        while not self._messages:
            if self._over is not None:
                raise self._over
            self._arrived = trio.Event()
            await self._arrived.wait()
        messages, self._messages = self._messages, []
        if self.wire is not None:
            self.wire.session.taken(self, self.held)
            if self.wire.session.urgent:
                self.wire.flush()
        return messages

    def close(self) -> None:
        """End the call, if it isn't over."""
        self._channel.drop(self, EtcdUnavailable("the stream was closed"))


class _Login(_Pending):
    """A call that a connection makes for itself."""

    __slots__ = ("answer", "error", "over")

    def __init__(self, message: bytes) -> None:
        super().__init__(AUTHENTICATE, message, math.inf, single=True)
        self.answer = b""
        self.error: EtcdError | None = None
        self.over = False

    def on_message(self, message: bytes) -> None:
        self.answer = message

    def on_end(self, error: EtcdError | None) -> None:
        self.error, self.over = error, True


class Channel:
    """Calls to one server over one connection, made again whenever it breaks.

    Of several servers the next one is asked when one is not reached or does not answer. A call
    made while there is none waits for the next, within its deadline. A call that was sent is never
    sent again: that is for the caller to decide.
    """

    def __init__(self, access: Access) -> None:
        """Use `open_channel`."""
        self._access = access
        self._login = access.login()
        self._turn = 0  # which of the targets is asked
        self._wire: Wire | None = None  # where new calls go
        self._closed = False
        self._queue: dict[_Pending, None] = {}  # calls made while there is none
        self._timed: dict[_Unary, None] = {}
        self._alarm = trio.CancelScope()
        self._trouble = "not tried yet"

    # -- for callers ---------------------------------------------------------------------

    async def call(self, path: str, message: bytes, timeout: float) -> bytes:
        """One question, one answer within `timeout` seconds; a cancelled call returns at once.

        Raises EtcdError.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        call = _Unary(path, message, trio.current_time() + timeout)

        def abort(_: object) -> trio.lowlevel.Abort:
            call.task = None
            self.drop(call, EtcdUnavailable("cancelled"))
            return trio.lowlevel.Abort.SUCCEEDED

        self._start(call)
        self._timed[call] = None
        if call.deadline < self._alarm.deadline:
            self._alarm.deadline = call.deadline
        try:
            await trio.lowlevel.wait_task_rescheduled(abort)
        finally:
            del self._timed[call]
        if call.error is not None:
            self._doubt(call, call.error)
            raise call.error
        if call.wire is not None:
            call.wire.answers += 1
        if call.answer is None:
            raise EtcdError("the answer is empty")
        return call.answer

    def stream(self, path: str, message: bytes, *, single: bool = False) -> Stream:
        """Open a call of many answers with a first message, without waiting for anything.

        `single`: no other message will be sent. Raises EtcdUnavailable when the channel is closed.
        """
        stream = Stream(self, path, message, single=single)
        self._start(stream)
        return stream

    def drop(self, call: _Pending, error: EtcdError) -> None:
        """End a call that isn't over with `error`, wherever it stands."""
        if call in self._queue:
            del self._queue[call]
            call.on_end(error)
        elif call.wire is not None:
            call.wire.session.cancel(call, error)
            call.wire.flush()

    @property
    def open_calls(self) -> int:
        """How many calls wait for an answer or a connection."""
        return len(self._queue) + (len(self._wire.session.calls) if self._wire else 0)

    def close(self) -> None:
        """Fail all calls, and those to come."""
        self._closed = True
        error = EtcdUnavailable("the client was closed during the call")
        for call in list(self._queue):
            self.drop(call, error)
        if self._wire is not None:
            self._wire.session.fail(error)

    def _doubt(self, call: _Pending, error: EtcdError) -> None:
        """Leave a server that lost our token; ask one for proof that failed while others may serve.

        A call may fail for reasons of its own, such as little patience: it must not end the others.
        """
        wire = self._wire
        if wire is None or call.wire is not wire or not isinstance(error, EtcdUnavailable):
            return
        if isinstance(error, EtcdUnauthenticated):
            wire.give_up(str(error))
        elif len(self._access.targets) > 1 and "too many" not in str(error):
            wire.doubt(str(error))

    async def _ask_for_proof(self, wire: Wire) -> NoReturn:
        """Give up a server in doubt that answers nothing any more. Raises ConnectionAbortedError.

        Pings prove nothing: a member that is cut off from the others answers them.
        """
        path, question = _QUESTION
        while True:
            await wire.doubted.wait()
            answers, until = wire.answers, trio.current_time() + _PROOF
            # What it has answered by itself meanwhile is as good.
            while wire.answers == answers and wire is self._wire and not wire.session.leaving:
                if (left := until - trio.current_time()) <= 0:
                    raise ConnectionAbortedError(f"the server answers nothing: {wire.doubted_for}")
                try:
                    await self.call(path, question, left)
                except EtcdUnavailable:
                    await trio.sleep(min(_PROOF_AGAIN, left))
                except EtcdError:
                    break  # a refusal is an answer
            wire.trust()

    # -- calls and the connection --------------------------------------------------------

    def _start(self, call: _Pending) -> None:
        if self._closed:
            raise EtcdUnavailable("the client is closed")
        if len(call.first) > MAX_MESSAGE:
            raise EtcdTooLarge(f"a request of {len(call.first)} bytes")
        wire = self._wire
        if wire is None or wire.session.leaving:
            self._queue[call] = None
            return
        left = 0  # no limit, in ms
        if call.deadline < math.inf:
            # Rounded up: the server must not give up before we do. Few values: they are kept.
            left = max(10, math.ceil((call.deadline - trio.current_time()) * 100) * 10)
        self._open(call, wire, left)

    def _open(self, call: _Pending, wire: Wire, left: int = 0) -> None:
        call.wire = wire
        # Cut off from the others, a member of a cluster would say nothing on a watch without this.
        call.headers = request_headers(call.path, wire.authority, left, not call.single, wire.token)
        wire.session.open(call, call.first, end=call.single)
        if self._timed:
            wire.flush()
        else:
            wire.flush_now()  # nobody to share a send with

    async def run(self) -> NoReturn:
        """Keep a connection and the deadlines, until cancelled."""
        backoff = _FIRST_BACKOFF
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_deadlines)
            while True:
                began, useless = trio.current_time(), trio.Event()
                nursery.start_soon(self._serve, useless)
                await useless.wait()
                if trio.current_time() - began > _MAX_BACKOFF:
                    backoff = _FIRST_BACKOFF
                await trio.sleep(backoff)
                backoff = min(_MAX_BACKOFF, backoff * 1.5)

    async def _serve(self, useless: trio.Event) -> None:
        """One connection to its end; `useless` is set when new calls need another one."""
        targets = self._access.targets
        target = targets[self._turn % len(targets)]
        self._turn += 1
        try:
            with trio.fail_after(_CONNECT_TIMEOUT):
                connected = await connect(target, self._access.tls)
        except (OSError, trio.TooSlowError) as error:
            self._trouble = str(error) or "no answer"
            useless.set()
            return
        wire = Wire(connected, target)
        try:
            async with trio.open_nursery() as nursery:

                async def part(work: Callable[[], Awaitable[None]]) -> None:
                    try:
                        await work()
                    except (OSError, ProtocolFault, trio.TooSlowError) as error:
                        wire.lost = str(error) or "no answer"
                    except Exception as error:
                        # Such as a MemoryError: a new connection begins with nothing.
                        log.exception("connection failed")
                        wire.lost = f"{type(error).__name__}: {error}"
                    nursery.cancel_scope.cancel()

                nursery.start_soon(part, wire.write)
                nursery.start_soon(part, wire.listen)
                nursery.start_soon(part, wire.given_up)
                nursery.start_soon(part, partial(self._ask_for_proof, wire))
                await part(partial(self._exchange, wire, useless))
        finally:
            wire.close()
            if self._wire is wire:
                self._wire = None
            self._trouble = wire.lost
            wire.session.fail(EtcdUnavailable(f"the connection to etcd was lost: {wire.lost}"))
            useless.set()

    async def _exchange(self, wire: Wire, useless: trio.Event) -> None:
        wire.flush()
        with trio.fail_after(_CONNECT_TIMEOUT):
            while not wire.session.ready:
                await wire.read()
            if self._login:
                await self._log_in(wire)
        self._wire = wire
        queue, self._queue = self._queue, {}
        for call in queue:
            self._start(call)
        while not wire.session.leaving:
            await wire.read()
        useless.set()
        with trio.move_on_after(_LEAVE):
            while wire.session.calls:
                await wire.read()

    async def _log_in(self, wire: Wire) -> None:
        """Get the token of this connection; who waits is told of a refusal. Raises OSError."""
        call = _Login(self._login)
        self._open(call, wire)
        while not call.over:
            await wire.read()
        if call.error is None:
            wire.token = read_token(call.answer)
        elif "authentication is not enabled" not in str(call.error):
            if isinstance(call.error, EtcdDenied):
                for waiting in list(self._queue):
                    self.drop(waiting, call.error)
            raise ConnectionRefusedError(str(call.error))

    async def _watch_deadlines(self) -> NoReturn:
        """End the calls whose time is up; one timer for all is much cheaper than one for each."""
        while True:
            with trio.CancelScope() as self._alarm:
                self._alarm.deadline = min(
                    (call.deadline for call in self._timed), default=math.inf
                )
                await trio.sleep_forever()
            now = trio.current_time()
            for call in [call for call in self._timed if call.deadline <= now]:
                if call in self._queue:
                    text = f"etcd is not reached: {self._trouble} (DEADLINE_EXCEEDED)"
                else:
                    text = "etcd did not answer in time (DEADLINE_EXCEEDED)"
                self.drop(call, EtcdUnavailable(text))


@asynccontextmanager
async def open_channel(access: Access) -> AsyncIterator[Channel]:
    """A channel to the servers of `access`; does not wait for them, the first call does."""
    channel = Channel(access)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(channel.run)
            try:
                yield channel
            finally:
                channel.close()
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # The nursery is ours alone: who uses the channel should see his own exception.
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from None
        raise
