"""`GET /metrics`: its format, its numbers, and who may read them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colonyd.errors import RpcError
from node.daemon.metrics import Family, Metrics, is_local, render
from node.etcd.client import open_client
from node.host.clock import Clock
from node.http.message import Request
from node.model.histogram import OTHERS, Histogram, Histograms
from node.rpc.dispatch import Table
from node.runtime.node import Node
from tests.node.http.support import parse, scrape
from tests.support.daemons import Daemon, until


@given(
    st.dictionaries(
        st.text(max_size=20), st.floats(allow_nan=False, allow_infinity=False), min_size=1
    )
)
def test_any_text_and_number_survives_the_format(values: dict[str, float]) -> None:
    family = Family("some_numbers", "gauge", 'a\n"b"\\')
    for text, number in values.items():
        family.add(number, kind=text)
    wanted = {("some_numbers", frozenset({("kind", text)})): n for text, n in values.items()}
    assert parse(render([family, Family("empty", "gauge", "")])) == wanted


@given(st.lists(st.floats(min_value=-5, max_value=1e6)))
def test_a_histogram_counts_each_duration_up_to_its_bound(durations: list[float]) -> None:
    counted = Histogram((0.5, 2.0, 10.0))
    for seconds in durations:
        counted.add(seconds)
    samples = parse(render([Family("some_seconds", "histogram", "").add_histogram(counted, a="b")]))

    def sample(name: str, **labels: str) -> float:
        return samples[f"some_seconds_{name}", frozenset(({"a": "b"} | labels).items())]

    for bound in (0.5, 2.0, 10.0):
        most = sum(each <= bound for each in durations)
        assert sample("bucket", le=f"{bound:g}") == most
    assert sample("bucket", le="+Inf") == sample("count") == len(durations)
    assert sample("sum") == pytest.approx(sum(max(0.0, each) for each in durations))


def test_labels_beyond_the_bound_share_one_histogram() -> None:
    counted = Histograms((1.0,), most=3)
    for number in range(1000):
        counted.add(f"peer {number}", 0.5)
    counted.add("peer 1", 0.5)
    found = {label: sum(each.counts) for label, each in counted.by.items()}
    assert found == {"peer 0": 1, "peer 1": 2, "peer 2": 1, OTHERS: 997}


@pytest.mark.parametrize(
    ("remote", "headers", "local"),
    [
        ("127.0.0.1", {}, True),
        ("127.8.0.1", {}, True),
        ("::1", {}, True),
        ("::ffff:127.0.0.1", {}, True),
        ("192.168.0.7", {}, False),
        ("fe80::1%eth0", {}, False),
        ("", {}, False),
        ("127.0.0.1", {"x-forwarded-for": "192.168.0.7"}, False),
        ("127.0.0.1", {"forwarded": "for=_x"}, False),
        ("127.0.0.1", {"host": "localhost"}, True),
        ("127.0.0.1", {"host": "LOCALHOST.:50080"}, True),
        ("127.0.0.1", {"host": "127.0.0.1:50080"}, True),
        ("::1", {"host": "[::1]:50080"}, True),
        ("127.0.0.1", {"host": "rebound.example:50080"}, False),
        ("127.0.0.1", {"host": "localhost.example"}, False),
        ("127.0.0.1", {"host": "192.168.0.7"}, False),
        ("127.0.0.1", {"host": "[fe80::1]"}, False),
        ("127.0.0.1", {"host": ""}, False),
    ],
)
def test_who_is_on_this_host(remote: str, headers: dict[str, str], local: bool) -> None:
    assert is_local(remote, headers) is local


async def test_off_is_404_and_others_are_refused_before_anything_is_read() -> None:
    request = Request("GET", "/metrics", "", {}, b"", "192.168.0.7")
    nothing: Any = None
    for access, status in (("off", 404), ("local", 403)):
        with pytest.raises(RpcError) as caught:
            await Metrics(nothing, nothing, cast(Any, access)).answer(request)
        assert caught.value.status == status
        assert "rpc.metrics" in caught.value.message


@pytest.mark.slow
async def test_a_store_that_is_away_is_told(tmp_path: Path) -> None:
    async with open_client(f"unix:{tmp_path}/none") as client:
        node = Node.build(client, "home", Clock(time.time_ns))
        table = Table(node.directory, node.clock.now)
        request = Request("GET", "/metrics", "", {}, b"", "192.168.0.7")
        answer = await Metrics(node, table, "open").answer(request)
    samples = parse(answer.body.decode())
    assert samples["colonyd_store_up", frozenset()] == 0
    assert ("colonyd_store_revision", frozenset()) not in samples


@pytest.mark.slow
async def test_the_numbers_of_a_daemon(lone_daemon: Daemon) -> None:
    key = lone_daemon.key("user")
    spec = {"funcname": "f", "conditions": {"colonyname": "dev", "executortype": "cli"}}
    async with lone_daemon.client() as client:
        for _ in range(3):
            await client.call("submitfuncspecmsg", {"spec": spec}, key)
        cancelled = await client.call("submitfuncspecmsg", {"spec": spec}, key)
        await client.call("cancelprocessmsg", {"processid": cancelled["processid"]}, key)
        for name in ("nosuchmsg", "othermsg"):
            with pytest.raises(Exception, match="unknown"):
                await client.call(name, {}, key)

    def sample(name: str, **labels: str) -> float:
        return samples[name, frozenset(labels.items())]

    async def fresh() -> bool:
        # A reading is kept for two seconds, perhaps from before the submits.
        found = parse(scrape(lone_daemon).text)
        return found["colonies_server_processes_cancelled", frozenset()] == 1

    await until(50, fresh)
    reply = scrape(lone_daemon)
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = parse(reply.text)
    assert sample("colonies_server_colonies") == 1
    assert sample("colonies_server_processes_waiting") == 3
    assert sample("colonyd_processes", colony="dev", state="waiting") == 3
    assert sample("colonyd_processes", colony="dev", state="cancelled") == 1
    assert 0 < sample("colonyd_queue_head_age_seconds", colony="dev") < 60
    submits = sample("colonyd_rpc_requests_total", payloadtype="submitfuncspecmsg", status="200")
    assert submits == 4
    # Names that anybody may invent share one line.
    assert sample("colonyd_rpc_requests_total", payloadtype="unknown", status="403") == 2
    assert sample("colonyd_rpc_refusals_total", status="403") == 2
    assert "nosuchmsg" not in reply.text
    assert sample("colonyd_store_size_bytes") > 10_000
    assert sample("colonyd_store_up") == 1
    assert sample("process_resident_memory_bytes") > 10_000_000
    for name in ("server", "colony", "user"):
        assert lone_daemon.key(name).hex not in reply.text

    proxied = scrape(lone_daemon, **{"X-Forwarded-For": "192.168.0.7"})
    assert proxied.status_code == 403
    assert "rpc.metrics" in proxied.text
