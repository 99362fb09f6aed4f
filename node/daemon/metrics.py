"""`GET /metrics`: the node in numbers, in Prometheus's text format.

Other modules count; here the counts are read, put into text, and kept for a moment.
"""

from __future__ import annotations

import ipaddress
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal

import trio

from colonyd.errors import Denied, NotFound, RpcError
from node.etcd.errors import EtcdError
from node.etcd.pressure import Level
from node.handlers.colonies import statistics
from node.http.message import Request, Response
from node.model.histogram import Histogram
from node.model.types import ExecutorState, State
from node.rpc.dispatch import Table
from node.runtime.node import Node
from node.version import VERSION

PATH = "/metrics"
FRESH = 2.0  # seconds for which a reading is served again: scrapers may come in numbers
_HEADS = 64  # places looked at for the first process that waits only for an executor
_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PROXIED = ("forwarded", "x-forwarded-for", "x-real-ip")

Labels = Mapping[str, str]
Access = Literal["local", "open", "off"]


@dataclass
class Family:
    """One metric and its samples."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    about: str
    # What stands behind the name (of histograms alone), labels, value.
    samples: list[tuple[str, Labels, float]] = field(default_factory=list)

    def add(self, value: float, **labels: str) -> Family:
        """Add a sample."""
        self.samples.append(("", labels, value))
        return self

    def add_histogram(self, counted: Histogram, **labels: str) -> Family:
        """Add the samples of a histogram: a cumulative count a bound, the sum, and the count."""
        so_far = 0
        for bound, count in zip((*counted.bounds, math.inf), counted.counts, strict=True):
            so_far += count
            told = "+Inf" if bound == math.inf else f"{bound:g}"
            self.samples.append(("_bucket", {**labels, "le": told}, so_far))
        self.samples += [("_sum", labels, counted.total), ("_count", labels, so_far)]
        return self


def render(families: Iterable[Family]) -> str:
    """Return the text format, version 0.0.4; families without samples are left out."""
    lines: list[str] = []
    for family in families:
        if not family.samples:
            continue
        lines.append(f"# HELP {family.name} {_escaped(family.about, quotes=False)}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        for suffix, labels, value in family.samples:
            told = ",".join(f'{name}="{_escaped(text)}"' for name, text in labels.items())
            number = int(value) if value == int(value) else value
            lines.append(f"{family.name}{suffix}{f'{{{told}}}' if told else ''} {number}")
    return "\n".join(lines) + "\n"


def _escaped(text: str, *, quotes: bool = True) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text


def is_local(remote: str, headers: Mapping[str, str]) -> bool:
    """Return whether a request was made on this host, neither through a proxy on it nor by a page
    whose own name was made to lead here.
    """
    if any(name in headers for name in _PROXIED):
        return False
    return _is_loopback(remote) and _names_this_host(headers.get("host", "localhost"))


def _names_this_host(host: str) -> bool:
    """Return whether a Host header is `localhost` or a loopback address; other names may lead
    anywhere.
    """
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return name.lower().removesuffix(".") == "localhost" or _is_loopback(name)


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


@dataclass
class Metrics:
    """Reads the node at most once in `FRESH` seconds, however many clients ask.

    `more` returns what an extension counts by itself.
    """

    node: Node
    table: Table
    access: Access = "local"
    more: Callable[[], list[Family]] = list
    _text: bytes = b""
    _until: float = -1.0
    _reading: trio.Lock = field(default_factory=trio.Lock)

    async def answer(self, request: Request) -> Response:
        """Answer `GET /metrics`. Raises Denied or NotFound."""
        if self.access == "off":
            raise NotFound("metrics are off here (rpc.metrics)")
        if self.access == "local" and not is_local(request.remote, request.headers):
            raise Denied(
                "metrics are for this host only, asked for as localhost or by a loopback address;"
                " set rpc.metrics = 'open' for others"
            )
        async with self._reading:
            if trio.current_time() >= self._until:
                self._text = render(await self._read()).encode()
                self._until = trio.current_time() + FRESH
        return Response(200, self._text, _CONTENT_TYPE)

    async def _read(self) -> list[Family]:
        families = [*self._own(), *self._rpc(), *self._extension(), *self.more(), *self._disk()]
        up = Family("colonyd_store_up", "gauge", "Whether the store answers.")
        try:
            families += await self._colonies()
            families += await self._store()
        except (EtcdError, RpcError):
            return [*families, up.add(0)]
        return [*families, up.add(1)]

    def _own(self) -> list[Family]:
        usage = os.times()
        families = [
            Family("colonyd_build_info", "gauge", "The version that runs.").add(1, version=VERSION),
            Family(
                "process_start_time_seconds", "gauge", "Unix time at which the daemon started."
            ).add(self.node.started / 1e9),
            Family(
                "process_cpu_seconds_total", "counter", "CPU time used, without the store's."
            ).add(usage.user + usage.system),
        ]
        if (resident := _resident_bytes()) is not None:
            about = "Resident memory, without the store's."
            families.append(Family("process_resident_memory_bytes", "gauge", about).add(resident))
        return families

    def _rpc(self) -> list[Family]:
        calls = Family("colonyd_rpc_requests_total", "counter", "Calls answered, by HTTP status.")
        refused = Counter[str]()
        for (payloadtype, status), number in sorted(self.table.answered.items()):
            calls.add(number, payloadtype=payloadtype, status=str(status))
            if status >= 400:
                refused[str(status)] += number
        refusals = Family("colonyd_rpc_refusals_total", "counter", "Calls refused, by HTTP status.")
        for code, number in sorted(refused.items()):
            refusals.add(number, status=code)
        durations = Family(
            "colonyd_rpc_duration_seconds",
            "histogram",
            "How long calls took that were served; those that wait for something are not in it.",
        )
        for payloadtype, counted in sorted(self.table.durations.by.items()):
            durations.add_histogram(counted, payloadtype=payloadtype)
        return [calls, refusals, durations]

    def _extension(self) -> list[Family]:
        """Return the numbers of an extension by name: peers by state, messages by outcome."""
        families = []
        for name, value in self.node.serving.status().items():
            if isinstance(value, dict):
                family = Family(f"colonyd_{name}", "gauge", f"Number of {name}, by kind.")
                for kind, number in value.items():
                    if isinstance(number, int | float):
                        family.add(number, kind=str(kind))
                families.append(family)
        return families

    async def _colonies(self) -> list[Family]:
        node = self.node
        processes = Family("colonyd_processes", "gauge", "Processes by colony and state.")
        workflows = Family("colonyd_workflows", "gauge", "Workflows by colony and state.")
        executors = Family("colonyd_executors", "gauge", "Executors by colony and state.")
        head = Family(
            "colonyd_queue_head_age_seconds",
            "gauge",
            "Age of the process that is next to be handed out; 0 with an empty queue.",
        )
        total = Counter[str]()
        for name in sorted(node.directory.rosters):
            if node.directory.colony(name) is None:
                continue
            counts = await statistics(node, name)
            total.update(counts)
            for state in State:
                word = state.name.lower()
                processes.add(counts[f"{word}processes"], colony=name, state=word)
                workflows.add(counts[f"{word}workflows"], colony=name, state=word)
            standing = Counter(e.state for e in node.directory.roster(name).executors.values())
            for each in ExecutorState:
                executors.add(standing[each], colony=name, state=each.name.lower())
            head.add(await self._head_age(name), colony=name)
        # Upstream's names carry no labels, so that its dashboards show the same numbers here.
        same = [
            Family(f"colonies_server_{name}", "gauge", f"Number of {name}.").add(total[name])
            for name in ("colonies", "executors")
        ]
        for kind in ("processes", "workflows"):
            for state in State:
                word = state.name.lower()
                same.append(
                    Family(
                        f"colonies_server_{kind}_{word}", "gauge", f"Number of {word} {kind}."
                    ).add(total[word + kind])
                )
        unread = Family(
            "colonyd_queue_unread_keys",
            "gauge",
            "Keys still to be read after a start; until it is 0, more waits than is counted.",
        ).add(node.processes.reading.left)
        return [*same, processes, workflows, executors, head, unread]

    async def _head_age(self, colony: str) -> float:
        """Return the age in seconds of the first process that waits only for an executor."""
        first = islice(self.node.processes.queue.in_order(colony), _HEADS)
        entry = next((entry for entry in first if not entry.blocked), None)
        if entry is None:
            return 0.0
        known = await self.node.processes.load(colony, entry.processid)
        return max(0.0, (self.node.clock.now() - known[0].submissiontime) / 1e9) if known else 0.0

    def _disk(self) -> list[Family]:
        """Return the numbers of the disk, also while the store is away: a full disk may be why."""
        free = self.node.client.pressure.disk_free
        about = "Space left on the disk of the home, where the store is."
        family = Family("colonyd_disk_free_bytes", "gauge", about)
        return [] if free is None else [family.add(free)]

    async def _store(self) -> list[Family]:
        status = await self.node.client.status()
        pressure = self.node.client.pressure
        return [
            Family("colonyd_store_size_bytes", "gauge", "Size of the store's file.").add(
                status.db_size
            ),
            Family("colonyd_store_in_use_bytes", "gauge", "What of it is in use.").add(
                status.db_in_use
            ),
            Family("colonyd_store_quota_bytes", "gauge", "What may be in use: etcd.quota.").add(
                pressure.quota
            ),
            Family(
                "colonyd_store_pressure",
                "gauge",
                "0: takes everything; 1: nothing is added; 2: only what ends and frees is done.",
            ).add(list(Level).index(pressure.level)),
            Family(
                "colonyd_store_revision",
                "gauge",
                "Changes of the store so far; transactions that went together count once.",
            ).add(status.revision),
        ]


def _resident_bytes() -> int | None:
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
