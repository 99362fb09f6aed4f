"""An etcd in memory, without I/O: revisions, compares, ranges, transactions, watches.

Waiting, crashing and being unavailable is added by `client`; nothing here knows of colonies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec
from sortedcontainers import SortedList

from node.etcd.client import KeyValue, Range, TxnResult
from node.etcd.errors import Compacted, EtcdError, EtcdTooLarge, EtcdTooManyOps
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

__all__ = ["MAX_BYTES", "MAX_OPS", "Change", "MemoryStore"]

MAX_OPS = 128  # of a branch, and comparisons
MAX_BYTES = 1_572_864  # of a request
_HISTORY = 20_000  # changes kept for reads of the past
_LAST = "\U0010ffff"


class Change(msgspec.Struct, frozen=True, gc=False):
    """One key before and after a transaction; None where it does not exist."""

    key: str
    before: KeyValue | None
    after: KeyValue | None


Observer = Callable[[int, list[Change]], None]


class MemoryStore:
    """`observers` hear of every transaction that changed something, before its caller does."""

    def __init__(self) -> None:
        self.revision = 1
        self.observers: list[Observer] = []
        self.commits = 0
        self._data: dict[str, KeyValue] = {}
        self._order: SortedList[str] = SortedList()
        self._log: list[tuple[int, Change]] = []
        self._compacted = 0

    # -- reading -------------------------------------------------------------------------

    def get(self, key: str) -> KeyValue | None:
        """The present value of a key."""
        return self._data.get(key)

    def items(self, prefix: str) -> Iterable[KeyValue]:
        """The present keys with a prefix, in order."""
        return [self._data[key] for key in self._keys(prefix, prefix + _LAST)]

    def _keys(self, start: str, end: str) -> list[str]:
        return list(self._order.irange(start, end, inclusive=(True, False)))

    def range(
        self,
        prefix: str,
        *,
        limit: int = 0,
        start: str | None = None,
        end: str | None = None,
        keys_only: bool = False,
        descending: bool = False,
        revision: int = 0,
    ) -> Range:
        """As `EtcdClient.range`. Raises Compacted for a past that is not kept."""
        low, high = prefix, prefix + _LAST
        if start is not None:
            if not start.startswith(prefix):
                raise ValueError(f"start {start!r} is outside of prefix {prefix!r}")
            low, high = (low, start + "\0") if descending else (start, high)
        high = high if end is None else end
        if revision > self.revision:
            raise EtcdError("etcdserver: mvcc: required revision is a future revision")
        data = self._data
        if 0 < revision < self.revision:
            data = self._past(revision)
            keys = sorted(key for key in data if low <= key < high)
        else:
            keys = self._keys(low, high)
        if descending:
            keys.reverse()
        part = keys[:limit] if limit else keys
        found = [data[key] for key in part]
        if keys_only:
            found = [msgspec.structs.replace(item, value=b"") for item in found]
        return Range(found, len(part) < len(keys), len(keys), self.revision)

    def _past(self, revision: int) -> dict[str, KeyValue]:
        if revision < self._compacted:
            raise Compacted("etcdserver: mvcc: required revision has been compacted")
        data = dict(self._data)
        for at, change in reversed(self._log):
            if at <= revision:
                break
            if change.before is None:
                data.pop(change.key, None)
            else:
                data[change.key] = change.before
        return data

    def compact(self, revision: int) -> None:
        """Forget the past before `revision`."""
        self._compacted = revision
        self._log = [entry for entry in self._log if entry[0] > revision]

    # -- writing -------------------------------------------------------------------------

    def commit(self, txn: Txn) -> TxnResult:
        """As `EtcdClient.commit`: wholly or not at all."""
        _check_size(txn)
        for branch in (txn.success, txn.failure):
            _check_duplicates(branch)
        succeeded = all(self._holds(compare) for compare in txn.compare)
        branch = txn.success if succeeded else txn.failure
        changes: dict[str, Change] = {}
        responses: list[list[KeyValue]] = []
        following = self.revision + 1
        for op in branch:
            match op:
                case Put():
                    self._put(op, following, changes)
                case Delete():
                    self._delete([op.key], changes)
                case DeletePrefix():
                    self._delete(self._keys(op.prefix, op.prefix + _LAST), changes)
                case DeleteRange():
                    self._delete(self._keys(op.start, op.end), changes)
                case Get():
                    found = self._data.get(op.key)
                    responses.append([found] if found is not None else [])
                case GetFirst():
                    first = self._keys(op.prefix, op.prefix + _LAST)[:1]
                    responses.append(
                        [msgspec.structs.replace(self._data[key], value=b"") for key in first]
                    )
        if changes:
            self.revision = following
            self.commits += 1
            self._log.extend((following, change) for change in changes.values())
            if len(self._log) > 2 * _HISTORY:
                self.compact(self._log[_HISTORY][0])
            for observer in self.observers:
                observer(following, list(changes.values()))
        return TxnResult(succeeded, self.revision, responses)

    def _holds(self, compare: Compare) -> bool:
        found = self._data.get(compare.key)
        if isinstance(compare, ModRevision):
            return (found.mod_revision if found else 0) == compare.revision
        if isinstance(compare, Below):
            return found is not None and found.value < compare.value
        return (found is None) == isinstance(compare, Absent)

    def _put(self, op: Put, revision: int, changes: dict[str, Change]) -> None:
        before = self._data.get(op.key)
        created = before.create_revision if before else revision
        after = KeyValue(op.key, op.value, revision, created, op.lease)
        if before is None:
            self._order.add(op.key)
        self._data[op.key] = after
        self._note(op.key, before, after, changes)

    def _delete(self, keys: Sequence[str], changes: dict[str, Change]) -> None:
        for key in keys:
            before = self._data.pop(key, None)
            if before is not None:
                self._order.remove(key)
                self._note(key, before, None, changes)

    @staticmethod
    def _note(
        key: str, before: KeyValue | None, after: KeyValue | None, changes: dict[str, Change]
    ) -> None:
        first = changes.get(key)
        changes[key] = Change(key, first.before if first else before, after)


def _check_size(txn: Txn) -> None:
    if max(len(txn.compare), len(txn.success), len(txn.failure)) > MAX_OPS:
        raise EtcdTooManyOps("etcdserver: too many operations in txn request")
    size = sum(
        len(op.key) + len(op.value) + 16
        for branch in (txn.success, txn.failure)
        for op in branch
        if isinstance(op, Put)
    )
    if size > MAX_BYTES:
        raise EtcdTooLarge("etcdserver: request is too large")


def _check_duplicates(branch: Sequence[Op]) -> None:
    puts: set[str] = set()
    for op in branch:
        if isinstance(op, Put):
            if op.key in puts:
                raise EtcdError("etcdserver: duplicate key given in txn request")
            puts.add(op.key)
    for op in branch:
        match op:
            case Delete():
                hit = op.key in puts
            case DeletePrefix():
                hit = any(key.startswith(op.prefix) for key in puts)
            case DeleteRange():
                hit = any(op.start <= key < op.end for key in puts)
            case _:
                hit = False
        if hit:
            raise EtcdError("etcdserver: duplicate key given in txn request")
