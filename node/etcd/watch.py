"""Following a prefix of the store: a full listing first, then every change, as long as it takes.

Whatever breaks the stream (compaction, a restart, silence) ends in a new full listing; what readers
make of the events is theirs.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import grpc
import msgspec
import trio
from etcd3.etcdrpc import rpc_pb2 as pb  # type: ignore[import-untyped]
from etcd3.etcdrpc import rpc_pb2_grpc as stubs

from node.etcd.client import EtcdClient, prefix_end
from node.etcd.errors import Compacted, EtcdError, EtcdUnavailable, error_from
from node.log import get_logger

log = get_logger("watch")

_FIRST_BACKOFF, _MAX_BACKOFF = 0.1, 2.0  # seconds between a broken stream and the next listing
_STABLE = 10.0  # seconds of a stream after which its end counts as the first again
_IN_FLIGHT = 64  # messages read ahead of a slow reader before the stream is left to fill up


class Event(msgspec.Struct, frozen=True, gc=False):
    """A key's new value, or None when it was deleted, by the write at `mod_revision`."""

    key: str
    value: bytes | None
    mod_revision: int


class Batch(msgspec.Struct, frozen=True):
    """Changes in order; the state is now as of `revision`.

    With `snapshot` the events are everything there is: a reader forgets all keys not among them.
    """

    snapshot: bool
    events: list[Event]
    revision: int


class _Stream:
    """One gRPC watch: two threads that do nothing but wait, and a queue into trio."""

    def __init__(self, client: EtcdClient, prefix: str, start_revision: int) -> None:
        key = prefix.encode()
        create = pb.WatchCreateRequest(
            key=key or b"\0", range_end=prefix_end(key), start_revision=start_revision
        )
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._requests.put(pb.WatchRequest(create_request=create))
        self._room = threading.Semaphore(_IN_FLIGHT)
        self._token = trio.lowlevel.current_trio_token()
        self._sender, self._receiver = trio.open_memory_channel[Any](_IN_FLIGHT + 1)
        # Cut off from the other members, a member of a cluster would stay silent without this.
        self._call = stubs.WatchStub(client.channel).Watch(
            self._outgoing(), wait_for_ready=True, metadata=(("hasleader", "true"),)
        )

    def _outgoing(self) -> Iterator[Any]:
        while (request := self._requests.get()) is not None:
            yield request

    def read(self) -> None:
        """Pass answers to the trio side until the stream ends; runs on a thread of its own."""
        ending: EtcdError = EtcdUnavailable("the watch ended")
        try:
            self._room.acquire()
            for answer in self._call:
                self._token.run_sync_soon(self._sender.send_nowait, answer)
                self._room.acquire()
        except grpc.RpcError as error:
            ending = error_from(error.code().name, error.details() or "")
        except trio.RunFinishedError:
            return
        try:
            self._token.run_sync_soon(self._deliver_ending, ending)
        except trio.RunFinishedError:
            return

    def _deliver_ending(self, ending: EtcdError) -> None:
        self._sender.send_nowait(ending)

    def ask_for_progress(self) -> None:
        """Make the server say something, if it is there."""
        self._requests.put(pb.WatchRequest(progress_request=pb.WatchProgressRequest()))

    async def receive(self) -> Any:
        """The next answer; raises `EtcdError` when the stream has ended."""
        answer = await self._receiver.receive()
        self._room.release()
        if isinstance(answer, EtcdError):
            raise answer
        return answer

    def close(self) -> None:
        """End the stream and both threads."""
        self._call.cancel()
        self._requests.put(None)
        self._room.release()


@contextmanager
def _open_stream(client: EtcdClient, prefix: str, start_revision: int) -> Iterator[_Stream]:
    stream = _Stream(client, prefix, start_revision)
    # A plain thread: trio's are counted, and one that waits for ever would use up the allowance.
    thread = threading.Thread(target=stream.read, name=f"watch {prefix}", daemon=True)
    thread.start()
    try:
        yield stream
    finally:
        stream.close()


def _events(answer: Any) -> list[Event]:
    deleted = 1  # pb.Event.DELETE
    return [
        Event(
            event.kv.key.decode(),
            None if event.type == deleted else event.kv.value,
            event.kv.mod_revision,
        )
        for event in answer.events
    ]


async def _follow(
    stream: _Stream, channel: trio.MemorySendChannel[Batch], heartbeat: float
) -> NoReturn:
    """Pass batches on until the stream fails; raises `EtcdError`."""
    asked = False
    while True:
        answer = None
        with trio.move_on_after(heartbeat / 2):
            answer = await stream.receive()
        if answer is None:
            if asked:
                raise EtcdUnavailable(f"the watch was silent for {heartbeat} s")
            stream.ask_for_progress()
            asked = True
            continue
        asked = False
        if answer.canceled:
            if answer.compact_revision:
                raise Compacted(f"watched from before revision {answer.compact_revision}")
            raise EtcdUnavailable(f"etcd ended the watch: {answer.cancel_reason or 'no reason'}")
        if answer.events:
            await channel.send(Batch(False, _events(answer), answer.header.revision))


async def watch(
    client: EtcdClient,
    prefix: str,
    channel: trio.MemorySendChannel[Batch],
    *,
    heartbeat: float = 5.0,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Keep the reader of `channel` informed of all keys that start with `prefix`, until cancelled.

    Sends a snapshot, then changes, and a snapshot again after any break; a server that says nothing
    for `heartbeat` seconds, though asked, counts as one. Calls `task_status.started()` after the
    first snapshot is sent. A slow reader slows the stream, it loses nothing. Never gives up on an
    absent etcd; raises `trio.BrokenResourceError` when the reader is gone.
    """
    started = False
    backoff = _FIRST_BACKOFF
    listed = -_STABLE
    while True:
        try:
            items, revision = await client.range_all(prefix)
            events = [Event(item.key, item.value, item.mod_revision) for item in items]
            del items  # the same values twice would double the peak of memory
            await channel.send(Batch(True, events, revision))
            del events
            listed = trio.current_time()
            if not started:
                started = True
                task_status.started()
            with _open_stream(client, prefix, revision + 1) as stream:
                await _follow(stream, channel, heartbeat)
        except EtcdError as error:
            if trio.current_time() - listed > _STABLE:
                backoff = _FIRST_BACKOFF
            log.warning("watch lists again", prefix=prefix, seconds=backoff, because=error)
        await trio.sleep(backoff)
        backoff = min(_MAX_BACKOFF, backoff * 2)
