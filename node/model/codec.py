"""How objects become bytes in the store (deterministic CBOR with a schema version) and JSON.

The wire forms of times, statistics and errors live here; who may see them does not.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeVar

import cbor2
import msgspec

from node.model import cbor as deterministic
from node.model.graph import layout, node_id
from node.model.repair import mended
from node.model.types import (
    ENV,
    UNSET_TIME,
    Attribute,
    Executor,
    Function,
    FunctionSpec,
    Graph,
    Process,
    State,
)

SCHEMA = 1
T = TypeVar("T")


class SchemaError(ValueError):
    """A stored value of a schema that this version does not know."""


# A spec is written with each state of its process, and seldom alone in its kind: bytes are kept.
_MOST_SPECS = 1024
_LARGEST_SPEC = 2048  # bytes
_specs: dict[bytes, deterministic.Encoded] = {}
_spec_key = msgspec.msgpack.Encoder().encode


def pack(value: object) -> bytes:
    """Encode a struct as deterministic CBOR (RFC 8949, section 4.2) behind the schema version.

    Of a process, what has its default is left out.
    """
    plain = msgspec.to_builtins(value)
    if isinstance(value, Process):
        spec = plain["spec"]
        plain = _lean(plain, _PLAIN)
        plain["spec"] = _encoded_spec(value.spec, spec)
    return deterministic.dumps([SCHEMA, plain])


# What `unpack` fills in again: a default of these types can't change any more.
_PLAIN: dict[str, Any] = {
    field.name: msgspec.to_builtins(
        field.default_factory() if field.default is msgspec.NODEFAULT else field.default
    )
    for field in msgspec.structs.fields(Process)
    if not field.required
}
_PLAIN_SPEC: dict[str, Any] = msgspec.to_builtins(FunctionSpec())


def _lean(plain: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    """The fields that differ from their default; parts that are structs likewise."""
    lean: dict[str, Any] = {}
    for name, value in plain.items():
        usual = default.get(name, _lean)
        if value != usual:
            lean[name] = _lean(value, usual) if type(usual) is dict else value
    return lean


def _encoded_spec(spec: FunctionSpec, plain: dict[str, Any]) -> Any:
    """The bytes of a spec, or what is to be encoded of it when they aren't worth keeping."""
    try:
        key = _spec_key(spec)
    except (OverflowError, TypeError, ValueError):
        # Numbers over 64 bits, and what is an error to CBOR, too.
        return _lean(plain, _PLAIN_SPEC)
    known = _specs.get(key)
    if known is None:
        plain = _lean(plain, _PLAIN_SPEC)
        if len(key) > _LARGEST_SPEC:
            return plain
        if len(_specs) >= _MOST_SPECS:
            del _specs[next(iter(_specs))]
        known = _specs[key] = deterministic.Encoded(deterministic.dumps(plain))
    return known


def unpack(data: bytes, kind: type[T]) -> T:
    """Decode what `pack` made. Raises SchemaError for another version.

    What an earlier colonyd took and this one does not is left out: it must not hide all the rest.
    """
    version, value = cbor2.loads(data)
    if version != SCHEMA:
        raise SchemaError(f"the store holds schema {version}; this colonyd knows {SCHEMA}")
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return msgspec.convert(mended(value, kind), kind)


def wire_time(nanoseconds: int) -> str:
    """RFC 3339 in UTC with nanoseconds; 0 is upstream's year 1."""
    if nanoseconds == 0:
        return UNSET_TIME
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return f"{_wire_second(seconds)}.{rest:09d}Z"


@lru_cache(maxsize=1024)
def _wire_second(seconds: int) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S")


def wire_spec(given: FunctionSpec) -> dict[str, Any]:
    """Return a function spec as upstream's SDKs expect it, ready for JSON."""
    spec: dict[str, Any] = msgspec.to_builtins(given)
    spec["args"] = spec["args"] or []
    spec["kwargs"] = spec["kwargs"] or {}
    spec["env"] = spec["env"] or {}
    conditions = spec["conditions"]
    conditions["executornames"] = conditions["executornames"] or []
    conditions["dependencies"] = conditions["dependencies"] or []
    spec["fs"] = _listed(spec["fs"] or {"mount": ""}, "snapshots", "dirs")
    if not spec["channels"]:
        del spec["channels"]
    return spec


def wire_attribute(attribute: Attribute, state: State) -> dict[str, Any]:
    """Return an attribute of a process in `state` as upstream's SDKs expect it."""
    value: dict[str, Any] = msgspec.to_builtins(attribute)
    value["state"] = int(state)
    return value


def wire_process(process: Process) -> dict[str, Any]:
    """Return a process as upstream's SDKs expect it, ready for JSON.

    The spec's environment has the variables that executors added as attributes, too.
    """
    p = process
    spec = wire_spec(p.spec)
    for attribute in p.attributes:
        if attribute.attributetype == ENV:
            spec["env"][attribute.key] = attribute.value
    return {
        "processid": p.processid,
        "initiatorid": p.initiatorid,
        "initiatorname": p.initiatorname,
        "assignedexecutorid": p.assignedexecutorid,
        "isassigned": p.isassigned,
        "state": int(p.state),
        "prioritytime": p.prioritytime,
        "submissiontime": wire_time(p.submissiontime),
        "starttime": wire_time(p.starttime),
        "endtime": wire_time(p.endtime),
        "waitdeadline": wire_time(p.waitdeadline),
        "execdeadline": wire_time(p.execdeadline),
        "retries": p.retries,
        "attributes": [wire_attribute(attribute, p.state) for attribute in p.attributes],
        "spec": spec,
        "waitforparents": p.waitforparents,
        "parents": [node_id(p.processgraphid, place) for place in p.parents],
        "children": [node_id(p.processgraphid, place) for place in p.children],
        "processgraphid": p.processgraphid,
        "in": p.input,
        "out": p.output,
        "errors": p.errors,
    }


def wire_graph(graph: Graph, nodes: Sequence[Process] | None = None) -> dict[str, Any]:
    """Return a process graph as upstream's SDKs expect it; drawn only when its nodes are given."""
    drawn, edges = layout(nodes) if nodes is not None else ([], [])
    graphid = graph.processgraphid
    return {
        "processgraphid": graphid,
        "initiatorid": graph.initiatorid,
        "initiatorname": graph.initiatorname,
        "colonyname": graph.colonyname,
        "rootprocessids": [node_id(graphid, place) for place in graph.roots],
        "state": int(graph.state),
        "submissiontime": wire_time(graph.submissiontime),
        "starttime": wire_time(graph.starttime),
        "endtime": wire_time(graph.endtime),
        "processids": [node_id(graphid, place) for place in range(graph.count)],
        "nodes": drawn,
        "edges": edges,
    }


def wire_executor(executor: Executor) -> dict[str, Any]:
    """Return an executor as upstream's SDKs expect it, ready for JSON."""
    value: dict[str, Any] = msgspec.to_builtins(executor)
    value["commissiontime"] = wire_time(executor.commissiontime)
    value["lastheardfromtime"] = wire_time(executor.lastheardfromtime)
    value["capabilities"] = _listed(value["capabilities"] or {}, "hardware", "software")
    for hardware in value["capabilities"]["hardware"]:
        _listed(hardware, "network")
    value["allocations"] = {"projects": (value["allocations"] or {}).get("projects") or {}}
    for name in ("locationname", "blueprintid", "blueprintgen"):
        if not value[name]:
            del value[name]
    return value


def wire_function(function: Function) -> dict[str, Any]:
    """Return a function as upstream's SDKs expect it, ready for JSON."""
    value: dict[str, Any] = _listed(msgspec.to_builtins(function), "args")
    for arg in value["args"]:
        for name in ("description", "required", "enum"):
            if not arg[name]:
                del arg[name]
    return value


def _listed(value: dict[str, Any], *names: str) -> dict[str, Any]:
    """The same object, with an empty list where upstream has one and nothing was given."""
    for name in names:
        value[name] = value.get(name) or []
    return value
