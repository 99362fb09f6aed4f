"""The page of files: labels, the files of one, and their versions. Bytes: `cli.ui.download`."""

from __future__ import annotations

from typing import Any

import msgspec

from cli.core.output import at
from cli.ui.api import Api
from cli.ui.context import Context

api = Api()

_MOST = 500  # rows on the page; the rest are counted


class LabelParams(msgspec.Struct, forbid_unknown_fields=True):
    """A label whose files are wanted."""

    label: str = "/"


class FileParams(msgspec.Struct, forbid_unknown_fields=True):
    """A file by label and name."""

    label: str
    name: str


class FileRow(msgspec.Struct):
    """The newest version of a file."""

    name: str
    size: int
    checksum: str


class Files(msgspec.Struct):
    """The labels of the colony, each with its number of versions, and the files of one label."""

    label: str
    labels: list[tuple[str, int]]
    files: list[FileRow]
    more: int


@api.row("files", LabelParams)
async def files(context: Context, params: LabelParams) -> Files:
    """Return all labels, and the files directly under one."""
    labels = await context.here("getfilelabelsmsg") or []
    rows = await context.here("getfilesmsg", label=params.label) or []
    return Files(
        label=params.label,
        labels=[(str(each["name"]), int(each["files"])) for each in labels[:_MOST]],
        files=[
            FileRow(str(each["name"]), int(each["size"]), str(each["checksum"]))
            for each in rows[:_MOST]
        ],
        more=max(0, len(rows) - _MOST) + max(0, len(labels) - _MOST),
    )


@api.row("file", FileParams)
async def file(context: Context, params: FileParams) -> list[dict[str, Any]]:
    """Return the versions of a file, the newest first."""
    rows = await context.here("getfilemsg", label=params.label, name=params.name) or []
    found = [
        {
            "id": row.get("fileid"),
            "number": row.get("sequencenr"),
            "size": row.get("size"),
            "checksum": row.get("checksum"),
            "added": at(row.get("added")),
            "kept": (row.get("ref") or {}).get("protocol"),
        }
        for row in rows[-_MOST:]
    ]
    return found[::-1]
