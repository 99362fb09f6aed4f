"""Reconciliation: the processes and crons that join the transaction of a changed blueprint.

`blueprints.service` decides when something changes, `blueprints.rules` has the spec of a process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from colonyd.errors import NotFound
from node.blueprints.rules import (
    Initiator,
    call,
    call_kwargs,
    colony_initiator,
    cron_name,
    reconcile_call,
)
from node.etcd.batch import read
from node.etcd.client import EtcdClient
from node.etcd.txn import Present
from node.model.codec import unpack, whole_spec
from node.model.types import Colony, FunctionSpec, Process
from node.processes.service import Processes
from node.processes.spec import build_process
from node.store import blueprints as store
from node.store import crons as cron_store
from node.store import keys
from node.store.blueprints import Blueprint, Definition, TxnBuilder
from node.store.crons import Cron
from node.store.work import processes as process_store
from node.timers.crons import Crons, next_run

# Seconds between two reconciliations of a kind that names no interval, as upstream.
INTERVAL = 60
_MAX_CRON_NAME = 255

# Brings memory in step with the store; gets the revision of the transaction.
Followup = Callable[[int], None]


@dataclass
class Reconciliation:
    """Makes the processes and crons of blueprints. `now` gives Unix nanoseconds."""

    client: EtcdClient
    processes: Processes
    crons: Crons
    now: Callable[[], int]

    def generation(
        self, blueprint: Blueprint, definition: Definition, initiator: Initiator
    ) -> Process | None:
        """Return the process that reconciles a generation, if the kind has a handler.

        Raises TooMany.
        """
        handler = definition.handler
        if not handler.executortype or not handler.functionname:
            return None
        meta = blueprint.metadata
        spec = reconcile_call(definition, meta.locationname, call_kwargs(blueprint))
        processid = store.derived(blueprint, str(meta.generation))
        return self.wanted(blueprint, spec, initiator, processid)

    def wanted(
        self, blueprint: Blueprint, spec: FunctionSpec, initiator: Initiator, processid: str
    ) -> Process:
        """Return a process that a member asks for.

        Raises TooMany when the member has too many open.
        """
        colony = blueprint.metadata.colonyname
        self.processes.quotas.require_processes(colony, initiator.name)
        return self.process(blueprint, spec, initiator, processid)

    def process(
        self, blueprint: Blueprint, spec: FunctionSpec, initiator: Initiator, processid: str
    ) -> Process:
        """Return a process that calls a reconciler."""
        return build_process(
            spec,
            processid=processid,
            initiatorid=initiator.id,
            initiatorname=initiator.name,
            colonyname=blueprint.metadata.colonyname,
            now=self.now(),
        )

    def submit(self, draft: TxnBuilder, process: Process) -> Followup:
        """Add the submission of a process to the draft."""
        draft.join(process_store.submit(process, b"").txn)
        return lambda revision: self.processes.committed_submit(process, revision)

    async def start_cron(
        self, draft: TxnBuilder, definition: Definition, location: str
    ) -> list[Followup]:
        """Have a kind reconciled from time to time at a location, unless it is already.

        The colony itself is the initiator: the member that adds the first blueprint may leave.
        """
        handler, colony = definition.handler, definition.metadata.colonyname
        if not handler.executortype or not handler.functionname:
            return []
        kind = definition.names.kind
        cronid, name = store.cron_id(colony, kind, location), cron_name(kind, location)
        own = cron_store.key(colony, cronid)
        there, taken, owner = await read(
            self.client, own, cron_store.name_key(colony, name), keys.colony(colony)
        )
        if there is not None:
            draft.compare.append(Present(own))
            return []
        if owner is None:
            raise NotFound(f"colony {colony!r} is not hosted here")
        if taken is not None or len(name) > _MAX_CRON_NAME:
            name = f"{name[: _MAX_CRON_NAME - 9]}-{cronid[:8]}"
        identity = colony_initiator(unpack(owner.value, Colony))
        cron = Cron(
            cronid=cronid,
            colonyname=colony,
            name=name,
            initiatorid=identity.id,
            initiatorname=identity.name,
            interval=handler.reconcileinterval or INTERVAL,
            waitforprevprocessgraph=True,
        )
        nextrun, window = next_run(cron, self.now(), self.crons.local, self.crons.dice)
        cron = msgspec.structs.replace(cron, nextrun=nextrun, window=window)
        spec = reconcile_call(definition, location, {"kind": kind})
        workflow = {"colonyname": colony, "functionspecs": [whole_spec(spec)]}
        draft.join(cron_store.add(cron, msgspec.json.encode(workflow).decode()))
        return [lambda revision: self.crons.index.learn(own, cron, revision)]

    async def stop_cron(self, draft: TxnBuilder, leaving: Blueprint) -> list[Followup]:
        """End the cron of a kind at a location with the last blueprint there.

        For a draft that compares the kind's key, as read before.
        """
        meta, kind = leaving.metadata, leaving.kind
        there = store.place(meta.colonyname, kind, meta.locationname)
        if (await self.client.range(there, limit=2, keys_only=True)).count > 1:
            return []
        cronid = store.cron_id(meta.colonyname, kind, meta.locationname)
        own = cron_store.key(meta.colonyname, cronid)
        found = await self.client.get(own)
        if found is None:
            return []
        draft.join(cron_store.remove(unpack(found.value, Cron)))
        return [lambda revision: self.crons.index.apply(own, None, revision)]

    def cleanup(
        self, blueprint: Blueprint, definition: Definition, initiator: Initiator
    ) -> Process | None:
        """Return the process that cleans up after a removed blueprint."""
        if not definition.handler.executortype:
            return None
        location = blueprint.metadata.locationname
        spec = call(definition, "cleanup", "cleanup", location, call_kwargs(blueprint))
        return self.process(blueprint, spec, initiator, store.derived(blueprint, "cleanup"))
