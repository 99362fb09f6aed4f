"""A host left alone: work of a year in a small store and little memory, by speed instead of time.

By default as many processes as take a whole store. COLONYD_TEST_PROCESSES,
COLONYD_TEST_RATE (a second) and COLONYD_TEST_QUOTA (bytes) have it longer.
"""

from __future__ import annotations

import base64
import json
import os
import random
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio

from colonyd.keys import PrivateKey, sign_payload
from colonyd.rpc import RpcClient, RpcError
from node.archive.chain import records, verify
from node.etcd.client import open_client
from node.etcd.txn import Op, Put, Txn
from node.model.codec import pack
from node.model.types import Closed, FunctionSpec, State
from node.processes.spec import build_process
from node.store import keys
from node.store.work.submissions import shrink
from tests.node.archive.support import hire
from tests.support.daemons import Daemon, until

COUNT = int(os.environ.get("COLONYD_TEST_PROCESSES", "6000"))
QUOTA = int(os.environ.get("COLONYD_TEST_QUOTA", str(8 * 2**20)))
RATE = float(os.environ.get("COLONYD_TEST_RATE", "25"))
TOGETHER = 20
FAST = 60  # percent of the quota, above which the bulk waits
apart = trio.to_thread.run_sync
SPEC = {
    "funcname": "measure",
    "args": ["sensor", 20.5],
    "maxexectime": 60,
    "conditions": {"colonyname": "dev", "executortype": "cli"},
}
MEMORY = 512 * 2**20
_GROUPS = Path("/sys/fs/cgroup/memory")
# As upstream's SDKs ask, without a nonce: what is noted of a nonce goes after 15 minutes, which a
# year in minutes does not have.


@contextmanager
def confined(daemon: Daemon) -> Iterator[Path | None]:
    """Have a daemon and its store run with so much memory, where the kernel lets us say so."""
    group = _GROUPS / f"colonyd-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(MEMORY))
    except OSError:
        yield None
        return
    daemon.prefix = ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh"]
    try:
        yield group
    finally:
        daemon.stop()
        group.rmdir()


def written(pid: int) -> int:
    """Bytes that a process had written to the disk."""
    text = Path(f"/proc/{pid}/io").read_text()
    return int(re.findall(r"^write_bytes: (\d+)", text, re.MULTILINE)[0])


def memory(pid: int) -> tuple[int, int]:
    """MiB of a process: what is its own, and the most it ever had with what it has mapped."""
    text = Path(f"/proc/{pid}/status").read_text()
    own, most = (re.findall(rf"{name}:\s+(\d+)", text)[0] for name in ("RssAnon", "VmHWM"))
    return int(own) // 1024, int(most) // 1024


def use_of(daemon: Daemon) -> float:
    """Percent of the quota that are in use, as etcd last said."""
    text = httpx.get(f"http://127.0.0.1:{daemon.port}/metrics", timeout=30).text
    used = next(x for x in text.splitlines() if x.startswith("colonyd_store_in_use_bytes"))
    return 100 * float(used.split()[-1]) / QUOTA


class Plain:
    """Calls as upstream's SDKs make them."""

    def __init__(self, client: RpcClient) -> None:
        self.client = client
        self.refused: Counter[str] = Counter()

    async def call(self, kind: str, fields: dict[str, Any], key: PrivateKey) -> Any:
        payload = base64.b64encode(json.dumps({"msgtype": kind, **fields}).encode()).decode()
        signature = sign_payload(key, payload)
        body = {"payloadtype": kind, "payload": payload, "signature": signature}
        try:
            return await self.client._post(kind, json.dumps(body).encode(), 30)
        except RpcError as error:
            self.refused[f"{error.status} {error.message[:80]}"] += 1
            raise


@pytest.mark.slow
async def test_a_year_in_a_small_store(make_daemon: Callable[..., Daemon]) -> None:
    environ = {"COLONYD_FEDERATION__ENABLED": "false", "COLONYD_ETCD__QUOTA": str(QUOTA)}
    daemon = make_daemon("dev", **environ)
    with confined(daemon) as group:
        await trio.to_thread.run_sync(daemon.start)
        async with daemon.client() as client:
            try:
                await _live(daemon, client, group)
            finally:
                said = [each for each in daemon.events if "store" in each or "history" in each]
                print("\n".join(said[-20:]))


def closed_ones(user: PrivateKey, worker: PrivateKey, dice: random.Random) -> tuple[str, list[Op]]:
    """The id of a process that went its whole way, and what it leaves in the store."""
    spec = {**SPEC, "args": [f"sensor-{dice.randrange(17)}", round(dice.random(), 6)]}
    payload = {"msgtype": "submitfuncspecmsg", "spec": spec, "nonce": dice.randbytes(16).hex()}
    text = base64.b64encode(json.dumps(payload).encode())
    submission = text + b"." + dice.randbytes(65).hex().encode()
    now = time.time_ns()
    process = build_process(
        msgspec.convert(spec, FunctionSpec),
        processid=dice.randbytes(32).hex(),
        initiatorid=user.id,
        initiatorname="user",
        colonyname="dev",
        now=now,
    )
    process.assignedexecutorid, process.isassigned, process.attempt = worker.id, True, 1
    process.state, process.starttime, process.endtime = State.SUCCESSFUL, now, now
    process.output = [dice.random()]
    mark = Closed("cli", "", "user")
    return process.processid, [
        Put(keys.process("dev", process.processid), pack(process)),
        Put(keys.submission("dev", process.processid), shrink(submission, process.spec)),
        Put(keys.closed("dev", State.SUCCESSFUL, now, process.processid), pack(mark)),
    ]


async def _live(daemon: Daemon, client: RpcClient, group: Path | None) -> None:
    user, worker = daemon.key("user"), await hire(client, daemon.key("colony"))
    plain, dice = Plain(client), random.Random(5)
    assert daemon.process is not None
    pids = (daemon.process.pid, daemon.etcd_pid)
    before, began = [written(pid) for pid in pids], time.monotonic()
    closed: list[str] = []
    most = [0.0, 0.0]

    async def room() -> bool:
        return await apart(use_of, daemon) <= FAST

    async def bulk() -> None:
        """What other executors did, straight into the store."""
        async with open_client(f"unix:{daemon.home}/etcd/localhost:1", timeout=60) as store:
            for number in range(0, COUNT, TOGETHER):
                await trio.sleep(max(0.0, began + number / RATE - time.monotonic()))
                # A year in minutes is as fast as the daemon, with its share of the machine, moves.
                await until(600, room, step=0.5)
                some = [closed_ones(user, worker, dice) for _ in range(TOGETHER)]
                await store.commit(Txn([], [op for _, ops in some for op in ops]))
                closed.extend(pid for pid, _ in some)

    async def front_door() -> None:
        """A process, and a look at an older one, now and then: nothing is refused."""
        while True:
            at = time.monotonic()
            await plain.call("submitfuncspecmsg", {"spec": SPEC}, user)
            asked = {"colonyname": "dev", "timeout": 20}
            given = await plain.call("assignprocessmsg", asked, worker)
            out = {"processid": given["processid"], "out": [1.5]}
            await plain.call("closesuccessfulmsg", out, worker)
            closed.append(given["processid"])
            old = dice.choice(closed)
            found = await plain.call("getprocessmsg", {"processid": old}, user)
            assert (found["processid"], found["state"]) == (old, 2)
            most[:] = [
                max(most[0], time.monotonic() - at),
                max(most[1], await apart(use_of, daemon)),
            ]
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(front_door)
        await bulk()
        nursery.cancel_scope.cancel()
    took = time.monotonic() - began
    flash = [(written(pid) - was) / COUNT / 1024 for pid, was in zip(pids, before, strict=True)]
    assert took < COUNT / 5, "at least five times as fast as one a second"
    assert pids == (daemon.process.pid, daemon.etcd_pid)
    assert not plain.refused
    text = _figures(daemon, flash, took, pids, group, most)
    times = []
    for pid in dice.sample(closed, 200):
        at = time.monotonic()
        found = await plain.call("getprocessmsg", {"processid": pid}, user)
        times.append(1000 * (time.monotonic() - at))
        assert (found["processid"], found["state"]) == (pid, 2)
    text += (
        f"\ngetprocess of any of them {statistics.median(times):.1f} ms, at most {max(times):.0f}"
    )
    await _complete(daemon, closed, text)


def _figures(
    daemon: Daemon,
    flash: list[float],
    took: float,
    pids: tuple[int, int],
    group: Path | None,
    most: list[float],
) -> str:
    """What it cost, as text."""
    history = daemon.home / "history" / "dev"
    size = sum(path.stat().st_size for path in history.iterdir() if path.is_file())
    index = sum(path.stat().st_size for path in history.glob(".index/*"))
    peak = group and int((group / "memory.max_usage_in_bytes").read_text()) // 2**20
    fails = group and int((group / "memory.failcnt").read_text())
    lines = [
        f"{COUNT} processes in {took:.0f} s, quota {QUOTA // 2**20} MiB: "
        f"slowest cycle {most[0]:.2f} s, store at most {most[1]:.0f} % full",
        f"written a process: colonyd {flash[0]:.2f} KiB, etcd {flash[1]:.2f} KiB",
        f"memory in MiB, own and most: colonyd {memory(pids[0])}, etcd {memory(pids[1])}",
        f"memory of both with cached files, at most {peak} MiB of 512; {fails} times at the limit",
        f"history {size / COUNT:.0f} bytes a process, its index {index / COUNT:.0f}",
    ]
    return "\n".join(lines)


async def _complete(daemon: Daemon, closed: list[str], text: str) -> None:
    """Every process is in the store or in history, and both are sound."""
    async with open_client(f"unix:{daemon.home}/etcd/localhost:1") as store:

        async def relieved() -> bool:
            status = await store.status()
            return status.db_in_use <= QUOTA * 55 // 100

        await until(120, relieved, step=1)
        status = await store.status()
        items, _ = await store.range_all(keys.processes("dev"))
        there = {item.key.rpartition("/")[2] for item in items}
        others = [
            item.key
            for item in (await store.range_all(keys.ROOT))[0]
            if item.key.rpartition("/")[2] not in there
            and not item.key.removeprefix(keys.ROOT).startswith(("member/", "server", "history/"))
        ]
    # What stays of a process that left is nothing.
    assert len(others) < 50, others[:20]
    directory = daemon.home / "history" / "dev"
    past = {it["id"] for it in records(directory) if it["kind"] == "process"}
    verdict = verify(directory)
    print(text)
    print(f"in the store {len(there)}, in history {len(past)}, records {verdict.records}")
    print(f"store: {status.db_in_use} of {status.db_size} bytes for {len(there)} processes")
    assert verdict.problems == []
    assert set(closed) <= there | past
    assert len(set(closed)) >= COUNT
    assert len(past) > COUNT // 3
