"""Values with every field that upstream has."""

from __future__ import annotations

from typing import Any

from tests.support.upstream import example

ID = "e" * 64


def spec(**more: Any) -> Any:
    """A function spec with every field of upstream's, and none that would keep it from running."""
    full = example("FunctionSpec")
    conditions = full["conditions"] | {
        "colonyname": "dev",
        "executortype": "cli",
        "executornames": [],
        "dependencies": [],
        "locationname": "",
        "cpu": "500m",
        "mem": "1Gi",
    }
    full |= {"conditions": conditions, "channels": ["chat"], "maxwaittime": -1, "maxexectime": -1}
    return full | more


def executor(**more: Any) -> Any:
    full = {"executorname": "e1", "executortype": "t", "executorid": ID, "colonyname": "dev"}
    return example("Executor") | full | more


def definition() -> Any:
    full = example("BlueprintDefinition")
    full["metadata"] |= {"name": "def", "colonyname": "dev"}
    full["spec"]["names"]["kind"] = "Kind"
    full["spec"]["handler"] |= {"executorType": "cli", "functionName": "f"}
    simple = {"type": "string", "description": "d", "enum": ["x", None], "default": "x"}
    listed = {"type": "array", "items": simple}
    inner = {"type": "object", "properties": {"b": simple, "c": listed}}
    full["spec"]["schema"] = {"type": "object", "properties": {"a": inner}, "required": ["a"]}
    return full


def workflow(*nodes: Any) -> Any:
    return {"colonyname": "dev", "functionspecs": list(nodes or [spec(nodename="one")])}
