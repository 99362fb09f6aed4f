"""The blob store: bytes of files in a directory, each under its SHA-256, complete or not there.

A part goes to a file of its uploader; only whole, hashed and synced bytes get their final name. The
caller decides which bytes are still needed, and who may read or write them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from colonyd.errors import Conflict, Invalid, RpcError, Unavailable
from colonyd.fsync import sync_directory
from node.files.tickets import CHECKSUM, Scope

_HASHED = 1 << 20
# An upload's hash, its size, and its uploader; names of older releases lack the last.
_PARTIAL = re.compile(r"[0-9a-f]{64}\.(\d{1,19})(?:\.([0-9a-f]{16}))?\Z")
# Seconds without a part after which an unfinished upload gives way when room is needed.
IDLE = 900.0


@dataclass(frozen=True)
class Progress:
    """The state of an upload, in bytes. `complete`: the bytes have their final name."""

    offset: int
    complete: bool


@dataclass
class _Upload:
    """An unfinished upload: the uploader, the bytes that arrived, and when the last did (Unix
    ns).
    """

    owner: str
    size: int
    changed: int


class BlobStore:
    """One directory of bytes; `quota` in bytes (0: none). `now` gives Unix nanoseconds.

    `used` counts the bytes that are there, of complete files and of unfinished uploads: an
    announced size takes no room. One member has at most `uploads` unfinished ones.
    """

    def __init__(
        self, path: Path, quota: int, now: Callable[[], int], *, uploads: int = 256
    ) -> None:
        """Prepare the directory and count what is there. Raises OSError."""
        self.path = path
        self.quota = quota
        self.uploads = uploads
        self._now = now
        self._partials = path / "partial"
        self._locks: defaultdict[str, trio.Lock] = defaultdict(trio.Lock)
        for directory in (path, self._partials):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.holder = _holder(path / "id")
        self.used = sum(size for _, size, _ in self._complete())
        self._unfinished = self._begun()
        self.used += sum(upload.size for upload in self._unfinished.values())

    def _complete(self) -> list[tuple[str, int, int]]:
        """Return checksum, size and time of change (ns) of every complete file."""
        found = []
        for shelf in os.scandir(self.path):
            if len(shelf.name) == 2 and shelf.is_dir(follow_symlinks=False):
                for entry in os.scandir(shelf.path):
                    if CHECKSUM.match(entry.name):
                        stat = entry.stat(follow_symlinks=False)
                        found.append((entry.name, stat.st_size, stat.st_mtime_ns))
        return found

    def _begun(self) -> dict[str, _Upload]:
        """Return the unfinished uploads by the name of their file, as they are on the disk."""
        found = {}
        for entry in os.scandir(self._partials):
            match = _PARTIAL.match(entry.name)
            if match is not None:
                stat = entry.stat(follow_symlinks=False)
                found[entry.name] = _Upload(match[2] or "", stat.st_size, stat.st_mtime_ns)
        return found

    def file(self, checksum: str) -> Path:
        """Return the path of the bytes with this SHA-256."""
        if not CHECKSUM.match(checksum):
            raise ValueError("not a checksum")
        return self.path / checksum[:2] / checksum

    def size_of(self, checksum: str) -> int | None:
        """Return the size in bytes of complete bytes, else None."""
        try:
            return self.file(checksum).stat().st_size
        except FileNotFoundError:
            return None

    def touch(self, checksum: str) -> bool:
        """Begin the grace of complete bytes anew; return False when they are not here."""
        try:
            os.utime(self.file(checksum), ns=(self._now(), self._now()))
        except FileNotFoundError:
            return False
        return True

    def _partial(self, scope: Scope) -> Path:
        owner = "\n".join((scope.colony, scope.uploader, scope.checksum)).encode()
        name = f"{hashlib.sha256(owner).hexdigest()}.{scope.size}"
        before = self._partials / name
        return before if name in self._unfinished else before.with_name(f"{name}.{_owner(scope)}")

    def offset(self, scope: Scope) -> int:
        """Return how many bytes of an upload have arrived."""
        try:
            return self._partial(scope).stat().st_size
        except FileNotFoundError:
            return 0

    def require_room(self, scope: Scope) -> None:
        """Raise Conflict when an upload can't begin, as its size or the quota is now."""
        owner = _owner(scope)
        own = sum(upload.owner == owner for upload in self._unfinished.values())
        if self.uploads and own >= self.uploads:
            raise Conflict(
                f"checksum: {own} uploads of yours are unfinished, the most that there may be"
                " (quotas.uploads); finish some, or wait until they are swept (files.grace)"
            )
        idle = sum(self._unfinished[name].size for name in self._idle())
        if self.quota and self.used - idle + scope.size > self.quota:
            raise self._full(scope.size)

    def _idle(self) -> list[str]:
        """Return the unfinished uploads that give way to others, the oldest first."""
        before = self._now() - int(IDLE * 1e9)
        found = [
            (upload.changed, name)
            for name, upload in self._unfinished.items()
            if upload.changed < before and name not in self._locks
        ]
        return [name for _, name in sorted(found)]

    def _full(self, size: int) -> RpcError:
        return Conflict(
            f"size: {size} bytes more do not fit; {self.used} of {self.quota} are used"
            " (files.quota); remove files, or ask the owner for a larger quota"
        )

    def _reserve(self, upload: _Upload, size: int) -> None:
        """Take room for bytes that have arrived. Raises Conflict."""
        if self.quota and self.used + size > self.quota:
            self._evict(self.used + size - self.quota)
            if self.used + size > self.quota:
                raise self._full(size)
        upload.size += size
        self.used += size

    def _evict(self, wanted: int) -> None:
        """Remove idle uploads until `wanted` bytes are free, if that is possible at all."""
        idle = self._idle()
        if sum(self._unfinished[name].size for name in idle) < wanted:
            return
        for name in idle:
            if wanted <= 0:
                return
            wanted -= self._unfinished[name].size
            self._drop(self._partials / name)

    async def write(self, scope: Scope, offset: int, data: bytes) -> Progress:
        """Add a part of an upload at the offset reached; the last one completes it.

        Raises Invalid for too many or wrong bytes, Conflict for another offset, a full quota or too
        many uploads, Unavailable when the disk refuses.
        """
        if offset + len(data) > scope.size:
            raise Invalid(f"content-range: more than the {scope.size} bytes announced")
        path = self._partial(scope)
        lock = self._locks[path.name]
        try:
            async with lock:
                reached = self.offset(scope)
                if offset != reached:
                    raise Conflict(f"content-range: {reached} bytes have arrived; go on there")
                upload = self._unfinished.get(path.name)
                if upload is None:
                    self.require_room(scope)
                    path.touch(mode=0o600)
                    upload = self._unfinished[path.name] = _Upload(_owner(scope), 0, self._now())
                self._reserve(upload, len(data))
                try:
                    await trio.to_thread.run_sync(_append, path, data)
                finally:
                    upload.changed = self._now()
                    lost = upload.size - self.offset(scope)
                    upload.size -= lost
                    self.used -= lost
                reached += len(data)
                if reached == scope.size:
                    await self._complete_upload(scope, path)
                return Progress(reached, reached == scope.size)
        except OSError as error:
            raise Unavailable(f"the bytes can't be kept: {error.strerror}") from None
        finally:
            if not lock.statistics().tasks_waiting and not lock.locked():
                self._locks.pop(path.name, None)

    async def _complete_upload(self, scope: Scope, path: Path) -> None:
        found = await trio.to_thread.run_sync(_seal, path)
        if found != scope.checksum:
            self._drop(path)
            raise Invalid(f"checksum: the bytes that arrived have {found}; upload them anew")
        if self._settle(scope, path):
            shelf = self.file(scope.checksum).parent
            await trio.to_thread.run_sync(_sync_directories, shelf, self.path)

    def _drop(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        gone = self._unfinished.pop(path.name, None)
        self.used -= gone.size if gone is not None else 0

    def _settle(self, scope: Scope, path: Path) -> bool:
        """Give whole bytes their final name; return False when it exists already."""
        if self.touch(scope.checksum):
            self._drop(path)
            return False
        final = self.file(scope.checksum)
        final.parent.mkdir(mode=0o700, exist_ok=True)
        path.rename(final)
        self._unfinished.pop(path.name, None)
        self.touch(scope.checksum)
        return True

    @staticmethod
    def _age(path: Path, changed: int, now: int) -> None:
        """Let the grace of a file begin now if its time is in the future, by a clock that was
        ahead.
        """
        if changed > now:
            with contextlib.suppress(FileNotFoundError):
                os.utime(path, ns=(now, now))

    async def sweep(self, needed: set[str], grace: float) -> tuple[int, int]:
        """Remove what is older than `grace` seconds and not needed; return the files and bytes
        removed.

        Younger uploads stay, also across a restart, so that they can go on.
        """
        now = self._now()
        before = now - int(grace * 1e9)
        files = size = 0
        for name, upload in (await trio.to_thread.run_sync(self._begun)).items():
            self._age(self._partials / name, upload.changed, now)
            if upload.changed < before and name in self._unfinished and name not in self._locks:
                files, size = files + 1, size + upload.size
                self._drop(self._partials / name)
        for checksum, length, changed in await trio.to_thread.run_sync(self._complete):
            if checksum in needed:
                continue
            self._age(self.file(checksum), changed, now)
            # Checked again without a pause before the removal: a call that relies on the bytes
            # touches them first.
            path = self.file(checksum)
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime_ns < before:
                    path.unlink()
                    self.used -= length
                    files, size = files + 1, size + length
        return files, size


def _owner(scope: Scope) -> str:
    return hashlib.sha256(f"{scope.colony}\n{scope.uploader}".encode()).hexdigest()[:16]


def _holder(path: Path) -> str:
    """Return the lasting id of a directory."""
    try:
        return path.read_text("ascii").strip()
    except FileNotFoundError:
        identity = secrets.token_hex(16)
        temporary = path.with_name("id.new")
        temporary.write_text(identity + "\n", "ascii")
        temporary.rename(path)
        return identity


def _append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def _seal(path: Path) -> str:
    """Sync a file and return its hash."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASHED):
            digest.update(chunk)
        os.fsync(file.fileno())
    return digest.hexdigest()


def _sync_directories(*directories: Path) -> None:
    for directory in directories:
        sync_directory(directory)
