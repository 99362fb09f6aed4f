"""Our own call about the node itself, for the command line."""

from __future__ import annotations

from typing import Any

from node.errors import denied
from node.handlers.colonies import statistics
from node.node import Node
from node.rpc import requests as req
from node.rpc.table import Call, Caller, Who
from node.version import VERSION


def calls(node: Node) -> list[Call[Any]]:
    """The rows of the table for the node's state."""

    async def status(caller: Caller, request: req.Empty) -> dict[str, Any]:
        colony = node.directory.colony(node.home)
        owner = colony is not None and colony.colonyid == caller.id
        if not owner and node.directory.member(node.home, caller.id) is None:
            raise denied("only members and the owner of the home colony may ask for its state")
        etcd = await node.client.status()
        counts = await statistics(node, node.home)
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
            },
            "processes": {state: counts[f"{state}processes"] for state in states},
            **node.extra_status(),
        }

    return [Call("getnodestatusmsg", req.Empty, Who.SIGNED, status)]
