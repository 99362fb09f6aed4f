"""Saving etcd's own snapshot stream to a file, checked against the digest it ends with.

When snapshots are taken and where they go is decided elsewhere; restoring is `etcdctl`'s work.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import grpc
import trio

from node.etcd.errors import EtcdError, error_from

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


def _copy(stream: Any, path: Path) -> int:
    check, size = _TailHash(), 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        try:
            for part in stream:
                file.write(part.blob)
                check.feed(part.blob)
                size += len(part.blob)
        except grpc.RpcError as error:
            raise error_from(error.code().name, error.details() or "") from None
        if not check.matches():
            raise EtcdError("the snapshot arrived damaged: its digest does not match")
        file.flush()
        os.fsync(file.fileno())
    return size


async def download_snapshot(method: Any, request: Any, path: Path) -> int:
    """Write the stream of `method(request)` to the new file `path` (0600); gives its bytes.

    The file appears under its name only when complete and synced.
    """
    if await trio.Path(path).exists():
        raise FileExistsError(path)
    partial = path.with_name(path.name + ".partial")
    stream = method(request, wait_for_ready=True)
    try:
        # When cancelled the thread is left behind; ending the stream, below, ends it too.
        size = await trio.to_thread.run_sync(_copy, stream, partial, abandon_on_cancel=True)
        os.rename(partial, path)
    finally:
        stream.cancel()
        partial.unlink(missing_ok=True)
    return size
