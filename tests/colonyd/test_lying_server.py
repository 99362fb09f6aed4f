"""The client of a colony at a server of the test, which may answer what no other would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from colonyd.client.client import Client, NotEnded
from colonyd.client.values import OddReply
from colonyd.errors import NotFound
from colonyd.keys import PrivateKey
from colonyd.settings import Settings
from tests.support.rpc_server import ColonyServer, Queue


def client_of(server: ColonyServer) -> Client:
    environ = {"COLONIES_PRVKEY": PrivateKey.generate().hex}
    settings = Settings.find(server=f"http://{server.address}", colony="dev", environ=environ)
    return Client(settings)


async def test_a_log_whose_lines_come_again_has_an_end() -> None:
    """A full page of old lines was asked for again at once, and told again, for ever."""
    with ColonyServer() as server:
        processid = Queue(server).add(state=2)
        page = [{"message": f"{n}", "timestamp": 1 + n} for n in range(500)]
        server.answers["getlogsmsg"] = lambda *_: page
        seen = []
        async with client_of(server) as colony:

            async def listen() -> None:
                async for line in colony.logs(processid, follow=True):
                    seen.append(line.message)

            with trio.fail_after(10), pytest.raises(OddReply, match="same messages"):
                await listen()
        assert seen == [row["message"] for row in page]


async def test_lines_of_a_log_are_told_once() -> None:
    """By a server, too, that takes `since` as the first time that is wanted."""
    with ColonyServer() as server:
        processid = Queue(server).add(state=1)
        rows = [{"message": "a", "timestamp": 1}, {"message": "b", "timestamp": 2}]

        def logs(asked: dict[str, Any], caller: str) -> list[dict[str, Any]]:
            if asked["since"] >= 2:
                server.answers["getprocessmsg"](asked, caller)["state"] = 2
            return [row for row in rows if int(str(row["timestamp"])) >= asked["since"]]

        server.answers["getlogsmsg"] = logs
        async with client_of(server) as colony:
            with trio.fail_after(10):
                told = [line.message async for line in colony.logs(processid, follow=True)]
        assert told == ["a", "b"]


async def test_a_process_that_nobody_takes_says_so() -> None:
    with ColonyServer() as server:
        Queue(server)
        async with client_of(server) as colony:
            with pytest.raises(NotEnded, match=r"no executor of type 'cli' has taken it: .*why"):
                await colony.run("f", timeout=0.5)


@pytest.mark.parametrize(
    ("told", "error"),
    [
        (None, NotFound),
        ([], NotFound),
        ([{}], OddReply),
        ([{"fileid": "f", "name": "n", "size": "1"}], OddReply),
        ([{"fileid": "f", "name": "n", "ref": []}], OddReply),
        ({}, OddReply),
    ],
)
async def test_an_odd_file_is_an_error_of_the_server(
    tmp_path: Path, told: object, error: type[Exception]
) -> None:
    with ColonyServer() as server:
        server.answers["getfilemsg"] = lambda *_: told
        async with client_of(server) as colony:
            with pytest.raises(error):
                await colony.get_file("/in", "n", tmp_path / "n")
