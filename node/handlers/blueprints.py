"""Calls about blueprints and their definitions."""

from __future__ import annotations

import datetime
from typing import Any

import msgspec

from colonyd.errors import Denied, Invalid
from node.blueprints.rules import BlueprintRequest, Initiator, colony_initiator
from node.blueprints.schema_types import drop, fitting, refuse
from node.etcd.pages import Rows, each
from node.etcd.pressure import Need
from node.model.codec import wire_process, wire_time
from node.model.types import Int64
from node.processes.spec import id_for
from node.rpc.calls import MINE, Caller, Calls, Who, every
from node.rpc.replay import Once
from node.runtime.node import Node
from node.store.blueprints import Blueprint, BlueprintChange, Definition, Handler, Metadata, Names
from node.store.directory import name_of

# Upstream's clients may send null at any place: it means nothing was given.
Text = str | None


class SentMetadata(msgspec.Struct):
    """The server's own fields (times, last reconciliation) are sent back, and ignored."""

    name: Text = None
    colonyname: Text = None
    locationname: Text = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    generation: Int64 | None = None
    updated: Text = msgspec.field(name="updatedAt", default=None)


class SentBlueprint(msgspec.Struct):
    blueprintid: Text = None
    kind: Text = None
    metadata: SentMetadata | None = None
    spec: dict[str, Any] | None = None
    status: dict[str, Any] | None = None


class SentNames(msgspec.Struct):
    kind: Text = None
    listkind: Text = msgspec.field(name="listKind", default=None)
    singular: Text = None
    plural: Text = None
    shortnames: list[str] | None = msgspec.field(name="shortNames", default=None)


class SentHandler(msgspec.Struct):
    executortype: Text = msgspec.field(name="executorType", default=None)
    functionname: Text = msgspec.field(name="functionName", default=None)
    interval: Int64 | None = msgspec.field(name="reconcileInterval", default=None)


class SentDefinitionSpec(msgspec.Struct):
    group: Text = None
    version: Text = None
    names: SentNames | None = None
    scope: Text = None
    schema: dict[str, Any] | None = None
    handler: SentHandler | None = None


class SentDefinition(msgspec.Struct):
    blueprintdefinitionid: Text = None
    kind: Text = None
    metadata: SentMetadata | None = None
    spec: SentDefinitionSpec | None = None


class AddDefinition(msgspec.Struct):
    blueprintdefinition: SentDefinition


class DefinitionNamed(msgspec.Struct):
    colonyname: str
    name: str


class ColonyDefinitions(msgspec.Struct):
    colonyname: str


class BlueprintNamed(msgspec.Struct):
    """A blueprint by name; upstream calls a colony a namespace."""

    namespace: str
    name: str


class AddBlueprint(msgspec.Struct):
    blueprint: SentBlueprint


class GetBlueprints(msgspec.Struct):
    namespace: str
    kind: str = ""
    locationname: str = ""


class UpdateBlueprint(msgspec.Struct):
    blueprint: SentBlueprint
    forcegeneration: bool = False


class UpdateStatus(msgspec.Struct):
    colonyname: str
    blueprintname: str
    status: dict[str, Any] | None = None


class Reconcile(msgspec.Struct):
    namespace: str
    name: str
    force: bool = False


class GetBlueprintHistory(msgspec.Struct):
    blueprintid: str
    limit: Int64 = 0


# -- what is sent, as we see it ----------------------------------------------------------


def wanted(sent: SentBlueprint) -> BlueprintRequest:
    """Return the blueprint that a client sent. Raises Invalid for a malformed time."""
    meta = sent.metadata or SentMetadata()
    return BlueprintRequest(
        kind=sent.kind or "",
        name=meta.name or "",
        colony=meta.colonyname or "",
        location=meta.locationname or "",
        labels=meta.labels or {},
        annotations=meta.annotations or {},
        spec=sent.spec or {},
        status=sent.status,
        blueprintid=sent.blueprintid or "",
        generation=meta.generation or 0,
        copied=_milliseconds(meta.updated or "", "blueprint.metadata.updatedAt"),
    )


def _milliseconds(text: str, field: str) -> int:
    """Return the Unix ms of an RFC 3339 time, 0 for none and for upstream's year 1. Raises
    Invalid.
    """
    if not text:
        return 0
    try:
        moment = datetime.datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise ValueError("no offset")
        return max(0, int(moment.timestamp() * 1000))
    except (ValueError, OverflowError):
        raise Invalid(f"{field}: a time such as 2030-01-31T12:00:00Z is expected") from None


def defined(sent: SentDefinition) -> Definition:
    """Return the definition that a client sent. Raises Invalid for a schema of other types."""
    meta, spec = sent.metadata or SentMetadata(), sent.spec or SentDefinitionSpec()
    names, handler = spec.names or SentNames(), spec.handler or SentHandler()
    return Definition(
        blueprintdefinitionid=sent.blueprintdefinitionid or "",
        kind=sent.kind or "",
        metadata=Metadata(
            name=meta.name or "",
            colonyname=meta.colonyname or "",
            locationname=meta.locationname or "",
            labels=meta.labels or {},
            annotations=meta.annotations or {},
        ),
        names=Names(
            kind=names.kind or "",
            listkind=names.listkind or "",
            singular=names.singular or "",
            plural=names.plural or "",
            shortnames=names.shortnames or [],
        ),
        handler=Handler(
            executortype=handler.executortype or "",
            functionname=handler.functionname or "",
            reconcileinterval=handler.interval or 0,
        ),
        group=spec.group or "",
        version=spec.version or "",
        scope=spec.scope or "",
        schema=None if spec.schema is None else fitting(spec.schema, refuse),
    )


# -- what we have, as it is sent ---------------------------------------------------------


def _given(**fields: Any) -> dict[str, Any]:
    """Return the fields that are not empty: upstream leaves the others out."""
    return {name: value for name, value in fields.items() if value}


def wire_metadata(meta: Metadata) -> dict[str, Any]:
    """Return metadata as upstream's SDKs expect it, ready for JSON."""
    return {
        "name": meta.name,
        "colonyname": meta.colonyname,
        "createdAt": wire_time(meta.createdat),
        "updatedAt": wire_time(meta.updatedat),
        "lastReconciliationTime": wire_time(meta.reconciledat),
        **_given(
            locationname=meta.locationname,
            labels=meta.labels,
            annotations=meta.annotations,
            generation=meta.generation,
            lastReconciliationProcess=meta.reconciledby,
        ),
    }


def wire_blueprint(blueprint: Blueprint) -> dict[str, Any]:
    """Return a blueprint as upstream's SDKs expect it, ready for JSON."""
    return {
        "blueprintid": blueprint.blueprintid,
        "kind": blueprint.kind,
        "metadata": wire_metadata(blueprint.metadata),
        "spec": blueprint.spec,
        **_given(status=blueprint.status),
    }


def wire_definition(definition: Definition) -> dict[str, Any]:
    """Return a definition as upstream's SDKs expect it, ready for JSON."""
    names, handler = definition.names, definition.handler
    spec: dict[str, Any] = {
        "group": definition.group,
        "version": definition.version,
        "names": {
            "kind": names.kind,
            "listKind": names.listkind,
            "singular": names.singular,
            "plural": names.plural,
            **_given(shortNames=names.shortnames),
        },
        "scope": definition.scope,
        "handler": {
            "executorType": handler.executortype,
            "functionName": handler.functionname,
            **_given(reconcileInterval=handler.reconcileinterval),
        },
    }
    if definition.schema is not None:
        spec["schema"] = fitting(definition.schema, drop)
    return {
        "blueprintdefinitionid": definition.blueprintdefinitionid,
        "kind": definition.kind,
        "metadata": wire_metadata(definition.metadata),
        "spec": spec,
    }


def wire_change(row: BlueprintChange) -> dict[str, Any]:
    """Return a row of history as upstream's SDKs expect it, ready for JSON."""
    return {
        "historyid": row.historyid,
        "blueprintid": row.blueprintid,
        "kind": row.kind,
        "namespace": row.colonyname,
        "name": row.name,
        "generation": row.generation,
        "spec": row.spec,
        "timestamp": wire_time(row.timestamp),
        "changedby": row.changedby,
        "changetype": row.changetype,
        **_given(status=row.status),
    }


# -- the calls ---------------------------------------------------------------------------


calls: Calls[Node] = Calls("Blueprints")


def initiator(node: Node, caller: Caller) -> Initiator:
    """Return the calling member, or the colony when its owner calls."""
    if caller.member is not None:
        return Initiator(caller.id, name_of(caller.member))
    colony = node.directory.colony(caller.colony)
    if colony is None:
        raise Denied(f"colony {caller.colony!r} is not hosted here")
    return colony_initiator(colony)


def of_sent(request: AddBlueprint | UpdateBlueprint) -> str:
    meta = request.blueprint.metadata
    return (meta.colonyname if meta else None) or ""


def of_definition(request: AddDefinition) -> str:
    meta = request.blueprintdefinition.metadata
    return (meta.colonyname if meta else None) or ""


@calls.row(
    "addblueprintdefinitionmsg",
    AddDefinition,
    Who.OWNER,
    reply="BlueprintDefinition",
    colony=of_definition,
)
async def define(node: Node, caller: Caller, request: AddDefinition) -> dict[str, Any]:
    """Add a kind of blueprints."""
    return wire_definition(await node.definitions.add(defined(request.blueprintdefinition)))


@calls.row("getblueprintdefinitionmsg", DefinitionNamed, Who.BOTH, reply="BlueprintDefinition")
async def get_definition(node: Node, caller: Caller, request: DefinitionNamed) -> dict[str, Any]:
    """Show a kind by name."""
    return wire_definition(await node.definitions.get(request.colonyname, request.name))


@calls.row(
    "getblueprintdefinitionsmsg",
    ColonyDefinitions,
    Who.BOTH,
    reply="BlueprintDefinition[]",
    heavy=every,
)
async def get_definitions(node: Node, caller: Caller, request: ColonyDefinitions) -> Rows:
    """List the kinds."""
    return each(node.definitions.listing(request.colonyname), wire_definition)


@calls.row(
    "removeblueprintdefinitionmsg", BlueprintNamed, Who.OWNER, colony="namespace", need=Need.FREES
)
async def remove_definition(node: Node, caller: Caller, request: BlueprintNamed) -> None:
    """Remove a kind without blueprints."""
    await node.definitions.remove(request.namespace, request.name)


@calls.row(
    "addblueprintmsg", AddBlueprint, Who.BOTH, reply="Blueprint", colony=of_sent, once=Once.RESUMED
)
async def add(node: Node, caller: Caller, request: AddBlueprint) -> dict[str, Any]:
    """Add a blueprint."""
    new = wanted(request.blueprint)
    if caller.nonce and not new.blueprintid:
        new.blueprintid, new.repeatable = id_for(caller.id, caller.nonce), True
    return wire_blueprint(await node.blueprints.add(new, initiator(node, caller)))


@calls.row("getblueprintmsg", BlueprintNamed, Who.BOTH, reply="Blueprint", colony="namespace")
async def get(node: Node, caller: Caller, request: BlueprintNamed) -> dict[str, Any]:
    """Show a blueprint by name."""
    return wire_blueprint(await node.blueprints.get(request.namespace, request.name))


@calls.row(
    "getblueprintsmsg",
    GetBlueprints,
    Who.BOTH,
    reply="Blueprint[]",
    colony="namespace",
    heavy=every,
)
async def get_many(node: Node, caller: Caller, request: GetBlueprints) -> Rows:
    """List blueprints, of one kind, at one location."""
    found = node.blueprints.listing(request.namespace, request.kind, request.locationname)
    return each(found, wire_blueprint)


@calls.row("updateblueprintmsg", UpdateBlueprint, Who.BOTH, reply="Blueprint", colony=of_sent)
async def update(node: Node, caller: Caller, request: UpdateBlueprint) -> dict[str, Any]:
    """Replace a blueprint's spec."""
    changed = await node.blueprints.update(
        wanted(request.blueprint), initiator(node, caller), force=request.forcegeneration
    )
    return wire_blueprint(changed)


@calls.row("removeblueprintmsg", BlueprintNamed, Who.BOTH, colony="namespace", need=Need.FREES)
async def remove(node: Node, caller: Caller, request: BlueprintNamed) -> None:
    """Remove a blueprint; its executors clean up."""
    await node.blueprints.remove(request.namespace, request.name, initiator(node, caller))


@calls.row("updateblueprintstatusmsg", UpdateStatus, Who.MEMBER, need=Need.WORKS)
async def set_status(node: Node, caller: Caller, request: UpdateStatus) -> None:
    """Replace a blueprint's status."""
    name = request.blueprintname
    await node.blueprints.set_status(request.colonyname, name, request.status or {})


@calls.row(
    "reconcileblueprintmsg",
    Reconcile,
    Who.MEMBER,
    reply="Process",
    colony="namespace",
    once=Once.RESUMED,
)
async def reconcile(node: Node, caller: Caller, request: Reconcile) -> dict[str, Any]:
    """Reconcile a blueprint now."""
    process = await node.blueprints.reconcile(
        request.namespace,
        request.name,
        initiator(node, caller),
        force=request.force,
        processid=id_for(caller.id, caller.nonce),
    )
    return wire_process(process)


@calls.row(
    "getblueprinthistorymsg",
    GetBlueprintHistory,
    Who.SIGNED,
    reply="BlueprintHistory[]",
    rights=MINE,
    heavy=every,
)
async def history(node: Node, caller: Caller, request: GetBlueprintHistory) -> list[dict[str, Any]]:
    """List the changes of a blueprint, newest first."""
    colonies = set(node.directory.colonies_of(caller.id))
    for name, roster in node.directory.rosters.items():
        if roster.colony is not None and roster.colony.colonyid == caller.id:
            colonies.add(name)
    if not colonies:
        raise Denied("the caller is a member or the owner of no colony here")
    rows = await node.blueprints.history(sorted(colonies), request.blueprintid, request.limit)
    return [wire_change(row) for row in rows]
