"""Stores broken for real: each is refused in one sentence with what is broken and what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import trio

from node.etcd.client import open_client
from node.etcd.errors import StoreRefused
from node.etcdserver.faults import DAMAGE, explain, following
from node.etcdserver.supervisor import supervise
from tests.node.etcd.support import QUOTA, start_store

pytestmark = pytest.mark.slow

_SNAPSHOTS = 10_000  # entries of the log after which etcd keeps a snapshot (`supervisor.command`)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that has been used enough to have a snapshot."""
    directory = tmp_path_factory.mktemp("whole") / "etcd"

    async def fill() -> None:
        async with trio.open_nursery() as nursery:
            store = await start_store(nursery, directory)
            async with open_client(store.target, timeout=60) as client:

                async def write(number: int) -> None:
                    for turn in range(_SNAPSHOTS // 25):
                        await client.put(f"k{number}", b"%d" % turn)

                async with trio.open_nursery() as writers:
                    for number in range(30):
                        writers.start_soon(write, number)
            nursery.cancel_scope.cancel()

    trio.run(fill)
    assert list((directory / "data/member/snap").glob("*.snap"))
    return directory


def _logs(member: Path) -> list[Path]:
    return sorted((member / "wal").glob("*.wal"))


def _used(path: Path) -> int:
    return len(path.read_bytes().rstrip(b"\0"))


def _overwrite(path: Path, start: int, size: int) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(os.urandom(size))


def cut_the_log(member: Path) -> None:
    os.truncate(_logs(member)[-1], _used(_logs(member)[-1]) // 2)


def cut_the_log_to_its_head(member: Path) -> None:
    """Before the first state: etcd starts, and waits for a leader for ever."""
    for path in _logs(member):
        os.truncate(path, 100)


def cut_the_log_behind_its_head(member: Path) -> None:
    for path in _logs(member):
        os.truncate(path, 200)


def empty_the_log(member: Path) -> None:
    for path in _logs(member):
        os.truncate(path, 0)


def spoil_the_log(member: Path) -> None:
    _overwrite(_logs(member)[-1], _used(_logs(member)[-1]) // 2, 64)


def remove_the_log(member: Path) -> None:
    shutil.rmtree(member / "wal")


def empty_the_database(member: Path) -> None:
    os.truncate(member / "snap/db", 0)


def zero_the_database(member: Path) -> None:
    (member / "snap/db").write_bytes(bytes((member / "snap/db").stat().st_size))


def halve_the_database(member: Path) -> None:
    os.truncate(member / "snap/db", (member / "snap/db").stat().st_size // 8192 * 4096)


def spoil_the_database(member: Path) -> None:
    size = (member / "snap/db").stat().st_size
    for start in range(4 * 4096, size - 4096, 3 * 4096):
        _overwrite(member / "snap/db", start, 4096)


def remove_the_database(member: Path) -> None:
    (member / "snap/db").unlink()


LOG, DATABASE = "its write-ahead log (member/wal)", "its database (member/snap/db)"
BROKEN = [
    (cut_the_log, f"{LOG} ends before its database"),
    (cut_the_log_to_its_head, f"{LOG} is damaged"),
    (cut_the_log_behind_its_head, f"{LOG} is damaged"),
    (empty_the_log, f"{LOG} is damaged"),
    # As etcd reads it, what is spoiled is wrong, or the end of what was written.
    (spoil_the_log, f"{LOG} "),
    (remove_the_log, f"{LOG} ends before its database"),
    (empty_the_database, f"{DATABASE} is missing or damaged (etcd said: "),
    (zero_the_database, f"{DATABASE} is missing or damaged (etcd said: failed to open database: "),
    (halve_the_database, f"{DATABASE} is missing or damaged (etcd said: fatal error: fault)"),
    (spoil_the_database, f"{DATABASE} is missing or damaged (etcd said: panic: "),
    (remove_the_database, f"{DATABASE} is missing or damaged (etcd said: failed to recover"),
]


async def refused(directory: Path) -> str:
    with pytest.raises(StoreRefused) as caught, trio.fail_after(60):
        await supervise(directory, quota_bytes=QUOTA)
    return str(caught.value)


@pytest.mark.parametrize(("damage", "told"), BROKEN, ids=[damage.__name__ for damage, _ in BROKEN])
async def test_what_is_broken_is_named_with_what_to_do(
    whole: Path, tmp_path: Path, damage: Callable[[Path], None], told: str
) -> None:
    directory = tmp_path / "etcd"
    shutil.copytree(whole, directory)
    damage(directory / "data" / "member")
    for _ in range(2):  # a service is started again and again
        message = await refused(directory)
        assert f"the store in {directory} does not start: " in message
        assert told in message
        assert message.endswith(following(DAMAGE, directory))
        assert f"FILE --home {tmp_path}`" in message
        assert "goroutine" not in message
        assert ".go:" not in message


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
def test_a_file_system_mounted_read_only_is_no_damage(whole: Path, tmp_path: Path) -> None:
    directory = tmp_path / "etcd"
    shutil.copytree(whole, directory)
    code = "import sys, trio, pathlib; from node.etcdserver.supervisor import supervise as s\n" + (
        "async def run(): await s(pathlib.Path(sys.argv[1]), quota_bytes=2**26)\ntrio.run(run)"
    )
    script = 'mount --bind "$1/data" "$1/data" && mount -o remount,bind,ro "$1/data" && '
    script += 'exec "$2" "$3" "$4" "$1"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", str(directory), sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert "mounted read-only" in done.stderr
    assert "--new-store" not in done.stderr


async def test_a_smaller_quota_and_a_lost_snapshot_harm_nothing(
    nursery: trio.Nursery, whole: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "etcd"
    shutil.copytree(whole, directory)
    for path in (directory / "data/member/snap").glob("*.snap"):
        path.write_bytes(b"not a snapshot")
    target: str = await nursery.start(partial(supervise, directory, quota_bytes=2**20))
    async with open_client(target, timeout=60) as client:
        assert await client.count("k") == 30
        await client.put("k", b"")


async def test_a_start_that_never_ends_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An etcd that says nothing and serves nobody."""
    (tmp_path / "silent").write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo "etcd Version: 3.4.1" && exit\nexec sleep 600\n'
    )
    (tmp_path / "silent").chmod(0o700)
    monkeypatch.setattr("node.etcdserver.supervisor._READY_TIMEOUT", 0.5)
    with pytest.raises(StoreRefused, match="did not become ready"), trio.fail_after(60):
        await supervise(tmp_path / "etcd", quota_bytes=QUOTA, binary=str(tmp_path / "silent"))


@pytest.mark.parametrize(
    ("lines", "told", "damaged"),
    [
        (["cannot list: open data: permission denied"], "may not use all of its files", False),
        (["failed to open database: cannot allocate memory"], "does not give it what", False),
        (["wal: sync error: input/output error"], "the disk gives errors", False),
        (["cannot open: no space left on device"], "the disk is full", False),
        (["cluster cannot be downgraded"], "another version of etcd", False),
        (["panic: something new"], "with status 2 (etcd said: panic: something new)", False),
        ([], "etcd ended with status 2 and said nothing", False),
        (["panic: tocommit(9) is out of range: raft log truncated?"], LOG, True),
    ],
)
def test_what_is_no_damage_is_not_called_so(lines: list[str], told: str, damaged: bool) -> None:
    fault = explain(lines, "with status 2")
    assert told in fault.what
    assert fault.damaged is damaged
    assert fault.next
