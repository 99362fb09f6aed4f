"""The identity of a store: a mark in the store and in its home, so that a missing or other store is
noticed.

A store that is missing looks like one that was never made; the mark in the home tells them apart.
Damage inside a store is told by `etcdserver.faults`.
"""

from __future__ import annotations

import os
import secrets
import shlex
import time
from contextlib import suppress
from pathlib import Path

from colonyd.fsync import sync_directory
from node.etcd.client import EtcdClient
from node.etcd.errors import EtcdNoSpace, StoreRefused
from node.etcd.txn import Absent, Get, Put, Txn
from node.etcdserver.preflight import lock_home
from node.host.home import Home
from node.host.log import get_logger
from node.store import keys

log = get_logger("store")

# The mark when the owner asked for a new store: the next store is accepted, whatever it is.
_ANY = "any"


def _noted(home: Home) -> str:
    """Return the mark in the home, "" without one. Raises StoreRefused."""
    try:
        return home.store_mark.read_text("utf-8", "replace").strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise StoreRefused(
            f"cannot read {home.store_mark}: {error.strerror}. It tells which store belongs to this"
            " home: move it away, and the next start takes the store that is there"
        ) from None


def _note(home: Home, text: str) -> None:
    """Write the mark, so that it outlasts a crash."""
    partial = home.store_mark.with_suffix(".partial")
    with open(partial, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(home.store_mark)
    sync_directory(home.path)


def _had_one(home: Home) -> bool:
    """Return whether a daemon served from this home with a store before.

    Homes of versions without the mark have the directory of bytes, made after the store.
    """
    noted = _noted(home)
    return noted != _ANY and (noted != "" or home.files.is_dir())


def _choice(home: Home, mount: str) -> str:
    here = f"--home {shlex.quote(str(home.path))}"
    return (
        f"{mount}; or put a backup back (`colony restore --force FILE {here}`); or, if it is lost,"
        f" begin with an empty one: `colony init --new-store {here}`"
    )


def require_place(home: Home) -> None:
    """Raise StoreRefused if the home had a store of its own that is not there now."""
    data = home.etcd / "data"
    try:
        logs = any((data / "member" / "wal").glob("*.wal"))
        there = logs or (data / "member" / "snap" / "db").exists()
    except OSError as error:
        raise StoreRefused(f"cannot look at the store in {data}: {error.strerror}") from None
    if there or not _had_one(home):
        return
    missing = next(path for path in (home.etcd, data, data / "member", None) if not _is_there(path))
    what = f"{missing} is missing" if missing else f"{data / 'member'} is empty"
    raise StoreRefused(
        f"the store of this colony is gone: {what}, and {home.path} had one. "
        + _choice(home, "Is a disk not mounted? Mount it")
    )


def _is_there(path: Path | None) -> bool:
    return path is not None and path.is_dir()


async def check(client: EtcdClient, home: Home, colony: str) -> str:
    """Return the mark of the store, "" without one.

    Raises StoreRefused if it is not the store that this home had: another one, or an empty one.
    """
    noted, found = _noted(home), await client.get(keys.STORE)
    if found is None:
        if _had_one(home) and await client.get(keys.colony(colony)) is None:
            raise StoreRefused(
                f"the store has no colony {colony!r}, and {home.path} had one with it. "
                + _choice(home, "Is it another store, or an emptied one? Use the one it had")
            )
        return ""
    mark = found.value.decode()
    if noted not in ("", _ANY, mark):
        raise StoreRefused(
            f"this is another store than the one that {home.path} had last. Is another disk"
            " mounted, or are other [etcd] endpoints configured? Use the one it had; or, to go on"
            f" with this one, remove {home.store_mark}"
        )
    return mark


async def settle(client: EtcdClient, home: Home, colony: str) -> None:
    """Check the store as `check` does, and mark it and the home as belonging together."""
    mark = await check(client, home, colony)
    if not mark:
        noted = _noted(home)
        wanted = noted if noted not in ("", _ANY) else secrets.token_hex(16)
        put = Put(keys.STORE, wanted.encode())
        try:
            done = await client.commit(Txn([Absent(keys.STORE)], [put], [Get(keys.STORE)]))
        except EtcdNoSpace as error:
            log.warning("the store is not marked as this home's yet", because=error)
            return
        mark = wanted if done.succeeded else done.responses[0][0].value.decode()
    if _noted(home) != mark:
        _note(home, mark)


def begin_anew(home: Home) -> Path | None:
    """Have the next start make a store, or accept the store at the [etcd] endpoints.

    Returns where the old data are now, moved aside. Raises StoreRefused while a daemon runs,
    OSError when they can't be moved.
    """
    with lock_home(home.path):
        _noted(home)  # a mark that can't be read can't be replaced
        data = home.etcd / "data"
        aside = None
        if data.is_dir() and any(data.iterdir()):
            moment = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
            aside = home.etcd / f"data.replaced-{moment}"
            data.rename(aside)
        # The next etcd may be older than the one that wrote the old data.
        with suppress(FileNotFoundError):
            (home.etcd / "etcd.version").unlink()
        _note(home, _ANY)
        return aside
