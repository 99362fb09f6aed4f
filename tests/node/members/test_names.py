"""Names that upstream takes work everywhere here: in keys, listings, logs and key files."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colonyd.errors import RpcError as Refused
from colonyd.keys import PrivateKey
from colonyd.names import in_file, in_key, of_key
from colonyd.rpc import RpcError
from node.model.names import check_name
from tests.support.daemons import Daemon

NAMES = ["anna@example.org", "Jürgen Maß", "a/b", "a b", "..", "%2e", "日本", "x" * 200]
REFUSED = {
    "": "1 to 200",
    "x" * 201: "1 to 200",
    "a\0b": "can't be seen",
    "a\nb": "can't be seen",
    "a\u202eb": "can't be seen",
    "a\u200bb": "can't be seen",
    " a": "blank",
    "a:b": "':'",
    "colony/bee": "nobody else",
    "u\u0308": "normal form C",
}


def is_usable(name: str) -> bool:
    with suppress(Refused):
        check_name(name, "name")
        return True
    return False


@given(st.text().filter(is_usable))
def test_a_name_is_one_part_of_a_key(name: str) -> None:
    part = in_key(name)
    assert "/" not in part
    assert part.isascii()
    assert of_key(part) == name


@given(st.from_regex(r"[A-Za-z0-9_.\-]+", fullmatch=True))
def test_names_of_earlier_releases_stay_where_they_are(name: str) -> None:
    assert in_key(name) == name


@given(st.text().filter(is_usable))
def test_a_name_is_one_file(name: str) -> None:
    assert in_file(name) not in (".", "..")
    assert "/" not in in_file(name)


def test_a_long_name_has_a_file_of_its_own() -> None:
    assert in_file("a" * 200) == "a" * 200
    assert in_file("w ß") == in_key("w ß")
    long = ["ü" * 200, "ü" * 199 + "a", "ü" * 198]
    assert len({in_file(name) for name in long}) == 3
    assert max(len(in_file(name)) for name in long) < 252


@pytest.mark.slow
async def test_members_and_locations_may_be_called_anything(lone_daemon: Daemon) -> None:
    owner, us, dev = lone_daemon.key("colony"), lone_daemon.key("user"), lone_daemon.name
    async with lone_daemon.client() as client:
        for name in NAMES:
            person, worker = PrivateKey.generate(), PrivateKey.generate()
            user = {"colonyname": dev, "userid": person.id, "name": name}
            await client.call("addusermsg", {"user": user}, owner)
            executor = {
                "colonyname": dev,
                "executorid": worker.id,
                "executorname": name,
                "executortype": "named",
                "locationname": name,
            }
            await client.call("addexecutormsg", {"executor": executor}, owner)
            named = {"colonyname": dev, "executorname": name}
            await client.call("approveexecutormsg", named, owner)
            place = {"colonyname": dev, "name": name}
            await client.call("addlocationmsg", {"location": place}, owner)
            assert (await client.call("getlocationmsg", place, person))["name"] == name
            assert (await client.call("getusermsg", place, person))["userid"] == person.id
            found = await client.call("getexecutormsg", named, person)
            assert found["executorid"] == worker.id
            # Submitted by its name, for its name and place, and told by its name.
            conditions = {
                "colonyname": dev,
                "executortype": "named",
                "executornames": [name],
                "locationname": name,
            }
            spec = {"funcname": "f", "conditions": conditions}
            made = await client.call("submitfuncspecmsg", {"spec": spec}, person)
            assert made["initiatorname"] == name
            ask = {"colonyname": dev, "timeout": 10}
            pid = (await client.call("assignprocessmsg", ask, worker))["processid"]
            assert pid == made["processid"]
            line = {"processid": pid, "message": f"said by {name}"}
            await client.call("addlogmsg", line, worker)
            logs = {"colonyname": dev, "executorname": name, "count": 10}
            (told,) = await client.call("getlogsmsg", logs, person)
            assert (told["executorname"], told["message"]) == (name, line["message"])
            search = {"colonyname": dev, "text": line["message"], "days": 1, "count": 10}
            (hit,) = await client.call("searchlogsmsg", search, person)
            assert hit["executorname"] == name
            await client.call("closesuccessfulmsg", {"processid": pid}, worker)
        users = await client.call("getusersmsg", {"colonyname": dev}, us)
        assert {user["name"] for user in users} >= set(NAMES)
        executors = await client.call("getexecutorsmsg", {"colonyname": dev}, us)
        assert {each["executorname"] for each in executors} >= set(NAMES)
        for name in NAMES:
            await client.call("removeexecutormsg", {"colonyname": dev, "executorname": name}, owner)
            await client.call("removeusermsg", {"colonyname": dev, "name": name}, owner)
            await client.call("removelocationmsg", {"colonyname": dev, "name": name}, owner)
        users = await client.call("getusersmsg", {"colonyname": dev}, us)
        assert not {user["name"] for user in users} & set(NAMES)


@pytest.mark.slow
async def test_what_is_refused_says_why(lone_daemon: Daemon) -> None:
    owner, dev = lone_daemon.key("colony"), lone_daemon.name
    async with lone_daemon.client() as client:
        for name, why in REFUSED.items():
            rows = {
                "addusermsg": ("user", {"userid": "9" * 64, "name": name}),
                "addexecutormsg": (
                    "executor",
                    {"executorid": "9" * 64, "executorname": name, "executortype": "t"},
                ),
                "addlocationmsg": ("location", {"name": name}),
            }
            for call, (kind, fields) in rows.items():
                with pytest.raises(RpcError, match=rf"{kind}\.\w*name: .*{why}.*400"):
                    await client.call(call, {kind: fields | {"colonyname": dev}}, owner)


@pytest.mark.slow
async def test_ids_that_can_not_sign_are_taken_as_upstream(lone_daemon: Daemon) -> None:
    owner, dev = lone_daemon.key("colony"), lone_daemon.name
    async with lone_daemon.client() as client:
        for number, identity in enumerate(["anna", "3f2504e0-4f89-11d3", "A" * 64]):
            user = {"colonyname": dev, "userid": identity, "name": f"odd{number}"}
            await client.call("addusermsg", {"user": user}, owner)
            wanted = {"colonyname": dev, "userid": identity}
            found = await client.call("getuserbyidmsg", wanted, lone_daemon.key("user"))
            assert found["name"] == f"odd{number}"
        user |= {"name": "none", "userid": ""}
        with pytest.raises(RpcError, match=r"user\.userid.*400"):
            await client.call("addusermsg", {"user": user}, owner)
