"""The raw limit: what an idle etcd does through our client, with requests such as a daemon makes.

The client is the daemon's own: transactions that come together go in groups here as well, wherever
the client makes groups. No value is encoded or decoded, so this is what is left of a call.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from bench.daemon import BenchError
from bench.load import cpu_seconds, percentile
from node.etcd.client import EtcdClient, open_client
from node.etcd.txn import Absent, Put, Txn
from node.etcdserver.supervisor import supervise

WIDTHS = (1, 8, 16, 32)  # in flight
READ_WIDTHS = (1, 16)
# Bytes of what a submission writes: the process, its place in the queue, and its signed text.
PROCESS, PLACE, SUBMISSION = b"v" * 700, b"v" * 150, b"v" * 1200


@dataclass(frozen=True)
class Raw:
    """Requests a second, the median in ms, and CPU in ms a request, of our client and of etcd."""

    rate: float
    p50: float
    client: float
    etcd: float


async def measure(directory: Path, seconds: float) -> dict[str, Raw]:
    """Return what an etcd of its own in `directory` does in `seconds` each: `txn@N` transactions
    with N in flight, `get@N` reads of a key.
    """
    found: dict[str, Raw] = {}
    async with trio.open_nursery() as nursery:
        target: str = await nursery.start(partial(supervise, directory, quota_bytes=2 << 30))
        etcd = int((directory / "etcd.pid").read_text().split()[0])
        async with open_client(target) as client:
            for kind, widths, request in (
                ("txn", WIDTHS, _submit),
                ("get", READ_WIDTHS, _get),
            ):
                for width in widths:
                    found[f"{kind}@{width}"] = await _flood(
                        width, seconds, etcd, partial(request, client, width)
                    )
        nursery.cancel_scope.cancel()
    return found


async def _flood(
    width: int, seconds: float, etcd: int, request: Callable[[int], Awaitable[None]]
) -> Raw:
    taken: list[float] = []
    begun, own, other = time.perf_counter(), time.process_time(), cpu_seconds(etcd)
    end = begun + seconds
    numbers: Iterator[int] = iter(range(1 << 40))

    async def loop() -> None:
        while (at := time.perf_counter()) < end:
            await request(next(numbers))
            taken.append(time.perf_counter() - at)

    async with trio.open_nursery() as loops:
        for _ in range(width):
            loops.start_soon(loop)
    count = len(taken)
    return Raw(
        rate=count / (time.perf_counter() - begun),
        p50=percentile(sorted(taken), 0.5) * 1e3,
        client=(time.process_time() - own) / count * 1e3,
        etcd=(cpu_seconds(etcd) - other) / count * 1e3,
    )


async def _submit(client: EtcdClient, width: int, number: int) -> None:
    """Write what a submission writes."""
    name = f"{width}/{number:012d}"
    puts = [
        Put(f"/raw/process/{name}", PROCESS),
        Put(f"/raw/queue/{name}", PLACE),
        Put(f"/raw/submission/{name}", SUBMISSION),
    ]
    done = await client.commit(Txn([Absent(f"/raw/process/{name}")], [*puts]))
    if not done.succeeded:
        raise BenchError(f"/raw/process/{name}: not written")


async def _get(client: EtcdClient, width: int, number: int) -> None:
    """Read one of the processes that `_submit` wrote first."""
    if await client.get(f"/raw/process/{WIDTHS[0]}/{number % 8:012d}") is None:
        raise BenchError("a key of the raw transactions is gone")
