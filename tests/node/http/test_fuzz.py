"""The `/api` edge under inputs of all kinds: no 5xx, no growth, nothing unforeseen in the log.

`COLONYD_FUZZ_INPUTS` sets how many, `COLONYD_FUZZ_SECONDS` when it is enough at the latest;
`scripts/fuzz` runs a greater number.
"""

from __future__ import annotations

import base64
import json
import os
import random
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from cli.ops.rpc import all_calls
from colonyd.keys import PrivateKey
from colonyd.rpc import decode, encode
from tests.node.http.support import Edge
from tests.support.daemons import Daemon
from tests.support.fuzz_inputs import Known, bodies, poisonous
from tests.support.upstream import problem, reply_of

INPUTS = int(os.environ.get("COLONYD_FUZZ_INPUTS", "20000"))
SECONDS = float(os.environ.get("COLONYD_FUZZ_SECONDS", "60"))
# Inputs that go with each one that hypothesis makes.
FAMILY = 20
# Kibibytes that a daemon may hold more after a run than after its first thousand inputs.
GROWTH = 40 * 1024


# These would end the run: the colony that all else is about, its keys, and all handing out.
ENDING = (
    "pauseassignmentsmsg",
    "removecolonymsg",
    "changeserveridmsg",
    "changeuseridmsg",
    "removeusermsg",
    "rotatekeymsg",
)


def resident(pid: int) -> int:
    """Resident memory of a process in KiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS")


@pytest.mark.slow
def test_nothing_posted_is_our_own_fault(make_daemon: object) -> None:
    """Every answer is an envelope with a status below 500, what it holds is in upstream's types,
    and the daemon is none the worse.
    """
    assert callable(make_daemon)
    daemon: Daemon = make_daemon("dev", COLONYD_FEDERATION__INTERFACES="127.0.0.1").start()
    assert daemon.process is not None
    edge = Edge(daemon.port)
    keys = [daemon.key(name) for name in ("user", "colony", "server")]
    keys.append(PrivateKey.generate())
    calls = {
        call.payloadtype: call.request for call in all_calls() if call.payloadtype not in ENDING
    }
    known = Known([key.id for key in keys])
    done = 0
    first = 0
    end = time.monotonic() + SECONDS

    def tidy() -> None:
        """What succeeded piles up: that is no leak."""
        for payloadtype in ("removeallprocessgraphsmsg", "removeallprocessesmsg"):
            fields = {"colonyname": "dev", "state": -1}
            decode(payloadtype, *edge.post(encode(payloadtype, fields, keys[1])))

    def post(body: bytes) -> None:
        nonlocal done, first
        status, data = edge.post(body)
        deadline = time.monotonic() + 60
        while status == 503 and time.monotonic() < deadline:  # the store was slow
            status, data = edge.post(body)
        assert status < 500, (status, data, body)
        answer = json.loads(data)
        assert answer["error"] is (status != 200), (status, data, body)
        known.learn(answer)
        if kind := reply_of(answer["payloadtype"]):
            told = base64.b64decode(answer["payload"])
            assert not problem(told, kind), (problem(told, kind), told, body)
        done += 1
        if done % 500 == 0:
            tidy()
        if done == max(200, min(INPUTS // 10, 1000)):
            assert daemon.process is not None
            first = resident(daemon.process.pid)

    @settings(
        max_examples=INPUTS // FAMILY,
        deadline=None,
        database=None,
        # What one input does depends on those before it: there is nothing to shrink.
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(body=bodies(calls, keys, known), seed=st.integers(0, 2**32))
    def run(body: bytes, seed: int) -> None:
        if time.monotonic() > end:
            return
        post(body)
        dice = random.Random(seed)
        for _ in range(FAMILY - 1):
            post(poisonous(calls, keys, known, dice))

    try:
        run()
        tidy()
    finally:
        edge.close()
    grown = resident(daemon.process.pid) - first
    print(f"{done} inputs, statuses {dict(edge.statuses)}, grown by {grown} KiB")
    assert grown < GROWTH or not first
    worried = [line for line in daemon.events if "Traceback" in line or "level=error" in line]
    assert worried == []
    assert daemon.health() == 200
    assert edge.statuses[200] > done // 100
