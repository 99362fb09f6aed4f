"""A process whose mounts need files, forwarded: who gets them, from whom, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from colonyd.errors import RpcError
from federation.forward import attachments as manifest
from federation.outbox import files as depot
from federation.transport.errors import RemoteRefusal
from federation.wire.envelope import Kind
from federation.wire.messages import Carried, Chunk, Fetch, load
from node.etcd.pages import whole
from node.model.types import Filesystem, Process, SnapshotMount, State, SyncDirMount
from tests.federation.inbox.support import close, take
from tests.federation.outbox.support import furnish, furnished, mounts, put, sum_of
from tests.support.colonies import Colony

BIG = os.urandom(5 * 2**20)


async def read(colony: Colony, label: str, name: str) -> bytes:
    """What an executor gets that asks its own colony."""
    assert colony.node is not None
    (file,) = await whole(colony.node.files.versions(colony.name, label, name))
    assert colony.node.files.blobs is not None
    assert await colony.node.files.holding(colony.name, file.checksum)
    return await trio.Path(colony.node.files.blobs.file(file.checksum)).read_bytes()


def label_of(process: Process, place: int = 0) -> str:
    assert process.spec.fs is not None
    assert process.spec.fs.dirs is not None
    return process.spec.fs.dirs[place].label


def final(error: RemoteRefusal) -> bool:
    return error.final


async def test_an_executor_finds_the_files_of_the_origin(tmp_path: Path) -> None:
    async with furnished(tmp_path, "ant", "bee") as there:
        ant, bee = there.values()
        assert ant.node is not None
        assert bee.node is not None
        await put(ant, "/data", "big", BIG)
        await put(ant, "/data/sub", "small", b"s")
        await put(ant, "/data", "empty", b"")
        await put(ant, "/src", "code", b"v1")
        snapshot = await ant.node.files.create_snapshot("ant", "/src", "snap")
        await put(ant, "/src", "code", b"v2")
        await put(bee, "/data", "mine", b"private")
        snap = {"snapshotid": snapshot.snapshotid, "label": "/src", "dir": "/s"}
        fs = mounts("/data", "/new", snapshots=[snap])
        processid = await ant.submit("bee", fs=fs)
        far = await take(bee)
        root = f"/forwarded/{far.processid}"
        assert [label_of(far), label_of(far, 1)] == [f"{root}/d/data", f"{root}/d/new"]
        assert await read(bee, f"{root}/d/data", "big") == BIG
        assert await read(bee, f"{root}/d/data/sub", "small") == b"s"
        assert await read(bee, f"{root}/d/data", "empty") == b""
        names = [file.name for file in await whole(bee.node.files.listing("bee", f"{root}/d/data"))]
        assert names == ["big", "empty"]
        # The snapshot has the bytes of its moment, and the same layout below its label.
        assert far.spec.fs is not None
        assert far.spec.fs.snapshots is not None
        there_is = far.spec.fs.snapshots[0]
        assert there_is.label == f"{root}/0/src"
        found = await bee.node.files.snapshot("bee", there_is.snapshotid)
        assert found is not None
        (file,) = [await bee.node.files.get("bee", found.fileids.hex())]
        assert file is not None
        assert file.checksum == sum_of(b"v1")
        assert far.spec.fs.mount == "/m"
        assert (await ant.process(processid)).spec.fs == msgspec.convert(fs, Filesystem)
        await close(bee, far, "end")
        assert (await ant.closed(processid)).state == State.SUCCESSFUL
        # Another process fetches nothing anew.
        fetched = bee.fed.file_transfer.counters["fetched"]
        assert fetched == len(BIG) + len(b"s") + len(b"v1")
        await ant.submit("bee", fs=fs)
        await take(bee)
        assert bee.fed.file_transfer.counters["fetched"] == fetched


async def test_wrong_bytes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with furnished(tmp_path, "ant", "bee") as there:
        ant, bee = there.values()
        file = await put(ant, "/data", "f", b"right")
        assert ant.node is not None
        assert ant.node.files.blobs is not None
        path = trio.Path(ant.node.files.blobs.file(file.checksum))
        await path.write_bytes(b"wrong")
        process = await ant.closed(await ant.submit("bee", fs=mounts("/data")))
        assert process.state == State.FAILED
        assert "file_checksum" in process.errors[0]
        assert bee.fed.server.counters["file_checksum"] == 1
        assert bee.node is not None
        assert await bee.node.files.holding("bee", file.checksum) is None
        assert not bee.waiting()
        await path.write_bytes(b"few")
        process = await ant.closed(await ant.submit("bee", fs=mounts("/data")))
        assert "fewer bytes" in process.errors[0]
        await path.unlink()
        process = await ant.closed(await ant.submit("bee", fs=mounts("/data")))
        assert "file_gone" in process.errors[0]
        # Without room there, the process fails and says so.
        furnish(bee, tmp_path, 3)
        await put(ant, "/other", "f", b"too much")
        process = await ant.closed(await ant.submit("bee", fs=mounts("/other")))
        assert "files_quota" in process.errors[0]
        monkeypatch.setattr(manifest, "MAX_BYTES", 7)
        process = await ant.closed(await ant.submit("bee", fs=mounts("/other")))
        assert "at most 7 bytes" in process.errors[0]
        bee.fed.file_transfer.files = None
        process = await ant.closed(await ant.submit("bee", fs=mounts("/none")))
        assert "no_files" in process.errors[0]
        process = await ant.closed(
            await ant.submit("bee", fs={"snapshots": [{"snapshotid": "1" * 64, "label": "/"}]})
        )
        assert "no such snapshot" in process.errors[0]


async def test_what_takes_long_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with furnished(tmp_path, "ant", "bee") as there:
        ant, bee = there.values()
        await put(ant, "/data", "big", BIG)
        monkeypatch.setattr(depot, "_PATIENCE", 0.5)
        served, read = 0, ant.fed.file_transfer._read

        async def slowly(fetch: Fetch) -> bytes:
            nonlocal served
            await trio.sleep(0.3)
            data = await read(fetch)
            served += len(data)
            # The first try ends in the middle of a piece; the next may take its time.
            monkeypatch.setattr(depot, "_PATIENCE", 12.0)
            return data

        monkeypatch.setattr(ant.fed.file_transfer, "_read", slowly)
        await ant.submit("bee", fs=mounts("/data"))
        far = await take(bee)
        tries = bee.fed.server.counters["files_pending"]
        assert tries >= 1
        assert await read_there(bee, far) == BIG
        # Each of them lost at most the piece that was under way.
        assert served <= len(BIG) + tries * 2**20


async def read_there(bee: Colony, far: Process) -> bytes:
    return await read(bee, label_of(far), "big")


async def test_only_the_bytes_that_a_process_was_sent_with_and_only_to_its_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with furnished(tmp_path, "ant", "bee", "cat") as there:
        ant, bee, cat = there.values()
        sent = await put(ant, "/data", "f", b"sent")
        other = await put(ant, "/other", "f", b"other")
        processid = await ant.submit("bee", fs=mounts("/data"))
        await take(bee)
        await ant.when(processid, lambda process: process.state == State.RUNNING)

        async def fetch(
            who: Colony, checksum: str, pid: str = processid, attempt: int = 1
        ) -> bytes:
            connection = who.fed.connections[ant.key.id]
            body = connection.seal(Kind.FETCH, Fetch(pid, attempt, checksum, 0))
            opened, _ = await connection.post("/v1/files", body, Kind.CHUNK)
            return load(opened.payload, Chunk).data

        assert await fetch(bee, sent.checksum) == b"sent"
        with pytest.raises(RemoteRefusal, match="unknown_file", check=final):
            await fetch(bee, other.checksum)
        with pytest.raises(RemoteRefusal, match="unknown_process", check=final):
            await fetch(cat, sent.checksum)
        with pytest.raises(RemoteRefusal, match="unknown_process", check=final):
            await fetch(bee, sent.checksum, attempt=2)
        assert ant.fed.server.counters["unknown_process"] == 2
        await ant.fed.context.processes.cancel("ant", processid)
        await ant.closed(processid)
        # A colony that only knows the checksum of another's file gets nothing of it.
        await put(cat, "/secret", "f", b"cat only")
        ant_says = [Carried("d", "/data", "f", 8, sum_of(b"cat only"))]
        gathered = ant.fed.file_transfer.gather

        async def claim(process: Process) -> list[Carried] | None:
            assert await gathered(process) is not None
            return ant_says

        monkeypatch.setattr(ant.fed.file_transfer, "gather", claim)
        process = await ant.closed(await ant.submit("cat", fs=mounts("/data")))
        assert "file_gone" in process.errors[0]


async def test_a_relay_passes_bytes_on(tmp_path: Path) -> None:
    async with furnished(tmp_path, "ant", "bee", "cat") as there:
        ant, bee, cat = there.values()
        await bee.trust(ant, forward=True, max_hops=2)
        await cat.trust(bee, max_hops=2)
        await put(ant, "/data", "big", BIG)
        await ant.submit("bee/cat", fs=mounts("/data"))
        far = await take(cat)
        assert await read_there(cat, far) == BIG
        assert bee.node is not None
        assert await whole(bee.node.files.labels("bee", "/")) == []


async def test_files_go_with_their_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with furnished(tmp_path, "ant", "bee") as there:
        ant, bee = there.values()
        assert bee.node is not None
        await put(ant, "/data", "f", b"x")
        await put(bee, "/data", "f", b"mine")
        processid = await ant.submit("bee", fs=mounts("/data"))
        far = await take(bee)
        monkeypatch.setattr(depot, "_STALE", -1)
        await bee.fed.file_transfer.sweep()
        assert await read(bee, label_of(far), "f") == b"x"
        await close(bee, far, "end")
        await ant.closed(processid)
        while any(bee.fed.inbox.outcome_queue.owed.values()):
            await ant.fed.outcome_poller.poll_once(ant.fed.connections[bee.key.id])
        await bee.node.processes.remove("bee", far.processid)
        await bee.fed.file_transfer.sweep()
        assert [label.name for label in await whole(bee.node.files.labels("bee", "/"))] == ["/data"]


# -- as values -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fs",
    [
        None,
        Filesystem(),
        Filesystem(dirs=[], snapshots=[]),
        Filesystem(dirs=[SyncDirMount()]),
        Filesystem(snapshots=[SnapshotMount()]),
    ],
)
def test_what_mounts_nothing_needs_nothing(fs: Filesystem | None) -> None:
    assert manifest.needs_files(fs) is False
    assert manifest.rewritten(fs, "p") == fs


def test_mounts_are_found_and_renamed() -> None:
    fs = Filesystem(
        dirs=[SyncDirMount("/a"), SyncDirMount("b/")],
        snapshots=[SnapshotMount(), SnapshotMount("i", "l")],
    )
    before = msgspec.json.encode(fs)
    assert manifest.dirs(fs) == ["/a", "/b"]
    assert manifest.snapshots(fs) == {1: "i"}
    after = manifest.rewritten(fs, "p")
    assert after is not None
    assert after.dirs == [SyncDirMount("/forwarded/p/d/a"), SyncDirMount("/forwarded/p/d/b")]
    name = manifest.snapshot_id("p", 1)
    assert after.snapshots == [SnapshotMount(), SnapshotMount(name, "/forwarded/p/1/l")]
    assert msgspec.json.encode(fs) == before
    with pytest.raises(RpcError, match="at most 50"):
        manifest.dirs(Filesystem(dirs=[SyncDirMount("/x")] * 51))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"label": "data"}, "label"),
        ({"label": "/../x"}, "label"),
        ({"label": "/a//b"}, "label"),
        ({"name": "a/b"}, "name"),
        ({"name": ""}, "name"),
        ({"checksum": "x"}, "checksum"),
    ],
)
def test_a_file_that_could_be_anywhere_else_is_refused(changes: dict[str, Any], field: str) -> None:
    good = Carried("d", "/data", "f", 3, "0" * 64)
    assert manifest.check([good]) == 3
    with pytest.raises(RpcError, match=rf"files\[1\].{field}"):
        manifest.check([good, msgspec.structs.replace(good, **({"name": "g"} | changes))])
    with pytest.raises(RpcError, match="twice"):
        manifest.check([good, good])
