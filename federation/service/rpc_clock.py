"""The calls about our own clock, for the owner: what it is judged by, and how that is put right.

What is remembered, and why, is in `peers.highwater`.
"""

from __future__ import annotations

from typing import Any

from federation.peers.highwater import HighWater
from federation.service.main import Federation
from node.etcd.pressure import Need
from node.rpc.dispatch import Call, Caller, Who
from node.rpc.replay import Replays
from node.rpc.requests import Empty

__all__ = ["memory_view", "rows"]


def rows(federation: Federation) -> list[Call[Any]]:
    """The rows of the table; the owner of the home colony decides."""

    def home(_: object) -> str:
        return federation.home

    async def get_clock(caller: Caller, request: Empty) -> dict[str, int]:
        return memory_view(federation.upkeep.memory)

    async def reset_clock(caller: Caller, request: Empty) -> dict[str, int]:
        memory = federation.upkeep.memory
        before = await memory.reset()
        await Replays(federation.client, federation.now).forget()
        federation.greeter.greet_all()  # peers that were shut out learn of it at once
        return memory_view(memory) | {"before": round(before)}

    return [
        Call("getclockmsg", Empty, Who.OWNER, get_clock, home),
        Call(
            "resetclockmsg",
            Empty,
            Who.OWNER,
            reset_clock,
            home,
            lasting=True,
            need=Need.FREES,
        ),
    ]


def memory_view(memory: HighWater) -> dict[str, int]:
    """Our clock, the latest time remembered, and how far the clock is behind that: in seconds."""
    return {
        "clock": round(memory.clock),
        "latest": round(memory.latest),
        "behind": round(memory.behind),
    }
