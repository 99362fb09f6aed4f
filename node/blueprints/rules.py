"""Rules of blueprints: which values are valid, what makes a new generation, and the call of a
reconciler.

Values in, values out: `blueprints.service` does what is decided here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from colonyd.errors import Invalid
from node.blueprints.schema import SchemaError, check_schema, conform
from node.model.codec import pack
from node.model.ids import MAX_SECONDS
from node.model.types import Colony, Conditions, FunctionSpec
from node.store.blueprints import Blueprint, Definition
from node.store.limits import BLUEPRINT

MAX_NAME = 200  # characters
# Bytes of one blueprint with its status: it must fit into a transaction twice, for its history.
MAX_BYTES = BLUEPRINT
# A generation is a JSON number that every client must read exactly.
MAX_GENERATION = 2**53 - 1


@dataclass(frozen=True)
class Initiator:
    """The caller, and the name under which its processes are submitted."""

    id: str
    name: str


@dataclass
class BlueprintRequest:
    """A blueprint as a client sends it. Without a `status`, the stored one stays.

    `copied` is when the copy that the client changed was made, in Unix ms; 0 if it is no copy.
    `repeatable` means that the id identifies this one request: the blueprint with the id is its
    result.
    """

    kind: str
    name: str
    colony: str
    location: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    spec: dict[str, Any] = field(default_factory=dict)
    status: dict[str, Any] | None = None
    blueprintid: str = ""
    generation: int = 0
    copied: int = 0
    repeatable: bool = False


def colony_initiator(colony: Colony) -> Initiator:
    """Return the colony itself as an initiator, under a name that no member can have."""
    return Initiator(colony.colonyid, f"colony/{colony.name}")


def same(one: Any, other: Any) -> bool:
    """Return whether two JSON values mean the same: 1 is 1.0, but never true."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return bool(one == other)


def revise(known: Blueprint, wanted: BlueprintRequest, *, force: bool, now: int) -> Blueprint:
    """Return the blueprint after an update: a changed spec, or `force`, makes a new generation.

    A status comes from the reconciler: the status of a copy older than the stored one does not
    replace it. `now` in Unix ns.
    """
    meta = known.metadata
    bump = force or not same(known.spec, wanted.spec)
    stale = 0 < wanted.copied < meta.updatedat // 1_000_000
    return msgspec.structs.replace(
        known,
        spec=wanted.spec,
        status=known.status if wanted.status is None or stale else wanted.status,
        metadata=msgspec.structs.replace(
            meta,
            locationname=wanted.location,
            labels=wanted.labels,
            annotations=wanted.annotations,
            generation=meta.generation + bump,
            updatedat=max(now, meta.updatedat),
        ),
    )


def cron_name(kind: str, location: str) -> str:
    """Return the name of the cron that reconciles a kind at a location, as upstream."""
    return f"reconcile-{kind}-{location}" if location else f"reconcile-{kind}"


def call(
    definition: Definition, funcname: str, nodename: str, location: str, kwargs: dict[str, Any]
) -> FunctionSpec:
    """Return a call of a kind's reconciler, without limits of time."""
    executortype = definition.handler.executortype
    return FunctionSpec(
        nodename=f"{executortype}-{nodename}",
        funcname=funcname,
        args=[],
        kwargs=kwargs,
        maxwaittime=-1,
        maxexectime=-1,
        maxretries=-1,
        conditions=Conditions(
            colonyname=definition.metadata.colonyname,
            executornames=[],
            executortype=executortype,
            locationname=location,
            dependencies=[],
        ),
        env={},
    )


def reconcile_call(definition: Definition, location: str, kwargs: dict[str, Any]) -> FunctionSpec:
    """Return the call that reconciles blueprints of a kind at a location."""
    function = definition.handler.functionname
    return call(definition, function, function, location, kwargs)


def check_name(text: str, name: str) -> None:
    """Raise Invalid unless a field holds one line of a bounded length."""
    if not 0 < len(text) <= MAX_NAME or not text.isprintable():
        raise Invalid(f"{name}: between 1 and {MAX_NAME} printable characters")


def check_definition(definition: Definition) -> None:
    """Raise Invalid that names the field of a definition that has no usable value."""
    at = "blueprintdefinition"
    check_name(definition.metadata.name, f"{at}.metadata.name")
    check_name(definition.names.kind, f"{at}.spec.names.kind")
    handler = definition.handler
    if "/" in handler.executortype:
        raise Invalid(f"{at}.spec.handler.executorType: a name without '/' is needed")
    if not 0 <= handler.reconcileinterval <= MAX_SECONDS:
        raise Invalid(f"{at}.spec.handler.reconcileInterval: seconds, at most {MAX_SECONDS}")
    if definition.schema is not None:
        try:
            check_schema(definition.schema, f"{at}.spec.schema")
        except SchemaError as error:
            raise Invalid(str(error)) from None
    check_size(definition, at)


def check_wanted(wanted: BlueprintRequest, definition: Definition) -> None:
    """Check a blueprint and fill in its spec's defaults. Raises Invalid naming the field."""
    check_name(wanted.name, "blueprint.metadata.name")
    if wanted.location:
        check_name(wanted.location, "blueprint.metadata.locationname")
    if len(wanted.blueprintid) > MAX_NAME:
        raise Invalid(f"blueprint.blueprintid: at most {MAX_NAME} characters")
    if not 0 <= wanted.generation <= MAX_GENERATION:
        raise Invalid(f"blueprint.metadata.generation: between 0 and {MAX_GENERATION}")
    if definition.schema is not None:
        try:
            wanted.spec = conform(wanted.spec, definition.schema, "blueprint.spec")
        except SchemaError as error:
            raise Invalid(str(error)) from None


def check_size(value: object, name: str) -> None:
    """Raise Invalid for a value that is too large to be stored."""
    if len(pack(value)) > MAX_BYTES:
        raise Invalid(f"{name}: at most {MAX_BYTES // 2**20} MiB with all that belongs to it")


def call_kwargs(blueprint: Blueprint) -> dict[str, Any]:
    """Return the arguments of a reconciler about one blueprint."""
    return {"kind": blueprint.kind, "blueprintName": blueprint.metadata.name}
