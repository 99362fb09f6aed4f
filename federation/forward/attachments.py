"""The files that a spec's mounts need, and where the executor's colony stores them.

Values in, values out; `outbox.files` reads, fetches and stores. A mount is stored here under a
label of its own, `/forwarded/<process id>/...`, so no file of ours is read or written by it. The
spec that an executor gets names that label, so executors need no change.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from typing import TypeVar

from colonyd.errors import Invalid
from federation.wire.messages import MOST_FILES, Carried
from node.files.labels import check_name, normalise_label
from node.files.tickets import CHECKSUM
from node.model.types import Filesystem

ROOT = "/forwarded"
MAX_BYTES = 2**30  # of all files of one submission
_MOST_MOUNTS = 50
M = TypeVar("M")


def _bounded(mounts: list[M] | None, kind: str) -> list[M]:
    found = mounts or []
    if len(found) > _MOST_MOUNTS:
        raise Invalid(f"spec.fs.{kind}: at most {_MOST_MOUNTS} are forwarded")
    return found


def dirs(fs: Filesystem | None) -> list[str]:
    """Return the labels of a spec's directories. Raises Invalid."""
    labels = [mount.label for mount in _bounded(fs.dirs if fs else None, "dirs")]
    return [normalise_label(label, "spec.fs.dirs.label") for label in labels if label]


def snapshots(fs: Filesystem | None) -> dict[int, str]:
    """Return the ids of a spec's snapshots, by their places. Raises Invalid."""
    mounts = _bounded(fs.snapshots if fs else None, "snapshots")
    return {place: mount.snapshotid for place, mount in enumerate(mounts) if mount.snapshotid}


def needs_files(fs: Filesystem | None) -> bool:
    """Return whether a spec has mounts at all. Raises Invalid."""
    return bool(dirs(fs) or snapshots(fs))


def check(files: Sequence[Carried]) -> int:
    """Return how many bytes have to be fetched for these files. Raises Invalid."""
    if len(files) > MOST_FILES:
        raise Invalid(f"files: at most {MOST_FILES}")
    total = 0
    seen: set[tuple[str, str, str]] = set()
    for place, each in enumerate(files):
        field = f"files[{place}]"
        if normalise_label(each.label, f"{field}.label") != each.label:
            raise Invalid(f"{field}.label: not in its one spelling")
        check_name(each.name, f"{field}.name")
        if (each.mount, each.label, each.name) in seen:
            raise Invalid(f"{field}: twice")
        seen.add((each.mount, each.label, each.name))
        if not each.ref:
            if not CHECKSUM.match(each.checksum):
                raise Invalid(f"{field}.checksum: 64 hex characters are needed")
            total += each.size
    return total


def label_here(pid: str, mount: str, label: str) -> str:
    """Return the label here of a file of the process `pid`."""
    return f"{ROOT}/{pid}/{mount}{'' if label == '/' else label}"


def file_id(pid: str, carried: Carried) -> str:
    """Return the id of a file here: the same each time that the file is stored."""
    parts = "\n".join((pid, carried.mount, carried.label, carried.name))
    return hashlib.sha3_256(parts.encode()).hexdigest()


def snapshot_id(pid: str, place: int) -> str:
    """Return the id of a snapshot here."""
    return hashlib.sha3_256(f"{pid}\nsnapshot {place}".encode()).hexdigest()


def rewritten(fs: Filesystem | None, pid: str) -> Filesystem | None:
    """Return the mounts with the labels that an executor of ours needs. Raises Invalid."""
    value = copy.deepcopy(fs)
    for directory in _bounded(value.dirs if value else None, "dirs"):
        if directory.label:
            label = normalise_label(directory.label, "spec.fs.dirs.label")
            directory.label = label_here(pid, "d", label)
    mounts = _bounded(value.snapshots if value else None, "snapshots")
    for place, snapshot in enumerate(mounts):
        if snapshot.snapshotid:
            label = normalise_label(snapshot.label, "spec.fs.snapshots.label")
            snapshot.snapshotid = snapshot_id(pid, place)
            snapshot.label = label_here(pid, str(place), label)
    return value
