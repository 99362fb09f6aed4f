"""The embedded etcd's process: how it starts, what stops it from starting, and how it ends.

What is stored in it is tested elsewhere.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from node.etcd.client import EtcdClient, open_client
from node.etcd.errors import StoreRefused
from node.etcdserver import preflight, supervisor
from node.etcdserver.preflight import lock_home
from node.etcdserver.supervisor import supervise
from tests.node.etcd.support import (
    QUOTA,
    Store,
    is_alive,
    network_inodes,
    socket_inodes,
    start_store,
)

ROOT = Path(__file__).parents[3]

DAEMON = """
import sys, trio
from functools import partial
from pathlib import Path
from node.etcd.client import open_client
from node.etcdserver.supervisor import supervise

async def main():
    async with trio.open_nursery() as nursery:
        run = partial(supervise, Path(sys.argv[1]), quota_bytes=2**26)
        target = await nursery.start(run)
        async with open_client(target, timeout=60) as client:
            await client.put("by-the-first", b"1")
        print("ready", flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


async def refused(directory: Path, binary: str = "etcd") -> str:
    """Start, which must fail; gives the message."""
    with pytest.raises(StoreRefused) as caught, trio.fail_after(60):
        await supervise(directory, quota_bytes=QUOTA, binary=binary)
    return str(caught.value)


async def gone(pid: int, seconds: float = 60) -> None:
    with trio.fail_after(seconds):
        while is_alive(pid):
            await trio.testing.wait_all_tasks_blocked(0.02)


async def test_only_unix_sockets_in_a_private_directory(store: Store, client: EtcdClient) -> None:
    await client.put("k", b"")
    pid = store.pid()
    sockets = socket_inodes(pid)
    assert sockets & network_inodes(pid, "unix")
    assert not sockets & network_inodes(pid, "tcp", "tcp6", "udp", "udp6")
    assert store.directory.stat().st_mode & 0o777 == 0o700


async def test_no_secrets_in_its_environment(
    nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLONIES_PRVKEY", "very-secret")
    monkeypatch.setenv("ETCD_LISTEN_METRICS_URLS", "http://127.0.0.1:0")
    store = await start_store(nursery, tmp_path / "etcd")
    seen = await trio.Path(f"/proc/{store.pid()}/environ").read_bytes()
    assert b"secret" not in seen
    assert b"ETCD_" not in seen


async def test_a_killed_etcd_is_restarted_with_its_data(store: Store, client: EtcdClient) -> None:
    await client.put("k", b"1")
    pid = store.pid()
    store.signal(signal.SIGKILL)
    await gone(pid)
    found = await client.get("k")
    assert found is not None
    assert found.value == b"1"
    assert store.pid() != pid


@pytest.mark.parametrize("frozen", [False, True])
async def test_cancelling_ends_it_in_bounded_time(
    tmp_path: Path, frozen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_STOP_TIMEOUT", 0.5)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            store = await start_store(nursery, tmp_path / "etcd")
            pid = store.pid()
            if frozen:
                store.signal(signal.SIGSTOP)
            began = trio.current_time()
            nursery.cancel_scope.cancel()
    assert trio.current_time() - began < 20
    assert not is_alive(pid)
    assert not (store.directory / "etcd.pid").exists()


async def test_cancelling_during_the_start_leaves_no_process(tmp_path: Path) -> None:
    directory = tmp_path / "etcd"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(supervise, directory, quota_bytes=QUOTA))
        with trio.fail_after(60):
            while not (directory / "etcd.pid").exists():
                await trio.testing.wait_all_tasks_blocked()
        pid = Store("", directory).pid()
        nursery.cancel_scope.cancel()
    assert not is_alive(pid)


async def test_a_path_too_long_for_a_socket(nursery: trio.Nursery, tmp_path: Path) -> None:
    store = await start_store(nursery, tmp_path / ("long" * 30))
    async with open_client(store.target, timeout=60) as client:
        assert await client.put("k", b"") > 0
    store.signal(signal.SIGKILL)
    async with open_client(store.target, timeout=60) as client:
        assert await client.get("k") is not None


async def test_no_binary(tmp_path: Path) -> None:
    message = await refused(tmp_path / "etcd", binary="no-such-etcd")
    assert "no-such-etcd" in message
    assert "etcd-server" in message


async def test_a_binary_that_is_not_etcd(tmp_path: Path) -> None:
    assert "is not an etcd" in await refused(tmp_path / "etcd", binary="true")


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files away needs root")
@pytest.mark.parametrize("inner", ["", "data", "data/member"])
async def test_a_directory_of_somebody_else(tmp_path: Path, inner: str) -> None:
    foreign = tmp_path / "etcd" / inner
    foreign.mkdir(parents=True)
    os.chown(foreign, 65534, 65534)
    assert "belongs to user 65534" in await refused(tmp_path / "etcd")


async def test_data_that_is_not_etcds(tmp_path: Path) -> None:
    data = tmp_path / "etcd" / "data"
    data.mkdir(parents=True)
    (data / "photos").touch()
    assert "not etcd's" in await refused(tmp_path / "etcd")


async def test_data_of_a_newer_etcd(tmp_path: Path) -> None:
    directory = tmp_path / "etcd"
    directory.mkdir()
    (directory / "etcd.version").write_text("99.1\n")
    assert "99.1" in await refused(directory)


async def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "MIN_FREE", 2**62)
    assert "full" in await refused(tmp_path / "etcd")


async def test_damaged_data_is_refused_with_what_etcd_says(tmp_path: Path) -> None:
    directory = tmp_path / "etcd"
    async with trio.open_nursery() as nursery:
        await start_store(nursery, directory)
        nursery.cancel_scope.cancel()
    for log in (directory / "data" / "member" / "wal").glob("*.wal"):
        log.write_bytes(b"\xff" * 4096)
    message = await refused(directory)
    assert "does not start" in message
    assert "said nothing" not in message


def test_a_home_is_locked_once(tmp_path: Path) -> None:
    with lock_home(tmp_path):
        with pytest.raises(StoreRefused, match=rf"pid {os.getpid()}.*--home"):
            with lock_home(tmp_path):
                pass
    with lock_home(tmp_path):
        pass


def test_a_home_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(StoreRefused, match="No such file"):
        with lock_home(tmp_path / "missing"):
            pass


def start_daemon(directory: Path, path: str) -> subprocess.Popen[str]:
    """A process of its own that supervises an etcd, and is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", DAEMON, str(directory)],
        cwd=ROOT,
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def kill_daemon(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv of util-linux")
async def test_etcd_ends_with_a_killed_daemon(tmp_path: Path) -> None:
    process = start_daemon(tmp_path / "etcd", os.environ["PATH"])
    pid = Store("", tmp_path / "etcd").pid()
    assert is_alive(pid)
    kill_daemon(process)
    await gone(pid)


@pytest.mark.parametrize("frozen", [False, True])
async def test_an_orphan_is_replaced(
    nursery: trio.Nursery, tmp_path: Path, frozen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without setpriv etcd outlives a killed daemon; the next daemon ends it and keeps its data."""
    monkeypatch.setattr(supervisor, "_STOP_TIMEOUT", 0.5)
    etcd = shutil.which("etcd")
    assert etcd is not None
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "etcd").symlink_to(etcd)
    process = start_daemon(tmp_path / "etcd", str(tools))
    orphan = Store("", tmp_path / "etcd").pid()
    if frozen:
        os.kill(orphan, signal.SIGSTOP)
    kill_daemon(process)
    assert is_alive(orphan)
    store = await start_store(nursery, tmp_path / "etcd")
    assert not is_alive(orphan)
    assert store.pid() != orphan
    async with open_client(store.target, timeout=60) as client:
        assert await client.get("by-the-first") is not None


async def test_a_reused_process_id_is_left_alone(nursery: trio.Nursery, tmp_path: Path) -> None:
    """The note names a process of somebody else: it must survive."""
    directory = tmp_path / "etcd"
    directory.mkdir()
    bystander = await trio.lowlevel.open_process(["sleep", "60"], cwd=directory)
    try:
        (directory / "etcd.pid").write_text(f"{bystander.pid} 1\n")
        await start_store(nursery, directory)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        await bystander.wait()
