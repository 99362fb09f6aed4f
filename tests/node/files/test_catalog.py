"""Versions, labels and snapshots of files: what a member sees, and what nobody can break.

Their bytes are in `node.files.test_blobs` and `sdk.test_s3`.
"""

from __future__ import annotations

import time
import uuid
from typing import Any

import crypto  # type: ignore[import-untyped]
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from pycolonies import Colonies

from colonyd.errors import RpcError as Refusal
from colonyd.rpc import RpcError, decode, encode
from node.etcd.client import EtcdClient, open_client
from node.etcd.txn import Put, Txn
from node.files.catalog import MAX_SNAPSHOT, Files
from node.files.labels import check_name, normalise_label
from node.host.config import QuotasConfig
from node.model.codec import pack
from node.model.ids import new_id
from node.processes.quotas import Quotas
from node.store import files as store
from node.store import keys
from node.store.files import File, Newest, Reference, Snapshot
from tests.support.asked import counting
from tests.support.daemons import Daemon
from tests.support.files import another_colony, files_of


def fresh() -> str:
    """A label that no other test uses."""
    return f"/t-{uuid.uuid4().hex[:10]}"


async def test_versions_are_kept_in_order_and_the_newest_is_listed(lone_daemon: Daemon) -> None:
    label = fresh()
    async with files_of(lone_daemon) as files:
        first = await files.add(label, "a", "one", fileid="mine", sequencenr=99)
        second = await files.add(label, "a", "two", size=9)
        assert first["fileid"] not in ("mine", second["fileid"])
        assert first["sequencenr"] < second["sequencenr"] != 99
        assert len(first["fileid"]) == 64
        assert first["added"] < second["added"]
        address = {"label": label, "name": "a"}
        both = await files.call("getfilemsg", **address, latest=False)
        assert both == [second, first]
        assert await files.call("getfilemsg", **address, latest=True) == [second]
        assert await files.call("getfilemsg", fileid=first["fileid"]) == [first]
        listed = await files.call("getfilesmsg", label=label)
        assert listed == [{"name": "a", "checksum": "two", "size": 9, "s3filename": "object-two"}]


async def test_a_listing_is_of_one_label_and_labels_count_versions(lone_daemon: Daemon) -> None:
    label = fresh()
    async with files_of(lone_daemon) as files:
        for where, name in ((label, "a"), (label, "a"), (f"{label}/sub", "b"), (f"{label}x", "c")):
            await files.add(where, name)
        assert [row["name"] for row in await files.call("getfilesmsg", label=label)] == ["a"]
        exact = await files.call("getfilelabelsmsg", name=label, exact=True)
        assert exact == [{"name": label, "files": 2}, {"name": f"{label}/sub", "files": 1}]
        starting = await files.call("getfilelabelsmsg", name=label, exact=False)
        assert [row["name"] for row in starting] == [label, f"{label}/sub", f"{label}x"]
        everything = await files.call("getfilelabelsmsg", name="")
        assert {row["name"] for row in everything} >= {row["name"] for row in starting}
        below = await files.call("getfilelabelsmsg", name=f"{label[:-1]}", exact=True)
        assert below == []


async def test_labels_have_one_spelling(lone_daemon: Daemon) -> None:
    label = fresh()
    async with files_of(lone_daemon) as files:
        for spelling in (label[1:], f"{label}/", f"/{label}//"):
            assert (await files.add(spelling, "a"))["label"] == label
        assert len(await files.call("getfilemsg", label=f"{label}/", name="a")) == 3
        assert (await files.add("", "at-the-root"))["label"] == "/"
        assert "at-the-root" in {r["name"] for r in await files.call("getfilesmsg", label="/")}
        assert label[1:] not in {r["name"] for r in await files.call("getfilesmsg", label="/")}


@pytest.mark.parametrize(
    ("label", "name", "field"),
    [
        ("/a", "../../etc/passwd", "file.name"),
        ("/a", "..", "file.name"),
        ("/a", "", "file.name"),
        ("/a", "a\\..\\b", "file.name"),
        ("/a", "a\nb", "file.name"),
        ("/a", "n" * 256, "file.name"),
        ("/a/../../b", "a", "file.label"),
        ("/a/./b", "a", "file.label"),
        ("/a\0", "a", "file.label"),
        ("/" + "a/" * 600, "a", "file.label"),
    ],
)
async def test_names_that_lead_elsewhere_are_refused(
    lone_daemon: Daemon, label: str, name: str, field: str
) -> None:
    async with files_of(lone_daemon) as files:
        with pytest.raises(RpcError, match=f"^{field}: ") as refused:
            await files.add(label, name)
        assert refused.value.status == 400


async def test_secrets_are_not_kept(lone_daemon: Daemon) -> None:
    label = fresh()
    place = {"server": "s", "port": -1, "object": "o", "bucket": "b", "encryptionalg": "aes"}
    secrets = {"accesskey": "SECRET1", "secretkey": "SECRET2", "encryptionkey": "SECRET3"}
    async with files_of(lone_daemon) as files:
        ref = {"protocol": "s3", "s3object": place | secrets}
        added = await files.add(label, "a", ref=ref)
        got = await files.call("getfilemsg", label=label, name="a", latest=True)
    assert "SECRET" not in str(added) + str(got)
    assert got[0]["ref"]["s3object"].items() >= place.items()
    async with open_client(f"unix:{lone_daemon.home}/etcd/localhost:1") as client:
        found, _ = await client.range_all(f"{keys.ROOT}file")
        assert found
        assert not any(b"SECRET" in kv.value for kv in found)


async def test_files_of_another_colony_are_unknown(lone_daemon: Daemon) -> None:
    label = fresh()
    async with files_of(lone_daemon) as mine:
        added = await mine.add(label, "a")
        theirs = await another_colony(lone_daemon, mine)
        with pytest.raises(RpcError, match="no such file") as refused:
            await theirs.call("getfilemsg", fileid=added["fileid"])
        assert refused.value.status == 404
        await theirs.call("removefilemsg", fileid=added["fileid"])
        assert await theirs.call("getfilelabelsmsg") == []
        theirs.colony = mine.colony
        for payloadtype in ("getfilesmsg", "getfilelabelsmsg", "getsnapshotsmsg"):
            with pytest.raises(RpcError) as refused:
                await theirs.call(payloadtype, label=label)
            assert refused.value.status == 403
        assert await mine.call("getfilemsg", fileid=added["fileid"]) == [added]


async def test_an_id_with_a_slash_is_no_key(lone_daemon: Daemon) -> None:
    async with files_of(lone_daemon) as files:
        for call in ("getfilemsg", "getsnapshotmsg"):
            with pytest.raises(RpcError) as refused:
                await files.call(call, fileid="../dev/x", snapshotid="a/b")
            assert refused.value.status == 404
            with pytest.raises(RpcError) as refused:
                await files.call(call)
            assert refused.value.status == 400


async def test_removing_the_newest_shows_the_one_before(lone_daemon: Daemon) -> None:
    label = fresh()
    async with files_of(lone_daemon) as files:
        made = [await files.add(label, "a", f"c{number}") for number in range(3)]
        await files.call("removefilemsg", fileid=made[1]["fileid"])
        listed = await files.call("getfilesmsg", label=label)
        assert listed[0]["checksum"] == "c2"
        await files.call("removefilemsg", fileid=made[2]["fileid"])
        listed = await files.call("getfilesmsg", label=label)
        assert listed[0]["checksum"] == "c0"
        again = await files.add(label, "a", "c3")
        assert again["sequencenr"] > made[2]["sequencenr"]
        for version in (made[0], again, again):
            await files.call("removefilemsg", fileid=version["fileid"])
        assert await files.call("getfilesmsg", label=label) == []
        assert await files.call("getfilelabelsmsg", name=label, exact=True) == []


async def test_all_of_many_versions_are_removed(lone_daemon: Daemon) -> None:
    label = fresh()
    async with files_of(lone_daemon) as files:
        for number in range(65):  # more than one transaction holds
            await files.add(label, "a", f"c{number}")
        await files.add(label, "b")
        await files.call("removefilemsg", label=f"{label}/", name="a")
        assert await files.call("getfilelabelsmsg", name=label) == [{"name": label, "files": 1}]
        with pytest.raises(RpcError, match="no such file"):
            await files.call("getfilemsg", label=label, name="a", latest=True)


async def test_many_versions_cost_no_more_than_few(
    client: EtcdClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Files(client, time.time_ns, quotas=Quotas(limits=QuotasConfig(colony_files=150)))
    asked = counting(client, monkeypatch)
    await client.put(keys.colony("c"), b"")

    async def add(name: str, number: int) -> File:
        checksum = f"{name}{number}"
        return await files.add(File(new_id(), "c", "/x", name, 1, checksum, "sha256", Reference()))

    for size, name in ((30, "few"), (120, "many")):
        for number in range(size):
            newest = await add(name, number)
        asked.forget()
        assert await files.newest("c", "/x", name) == [newest]
        assert asked.counted <= 1
        some = await files.newest("c", "/x", name, 5)
        assert [file.checksum for file in some] == [f"{name}{size - n}" for n in range(1, 6)]
        assert asked.counted <= 40
        asked.forget()
        await files.remove("c", newest.fileid)
        assert (await files.newest("c", "/x", name))[0].checksum == f"{name}{size - 2}"
        assert asked.counted <= 40
    asked.forget()
    await files.remove_all("c", "/x", "many")
    assert asked.given <= 31, "each version was read for each transaction: 325"
    assert await files.newest("c", "/x", "many") == []
    assert len(await files.newest("c", "/x", "few", 100)) == 29
    # As many were added already as there may be, so that the versions are counted: now and then.
    asked.forget()
    for number in range(150 - 29):
        await add("more", number)
    assert asked.counted <= 1_500, "for each version: 10,800"
    with pytest.raises(Refusal, match="has 150 versions of files"):
        await add("more", 0)


async def test_additions_at_the_same_time_all_count(lone_daemon: Daemon) -> None:
    label = fresh()
    made: list[Any] = []
    async with files_of(lone_daemon) as files:

        async def add(number: int) -> None:
            made.append(await files.add(label, f"n{number % 5}", f"c{number}"))

        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(add, number)
        numbers = [version["sequencenr"] for version in made]
        assert len(set(numbers)) == 40
        assert await files.call("getfilelabelsmsg", name=label) == [{"name": label, "files": 40}]
        listed = await files.call("getfilesmsg", label=label)
        newest = {v["name"]: v for v in sorted(made, key=lambda v: int(v["sequencenr"]))}
        assert {r["name"]: r["checksum"] for r in listed} == {
            name: version["checksum"] for name, version in newest.items()
        }


async def test_a_repeated_request_adds_one_version(lone_daemon: Daemon) -> None:
    label = fresh()
    async with files_of(lone_daemon) as files:
        file = {"colonyname": "dev", "label": label, "name": "a", "checksum": "c", "size": 1}
        snapshot = {"colonyname": "dev", "label": label, "name": label[1:]}
        for payloadtype, fields in (
            ("addfilemsg", {"file": file}),
            ("createsnapshotmsg", snapshot),
        ):
            body = encode(payloadtype, fields, files.key)
            answers = []
            for _ in range(2):
                answer = await files.http.post(f"{files.client.url}/api", content=body)
                answers.append(decode(payloadtype, answer.status_code, answer.content))
            assert answers[0] == answers[1]
        assert len(await files.call("getfilemsg", label=label, name="a")) == 1


async def test_a_snapshot_is_of_a_moment_and_a_tree(lone_daemon: Daemon) -> None:
    label = fresh()
    async with files_of(lone_daemon) as files:
        await files.add(label, "a", "old")
        wanted = [await files.add(label, "a"), await files.add(f"{label}/sub/deep", "b")]
        await files.add(f"{label}-beside", "c")
        name = f"{label[1:]}: one"
        made = await files.call("createsnapshotmsg", label=f"{label}/", name=name)
        assert made["label"] == label
        assert sorted(made["fileids"]) == sorted(v["fileid"] for v in wanted)
        await files.add(label, "a", "newer")
        await files.call("removefilemsg", fileid=wanted[1]["fileid"])
        assert await files.call("getsnapshotmsg", name=name) == made
        assert await files.call("getsnapshotmsg", snapshotid=made["snapshotid"]) == made
        with pytest.raises(RpcError, match=r"^name: ") as refused:
            await files.call("createsnapshotmsg", label=label, name=name)
        assert refused.value.status == 409
        later = await files.call("createsnapshotmsg", label=label, name=label[1:])
        assert (await files.call("getsnapshotsmsg"))[:2] == [later, made]
        await files.call("removesnapshotmsg", name=name)
        await files.call("removesnapshotmsg", name=name)
        with pytest.raises(RpcError) as refused:
            await files.call("getsnapshotmsg", snapshotid=made["snapshotid"])
        assert refused.value.status == 404
        await files.call("removesnapshotmsg", snapshotid=later["snapshotid"])
        again = await files.call("createsnapshotmsg", label=label, name=name)
        assert len(again["fileids"]) == 1
        await files.call("removeallsnapshotmsg")
        assert await files.call("getsnapshotsmsg") == []


@pytest.mark.parametrize("name", ["", "a/b", "a\nb", "x" * 257])
async def test_snapshots_need_a_usable_name(lone_daemon: Daemon, name: str) -> None:
    async with files_of(lone_daemon) as files:
        with pytest.raises(RpcError, match=r"^name: "):
            await files.call("createsnapshotmsg", label="/", name=name)


async def _make(daemon: Daemon, colony: str, label: str, count: int) -> list[str]:
    """Put names of files straight into the store: adding them by calls would take too long."""
    ids = [new_id() for _ in range(count)]
    async with open_client(f"unix:{daemon.home}/etcd/localhost:1") as client:
        for start in range(0, count, 100):
            ops = [
                Put(
                    store.names(colony, f"{label}/{number % 7}") + f"n{number:05d}",
                    pack(Newest(ids[number], number, "c", 1, "o")),
                )
                for number in range(start, min(count, start + 100))
            ]
            assert (await client.commit(Txn([], ops))).succeeded
    return ids


async def test_a_snapshot_of_ten_thousand_files(lone_daemon: Daemon) -> None:
    async with files_of(lone_daemon) as mine:
        files = await another_colony(lone_daemon, mine)
        ids = await _make(lone_daemon, files.colony, "/many", 10_000)
        made = await files.call("createsnapshotmsg", label="/many", name="many")
        assert sorted(made["fileids"]) == sorted(ids)
        got = await files.call("getsnapshotmsg", name="many")
        assert got == made


async def test_a_snapshot_of_too_many_files_is_refused(
    lone_daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.files.catalog.MAX_SNAPSHOT", 20)
    async with files_of(lone_daemon) as mine:
        files = await another_colony(lone_daemon, mine)
        await _make(lone_daemon, files.colony, "/some", 21)
        async with open_client(f"unix:{lone_daemon.home}/etcd/localhost:1") as client:
            with pytest.raises(Refusal, match=r"^label: 21 files") as refused:
                await Files(client, time.time_ns).create_snapshot(files.colony, "/", "all")
        assert refused.value.status == 400


def test_the_largest_snapshot_fits_the_store() -> None:
    snapshot = Snapshot("i" * 64, "c" * 63, "/" * 1024, "n" * 256, bytes(32 * MAX_SNAPSHOT), 1)
    assert len(pack(snapshot)) < 1_450_000


async def test_a_removed_colony_leaves_nothing(lone_daemon: Daemon) -> None:
    async with files_of(lone_daemon) as mine:
        files = await another_colony(lone_daemon, mine)
        await files.put("/x", "a", b"some bytes")
        await files.call("createsnapshotmsg", label="/", name="s")
        fields = {"colonyname": files.colony}
        await mine.client.call("removecolonymsg", fields, lone_daemon.key("server"))
        async with open_client(f"unix:{lone_daemon.home}/etcd/localhost:1") as client:
            for kind in ("file", "snapshot"):
                found, _ = await client.range_all(f"{keys.ROOT}{kind}")
                assert not [kv.key for kv in found if f"/{files.colony}/" in kv.key]


def test_pycolonies_reads_files_and_snapshots(lone_daemon: Daemon) -> None:
    """The calls of its own tests, beside those that need an S3 server (`sdk.test_s3`)."""
    colonies = Colonies("127.0.0.1", lone_daemon.port)
    owner, server = crypto.Crypto().prvkey(), lone_daemon.key("server").hex
    colony = f"python-{uuid.uuid4().hex[:8]}"
    colonies.add_colony({"colonyid": crypto.Crypto().id(owner), "name": colony}, server)
    key = crypto.Crypto().prvkey()
    executor = {
        "executorname": "e",
        "executorid": crypto.Crypto().id(key),
        "colonyname": colony,
        "executortype": "t",
    }
    colonies.add_executor(executor, owner)
    colonies.approve_executor(colony, "e", owner)
    colonies.create_snapshot(colony, "test_label", "test_name", key)
    assert len(colonies.get_snapshots(colony, key)) == 1
    snapshot = colonies.get_snapshot_by_name(colony, "test_name", key)
    assert (snapshot["name"], snapshot["fileids"]) == ("test_name", [])
    by_id = colonies.get_snapshot_by_id(colony, snapshot["snapshotid"], key)
    assert by_id["name"] == "test_name"
    assert colonies.get_files("/test", colony, key) == []
    assert colonies.get_file_labels(colony, key) == []
    with pytest.raises(Exception, match="no such file"):
        colonies.get_file(colony, key, label="/test", filename="nothing")
    colonies.del_colony(colony, server)


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=40))
def test_a_label_normalised_stays_so_and_inside(text: str) -> None:
    try:
        label = normalise_label(text, "label")
    except Refusal:
        return
    assert normalise_label(label, "label") == label
    assert label.startswith("/")
    assert label == "/" or not label.endswith("/")
    parts = label[1:].split("/") if label != "/" else []
    assert not {"", ".", ".."} & set(parts)
    for part in parts:
        assert check_name(part, "name") == part
