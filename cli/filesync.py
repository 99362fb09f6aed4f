"""Compares a directory with a label: what to upload, what to download, what differs on both sides.

Values in, a plan out; carrying it out is in `cli.file`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cli.transfer import Content, digest
from node.errors import RpcError
from node.labels import check_name, normalise_label

__all__ = [
    "MARKER",
    "Item",
    "Plan",
    "Scan",
    "is_partial",
    "plan",
    "read_marker",
    "scan",
    "write_marker",
]

# Upstream's own marker: it says which label a directory is kept in step with.
MARKER = ".cfs"


@dataclass(frozen=True, order=True)
class Item:
    """One file, by its label and name."""

    label: str
    name: str

    def below(self, label: str) -> str:
        """The path of the item in a directory that stands for `label`."""
        inner = self.label if label == "/" else self.label[len(label) :]
        return f"{inner.strip('/')}/{self.name}".lstrip("/")


@dataclass
class Scan:
    """What a directory holds; `skipped` are paths that no label and name can stand for."""

    files: dict[Item, Content] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


@dataclass
class Plan:
    """What is to be done; conflicts are in one of the first two once a side is chosen."""

    upload: list[Item] = field(default_factory=list)
    download: list[Item] = field(default_factory=list)
    conflicts: list[Item] = field(default_factory=list)
    same: int = 0


def plan(local: Mapping[Item, str], remote: Mapping[Item, str], keep: str | None) -> Plan:
    """Compare checksums; `keep` is "local", "remote" or None to leave conflicts standing.

    Nothing is ever deleted: what one side lacks, it gets.
    """
    made = Plan()
    for item in sorted(local.keys() | remote.keys()):
        here, there = local.get(item), remote.get(item)
        if here == there:
            made.same += 1
        elif there is None or (here is not None and keep == "local"):
            made.upload.append(item)
        elif here is None or keep == "remote":
            made.download.append(item)
        else:
            made.conflicts.append(item)
    return made


def is_partial(name: str) -> bool:
    """Whether a name is that of a download under way."""
    return name.startswith(".") and name.endswith(".part")


def scan(directory: Path, label: str) -> Scan:
    """Hash the files of a directory tree, none if it is not there. Links are not followed.

    Raises OSError.
    """
    found = Scan()
    if not directory.exists():
        return found

    def refuse(error: OSError) -> None:
        raise error

    for root, directories, names in os.walk(directory, onerror=refuse):
        directories[:] = [d for d in directories if not os.path.islink(os.path.join(root, d))]
        below = os.path.relpath(root, directory)
        inner = label if below == "." else f"{label}/{below}"
        for name in names:
            path = Path(root, name)
            if is_partial(name) or (below == "." and name == MARKER):
                continue
            try:
                item = Item(normalise_label(inner, "label"), check_name(name, "name"))
            except RpcError:
                found.skipped.append(str(path))
                continue
            if path.is_symlink() or not path.is_file():
                found.skipped.append(str(path))
                continue
            found.files[item] = digest(path)
    return found


def read_marker(directory: Path) -> str | None:
    """The label in a directory's marker, if it has a usable one."""
    try:
        label = json.loads((directory / MARKER).read_text("utf-8"))["label"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return label if isinstance(label, str) and label else None


def write_marker(directory: Path, label: str) -> None:
    """Remember in a directory which label it is kept in step with. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / MARKER).write_text(json.dumps({"label": label}) + "\n", "utf-8")
