"""The change of one stored value, with others that write between its read and its write."""

from __future__ import annotations

from typing import NoReturn, cast

import pytest
import trio

from colonyd.errors import Conflict
from node.etcd.client import EtcdClient
from node.etcd.txn import Absent, Present, Put
from node.model.codec import pack, unpack
from node.store.locations import Location
from node.store.update import Unmet, update
from tests.support.interleaved import Meddled

KEY, OTHER = "/test/place", "/test/other"


def place(text: str) -> Location:
    return Location("here", "dev", description=text)


def as_client(client: Meddled) -> EtcdClient:
    return cast(EtcdClient, client)


def longer(there: Location | None) -> Location:
    return place(there.description + "+" if there is not None else "")


async def held(client: EtcdClient) -> tuple[str, int]:
    found = await client.get(KEY)
    assert found is not None
    return unpack(found.value, Location).description, found.mod_revision


async def test_a_value_is_made_then_changed(client: EtcdClient) -> None:
    for expected in ("", "+", "++"):
        value, revision = await update(client, KEY, Location, longer, what="it")
        assert (value.description, revision) == (expected, revision)
        assert await held(client) == (expected, revision)


@pytest.mark.parametrize("before", [None, "a"])
async def test_what_another_wrote_meanwhile_is_changed(
    client: EtcdClient, before: str | None
) -> None:
    if before is not None:
        await client.put(KEY, pack(place(before)))
    meddled = Meddled(client)
    meddled.first = lambda: client.put(KEY, pack(place("b")))
    value, revision = await update(as_client(meddled), KEY, Location, longer, what="it")
    assert value.description == "b+"
    assert await held(client) == ("b+", revision)


async def test_what_another_removed_meanwhile_is_made_anew(client: EtcdClient) -> None:
    await client.put(KEY, pack(place("a")))
    meddled = Meddled(client)
    meddled.first = lambda: client.delete(KEY)
    await update(as_client(meddled), KEY, Location, longer, what="it")
    assert (await held(client))[0] == ""


async def test_none_leaves_it_as_it_is(client: EtcdClient) -> None:
    assert await update(client, KEY, Location, lambda _: None, what="it") == (None, 0)
    assert await client.get(KEY) is None
    revision = await client.put(KEY, pack(place("a")))
    assert await update(client, KEY, Location, lambda _: None, what="it") == (None, revision)
    assert await held(client) == ("a", revision)


async def test_what_a_change_raises_leaves_it_as_it_is(client: EtcdClient) -> None:
    revision = await client.put(KEY, pack(place("a")))

    def refuse(there: Location | None) -> NoReturn:
        raise ValueError(there)

    with pytest.raises(ValueError, match="'a'"):
        await update(client, KEY, Location, refuse, what="it")
    assert await held(client) == ("a", revision)


async def test_other_writes_go_along_if_other_conditions_hold(client: EtcdClient) -> None:
    ops, free = [Put(OTHER, b"x")], [Absent(OTHER)]
    _, revision = await update(client, KEY, Location, longer, what="it", compare=free, ops=ops)
    other = await client.get(OTHER)
    assert other is not None
    assert (other.value, other.mod_revision) == (b"x", revision)
    with pytest.raises(Unmet):
        await update(client, KEY, Location, longer, what="it", compare=free, ops=ops)
    assert await held(client) == ("", revision)
    await update(client, KEY, Location, longer, what="it", compare=[Present(OTHER)])
    assert (await held(client))[0] == "+"


async def test_it_gives_up_after_so_many_lost_races(client: EtcdClient) -> None:
    meddled, seen = Meddled(client), list[str | None]()

    def change(there: Location | None) -> Location:
        seen.append(there.description if there is not None else None)
        meddled.first = lambda: client.put(KEY, pack(place(str(len(seen)))))
        return place("never")

    with pytest.raises(Conflict, match=r"^it changes too fast; try again"):
        await update(as_client(meddled), KEY, Location, change, what="it", tries=3)
    assert seen == [None, "1", "2"]
    assert (await held(client))[0] == "3"


async def test_all_of_many_that_write_at_once_are_counted(client: EtcdClient) -> None:
    async def add() -> None:
        await update(client, KEY, Location, longer, what="it", tries=20)

    async with trio.open_nursery() as nursery:
        for _ in range(12):
            nursery.start_soon(add)
    assert (await held(client))[0] == "+" * 11
