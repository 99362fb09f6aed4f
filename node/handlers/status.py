"""Calls about the node itself: upstream's about the cluster, and our own for the command line."""

from __future__ import annotations

import socket
from typing import Any
from urllib.parse import urlsplit

from node.errors import denied
from node.handlers.colonies import statistics
from node.node import Node
from node.rpc import requests as req
from node.rpc.table import Call, Caller, Who
from node.version import VERSION

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
        executors = node.directory.roster(node.home).executors.values()
        silent = node.processes.handout.silent(node.home, {each.executorid for each in executors})
        states = ("waiting", "running", "successful", "failed", "cancelled")
        return {
            "version": VERSION,
            "colonyid": colony.colonyid if colony else "",
            "colonyname": node.home,
            "uptime": (node.now() - node.started) / 1e9,
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
            "processes": {state: counts[f"{state}processes"] for state in states},
            "silent": {"count": len(silent), "processids": silent[:_SILENT]},
            **node.extra_status(),
        }

    async def cluster(caller: Caller, request: req.Empty) -> dict[str, Any]:
        here = this_node(node)
        return {"nodes": [here], "leader": here}

    return [
        Call("getnodestatusmsg", req.Empty, Who.SIGNED, status),
        Call("getclustermsg", req.Empty, Who.SERVER, cluster),
    ]


def this_node(node: Node) -> dict[str, Any]:
    """This daemon as a node of upstream's cluster. A port of 0 is one that does not exist here.

    The embedded store has no ports, and nothing is relayed from daemon to daemon.
    """
    hostname = socket.gethostname()
    everywhere = node.rpc_host in ("", "0.0.0.0", "::")
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
