"""Homes whose store is gone, emptied, broken or another one: the daemon says so and starts not."""

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
from node.etcd.transport.dial import Access
from node.store import keys
from tests.node.etcd.support import start_store
from tests.support.cluster import members, serving
from tests.support.daemons import REPOSITORY, Daemon

pytestmark = pytest.mark.slow

Make = Callable[..., Daemon]
ALONE = {"COLONYD_FEDERATION__ENABLED": "false"}


def run(home: Path, *args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli.main", "--home", str(home), *args],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, **ALONE, **environ},
        timeout=120,
        check=False,
    )


def refused(home: Path, **environ: str) -> str:
    """Start the daemon, which must refuse; gives the last line, which people read."""
    done = run(home, "up", "--port", "0", **environ)
    assert done.returncode == 69, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


def label(daemon: Daemon, text: str = "") -> list[str]:
    """Submit a process with a label, if one is given; the labels of those that wait."""

    async def work() -> list[str]:
        async with daemon.client() as client:
            if text:
                conditions = {"colonyname": daemon.name, "executortype": "cli"}
                spec = {"funcname": "f", "label": text, "conditions": conditions}
                await client.call("submitfuncspecmsg", {"spec": spec}, daemon.key("user"))
            fields = {"colonyname": daemon.name, "count": 10, "state": 0}
            found = await client.call("getprocessesmsg", fields, daemon.key("user"))
            return [process["spec"]["label"] for process in found]

    return trio.run(work)


@pytest.fixture
def used(make_daemon: Make) -> Daemon:
    """A daemon that has stopped, with one process in its store."""
    daemon = make_daemon("dev", **ALONE).start()
    assert label(daemon, "first") == ["first"]
    assert daemon.stop() == 0
    return daemon


async def unmark(home: Path) -> None:
    """Make a home and its store what versions without marks left."""
    (home / "store.id").unlink()
    async with trio.open_nursery() as nursery:
        store = await start_store(nursery, home / "etcd")
        async with open_client(store.target, timeout=60) as client:
            assert await client.delete(keys.STORE) == 1
        nursery.cancel_scope.cancel()


def remove_directory(home: Path) -> None:
    shutil.rmtree(home / "etcd")


def remove_member(home: Path) -> None:
    shutil.rmtree(home / "etcd/data/member")


def empty_member(home: Path) -> None:
    remove_member(home)
    (home / "etcd/data/member").mkdir(mode=0o700)


@pytest.mark.parametrize("lose", [remove_directory, remove_member, empty_member])
@pytest.mark.parametrize("old", [False, True], ids=["marked", "of an old version"])
def test_a_store_that_is_gone_is_not_made_anew_unasked(
    used: Daemon, tmp_path: Path, lose: Callable[[Path], None], old: bool
) -> None:
    """A disk that is not mounted: nothing is written where it belongs, and it may come back."""
    if old:
        trio.run(unmark, used.home)
    shutil.copytree(used.home / "etcd", tmp_path / "disk", ignore=shutil.ignore_patterns("local*"))
    lose(used.home)
    left = sorted(used.home.rglob("*"))
    told = refused(used.home)
    assert "the store of this colony is gone" in told
    for choice in ("Mount it", "colony restore --force FILE", "colony init --new-store"):
        assert choice in told
    backup = run(used.home, "backup", str(tmp_path / "b.tar"))
    assert (backup.returncode, "is gone" in backup.stderr) == (69, True)
    assert not (tmp_path / "b.tar").exists()
    assert sorted(used.home.rglob("*")) == left
    shutil.rmtree(used.home / "etcd", ignore_errors=True)
    shutil.copytree(tmp_path / "disk", used.home / "etcd")
    assert label(used.start()) == ["first"]


def test_the_owner_may_begin_anew(used: Daemon) -> None:
    assert run(used.home, "init", "--new-store").returncode == 0
    (aside,) = used.home.glob("etcd/data.replaced-*/member")
    assert label(used.start(), "second") == ["second"]
    while_it_runs = run(used.home, "init", "--new-store")
    assert (while_it_runs.returncode, "another daemon" in while_it_runs.stderr) == (69, True)
    assert used.stop() == 0
    # The disk that was thought to be lost is mounted again.
    shutil.rmtree(used.home / "etcd/data/member")
    aside.rename(used.home / "etcd/data/member")
    told = refused(used.home)
    assert "another store" in told
    assert f"remove {used.home / 'store.id'}" in told
    (used.home / "store.id").unlink()
    assert label(used.start()) == ["first"]


def test_a_home_of_an_old_version_goes_on_and_is_marked(used: Daemon) -> None:
    trio.run(unmark, used.home)
    assert label(used.start()) == ["first"]
    assert (used.home / "store.id").stat().st_mode & 0o777 == 0o600
    assert used.stop() == 0
    remove_directory(used.home)
    assert "is gone" in refused(used.home)


def test_a_backup_of_an_old_version_is_put_back_over_a_lost_store(
    used: Daemon, tmp_path: Path
) -> None:
    trio.run(unmark, used.home)
    assert run(used.home, "backup", str(tmp_path / "b.tar")).returncode == 0
    assert label(used.start()) == ["first"]
    assert used.stop() == 0
    remove_directory(used.home)
    assert "is gone" in refused(used.home)
    assert run(used.home, "restore", "--force", str(tmp_path / "b.tar")).returncode == 0
    assert label(used.start()) == ["first"]


def test_a_start_that_was_cut_off_is_no_lost_store(make_daemon: Make) -> None:
    """Killed before the store was there, and after."""
    daemon = make_daemon("dev", **ALONE)
    assert run(daemon.home, "init", "--name", "dev").returncode == 0
    (daemon.home / "etcd/data/member/snap").mkdir(parents=True, mode=0o700)
    daemon.start()
    daemon.kill()
    assert label(daemon.start(), "first") == ["first"]


def test_a_broken_store_is_told_in_one_sentence(used: Daemon) -> None:
    database = used.home / "etcd/data/member/snap/db"
    database.write_bytes(bytes(database.stat().st_size))
    done = run(used.home, "up", "--port", "0")
    assert done.returncode == 69
    assert "(member/snap/db) is missing or damaged" in done.stderr
    assert "failed to open database: invalid database" in done.stderr
    assert "colony restore --force FILE" in done.stderr
    assert ".go:" not in done.stderr
    assert "goroutine" not in done.stderr
    assert run(used.home, "init", "--new-store").returncode == 0
    assert label(used.start(), "second") == ["second"]


async def test_a_cluster_that_was_emptied(tmp_path: Path, make_daemon: Make) -> None:
    with members(tmp_path / "etcd", 1) as (one,):
        cluster = ALONE | {"COLONYD_ETCD__ENDPOINTS": one.endpoint}
        async with open_client(Access((one.endpoint,)), timeout=30) as store:
            await serving(store)
            daemon = make_daemon("dev", **cluster)
            await trio.to_thread.run_sync(daemon.start)
            await trio.to_thread.run_sync(label, daemon, "first")
            assert daemon.stop() == 0
            await store.delete_prefix(keys.ROOT)
            told = await trio.to_thread.run_sync(partial(refused, daemon.home, **cluster))
            assert "the store has no colony 'dev'" in told
            assert "colony init --new-store" in told
            assert await store.count(keys.ROOT) == 0
            again = partial(run, daemon.home, "init", "--new-store", **cluster)
            assert (await trio.to_thread.run_sync(again)).returncode == 0
            await trio.to_thread.run_sync(daemon.start)
            assert await trio.to_thread.run_sync(label, daemon) == []
