"""The spec of a workflow, as submitted or kept as text: its parsing, with errors that name the
field.

How its nodes depend on each other is in `model.graph`.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from colonyd.errors import Invalid
from node.model import types as model
from node.model.codec import wire_spec
from node.model.json import MAX_DEPTH, depth_of, prune
from node.model.numbers import beyond_float
from node.model.types import FunctionSpec

_OPAQUE = frozenset({"args", "kwargs"})


class WorkflowSpec(msgspec.Struct):
    """A workflow as it is submitted."""

    functionspecs: list[FunctionSpec] = msgspec.field(default_factory=list)
    colonyname: str = ""


# The objects of a workflow, and the names of their fields.
_OBJECTS = (
    WorkflowSpec,
    FunctionSpec,
    model.Conditions,
    model.Gpu,
    model.Filesystem,
    model.SnapshotMount,
    model.SyncDirMount,
    model.ConflictResolution,
    model.OnStart,
)
_NAMES = frozenset(name for each in _OBJECTS for name in each.__struct_encode_fields__)


def read_workflow(text: str, field: str) -> tuple[str, list[FunctionSpec]]:
    """Parse the JSON text of a workflow, or of the bare list of its function specs.

    Returns its colony's name ("" for a bare list) and the specs. Raises Invalid that begins
    with `field`.
    """
    try:
        value = msgspec.json.decode(text)
        if depth_of(value) > MAX_DEPTH:
            raise Invalid(f"{field}: nested deeper than {MAX_DEPTH}")
        if beyond_float(text.encode(), value):
            raise Invalid(f"{field}: a number beyond what a 64-bit float holds")
        if isinstance(value, list):
            value = {"functionspecs": value}
        spec = msgspec.convert(prune(value, _OPAQUE), WorkflowSpec)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError) as error:
        raise Invalid(f"{field}: {error}") from None
    return spec.colonyname, spec.functionspecs


def readable(text: str, colony: str, field: str) -> str:
    """Return the text of a workflow in a form that every client reads alike; unchanged if it is so.

    A bare list, a key twice, and keys that differ from a field's name only in case, which Go takes
    for the field, are replaced by the text of what was understood. Raises Invalid as
    `read_workflow`.
    """
    _, specs = read_workflow(text, field)
    plain = True

    def look(pairs: list[tuple[str, Any]]) -> None:
        nonlocal plain
        names = [name for name, _ in pairs]
        folded = [name.casefold() for name in names]
        doubtful = any(
            name != low and low in _NAMES for name, low in zip(names, folded, strict=True)
        )
        plain = plain and not doubtful and len(set(names)) == len(names)

    if isinstance(json.loads(text, object_pairs_hook=look), list) or not plain:
        value = {"colonyname": colony, "functionspecs": [wire_spec(spec) for spec in specs]}
        return msgspec.json.encode(value).decode()
    return text
