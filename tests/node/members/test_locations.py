"""Locations, log search and the cluster call on a real node."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import trio

from colonyd.errors import RpcError as RpcRefusal
from colonyd.keys import PrivateKey
from colonyd.rpc import RpcError
from node.etcd.client import open_client
from node.etcd.pages import whole
from node.members.locations import Locations
from node.model.types import DAY, Log
from node.store.work import logs as store
from node.streams import logs as logs
from node.streams.logs import search, write
from tests.node.etcd.support import start_store
from tests.sdk.support import COLONY, Party
from tests.support.daemons import Daemon


@pytest.fixture
def party(lone_daemon: Daemon) -> Party:
    return Party(lone_daemon).join()


async def test_locations_come_and_go(lone_daemon: Daemon) -> None:
    owner, user = lone_daemon.key("colony"), lone_daemon.key("user")
    async with lone_daemon.client() as client:

        async def call(msgtype: str, key: PrivateKey = user, **fields: Any) -> Any:
            return await client.call(msgtype, fields, key)

        assert await call("getlocationsmsg", colonyname=COLONY) == []
        place = {
            "name": "living room/ä",
            "colonyname": COLONY,
            "description": "warm",
            "long": 22.15,
            "lat": 65,
        }
        added = await call("addlocationmsg", owner, location=place)
        assert len(added.pop("locationid")) == 64
        assert added == place
        other = {"name": "attic", "colonyname": COLONY, "locationid": "mine"}
        assert (await call("addlocationmsg", owner, location=other))["locationid"] == "mine"
        found = await call("getlocationsmsg", colonyname=COLONY)
        assert [each["name"] for each in found] == ["attic", "living room/ä"]
        got = await call("getlocationmsg", colonyname=COLONY, name="living room/ä")
        assert (got["lat"], got["long"]) == (65.0, 22.15)
        for key, msgtype, fields, status in (
            (owner, "addlocationmsg", {"location": place}, 400),
            (owner, "addlocationmsg", {"location": place | {"name": ""}}, 400),
            (owner, "addlocationmsg", {"location": place | {"lat": "65"}}, 400),
            (owner, "addlocationmsg", {"location": place | {"colonyname": "nowhere"}}, 403),
            (user, "addlocationmsg", {"location": place | {"name": "x"}}, 403),
            (user, "removelocationmsg", {"colonyname": COLONY, "name": "attic"}, 403),
            (owner, "removelocationmsg", {"colonyname": COLONY, "name": "cellar"}, 404),
            (owner, "getlocationsmsg", {"colonyname": COLONY}, 403),
            (user, "getlocationmsg", {"colonyname": COLONY, "name": "cellar"}, 404),
        ):
            with pytest.raises(RpcError) as caught:
                await call(msgtype, key, **fields)
            assert caught.value.status == status, fields
        for each in found:
            assert (
                await call("removelocationmsg", owner, colonyname=COLONY, name=each["name"]) == {}
            )
        assert await call("getlocationsmsg", colonyname=COLONY) == []


async def test_what_is_a_colonys_goes_with_it(lone_daemon: Daemon) -> None:
    owner, server = PrivateKey.generate(), lone_daemon.key("server")
    colony = {"colonyid": owner.id, "name": "passing"}
    user = {"colonyname": "passing", "userid": owner.id, "name": "ann"}
    async with lone_daemon.client() as client:
        for left in (0, 1):
            await client.call("addcolonymsg", {"colony": colony}, server)
            await client.call("addusermsg", {"user": user}, owner)
            named = {"colonyname": "passing"}
            assert await client.call("getlocationsmsg", named, owner) == [], left
            place = {**named, "name": "here"}
            await client.call("addlocationmsg", {"location": place}, owner)
            await client.call("removecolonymsg", named, server)


async def test_an_executor_says_which_blueprint_it_came_from(lone_daemon: Daemon) -> None:
    owner = lone_daemon.key("colony")
    key = PrivateKey.generate()
    executor = {
        "executorid": key.id,
        "executorname": "made",
        "executortype": "t",
        "colonyname": COLONY,
        "blueprintid": "b1",
        "blueprintgen": 3,
    }
    async with lone_daemon.client() as client:
        await client.call("addexecutormsg", {"executor": executor}, owner)
        named = {"colonyname": COLONY, "executorname": "made"}
        found = await client.call("getexecutormsg", named, lone_daemon.key("user"))
        assert (found["blueprintid"], found["blueprintgen"]) == ("b1", 3)


async def test_the_cluster_is_this_daemon(lone_daemon: Daemon) -> None:
    async with lone_daemon.client() as client:
        found = await client.call("getclustermsg", {}, lone_daemon.key("server"))
        here = {
            "name": socket.gethostname(),
            "host": "127.0.0.1",
            "port": 0,
            "peerport": 0,
            "relayport": 0,
            "apiport": lone_daemon.port,
        }
        assert found == {"nodes": [here], "leader": here}
        with pytest.raises(RpcError) as caught:
            await client.call("getclustermsg", {}, lone_daemon.key("user"))
        assert caught.value.status == 403


async def test_logs_are_found_newest_first(party: Party, lone_daemon: Daemon) -> None:
    user = lone_daemon.key("user")
    in_thread = trio.to_thread.run_sync
    process = await in_thread(party.submit)
    await in_thread(party.assign)
    for number in range(1, 5):
        await in_thread(
            party.colonies.add_log, process.processid, f"needle {number} 100%", party.key
        )
    await in_thread(party.colonies.add_log, process.processid, "NEEDLE", party.key)
    async with lone_daemon.client() as client:
        line = {"colonyname": COLONY, "executorname": party.name, "message": "a needle, too"}
        await client.call("addexecutorlogmsg", line, PrivateKey.from_hex(party.key))

        async def find(text: str, days: int = 1, count: int = 100, **more: Any) -> list[str]:
            fields = {"colonyname": COLONY, "text": text, "days": days, "count": count, **more}
            return [line["message"] for line in await client.call("searchlogsmsg", fields, user)]

        numbered = [f"needle {number} 100%" for number in (4, 3, 2, 1)]
        assert await find("needle") == ["a needle, too", *numbered]
        assert await find("needle", 30, 2) == ["a needle, too", numbered[0]]
        assert await find("0%") == numbered
        assert await find("n%e") == await find("needle", 0) == await find("needle", 1, 0) == []
        for fields in ({"days": 31}, {"count": 101}, {"days": -1}, {"count": -1}):
            with pytest.raises(RpcError) as caught:
                await find("x", **fields)
            assert caught.value.status == 400
        with pytest.raises(RpcError) as caught:
            await find("x", colonyname="elsewhere")
        assert caught.value.status == 403
        found = await client.call(
            "searchlogsmsg", {"colonyname": COLONY, "text": "4 1", "days": 1, "count": 1}, user
        )
        assert (found[0]["processid"], found[0]["executorname"]) == (process.processid, party.name)


async def test_a_search_reads_no_further_than_it_must(
    nursery: trio.Nursery,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running = await start_store(nursery, tmp_path_factory.mktemp("s") / "etcd")
    async with open_client(running.target) as client:
        now = 1_700_000_000 * 10**9 + 9 * 10**12
        lines = [now - number * 10**11 for number in range(300)]
        async with trio.open_nursery() as writing:
            for number, timestamp in enumerate(lines):
                name = f"e{number % 3}"
                log = Log("p" * (number % 2), "c", name, f"line {number}", timestamp)
                writing.start_soon(write, client, log)
            writing.start_soon(write, client, Log("", "c2", "e", "line 0", now))
            writing.start_soon(write, client, Log("", "c", "e", "line old", now - 40 * DAY))
        reads = 0
        commit, scan = client.commit, client.range

        def counting(call: Any) -> Any:
            async def counted(*args: Any, **more: Any) -> Any:
                nonlocal reads
                reads += 1
                return await call(*args, **more)

            return counted

        client.commit, client.range = counting(commit), counting(scan)  # type: ignore[method-assign]

        async def find(text: str, count: int, days: int = 30) -> list[str]:
            return [
                line.message
                for line in await whole(
                    search(client, "c", text, count, since=now - days * DAY, until=now)
                )
            ]

        monkeypatch.setattr(logs, "MAX_LOOKED_AT", 100)
        assert await find("line 99", 2) == ["line 99"]
        with pytest.raises(RpcRefusal, match="not in the newest 1") as caught:
            await find("line 299", 1)
        assert caught.value.status == 400
        monkeypatch.undo()
        reads = 0
        assert await find("line", 7) == [f"line {number}" for number in range(7)]
        assert reads == 2
        assert await find("line 29", 100) == ["line 29", *(f"line {n}" for n in range(290, 300))]
        assert await find("line", 1000, 1) == [f"line {number}" for number in range(300)]
        assert await find("old", 1) == []
        assert await find("old", 1, 41) == ["line old"]
        # The edge of the days is exact, within a bucket, too.
        since = lines[99]
        found = await whole(search(client, "c", "line", 1000, since=since, until=now))
        assert [line.message for line in found] == [f"line {number}" for number in range(99)]


def test_places_sort_newest_first() -> None:
    times = [1, store.BUCKET - 1, store.BUCKET, 17 * 10**17, 17 * 10**17 + 1, 2**63 - 1]
    places = [store.place("c", time, "name") for time in times]
    assert sorted(places, reverse=True) == places
    assert [store.parse(place) for place in places] == [(time, "name") for time in times]


async def test_a_location_is_ensured_once(
    nursery: trio.Nursery, tmp_path_factory: pytest.TempPathFactory
) -> None:
    running = await start_store(nursery, tmp_path_factory.mktemp("s") / "etcd")
    async with open_client(running.target) as client:
        locations = Locations(client)
        made = await locations.ensure("c", "attic")
        assert await locations.ensure("c", "attic") == made
        assert await locations.all_of("c") == [made]
        assert await locations.all_of("other") == []
