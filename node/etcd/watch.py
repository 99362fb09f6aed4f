"""Watches of a prefix of the store: a full listing first, then every change, until cancelled.

Any break of the stream (compaction, a restart, silence) ends in a new full listing. Readers
interpret the events.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any, NoReturn

import msgspec
import trio

from node.etcd.client import EtcdClient, prefix_end
from node.etcd.errors import Compacted, EtcdError, EtcdUnavailable
from node.etcd.generated import pb
from node.etcd.pages import below
from node.etcd.parts import ref_of
from node.host.log import get_logger

log = get_logger("watch")

_FIRST_BACKOFF, _MAX_BACKOFF = 0.1, 2.0  # seconds between a broken stream and the next listing
_STABLE = 10.0  # seconds of a stream after which its end counts as the first again
_PAGE = 200  # keys of one batch of a listing in pages: some ms of work for a reader


class Event(msgspec.Struct, frozen=True, gc=False):
    """A key's new value, or None when it was deleted, by the write at `mod_revision`."""

    key: str
    value: bytes | None
    mod_revision: int


class WatchBatch(msgspec.Struct, frozen=True):
    """Changes in order; the state is now as of `revision`.

    With `snapshot`, the events are all there is: a reader forgets all other keys. A snapshot may
    come in several batches: all but the last have `more`, all but the first lack `first`. `total`
    is about how many keys they have together, if that is known. `ended` is a prefix of which no
    keys follow.
    """

    snapshot: bool
    events: list[Event]
    revision: int
    first: bool = True
    more: bool = False
    total: int = 0
    ended: str = ""


class _Stream:
    """One watch on etcd; with a slow reader, the stream fills up there."""

    def __init__(self, client: EtcdClient, prefix: str, start_revision: int) -> None:
        key = prefix.encode()
        create = pb.WatchCreateRequest(
            key=key or b"\0", range_end=prefix_end(key), start_revision=start_revision
        )
        self._stream = client.open_watch(pb.WatchRequest(create_request=create))

    def ask_for_progress(self) -> None:
        """Make the server send something, if it is there."""
        request = pb.WatchRequest(progress_request=pb.WatchProgressRequest())
        self._stream.send(request.SerializeToString())

    async def receive(self) -> list[Any]:
        """Return the answers that came, at least one. Raises `EtcdError` when the stream has
        ended.
        """
        try:
            return [pb.WatchResponse.FromString(each) for each in await self._stream.receive()]
        except trio.EndOfChannel:
            raise EtcdUnavailable("the watch ended") from None

    def close(self) -> None:
        """End the stream."""
        self._stream.close()


@contextmanager
def _open_stream(client: EtcdClient, prefix: str, start_revision: int) -> Iterator[_Stream]:
    stream = _Stream(client, prefix, start_revision)
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
    client: EtcdClient,
    stream: _Stream,
    channel: trio.MemorySendChannel[WatchBatch],
    heartbeat: float,
) -> NoReturn:
    """Pass batches on until the stream fails; raises `EtcdError`."""
    asked = False
    late: WatchBatch | None = None
    while True:
        if late is not None:
            await channel.send(await _whole(client, late))
            late = None
        with trio.move_on_after(heartbeat / 2) as silence:
            while late is None:
                batch = _batch(await stream.receive())
                asked = False
                if batch is not None:
                    try:
                        if _is_large(batch):
                            raise trio.WouldBlock
                        channel.send_nowait(batch)
                    except trio.WouldBlock:
                        late = batch  # outside of the scope, which could lose it
                # A scope for each of many batches would cost more than they do.
                silence.deadline = trio.current_time() + heartbeat / 2
        if late is None:
            if asked:
                raise EtcdUnavailable(f"the watch was silent for {heartbeat} s")
            stream.ask_for_progress()
            asked = True


def _is_large(batch: WatchBatch) -> bool:
    return any(event.value is not None and ref_of(event.value) for event in batch.events)


async def _whole(client: EtcdClient, batch: WatchBatch) -> WatchBatch:
    """Return the batch with its large values.

    Raises `EtcdError` for a value that was replaced meanwhile.
    """
    if not _is_large(batch):
        return batch
    events = []
    for each in batch.events:
        if each.value is not None:
            value = await client.expand(each.key, each.value)
            each = msgspec.structs.replace(each, value=value)
        events.append(each)
    return msgspec.structs.replace(batch, events=events)


def _batch(answers: list[Any]) -> WatchBatch | None:
    """Return the events of answers, None when there are none. Raises `EtcdError` at a watch's
    end.
    """
    events: list[Event] = []
    revision = 0
    for answer in answers:
        if answer.canceled:
            if answer.compact_revision:
                raise Compacted(f"watched from before revision {answer.compact_revision}")
            reason = answer.cancel_reason or "no reason"
            raise EtcdUnavailable(f"etcd ended the watch: {reason}")
        if answer.events:
            events += _events(answer)
            revision = answer.header.revision
    return WatchBatch(False, events, revision) if events else None


async def _listed(
    client: EtcdClient, prefix: str, pages: Sequence[str], listing: bool
) -> AsyncGenerator[WatchBatch, None]:
    """Return the present keys: as one batch, or as several of the prefixes `pages`, in order.

    All are as of one revision. Without `listing`, one batch without keys. Raises EtcdError.
    """
    if not listing:
        nothing = await client.range(prefix, limit=1, end=prefix + "\0", keys_only=True)
        yield WatchBatch(True, [], nothing.revision)
        return
    if not pages:
        items, revision = await client.range_all(prefix)
        events = [Event(item.key, item.value, item.mod_revision) for item in items]
        del items  # the same values twice would double the peak of memory
        yield WatchBatch(True, events, revision)
        return
    # A count of all keys takes etcd some ms, once.
    begun = await client.range(prefix, limit=1, keys_only=True)
    first, revision, total = True, begun.revision, begun.count
    for each in pages:
        async with aclosing(below(client, each, revision=revision)) as found:
            async for items in found:
                for at in range(0, len(items), _PAGE):
                    events = [
                        Event(item.key, item.value, item.mod_revision)
                        for item in items[at : at + _PAGE]
                    ]
                    yield WatchBatch(True, events, revision, first, True, total)
                    first = False
        yield WatchBatch(True, [], revision, first, True, total, each)
        first = False
    yield WatchBatch(True, [], revision, first, False, total)


async def watch(
    client: EtcdClient,
    prefix: str,
    channel: trio.MemorySendChannel[WatchBatch],
    *,
    pages: Sequence[str] = (),
    listing: bool = True,
    heartbeat: float = 5.0,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Send the reader of `channel` all keys that start with `prefix` and their changes, until
    cancelled.

    Sends a snapshot, then changes, and a snapshot again after any break. With `pages`, prefixes
    that are all of the keys, a snapshot comes in batches, in their order. Without `listing`, a
    snapshot has only its revision: the reader asks for keys by itself. A server that sends
    nothing for `heartbeat` seconds, though asked, counts as a break. Calls `task_status.started()`
    after the first snapshot is sent. A slow reader slows the stream and loses nothing. Never gives
    up on an absent etcd; raises `trio.BrokenResourceError` when the reader is gone.
    """
    started = False
    backoff = _FIRST_BACKOFF
    listed = -_STABLE
    while True:
        try:
            revision = 0
            async with aclosing(_listed(client, prefix, pages, listing)) as batches:
                async for batch in batches:
                    await channel.send(batch)
                    revision = batch.revision
                    del batch
            listed = trio.current_time()
            if not started:
                started = True
                task_status.started()
            with _open_stream(client, prefix, revision + 1) as stream:
                await _follow(client, stream, channel, heartbeat)
        except EtcdError as error:
            if trio.current_time() - listed > _STABLE:
                backoff = _FIRST_BACKOFF
            log.warning("watch lists again", prefix=prefix, seconds=backoff, because=error)
        await trio.sleep(backoff)
        backoff = min(_MAX_BACKOFF, backoff * 2)
