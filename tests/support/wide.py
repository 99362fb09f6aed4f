"""Daemons in a DHT of their own: its first node, their settings, and how they are reached."""

from __future__ import annotations

from typing import Any

import trio

from federation.dht.node import DhtNode, open_node
from tests.support.daemons import free_port, until
from tests.support.sides import Side


async def stays_open(
    port: int, *, task_status: trio.TaskStatus[DhtNode] = trio.TASK_STATUS_IGNORED
) -> None:
    """A node that only answers: the first of the DHT."""
    async with open_node(["127.0.0.1"], port, [f"127.0.0.1:{port}"]) as node:
        task_status.started(node)
        await trio.sleep_forever()


def wide(host: str, port: int) -> dict[str, str]:
    """The settings of a colony at `host` in the DHT of the node at `port`."""
    return {
        "COLONYD_FEDERATION__HOST": host,
        "COLONYD_FEDERATION__DISCOVERY": "false",
        "COLONYD_FEDERATION__TRUST": "lan",
        "COLONYD_FEDERATION__GLOBAL": "true",
        "COLONYD_FEDERATION__BOOTSTRAP": f"127.0.0.1:{port}",
        "COLONYD_FEDERATION__DHT_PORT": str(free_port()),
    }


async def reach_of(side: Side) -> Any:
    return (await side.call("getnodestatusmsg"))["reach"]


async def verdict(side: Side, wanted: str, seconds: float = 60) -> Any:
    """The status, once the verdict is this."""

    async def found() -> Any:
        told = await reach_of(side)
        return told if told["verdict"] == wanted else None

    return await until(seconds, found)
