"""The inputs of commands: JSON files, workflow specs, times, and abbreviated ids.

Nothing here calls a daemon.
"""

from __future__ import annotations

import difflib
import json
import re
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import msgspec

from cli.core.errors import NOT_FOUND, USAGE, Failure
from node.model.types import FunctionSpec

_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def read_text(path: str) -> str:
    """Return the text of a file, or of stdin for '-'. Raises Failure."""
    try:
        return sys.stdin.read() if path == "-" else Path(path).read_text("utf-8")
    except FileNotFoundError:
        raise Failure(f"{path}: no such file", code=NOT_FOUND) from None
    except IsADirectoryError:
        raise Failure(f"{path}: a directory; a file is expected", code=USAGE) from None
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}", code=USAGE) from None
    except UnicodeDecodeError as error:
        raise Failure(f"{path}: no UTF-8 text: {error}", code=USAGE) from None


def read_json(path: str) -> Any:
    """Return the JSON value in a file or, for '-', on stdin. Raises Failure naming line and
    column.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except ValueError as error:
        raise Failure(f"{path}: not JSON: {error}", code=USAGE) from None
    except RecursionError:
        raise Failure(f"{path}: JSON that is nested too deeply", code=USAGE) from None


def read_object(path: str, key: str = "") -> dict[str, Any]:
    """Return the JSON object in a file, or the one under `key` in it. Raises Failure."""
    value = read_json(path)
    if isinstance(value, dict) and key and isinstance(value.get(key), dict):
        value = value[key]
    if not isinstance(value, dict):
        raise Failure(f"{path}: a JSON object is expected", code=USAGE)
    return value


def workflow_spec(path: str, colony: str) -> dict[str, Any]:
    """Read a workflow: the bare array of function specs, or an object with `functionspecs`.

    The workflow runs in `colony` unless it names another one itself. Raises Failure.
    """
    value = read_json(path)
    specs, name = value, ""
    if isinstance(value, dict):
        specs, name = value.get("functionspecs"), str(value.get("colonyname") or "")
    if not isinstance(specs, list) or not specs or not all(isinstance(s, dict) for s in specs):
        raise Failure(
            f"{path}: not a workflow",
            code=USAGE,
            next_step='write an array of function specs: [{"nodename": "a", "funcname": ...}, ...]',
        )
    for number, spec in enumerate(specs, 1):
        refuse_unknown(spec, FunctionSpec, f"{path}: node {number}")
    return {"colonyname": name or colony, "functionspecs": specs}


def refuse_unknown(value: dict[str, Any], kind: type[msgspec.Struct], where: str) -> None:
    """Raise Failure for a key that `kind` has no field for; a daemon ignores it, as upstream does.

    As in upstream's JSON reader, upper and lower case are one.
    """
    fields = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
    for key, inner in value.items():
        name = next((name for name in fields if name.lower() == key.lower()), None)
        if name is None:
            close = difflib.get_close_matches(key.lower(), fields, 1, 0.5)
            raise Failure(
                f"{where}: {key!r} is no field",
                code=USAGE,
                next_step=f"did you mean {close[0]!r}?"
                if close
                else f"the fields are: {', '.join(fields)}",
            )
        nested = _struct_of(fields[name])
        for each in inner if isinstance(inner, list) else [inner]:
            if nested is not None and isinstance(each, dict):
                refuse_unknown(each, nested, f"{where}: {key}")


def _struct_of(annotation: Any) -> type[msgspec.Struct] | None:
    """Return the struct in an annotation such as `Conditions` or `list[SnapshotMount]`."""
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return annotation
    found = (_struct_of(inner) for inner in get_args(annotation))
    return next((each for each in found if each is not None), None)


def since(text: str, now: float | None = None) -> int:
    """Return a moment in Unix ns, given as ns, as an ISO time, or as an age such as 90s, 5min, 2h,
    1d.
    """
    if text.isdigit():
        return int(text)
    if match := re.fullmatch(r"(\d+)\s*(s|m|min|h|d)", text):
        moment = (time.time() if now is None else now) - int(match[1]) * _UNITS[match[2]]
        return int(moment * 1e9)
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise Failure(
            f"--since {text!r}: no time",
            code=USAGE,
            next_step="write an age (10min, 2h, 1d), a time (2030-01-31T12:00) or Unix ns",
        ) from None
    if when.tzinfo is None:
        when = when.astimezone(UTC)
    return int(when.timestamp() * 1e9)


def duration(text: str, option: str) -> float:
    """Return the seconds of a text such as '60s', '1.5m', '2h' or '90'. Raises Failure (usage)."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d)?", text.strip())
    if match is None or not 0 < float(match[1]) * _UNITS[match[2] or "s"] <= 31 * _UNITS["d"]:
        raise Failure(
            f"{option} {text!r}: no duration",
            code=USAGE,
            next_step="write seconds, or a number with s, min, h or d, such as 90s or 5min",
        )
    return float(match[1]) * _UNITS[match[2] or "s"]


def pick(
    rows: Iterable[dict[str, Any]], text: str, fields: Sequence[str], what: str, listing: str
) -> dict[str, Any]:
    """Return the one row that `text` names: exactly by one of `fields`, else by the beginning of
    the last.

    `listing` is the command that lists the rows. Raises Failure.
    """
    kept = list(rows)
    for field in fields:
        found = [row for row in kept if row.get(field) == text]
        if len(found) == 1:
            return found[0]
    begun = [row for row in kept if str(row.get(fields[-1], "")).startswith(text.lower())]
    if len(begun) == 1:
        return begun[0]
    if begun:
        raise Failure(
            f"{len(begun)} {what}s begin with {text!r}", code=USAGE, next_step="give more of it"
        )
    raise Failure(f"no {what} {text!r}", code=NOT_FOUND, next_step=f"`{listing}`")
