"""The index of history files: where the record of a process is, by its id.

It only repeats the files: an index that is missing, or damaged, is made anew.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from colonyd.fsync import sync_directory
from node.archive.chain import SUFFIX, HistoryError, batches, files, find_in, place

# A run is a file of entries in their order: the start of the hash of an id, and the byte at which
# the batch begins in the history file. Its name tells which bytes of which file it covers, and how
# many entries it has.
_ENTRY = struct.Struct(">16sQ")
_NAME = re.compile(r"(\d{4}-\d{2}(?:\.\d+)?)\.(\d+)-(\d+)\.(\d+)\Z")
PLACE = ".index"  # a name that no colony has
_TAIL = 4096  # entries that are in memory only, at most
_FAN = 8  # runs of about one size that become one
_PART = 8192  # entries that a merge has in memory, about
_RECORD = re.compile(
    rb'\{"number":\d+,"previous":"\w*","written":\d+,"kind":"process","id":"([^"]+)"'
)


def _hash(processid: str) -> bytes:
    return hashlib.blake2b(processid.encode(), digest_size=16).digest()


@dataclass(frozen=True)
class _Run:
    path: Path
    start: int
    end: int
    count: int

    def first(self, file: int, hashed: bytes) -> int:
        """Return the number of the first entry that is not before `hashed`."""
        low, high = 0, self.count
        while low < high:
            middle = (low + high) // 2
            if os.pread(file, 16, middle * _ENTRY.size) < hashed:
                low = middle + 1
            else:
                high = middle
        return low

    def offsets(self, hashed: bytes) -> list[int]:
        """Return where the batches begin that have a record of this hash. Raises OSError."""
        found = []
        file = os.open(self.path, os.O_RDONLY)
        try:
            at = self.first(file, hashed)
            while data := os.pread(file, _ENTRY.size, at * _ENTRY.size):
                if len(data) < _ENTRY.size or data[:16] != hashed:
                    break
                found.append(_ENTRY.unpack(data)[1])
                at += 1
        finally:
            os.close(file)
        return found


@dataclass
class _FileIndex:
    """The index of one history file: runs cover it from its first byte on, `tail` has the entries
    after them.
    """

    path: Path
    runs: list[_Run] = field(default_factory=list)
    tail: list[tuple[bytes, int]] = field(default_factory=list)
    end: int = 0


@dataclass
class HistoryIndex:
    """The index of one colony's history in `directory`. All methods may wait for the disk.

    They may be called by several threads: `catch_up` by one at a time.
    """

    directory: Path
    _files: dict[tuple[str, int], _FileIndex] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def find(self, processid: str) -> dict[str, Any] | None:
        """Return the last record of a process, or None. Raises OSError.

        Records since the last `catch_up` are not looked at.
        """
        hashed = _hash(processid)
        with self._lock:
            indexes = [
                (it.path, list(it.runs), [at for known, at in it.tail if known == hashed])
                for _, it in sorted(self._files.items(), reverse=True)
            ]
        for path, runs, offsets in indexes:
            for run in runs:
                # One that was merged meanwhile: its entries are looked for the next time.
                with suppress(FileNotFoundError):
                    offsets += run.offsets(hashed)
            for at in sorted(offsets, reverse=True):
                try:
                    found = find_in(path, at, processid)
                except (HistoryError, FileNotFoundError):
                    found = None
                if found is not None:
                    return found
                self._distrust(place(path))
        return None

    def _distrust(self, file: tuple[str, int]) -> None:
        """Forget the index of a file that differs from it."""
        with self._lock:
            known = self._files.pop(file, None)
        for run in known.runs if known else ():
            run.path.unlink(missing_ok=True)

    def catch_up(self) -> None:
        """Add the records written since, and keep the runs few. Raises OSError."""
        there = {place(path): path for path in files(self.directory)}
        for gone in self._files.keys() - there.keys():
            self._distrust(gone)
        last = max(there, default=None)
        for at, path in there.items():
            known = self._files.get(at)
            if known is None or known.end > path.stat().st_size:
                known = self._open(path)
                with self._lock:
                    self._files.pop(at, None)
                    self._files[at] = known
            self._read(known)
            over = at != last
            if over and known.tail:
                self._flush(known)
            self._merge(known, over=over)

    def _open(self, path: Path) -> _FileIndex:
        """Return the runs on the disk for a file; useless ones are removed."""
        directory = self.directory / PLACE
        found = []
        for entry in directory.iterdir() if directory.is_dir() else ():
            match = _NAME.match(entry.name)
            if match and match[1] + SUFFIX == path.name:
                found.append(_Run(entry, *map(int, match.groups()[1:])))
            elif not match or not (self.directory / (match[1] + SUFFIX)).exists():
                entry.unlink()
        index, size = _FileIndex(path), path.stat().st_size
        # Of several runs that begin at one byte, the longest was made of the others.
        for run in sorted(found, key=lambda run: (run.start, -run.end)):
            whole = run.path.stat().st_size == run.count * _ENTRY.size
            if run.start == index.end and run.start < run.end <= size and whole:
                index.runs.append(run)
                index.end = run.end
            else:
                run.path.unlink()
        return index

    def _read(self, index: _FileIndex) -> None:
        """Add the batches written since. A damaged batch ends it, as for readers."""
        try:
            for batch in batches(index.path, index.end):
                new = [
                    (_hash(match[1].decode()), batch.start)
                    for line in batch.lines
                    if (match := _RECORD.match(line))
                ]
                with self._lock:
                    index.tail += new
                    index.end = batch.end
                if len(index.tail) >= _TAIL:
                    self._flush(index)
                    self._merge(index)
        except HistoryError:
            return

    def _flush(self, index: _FileIndex) -> None:
        start = index.runs[-1].end if index.runs else 0
        parts = [b"".join(_ENTRY.pack(*entry) for entry in sorted(index.tail))]
        run = self._write(index, start, index.end, parts)
        with self._lock:
            index.runs.append(run)
            index.tail.clear()

    def _merge(self, index: _FileIndex, *, over: bool = False) -> None:
        """Merge the last runs while there are many of a size; all of them when its file is over."""
        while some := _mergeable(index.runs, over=over):
            run = self._write(index, some[0].start, some[-1].end, _merged(some))
            with self._lock:
                index.runs[-len(some) :] = [run]
            for old in some:
                old.path.unlink(missing_ok=True)

    def _write(self, index: _FileIndex, start: int, end: int, parts: Iterable[bytes]) -> _Run:
        directory = self.directory / PLACE
        directory.mkdir(mode=0o700, exist_ok=True)
        partial = directory / "partial"
        with os.fdopen(
            os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb"
        ) as file:
            for part in parts:
                file.write(part)
            count = file.tell() // _ENTRY.size
            file.flush()
            os.fsync(file.fileno())
        stem = index.path.name.removesuffix(SUFFIX)
        path = partial.with_name(f"{stem}.{start}-{end}.{count}")
        partial.replace(path)
        sync_directory(directory)
        return _Run(path, start, end, count)


def _mergeable(runs: Sequence[_Run], *, over: bool) -> Sequence[_Run]:
    """Return the last runs that are to become one, or nothing."""
    if over:
        return list(runs) if len(runs) > 1 else ()
    some = runs[-_FAN:]
    if len(some) < _FAN:
        return ()
    # As many times larger as runs were merged: each entry is written a few times in all.
    return some if some[0].count < _FAN * max(1, some[-1].count) else ()


def _merged(runs: Sequence[_Run]) -> Iterator[bytes]:
    """Return the entries of several runs in their order, in parts."""
    opened = [os.open(run.path, os.O_RDONLY) for run in runs]
    try:
        parts = min(65_536, 1 + sum(run.count for run in runs) // _PART)
        bounds = [(65_536 * part // parts).to_bytes(3, "big")[1:] for part in range(parts)]
        places = [0] * len(runs)
        for upper in [*bounds[1:], b""]:
            entries = list[bytes]()
            for number, (run, file) in enumerate(zip(runs, opened, strict=True)):
                end = run.first(file, upper) if upper else run.count
                length = (end - places[number]) * _ENTRY.size
                data = os.pread(file, length, places[number] * _ENTRY.size)
                places[number] = end
                entries += [data[at : at + _ENTRY.size] for at in range(0, len(data), _ENTRY.size)]
            yield b"".join(sorted(entries))
    finally:
        for file in opened:
            os.close(file)
