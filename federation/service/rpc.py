"""The RPC rows that federation adds to the node's."""

from __future__ import annotations

from typing import Any

from federation.service import rpc_clock, rpc_forwards, rpc_peers, rpc_routes
from federation.service.main import Federation
from node.rpc.calls import Call

HANDLERS = (rpc_peers, rpc_clock, rpc_forwards, rpc_routes)


def calls(federation: Federation) -> list[Call[Any]]:
    """Return the rows, with their handlers bound to `federation`."""
    return [call for module in HANDLERS for call in module.calls.of(federation)]
