"""Upstream's types as a strict client has them, read from `upstream_types.md`, and nothing of ours.

`problem` is a decoder with the rules of Go's encoding/json: what it refuses, upstream's command
line, dashboard and SDKs can not read. `replies` says which call answers with what.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SOURCE = Path(__file__).with_name("upstream_types.md")
_TIME = re.compile(r"(\d{4})(-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d{1,9})?(Z|[+-]\d\d:\d\d)\Z")
_WHOLE = re.compile(r"-?(0|[1-9][0-9]*)\Z")
_DEEPEST = 10_000
_TEXTS = ("string", "ReconciliationAction", "ChangeType")


@dataclass(frozen=True)
class Field:
    """A field of an upstream struct."""

    type: str
    optional: bool  # `omitempty`: an empty one is not sent


@dataclass(frozen=True)
class Number:
    """A number as it is written."""

    text: str


class Pairs(list[tuple[str, Any]]):
    """An object as it is written: a key may be there twice."""


def _tables() -> tuple[dict[str, dict[str, Field]], dict[str, dict[str, Field]]]:
    found: list[dict[str, dict[str, Field]]] = []
    for line in _SOURCE.read_text("utf-8").splitlines():
        if line.startswith("|---"):
            found.append({})
        elif line.startswith("| ") and not line.startswith(("| payload type", "| object")):
            _, name, told, _ = line.split("|")
            fields = {}
            for each in filter(None, (part.strip() for part in told.split(", "))):
                key, kind = each.split(": ")
                key, _, empty = key.partition(",")
                fields[key] = Field(kind, bool(empty))
            found[-1].setdefault(name.strip(), fields)
    messages, objects = found
    return messages, objects


MESSAGES, OBJECTS = _tables()

_REPLIES = {
    "Attribute": "addattribute getattribute",
    "Blueprint": "addblueprint getblueprint updateblueprint",
    "BlueprintDefinition": "addblueprintdefinition getblueprintdefinition",
    "Colony": "addcolony getcolony",
    "Cluster": "getcluster",
    "Cron": "addcron getcron runcron",
    "Executor": "addexecutor getexecutor getexecutorbyid",
    "File": "addfile",
    "Function": "addfunction",
    "Generator": "addgenerator getgenerator resolvegenerator",
    "Location": "addlocation getlocation",
    "Process": "submitfuncspec assignprocess getprocess addchild reconcileblueprint"
    " subscribeprocess subscribeprocesses",
    "ProcessGraph": "submitworkflowspec getprocessgraph",
    "ServerInfo": "getserverinfo",
    "Snapshot": "createsnapshot getsnapshot",
    "Statistics": "getstatistics getcolonystats",
    "User": "adduser getuser getuserbyid",
    "[]Blueprint": "getblueprints",
    "[]BlueprintDefinition": "getblueprintdefinitions",
    "[]BlueprintHistory": "getblueprinthistory",
    "[]Colony": "getcolonies",
    "[]Cron": "getcrons",
    "[]Executor": "getexecutors",
    "[]File": "getfile",
    "[]FileData": "getfiles",
    "[]Function": "getfunctions",
    "[]Generator": "getgenerators",
    "[]Label": "getfilelabels",
    "[]Location": "getlocations",
    "[]Log": "getlogs searchlogs",
    "[]MsgEntry": "channelread subscribechannel",
    "[]Process": "getprocesses getprocesshist",
    "[]ProcessGraph": "getprocessgraphs",
    "[]Snapshot": "getsnapshots",
    "[]User": "getusers",
}
_KINDS = {f"{name}msg": kind for kind, names in _REPLIES.items() for name in names.split()}
_ECHOES = {
    "versionmsg",
    "changeuseridmsg",
    "changeexecutoridmsg",
    "changecolonyidmsg",
    "changeserveridmsg",
}


def reply_of(payloadtype: str) -> str:
    """What a call answers with: a Go type, or the name of a message; "" for nothing."""
    if payloadtype == "getpausestatusmsg":
        return "pausestatusreplymsg"
    return payloadtype if payloadtype in _ECHOES else _KINDS.get(payloadtype, "")


def problem(text: str | bytes, kind: str, *, whole: bool = True) -> str:
    """Why a strict client can not read a JSON text as a Go type; "" if it can.

    With `whole` no field may be missing, and a list or an object is none that is null, as our own
    answers are; without, Go's own rules hold.
    """
    try:
        value = json.loads(
            text,
            object_pairs_hook=Pairs,
            parse_int=Number,
            parse_float=Number,
            parse_constant=_never,
        )
    except (ValueError, RecursionError) as error:
        return f"no JSON: {error}"
    try:
        _check(value, kind, kind, whole, 0)
    except _Wrong as wrong:
        return str(wrong)
    return ""


class _Wrong(Exception):
    """Begins with the path of the field."""


def _never(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _check(value: Any, kind: str, path: str, whole: bool, depth: int) -> None:
    def require(holds: bool, why: str) -> None:
        if not holds:
            raise _Wrong(f"{path}: {why}, and not {str(value)[:60]!r}")

    require(depth < _DEEPEST, "not so deep")
    if value is None and kind != "any":
        require(not whole, f"{kind} and not null")
    elif kind == "any":
        _any(value, path, whole, depth)
    elif kind in _TEXTS:
        require(isinstance(value, str), "a string")
        require(not any(0xD800 <= ord(c) < 0xE000 for c in value), "whole characters")
    elif kind == "bool":
        require(isinstance(value, bool), "a bool")
    elif kind in ("int", "int64"):
        require(isinstance(value, Number) and bool(_WHOLE.match(value.text)), "a whole number")
        require(len(value.text) < 21, "a number of 64 bits")
        require(-(2**63) <= int(value.text) < 2**63, "a number of 64 bits")
    elif kind == "float64":
        require(isinstance(value, Number) and abs(float(value.text)) < float("inf"), "a float64")
    elif kind == "time.Time":
        require(isinstance(value, str) and _is_time(value), "a time as RFC 3339 has it")
    elif kind == "[]byte":
        require(isinstance(value, str) and _is_base64(value), "base64")
    elif kind.startswith("[]"):
        require(type(value) is list, "a list")
        for place, item in enumerate(value):
            _check(item, kind[2:], f"{path}[{place}]", whole, depth + 1)
    elif kind.startswith("map[string]"):
        require(isinstance(value, Pairs), "an object")
        for key, item in value:
            _check(key, "string", path, whole, depth)
            inner = kind.removeprefix("map[string]")
            _check(item, inner, f"{path}.{key[:40]}", whole, depth + 1)
    else:
        require(isinstance(value, Pairs), "an object")
        _struct(value, OBJECTS.get(kind) or MESSAGES[kind], path, whole, depth)


def _struct(value: Pairs, fields: dict[str, Field], path: str, whole: bool, depth: int) -> None:
    folded = {name.casefold(): name for name in fields}
    for key, item in value:
        # The same key in another case is the same field.
        name = key if key in fields else folded.get(key.casefold())
        if name is not None:
            _check(item, fields[name].type, f"{path}.{key}", whole, depth + 1)
    keys = {key for key, _ in value}
    missing = [name for name, each in fields.items() if not each.optional and name not in keys]
    if whole and missing:
        raise _Wrong(f"{path}: without {', '.join(missing)}")


def _any(value: Any, path: str, whole: bool, depth: int) -> None:
    if isinstance(value, Number):
        _check(value, "float64", path, whole, depth)
    elif isinstance(value, str):
        _check(value, "string", path, whole, depth)
    elif isinstance(value, Pairs):
        _check(value, "map[string]any", path, whole, depth)
    elif isinstance(value, list):
        _check(value, "[]any", path, whole, depth)


def _is_time(text: str) -> bool:
    found = _TIME.match(text)
    if found is None:
        return False
    year, rest, _, zone = found.groups()
    if zone != "Z" and (int(zone[1:3]) > 23 or int(zone[4:]) > 59):
        return False
    try:
        # A leap year for Python, which has no year 0.
        datetime.datetime.fromisoformat(("2000" if year == "0000" else year) + rest)
    except ValueError:
        return False
    return True


def _is_base64(text: str) -> bool:
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return False
    return True


# -- what is sent --------------------------------------------------------------------------------

_SIMPLE: dict[str, Any] = {
    "string": "text",
    "bool": True,
    "int": 7,
    "int64": 8,
    "float64": 1.5,
    "any": {"deep": [1, None, "x", 2.5, True]},
    "time.Time": "2030-01-31T12:00:00Z",
    "[]byte": "YWJj",
}


def example(kind: str, deep: int = 2) -> Any:
    """A value of a Go type with every field filled; types inside their own kind go `deep` down."""
    if kind in _SIMPLE:
        return _SIMPLE[kind]
    if kind.startswith("[]"):
        return [example(kind[2:], deep)]
    if kind.startswith("map[string]"):
        return {"name": example(kind.removeprefix("map[string]"), deep)}
    if kind not in OBJECTS and kind not in MESSAGES:
        return "text"
    fields = OBJECTS.get(kind) or MESSAGES[kind]
    inner = deep - (kind == "SchemaProperty")
    return {
        name: example(each.type, inner)
        for name, each in fields.items()
        if inner > 0 or not each.type.endswith("SchemaProperty")
    }
