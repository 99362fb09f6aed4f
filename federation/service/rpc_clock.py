"""The calls about our own clock, for the owner: what it is judged by, and how that is put right.

What is remembered, and why, is in `peers.highwater`.
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
    """The daemon's clock, and the latest time that it remembers."""
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
    """Forget a later time than the clock's, by which messages are judged."""
    memory = federation.memory
    before = await memory.reset()
    await ReplayGuard(federation.client, federation.context.clock.now).forget()
    federation.probes.wake()  # peers that were shut out learn of it at once
    return memory_view(memory) | {"before": round(before)}


def memory_view(memory: HighWater) -> dict[str, int]:
    """Our clock, the latest time remembered, and how far the clock is behind that: in seconds."""
    return {
        "clock": round(memory.now),
        "latest": round(memory.latest),
        "behind": round(memory.behind),
    }
