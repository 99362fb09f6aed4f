"""Calls about the node itself: upstream's about the cluster, and our own for the command line."""

from __future__ import annotations

import socket
from typing import Any
from urllib.parse import urlsplit

from colonyd.errors import Denied
from node.etcd.pressure import Need
from node.handlers.colonies import statistics
from node.handlers.work.processes import locate
from node.http.listeners import ANYWHERE
from node.model.types import SECOND, Process, State
from node.processes.eligibility import ExecutorPool, unschedulable
from node.rpc import requests as req
from node.rpc.calls import MINE, Caller, Calls, Who
from node.rpc.replay import ReplayGuard
from node.runtime.node import Node
from node.version import VERSION

_MOST_STUCK = 16  # reasons why processes can't be taken
_MOST_NAMED = 3  # executors that could take a process
_SILENT = 10  # processes that are named


calls: Calls[Node] = Calls("Ours")


@calls.row("getclustermsg", req.Empty, Who.SERVER, reply="{nodes, leader}", section="Server")
async def cluster(node: Node, caller: Caller, request: req.Empty) -> dict[str, Any]:
    """Show this daemon in the form of a cluster of one."""
    here = this_node(node)
    return {"nodes": [here], "leader": here}


@calls.row(
    "getnodestatusmsg",
    req.Empty,
    Who.SIGNED,
    reply="state",
    rights="member or owner of the home colony",
)
async def status(node: Node, caller: Caller, request: req.Empty) -> dict[str, Any]:
    """Show the state of the home colony's daemon."""
    colony = node.directory.colony(node.home)
    owner = colony is not None and colony.colonyid == caller.id
    if not owner and node.directory.member(node.home, caller.id) is None:
        raise Denied("only members and the owner of the home colony may ask for its state")
    etcd, pressure = await node.client.status(), node.client.pressure
    counts = await statistics(node, node.home)
    nobody = await nobody_takes(node)
    executors = node.directory.roster(node.home).executors.values()
    silent = node.assigner.silent(node.home, {each.executorid for each in executors})
    reading = node.processes.reading
    states = ("waiting", "running", "successful", "failed", "cancelled")
    return {
        "version": VERSION,
        "colonyid": colony.colonyid if colony else "",
        "colonyname": node.home,
        "uptime": (node.clock.steady() - node.begun) / 1e9,
        "rpcport": node.serving.port,
        "etcd": {
            "version": etcd.version,
            "dbsize": etcd.db_size,
            "revision": etcd.revision,
            "inuse": etcd.db_in_use,
            "quota": pressure.quota,
            "level": pressure.level,
            "why": pressure.why,
            "next": pressure.cure,
        },
        "clock": node.retiming.view(),
        "processes": {state: counts[f"{state}processes"] for state in states},
        # Not empty while the daemon has started and more may wait than is counted.
        "reading": str(reading) if reading.under_way else "",
        "paused": node.home in node.assigner.paused,
        "stuck": nobody,
        "silent": {"count": len(silent), "processids": silent[:_SILENT]},
        **node.serving.status(),
    }


@calls.row(
    "getwaitingmsg",
    req.ProcessById,
    Who.SIGNED,
    reply="{state, ahead, able, asking, why, next}",
    rights=MINE,
)
async def waiting(node: Node, caller: Caller, request: req.ProcessById) -> dict[str, Any]:
    """Show what a process waits for, which executors could take it, and why none does."""
    await node.processes.reading.demand_end()
    return standing_of(node, await locate(node, caller, request.processid))


async def nobody_takes(node: Node) -> list[dict[str, Any]]:
    """Return waiting processes of the home colony that no registered executor, and no peer by a
    route, takes.
    """
    processes, found = node.processes, list[dict[str, Any]]()
    roster = node.directory.roster(node.home)
    for each in unschedulable(processes.queue, roster, node.home, _MOST_STUCK):
        known = await processes.load(node.home, each.first)
        if known is not None and not processes.hooks.may_leave(known[0]):
            found.append(
                {
                    "executortype": each.executortype,
                    "why": each.why,
                    "next": each.next,
                    "count": each.count,
                    "more": each.more,
                    "processid": each.first,
                }
            )
    return found


def standing_of(node: Node, process: Process) -> dict[str, Any]:
    """Return what a process waits for, which executors could take it, and why none does."""
    processes, colony = node.processes, process.colonyname
    base = {"processid": process.processid, "state": process.state, "paused": False, "why": ""}
    entry = processes.queue.entries.get(process.processid)
    if process.state != State.WAITING:
        return base
    if process.peer:
        return base | {"peer": process.peer}
    if process.waitforparents or entry is None:
        return base | {"parents": process.waitforparents}
    kind, pool = entry.executortype, ExecutorPool.of(node.directory.roster(colony))
    why, next_step = pool.trouble(kind, entry.waiting)
    if why and (route := processes.hooks.may_leave(process)):
        return base | {"route": route}
    able, asking = pool.able(kind, entry.waiting), node.assigner.asking(entry)
    if asking and not node.assigner.suits(entry):
        why = f"{asking} executors ask for work, and none has the CPU or memory it wants"
        next_step = "`colony process show` tells what it wants"
    return base | {
        "paused": colony in node.assigner.paused,
        "why": why,
        "next": next_step,
        "ahead": processes.queue.ahead(entry),
        "executors": able[:_MOST_NAMED],
        "able": len(able),
        "asking": asking,
    }


def this_node(node: Node) -> dict[str, Any]:
    """Return this daemon as a node of upstream's cluster. A port of 0 does not exist here.

    The embedded store has no ports, and nothing is relayed from daemon to daemon.
    """
    hostname = socket.gethostname()
    everywhere = node.serving.host in (*ANYWHERE, "0.0.0.0", "::")
    endpoint = node.serving.store
    store = urlsplit(endpoint if "//" in endpoint else f"//{endpoint}")
    try:
        port = store.port or 0
    except ValueError:  # a unix socket
        port = 0
    return {
        "name": hostname,
        "host": hostname if everywhere else node.serving.host,
        "port": port,
        "peerport": 0,
        "relayport": 0,
        "apiport": node.serving.port,
    }


# For a daemon without federation, which has calls of its own.
clock_calls: Calls[Node] = Calls("Ours", home=lambda node: node.home)


@clock_calls.row("getclockmsg", req.Empty, Who.OWNER, reply="{clock, latest, behind}")
async def get_clock(node: Node, caller: Caller, request: req.Empty) -> dict[str, int]:
    """Show the daemon's clock, and the latest time that it remembers."""
    return await _clock_view(node, ReplayGuard(node.client, node.clock.now))


@clock_calls.row(
    "resetclockmsg",
    req.Empty,
    Who.OWNER,
    reply="{clock, latest, behind, before}",
    lasting=True,
    need=Need.FREES,
)
async def reset_clock(node: Node, caller: Caller, request: req.Empty) -> dict[str, int]:
    """Forget a remembered time later than the clock's, by which requests are judged."""
    replays = ReplayGuard(node.client, node.clock.now)
    before = (await _clock_view(node, replays))["latest"]
    await replays.forget()
    return await _clock_view(node, replays) | {"before": before}


async def _clock_view(node: Node, replays: ReplayGuard) -> dict[str, int]:
    clock, latest = round(node.clock.now() / SECOND), await replays.latest()
    return {"clock": clock, "latest": max(clock, latest), "behind": max(0, latest - clock)}
