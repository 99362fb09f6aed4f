"""Backup and restore: a home directory and its store in one archive, and back.

The store is read at one revision while daemons use it, and written key by key into an empty one, so
an archive fits any version of etcd, embedded or not. The commands are in `cli.daemon.backup`.
"""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import IO

import cbor2
import trio

from colonyd.fsync import sync_directory
from node.archive import bundle as archive
from node.archive.bundle import BackupError, Manifest
from node.etcd.client import EtcdClient, open_client
from node.etcd.errors import EtcdError, StoreRefused
from node.etcd.pages import below
from node.etcd.txn import Op, Put, Txn
from node.etcdserver import identity as storeid
from node.etcdserver.cluster import access_of, require
from node.etcdserver.maintenance import clear_alarm
from node.etcdserver.preflight import lock_home
from node.etcdserver.supervisor import supervise
from node.host.config import Config, load_config
from node.host.configfiles import config_files
from node.host.home import RESTORING, Home
from node.store import keys
from node.timers import election as leader

_LEASE = 60  # seconds after which the hold of a killed backup ends
_TXN_OPS, _TXN_BYTES, _WRITERS = 100, 512 * 1024, 4


# -- the store -------------------------------------------------------------------------------


@asynccontextmanager
async def _open_store(home: Path, config: Config) -> AsyncIterator[EtcdClient]:
    """Give the store that a home uses; it is started for the block if no daemon runs.

    Raises StoreRefused.
    """
    if config.etcd.endpoints:
        async with open_client(access_of(config.etcd, home)) as client:
            await require(client, config.etcd)
            yield client
        return
    async with AsyncExitStack() as stack:
        try:
            stack.enter_context(lock_home(home))
            storeid.require_place(Home(home))
            store = _own_store(home / "etcd", int(config.etcd.quota))
        except StoreRefused:
            if not (home / "etcd" / "localhost:1").is_socket():
                raise
            # A daemon runs: the socket of its store is for this user alone, as are the keys.
            store = open_client(stack.enter_context(_embedded(home / "etcd")))
        yield await stack.enter_async_context(store)


@contextmanager
def _embedded(directory: Path) -> Iterator[str]:
    """Give the address of the etcd that runs in `directory`, however long that path is."""
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"unix:/proc/self/fd/{descriptor}/localhost:1"
    finally:
        os.close(descriptor)


@asynccontextmanager
async def _own_store(directory: Path, quota: int) -> AsyncIterator[EtcdClient]:
    async def run(*, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        await supervise(directory, quota_bytes=quota, task_status=task_status)

    async with trio.open_nursery() as nursery:
        target: str = await nursery.start(run)
        async with open_client(target, timeout=20.0) as client:
            await clear_alarm(client)
            yield client
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _held(client: EtcdClient) -> AsyncIterator[None]:
    """Keep the store from forgetting revisions during the block. Raises EtcdError."""
    lease = await client.grant(_LEASE)
    try:
        await client.put(keys.HOLD, b"", lease)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.keep_alive, lease)
            yield
            nursery.cancel_scope.cancel()
    finally:
        with trio.move_on_after(2, shield=True), suppress(EtcdError):
            await client.revoke(lease)


async def _dump(client: EtcdClient, file: IO[bytes]) -> tuple[int, int]:
    """Write all keys and values as of one revision; return their number and the revision.

    Keys on a lease are temporary, and left out.
    """
    count, revision = 0, (await client.range(keys.STORE, limit=1)).revision
    async for page in below(client, keys.ROOT, revision=revision, raw=True):
        lasting = [item for item in page if not item.lease]
        file.writelines(cbor2.dumps([item.key, item.value]) for item in lasting)
        count += len(lasting)
    return count, revision


async def _load(client: EtcdClient, file: IO[bytes]) -> int:
    """Write the keys of a dump into the store; return their number."""
    count = 0
    sender, receiver = trio.open_memory_channel[list[Op]](0)

    async def write() -> None:
        async for ops in receiver:
            await client.commit(Txn([], ops))

    async with trio.open_nursery() as nursery, sender:
        for _ in range(_WRITERS):
            nursery.start_soon(write)
        ops: list[Op] = []
        size = 0
        for put in itertools.starmap(Put, archive.records(file)):
            if ops and (len(ops) == _TXN_OPS or size + len(put.value) > _TXN_BYTES):
                await sender.send(ops)
                ops, size = [], 0
            ops.append(put)
            size += len(put.value)
            count += 1
        if ops:
            await sender.send(ops)
    return count


# -- there and back --------------------------------------------------------------------------


async def backup(
    home: Path, path: Path, environ: Mapping[str, str], advance: archive.Advance = archive.unseen
) -> Manifest:
    """Write everything of the colony at `home` to the new file `path` (0600).

    It appears under its name only when complete and synced. Raises BackupError, ConfigError,
    StoreRefused, EtcdError, OSError.
    """
    name = archive.name_of(home)
    config = load_config(home, {}, environ=environ)
    with archive.create(path) as (file, dump):
        async with _open_store(home, config) as client, _held(client):
            await storeid.check(client, Home(home), name)
            count, revision = await _dump(client, dump)
        # After the store: the bytes that it refers to are never younger than it.
        return archive.pack(file, dump, home, Manifest.begin(name, revision, count), advance)


async def restore(
    path: Path,
    home: Path,
    environ: Mapping[str, str],
    *,
    force: bool = False,
    advance: archive.Advance = archive.unseen,
) -> tuple[Manifest, Path | None]:
    """Put the archive's colony into `home`; return the place of the old content, if there was any.

    The archive is checked as a whole first. With `force` a used home may be replaced: its content
    is moved aside, but the keys of a store that runs elsewhere are deleted. An interrupted restore
    leaves a mark with which no daemon starts; repeat it with `force`. Raises BackupError,
    ConfigError, StoreRefused, EtcdError, OSError.
    """
    manifest = archive.inspect(path, advance)
    _own(home)
    with lock_home(home):
        kept = _present(home)
        if kept and not force:
            raise BackupError(f"{home} is not empty: choose another, or --force moves it aside")
        staging = home / RESTORING
        _make_room(staging)
        try:
            archive.unpack(path, staging, advance)
            fresh = staging / "home"
            # Settings from elsewhere hold for the restored home, too.
            files = [*config_files(home)[:-1], fresh / "config.toml"]
            config = load_config(fresh, {}, environ=environ, files=files)
            await _restore_store(fresh, staging / archive.STORE, config, manifest, force=force)
        except BaseException:
            # The old content is still untouched.
            shutil.rmtree(staging)
            raise
        return manifest, _put(fresh, home, kept)


def _own(home: Path) -> None:
    """Make the directory, or check that it is ours."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    if home.stat().st_uid != os.geteuid():
        raise BackupError(f"{home} belongs to user {home.stat().st_uid}: restore as that user")


def _present(home: Path) -> list[Path]:
    """Return the content of a home, without the traces of a restore."""
    return [
        entry
        for entry in sorted(home.iterdir())
        if entry.name not in ("lock", RESTORING) and not entry.name.startswith(archive.REPLACED)
    ]


def _make_room(staging: Path) -> None:
    if staging.exists():
        shutil.rmtree(staging)
    staging.mkdir(mode=0o700)


def _put(fresh: Path, home: Path, kept: list[Path]) -> Path | None:
    """Move the old content aside and the new content in its place; a crash leaves the mark."""
    aside = None
    if kept:
        aside = home / f"{archive.REPLACED}{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
        aside.mkdir(mode=0o700)
    moved: list[tuple[Path, Path]] = []
    try:
        for source, target in [
            *((entry, aside / entry.name) for entry in kept if aside is not None),
            *((entry, home / entry.name) for entry in sorted(fresh.iterdir())),
        ]:
            source.rename(target)
            moved.append((source, target))
    except OSError as error:
        # A mount point in the home, for example: put everything back where it was.
        for source, target in reversed(moved):
            target.rename(source)
        if aside is not None:
            aside.rmdir()
        shutil.rmtree(fresh.parent)
        raise BackupError(
            f"{error.filename}: {error.strerror}; nothing was changed: unmount it, or choose"
            " another home"
        ) from None
    sync_directory(home)
    shutil.rmtree(fresh.parent)
    sync_directory(home)
    return aside


async def _restore_store(
    fresh: Path, dump: Path, config: Config, manifest: Manifest, *, force: bool
) -> None:
    if not config.etcd.endpoints:
        async with _own_store(fresh / "etcd", int(config.etcd.quota)) as client:
            await _fill(client, dump, manifest)
        return
    async with open_client(access_of(config.etcd, fresh)) as client:
        await require(client, config.etcd)
        if await client.get(leader.KEY) is not None:
            raise BackupError("a daemon serves the store at [etcd] endpoints: stop it first")
        if await client.count(keys.ROOT):
            if not force:
                raise BackupError(
                    "the store at [etcd] endpoints holds a colony: --force deletes that"
                )
            await client.delete_prefix(keys.ROOT)
        await _fill(client, dump, manifest)


async def _fill(client: EtcdClient, dump: Path, manifest: Manifest) -> None:
    with _reading(dump) as file:
        count = await _load(client, file)
    if not count == manifest.keys == await client.count(keys.ROOT):
        raise BackupError(f"{count} keys were written instead of {manifest.keys}")


def _reading(path: Path) -> IO[bytes]:
    return path.open("rb")
