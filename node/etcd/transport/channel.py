"""The channel: a lasting connection to etcd with calls, streams, deadlines, and new connections.

All of it runs on trio's own thread: gRPC's library hands every answer over from another thread,
which alone costs more than the rest of a request. Frames are made and read in `http2`.
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
# Seconds in which a server in doubt has to answer something, or the next one is asked; and seconds
# between two questions that it refuses.
_PROOF, _PROOF_AGAIN = 3.0, 0.2
# The question to a server in doubt: read one key as the whole cluster has it, the least that needs
# all of it.
_QUESTION = ("/etcdserverpb.KV/Range", pb.RangeRequest(key=b"\0", limit=1).SerializeToString())

log = get_logger("etcd")


class _Pending(GrpcCall):
    """The state that the channel keeps of a call of either kind."""

    __slots__ = ("deadline", "first", "path", "single", "wire")

    def __init__(self, path: str, first: bytes, deadline: float, *, single: bool) -> None:
        super().__init__()
        self.path = path
        self.first = first
        self.deadline = deadline
        self.single = single  # one message to the server, and no more
        self.wire: Wire | None = None  # none while the call waits for a connection


class _Unary(_Pending):
    """A call with one request and one answer: wakes the task that made it."""

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
    """A call with many answers; made by `Channel.stream`, to be closed."""

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
        """Send one more message, without waiting; it is lost while there is no connection."""
        if self.wire is not None:
            self.wire.session.send(self, message)
            self.wire.flush()

    async def receive(self) -> list[bytes]:
        """Return the messages that came, at least one.

        Raises EtcdError, or EndOfChannel after a successful end. The server sends on only as far as
        messages are taken.
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
        """End the call, unless it is over."""
        self._channel.drop(self, EtcdUnavailable("the stream was closed"))


class _Login(_Pending):
    """The login call of a connection."""

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

    Of several servers the next one is used when one is not reached or does not answer. A call made
    without a connection waits for the next one, within its deadline. A call that was sent is never
    sent again: the caller decides about that.
    """

    def __init__(self, access: Access) -> None:
        """Use `open_channel`."""
        self._access = access
        self._login = access.login()
        self._turn = 0  # the index of the target in use
        self._wire: Wire | None = None  # the wire for new calls
        self._closed = False
        self._queue: dict[_Pending, None] = {}  # calls made without a connection
        self._timed: dict[_Unary, None] = {}
        self._alarm = trio.CancelScope()
        # For what must outlast the task that began it; None once the channel is closed.
        self.nursery: trio.Nursery | None = None
        self._trouble = "not tried yet"

    # -- for callers ---------------------------------------------------------------------

    async def call(self, path: str, message: bytes, timeout: float) -> bytes:
        """Send one request and return its answer within `timeout` seconds; a cancelled call returns
        at once.

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
        """End a call that isn't over with `error`, whatever its state."""
        if call in self._queue:
            del self._queue[call]
            call.on_end(error)
        elif call.wire is not None:
            call.wire.session.cancel(call, error)
            call.wire.flush()

    @property
    def open_calls(self) -> int:
        """Return how many calls wait for an answer or a connection."""
        return len(self._queue) + (len(self._wire.session.calls) if self._wire else 0)

    def close(self) -> None:
        """Fail all calls, and later ones."""
        self._closed, self.nursery = True, None
        error = EtcdUnavailable("the client was closed during the call")
        for call in list(self._queue):
            self.drop(call, error)
        if self._wire is not None:
            self._wire.session.fail(error)

    def _doubt(self, call: _Pending, error: EtcdError) -> None:
        """Leave a server that lost our token; demand a proof of one that failed while others may
        serve.

        A call may fail for reasons of its own, such as a short timeout: it must not end the others.
        """
        wire = self._wire
        if wire is None or call.wire is not wire or not isinstance(error, EtcdUnavailable):
            return
        if isinstance(error, EtcdUnauthenticated):
            wire.give_up(str(error))
        elif len(self._access.targets) > 1 and "too many" not in str(error):
            wire.doubt(str(error))

    async def _ask_for_proof(self, wire: Wire) -> NoReturn:
        """Give up a server in doubt that no longer answers anything. Raises ConnectionAbortedError.

        Pings prove nothing: a member that is cut off from the others answers them.
        """
        path, question = _QUESTION
        while True:
            await wire.doubted.wait()
            answers, until = wire.answers, trio.current_time() + _PROOF
            # Any other answer of the server meanwhile is as good a proof.
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
        # Without this, a member that is cut off from its cluster would send nothing on a watch.
        call.headers = request_headers(call.path, wire.authority, left, not call.single, wire.token)
        wire.session.open(call, call.first, end=call.single)
        if self._timed:
            wire.flush()
        else:
            wire.flush_now()  # no other message to share a send with

    async def run(self) -> NoReturn:
        """Keep a connection and the deadlines of calls, until cancelled."""
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
        """Serve one connection to its end; `useless` is set when new calls need another one."""
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
        """Get the token of this connection; waiting calls get a refusal as their error.

        Raises OSError.
        """
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
        """End calls whose time is up; one timer for all is much cheaper than one for each."""
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
    """Give a channel to the servers of `access`; does not wait for them, the first call does."""
    channel = Channel(access)
    try:
        async with trio.open_nursery() as nursery:
            channel.nursery = nursery
            nursery.start_soon(channel.run)
            try:
                yield channel
            finally:
                channel.close()
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # The nursery is ours alone: the user of the channel should see the original exception.
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from None
        raise
