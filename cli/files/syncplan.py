"""The sync plan: compares a directory with a label: what to upload, what to download, what clashes.

Values in, a plan out; `cli.files.file` carries it out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from colonyd.client.files import FileDigest, digest, is_partial
from colonyd.errors import RpcError
from node.files.labels import check_name, normalise_label

# Upstream's own marker: it says which label a directory is kept in step with.
MARKER = ".cfs"


@dataclass(frozen=True, order=True)
class FileKey:
    """One file, by its label and name."""

    label: str
    name: str

    def below(self, label: str) -> str:
        """Return the path of the file in a directory that stands for `label`."""
        inner = self.label if label == "/" else self.label[len(label) :]
        return f"{inner.strip('/')}/{self.name}".lstrip("/")


@dataclass
class DirectoryScan:
    """The content of a directory; `skipped` are paths that no label and name can stand for.

    `others` has everything beside `files`: its path below the directory, and what it is.
    """

    files: dict[FileKey, FileDigest] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    others: dict[str, str] = field(default_factory=dict)


@dataclass
class SyncPlan:
    """The things to do; conflicts are in one of the first three once a side is chosen.

    Only files that `replace` names take the place of a local file. `clashes` are files of the
    colony that have no place of their own in the directory, and why.
    """

    upload: list[FileKey] = field(default_factory=list)
    download: list[FileKey] = field(default_factory=list)
    replace: list[FileKey] = field(default_factory=list)
    clashes: dict[FileKey, str] = field(default_factory=dict)
    conflicts: list[FileKey] = field(default_factory=list)
    same: int = 0


def plan(local: Mapping[FileKey, str], remote: Mapping[FileKey, str], keep: str | None) -> SyncPlan:
    """Compare checksums; `keep` is "local", "remote" or None to leave conflicts standing.

    Nothing is ever deleted: each side gets the files that it lacks.
    """
    made = SyncPlan()
    for item in sorted(local.keys() | remote.keys()):
        here, there = local.get(item), remote.get(item)
        if here == there:
            made.same += 1
        elif there is None or (here is not None and keep == "local"):
            made.upload.append(item)
        elif here is None:
            made.download.append(item)
        elif keep == "remote":
            made.replace.append(item)
        else:
            made.conflicts.append(item)
    return made


def settle(made: SyncPlan, found: DirectoryScan, root: str) -> None:
    """Move each download that has no place of its own from `download` to `clashes`, with why."""
    wanted = {item.below(root): item for item in made.download}
    here = found.others | {item.below(root): "file" for item in found.files}
    above = {str(parent) for path in wanted for parent in PurePosixPath(path).parents}
    for path, item in wanted.items():
        if why := _in_the_way(path, here, wanted.keys(), above):
            made.clashes[item] = why
            made.download.remove(item)


def _in_the_way(
    path: str, here: Mapping[str, str], wanted: Collection[str], above: Collection[str]
) -> str:
    """Return why nothing can be downloaded to `path`, or ""."""
    if path == MARKER or is_partial(path.rpartition("/")[2]):
        return "the name is one of this command's own"
    if path in here:
        return f"there is a {here[path]} here"
    if path in above:
        return "in the colony it is a file and a directory"
    for parent in map(str, PurePosixPath(path).parents):
        if here.get(parent, "directory") != "directory":
            return f"{parent} is a {here[parent]} here"
        if parent in wanted:
            return f"in the colony {parent} is a file and a directory"
    return ""


def scan(directory: Path, label: str) -> DirectoryScan:
    """Hash the files of a directory tree, none if it is not there. Links are not followed.

    Raises OSError.
    """
    found = DirectoryScan()
    if not directory.exists():
        return found

    def refuse(error: OSError) -> None:
        raise error

    for root, directories, names in os.walk(directory, onerror=refuse):
        below = os.path.relpath(root, directory)
        inner = label if below == "." else f"{label}/{below}"
        ahead = "" if below == "." else f"{below}/"
        for name in directories:
            link = os.path.islink(os.path.join(root, name))
            found.others[ahead + name] = "link" if link else "directory"
        directories[:] = [d for d in directories if found.others[ahead + d] == "directory"]
        for name in names:
            path = Path(root, name)
            if path.is_symlink():
                found.others[ahead + name] = "link"
            elif not path.is_file():
                found.others[ahead + name] = "special file"
            if is_partial(name) or (below == "." and name == MARKER):
                continue
            try:
                item = FileKey(normalise_label(inner, "label"), check_name(name, "name"))
            except RpcError:
                found.skipped.append(str(path))
                continue
            if ahead + name in found.others:
                found.skipped.append(str(path))
                continue
            found.files[item] = digest(path)
    return found


def read_marker(directory: Path) -> str | None:
    """Return the label in a directory's marker, if it has a usable one."""
    try:
        label = json.loads((directory / MARKER).read_text("utf-8"))["label"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return label if isinstance(label, str) and label else None


def write_marker(directory: Path, label: str) -> None:
    """Write into a directory which label it is kept in step with. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / MARKER).write_text(json.dumps({"label": label}) + "\n", "utf-8")
