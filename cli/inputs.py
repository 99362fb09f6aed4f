"""What commands read: JSON files, workflow specs, times, and ids cut to their first characters.

Nothing here calls a daemon.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cli.session import NOT_FOUND, USAGE, Failure

_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def read_text(path: str) -> str:
    """The text of a file, or of stdin for '-'. Raises Failure."""
    try:
        return sys.stdin.read() if path == "-" else Path(path).read_text("utf-8")
    except FileNotFoundError:
        raise Failure(f"{path}: no such file", code=NOT_FOUND) from None
    except (OSError, UnicodeDecodeError) as error:
        raise Failure(f"{path}: {error}", code=USAGE) from None


def read_json(path: str) -> Any:
    """The JSON value in a file or, for '-', on stdin. Raises Failure naming line and column."""
    text = read_text(path)
    try:
        return json.loads(text)
    except ValueError as error:
        raise Failure(f"{path}: not JSON: {error}", code=USAGE) from None


def read_object(path: str, key: str = "") -> dict[str, Any]:
    """The JSON object in a file, or the one under `key` in it. Raises Failure."""
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
    return {"colonyname": name or colony, "functionspecs": specs}


def since(text: str, now: float | None = None) -> int:
    """A moment in Unix ns: given as ns, as an ISO time, or as an age such as 90s, 5min, 2h, 1d."""
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


def pick(
    rows: Iterable[dict[str, Any]], text: str, fields: Sequence[str], what: str, listing: str
) -> dict[str, Any]:
    """The one row that `text` names: exactly by one of `fields`, else by the beginning of the last.

    `listing` is the command that shows what there is. Raises Failure.
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
