"""The archive of a backup: a tar file whose last member lists what the others must be.

`backup` decides what goes into it, and what is done with its content.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, cast

import cbor2
import msgspec

from colonyd.fsync import publish, sync_directory
from colonyd.places import LISTENING
from node.archive.index import PLACE as INDEX
from node.host.home import RESTORING
from node.model.ids import valid_name
from node.store import keys
from node.version import VERSION

FORMAT = 1
HOME, STORE, MANIFEST = "home/", "store.cbor", "manifest.json"
# The directories of a home: a file of such a name would keep the daemon from starting.
_PLACES = frozenset({HOME + name for name in ("keys", "files", "history", "results")})
REPLACED = "replaced-"  # the beginning of directories with content that a restore moved aside
# Of the home: the store is asked for its keys, the rest is of one run.
_LEFT_OUT = frozenset({"etcd", "lock", LISTENING, RESTORING})
_PARTIAL, _DUMP = ".partial", ".store"
_CHUNK = 1 << 20
# Bounds of the cost of an archive from elsewhere before it is refused, in bytes.
_MOST_NAME = 1024  # beside the home's own path, well below what Linux takes (PATH_MAX, 4096)
_MOST_PART = 255
_MOST_READ = 4 << 20  # of one read: tarfile reads what a header of extended names declares
_MOST_MANIFEST = 256 << 20
_MOST_RECORD = 16 << 20  # of one key and value; larger ones come in parts
_MOST_SETTINGS = 1 << 20


class BackupError(Exception):
    """The backup or restore can't be done; the message says why, and nothing was changed."""


class ArchiveMember(msgspec.Struct, frozen=True):
    """One member of the archive: its bytes, their SHA-256 in hex."""

    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """The list of an archive's content, at its end: with it, the archive is whole.

    `made` is in Unix seconds.
    """

    format: int
    version: str
    colony: str
    made: int
    revision: int
    keys: int
    items: dict[str, ArchiveMember]

    @classmethod
    def begin(cls, colony: str, revision: int, keys: int) -> Manifest:
        """Return the manifest of a backup made now, before its members are known."""
        return cls(FORMAT, VERSION, colony, int(time.time()), revision, keys, {})

    @property
    def size(self) -> int:
        """Return the bytes of all members."""
        return sum(item.size for item in self.items.values())


Advance = Callable[[int], None]  # gets the number of bytes that passed since the last time


def unseen(size: int) -> None:
    """Show no progress."""


class _Hashed(io.RawIOBase):
    """A reader that hashes what passes."""

    def __init__(self, source: IO[bytes], advance: Advance) -> None:
        self._source = source
        self._advance = advance
        self.digest = hashlib.sha256()
        self.size = 0

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size)
        self.digest.update(data)
        self.size += len(data)
        self._advance(len(data))
        return data

    @property
    def item(self) -> ArchiveMember:
        return ArchiveMember(self.size, self.digest.hexdigest())


def name_of(home: Path) -> str:
    """Return the name of the colony at `home`. Raises BackupError."""
    try:
        return (home / "colony").read_text("utf-8").strip()
    except FileNotFoundError:
        raise BackupError(f"{home} is no home of a colony") from None


@contextmanager
def create(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Give a file that appears at `path` when the block ends well, and another for the store's
    dump.

    Both are for their owner alone. Raises BackupError when `path` exists already.
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
        # Not a rename: that would replace a file that appeared there meanwhile.
        try:
            publish(partial, path)
        except FileExistsError:
            raise BackupError(f"{path} appeared meanwhile: choose another name") from None
        sync_directory(path.parent)
    finally:
        partial.unlink(missing_ok=True)
        dump.unlink(missing_ok=True)


def _fresh(path: Path) -> IO[bytes]:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    return os.fdopen(descriptor, "w+b")


def pack(
    file: IO[bytes], dump: IO[bytes], home: Path, manifest: Manifest, advance: Advance = unseen
) -> Manifest:
    """Write the archive of a dump and a home to `file`; return the manifest with all members.

    Raises BackupError, OSError.
    """
    items = manifest.items
    names = _Names()
    own = {Path(os.path.realpath(f"/proc/self/fd/{it.fileno()}")) for it in (file, dump)}
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        dump.flush()
        dump.seek(0)
        items[STORE] = add(tar, STORE, dump, advance)
        for entry in entries(home.resolve(), own):
            name = HOME + entry.relative_to(home.resolve()).as_posix()
            names.add(name)
            with suppress(FileNotFoundError), entry.open("rb") as source:
                items[name] = add(tar, name, source, advance)
        add(tar, MANIFEST, io.BytesIO(msgspec.json.encode(manifest)), advance)
    return manifest


def entries(home: Path, skip: set[Path]) -> Iterator[Path]:
    """Return the files of a home that belong into a backup."""
    for top in sorted(home.iterdir()):
        if top.name in _LEFT_OUT or top.name.startswith(REPLACED):
            continue
        if top.is_file() and top not in skip:
            yield top
        elif top.is_dir():
            for directory, inner, names in os.walk(top):
                # Uploads under way begin anew, and the index of history is made anew.
                left_out = (("files", "partial"), ("history", INDEX))
                inner[:] = sorted(n for n in inner if (top.name, n) not in left_out)
                for name in sorted(names):
                    path = Path(directory, name)
                    if path.is_file() and path not in skip:
                        yield path


def add(
    tar: tarfile.TarFile, name: str, source: IO[bytes], advance: Advance = unseen
) -> ArchiveMember:
    info = tarfile.TarInfo(name)
    info.mode, info.mtime = 0o600, time.time()
    try:
        found = os.fstat(source.fileno())
        info.size, info.mtime, info.mode = found.st_size, found.st_mtime, found.st_mode & 0o700
    except io.UnsupportedOperation:
        info.size = len(source.read())
        source.seek(0)
    reader = _Hashed(source, advance)
    try:
        # A file that grows meanwhile is read at its first length.
        tar.addfile(info, reader)
    except tarfile.ReadError as error:
        raise BackupError(f"{name} became shorter while it was read: {error}") from None
    return reader.item


def inspect(path: Path, advance: Advance = unseen) -> Manifest:
    """Read the whole archive and check all that `unpack` and a restore rely on.

    Raises BackupError, OSError.
    """
    return unpack(path, None, advance)


class _Bounded(io.RawIOBase):
    """A file that is read in small parts only: a header may declare any size."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MOST_READ:
            raise tarfile.ReadError("a header or a member is too large")
        return self._source.read(size)

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._source.seek(offset, whence)

    def tell(self) -> int:
        return self._source.tell()


class _Names:
    """The names of the members so far: each must have a place of its own below the home."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.directories: set[str] = set()

    def add(self, name: str) -> None:
        """Add a name. Raises BackupError when it could not be restored."""
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or path.parts[:1] not in (("home",), (STORE,)):
            raise BackupError(f"{name[:200]!r} would lie outside of the home")
        top = path.parts[1] if len(path.parts) > 1 else ""
        parents = {str(parent) for parent in path.parents}
        usable = name == STORE or (
            (path.parts[0] == "home" and top)
            and name == str(path)
            and top not in _LEFT_OUT
            and not top.startswith(REPLACED)
            and "\0" not in name
            and len(os.fsencode(name)) <= _MOST_NAME
            and all(len(os.fsencode(part)) <= _MOST_PART for part in path.parts)
            and name not in self.files | self.directories | _PLACES
            and parents.isdisjoint(self.files)
        )
        if not usable:
            raise BackupError(f"{name[:200]!r} does not belong there")
        self.files.add(name)
        self.directories |= parents


def unpack(path: Path, into: Path | None, advance: Advance = unseen) -> Manifest:
    """Check an archive, and extract it below `into` unless that is None."""
    seen: dict[str, ArchiveMember] = {}
    names = _Names()
    manifest: Manifest | None = None
    try:
        with (
            path.open("rb") as file,
            tarfile.open(fileobj=cast(IO[bytes], _Bounded(file)), mode="r:") as tar,
        ):
            for info in tar:
                tar.members.clear()  # type: ignore[attr-defined]  # it keeps all that it saw
                # Holes cost nothing in the archive and any time to read.
                plain = info.isreg() and not info.issparse()
                source = tar.extractfile(info) if plain else None
                if source is None or manifest is not None:
                    raise BackupError(f"{path}: {info.name[:200]!r} does not belong there")
                if info.name == MANIFEST:
                    manifest = msgspec.json.decode(
                        _whole(info.name, source, _MOST_MANIFEST), type=Manifest
                    )
                    continue
                names.add(info.name)
                seen[info.name] = _pass_on(info, source, into, advance)
    except (tarfile.TarError, EOFError, msgspec.MsgspecError, ValueError) as error:
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


def _whole(name: str, source: IO[bytes], most: int) -> bytes:
    """Read up to `most` bytes. Raises BackupError when there are more."""
    data = bytearray()
    while chunk := source.read(_CHUNK):
        data += chunk
        if len(data) > most:
            raise BackupError(f"{name} is larger than {most} bytes")
    return bytes(data)


def _pass_on(
    info: tarfile.TarInfo, source: IO[bytes], into: Path | None, advance: Advance
) -> ArchiveMember:
    reader = _Hashed(source, advance)
    if into is None:
        _check_content(info.name, reader)
        while reader.read(_CHUNK):
            pass
        return reader.item
    target = into / info.name
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    mode = info.mode & stat.S_IRWXU | stat.S_IRUSR | stat.S_IWUSR
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        while data := reader.read(_CHUNK):
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    with suppress(OverflowError):  # a time beyond what the file system can hold
        os.utime(target, (info.mtime, info.mtime))
    return reader.item


def _check_content(name: str, reader: _Hashed) -> None:
    """Check a member that a restore reads. Raises BackupError."""
    if name == STORE:
        for _ in records(cast(IO[bytes], reader)):
            pass
    elif name == HOME + "colony":
        text = _whole(name, cast(IO[bytes], reader), _MOST_PART).decode("utf-8", "replace").strip()
        if not valid_name(text):
            raise BackupError(f"{name}: {text[:80]!r} is no name of a colony")
    elif name == HOME + "config.toml":
        try:
            tomllib.loads(_whole(name, cast(IO[bytes], reader), _MOST_SETTINGS).decode("utf-8"))
        except ValueError as error:
            raise BackupError(f"{name}: not valid TOML: {error}") from None


class _Record(io.RawIOBase):
    """A reader with a bound on the bytes of one record."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self.left = _MOST_RECORD

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self.left:
            raise BackupError(f"{STORE}: a record is larger than {_MOST_RECORD} bytes")
        self.left -= size
        return self._source.read(size)


def records(file: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    """Read a dump of the store: keys, ascending, and values. Raises BackupError."""
    reader = _Record(file)
    decoder = cbor2.CBORDecoder(cast(IO[bytes], reader), max_depth=2, allow_indefinite=False)
    last = ""
    while True:
        reader.left = _MOST_RECORD
        try:
            record = decoder.decode()
        except cbor2.CBORDecodeEOF:
            if reader.left == _MOST_RECORD - 1:
                return
            raise BackupError(f"{STORE} ends in the middle of a record") from None
        except (cbor2.CBORDecodeError, ValueError, RecursionError) as error:
            raise BackupError(f"{STORE} is damaged after {last!r}: {error}") from None
        match record:
            case [str(key), bytes(value)] if key > last and key.startswith(keys.ROOT):
                last = key
                yield key, value
            case _:
                raise BackupError(f"{STORE} is damaged after {last!r}: no key and value")
