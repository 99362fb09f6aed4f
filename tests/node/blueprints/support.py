"""Schemas that cost much."""

from __future__ import annotations

from typing import Any


def nested(keyword: str, levels: int) -> dict[str, Any]:
    """Return a schema whose cost is multiplied at each of its levels."""
    schema: dict[str, Any] = {"properties": {"a": {}}}
    left, number = "unevaluatedProperties", {"type": "integer"}
    for _ in range(levels):
        if keyword == "unevaluatedItems":
            schema = {"allOf": [schema], "unevaluatedItems": number}
        else:
            schema = {keyword: schema if keyword == "if" else [schema], left: number}
    return schema
