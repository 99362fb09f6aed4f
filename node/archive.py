"""The archive of a backup: a tar file whose last member says what the others must be.

What goes into it, and what is done with what comes out, is in `backup`.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO

import msgspec

from node.home import RESTORING
from node.version import VERSION

__all__ = [
    "REPLACED",
    "STORE",
    "BackupError",
    "Item",
    "Manifest",
    "create",
    "inspect",
    "name_of",
    "pack",
    "unpack",
]

FORMAT = 1
HOME, STORE, MANIFEST = "home/", "store.cbor", "manifest.json"
REPLACED = "replaced-"  # what directories begin with that hold what a restore moved aside
# Of the home: the store is asked for its keys, the rest is of one run.
_LEFT_OUT = frozenset({"etcd", "lock", RESTORING})
_PARTIAL, _DUMP = ".partial", ".store"
_CHUNK = 1 << 20


class BackupError(Exception):
    """What was asked for can't be done; the message says why, and nothing was changed."""


class Item(msgspec.Struct, frozen=True):
    """One member of the archive: its bytes, their SHA-256 in hex."""

    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """What an archive holds, at its end: with it, it is whole. `made` is in Unix seconds."""

    format: int
    version: str
    colony: str
    made: int
    revision: int
    keys: int
    items: dict[str, Item]

    @classmethod
    def begin(cls, colony: str, revision: int, keys: int) -> Manifest:
        """That of a backup made now, before its members are known."""
        return cls(FORMAT, VERSION, colony, int(time.time()), revision, keys, {})

    @property
    def size(self) -> int:
        """Bytes of all members."""
        return sum(item.size for item in self.items.values())


class _Hashed(io.RawIOBase):
    """A reader that hashes what passes."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self.digest = hashlib.sha256()
        self.size = 0

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size)
        self.digest.update(data)
        self.size += len(data)
        return data

    @property
    def item(self) -> Item:
        return Item(self.size, self.digest.hexdigest())


def name_of(home: Path) -> str:
    """The name of the colony at `home`. Raises BackupError."""
    try:
        return (home / "colony").read_text("utf-8").strip()
    except FileNotFoundError:
        raise BackupError(f"{home} is no home of a colony") from None


@contextmanager
def create(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """A file that appears at `path` when the block ends well, and another for the store's dump.

    Both are for their owner alone. Raises BackupError when there is something already.
    """
    if path.exists():
        raise BackupError(f"{path} exists already: choose another name")
    partial = path.with_name(path.name + _PARTIAL)
    dump = path.with_name(path.name + _DUMP)
    try:
        with _fresh(partial) as file, _fresh(dump) as store:
            yield file, store
            file.flush()
            os.fsync(file.fileno())
        # Not a rename: that would replace what somebody else put there meanwhile.
        try:
            os.link(partial, path)
        except OSError:
            partial.rename(path)  # a file system without links, as on many a stick
    finally:
        partial.unlink(missing_ok=True)
        dump.unlink(missing_ok=True)


def _fresh(path: Path) -> IO[bytes]:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    return os.fdopen(descriptor, "w+b")


def pack(file: IO[bytes], dump: IO[bytes], home: Path, manifest: Manifest) -> Manifest:
    """Write the archive of a dump and a home to `file`; gives the manifest with all members.

    Raises BackupError, OSError.
    """
    items = manifest.items
    own = {Path(os.path.realpath(f"/proc/self/fd/{it.fileno()}")) for it in (file, dump)}
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        dump.flush()
        dump.seek(0)
        items[STORE] = add(tar, STORE, dump)
        for entry in entries(home.resolve(), own):
            name = HOME + entry.relative_to(home.resolve()).as_posix()
            with suppress(FileNotFoundError), entry.open("rb") as source:
                items[name] = add(tar, name, source)
        add(tar, MANIFEST, io.BytesIO(msgspec.json.encode(manifest)))
    return manifest


def entries(home: Path, skip: set[Path]) -> Iterator[Path]:
    """The files of a home that belong into a backup."""
    for top in sorted(home.iterdir()):
        if top.name in _LEFT_OUT or top.name.startswith(REPLACED):
            continue
        if top.is_file() and top not in skip:
            yield top
        elif top.is_dir():
            for directory, inner, names in os.walk(top):
                # Uploads under way begin anew.
                inner[:] = sorted(n for n in inner if (top.name, n) != ("files", "partial"))
                for name in sorted(names):
                    path = Path(directory, name)
                    if path.is_file() and path not in skip:
                        yield path


def add(tar: tarfile.TarFile, name: str, source: IO[bytes]) -> Item:
    info = tarfile.TarInfo(name)
    info.mode, info.mtime = 0o600, time.time()
    try:
        stat = os.fstat(source.fileno())
        info.size, info.mtime, info.mode = stat.st_size, stat.st_mtime, stat.st_mode & 0o700
    except io.UnsupportedOperation:
        info.size = len(source.read())
        source.seek(0)
    reader = _Hashed(source)
    try:
        # A file that grows meanwhile is taken as long as it was.
        tar.addfile(info, reader)
    except tarfile.ReadError as error:
        raise BackupError(f"{name} became shorter while it was read: {error}") from None
    return reader.item


def inspect(path: Path) -> Manifest:
    """Read the whole archive and check it against its manifest. Raises BackupError, OSError."""
    return unpack(path, None)


def unpack(path: Path, into: Path | None) -> Manifest:
    """Check an archive, and extract it below `into` unless that is None."""
    seen: dict[str, Item] = {}
    manifest: Manifest | None = None
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                source = tar.extractfile(info) if info.isreg() else None
                if source is None or manifest is not None or info.name in seen:
                    raise BackupError(f"{path}: {info.name!r} does not belong there")
                if info.name == MANIFEST:
                    manifest = msgspec.json.decode(source.read(), type=Manifest)
                    continue
                seen[info.name] = _pass_on(info, source, into)
    except (tarfile.TarError, EOFError, msgspec.MsgspecError) as error:
        raise BackupError(f"{path} is no whole backup: {error}") from None
    if manifest is None:
        raise BackupError(f"{path} is no whole backup: its end is missing")
    if manifest.format != FORMAT:
        raise BackupError(f"{path} has format {manifest.format}; this version knows {FORMAT}")
    for name in sorted(seen.keys() | manifest.items.keys()):
        if seen.get(name) != manifest.items.get(name):
            raise BackupError(f"{path}: {name} is not what was saved")
    if STORE not in seen or HOME + "colony" not in seen:
        raise BackupError(f"{path} is no whole backup: it has no store or no home")
    return manifest


def _pass_on(info: tarfile.TarInfo, source: IO[bytes], into: Path | None) -> Item:
    reader = _Hashed(source)
    name = PurePosixPath(info.name)
    if name.is_absolute() or ".." in name.parts or name.parts[0] not in ("home", STORE):
        raise BackupError(f"{info.name!r} would lie outside of the home")
    if into is None:
        while reader.read(_CHUNK):
            pass
        return reader.item
    target = into / name
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, info.mode & 0o700)
    with os.fdopen(descriptor, "wb") as file:
        while data := reader.read(_CHUNK):
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.utime(target, (info.mtime, info.mtime))
    return reader.item
