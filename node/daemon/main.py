"""The nursery tree of a node: what starts, in which order, and what ends it.

The store starts first, then the indexes, then the listeners; they end the other way round.
"""

from __future__ import annotations

import gc
import os
import signal
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import trio

from colonyd.places import Listening
from node.archive.eviction import Eviction
from node.archive.retention import Retention
from node.daemon import recovery as succession
from node.daemon import routes as door
from node.daemon.metrics import Family
from node.etcd.client import EtcdClient, open_client
from node.etcd.errors import EtcdError
from node.etcd.pressure import DEFAULT_QUOTA, Pressure
from node.etcd.transport.dial import Access
from node.etcdserver import cluster
from node.etcdserver import identity as storeid
from node.etcdserver import sweep as sweeping
from node.etcdserver.maintenance import clear_alarm, maintain, observe, watch_use
from node.etcdserver.preflight import lock_home
from node.etcdserver.supervisor import supervise
from node.files.blobs import BlobStore
from node.files.tickets import Tickets
from node.handlers import (
    blueprints,
    colonies,
    executors,
    files,
    identities,
    locations,
    snapshots,
    status,
)
from node.handlers.work import (
    channels as channels,
)
from node.handlers.work import (
    crons as crons,
)
from node.handlers.work import (
    generators as generators,
)
from node.handlers.work import (
    logs as logs,
)
from node.handlers.work import (
    processes as processes,
)
from node.handlers.work import (
    workflows as workflows,
)
from node.host import certificate
from node.host.clock import Clock, boot_id, steady_ns
from node.host.config import Config, ConfigError, load_config
from node.host.home import Home, HomeError, HomeInfo, init_home, share, tighten
from node.host.listening import announce, withdraw, withdrawn
from node.host.log import configure_logging, get_logger
from node.host.systemd import Notifier, watchdog
from node.http.listeners import addresses_of, bound_port, open_listeners
from node.model.types import Colony, Executor, ExecutorState, User
from node.processes.backfill import IndexBackfill
from node.processes.deadlines import expire
from node.processes.reading import Reading
from node.rpc.dispatch import Table
from node.rpc.replay import ReplayGuard
from node.runtime import feeds as feeding
from node.runtime.node import Node
from node.runtime.reload import Apply, Reload
from node.store import keys
from node.tasks.containment import keep_going
from node.timers import runner as timers
from node.timers.election import home_identity

log = get_logger("daemon")

# Every module with rows of the table, in the order of the documentation; a new module is added
# here.
HANDLERS = (
    colonies,
    status,
    locations,
    executors,
    identities,
    processes,
    logs,
    workflows,
    crons,
    generators,
    files,
    snapshots,
    channels,
    blueprints,
)

_TICK = 1.0
# When the collector of cycles looks, in new objects. Requests leave hardly any cycles: looking for
# them among everything that waits, every few requests, would make a deep queue a slow one.
_COLLECT = (10_000, 20, 50)


@dataclass(frozen=True)
class Joined:
    """What a running extension adds to a node.

    `addresses` are those of its own port, `status` returns its state, `appliers` are for `Reload`,
    `families` returns its metrics beside the numbers of its state.
    """

    addresses: Sequence[str]
    status: Callable[[], dict[str, Any]]
    appliers: Mapping[str, Apply]
    families: Callable[[], list[Family]] = list


Extension = Callable[[Node, Table, HomeInfo, Config], AbstractAsyncContextManager[Joined | None]]


@dataclass(frozen=True)
class StartOptions:
    """The options of a start. `overrides` are flags by dotted path."""

    home: Path
    overrides: Mapping[str, object]
    environ: Mapping[str, str]


def load(settings: StartOptions) -> tuple[Config, HomeInfo]:
    """Read the configuration and prepare the home. Raises ConfigError or HomeError."""
    config = load_config(settings.home, settings.overrides, environ=settings.environ)
    info = init_home(settings.home, config.node.name or None, settings.environ)
    return config, info


async def run(
    settings: StartOptions,
    extension: Extension | None = None,
    *,
    task_status: trio.TaskStatus[Node] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a node until SIGTERM or SIGINT, or until cancelled.

    Raises StoreRefused, ConfigError or HomeError when it can't start.
    """
    config, info = load(settings)
    home = Home(settings.home)
    for path, mode in tighten(settings.home, config.node.group):
        log.warning(
            "secret was open to other users",
            path=str(path),
            mode=f"{mode:04o}",
            now=f"{mode & 0o700:04o}",
            next="if others use this machine, make it anew: `colony key rotate`, or for TLS remove"
            " tls.key and tls.crt",
        )
    if config.node.group:
        share(settings.home, config.node.group)
    elif settings.environ.get("STATE_DIRECTORY") == str(settings.home):
        # systemd opens it to the group at each start.
        settings.home.chmod(0o700)
    notifier = Notifier.from_environ(os.environ)
    # Open before readiness is announced: a signal must not find the default action.
    with (
        lock_home(settings.home),
        withdrawn(settings.home),
        trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals,
    ):
        async with trio.open_nursery() as outer:
            target: str | Access
            if config.etcd.endpoints:
                target = cluster.access_of(config.etcd, settings.home)
            else:
                storeid.require_place(home)
                target = await outer.start(_supervise, home.etcd, int(config.etcd.quota))
            try:
                pressure = Pressure(
                    quota=int(config.etcd.quota) or DEFAULT_QUOTA, own=not config.etcd.endpoints
                )
                async with open_client(target, pressure=pressure) as client:
                    if config.etcd.endpoints:
                        await cluster.require(client, config.etcd)
                    await _open_pressure(client, settings.home)
                    await storeid.settle(client, home, info.name)
                    await _serve(
                        client, settings, config, info, extension, notifier, signals, task_status
                    )
            finally:
                # The store ends last, after everything that writes.
                outer.cancel_scope.cancel()


async def _supervise(
    directory: Path, quota: int, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
) -> None:
    await supervise(directory, quota_bytes=quota, task_status=task_status)


async def _open_pressure(client: EtcdClient, home: Path) -> None:
    """Learn how full the store is before anything is written, and clear an old alarm."""
    if client.pressure.own:
        await clear_alarm(client)
        await observe(client, home)
        return
    try:
        await observe(client)
    except EtcdError as error:
        log.warning("store is not watched", because=error)  # `watch_use` tries again


async def _maintain(node: Node, home: Path) -> None:
    """Maintain the embedded store, or watch a store that others run."""
    client, pressure = node.client, node.client.pressure
    if pressure.own:
        await maintain(
            client,
            quota_bytes=pressure.quota,
            hold=keys.HOLD,
            disk=home,
            listing=lambda: node.processes.listing,
        )
    await watch_use(client)


async def _serve(
    client: EtcdClient,
    settings: StartOptions,
    config: Config,
    info: HomeInfo,
    extension: Extension | None,
    notifier: Notifier,
    signals: AsyncIterator[int],
    task_status: trio.TaskStatus[Node],
) -> None:
    began = time.monotonic()
    gc.set_threshold(*_COLLECT)
    home, clock = Home(settings.home), Clock(time.time_ns, steady_ns)
    node = Node.build(
        client,
        info.name,
        clock,
        config,
        identity=home_identity(settings.home),
        boot=boot_id(),
        history=settings.home / "history",
        blobs=_blobs(home.files, config, clock),
        tickets=Tickets(bytes.fromhex(info.server.hex), clock.now),
    )
    replays = ReplayGuard(client, clock.now)
    strict = config.rpc.replay == "strict"
    table = Table(
        node.directory,
        clock.now,
        strict_replay=strict,
        replays=replays,
        pressure=client.pressure,
    )
    await node.retiming.load()
    for module in HANDLERS:
        for call in module.calls.of(node):
            table.add(call)
    info = await succession.finish(client, home, info, clock.now())
    node.directory.serverid = await node.members.adopt(
        Colony(info.colony.id, info.name),
        User(info.name, info.user.id, info.username),
        _adopted(info),
        info.server.id,
    )
    async with trio.open_nursery() as nursery:
        housekeeping = partial(_maintain, node, settings.home)
        nursery.start_soon(keep_going, "store maintenance", housekeeping)
        for prefix in (keys.MEMBERS, keys.LIVE, keys.paused(""), keys.SERVER):
            index = partial(feeding.follow, node, prefix)
            await nursery.start(keep_going, f"index of {prefix}", index)
        nursery.start_soon(keep_going, "news of other daemons", node.remote_changes.run)
        await nursery.start(keep_going, "channels", node.channels.run)
        await nursery.start(keep_going, "files", node.files.run)
        nursery.start_soon(keep_going, "deadlines", partial(_deadlines, node))
        nursery.start_soon(keep_going, "replay markers", replays.run)
        nursery.start_soon(keep_going, "parts of large values", partial(sweeping.run, client))
        nursery.start_soon(keep_going, "index of history", node.history_reader.run)
        indexing = IndexBackfill(node.client, node.directory)
        nursery.start_soon(keep_going, "index of closed processes", indexing.run)
        nursery.start_soon(keep_going, "count of closed processes", node.processes.closed.run)
        nursery.start_soon(keep_going, "count of workflows", node.workflows.counts.run)
        listeners = await open_listeners(
            config.rpc.host, config.rpc.port, _tls(settings.home, config)
        )
        port = bound_port(listeners)
        node.serving.opened(port)
        async with _extended(extension, node, table, info, config) as joined:
            if joined is not None:
                node.serving.extended(joined.status)
            # Not before: a process that is ready by now may have to go to another colony, and the
            # hooks know.
            await nursery.start(keep_going, "workflows", node.workflows.run)
            await nursery.start(keep_going, "timers", partial(timers.run, node.retiming))
            drained = trio.Event()
            more = joined.families if joined is not None else list
            await nursery.start(door.serve, node, table, config, listeners, drained, more)
            where = Listening(
                os.getpid(),
                info.name,
                node.directory.serverid,
                addresses_of(listeners),
                config.rpc.tls,
                list(joined.addresses) if joined is not None else [],
            )
            announce(settings.home, where)
            task_status.started(node)
            status_line = f"colony {info.name} on port {port}"
            notifier.ready(status_line)
            log.info(
                "ready",
                colony=info.name,
                id=info.colony.id,
                port=port,
                seconds=round(time.monotonic() - began, 3),
            )
            nursery.start_soon(
                keep_going, "queue", partial(_read_queue, node, notifier, status_line)
            )
            nursery.start_soon(keep_going, "clock", partial(_retime, node))
            nursery.start_soon(keep_going, "watchdog", partial(_watchdog, node, notifier))
            # After the extension: its hooks say what must stay.
            retention = Retention(
                client,
                node.processes,
                node.workflows,
                node.directory,
                node.leader,
                node.history_reader,
                settings.home,
                config.history,
                Eviction(client, clock.now),
            )
            nursery.start_soon(keep_going, "retention", retention.run)
            reload = Reload(
                config,
                {
                    "log.level": lambda new: configure_logging(new.log.level),
                    "quotas": partial(_limit, node),
                    "rpc.reregister": partial(_let_reregister, node),
                    "history": retention.configure,
                    **(joined.appliers if joined is not None else {}),
                },
            )
            await _until_signal(signals, node, reload, settings, notifier)
            notifier.stopping()
            log.info("draining")
            withdraw(settings.home)
            node.drain()
            await drained.wait()
        nursery.cancel_scope.cancel()
    log.info("stopped")


def _tls(home: Path, config: Config) -> ssl.SSLContext | None:
    """Return the TLS context that RPC is served with, or None. Raises ConfigError."""
    rpc = config.rpc
    if not rpc.tls:
        return None
    try:
        if rpc.certificate:
            return certificate.rpc_context(home / rpc.certificate, home / rpc.key)
        own, key, _ = certificate.make_certificate(home)
        return certificate.rpc_context(own, key)
    except certificate.TlsError as error:
        raise ConfigError(f"rpc.certificate: {error}") from None


def _limit(node: Node, config: Config) -> None:
    """Put the quotas of a new configuration into force."""
    node.processes.quotas.limits = config.quotas
    if node.files.blobs is not None:
        node.files.blobs.uploads = config.quotas.uploads


def _let_reregister(node: Node, config: Config) -> None:
    """Apply whether an executor may replace the one that has its name."""
    node.members.reregister = config.rpc.reregister


def _blobs(path: Path, config: Config, clock: Clock) -> BlobStore:
    """Return the blob store at `path`. Raises HomeError."""
    try:
        return BlobStore(path, int(config.files.quota), clock.now, uploads=config.quotas.uploads)
    except OSError as error:
        raise HomeError(f"{path}: {error.strerror}") from None


def _adopted(info: HomeInfo) -> Executor | None:
    """Return the executor that the SDKs' variables name, or None."""
    if info.executor is None:
        return None
    return Executor(
        info.executor.id,
        info.executortype,
        info.executorname,
        info.name,
        state=ExecutorState.APPROVED,
    )


@asynccontextmanager
async def _extended(
    extension: Extension | None, node: Node, table: Table, info: HomeInfo, config: Config
) -> AsyncIterator[Joined | None]:
    if extension is None:
        yield None
        return
    async with extension(node, table, info, config) as joined:
        yield joined


async def _deadlines(node: Node) -> None:
    """Deal with passed deadlines once a second; if the store does not answer, try again."""
    while True:
        try:
            await expire(node.processes, node.assigner)
        except Exception as error:
            # Whatever is wrong with one process, the others are looked at again in a second.
            log.warning("deadlines wait", error=repr(error))
        await trio.sleep(_TICK)


async def _read_queue(node: Node, notifier: Notifier, status_line: str) -> None:
    """Tell how far the queue is read, until it is.

    Modules and what was read stay. The collector is kept from them, also meanwhile: to look at
    100,000 processes takes it longer than anything may hold the loop.
    """
    reading, began = node.processes.reading, time.monotonic()
    if reading.under_way:
        async with trio.open_nursery() as nursery:
            telling = partial(_tell_progress, reading, notifier, status_line)
            nursery.start_soon(keep_going, "progress of the queue", telling)
            await reading.ended()
            nursery.cancel_scope.cancel()
        log.info("queue read", keys=reading.read, seconds=round(time.monotonic() - began, 3))
        notifier.status(status_line)
    gc.freeze()


async def _tell_progress(reading: Reading, notifier: Notifier, status_line: str) -> None:
    while True:
        log.info("reading the queue", read=reading.read, of=reading.total)
        notifier.status(f"{status_line}; {reading}")
        gc.freeze()
        await trio.sleep(_TICK)


async def _retime(node: Node) -> None:
    # It looks at all that waits.
    await node.processes.reading.ended()
    await node.retiming.run()


async def _watchdog(node: Node, notifier: Notifier) -> None:
    async def store_answers() -> bool:
        try:
            await node.client.get(keys.SERVER)
        except EtcdError:
            return False
        return True

    await watchdog(notifier, store_answers)


async def _until_signal(
    signals: AsyncIterator[int],
    node: Node,
    reload: Reload,
    settings: StartOptions,
    notifier: Notifier,
) -> None:
    """Return on SIGTERM or SIGINT; SIGHUP checks and reads the configuration again."""
    async for number in signals:
        if number != signal.SIGHUP:
            log.info("signal", number=number)
            return
        try:
            config = load_config(settings.home, settings.overrides, environ=settings.environ)
        except ConfigError as error:
            log.error("configuration kept", error=error)
            continue
        notifier.reloading()
        applied, waiting = reload.take(config)
        notifier.ready(f"colony {node.home} on port {node.serving.port}")
        log.info("configuration read", applied=", ".join(applied) or "nothing changed")
        if waiting:
            log.warning("settings need a restart", settings=", ".join(waiting))
