"""Backup and restore: all of a colony comes back, and what is no whole archive touches no home."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cbor2
import pytest
import trio
from click.testing import CliRunner, Result

from cli.main import main
from colonyd.keys import PrivateKey
from node.archive import backup as backups
from node.archive import bundle as archive
from node.archive.bundle import BackupError
from node.archive.chain import Chain, ChainHead, records
from node.etcd.client import open_client
from node.etcd.errors import Compacted
from node.etcd.txn import Put, Txn
from node.etcdserver.maintenance import maintain
from node.host.home import Home, HomeError, init_home, tighten
from node.store import keys
from tests.node.etcd.support import start_store
from tests.support.daemons import Daemon, until


def command(home: Path, *args: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["--home", str(home), *args], catch_exceptions=False)
    assert result.exit_code == code, f"{args}: {result.output}"
    return result


def tree(home: Path) -> dict[str, tuple[int, bytes]]:
    """Every file of a home but the store's, with its mode for us."""
    return {
        str(path.relative_to(home)): (path.stat().st_mode & 0o700, path.read_bytes())
        for path in sorted(home.rglob("*"))
        if path.is_file() and path.relative_to(home).parts[0] not in ("etcd", "lock")
    }


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of a colony that never ran."""
    base = tmp_path_factory.mktemp("small")
    init_home(base / "home", "dev", {})
    (base / "home/config.toml").write_text('[log]\nlevel = "debug"\n')
    Chain.open(base / "home/history/dev", ChainHead()).append(
        [{"kind": "process", "id": "x"}], 10**18
    )
    command(base / "home", "backup", str(base / "small.tar"))
    return base / "small.tar"


@pytest.mark.slow
async def test_all_of_a_colony_comes_back(make_daemon: Callable[..., Daemon]) -> None:
    environ = {"COLONYD_FEDERATION__ENABLED": "false"}
    daemon = await trio.to_thread.run_sync(lambda: make_daemon("dev", **environ).start())
    home, user = daemon.home, daemon.key("user")
    path = home.parent / "dev.tar"
    (home.parent / "notes.txt").write_text("bytes of a file")
    server = ["--server", f"127.0.0.1:{daemon.port}"]
    conditions = {"colonyname": "dev", "executortype": "cli"}

    async def state() -> dict[str, Any]:
        async with daemon.client() as client:

            async def ask(kind: str, **fields: Any) -> Any:
                return await client.call(kind, {"colonyname": "dev", **fields}, user)

            return {
                "waiting": await ask("getprocessesmsg", count=100, state=0),
                "closed": await ask("getprocessesmsg", count=100, state=4),
                "workflows": await ask("getprocessgraphsmsg", count=100, state=0),
                "executors": [e["executorid"] for e in await ask("getexecutorsmsg")],
                "files": await ask("getfilesmsg", label="/docs"),
            }

    async with daemon.client() as client:
        worker, owner = PrivateKey.generate(), daemon.key("colony")
        member = {"executorname": "w", "executorid": worker.id, "executortype": "cli"}
        await client.call("addexecutormsg", {"executor": member | {"colonyname": "dev"}}, owner)
        for number in range(5):
            spec = {"funcname": "f", "args": [number], "conditions": conditions}
            process = await client.call("submitfuncspecmsg", {"spec": spec}, user)
        await client.call("cancelprocessmsg", {"processid": process["processid"]}, user)
        specs = [
            {"nodename": "a", "funcname": "f", "conditions": conditions},
            {"nodename": "b", "funcname": "f", "conditions": conditions | {"dependencies": ["a"]}},
        ]
        flow = {"colonyname": "dev", "functionspecs": specs}
        await client.call("submitworkflowspecmsg", {"spec": flow}, user)
    put = ["file", "put", str(home.parent / "notes.txt"), "--label", "/docs"]
    await trio.to_thread.run_sync(partial(command, home, *server, *put))
    before = await state()
    assert len(before["waiting"]) == 6
    told = await trio.to_thread.run_sync(partial(command, home, "backup", str(path), "--json"))
    assert json.loads(told.stdout)["colony"] == "dev"
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(p.name for p in path.parent.iterdir()) == ["dev", "dev.tar", "notes.txt"]
    # Not over one that is there, nor into a home that a daemon uses.
    await trio.to_thread.run_sync(partial(command, home, "backup", str(path), code=2))
    refused = partial(command, home, "restore", "--force", str(path), code=69)
    assert "another daemon" in (await trio.to_thread.run_sync(refused)).stderr
    assert await trio.to_thread.run_sync(daemon.stop) == 0
    mine = tree(home)
    shutil.rmtree(home)
    await trio.to_thread.run_sync(partial(command, home, "restore", str(path)))
    assert tree(home) == mine
    assert home.stat().st_mode & 0o777 == 0o700
    await trio.to_thread.run_sync(daemon.start)
    assert await state() == before
    got = home.parent / "got.txt"
    get = ["file", "get", "/docs/notes.txt", "--to", str(got)]
    await trio.to_thread.run_sync(partial(command, home, *server, *get))
    assert got.read_text() == "bytes of a file"
    # And it works on.
    async with daemon.client() as client:
        spec = {"funcname": "f", "conditions": conditions}
        await client.call("submitfuncspecmsg", {"spec": spec}, user)
    assert len((await state())["waiting"]) == 7


def test_what_is_not_whole_is_refused_and_nothing_touched(small: Path, tmp_path: Path) -> None:
    data = small.read_bytes()
    bad = tmp_path / "bad.tar"
    used = tmp_path / "used"
    init_home(used, "other", {})
    there = tree(used)
    fresh = tmp_path / "fresh"
    end = data.rindex(b"manifest.json") - 1024
    step = max(1, len(data) // 40)
    variants = [data[:cut] for cut in range(0, end + 1000, step)]
    variants += [
        data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]
        for at in [data.index(b"debug"), data.index(b"dev\n"), data.rindex(b"sha256") + 20]
    ]
    for variant in variants:
        bad.write_bytes(variant)
        for home in (used, fresh):
            with pytest.raises(BackupError):
                trio.run(partial(backups.restore, bad, home, {}, force=True))
        assert tree(used) == there
        assert not fresh.exists()
    assert "is not what was saved" in command(used, "restore", "--force", str(bad), code=2).stderr
    command(used, "backup", "--check", str(bad), code=2)
    command(used, "backup", "--check", str(small))


def test_no_member_may_leave_the_home(small: Path, tmp_path: Path) -> None:
    for name in ("home/../../evil", "/etc/evil", "etc/evil"):
        path = tmp_path / "evil.tar"
        with tarfile.open(path, "w") as tar:
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"evil"))
        with pytest.raises(BackupError, match="outside of the home"):
            archive.inspect(path)
        link = tarfile.TarInfo("home/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        with tarfile.open(path, "w") as tar:
            tar.addfile(link)
        with pytest.raises(BackupError, match="does not belong"):
            archive.inspect(path)


def forged(small: Path, path: Path, **members: bytes | None) -> Path:
    """A copy of an archive with other members and a manifest that fits; None leaves one out."""
    with tarfile.open(small) as tar:
        found = {info.name: tar.extractfile(info) for info in tar}
        data = {name: file.read() for name, file in found.items() if file is not None}
    manifest = json.loads(data.pop("manifest.json"))
    merged = {name: value for name, value in {**data, **members}.items() if value is not None}
    manifest["items"] = {
        name: {"size": len(value), "sha256": hashlib.sha256(value).hexdigest()}
        for name, value in merged.items()
    }
    merged["manifest.json"] = json.dumps(manifest).encode()
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, value in merged.items():
            info = tarfile.TarInfo(name)
            info.size = len(value)
            tar.addfile(info, io.BytesIO(value))
    return path


KEY = f"{keys.ROOT}a"
FOREIGN: dict[str, dict[str, bytes | None]] = {
    "the directory itself": {".": b"x"},
    "a home that is a file": {"home": b"x"},
    "a doubled slash": {"home//x": b"x"},
    "a dot": {"home/./x": b"x"},
    "a long name": {"home/" + "n" * 256: b"x"},
    "a long path": {"home/" + "n/" * 600 + "x": b"x"},
    "a file below a file": {"home/colony/x": b"x"},
    "a file that is a directory": {"home/keys": b"x"},
    "a file in the place of all keys": {
        "home/keys": b"x",
        **{f"home/keys/{name}.key": None for name in ("colony", "server", "user")},
    },
    "the mark of a restore": {"home/restoring": b"x"},
    "a store": {"home/etcd/member/snap/db": b"x"},
    "a lock": {"home/lock": b"x"},
    "what was moved aside": {"home/replaced-1/x": b"x"},
    "no store": {"store.cbor": None},
    "no name": {"home/colony": b"\n"},
    "a name of two lines": {"home/colony": b"a\nb"},
    "settings that are no TOML": {"home/config.toml": b"[rpc"},
    "settings that are not UTF-8": {"home/config.toml": b"# \xff"},
    "no CBOR": {"store.cbor": b"\xff\xff"},
    "half a record": {"store.cbor": cbor2.dumps([KEY, b"x"])[:-1]},
    "a record of three": {"store.cbor": cbor2.dumps([KEY, b"x", 1])},
    "a record that is a number": {"store.cbor": b"\x01"},
    "a value that is a text": {"store.cbor": cbor2.dumps([KEY, "x"])},
    "a key that is bytes": {"store.cbor": cbor2.dumps([KEY.encode(), b"x"])},
    "keys that are not ours": {"store.cbor": cbor2.dumps(["/other", b"x"])},
    "a key twice": {"store.cbor": cbor2.dumps([KEY, b"x"]) * 2},
    "a huge length": {"store.cbor": b"\x82\x61a\x5b" + b"\x7f" * 8},
    "a huge array": {"store.cbor": b"\x9b" + b"\x7f" * 8},
    "nested without end": {"store.cbor": b"\x81" * 100_000},
    "a tagged value": {"store.cbor": b"\x82\x61a\xc2\x41\x00"},
}


@pytest.mark.parametrize("members", FOREIGN.values(), ids=FOREIGN.keys())
def test_what_the_check_passes_restores_or_nothing_is_touched(
    small: Path, tmp_path: Path, members: dict[str, bytes | None]
) -> None:
    path = forged(small, tmp_path / "foreign.tar", **members)
    home = tmp_path / "home"
    init_home(home, "other", {})
    there = tree(home)
    for args in (["backup", "--check"], ["restore", "--force"]):
        refused = command(home, *args, str(path), code=2)
        assert refused.stderr.startswith("error: ")
    assert tree(home) == there
    assert list(home.glob("restor*")) == list(home.glob("replaced-*")) == []


@pytest.mark.slow
def test_a_forged_archive_that_is_in_order_restores(small: Path, tmp_path: Path) -> None:
    """The cases above fail for what they change, not for how they are made."""
    path = forged(small, tmp_path / "foreign.tar", **{"home/notes/ä b.txt": b"x"})
    command(tmp_path / "home", "backup", "--check", str(path))
    command(tmp_path / "home", "restore", str(path))
    assert (tmp_path / "home/notes/ä b.txt").read_bytes() == b"x"


def test_an_archive_costs_no_more_than_its_bytes(tmp_path: Path) -> None:
    """Holes, and headers that declare gigabytes, are refused before they are read."""
    sparse = tarfile.TarInfo("home/x")
    sparse.type, sparse.size = tarfile.GNUTYPE_SPARSE, 0
    header = tarfile.TarInfo("home/x")
    header.type, header.size = tarfile.XHDTYPE, 7 << 30
    old = bytearray(sparse.tobuf(tarfile.GNU_FORMAT))
    old[386:398], old[398:410] = b"%011o\0" % 0, b"%011o\0" % 0
    old[483:495] = b"%011o\0" % (8 << 30)
    old[148:156] = b" " * 8
    old[148:156] = b"%06o\0 " % sum(old)
    for number, head in enumerate((bytes(old), header.tobuf(tarfile.USTAR_FORMAT))):
        path = tmp_path / f"{number}.tar"
        with path.open("wb") as file:
            file.write(head)
            file.truncate(9 << 30)
        tracemalloc.start()
        with pytest.raises(BackupError):
            archive.inspect(path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
        tracemalloc.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
@pytest.mark.slow
def test_a_restore_that_cannot_move_everything_moves_nothing(small: Path, tmp_path: Path) -> None:
    """A directory of the home on a disk of its own, as `files` may be."""
    home = tmp_path / "home"
    init_home(home, "other", {})
    (home / "keys2").mkdir()
    there = tree(home)
    script = 'mount -t tmpfs none "$1/keys2" && shift && exec "$@"'
    command = [sys.executable, "-m", "cli.main", "--home", str(home)]
    command += ["restore", "--force", str(small)]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", str(home), *command],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "nothing was changed" in done.stderr
    assert tree(home) == there
    assert list(home.glob("restor*")) == list(home.glob("replaced-*")) == []


def test_what_can_not_be_tightened_keeps_no_daemon_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that an administrator owns and shares by its group, or a disk that is read only."""
    init_home(tmp_path, "dev", {})
    os.chmod(Home(tmp_path).key("colony"), 0o640)

    def refuse(self: Path, mode: int) -> None:
        raise PermissionError(1, "not permitted", str(self))

    monkeypatch.setattr(Path, "chmod", refuse)
    assert tighten(tmp_path) == []


@pytest.mark.slow
def test_keys_that_others_may_read_are_tightened_and_told(
    make_daemon: Callable[..., Daemon],
) -> None:
    daemon = make_daemon("dev").start()
    daemon.stop()
    opened = [daemon.home / "tls.key", daemon.home / "keys/colony.key"]
    for path in opened:
        path.chmod(0o644)
    assert str(opened[0]) in command(daemon.home, "doctor", code=1).stdout
    daemon.start()
    told = [line for line in daemon.events if 'event="secret was open to other users"' in line]
    for path in opened:
        assert path.stat().st_mode & 0o777 == 0o600
        assert any(f"path={path} " in line for line in told)
    assert daemon.stop() == 0


@pytest.mark.slow
def test_a_home_in_use_is_moved_aside(small: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    init_home(home, "other", {})
    there = tree(home)
    assert "not empty" in command(home, "restore", str(small), code=2).stderr
    assert tree(home) == there
    command(home, "restore", "--force", str(small))
    assert (home / "colony").read_text() == "dev\n"
    (aside,) = home.glob("replaced-*")
    assert tree(aside) == there
    assert [r["id"] for r in records(home / "history/dev")] == ["x"]
    # The store's copy is equal, key by key; what was moved aside is no part of a backup.
    command(home, "backup", str(tmp_path / "again.tar"))
    first, second = archive.inspect(small), archive.inspect(tmp_path / "again.tar")
    assert first.items == second.items


def test_a_restore_that_was_interrupted_keeps_daemons_away(small: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "restoring").mkdir(parents=True)
    with pytest.raises(HomeError, match="restore was interrupted"):
        init_home(home, "dev", {})


@pytest.mark.slow
async def test_the_store_is_saved_as_of_one_moment(tmp_path: Path) -> None:
    """Two keys that are only ever written together are equal in the dump, whatever goes on."""
    async with trio.open_nursery() as nursery:
        store = await start_store(nursery, tmp_path / "etcd")
        async with open_client(store.target) as client:
            for number in range(900):
                await client.put(f"{keys.ROOT}m/{number:04d}", b"x" * 100)
            lease = await client.grant(60)
            await client.put(f"{keys.ROOT}leased", b"", lease)
            writing = trio.Event()

            async def write() -> None:
                number = 0
                while True:
                    value = b"%d" % number
                    ops = [Put(f"{keys.ROOT}a", value), Put(f"{keys.ROOT}z", value)]
                    await client.commit(Txn([], ops))
                    number += 1
                    writing.set()

            nursery.start_soon(write)
            await writing.wait()
            path = tmp_path / "dump"
            with path.open("w+b") as file:
                async with backups._held(client):
                    assert await client.get(keys.HOLD) is not None
                    count, _ = await backups._dump(client, file)
                file.seek(0)
                found = dict(archive.records(file))
            assert await client.get(keys.HOLD) is None
            assert count == len(found) == 902
            assert found[f"{keys.ROOT}a"] == found[f"{keys.ROOT}z"]
            nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_nothing_is_forgotten_while_it_is_held(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        store = await start_store(nursery, tmp_path / "etcd")
        async with open_client(store.target) as client:
            revision = await client.put("a", b"")
            await client.put(keys.HOLD, b"")
            for number in range(1100):
                await client.put("a", b"%d" % number)
            seen: list[str] = []
            plain = client.get

            async def get(key: str) -> Any:
                seen.append(key)
                return await plain(key)

            client.get = get  # type: ignore[method-assign]
            keep = partial(maintain, client, quota_bytes=2**30, interval=0.02, hold=keys.HOLD)
            nursery.start_soon(keep)

            async def asked() -> bool:
                return len(seen) > 3

            await until(50, asked)
            assert (await client.range("a", revision=revision)).count == 1
            await client.delete(keys.HOLD)

            async def forgotten() -> bool:
                try:
                    await client.range("a", revision=revision)
                except Compacted:
                    return True
                return False

            await until(50, forgotten)
            nursery.cancel_scope.cancel()


def test_a_socket_or_a_link_to_nowhere_is_no_hindrance(tmp_path: Path) -> None:
    home = tmp_path / "home"
    init_home(home, "dev", {})
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(home / "s"))
        (home / "nowhere").symlink_to(home / "nothing")
        names = [path.name for path in archive.entries(home, set())]
    assert "s" not in names
    assert "nowhere" not in names
    assert "user.key" in names


@pytest.mark.parametrize("links", [True, False])
def test_a_backup_replaces_nothing_that_appeared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    """Also on a file system without links, which this stands in for."""

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "a.tar"
    with pytest.raises(BackupError, match="appeared meanwhile"), archive.create(path) as (file, _):
        path.write_text("theirs")
    assert path.read_text() == "theirs"
    with archive.create(tmp_path / "b.tar") as (file, _):
        file.write(b"ours")
    assert (tmp_path / "b.tar").read_text() == "ours"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.tar", "b.tar"]
