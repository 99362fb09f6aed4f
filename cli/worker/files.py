"""The files of a process: its spec's `fs`, brought to a directory before it starts, and back after.

A directory is one process's alone, and is removed with it. The calls and transfers are those of
`colony file`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import trio

from cli.core.errors import Failure
from cli.files.session import FileSession, checked_item, prepare
from cli.files.syncplan import DirectoryScan, FileKey, plan, scan, settle
from node.model.types import Filesystem

MOST_BYTES = 4 << 30  # of one process, unless conditions.storage says less or more
MOST_FILES = 10_000
MOST_DEPTH = 200  # of directories in each other
_MOST_PLACES = 32
_MOST_PARTS = 32


class Unfit(Exception):
    """The files can't be as the spec asks; the text names the field or the bound."""


@dataclass(frozen=True)
class Place:
    """A directory below the mount that stands for a label or a snapshot."""

    parts: tuple[str, ...]
    label: str = ""
    keep_local: bool = False  # the end's files win over those that changed meanwhile
    snapshot: str = ""  # its id; then nothing goes back
    keep_snapshot: bool = True

    def below(self, root: Path) -> Path:
        """Return the directory. Raises Unfit where a link is on the way: it may lead anywhere."""
        for part in self.parts:
            root = root / part
            if root.is_symlink():
                raise Unfit(f"fs: the directory {part!r} was replaced by a link")
        return root


@dataclass(frozen=True)
class Layout:
    """The parsed `fs` of a spec."""

    mount: str
    places: tuple[Place, ...]


def layout_of(spec: Mapping[str, Any], processid: str) -> Layout | None:
    """Return the files that a spec asks for, None without a mount, as upstream. Raises Unfit."""
    try:
        fs = msgspec.convert(spec.get("fs"), Filesystem | None)
    except msgspec.ValidationError as error:
        raise Unfit(f"fs: {error}") from None
    if fs is None or not fs.mount:
        return None
    dirs, snapshots = fs.dirs or [], fs.snapshots or []
    if len(dirs) + len(snapshots) > _MOST_PLACES:
        raise Unfit(f"fs: more than {_MOST_PLACES} directories")
    places = []
    for each in snapshots:
        parts = _parts("fs.snapshots.dir", each.dir, processid)
        if each.snapshotid:  # upstream ignores one without
            places.append(Place(parts, "", False, each.snapshotid, each.keepsnapshot))
    for one in dirs:
        parts = _parts("fs.dirs.dir", one.dir, processid)
        label = one.label.replace("{processid}", processid)
        if not label:
            continue
        try:
            label = checked_item(label, "x").label
        except Failure as failure:
            raise Unfit(f"fs.dirs.label: {failure.message}") from None
        places.append(Place(parts, label, one.onconflicts.onclose.keeplocal))
    return Layout(fs.mount.replace("{processid}", processid), tuple(places))


def _parts(field: str, text: str, processid: str) -> tuple[str, ...]:
    path = PurePosixPath("/" + text.replace("{processid}", processid))
    parts = tuple(part for part in path.parts if part.strip("/"))
    if ".." in parts or len(parts) > _MOST_PARTS or any(len(p.encode()) > 255 for p in parts):
        raise Unfit(f"{field}: {text[:100]!r} leads out of the mount, or is too long")
    if not all(part.isprintable() for part in parts):
        raise Unfit(f"{field}: {text[:100]!r} has characters that no path should have")
    return parts


@dataclass
class Tree:
    """The directory of one process, and its bounds.

    `inner` leads from it to the mount. What runs may have put links anywhere below the root.
    """

    root: Path
    layout: Layout
    most_bytes: int = MOST_BYTES
    inner: tuple[str, ...] = ()

    def _at(self, place: Place) -> Path:
        return replace(place, parts=(*self.inner, *place.parts)).below(self.root)

    async def fill(self, ours: FileSession) -> None:
        """Download what the spec asks for. Raises Unfit, Failure, RpcError, Unreachable."""
        size = files = 0
        for place in self.layout.places:
            directory = self._at(place)
            directory.mkdir(parents=True, exist_ok=True)
            if place.snapshot:
                found, versions, lost = await ours.snapshot({"snapshotid": place.snapshot})
                label = str(found["label"])
                if lost:
                    raise Unfit(f"fs.snapshots: {len(lost)} files of the snapshot were removed")
            else:
                label, versions = place.label, await ours.below(place.label)
            size += sum(int(row["size"]) for row in versions.values())
            files += len(versions)
            self._within(size, files, "fs: the files of the colony")
            await self._download(ours, directory, label, versions)

    async def _download(
        self, ours: FileSession, directory: Path, label: str, rows: Mapping[FileKey, Any]
    ) -> None:
        local = await trio.to_thread.run_sync(scan, directory, label)  # places may overlap
        here = {item: content.checksum for item, content in local.files.items()}
        made = plan(here, {item: str(row["checksum"]) for item, row in rows.items()}, "local")
        settle(made, local, label)
        if made.clashes:
            item, why = next(iter(made.clashes.items()))
            raise Unfit(f"fs: {item.below(label)} of {label} has no place: {why}")
        for item in made.download:
            row = rows[item]
            if "ref" not in row:  # a listing has no places
                row = await ours.newest(f"{item.label.rstrip('/')}/{item.name}")
            path = directory / item.below(label)
            prepare(directory, path)
            await ours.get(row, path, lambda size: None)

    async def bring_back(self, ours: FileSession) -> None:
        """Upload what the colony lacks; what differs on both sides, where `onclose` says so.

        Nothing may run in the tree any more. Raises Unfit, Failure, RpcError, Unreachable, OSError.
        """
        await self.check()
        for place in self.layout.places:
            if place.snapshot:
                if not place.keep_snapshot:
                    await ours.call("removesnapshotmsg", {"snapshotid": place.snapshot})
                continue
            directory = self._at(place)
            local: DirectoryScan = await trio.to_thread.run_sync(scan, directory, place.label)
            rows = await ours.below(place.label)
            here = {item: content.checksum for item, content in local.files.items()}
            there = {item: str(row["checksum"]) for item, row in rows.items()}
            made = plan(here, there, "local" if place.keep_local else "remote")
            for item in made.upload:
                path = directory / item.below(place.label)
                await ours.put(path, item, local.files[item], lambda size: None)

    async def check(self) -> None:
        """Raise Unfit when the tree is larger than its bounds."""
        size, files = await trio.to_thread.run_sync(measure, self.root)
        self._within(size, files, "its files")

    def _within(self, size: int, files: int, what: str) -> None:
        if size > self.most_bytes:
            raise Unfit(
                f"{what} have {size} bytes, and the bound is {self.most_bytes}"
                " (conditions.storage, or the worker's own)"
            )
        if files > MOST_FILES:
            raise Unfit(f"{what} are more than {MOST_FILES}")


def measure(root: Path) -> tuple[int, int]:
    """Return the bytes and the number of files and directories below `root`; links count as one
    file. It stops a little beyond the most files.

    Raises Unfit for directories that hide what is in them: too deep for a path, or not to be read.
    """
    size = count = 0
    left = [(str(root), 0)]
    while left and count <= 2 * MOST_FILES:
        folder, depth = left.pop()
        if depth > MOST_DEPTH:
            raise Unfit(f"its directories are more than {MOST_DEPTH} deep")
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    count += 1
                    if entry.is_dir(follow_symlinks=False):
                        left.append((entry.path, depth + 1))
                        continue
                    with suppress(OSError):  # gone meanwhile
                        size += entry.stat(follow_symlinks=False).st_size
        except FileNotFoundError:
            continue  # gone meanwhile
        except OSError as error:
            raise Unfit(f"a directory of its files can't be read: {error.strerror}") from None
    return size, count


def give(root: Path, user: int, group: int) -> None:
    """Make everything below `root` a user's. Raises OSError."""
    os.chown(root, user, group, follow_symlinks=False)
    for folder, directories, names in os.walk(root):
        for name in (*directories, *names):
            os.chown(os.path.join(folder, name), user, group, follow_symlinks=False)


def remove(path: Path) -> None:
    """Remove a tree; what can't be removed stays for the next start."""
    try:
        shutil.rmtree(path, ignore_errors=True)
    except RecursionError:  # a thousand directories deep; rm has no such bound
        subprocess.run(
            ["rm", "-rf", "--", str(path.absolute())],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
