"""How objects become bytes in the store (deterministic CBOR with a schema version) and JSON.

The wire forms of times, statistics and errors live here; who may see them does not.
"""

from __future__ import annotations

import datetime
from functools import lru_cache
from typing import Any, TypeVar

import cbor2
import msgspec

from node.model import UNSET_TIME, Executor, Process

SCHEMA = 1
T = TypeVar("T")


class SchemaError(ValueError):
    """A stored value of a schema that this version does not know."""


def pack(value: object) -> bytes:
    """Encode a struct as deterministic CBOR (RFC 8949, section 4.2) behind the schema version."""
    return cbor2.dumps([SCHEMA, msgspec.to_builtins(value)], canonical=True)


def unpack(data: bytes, kind: type[T]) -> T:
    """Decode what `pack` made. Raises SchemaError for another version."""
    version, value = cbor2.loads(data)
    if version != SCHEMA:
        raise SchemaError(f"the store holds schema {version}; this colonyd knows {SCHEMA}")
    return msgspec.convert(value, kind)


def wire_time(nanoseconds: int) -> str:
    """RFC 3339 in UTC with nanoseconds; 0 is upstream's year 1."""
    if nanoseconds == 0:
        return UNSET_TIME
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return f"{_wire_second(seconds)}.{rest:09d}Z"


@lru_cache(maxsize=1024)
def _wire_second(seconds: int) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S")


def wire_process(process: Process) -> dict[str, Any]:
    """Return a process as upstream's SDKs expect it, ready for JSON."""
    p = process
    spec: dict[str, Any] = msgspec.to_builtins(p.spec)
    spec["args"] = spec["args"] or []
    spec["kwargs"] = spec["kwargs"] or {}
    spec["env"] = spec["env"] or {}
    conditions = spec["conditions"]
    conditions["executornames"] = conditions["executornames"] or []
    conditions["dependencies"] = conditions["dependencies"] or []
    if spec["fs"] is None:
        spec["fs"] = {"mount": "", "snapshots": None, "dirs": None}
    if not spec["channels"]:
        del spec["channels"]
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
        "attributes": msgspec.to_builtins(p.attributes),
        "spec": spec,
        "waitforparents": False,
        "parents": [],
        "children": [],
        "processgraphid": "",
        "in": p.input,
        "out": p.output,
        "errors": p.errors,
    }


def wire_executor(executor: Executor) -> dict[str, Any]:
    """Return an executor as upstream's SDKs expect it, ready for JSON."""
    value: dict[str, Any] = msgspec.to_builtins(executor)
    value["commissiontime"] = wire_time(executor.commissiontime)
    value["lastheardfromtime"] = wire_time(executor.lastheardfromtime)
    value["capabilities"] = executor.capabilities or {"hardware": None, "software": None}
    value["allocations"] = executor.allocations or {"projects": None}
    if not executor.locationname:
        del value["locationname"]
    return value
