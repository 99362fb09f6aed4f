"""The forms of objects: bytes in the store (MessagePack behind the schema version) and JSON.

The wire forms of times, statistics and errors are here; rights are not.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Hashable, Sequence
from functools import cache, lru_cache
from typing import Any, TypeVar, cast

import cbor2
import msgspec

from node.model.graph import layout, node_id
from node.model.repair import mended
from node.model.types import (
    ENV,
    UNSET_TIME,
    Attribute,
    Conditions,
    Executor,
    Function,
    FunctionSpec,
    Gpu,
    Graph,
    Process,
    State,
)

SCHEMA = 2
T = TypeVar("T")

# A value is CBOR to every version: [schema, value]. Of schema 1 the value is plain CBOR. Since
# schema 2 it is a byte string of MessagePack, so that an older colonyd refuses it by its number.
_PLAIN = 1
_PACKED = b"\x82\x02\x5a"  # an array of two: 2, and a byte string whose length has four bytes
_HEAD = len(_PACKED) + 4
_encode = msgspec.msgpack.Encoder().encode


class SchemaVersionError(ValueError):
    """A stored value of a schema that this version does not know."""


def pack(value: object) -> bytes:
    """Encode a value for the store, behind the schema version. `unpack` decodes it.

    Raises UnicodeEncodeError for text that UTF-8 does not have.
    """
    try:
        body = _encode(value)
    except OverflowError:
        # MessagePack has no integers over 64 bits; CBOR has.
        return cbor2.dumps([_PLAIN, msgspec.to_builtins(value)])
    return _PACKED + len(body).to_bytes(4, "big") + body


@cache
def _decoder(kind: Hashable) -> Callable[[memoryview], Any]:
    return msgspec.msgpack.Decoder(kind).decode


def unpack(data: bytes, kind: type[T]) -> T:
    """Decode a value of `pack`, of this version or an earlier one. Raises SchemaVersionError for a
    later.

    Parts that an earlier colonyd accepted and this one does not are left out: they must not hide
    all the rest.
    """
    found: T
    if data.startswith(_PACKED):
        body = memoryview(data)[_HEAD:]
        try:
            found = _decoder(cast(Hashable, kind))(body)
        except msgspec.ValidationError:
            found = msgspec.convert(mended(msgspec.msgpack.decode(body), kind), kind)
        return found
    version, value = cbor2.loads(data)
    if version != _PLAIN:
        raise SchemaVersionError(
            f"the store holds schema {version}, and this colonyd knows {SCHEMA}: run the colonyd"
            " that wrote it, or one after that"
        )
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return msgspec.convert(mended(value, kind), kind)


def is_older(data: bytes) -> bool:
    """Return whether a stored value is of an earlier schema, which an earlier colonyd reads."""
    return data[:2] < _PACKED[:2]


def _usual(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the fields of a struct with their defaults; a field without a constant one is never
    omitted.
    """
    return {field.name: field.default for field in msgspec.structs.fields(kind)}


_SPEC, _CONDITIONS, _GPU = _usual(FunctionSpec), _usual(Conditions), _usual(Gpu)


def whole_spec(spec: FunctionSpec) -> dict[str, Any]:
    """Return all fields of a spec, ready for JSON; those with their defaults, too."""
    whole: dict[str, Any] = _SPEC | msgspec.to_builtins(spec)
    conditions = whole["conditions"] = _CONDITIONS | whole["conditions"]
    conditions["gpu"] = _GPU | conditions["gpu"]
    return whole


def wire_time(nanoseconds: int) -> str:
    """Return a time as RFC 3339 in UTC with nanoseconds; 0 is upstream's year 1."""
    if nanoseconds == 0:
        return UNSET_TIME
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return f"{_wire_second(seconds)}.{rest:09d}Z"


@lru_cache(maxsize=1024)
def _wire_second(seconds: int) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S")


def wire_spec(given: FunctionSpec) -> dict[str, Any]:
    """Return a function spec as upstream's SDKs expect it, ready for JSON."""
    spec = whole_spec(given)
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
        hardware["gpu"] = _GPU | hardware["gpu"]
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
    """Return the same object, with an empty list where upstream has one and none was given."""
    for name in names:
        value[name] = value.get(name) or []
    return value
