"""Hostile members, daemons and users beside `colony ui`: each gets an error, or nothing at all."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import trio

from cli.core.session import Session
from cli.ui.api import Api
from cli.ui.calls import API
from cli.ui.context import Context
from cli.ui.download import download
from colonyd.errors import RpcError
from colonyd.keys import PrivateKey
from colonyd.rpc import RpcClient
from tests.cli.ui.scene import Scene, running_ui
from tests.cli.ui.visitor import Visitor
from tests.support.daemons import Daemon
from tests.support.rpc_server import ColonyServer, seal

ODD: list[Any] = [7, "text", True, [7], [None], [{}], [[]], {}, {"spec": 1}, {"state": "x"}]
_ROW = {"name": "\ud800", "processid": 1, "spec": {"args": 4}, "files": "many", "state": [1]}
ODD += [_ROW, [_ROW], [_ROW | {"spec": {"funcname": "\ud800"}}], [float("inf")]]


class Odd(ColonyServer):
    """Answers each call with the same value."""

    value: Any = None

    def answer(self, body: bytes) -> tuple[str, int, bytes]:
        kind = json.loads(body)["payloadtype"]
        value = {"serverid": ""} if kind == "getserverinfomsg" else self.value
        return kind, 200, seal(kind, value, False)


@contextmanager
def odd_server() -> Iterator[Odd]:
    server = Odd()
    with server:
        yield server


def context_of(server: Odd, client: RpcClient) -> Context:
    key = PrivateKey.generate()
    environ = {"COLONIES_COLONY_NAME": "quarry", "COLONIES_PRVKEY": key.hex}
    session = Session(
        home_option="/nonexistent", server_option=f"http://{server.address}", environ=environ
    )
    return Context(session, client, "quarry", key, key, True)


_PARAMS = {"process": {"id": "0" * 64}, "workflow": {"id": "0" * 64}, "ping": {"peer": "0" * 64},
           "file": {"label": "/", "name": "x"}}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("value", ODD, ids=repr)
def test_an_odd_answer_of_the_daemon_is_an_error_of_the_page(value: Any) -> None:
    """Whatever the daemon says, the page gets an answer, and an error is told in words."""

    async def go() -> None:
        async with RpcClient(f"http://{server.address}") as client:
            context = context_of(server, client)
            for name, row in API.rows.items():
                if name == "diagnose":
                    continue
                params = _PARAMS.get(name) or {
                    field: "x" for field in row.params.__struct_fields__ if row.changes
                }
                body = json.dumps(params).encode()
                status, answer = await API.answer(context, name, body)
                told = json.loads(answer)
                assert status == 200 or (told["error"] and told["next"]), (name, told)
            response = await download(context, "label=/&name=x", ())
            assert response.status in (200, 409, 502)

    with odd_server() as server:
        server.value = value
        trio.run(go)


@pytest.mark.slow
@pytest.mark.parametrize("value", ODD, ids=repr)
def test_an_odd_answer_does_not_end_the_command(value: Any) -> None:
    """What is watched beside the requests goes on."""

    async def go() -> None:
        async with RpcClient(f"http://{server.address}") as client:
            context = context_of(server, client)
            with trio.fail_after(30):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(context.watch)
                    await context.diagnose()
                    await context.diagnose()
                    nursery.cancel_scope.cancel()
            assert context.findings

    with odd_server() as server:
        server.value = value
        trio.run(go)


def test_an_answer_that_is_nested_without_end_is_an_error() -> None:
    async def go() -> None:
        async with RpcClient(f"http://{server.address}") as client:
            with pytest.raises(RpcError, match="not a Colonies envelope"):
                await client.call("versionmsg", {}, None)

    class Deep(Odd):
        def answer(self, body: bytes) -> tuple[str, int, bytes]:
            return "versionmsg", 200, b"[" * 500_000

    deep = Deep()
    with deep as server:
        trio.run(go)


def test_texts_are_cut_before_an_answer_is_too_long() -> None:
    from cli.ui.api import Nothing

    api = Api()

    @api.row("long", Nothing)
    async def long(context: Context, params: Nothing) -> Any:
        return {"rows": [{"text": "m" * 3_000_000}] * 4, "short": "kept"}

    @api.row("many", Nothing)
    async def many(context: Context, params: Nothing) -> Any:
        return ["m" * 100] * 200_000

    async def go() -> None:
        async with RpcClient("http://127.0.0.1:1") as client:
            key = PrivateKey.generate()
            context = Context(Session(), client, "quarry", key, None, False)
            status, answer = await api.answer(context, "long", b"{}")
            assert status == 200
            told = json.loads(answer)
            assert told["short"] == "kept"
            assert [len(row["text"]) for row in told["rows"]] == [100_000] * 4
            status, answer = await api.answer(context, "many", b"{}")
            assert status == 400
            assert "more than a page takes" in json.loads(answer)["error"]

    trio.run(go)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    home = tmp_path_factory.mktemp("hostile") / "quarry"
    daemon = Daemon(home, "quarry", {"COLONYD_FEDERATION__ENABLED": "false"}).start()
    yield Scene(daemon)
    assert daemon.stop() == 0


@pytest.mark.slow
def test_a_member_with_long_names_shuts_nobody_out(scene: Scene) -> None:
    """Two processes of 5 MB in names alone: the list and the overview stay, and stay small."""
    long = "m" * 1_000_000
    for number in range(3):
        conditions = {"executornames": [long]}
        spec = {"label": long, "nodename": long, "conditions": conditions}
        found = scene.submit(f"{number}{long}", f"{number}{long}", long * 5, **spec)
    with running_ui(scene.daemon) as command:
        visitor = Visitor(command.address())
        with visitor.http:
            visitor.enter()
            for name in ("processes", "overview"):
                answer = visitor.call(name)
                assert answer.status_code == 200, answer.text
                assert len(answer.content) < 100_000
            page = visitor.call("process", {"id": found})
            assert page.status_code == 200, page.text[:300]
            assert page.json()["row"]["func"].endswith("…")


@pytest.mark.slow
def test_the_address_is_in_no_command_that_other_users_see(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The words of a running command are everybody's; the browser gets a file of this user."""
    browser, words = tmp_path / "browser", tmp_path / "words"
    browser.write_text(f'#!/bin/sh\nprintf "%s" "$*" >{words}.new && mv {words}.new {words}\n')
    browser.chmod(0o755)
    monkeypatch.setenv("BROWSER", f"{browser} %s")
    with running_ui(scene.daemon, "--open") as command:
        address = command.address()
        deadline = time.monotonic() + 30
        while not words.exists():
            assert time.monotonic() < deadline
            os.sched_yield()
        said = words.read_text("utf-8")
        assert "token=" not in said
        page = Path(unquote(urlsplit(said).path))
        assert address in page.read_text("utf-8")
        assert page.parent.stat().st_mode & 0o077 == 0
        with Visitor(address).http as http:
            # As a browser that comes from a file.
            assert http.get(address, headers={"sec-fetch-site": "cross-site"}).status_code == 200
