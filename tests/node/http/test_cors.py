"""What a node tells browsers about pages of other origins: preflights, answers, refusals.

A real browser acts on it in `sdk.test_browser`.
"""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
import trio

from node.daemon.routes import edge_error
from node.http import cors
from node.http.listeners import bound_port, open_listeners
from node.http.message import Request
from node.http.server import Limits, serve_http
from tests.support.daemons import Daemon
from tests.support.http_edge import Client, echo

ANY = "access-control-allow-origin"
PREFLIGHT = {
    "origin": "https://somewhere.example",
    "access-control-request-method": "POST",
    "access-control-request-headers": "content-type",
}


@pytest.fixture(scope="module")
def lone_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon whose limit of bodies is known."""
    environ = {"COLONYD_FEDERATION__ENABLED": "false", "COLONYD_RPC__MAX_BODY": "2MB"}
    daemon = Daemon(tmp_path_factory.mktemp("lone") / "dev", "dev", environ).start()
    yield daemon
    assert daemon.stop() == 0


def url(daemon: Daemon, path: str) -> str:
    return f"http://127.0.0.1:{daemon.port}{path}"


@pytest.mark.parametrize("path", ["/api", "/health", "/files/x"])
def test_a_preflight_is_answered(lone_daemon: Daemon, path: str) -> None:
    reply = httpx.options(url(lone_daemon, path), headers=PREFLIGHT)
    assert (reply.status_code, reply.content) == (204, b"")
    assert reply.headers[ANY] == "*"
    assert "POST" in reply.headers["access-control-allow-methods"]
    assert reply.headers["access-control-allow-headers"] == "*"
    assert int(reply.headers["access-control-max-age"]) > 60
    assert "access-control-allow-credentials" not in reply.headers
    assert "access-control-allow-private-network" not in reply.headers
    private = PREFLIGHT | {"access-control-request-private-network": "true"}
    reply = httpx.options(url(lone_daemon, path), headers=private)
    assert reply.headers["access-control-allow-private-network"] == "true"


def test_answers_and_errors_are_readable(lone_daemon: Daemon) -> None:
    api = url(lone_daemon, "/api")
    version = b'{"payloadtype":"versionmsg","payload":"e30="}'
    with httpx.Client(headers={"origin": "https://somewhere.example"}) as page:
        for status, reply in (
            (200, page.post(api, content=version)),
            (400, page.post(api, content=b"no envelope")),
            (403, page.post(api, content=b'{"payloadtype":"getcolonymsg"}')),
            (404, page.put(api)),
            (404, page.get(url(lone_daemon, "/files/x"))),
            (200, page.get(url(lone_daemon, "/health"))),
            (200, page.head(url(lone_daemon, "/health"))),
            # Refused by the edge, before a path is known.
            (413, page.post(api, content=bytes(3_000_000))),
            (431, page.post(api, headers={"x-long": "x" * 17_000})),
        ):
            assert (reply.status_code, reply.headers.get_list(ANY)) == (status, ["*"])


def test_other_paths_are_for_no_page(lone_daemon: Daemon) -> None:
    for method in ("GET", "POST", "OPTIONS"):
        for path in ("/", "/api//", "/apix", "/healthy", "/metrics", "/pubsub", "/files"):
            reply = httpx.request(method, url(lone_daemon, path), headers=PREFLIGHT)
            assert ANY not in reply.headers, (method, path)
            assert reply.status_code != 204


async def test_a_request_that_is_too_slow_or_no_http_is_told_so_readably() -> None:
    listeners = await open_listeners("127.0.0.1", 0)
    port = bound_port(listeners)
    limits = Limits(read_timeout=1)
    with trio.fail_after(50):
        async with trio.open_nursery() as nursery:
            drain = trio.Event()

            async def serve(task_status: trio.TaskStatus[None]) -> None:
                await serve_http(
                    echo,
                    listeners,
                    limits=limits,
                    drain=drain,
                    grace=1,
                    error=edge_error,
                    task_status=task_status,
                )

            await nursery.start(serve)
            for raw, wanted in ((b"POST /api HTT", 408), (b"no http at all\r\n\r\n", 400)):
                client = Client(await trio.open_tcp_stream("127.0.0.1", port))
                async with client.stream:
                    status, headers, _ = await client.ask(raw)
                assert (status, headers[ANY]) == (wanted, "*")
            drain.set()


def test_a_preflight_adds_nothing_that_was_not_asked_for() -> None:
    asked = Request("OPTIONS", "/api", "", {cors._ASKS_PRIVATE: "TRUE"}, b"", "")
    names = [name for name, _ in cors.preflight(asked).headers]
    assert "access-control-allow-private-network" not in names
    assert len(names) == len(set(names))
