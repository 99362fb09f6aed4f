"""Blueprints: wanted states that reconcilers bring about, told of each change exactly once.

A call is one transaction, with the processes and crons that follow from it. Definitions of kinds
are in `definitions`, rules in `blueprints.rules`; the handlers check rights.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

import msgspec
import trio

from colonyd.errors import Conflict, Invalid, NotFound, RpcError
from node.blueprints.reconcile import Followup, Reconciliation
from node.blueprints.rules import (
    BlueprintRequest,
    Initiator,
    call_kwargs,
    check_size,
    check_wanted,
    reconcile_call,
    revise,
)
from node.etcd.batch import read
from node.etcd.client import EtcdClient, KeyValue
from node.etcd.pages import Pages, below, values
from node.members.locations import Locations
from node.model.codec import unpack
from node.model.ids import new_id
from node.model.types import Process
from node.processes.service import Processes
from node.store import blueprints as store
from node.store.blueprints import Blueprint, BlueprintChange, Definition, Metadata, TxnBuilder
from node.store.update import update

# Bytes of one answer about history; the newest changes that fit.
_HISTORY_BYTES = 16 * 1024 * 1024
# Tries of one change, each with fresh values after a lost race. More mean that something is wrong.
_TRIES = 16
_PAGE = 16


@dataclass
class Blueprints:
    """The blueprints of a node. `now` gives Unix nanoseconds."""

    client: EtcdClient
    processes: Processes
    follow: Reconciliation
    locations: Locations
    now: Callable[[], int]
    _turns: WeakValueDictionary[tuple[str, ...], trio.Lock] = field(
        default_factory=WeakValueDictionary
    )

    @asynccontextmanager
    async def _turn(self, *place: str) -> AsyncIterator[None]:
        """Wait for the changes of this daemon before; the compare keeps changes right, this lets
        each win once.
        """
        lock = self._turns.get(place)
        if lock is None:
            lock = self._turns[place] = trio.Lock()
        async with lock:
            yield

    async def _commit(self, draft: TxnBuilder, after: Sequence[Followup]) -> bool:
        result = await self.client.commit(draft.txn)
        if result.succeeded:
            for follow in after:
                follow(result.revision)
        return result.succeeded

    # -- reading -------------------------------------------------------------------------

    async def get(self, colony: str, name: str) -> Blueprint:
        """Return the blueprint with a name. Raises NotFound."""
        return (await self._load(colony, name))[0]

    async def _load(self, colony: str, name: str) -> tuple[Blueprint, int]:
        found = await self.client.get(store.blueprint(colony, name))
        if found is None:
            raise _unknown(colony, name)
        return unpack(found.value, Blueprint), found.mod_revision

    async def listing(self, colony: str, kind: str, location: str) -> Pages[Blueprint]:
        """Return blueprints by name: all of a colony, or of one kind, or of a kind at one location.

        In pages: each may be large.
        """
        prefix = store.blueprints(colony)
        if kind:
            prefix = store.place(colony, kind, location) if location else store.places(colony, kind)
        wanted = [
            store.place_owner(kv.key)
            async for page in below(self.client, prefix, keys_only=True)
            for kv in page
        ]
        names = [store.blueprint(colony, name) for name in sorted(wanted)]
        async with aclosing(values(self.client, names)) as pages:
            async for page in pages:
                yield [unpack(kv.value, Blueprint) for kv in page]

    async def history(
        self, colonies: Sequence[str], blueprintid: str, limit: int
    ) -> list[BlueprintChange]:
        """Return changes of a blueprint of one of these colonies, newest first; limit 0: all that
        fit.

        Raises NotFound.
        """
        for colony in colonies:
            name = await self.client.get(store.blueprint_id(colony, blueprintid))
            if name is not None:
                found = await self.client.get(store.blueprint(colony, name.value.decode()))
                if found is not None:
                    return await self._rows(unpack(found.value, Blueprint), limit)
        raise NotFound("blueprintid: no blueprint of the caller's colonies has this id")

    async def _rows(self, blueprint: Blueprint, limit: int) -> list[BlueprintChange]:
        prefix, start, room = store.history(blueprint), None, _HISTORY_BYTES
        rows: list[BlueprintChange] = []
        while True:
            page = await self.client.range(prefix, limit=_PAGE, start=start)
            for kv in page.items:
                room -= len(kv.value)
                if room < 0 or 0 < limit <= len(rows):
                    return rows
                rows.append(unpack(kv.value, BlueprintChange))
            if not page.more:
                return rows
            start = page.items[-1].key + "\0"

    # -- changing ------------------------------------------------------------------------

    async def add(self, wanted: BlueprintRequest, initiator: Initiator) -> Blueprint:
        """Store a new blueprint and submit its first reconciliation.

        Raises Invalid for a bad value or one that breaks the schema, Conflict if the name is taken.
        """
        colony = wanted.colony
        for _ in range(_TRIES):
            found, there, taken = await read(
                self.client,
                store.definition(colony, wanted.kind),
                store.blueprint(colony, wanted.name),
                store.blueprint_id(colony, wanted.blueprintid),
            )
            definition = _defined(found, wanted)
            check_wanted(wanted, definition)
            if there is None:
                count = await self.client.count(store.blueprints(colony))
                self.processes.quotas.require(
                    "colony_blueprints", f"colony {colony!r}", count, "blueprints"
                )
            if there is not None:
                known = unpack(there.value, Blueprint)
                if wanted.repeatable and known.blueprintid == wanted.blueprintid:
                    return known
                raise Conflict(f"blueprint.metadata.name: {wanted.name!r} exists already")
            if taken is not None:
                raise Conflict("blueprint.blueprintid: another blueprint of this colony has it")
            if wanted.location:
                # Not in the transaction: a location that nothing refers to does no harm.
                await self.locations.ensure(colony, wanted.location)
            now = self.now()
            blueprint = Blueprint(
                blueprintid=wanted.blueprintid or new_id(),
                kind=wanted.kind,
                seed=new_id(),
                spec=wanted.spec,
                status=wanted.status or {},
                metadata=Metadata(
                    name=wanted.name,
                    colonyname=colony,
                    locationname=wanted.location,
                    labels=wanted.labels,
                    annotations=wanted.annotations,
                    generation=wanted.generation or 1,
                    createdat=now,
                    updatedat=now,
                ),
            )
            process = self.follow.generation(blueprint, definition, initiator)
            blueprint = _reconciled(blueprint, process)
            check_size(blueprint, "blueprint")
            assert found is not None
            draft = store.add(blueprint, found.mod_revision)
            after = [self.follow.submit(draft, process)] if process is not None else []
            after += await self.follow.start_cron(draft, definition, wanted.location)
            draft.ops += store.record(blueprint, _row(blueprint, initiator, "create"))
            if await self._commit(draft, after):
                return blueprint
        raise _too_fast(wanted.name)

    async def update(
        self, wanted: BlueprintRequest, initiator: Initiator, *, force: bool
    ) -> Blueprint:
        """Give a blueprint another spec, metadata or status; reconcile a new generation.

        Raises Invalid, or NotFound when there is no such blueprint.
        """
        colony, name = wanted.colony, wanted.name
        async with self._turn(colony, name):
            for _ in range(_TRIES):
                there, found, touched = await read(
                    self.client,
                    store.blueprint(colony, name),
                    store.definition(colony, wanted.kind),
                    store.kind(colony, wanted.kind),
                )
                if there is None:
                    raise _unknown(colony, name)
                known = unpack(there.value, Blueprint)
                if wanted.kind != known.kind:
                    raise Invalid(
                        f"blueprint.kind: {name!r} is of kind {known.kind!r}, and stays so;"
                        " remove it and add another"
                    )
                definition = _defined(found, wanted)
                check_wanted(wanted, definition)
                blueprint = revise(known, wanted, force=force, now=self.now())
                bump = blueprint.metadata.generation > known.metadata.generation
                process = None
                if bump:
                    process = self.follow.generation(blueprint, definition, initiator)
                    blueprint = _reconciled(blueprint, process)
                check_size(blueprint, "blueprint")
                draft = store.write(blueprint, there.mod_revision)
                after = [self.follow.submit(draft, process)] if process is not None else []
                if bump:
                    draft.ops += store.record(blueprint, _row(blueprint, initiator, "update"))
                if blueprint.metadata.locationname.lower() != known.metadata.locationname.lower():
                    assert touched is not None
                    after += await self._move(draft, known, blueprint, definition, touched)
                if await self._commit(draft, after):
                    return blueprint
        raise _too_fast(name)

    async def _move(
        self,
        draft: TxnBuilder,
        before: Blueprint,
        after: Blueprint,
        definition: Definition,
        touched: KeyValue,
    ) -> list[Followup]:
        """Change the crons at the old and the new location of a blueprint."""
        location = after.metadata.locationname
        if location:
            await self.locations.ensure(after.metadata.colonyname, location)
        moved = store.move(before, after, touched.mod_revision)
        draft.join(moved.txn)
        return [
            *await self.follow.start_cron(draft, definition, location),
            *await self.follow.stop_cron(draft, before),
        ]

    async def set_status(self, colony: str, name: str, status: dict[str, Any]) -> None:
        """Replace the whole status. Raises Invalid for one that is too large, or NotFound."""

        def changed(known: Blueprint | None) -> Blueprint:
            if known is None:
                raise _unknown(colony, name)
            updated = max(self.now(), known.metadata.updatedat)
            metadata = msgspec.structs.replace(known.metadata, updatedat=updated)
            blueprint = msgspec.structs.replace(known, status=status, metadata=metadata)
            check_size(blueprint, "status")
            return blueprint

        async with self._turn(colony, name):
            key, what = store.blueprint(colony, name), f"name: {name[:80]!r}"
            await update(self.client, key, Blueprint, changed, what=what, tries=_TRIES)

    async def reconcile(
        self, colony: str, name: str, initiator: Initiator, *, force: bool, processid: str
    ) -> Process:
        """Submit a reconciliation under `processid`; with `force` as a new generation.

        A repeat with the same id returns the process of the first. Raises Invalid if the
        kind has no handler, or NotFound.
        """
        async with self._turn(colony, name):
            for _ in range(_TRIES):
                first = await self.processes.load(colony, processid)
                if first is not None:
                    return first[0]
                known, revision = await self._load(colony, name)
                found = await self.client.get(store.definition(colony, known.kind))
                if found is None:
                    continue
                definition = unpack(found.value, Definition)
                if not definition.handler.executortype:
                    raise Invalid("name: the blueprint's kind has no handler with an executor type")
                if not definition.handler.functionname:
                    raise Invalid("name: the blueprint's kind has no handler with a function name")
                meta, now = known.metadata, self.now()
                blueprint = msgspec.structs.replace(
                    known,
                    metadata=msgspec.structs.replace(
                        meta,
                        generation=meta.generation + force,
                        updatedat=max(now, meta.updatedat) if force else meta.updatedat,
                    ),
                )
                kwargs = call_kwargs(blueprint) | ({"force": True} if force else {})
                spec = reconcile_call(definition, meta.locationname, kwargs)
                process = self.follow.wanted(blueprint, spec, initiator, processid)
                blueprint = _reconciled(blueprint, process)
                check_size(blueprint, "blueprint")
                draft = store.write(blueprint, revision)
                if force:
                    draft.ops += store.record(blueprint, _row(blueprint, initiator, "update"))
                if await self._commit(draft, [self.follow.submit(draft, process)]):
                    return process
        raise _too_fast(name)

    async def remove(self, colony: str, name: str, initiator: Initiator) -> None:
        """Remove a blueprint, and have its reconciler clean up. Raises NotFound."""
        async with self._turn(colony):
            for _ in range(_TRIES):
                known, revision = await self._load(colony, name)
                touched, found = await read(
                    self.client,
                    store.kind(colony, known.kind),
                    store.definition(colony, known.kind),
                )
                if touched is None or found is None:
                    continue
                definition = unpack(found.value, Definition)
                draft = store.remove(known, revision, touched.mod_revision)
                after = await self.follow.stop_cron(draft, known)
                process = self.follow.cleanup(known, definition, initiator)
                if process is not None:
                    after.append(self.follow.submit(draft, process))
                if await self._commit(draft, after):
                    return
        raise _too_fast(name)


def _row(blueprint: Blueprint, initiator: Initiator, changetype: str) -> BlueprintChange:
    meta = blueprint.metadata
    return BlueprintChange(
        historyid=str(uuid.uuid4()),
        blueprintid=blueprint.blueprintid,
        kind=blueprint.kind,
        colonyname=meta.colonyname,
        name=meta.name,
        generation=meta.generation,
        timestamp=meta.updatedat,
        changedby=initiator.id,
        changetype=changetype,
        spec=blueprint.spec,
        status=blueprint.status,
    )


def _reconciled(blueprint: Blueprint, process: Process | None) -> Blueprint:
    """Return the blueprint with its last reconciliation noted."""
    if process is None:
        return blueprint
    meta = msgspec.structs.replace(
        blueprint.metadata, reconciledby=process.processid, reconciledat=process.submissiontime
    )
    return msgspec.structs.replace(blueprint, metadata=meta)


def _defined(found: KeyValue | None, wanted: BlueprintRequest) -> Definition:
    if not wanted.kind:
        raise Invalid("blueprint.kind: must not be empty")
    if found is None:
        raise Invalid(
            f"blueprint.kind: colony {wanted.colony} has no definition of kind"
            f" {wanted.kind[:80]!r}; its owner adds one first"
        )
    return unpack(found.value, Definition)


def _unknown(colony: str, name: str) -> RpcError:
    return NotFound(f"name: no blueprint {name[:80]!r} in colony {colony}")


def _too_fast(name: str) -> RpcError:
    return Conflict(f"name: {name[:80]!r} changes too fast; try again")
