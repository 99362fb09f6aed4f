"""An awaitable etcd client: etcd3's messages over our own channel, a deadline on every call.

It knows keys and bytes only; their meaning is in `node.store`, and changes come from `watch`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import trio
from google.protobuf.unknown_fields import UnknownFieldSet

from node.etcd.errors import (
    Compacted,
    EtcdError,
    EtcdNoSpace,
    EtcdTooLarge,
    EtcdUnavailable,
    LeaseLost,
)
from node.etcd.generated import pb
from node.etcd.group import Groups, touch
from node.etcd.guard import GUARD
from node.etcd.parts import MOST, WHOLE, PartsRef, StubCache, divide, joined, parts_of, ref_of
from node.etcd.pressure import Pressure
from node.etcd.snapshot import save_snapshot
from node.etcd.transport.channel import Channel, Stream, open_channel
from node.etcd.transport.dial import Access
from node.etcd.txn import (
    Absent,
    Below,
    Compare,
    Delete,
    DeletePrefix,
    DeleteRange,
    Get,
    GetFirst,
    ModRevision,
    Op,
    Put,
    Txn,
)
from node.etcd.walk import Walk

_READ_AGAIN = 0.05  # seconds after a broken connection; etcd's restart takes longer
_LONGEST = 60.0  # seconds for all parts of a value; parts without a key are swept much later
_PARTS_AT_ONCE = 128  # parts of one answer
_WRITERS = 8  # parts that are written at the same time: etcd syncs them together
_TRIES = 4  # reads of a value that is replaced meanwhile

_KV, _LEASE, _MAINTENANCE = (
    "/etcdserverpb.KV/",
    "/etcdserverpb.Lease/",
    "/etcdserverpb.Maintenance/",
)


class KeyValue(msgspec.Struct, frozen=True, gc=False):
    """One key as it was at the revision of its answer."""

    key: str
    value: bytes
    mod_revision: int
    create_revision: int
    lease: int


class _Replaced(EtcdUnavailable):
    """The parts of a value went while it was read: it was replaced meanwhile."""


class Range(msgspec.Struct, frozen=True):
    """Part of a listing: `more` when the limit cut it, `count` all keys asked for."""

    items: list[KeyValue]
    more: bool
    count: int
    revision: int


class TxnResult(msgspec.Struct, frozen=True):
    """The branch that was taken, its revision, and one list for each `Get` of that branch."""

    succeeded: bool
    revision: int
    responses: list[list[KeyValue]]


class Status(msgspec.Struct, frozen=True):
    """The server's condition; sizes in bytes, `db_in_use` is what a defragmentation would leave.

    `no_space` is whether the alarm NOSPACE is raised at any member.
    """

    version: str
    db_size: int
    db_in_use: int
    revision: int
    leader: int
    member: int
    no_space: bool = False


def prefix_end(prefix: bytes) -> bytes:
    """Return the first key after all those that start with `prefix` (`b"\\0"`: no end)."""
    trimmed = prefix.rstrip(b"\xff")
    return trimmed[:-1] + bytes([trimmed[-1] + 1]) if trimmed else b"\0"


def _key_value(kv: Any) -> KeyValue:
    return KeyValue(kv.key.decode(), kv.value, kv.mod_revision, kv.create_revision, kv.lease)


# Messages are filled in place: one built apart would be copied into the other. Types are compared,
# since isinstance takes a long detour with structs.


def _add_compare(request: Any, compare: Compare) -> None:
    added = request.compare.add()
    added.key = compare.key.encode()
    if type(compare) is ModRevision:
        added.target = pb.Compare.MOD
        added.mod_revision = compare.revision
        return
    if type(compare) is Below:
        added.target, added.result = pb.Compare.VALUE, pb.Compare.LESS
        added.value = compare.value
        return
    added.target = pb.Compare.CREATE
    added.create_revision = 0
    if type(compare) is not Absent:
        added.result = pb.Compare.GREATER


def _add_operation(branch: Any, op: Op) -> None:
    added = branch.add()
    if type(op) is Put:
        put = added.request_put
        put.key, put.value = op.key.encode(), op.value
        if op.lease:
            put.lease = op.lease
    elif type(op) is Delete:
        added.request_delete_range.key = op.key.encode()
    elif type(op) is DeletePrefix:
        added.request_delete_range.CopyFrom(_delete_prefix(op.prefix))
    elif type(op) is DeleteRange:
        gone = added.request_delete_range
        gone.key, gone.range_end = op.start.encode(), op.end.encode()
    elif isinstance(op, Get):
        added.request_range.key = op.key.encode()
        if op.revision:
            added.request_range.revision = op.revision
    elif type(op) is GetFirst:
        asked, key = added.request_range, op.prefix.encode()
        asked.key, asked.range_end, asked.limit, asked.keys_only = key, prefix_end(key), 1, True


def _delete_prefix(prefix: str) -> Any:
    key = prefix.encode()
    return pb.DeleteRangeRequest(key=key or b"\0", range_end=prefix_end(key))


def _writes(op: Op, prefix: str) -> bool:
    """Return whether an operation writes or deletes keys below a prefix."""
    if type(op) is Put or type(op) is Delete:
        return op.key.startswith(prefix)
    return type(op) is DeletePrefix and op.prefix.startswith(prefix)


class EtcdClient:
    """Calls to one etcd; made by `open_client`, shared freely between tasks of one trio run.

    Every method raises `EtcdError`; `EtcdUnavailable` comes within `timeout` seconds of a request.
    A cancelled call returns at once, and like `EtcdUnavailable` leaves a write's outcome unknown.
    """

    def __init__(self, channel: Channel, timeout: float, pressure: Pressure | None = None) -> None:
        """Use `open_client` instead; `timeout` in seconds.

        `pressure` counts what is written; nothing is refused without a quota.
        """
        self.pressure = pressure or Pressure()
        self.known = StubCache()
        # The last revision at which a transaction of this client wrote below these prefixes.
        self.noted: dict[str, int] = {}
        self._channel = channel
        self._timeout = timeout
        self._closed = False
        self._groups = Groups(channel, self.pressure, partial(self._post, _KV + "Txn"))

    def close(self) -> None:
        """End the connection; calls that wait, and later ones, raise `EtcdUnavailable`."""
        self._closed = True
        self._channel.close()

    @property
    def open_calls(self) -> int:
        """Return how many calls, watches included, are under way."""
        return self._channel.open_calls

    async def _call(
        self, path: str, request: Any, answer: Any, timeout: float | None = None
    ) -> Any:
        """Send one request and return its answer, within `timeout` seconds (the client's when
        None).
        """
        seconds = self._timeout if timeout is None else timeout
        data = await self._channel.call(path, request.SerializeToString(), seconds)
        return answer.FromString(data)

    async def _put_in(self, path: str, request: Any, answer: Any, *, adds: bool = True) -> Any:
        """Send a request that may take space, counted if it `adds`; note when no space is left."""
        data = await self._post(path, request.SerializeToString(), self._timeout, adds)
        return answer.FromString(data)

    async def _post(self, path: str, data: bytes, timeout: float, adds: bool) -> bytes:
        if adds:
            self.pressure.wrote(len(data))
        try:
            return await self._channel.call(path, data, timeout)
        except EtcdNoSpace:
            self.pressure.refused()
            raise

    async def _read(self, request: Any) -> Any:
        """Read a range; repeat it on a broken connection, since reading twice does no harm."""
        deadline = trio.current_time() + self._timeout
        while True:
            remaining = deadline - trio.current_time()
            try:
                return await self._call(
                    _KV + "Range", request, pb.RangeResponse, timeout=max(0.0, remaining)
                )
            except EtcdUnavailable:
                if self._closed or deadline - trio.current_time() < _READ_AGAIN:
                    raise
            await trio.sleep(_READ_AGAIN)

    async def get(self, key: str) -> KeyValue | None:
        """Return the key's present value, or None."""
        for left in reversed(range(_TRIES)):
            answer = await self._read(pb.RangeRequest(key=key.encode()))
            try:
                found = await self._whole([_key_value(kv) for kv in answer.kvs])
                return found[0] if found else None
            except _Replaced:
                if not left:
                    raise
        raise AssertionError

    async def _whole(self, items: list[KeyValue], revision: int = 0) -> list[KeyValue]:
        """Return the items with the values of their stubs, as of `revision` (0: now).

        Raises `EtcdTooLarge` when they are too much for one answer, and `_Replaced`.
        """
        stubs = {at: ref for at, item in enumerate(items) if (ref := ref_of(item.value))}
        if not stubs:
            return items
        if (size := sum(ref.size for ref in stubs.values())) > MOST:
            raise EtcdTooLarge(f"an answer of {size} bytes")
        whole = list(items)
        for at, ref in stubs.items():
            item = items[at]
            value = await self._join(ref, revision)
            if value is None:
                raise _Replaced(f"the value of {item.key} changed while it was read")
            whole[at] = msgspec.structs.replace(item, value=value)
            if not revision:
                self.known.see(item.key, ref)
        return whole

    async def _join(self, ref: PartsRef, revision: int) -> bytes | None:
        parts: list[bytes] = []
        low, end = ref.prefix.encode(), prefix_end(ref.prefix.encode())
        while True:
            request = pb.RangeRequest(
                key=low, range_end=end, limit=_PARTS_AT_ONCE, revision=revision
            )
            answer = await self._read(request)
            parts += [kv.value for kv in answer.kvs]
            if not answer.more:
                return joined(ref, parts)
            low = answer.kvs[-1].key + b"\0"

    async def _write_parts(self, apart: Sequence[tuple[PartsRef, Put]]) -> None:
        """Write the parts of values, before the stubs. Raises `EtcdUnavailable` when it takes
        long.
        """
        if not apart:
            return
        began = trio.current_time()
        parts = (part for ref, put in apart for part in parts_of(ref, put))
        failed: list[EtcdError] = []

        async def write() -> None:
            try:
                for part in parts:
                    request = pb.PutRequest(key=part.key.encode(), value=part.value)
                    await self._put_in(_KV + "Put", request, pb.PutResponse)
            except EtcdError as error:
                failed.append(error)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for _ in range(_WRITERS):
                nursery.start_soon(write)
        if failed:
            raise failed[0]
        if trio.current_time() - began > _LONGEST:
            raise EtcdUnavailable(f"to write large values took more than {_LONGEST:.0f} s")

    async def range(
        self,
        prefix: str,
        *,
        limit: int = 0,
        start: str | None = None,
        end: str | None = None,
        keys_only: bool = False,
        descending: bool = False,
        revision: int = 0,
        raw: bool = False,
    ) -> Range:
        """Return keys with `prefix`, in order, at most `limit` (0: all), as of `revision` (0: now).

        `start` is the first key returned, inclusive: the lowest, or the highest when `descending`.
        `end` is the first key after the range, in ascending order only. With `raw`, large values
        stay the stubs that the store has. The cost grows with the keys in the range whatever
        `limit` is: etcd counts all of them, and for a descending order also reads and sorts all.
        """
        low, high = prefix.encode() or b"\0", prefix_end(prefix.encode())
        if start is not None:
            if not start.startswith(prefix):
                raise ValueError(f"start {start!r} is outside of prefix {prefix!r}")
            key = start.encode()
            low, high = (low, key + b"\0") if descending else (key or b"\0", high)
        if end is not None:
            high = end.encode()
        order = pb.RangeRequest.DESCEND if descending else pb.RangeRequest.NONE
        request = pb.RangeRequest(
            key=low,
            range_end=high,
            limit=limit,
            keys_only=keys_only,
            revision=revision,
            sort_order=order,
        )
        answer = await self._read(request)
        items = [_key_value(kv) for kv in answer.kvs]
        if not raw:
            try:
                items = await self._whole(items, revision)
            except _Replaced:
                # One by one: keys that are written all the time would keep the others from being
                # read.
                found = [await self.get(item.key) if ref_of(item.value) else item for item in items]
                items = [item for item in found if item is not None]
        return Range(items, answer.more, answer.count, answer.header.revision)

    async def range_all(self, prefix: str, page: int = 500) -> tuple[list[KeyValue], int]:
        """Return every key that starts with `prefix`, as of one revision, and that revision."""
        items: list[KeyValue] = []
        walk = Walk(prefix)
        revision = 0
        while not walk.done:
            try:
                part = await self.range(
                    prefix, limit=page, start=walk.start, end=walk.end, revision=revision
                )
            except EtcdTooLarge:
                if page <= 1:
                    raise
                page = max(1, page // 4)
                continue
            items += part.items
            revision = revision or part.revision
            walk.took([kv.key for kv in part.items], part.count, more=part.more)
        return items, revision

    async def first(self, prefix: str, before: str) -> str | None:
        """Return the lowest key with `prefix` that is lower than `before`, or None."""
        request = pb.RangeRequest(key=prefix.encode(), range_end=before.encode(), limit=1)
        answer = await self._read(request)
        return answer.kvs[0].key.decode() if answer.kvs else None

    async def count(self, prefix: str) -> int:
        """Return how many keys start with `prefix`."""
        key = prefix.encode()
        request = pb.RangeRequest(key=key or b"\0", range_end=prefix_end(key), count_only=True)
        return int((await self._read(request)).count)

    async def put(self, key: str, value: bytes, lease: int = 0) -> int:
        """Write unconditionally; return the revision of the write."""
        if len(value) > WHOLE or self.known.has(key):
            return (await self._commit(Txn([], [Put(key, value, lease)]))).revision
        request = pb.PutRequest(key=key.encode(), value=value, lease=lease)
        return int((await self._put_in(_KV + "Put", request, pb.PutResponse)).header.revision)

    async def delete(self, key: str) -> int:
        """Remove one key; return how many were removed, 0 or 1."""
        gone = self.known.left([Delete(key)])
        deleted = await self._delete(pb.DeleteRangeRequest(key=key.encode()))
        await self._drop(gone)
        return deleted

    async def delete_prefix(self, prefix: str) -> int:
        """Remove all keys that start with `prefix`; return how many."""
        gone = self.known.left([DeletePrefix(prefix)])
        deleted = await self._delete(_delete_prefix(prefix))
        await self._drop(gone)
        return deleted

    async def undivided(self, wanted: Sequence[str]) -> list[KeyValue]:
        """Return the present values of several keys, in their order, without those that lie in
        parts and those that do not exist.
        """
        request = pb.TxnRequest()
        for key in wanted:
            _add_operation(request.success, Get(key))
        answer = await self._call(_KV + "Txn", request, pb.TxnResponse)
        found: list[KeyValue] = []
        for response in answer.responses:
            for kv in map(_key_value, response.response_range.kvs):
                ref = ref_of(kv.value)
                self.known.see(kv.key, ref)
                if ref is None:
                    found.append(kv)
        return found

    async def _delete(self, request: Any) -> int:
        answer = await self._call(_KV + "DeleteRange", request, pb.DeleteRangeResponse)
        return int(answer.deleted)

    async def commit(self, txn: Txn) -> TxnResult:
        """Run a transaction: it happens wholly or not at all, even if this call fails."""
        guard = GUARD.get()
        return await (self._commit(txn) if guard is None else guard.commit(self._commit, txn))

    async def _commit(self, txn: Txn) -> TxnResult:
        request = pb.TxnRequest()
        success, apart = divide(txn.success)
        await self._write_parts(apart)
        gone = self.known.left(success)
        for compare in txn.compare:
            _add_compare(request, compare)
        for op in (*success, *gone):
            _add_operation(request.success, op)
        for op in txn.failure:
            _add_operation(request.failure, op)
        data = request.SerializeToString()
        touched = None if apart or gone else touch(txn, len(data))
        if touched is not None and not self.pressure.alarm:
            answer = await self._groups.commit(data, touched, self._timeout)
        else:
            # Moving much out of a store must not look like filling it.
            adds = any(type(op) is Put for op in (*txn.success, *txn.failure))
            data = await self._post(_KV + "Txn", data, self._timeout, adds)
            answer = pb.TxnResponse.FromString(data)
        done = txn.success if answer.succeeded else txn.failure
        if answer.succeeded:
            self.known.wrote(success)
            if self.noted:
                self._note(success, answer.header.revision)
        elif apart:
            await self._drop([DeletePrefix(ref.prefix) for ref, _ in apart])
        return TxnResult(answer.succeeded, answer.header.revision, await self._got(done, answer))

    def _note(self, ops: Sequence[Op], revision: int) -> None:
        for prefix, known in self.noted.items():
            if known < revision and any(_writes(op, prefix) for op in ops):
                self.noted[prefix] = revision

    async def _got(self, done: Sequence[Op], answer: Any) -> list[list[KeyValue]]:
        """Return the results of a transaction's reads. Raises `EtcdTooLarge` as a listing does."""
        gets = [op for op in done if type(op) is Get or type(op) is GetFirst]
        if not gets:
            return []
        reads = [r.response_range for r in answer.responses if r.HasField("response_range")]
        found = [[_key_value(kv) for kv in read.kvs] for read in reads]
        if not any(ref_of(kv.value) for kvs in found for kv in kvs):
            return found
        at = answer.header.revision
        whole = []
        size = 0
        for get, kvs in zip(gets, found, strict=True):
            if type(get) is not Get:  # it reads no value
                whole.append(kvs)
                continue
            try:
                kvs = await self._whole(kvs, get.revision or at)
            except Compacted:
                if get.revision:
                    raise
                # The revision that was just read is compacted already: read the present value.
                now = await self.get(get.key)
                kvs = [] if now is None else [now]
            size += sum(len(kv.value) for kv in kvs)
            if size > MOST:
                raise EtcdTooLarge(f"an answer of more than {MOST} bytes")
            whole.append(kvs)
        return whole

    async def _drop(self, gone: Sequence[Op]) -> None:
        """Remove parts that no key names; parts that can't be removed now are swept later."""
        with suppress(EtcdError):
            for op in gone:
                if type(op) is DeletePrefix:
                    await self._delete(_delete_prefix(op.prefix))

    async def expand(self, key: str, value: bytes) -> bytes:
        """Return the whole value of a key whose stub was found by other means.

        Raises `EtcdUnavailable` when the value was replaced meanwhile.
        """
        if ref_of(value) is None:
            return value
        (found,) = await self._whole([KeyValue(key, value, 0, 0, 0)])
        return found.value

    async def grant(self, ttl: int) -> int:
        """Return the id of a new lease of `ttl` seconds (etcd may make it longer)."""
        request = pb.LeaseGrantRequest(TTL=ttl)
        return int((await self._put_in(_LEASE + "LeaseGrant", request, pb.LeaseGrantResponse)).ID)

    async def keep_alive(self, lease: int) -> None:
        """Renew the lease, a third of its life apart, until cancelled; raises `LeaseLost`.

        Silence of etcd is not the loss of the lease, so it is outlasted: a holder that acts
        compares a key attached to the lease in the same transaction.
        """
        request = pb.LeaseKeepAliveRequest(ID=lease)
        while True:
            try:
                # A stream of one request and one answer is, on the wire, a plain call.
                answer = await self._call(
                    _LEASE + "LeaseKeepAlive", request, pb.LeaseKeepAliveResponse
                )
            except EtcdError as error:
                if not error.retryable:
                    raise
                await trio.sleep(0.2)
                continue
            if answer.TTL <= 0:
                raise LeaseLost(f"lease {lease:x} is gone")
            await trio.sleep(answer.TTL / 3)

    async def revoke(self, lease: int) -> None:
        """End a lease now, and with it every key attached.

        Raises `LeaseLost` when it is gone already.
        """
        request = pb.LeaseRevokeRequest(ID=lease)
        await self._call(_LEASE + "LeaseRevoke", request, pb.LeaseRevokeResponse)

    async def status(self) -> Status:
        """Return the server's version, sizes and revision."""
        # Status has raft's index, not the store's revision: an empty read has that.
        read = await self._read(pb.RangeRequest(key=b"\0", count_only=True))
        answer = await self._call(_MAINTENANCE + "Status", pb.StatusRequest(), pb.StatusResponse)
        # The stubs are older than `errors` (field 8, alarms among them) and `dbSizeInUse` (9).
        # Asking for the alarms themselves would be a write to the log of every member.
        in_use, no_space = int(answer.dbSize), False
        fields: Any = UnknownFieldSet(answer)
        for field in fields:
            if field.field_number == 9:
                in_use = int(field.data)
            elif field.field_number == 8:
                no_space = no_space or b"NOSPACE" in field.data
        return Status(
            version=answer.version,
            db_size=answer.dbSize,
            db_in_use=in_use,
            revision=read.header.revision,
            leader=answer.leader,
            member=answer.header.member_id,
            no_space=no_space,
        )

    async def applied(self) -> int:
        """Return the index of the last log entry that the server has applied."""
        answer = await self._call(_MAINTENANCE + "Status", pb.StatusRequest(), pb.StatusResponse)
        fields: Any = UnknownFieldSet(answer)  # `raftAppliedIndex` is younger than the stubs
        return next((int(f.data) for f in fields if f.field_number == 7), int(answer.raftIndex))

    async def compact(self, revision: int, *, physical: bool = False) -> None:
        """Forget overwritten values from before `revision`.

        etcd removes them from its file afterwards, unless it answers only when that is done
        (`physical`). Raises `Compacted` when that is done already.
        """
        request = pb.CompactionRequest(revision=revision, physical=physical)
        await self._call(_KV + "Compact", request, pb.CompactionResponse, timeout=60)

    async def defragment(self) -> None:
        """Give free space back to the file system; etcd answers nothing else meanwhile."""
        request = pb.DefragmentRequest()
        await self._call(_MAINTENANCE + "Defragment", request, pb.DefragmentResponse, timeout=300)

    async def alarms(self) -> list[str]:
        """Return the names of the raised alarms, such as NOSPACE."""
        return [_alarm_name(alarm.alarm) for alarm in await self._alarms()]

    async def _alarms(self) -> Any:
        request = pb.AlarmRequest(action=pb.AlarmRequest.GET)
        return (await self._call(_MAINTENANCE + "Alarm", request, pb.AlarmResponse)).alarms

    async def disarm(self) -> None:
        """Clear all alarms; etcd raises NOSPACE again if space was not freed first."""
        for alarm in await self._alarms():
            off = pb.AlarmRequest(
                action=pb.AlarmRequest.DEACTIVATE, memberID=alarm.memberID, alarm=alarm.alarm
            )
            await self._call(_MAINTENANCE + "Alarm", off, pb.AlarmResponse)

    async def snapshot(self, path: Path) -> int:
        """Save a consistent copy of the store at `path`, which must not exist; return its size in
        bytes.
        """
        request = pb.SnapshotRequest().SerializeToString()

        def begin() -> Stream:
            return self._channel.stream(_MAINTENANCE + "Snapshot", request, single=True)

        return await save_snapshot(begin, pb.SnapshotResponse.FromString, path)

    def open_watch(self, request: Any) -> Stream:
        """Open a stream of watch messages that begins with `request`; `watch` reads them."""
        return self._channel.stream("/etcdserverpb.Watch/Watch", request.SerializeToString())


def _alarm_name(number: int) -> str:
    # The stubs are older than the CORRUPT alarm.
    return {0: "NONE", 1: "NOSPACE", 2: "CORRUPT"}.get(number, f"ALARM{number}")


@asynccontextmanager
async def open_client(
    target: str | Access, *, timeout: float = 5.0, pressure: Pressure | None = None
) -> AsyncIterator[EtcdClient]:
    """Give a client of the server at `target` ("unix:/path" or "host:port"); `timeout` seconds a
    call.

    Does not wait for the server: the first call does.
    """
    access = Access((target,)) if isinstance(target, str) else target
    async with open_channel(access) as channel:
        client = EtcdClient(channel, timeout, pressure)
        try:
            yield client
        finally:
            client.close()
