"""Snapshots: etcd's own stream saved to a file, checked against the digest at its end.

Callers decide when and where to; `etcdctl` restores.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from node.etcd.errors import EtcdError
from node.etcd.transport.channel import Stream

_DIGEST = 32  # bytes of SHA-256 behind the database


class _TailHash:
    """SHA-256 of all but the last 32 bytes fed, and those bytes."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._tail = b""

    def feed(self, data: bytes) -> None:
        data = self._tail + data
        cut = max(0, len(data) - _DIGEST)
        self._hash.update(data[:cut])
        self._tail = data[cut:]

    def matches(self) -> bool:
        return self._hash.digest() == self._tail


class _File:
    """The file as it grows; every method may wait for the disk."""

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self._file = os.fdopen(descriptor, "wb")
        self._check = _TailHash()
        self.size = 0

    def add(self, data: bytes) -> None:
        self._file.write(data)
        self._check.feed(data)
        self.size += len(data)

    def finish(self) -> None:
        """Finish the file. Raises EtcdError when its contents are not what was sent."""
        if not self._check.matches():
            raise EtcdError("the snapshot arrived damaged: its digest does not match")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


async def save_snapshot(
    begin: Callable[[], Stream], decode: Callable[[bytes], Any], path: Path
) -> int:
    """Write the stream that `begin` opens to the new file `path` (0600); return its bytes.

    The file appears under its name only when complete and synced. Raises EtcdError.
    """
    if await trio.Path(path).exists():
        raise FileExistsError(path)
    partial = path.with_name(path.name + ".partial")
    stream = begin()
    file = _File(partial)
    try:
        while True:
            try:
                messages = await stream.receive()
            except trio.EndOfChannel:
                break
            await trio.to_thread.run_sync(file.add, b"".join(decode(m).blob for m in messages))
        await trio.to_thread.run_sync(file.finish)
        os.rename(partial, path)
    finally:
        stream.close()
        file.close()
        partial.unlink(missing_ok=True)
    return file.size
