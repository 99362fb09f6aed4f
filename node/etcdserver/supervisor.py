"""The supervisor of the embedded etcd: starts it as a child without any TCP port, restarts it,
stops it last.

`etcdserver.preflight` checks for obstacles; the data inside do not matter here.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections import deque
from pathlib import Path
from typing import NoReturn

import trio

from node.etcd.client import open_client
from node.etcd.errors import EtcdError, EtcdUnavailable, StoreRefused
from node.etcd.pressure import BATCH, DEFAULT_QUOTA
from node.etcdserver.faults import BEHIND, DAMAGE, DISK_FULL, Fault, explain, following, is_noise
from node.etcdserver.preflight import (
    EtcdInstallation,
    environment,
    open_installation,
    stop_orphan,
    wait_exit,
)
from node.host.log import get_logger

log = get_logger("etcd")

_READY_TIMEOUT = 120.0  # seconds; replaying the log of a big store from flash takes its time
_STOP_TIMEOUT = 5.0  # seconds from SIGTERM to SIGKILL
_FIRST_BACKOFF, _MAX_BACKOFF = 0.1, 5.0  # seconds between a death and the next start
_NOISE = frozenset(
    {
        "simple token is not cryptographically signed",  # of etcd's own users, which we do not use
        "failed to apply request",  # is the answer to the call that caused it
    }
)
_WRITE_PATIENCE = 10.0  # seconds; etcd itself gives up on a write after 7
_STABLE = 60.0  # seconds of service after which a death counts as the first again


def own_limit(directory: Path, quota_bytes: int) -> int:
    """Return the limit in bytes that etcd itself gets for its file, by the present size of the
    file.

    It is a quarter of the quota above both the quota and the file. At its limit etcd refuses any
    request that could put something, also a block, the end of a process and the leader's lease, and
    the free pages in the file count: a full store could only be emptied key by key. `pressure`
    refuses writes far below that.
    """
    try:
        size = (directory / "data" / "member" / "snap" / "db").stat().st_size
    except OSError:
        size = 0
    quota = quota_bytes or DEFAULT_QUOTA
    return max(quota, size) + quota // 4


def command(binary: str, limit: int) -> list[str]:
    """Return etcd's command line, for the store's directory as working directory."""
    # Relative names make the sockets `localhost:1` and `localhost:2` in the working directory,
    # however long its path is.
    client, peer = "unix://localhost:1", "unix://localhost:2"
    return [
        binary,
        "--name=colonyd",
        "--data-dir=data",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=colonyd={peer}",
        f"--quota-backend-bytes={limit}",
        # By default nothing is ever compacted; periodic mode keeps what a watch may resume from.
        "--auto-compaction-mode=periodic",
        "--auto-compaction-retention=5m",
        # 100,000 entries of raft log, the default, stay in memory: too much for a small machine.
        "--snapshot-count=2000",
        # By default each write is in the file 100 ms later, which costs flash whole pages. The
        # write is in the log, and the log on the disk, before it is acknowledged: a kill loses
        # nothing.
        f"--backend-batch-interval={BATCH}s",
        # Each read copies the gathered writes, so they are kept few: otherwise a busy store takes
        # twice the CPU and does a quarter fewer cycles a second.
        "--backend-batch-limit=100",
        "--logger=zap",
        "--log-outputs=stderr",
        "--log-level=warn",
    ]


def _pass_on(line: bytes) -> str:
    """Log a line of etcd's as ours; return it as short text, empty for noise and warnings."""
    text = line.decode(errors="replace")[:2000]
    try:
        entry = json.loads(text)
        message, level = str(entry["msg"]), entry["level"]
    except (ValueError, KeyError, TypeError):
        log.debug("etcd says", text=text)
        return text
    if message in _NOISE:
        log.debug("etcd says", text=message)
        return ""
    detail = str(entry.get("error", ""))
    emit = log.warning if level == "warn" else log.error
    emit("etcd says", text=message, detail=detail, took=entry.get("took", ""))
    if level == "warn":
        return ""
    return f"{message}: {detail}" if detail else message


class _Child:
    """One run of etcd: its process, a pidfd to signal without races, and its last lines."""

    def __init__(self, installation: EtcdInstallation, quota_bytes: int) -> None:
        arguments = command(installation.binary, own_limit(installation.directory, quota_bytes))
        if installation.setpriv is not None:
            # So that etcd ends even when we are killed. The signal comes when the starting *thread*
            # ends, hence no `trio.lowlevel.open_process`, which starts from a passing thread.
            arguments = [installation.setpriv, "--pdeathsig=TERM", "--", *arguments]
        self.process = subprocess.Popen(
            arguments,
            cwd=installation.directory,
            env=environment(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            # Otherwise a Ctrl-C in the terminal would stop the store before its users.
            start_new_session=True,
        )
        self.pidfd = os.pidfd_open(self.process.pid)
        self.last_lines: deque[str] = deque(maxlen=8)

    async def read_log(self) -> None:
        """Pass on etcd's lines, until it ends; `last_lines` has no trace of a panic."""
        assert self.process.stderr is not None
        pending, panics = b"", False
        async with trio.lowlevel.FdStream(os.dup(self.process.stderr.fileno())) as stream:
            async for chunk in stream:
                *lines, pending = (pending + chunk).split(b"\n")
                pending = pending[-8192:]
                for line in lines:
                    text = _pass_on(line)
                    panics = panics or is_noise(text)
                    if text and not panics:
                        self.last_lines.append(text)

    async def wait(self) -> int:
        """Wait for the end of the process; return the exit status, negative for a signal."""
        await wait_exit(self.pidfd)
        return self.process.wait()

    async def stop(self) -> None:
        """End the process within `_STOP_TIMEOUT` and a bit, whatever its state."""
        with trio.CancelScope(shield=True):
            if self.process.poll() is None:
                self.process.terminate()
                with trio.move_on_after(_STOP_TIMEOUT):
                    await self.wait()
            if self.process.poll() is None:
                log.warning("etcd did not stop: killed", seconds=_STOP_TIMEOUT)
                self.process.kill()
                await self.wait()

    def close(self) -> None:
        os.close(self.pidfd)
        if self.process.stderr is not None:
            self.process.stderr.close()


async def _until_ready(target: str) -> bool:
    """Return when etcd serves: True, or False when it reads but takes no write.

    Reads do not show a log that lost its end: etcd gives later entries an index that the database
    has seen, so they are not applied, and their callers get no answer.
    """
    async with open_client(target, timeout=2.0) as client:
        while True:
            try:
                await client.get("ready")
            except EtcdError as error:
                log.debug("etcd is not ready", error=error)
                await trio.sleep(0.1)
            else:
                break
    async with open_client(target, timeout=_WRITE_PATIENCE) as client:
        ignored, before = 0, -1
        while True:
            try:
                applied = await client.applied()
                ignored = ignored + 1 if 0 <= before < applied else 0
                # A single failure may be a disk that came back just after the timeout.
                if ignored == 2:
                    return False
                before = applied
                # The request goes through the log, is allowed with a full store, and leaves
                # nothing.
                await client.delete("ready")
            except EtcdUnavailable as error:
                log.debug("etcd answers no write", error=error)
                await trio.sleep(0.1)
            except EtcdError:
                return True  # a refusal is an answer
            else:
                return True


async def _run_once(installation: EtcdInstallation, quota_bytes: int, ready: trio.Event) -> Fault:
    """Run etcd until it dies, setting `ready` when it serves; return how it ended."""
    installation.clear_sockets()
    child = _Child(installation, quota_bytes)
    started = trio.current_time()
    ended: Fault | None = None

    async def watch_start() -> None:
        nonlocal ended
        ended = Fault(
            f"etcd did not become ready in {_READY_TIMEOUT:.0f} s",
            "is the disk very slow, or very busy? Then start again",
        )
        with trio.move_on_after(_READY_TIMEOUT):
            ended = None if await _until_ready(installation.target) else Fault(BEHIND, DAMAGE)
        if ended is None:
            took = round(trio.current_time() - started, 3)
            log.info("etcd serves", pid=child.process.pid, seconds=took)
            ready.set()
        else:
            nursery.cancel_scope.cancel()

    try:
        installation.remember(child.process.pid)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child.read_log)
            nursery.start_soon(watch_start)
            status = await child.wait()
            # Its last lines are still in the pipe, which a leftover process could hold open.
            with trio.move_on_after(0.2):
                await trio.sleep(0.05)
            ended = _judge(child, status, ready)
            nursery.cancel_scope.cancel()
    finally:
        await child.stop()
        child.close()
        installation.forget()
    assert ended is not None
    return ended


def _judge(child: _Child, status: int, ready: trio.Event) -> Fault:
    """Return how etcd ended by itself: with `status`, negative for a signal."""
    how = f"by signal {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
    if ready.is_set():
        return Fault(f"etcd ended {how}: {' | '.join(child.last_lines) or 'it said nothing'}", "")
    return explain(child.last_lines, how)


async def supervise(
    directory: Path,
    *,
    quota_bytes: int,
    binary: str = "etcd",
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Run an etcd of our own with its data in `directory`, until cancelled.

    Gives the target for `open_client` to `task_status` when etcd serves. Raises `StoreRefused` when
    it cannot start at first, or when its data are broken. After other deaths, and with a full disk,
    it is restarted with back-off, until there is room. When cancelled, returns only after etcd has
    ended, at most about `_STOP_TIMEOUT` later: cancel it last.
    """
    with open_installation(directory, binary) as installation:
        await stop_orphan(installation.directory, patience=_STOP_TIMEOUT)
        announced = False
        backoff = _FIRST_BACKOFF
        while True:
            ready = trio.Event()
            began = trio.current_time()
            async with trio.open_nursery() as nursery:

                async def announce(event: trio.Event = ready) -> None:
                    await event.wait()
                    task_status.started(installation.target)

                if not announced:
                    nursery.start_soon(announce)
                ended = await _run_once(installation, quota_bytes, ready)
                nursery.cancel_scope.cancel()
            announced = announced or ready.is_set()
            if ended.what == BEHIND:
                installation.note_damage(BEHIND)
            if ended.damaged or not (announced or ended.what.startswith(DISK_FULL)):
                raise StoreRefused(
                    f"the store in {installation.directory} does not start: {ended.what}: "
                    + following(ended.next, installation.directory)
                )
            log.error("etcd is started again", seconds=backoff, because=ended.what)
            await trio.sleep(backoff)
            served = trio.current_time() - began
            backoff = _FIRST_BACKOFF if served > _STABLE else min(_MAX_BACKOFF, backoff * 2)
