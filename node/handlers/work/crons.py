"""Calls about crons."""

from __future__ import annotations

from typing import Any

import msgspec

from colonyd.errors import Invalid
from node.etcd.pages import Rows, each
from node.etcd.pressure import Need
from node.model.codec import wire_time
from node.model.types import Int64
from node.processes.spec import id_for
from node.rpc.calls import MINE, Caller, Calls, Who, every
from node.rpc.replay import Once
from node.runtime.node import Node
from node.store.crons import Cron
from node.store.directory import name_of
from node.tasks.offload import apart
from node.timers.trigger import CHECKER_PERIOD
from node.workflows.spec import readable


class NewCron(msgspec.Struct):
    """A cron as clients send it; its times and its creator are set here."""

    colonyname: str
    name: str = ""
    cronexpression: str = ""
    interval: Int64 = 0
    random: bool = False
    workflowspec: str = ""
    waitforprevprocessgraph: bool = False
    # pycolonies' names of the same fields.
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
    # Not upstream's, so only where it has a value.
    return wire | ({"skipped": cron.skipped} if cron.skipped else {})


calls: Calls[Node] = Calls("Crons")


async def wire(node: Node, cron: Cron) -> dict[str, Any]:
    return wire_cron(cron, await node.crons.spec(cron))


async def locate(node: Node, caller: Caller, cronid: str) -> Cron:
    """Return a cron in one of the caller's colonies; one of another colony is not found."""
    known = await node.directory.seek(
        caller.id, lambda colony: node.crons.load(colony, cronid), "cronid", cronid
    )
    return known[0]


@calls.row(
    "addcronmsg", AddCron, Who.MEMBER, reply="Cron", colony="cron.colonyname", once=Once.RESUMED
)
async def add(node: Node, caller: Caller, request: AddCron) -> dict[str, Any]:
    """Start a workflow by the clock.

    It starts at the times of an expression or of an interval.
    """
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
    return wire_cron(await node.crons.add(cron, workflow), workflow)


@calls.row("getcronmsg", CronById, Who.SIGNED, reply="Cron", rights=MINE)
async def get(node: Node, caller: Caller, request: CronById) -> dict[str, Any]:
    """Show a cron by id."""
    return await wire(node, await locate(node, caller, request.cronid))


@calls.row("getcronsmsg", GetCrons, Who.MEMBER, reply="Cron[]", heavy=every)
async def get_many(node: Node, caller: Caller, request: GetCrons) -> Rows:
    """List the crons."""
    if request.count < 0:
        raise Invalid("count: 0 or more")
    found = node.crons.listing(request.colonyname, request.count)
    return each(node.crons.with_specs(found), lambda pair: wire_cron(*pair))


@calls.row("runcronmsg", CronById, Who.SIGNED, reply="Cron", rights=MINE, once=Once.RESUMED)
async def run(node: Node, caller: Caller, request: CronById) -> dict[str, Any]:
    """Start a cron's workflow now.

    Not while the previous one runs, if the cron waits for it.
    """
    cron = await locate(node, caller, request.cronid)
    token = id_for(caller.id, caller.nonce)
    return await wire(node, await node.crons.run_now(cron.colonyname, cron.cronid, token))


@calls.row("removecronmsg", CronById, Who.SIGNED, rights=MINE, need=Need.FREES)
async def remove(node: Node, caller: Caller, request: CronById) -> None:
    """Remove a cron.

    Workflows that it started stay.
    """
    cron = await locate(node, caller, request.cronid)
    await node.crons.remove(cron.colonyname, cron.cronid)
