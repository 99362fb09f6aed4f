"""The RPC rows about our own clock, for the owner: show it, and reset the latest time remembered.

`peers.highwater` says why a time is remembered.
"""

from __future__ import annotations

from federation.peers.highwater import HighWater
from federation.service.main import Federation
from node.etcd.pressure import Need
from node.rpc.calls import Caller, Calls, Who
from node.rpc.replay import ReplayGuard
from node.rpc.requests import Empty

calls: Calls[Federation] = Calls("Ours", home=lambda federation: federation.home)


@calls.row("getclockmsg", Empty, Who.OWNER, reply="{clock, latest, behind}")
async def get_clock(federation: Federation, caller: Caller, request: Empty) -> dict[str, int]:
    """Return the daemon's clock, and the latest time that it remembers."""
    return memory_view(federation.memory)


@calls.row(
    "resetclockmsg",
    Empty,
    Who.OWNER,
    reply="{clock, latest, behind, before}",
    lasting=True,
    need=Need.FREES,
)
async def reset_clock(federation: Federation, caller: Caller, request: Empty) -> dict[str, int]:
    """Reset the latest time remembered, by which messages are judged, to the clock."""
    memory = federation.memory
    before = await memory.reset()
    await ReplayGuard(federation.client, federation.context.clock.now).forget()
    federation.probes.wake()  # peers that were shut out learn of it at once
    return memory_view(memory) | {"before": round(before)}


def memory_view(memory: HighWater) -> dict[str, int]:
    """Return our clock, the latest time remembered, and the clock's lag, all in seconds."""
    return {
        "clock": round(memory.now),
        "latest": round(memory.latest),
        "behind": round(memory.behind),
    }
