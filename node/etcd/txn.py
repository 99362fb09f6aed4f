"""Transactions as plain values: what to compare, and what to do in either case.

Nothing here talks to etcd: `client.EtcdClient.commit` sends them.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec


class Put(msgspec.Struct, frozen=True):
    """Write `value` at `key`, attached to `lease` unless that is 0."""

    key: str
    value: bytes
    lease: int = 0


class Delete(msgspec.Struct, frozen=True):
    """Remove `key`; no error when it does not exist."""

    key: str


class DeletePrefix(msgspec.Struct, frozen=True):
    """Remove every key that starts with `prefix`."""

    prefix: str


class DeleteRange(msgspec.Struct, frozen=True):
    """Remove every key from `start` to before `end`."""

    start: str
    end: str


class Get(msgspec.Struct, frozen=True):
    """Read `key` as of `revision` (0: now); the result is an empty list when it does not exist."""

    key: str
    revision: int = 0


class GetFirst(msgspec.Struct, frozen=True):
    """Read the first key that starts with `prefix`, without its value; the result is a list
    of it.
    """

    prefix: str


Op = Put | Delete | DeletePrefix | DeleteRange | Get | GetFirst


class ModRevision(msgspec.Struct, frozen=True):
    """Holds when the last write of `key` was at `revision`; 0 means the key does not exist."""

    key: str
    revision: int


class Absent(msgspec.Struct, frozen=True):
    """Holds when `key` does not exist."""

    key: str


class Present(msgspec.Struct, frozen=True):
    """Holds when `key` exists, whatever its value."""

    key: str


class Below(msgspec.Struct, frozen=True):
    """Holds when `key` exists and its value sorts before `value`, byte by byte."""

    key: str
    value: bytes


Compare = ModRevision | Absent | Present | Below


class Txn(msgspec.Struct, frozen=True):
    """If all of `compare` hold do `success`, else `failure`: all or nothing, at one revision.

    etcd takes at most 128 of each, and refuses to write the same key twice in one branch.
    """

    compare: Sequence[Compare]
    success: Sequence[Op]
    failure: Sequence[Op] = ()
