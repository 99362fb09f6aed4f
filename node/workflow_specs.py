"""A workflow as it is submitted or kept as text: its parsing, with errors that name the field.

What its nodes make of each other is `graphs`' matter.
"""

from __future__ import annotations

import msgspec

from node.errors import bad
from node.model import FunctionSpec
from node.rpc.table import prune

_OPAQUE = frozenset({"args", "kwargs", "fs"})


class WorkflowSpec(msgspec.Struct):
    """A workflow as it is submitted."""

    functionspecs: list[FunctionSpec] = msgspec.field(default_factory=list)
    colonyname: str = ""


def read_workflow(text: str, field: str) -> tuple[str, list[FunctionSpec]]:
    """Parse the JSON text of a workflow, or of the bare list of its function specs.

    Returns its colony's name ("" for a bare list) and the specs. Raises RpcError 400 that begins
    with `field`.
    """
    try:
        value = msgspec.json.decode(text)
        if isinstance(value, list):
            value = {"functionspecs": value}
        spec = msgspec.convert(prune(value, _OPAQUE), WorkflowSpec)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError) as error:
        raise bad(f"{field}: {error}") from None
    return spec.colonyname, spec.functionspecs
