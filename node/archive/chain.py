"""History files: the records that left the store, each bound by hash to the one before it.

One daemon writes them, and any process with access reads them; `retention` decides what leaves
when.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from colonyd.fsync import sync_directory

# A month, by the time of writing, and the number of its file from the second on: once there is a
# later file, one no longer changes.
_NAME = re.compile(r"(\d{4}-\d{2})(?:\.(\d{1,9}))?\.jsonl\.gz\Z")
SUFFIX = ".jsonl.gz"
LARGEST = 256 * 2**20  # bytes of a file from which the next one begins, where nothing says less
_DROPPED = "dropped.json"
_CHUNK = 1 << 16
_GZIP = 31  # zlib's number for a window of 32 KiB in gzip's format
_MOST_PROBLEMS = 20


class HistoryError(Exception):
    """A file that differs from what was written; the message names file and place."""


class ChainHead(msgspec.Struct, frozen=True):
    """The last record of a chain: its number, from 1, and the SHA-256 of its line in hex."""

    number: int = 0
    digest: str = ""


NOTHING = ChainHead()


class Dropped(msgspec.Struct, frozen=True):
    """The last record of a history that was dropped for its quota, with all before it.

    `written` is when the one after it was written, in Unix ns.
    """

    number: int = 0
    digest: str = ""
    written: int = 0


@dataclass(frozen=True)
class HistoryBatch:
    """The records of one write: their lines, and where they begin and end in the file, in bytes."""

    lines: list[bytes]
    start: int
    end: int


def place(path: Path) -> tuple[str, int]:
    """Return the month of a history file and its number in it, from 1. Raises ValueError."""
    match = _NAME.match(path.name)
    if match is None:
        raise ValueError(f"{path.name} is no file of a history")
    return match[1], int(match[2] or 1)


def files(directory: Path) -> list[Path]:
    """Return the files of a colony's history, oldest first."""
    try:
        return sorted((path for path in directory.iterdir() if _NAME.match(path.name)), key=place)
    except FileNotFoundError:
        return []


def dropped(directory: Path) -> Dropped:
    """Return up to which record a history was dropped; the number 0 says that all is there.

    Raises HistoryError.
    """
    path = directory / _DROPPED
    try:
        return msgspec.json.decode(path.read_bytes(), type=Dropped)
    except FileNotFoundError:
        return Dropped()
    except msgspec.DecodeError as error:
        raise HistoryError(f"{path.name}: {error}") from None


def drop(directory: Path) -> Dropped:
    """Remove the oldest file of a history that has a later one; return what is dropped now.

    It is said before it is done: a kill in between leaves a file whose records count as dropped.
    Raises HistoryError, OSError.
    """
    oldest, following = files(directory)[:2]
    record = _first(following)
    last = Dropped(record["number"] - 1, record["previous"], record["written"])
    partial = directory / f"{_DROPPED}.partial"
    _write(partial, msgspec.json.encode(last))
    partial.replace(directory / _DROPPED)
    sync_directory(directory)
    oldest.unlink()
    return last


def _first(path: Path) -> dict[str, Any]:
    """Return the first record of a file. Raises HistoryError, OSError."""
    batch = next(batches(path), None)
    if batch is None:
        raise HistoryError(f"{path.name}: no record is in it")
    return _parse(path, batch.lines[0])


def batches(path: Path, start: int = 0) -> Iterator[HistoryBatch]:
    """Return the whole batches of a file from the byte `start` on, where one begins.

    A batch that a crash cut off at the end is left out. Raises HistoryError for bytes that no
    daemon wrote.
    """
    with path.open("rb") as file:
        file.seek(start)
        unzip, parts, end = zlib.decompressobj(_GZIP), list[bytes](), start
        while chunk := file.read(_CHUNK):
            while chunk:
                try:
                    parts.append(unzip.decompress(chunk))
                except zlib.error as error:
                    raise HistoryError(f"{path.name}: damaged after byte {end}: {error}") from None
                chunk = b""
                if unzip.eof:
                    chunk = unzip.unused_data
                    start, end = end, file.tell() - len(chunk)
                    yield HistoryBatch(b"".join(parts).splitlines(), start, end)
                    unzip, parts = zlib.decompressobj(_GZIP), []


def records(directory: Path) -> Iterator[dict[str, Any]]:
    """Return every record in the order of writing; the same thing may come twice.

    Raises HistoryError.
    """
    for path in files(directory):
        # One may be dropped meanwhile.
        with suppress(FileNotFoundError):
            for batch in batches(path):
                for line in batch.lines:
                    yield _parse(path, line)


def find_in(path: Path, start: int, processid: str) -> dict[str, Any] | None:
    """Return the last record of a process in the batch at the byte `start` of a file, or None.

    Raises HistoryError, OSError.
    """
    name = processid.encode()
    batch = next(batches(path, start), None)
    for line in reversed(batch.lines if batch else ()):
        # Most lines are of other processes, and need not be parsed.
        if name in line:
            record = _parse(path, line)
            if record.get("kind") == "process" and record.get("id") == processid:
                return record
    return None


def _parse(path: Path, line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    if not isinstance(value, dict) or not isinstance(value.get("number"), int):
        raise HistoryError(f"{path.name}: a line that is no record: {line[:40]!r}")
    return value


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


@dataclass
class Chain:
    """The writing end of one colony's history. All methods may wait for the disk.

    `head` is the last record. `trouble` is what was wrong when the history was opened. A file of
    `largest` bytes is followed by the next one.
    """

    directory: Path
    head: ChainHead = NOTHING
    trouble: str = ""
    largest: int = LARGEST

    @classmethod
    def open(cls, directory: Path, known: ChainHead) -> Chain:
        """Continue the history in `directory`, which must have at least the record `known`.

        The unfinished end that a crash left is cut off: nothing was taken from the store for it.
        Raises OSError.
        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        chain = cls(directory)
        for path in reversed(files(directory)):
            chain._recover(path)
            if chain.head.number:
                break
        if chain.head.number < known.number:
            chain.trouble = chain.trouble or (
                f"it ends with record {chain.head.number}, the store knows of {known.number}"
            )
            # Going on from there keeps the gap visible to `verify`.
            chain.head = known
        return chain

    def _recover(self, path: Path) -> None:
        """Find the last record of a file and cut off the bytes after it."""
        end, last = 0, b""
        damage = False
        try:
            for batch in batches(path):
                end, last = batch.end, (batch.lines or [last])[-1]
            if last:
                self.head = ChainHead(_parse(path, last)["number"], _digest(last))
        except HistoryError as error:
            self.trouble, damage = str(error), True
            if last:
                self.head = ChainHead(_number(last), _digest(last))
        with path.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            if size == end:
                return
            if damage:
                file.seek(end)
                aside = path.with_name(f"{path.name}.damaged-{end}")
                _write(aside, file.read())
            file.truncate(end)
            os.fsync(file.fileno())

    def append(self, entries: Sequence[dict[str, Any]], now: int) -> ChainHead:
        """Write records, and return only when they are on the disk; `now` in Unix ns.

        Each entry has `kind` and `id`. Raises OSError; then none of them counts as written.
        """
        head, lines = self.head, list[bytes]()
        for entry in entries:
            record = {"number": head.number + 1, "previous": head.digest, "written": now, **entry}
            line = msgspec.json.encode(record)
            head = ChainHead(head.number + 1, _digest(line))
            lines.append(line)
        zip_ = zlib.compressobj(wbits=_GZIP)
        data = zip_.compress(b"\n".join(lines) + b"\n") + zip_.flush()
        path = self._file(now)
        fresh = not path.exists()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            start = os.lseek(descriptor, 0, os.SEEK_END)
            try:
                # Unbuffered: bytes that a full disk refused must not follow after the truncation.
                left = memoryview(data)
                while left:
                    left = left[os.write(descriptor, left) :]
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, start)
                raise
        finally:
            os.close(descriptor)
        if fresh:
            sync_directory(self.directory)
            sync_directory(self.directory.parent)
        self.head = head
        return head

    def _file(self, now: int) -> Path:
        """Return the file to write to; a clock that went back does not open an earlier one."""
        month = datetime.datetime.fromtimestamp(now / 1e9, datetime.UTC).strftime("%Y-%m")
        there = files(self.directory)
        if not there or month > place(there[-1])[0]:
            return self.directory / f"{month}{SUFFIX}"
        last = there[-1]
        if last.stat().st_size < self.largest:
            return last
        month, number = place(last)
        return self.directory / f"{month}.{number + 1}{SUFFIX}"


def _number(line: bytes) -> int:
    """Return the number in a line that may be no record."""
    try:
        return int(json.loads(line)["number"])
    except (ValueError, KeyError, TypeError):
        return 0


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@dataclass
class ChainReport:
    """The result of checking a history.

    `problems` are the first ones; without any, all is as written. `dropped` is what left for the
    quota before.
    """

    records: int = 0
    files: int = 0
    head: ChainHead = NOTHING
    problems: list[str] = field(default_factory=list)
    contains: bool = False
    dropped: Dropped = field(default_factory=Dropped)

    def _problem(self, text: str) -> None:
        if len(self.problems) < _MOST_PROBLEMS:
            self.problems.append(text)


def verify(
    directory: Path, digest: str = "", advance: Callable[[int], None] = lambda size: None
) -> ChainReport:
    """Read a whole history and check that each record follows the one before.

    A chain proves the order of its records. Only a `digest` noted elsewhere shows that it was not
    written anew as a whole, and that its end is still there: `contains` is whether it was found.
    `advance` gets how many bytes of the files were read since the last time.
    """
    found = ChainReport()
    for path in files(directory):
        try:
            for batch in batches(path):
                for line in batch.lines:
                    if not found.records:
                        _begin(found, directory, path, line)
                    _follow(found, path, line)
                    found.contains = found.contains or found.head.digest == digest
                advance(batch.end - batch.start)
        except FileNotFoundError:
            continue  # dropped meanwhile
        except HistoryError as error:
            found._problem(str(error))
        found.files += 1
    return found


def _begin(found: ChainReport, directory: Path, path: Path, line: bytes) -> None:
    """Begin behind what was dropped, or with what was to be dropped and is still there."""
    found.dropped = gone = dropped(directory)
    record = _parse(path, line)
    if gone.number and record["number"] <= gone.number:
        found.head = ChainHead(record["number"] - 1, str(record.get("previous")))
    else:
        found.head = ChainHead(gone.number, gone.digest)


def _follow(found: ChainReport, path: Path, line: bytes) -> None:
    record = _parse(path, line)
    number, previous = record["number"], record.get("previous")
    if number != found.head.number + 1:
        found._problem(f"{path.name}: record {number} follows record {found.head.number}")
    elif previous != found.head.digest:
        found._problem(
            f"{path.name}: record {number} does not follow the record {number - 1} that is there"
        )
    found.records += 1
    found.head = ChainHead(number, _digest(line))
    if number == found.dropped.number and found.head.digest != found.dropped.digest:
        found._problem(f"{path.name}: record {number} is not the one that {_DROPPED} names")
