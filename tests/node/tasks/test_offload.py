"""Large workflows are looked at without holding the event loop."""

from __future__ import annotations

import gc
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from colonyd.errors import RpcError
from node.model import graph as graphs
from node.tasks import offload as module
from node.tasks.offload import NODE, apart
from node.timers.trigger import check_workflow
from node.workflows.spec import readable
from tests.node.rpc.support import Steps

# 4,000 nodes that wait for twenty each.
TEXT = json.dumps(
    [
        {
            "nodename": f"n{place}",
            "funcname": "f",
            "conditions": {
                "executortype": "t",
                "dependencies": [f"n{max(0, place - up)}" for up in range(1, 21) if place],
            },
        }
        for place in range(4_000)
    ]
)


async def _checked() -> Any:
    return await apart(len(TEXT), check_workflow, TEXT, "dev", "cron.workflowspec")


async def _readable() -> Any:
    return await apart(len(TEXT), readable, TEXT, "dev", "cron.workflowspec")


async def _planned() -> Any:
    specs = await _checked()
    return await apart(NODE * len(specs), graphs.plan, specs)


async def longest(work: Callable[[], Awaitable[Any]]) -> float:
    """Seconds of the CPU that the longest turn of the loop took meanwhile."""
    steps = Steps()
    gc.disable()  # a test run has far more for the collector to look at than a daemon
    trio.lowlevel.add_instrument(steps)
    try:
        await trio.lowlevel.checkpoint()
        await work()
        await trio.lowlevel.checkpoint()  # a turn counts when it is over
    finally:
        trio.lowlevel.remove_instrument(steps)
        gc.enable()
    return steps.longest


@pytest.mark.parametrize("work", [_checked, _readable, _planned])
async def test_a_large_workflow_holds_no_loop(
    work: Callable[[], Awaitable[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty milliseconds are meant; in one piece it would be several times as many."""
    assert await longest(work) < 0.05
    monkeypatch.setattr(module, "_SMALL", 1 << 30)
    assert await longest(work) > 0.05


async def test_what_is_wrong_is_told_as_ever() -> None:
    wrong = TEXT.replace('"n17"', '"n18"', 1)
    with pytest.raises(RpcError, match=r"used twice|no node") as refused:
        await apart(len(wrong), check_workflow, wrong, "dev", "cron.workflowspec")
    assert refused.value.status == 400
