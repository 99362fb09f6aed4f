"""Blueprints in the store: structs, keys, and the transactions that change them.

Every coming and going of a blueprint writes the key of its kind: a transaction that compares this
key knows that none came or went meanwhile. Processes and crons join from their modules.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote

import msgspec

from node.etcd.txn import (
    Absent,
    Compare,
    Delete,
    DeletePrefix,
    Get,
    ModRevision,
    Op,
    Present,
    Put,
    Txn,
)
from node.model.codec import pack
from node.store import keys

# Classes of keys that go with a colony.
CLASSES = (
    "blueprint",
    "blueprintdefinition",
    "blueprintdefinitionname",
    "blueprinthistory",
    "blueprintid",
    "blueprintkind",
    "blueprintplace",
)
# Rows of history that a blueprint keeps: one for each of its newest generations.
MAX_HISTORY = 1_000
_TOP = (1 << 63) - 1


class Metadata(msgspec.Struct, frozen=True):
    """Metadata of a blueprint or a definition. Times are Unix ns, 0 for unset."""

    name: str
    colonyname: str
    locationname: str = ""
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    annotations: dict[str, str] = msgspec.field(default_factory=dict)
    generation: int = 1
    createdat: int = 0
    updatedat: int = 0
    reconciledby: str = ""
    reconciledat: int = 0


class Blueprint(msgspec.Struct, frozen=True):
    """A wanted state (`spec`), and the state that its reconciler last reported (`status`).

    `seed` is random and fresh for each blueprint, unlike the id, which its creator may choose. Ids
    of processes that follow from a blueprint are derived from it.
    """

    blueprintid: str
    kind: str
    metadata: Metadata
    seed: str
    spec: dict[str, Any] = msgspec.field(default_factory=dict)
    status: dict[str, Any] = msgspec.field(default_factory=dict)


class Names(msgspec.Struct, frozen=True):
    """The names of a kind."""

    kind: str
    listkind: str = ""
    singular: str = ""
    plural: str = ""
    shortnames: list[str] = msgspec.field(default_factory=list)


class Handler(msgspec.Struct, frozen=True):
    """The executor type that reconciles blueprints of a kind, and how often in seconds (0: as often
    as upstream).
    """

    executortype: str = ""
    functionname: str = ""
    reconcileinterval: int = 0


class Definition(msgspec.Struct, frozen=True):
    """A kind of blueprints. `kind` is what the client sent at the top; `names.kind` counts."""

    blueprintdefinitionid: str
    kind: str
    metadata: Metadata
    names: Names
    handler: Handler
    group: str = ""
    version: str = ""
    scope: str = ""
    schema: dict[str, Any] | None = None


class BlueprintChange(msgspec.Struct, frozen=True):
    """A row of history: a blueprint after a change of its generation; the time in Unix ns."""

    historyid: str
    blueprintid: str
    kind: str
    colonyname: str
    name: str
    generation: int
    timestamp: int
    changedby: str
    changetype: str
    spec: dict[str, Any] = msgspec.field(default_factory=dict)
    status: dict[str, Any] = msgspec.field(default_factory=dict)


@dataclass
class TxnBuilder:
    """A transaction in the making."""

    compare: list[Compare] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)

    def join(self, txn: Txn) -> None:
        """Add another transaction's conditions and operations to this one."""
        self.compare.extend(txn.compare)
        self.ops.extend(txn.success)

    @property
    def txn(self) -> Txn:
        """Return the transaction to commit."""
        return Txn(self.compare, self.ops)


def _key(kind: str, colony: str, *parts: str) -> str:
    """Return a key of one class; names may hold any character."""
    return f"{keys.ROOT}{kind}/{colony}/" + "/".join(quote(part, safe="") for part in parts)


def definitions(colony: str) -> str:
    """Return the prefix of the definitions of a colony."""
    return _key("blueprintdefinition", colony)


def definition(colony: str, kind: str) -> str:
    """Return the key of the definition of a kind."""
    return _key("blueprintdefinition", colony, kind)


def definition_name(colony: str, name: str) -> str:
    """Return the key that names the kind of the definition with this name."""
    return _key("blueprintdefinitionname", colony, name)


def kind(colony: str, kind: str) -> str:
    """Return the key that is written whenever a blueprint of a kind comes, goes or moves."""
    return _key("blueprintkind", colony, kind)


def blueprints(colony: str) -> str:
    """Return the prefix of the blueprints of a colony."""
    return _key("blueprint", colony)


def blueprint(colony: str, name: str) -> str:
    """Return the key of a blueprint."""
    return _key("blueprint", colony, name)


def blueprint_id(colony: str, blueprintid: str) -> str:
    """Return the key that names the blueprint with this id."""
    return _key("blueprintid", colony, blueprintid)


def places(colony: str, kind: str) -> str:
    """Return the prefix of the blueprints of a kind, at all locations."""
    return _key("blueprintplace", colony, kind, "")


def place(colony: str, kind: str, location: str, name: str = "") -> str:
    """Return the key of a blueprint at its location, or without a name the prefix of all at that
    location.

    Locations are compared as at assignment: without regard to case.
    """
    return _key("blueprintplace", colony, kind, location.lower(), name)


def place_owner(key: str) -> str:
    """Return the name of the blueprint of a `place` key."""
    return unquote(key.rpartition("/")[2])


def history(blueprint: Blueprint) -> str:
    """Return the prefix of the history of a blueprint, newest first."""
    return _key("blueprinthistory", blueprint.metadata.colonyname, blueprint.seed, "")


def change(blueprint: Blueprint, generation: int) -> str:
    """Return the key of one row of history."""
    return f"{history(blueprint)}{_TOP - generation:020d}"


def derived(blueprint: Blueprint, what: str) -> str:
    """Return the id of a process that follows from a blueprint: the same each time."""
    return hashlib.sha3_256(f"blueprint/{blueprint.seed}/{what}".encode()).hexdigest()


def cron_id(colony: str, kind: str, location: str) -> str:
    """Return the id of the cron that reconciles the blueprints of a kind at a location."""
    return hashlib.sha3_256(place(colony, kind, location).encode()).hexdigest()


def _own(blueprint: Blueprint) -> tuple[str, str, str]:
    meta = blueprint.metadata
    return (
        blueprint_key(blueprint),
        blueprint_id(meta.colonyname, blueprint.blueprintid),
        place(meta.colonyname, blueprint.kind, meta.locationname, meta.name),
    )


def blueprint_key(it: Blueprint) -> str:
    """Return the key of this blueprint."""
    return blueprint(it.metadata.colonyname, it.metadata.name)


def define(it: Definition) -> Txn:
    """Add a definition, if its colony exists and its name and kind are free."""
    colony = it.metadata.colonyname
    own = definition(colony, it.names.kind)
    name = definition_name(colony, it.metadata.name)
    return Txn(
        [Present(keys.colony(colony)), Absent(own), Absent(name)],
        [
            Put(own, pack(it)),
            Put(name, it.names.kind.encode()),
            Put(kind(colony, it.names.kind), b""),
        ],
        [Get(own), Get(name)],
    )


def undefine(it: Definition, kind_revision: int) -> Txn:
    """Remove a definition, if no blueprint of its kind came since the key of its kind was read."""
    colony = it.metadata.colonyname
    touched = kind(colony, it.names.kind)
    ops: list[Op] = [
        Delete(definition(colony, it.names.kind)),
        Delete(definition_name(colony, it.metadata.name)),
        Delete(touched),
    ]
    return Txn([ModRevision(touched, kind_revision)], ops)


def add(it: Blueprint, definition_revision: int) -> TxnBuilder:
    """Add a blueprint, if its name and id are free and its definition is the one that was read."""
    colony = it.metadata.colonyname
    own, identity, there = _own(it)
    return TxnBuilder(
        [
            ModRevision(definition(colony, it.kind), definition_revision),
            Absent(own),
            Absent(identity),
        ],
        [
            Put(own, pack(it)),
            Put(identity, it.metadata.name.encode()),
            Put(there, b""),
            Put(kind(colony, it.kind), b""),
        ],
    )


def write(it: Blueprint, revision: int) -> TxnBuilder:
    """Write another value of a blueprint that was read at `revision`."""
    own = blueprint_key(it)
    return TxnBuilder([ModRevision(own, revision)], [Put(own, pack(it))])


def move(before: Blueprint, after: Blueprint, kind_revision: int) -> TxnBuilder:
    """Return the part of a `write` that gives a blueprint another location."""
    touched = kind(before.metadata.colonyname, before.kind)
    return TxnBuilder(
        [ModRevision(touched, kind_revision)],
        [Delete(_own(before)[2]), Put(_own(after)[2], b""), Put(touched, b"")],
    )


def remove(it: Blueprint, revision: int, kind_revision: int) -> TxnBuilder:
    """Remove a blueprint with its history, if none of its kind came or went meanwhile."""
    own, identity, there = _own(it)
    touched = kind(it.metadata.colonyname, it.kind)
    return TxnBuilder(
        [ModRevision(own, revision), ModRevision(touched, kind_revision)],
        [
            Delete(own),
            Delete(identity),
            Delete(there),
            DeletePrefix(history(it)),
            Put(touched, b""),
        ],
    )


def record(it: Blueprint, row: BlueprintChange) -> list[Op]:
    """Return the operations that add a row of history and drop the row that is too old."""
    ops: list[Op] = [Put(change(it, row.generation), pack(row))]
    if row.generation > MAX_HISTORY:
        ops.append(Delete(change(it, row.generation - MAX_HISTORY)))
    return ops
