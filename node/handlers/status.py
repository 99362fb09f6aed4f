"""Calls about the node itself: upstream's about the cluster, and our own for the command line."""

from __future__ import annotations

import socket
from typing import Any
from urllib.parse import urlsplit

from node.etcd.pressure import Need
from node.handlers.colonies import statistics
from node.handlers.processes import locate
from node.http.listeners import ANYWHERE
from node.model.errors import denied
from node.model.types import SECOND, Process, State
from node.processes.eligibility import Bench, stuck
from node.rpc import requests as req
from node.rpc.dispatch import Call, Caller, Who
from node.rpc.replay import Replays
from node.runtime.node import Node
from node.version import VERSION

_MOST_STUCK = 16  # reasons why something waits in vain
_MOST_NAMED = 3  # executors that could take a process
_SILENT = 10  # processes that are named


def calls(node: Node) -> list[Call[Any]]:
    """The rows of the table for the node's state."""

    async def status(caller: Caller, request: req.Empty) -> dict[str, Any]:
        colony = node.directory.colony(node.home)
        owner = colony is not None and colony.colonyid == caller.id
        if not owner and node.directory.member(node.home, caller.id) is None:
            raise denied("only members and the owner of the home colony may ask for its state")
        etcd, pressure = await node.client.status(), node.client.pressure
        counts = await statistics(node, node.home)
        nobody = await nobody_takes(node)
        executors = node.directory.roster(node.home).executors.values()
        silent = node.processes.handout.silent(node.home, {each.executorid for each in executors})
        states = ("waiting", "running", "successful", "failed", "cancelled")
        return {
            "version": VERSION,
            "colonyid": colony.colonyid if colony else "",
            "colonyname": node.home,
            "uptime": (node.processes.clock.steady() - node.begun) / 1e9,
            "rpcport": node.rpc_port,
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
            "paused": node.home in node.processes.handout.paused,
            "stuck": nobody,
            "silent": {"count": len(silent), "processids": silent[:_SILENT]},
            **node.extra_status(),
        }

    async def waiting(caller: Caller, request: req.ProcessById) -> dict[str, Any]:
        return standing_of(node, await locate(node, caller, request.processid))

    async def cluster(caller: Caller, request: req.Empty) -> dict[str, Any]:
        here = this_node(node)
        return {"nodes": [here], "leader": here}

    return [
        Call("getnodestatusmsg", req.Empty, Who.SIGNED, status),
        Call("getwaitingmsg", req.ProcessById, Who.SIGNED, waiting),
        Call("getclustermsg", req.Empty, Who.SERVER, cluster),
    ]


async def nobody_takes(node: Node) -> list[dict[str, Any]]:
    """What waits in the home colony that no registered executor, and no peer by a route, takes."""
    processes, found = node.processes, list[dict[str, Any]]()
    roster = node.directory.roster(node.home)
    for each in stuck(processes.queue, roster, node.home, _MOST_STUCK):
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
    """What a process waits for: who could take it, and why nobody does."""
    processes, colony = node.processes, process.colonyname
    base = {"processid": process.processid, "state": process.state, "paused": False, "why": ""}
    entry = processes.queue.entries.get(process.processid)
    if process.state != State.WAITING:
        return base
    if process.peer:
        return base | {"peer": process.peer}
    if process.waitforparents or entry is None:
        return base | {"parents": process.waitforparents}
    kind, bench = entry.executortype, Bench.of(node.directory.roster(colony))
    why, next_step = bench.trouble(kind, entry.waiting)
    if why and (route := processes.hooks.may_leave(process)):
        return base | {"route": route}
    able, asking = bench.able(kind, entry.waiting), processes.handout.asking(entry)
    if asking and not processes.handout.suits(entry):
        why = f"{asking} executors ask for work, and none has the CPU or memory it wants"
        next_step = "`colony process show` tells what it wants"
    return base | {
        "paused": colony in processes.handout.paused,
        "why": why,
        "next": next_step,
        "ahead": processes.queue.ahead(entry),
        "executors": able[:_MOST_NAMED],
        "able": len(able),
        "asking": asking,
    }


def this_node(node: Node) -> dict[str, Any]:
    """This daemon as a node of upstream's cluster. A port of 0 is one that does not exist here.

    The embedded store has no ports, and nothing is relayed from daemon to daemon.
    """
    hostname = socket.gethostname()
    everywhere = node.rpc_host in (*ANYWHERE, "0.0.0.0", "::")
    endpoint = node.etcd_endpoint
    store = urlsplit(endpoint if "//" in endpoint else f"//{endpoint}")
    try:
        port = store.port or 0
    except ValueError:  # a unix socket
        port = 0
    return {
        "name": hostname,
        "host": hostname if everywhere else node.rpc_host,
        "port": port,
        "peerport": 0,
        "relayport": 0,
        "apiport": node.rpc_port,
    }


def clock_calls(node: Node) -> list[Call[Any]]:
    """The rows about the clock, for a daemon without peers: with them, federation has its own."""
    replays = Replays(node.client, node.now)

    def home(_: object) -> str:
        return node.home

    async def view() -> dict[str, int]:
        clock, latest = round(node.now() / SECOND), await replays.latest()
        return {"clock": clock, "latest": max(clock, latest), "behind": max(0, latest - clock)}

    async def get_clock(caller: Caller, request: req.Empty) -> dict[str, int]:
        return await view()

    async def reset_clock(caller: Caller, request: req.Empty) -> dict[str, int]:
        before = (await view())["latest"]
        await replays.forget()
        return await view() | {"before": before}

    return [
        Call("getclockmsg", req.Empty, Who.OWNER, get_clock, home),
        Call(
            "resetclockmsg", req.Empty, Who.OWNER, reset_clock, home, lasting=True, need=Need.FREES
        ),
    ]
