"""The reference: the table of calls as documentation, a row for each call with its request's
fields.

The rows come from the table itself; the command line prints them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from msgspec import inspect

from node.rpc.calls import Call

_PLAIN = {
    inspect.AnyType: "any",
    inspect.NoneType: "null",
    inspect.BoolType: "bool",
    inspect.IntType: "int",
    inspect.FloatType: "number",
    inspect.StrType: "string",
    inspect.BytesType: "base64",
    inspect.RawType: "any",
}
_BEGIN = """\
# Calls

Every call that a colonyd answers: made by `colony rpc ls --markdown` from the table that also
checks and dispatches them. Do not edit it by hand.

A call is a `POST /api` with `{"payloadtype", "payload", "signature"}`; the payload is the base64 of
a JSON object with the fields below and `msgtype`, which repeats the payload type. The signature
covers the text of the payload. `nonce` (16 to 128 characters) and `issuedat` (Unix s) may stand
beside the fields: the request then changes something once, and the same bytes again get the first
answer; 409 says that it is not known, so look and sign anew. `audience`, the `serverid` of
`getserverinfomsg`, makes it nothing to any other server.

An answer has the same shape, with `error`; a refusal carries `{"status", "message"}`, and the
message begins with the field that is wrong.

A field with `?` may be left out. An `int` has 64 bits, and a number in `any` or `object` is at most
what a 64-bit float holds. Lists in answers are never null. An id is looked up in the
caller's own colonies only: what belongs to others is 404, like what isn't there.
"""


# Payload types that upstream's code names and no server answers a call of.
NOT_CALLED = {
    "pausestatusreplymsg": "the type of the reply to getpausestatusmsg",
    "error": "the type of every refusal",
    "getnodemsg": "declared upstream, without a handler there or here: 403",
    "getnodesmsg": "declared upstream, without a handler there or here: 403",
    "getnodesbylocationmsg": "declared upstream, without a handler there or here: 403",
}


class Field(msgspec.Struct, frozen=True):
    """A field of a request. `optional` ones may be left out."""

    name: str
    type: str
    optional: bool


class Row(msgspec.Struct, frozen=True):
    """The documentation of one call."""

    section: str
    payloadtype: str
    fields: list[Field]
    who: str
    reply: str
    about: str


def describe(calls: Iterable[Call[Any]]) -> list[Row]:
    """Return the rows of `calls`, by sections in the order of their first calls; our own come
    last.
    """
    sections: dict[str, list[Row]] = {}
    for call in calls:
        who = call.rights or call.who.value
        row = Row(
            call.section, call.payloadtype, fields_of(call.request), who, call.reply, call.about
        )
        sections.setdefault(call.section, []).append(row)
    ours = sections.pop("Ours", [])
    return [row for rows in sections.values() for row in rows] + ours


def fields_of(kind: type) -> list[Field]:
    """Return the fields of a request struct."""
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    return [Field(f.encode_name, type_text(f.type), not f.required) for f in info.fields]


def type_text(kind: inspect.Type) -> str:
    """Return a type in the words of the documentation: string, int[], Conditions, ..."""
    if type(kind) in _PLAIN:
        return _PLAIN[type(kind)]
    if isinstance(kind, inspect.Metadata):
        return type_text(kind.type)
    if isinstance(kind, inspect.ListType | inspect.SetType | inspect.VarTupleType):
        return f"{type_text(kind.item_type)}[]"
    if isinstance(kind, inspect.DictType):
        return "object" if isinstance(kind.value_type, inspect.AnyType) else (
            f"{{string: {type_text(kind.value_type)}}}"
        )  # fmt: skip
    if isinstance(kind, inspect.UnionType):
        # Null means the zero value everywhere, so it needs no saying.
        parts = [part for part in kind.types if not isinstance(part, inspect.NoneType)]
        return " or ".join(type_text(part) for part in parts)
    if isinstance(kind, inspect.EnumType):
        return "int" if isinstance(next(iter(kind.cls)).value, int) else "string"
    if isinstance(kind, inspect.LiteralType):
        return " or ".join(repr(value) for value in kind.values)
    return (
        str(getattr(getattr(kind, "cls", None), "__name__", "any"))
        .removeprefix("New")
        .removeprefix("Sent")
    )


def objects(calls: Iterable[Call[Any]]) -> dict[str, list[Field]]:
    """Return the objects in requests, by name, with their fields."""
    found: dict[str, list[Field]] = {}
    seen: set[type] = set()
    left: list[inspect.Type] = []
    for call in calls:
        info = inspect.type_info(call.request)
        assert isinstance(info, inspect.StructType)
        left += [field.type for field in info.fields]
    while left:
        kind = left.pop()
        left += [inner for inner in _inner(kind) if inner is not None]
        # An object may hold others of its own kind.
        if isinstance(kind, inspect.StructType) and kind.cls not in seen:
            seen.add(kind.cls)
            found.setdefault(type_text(kind), fields_of(kind.cls))
            left += [field.type for field in kind.fields]
    return dict(sorted(found.items()))


def _inner(kind: inspect.Type) -> Iterator[inspect.Type | None]:
    """Return the types inside a collection, a union or an annotated type."""
    yield getattr(kind, "item_type", None)
    yield getattr(kind, "value_type", None)
    if isinstance(kind, inspect.Metadata):
        yield kind.type
    if isinstance(kind, inspect.UnionType):
        yield from kind.types


def markdown(calls: Iterable[Call[Any]]) -> str:
    """Return the documentation of `calls`."""
    every = list(calls)
    parts = [_BEGIN]
    section = ""
    for row in describe(every):
        if row.section != section:
            section = row.section
            parts.append(f"\n## {section}\n")
            if section == "WebSocket":
                parts.append("Sent as text frames to `/pubsub`, several to a socket.\n")
            if section == "Ours":
                parts.append("Calls that upstream's servers don't have.\n")
            parts.append("| call | fields | who | answer | what for |\n|---|---|---|---|---|")
        parts.append(
            f"| `{row.payloadtype}` | {_listed(row.fields)} | {row.who} | {row.reply} | "
            f"{row.about} |"
        )
    parts.append("\n## Objects in requests\n\n| object | fields |\n|---|---|")
    parts += [f"| {name} | {_listed(fields)} |" for name, fields in objects(every).items()]
    parts.append("\n## Named upstream, never called\n\n| type | why |\n|---|---|")
    parts += [f"| `{name}` | {why} |" for name, why in NOT_CALLED.items()]
    return "\n".join(parts) + "\n"


def _listed(fields: list[Field]) -> str:
    told = [f"{field.name}{'?' if field.optional else ''}: {field.type}" for field in fields]
    return ", ".join(told) or "–"
