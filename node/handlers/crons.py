"""Calls about crons."""

from __future__ import annotations

from typing import Any

import msgspec

from node.etcd.pages import Rows, each
from node.etcd.pressure import Need
from node.host.offload import apart
from node.model.codec import wire_time
from node.model.errors import bad, missing
from node.model.types import Int64
from node.processes.spec import id_for
from node.rpc.dispatch import Call, Caller, Who, many
from node.rpc.replay import Once
from node.runtime.node import Node
from node.store.crons import Cron
from node.store.directory import name_of
from node.timers.trigger import CHECKER_PERIOD
from node.workflows.spec import readable


class NewCron(msgspec.Struct):
    """A cron as clients send it; its times and its creator are ours to say."""

    colonyname: str
    name: str = ""
    cronexpression: str = ""
    interval: Int64 = 0
    random: bool = False
    workflowspec: str = ""
    waitforprevprocessgraph: bool = False
    # What pycolonies calls the same.
    waitforprevprocessgrap: bool = False


class AddCron(msgspec.Struct):
    cron: NewCron


class CronById(msgspec.Struct):
    cronid: str


class GetCrons(msgspec.Struct):
    colonyname: str
    count: Int64 = 0


def wire_cron(cron: Cron, workflowspec: str) -> dict[str, Any]:
    """Return a cron as upstream's SDKs expect it, ready for JSON."""
    wire = {
        "cronid": cron.cronid,
        "initiatorid": cron.initiatorid,
        "initiatorname": cron.initiatorname,
        "colonyname": cron.colonyname,
        "name": cron.name,
        "cronexpression": cron.cronexpression,
        "interval": cron.interval,
        "random": cron.random,
        "nextrun": wire_time(cron.nextrun),
        "lastrun": wire_time(cron.lastrun),
        "workflowspec": workflowspec,
        "prevprocessgraphid": cron.prevprocessgraphid,
        "waitforprevprocessgraph": cron.waitforprevprocessgraph,
        "checkerperiod": CHECKER_PERIOD,
    }
    # Not upstream's, so only where there is something to say.
    return wire | ({"skipped": cron.skipped} if cron.skipped else {})


def calls(node: Node) -> list[Call[Any]]:
    """The rows of the table for crons."""
    crons = node.crons

    async def wire(cron: Cron) -> dict[str, Any]:
        return wire_cron(cron, await crons.spec(cron))

    async def locate(caller: Caller, cronid: str) -> Cron:
        """A cron in one of the caller's colonies: others' can't be told from nothing."""
        known = await node.directory.seek(caller.id, lambda colony: crons.load(colony, cronid))
        if known is not None:
            return known[0]
        raise missing(f"cronid: no cron {cronid[:80]!r} in the caller's colonies")

    async def add(caller: Caller, request: AddCron) -> dict[str, Any]:
        """Start a workflow by the clock, at the times of an expression or of an interval."""
        assert caller.member is not None
        asked = request.cron
        text, place = asked.workflowspec, "cron.workflowspec"
        workflow = await apart(len(text), readable, text, asked.colonyname, place)
        cron = Cron(
            cronid=id_for(caller.id, caller.nonce),
            colonyname=asked.colonyname,
            name=asked.name,
            initiatorid=caller.id,
            initiatorname=name_of(caller.member),
            cronexpression=asked.cronexpression,
            interval=asked.interval,
            random=asked.random,
            waitforprevprocessgraph=asked.waitforprevprocessgraph or asked.waitforprevprocessgrap,
        )
        return wire_cron(await crons.add(cron, workflow), workflow)

    async def get(caller: Caller, request: CronById) -> dict[str, Any]:
        """One cron, with its next and last run."""
        return await wire(await locate(caller, request.cronid))

    async def get_many(caller: Caller, request: GetCrons) -> Rows:
        """The crons of a colony, by name."""
        if request.count < 0:
            raise bad("count: 0 or more")
        found = await crons.listing(request.colonyname, request.count)
        return each(crons.with_specs(found), lambda pair: wire_cron(*pair))

    async def run(caller: Caller, request: CronById) -> dict[str, Any]:
        """Start the workflow of a cron now; not while the previous one runs, if it waits for it."""
        cron = await locate(caller, request.cronid)
        token = id_for(caller.id, caller.nonce)
        return await wire(await crons.run_now(cron.colonyname, cron.cronid, token))

    async def remove(caller: Caller, request: CronById) -> None:
        """Remove a cron; what it started stays."""
        cron = await locate(caller, request.cronid)
        await crons.remove(cron.colonyname, cron.cronid)

    return [
        Call(
            "addcronmsg",
            AddCron,
            Who.MEMBER,
            add,
            lambda request: request.cron.colonyname,
            Once.RESUMED,
        ),
        Call("getcronmsg", CronById, Who.SIGNED, get),
        Call(
            "getcronsmsg",
            GetCrons,
            Who.MEMBER,
            get_many,
            lambda request: request.colonyname,
            heavy=many,
        ),
        Call("runcronmsg", CronById, Who.SIGNED, run, None, Once.RESUMED),
        Call("removecronmsg", CronById, Who.SIGNED, remove, need=Need.FREES),
    ]
