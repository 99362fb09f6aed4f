"""A real Slurm of one node for tests: munged, slurmctld and slurmd in a network namespace.

Needs root, and Debian's packages slurm-wlm, munge and iproute2. The node's address is on a veth:
slurmctld does not take a node that is known by the loopback address alone.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.netns import clear, clear_abandoned, ip, space_tag, terminable, unable

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PROGRAMS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "ip", "nsenter")
_CLIENTS = ("sbatch", "squeue", "scancel", "scontrol", "sacct", "sinfo")
_ADDRESS = "10.78.0.1"
_START = 60.0  # seconds for the node to be there

_CONFIGURATION = """\
ClusterName=tests
SlurmctldHost={host}({address})
NodeName=head NodeAddr={address} CPUs=4 RealMemory=2000 State=UNKNOWN
PartitionName=all Nodes=head Default=YES MaxTime=600 State=UP OverSubscribe=NO
PartitionName=short Nodes=head MaxTime=2 State=UP
AuthType=auth/munge
AuthInfo=socket={place}/munge.socket
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd.pid
SlurmctldPort=6817
SlurmdPort=6818
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
SlurmdParameters=config_overrides
MinJobAge=300
KillWait=2
InactiveLimit=0
Waittime=0
"""


def require() -> None:
    """Skip where no Slurm can be started at all; what is only not installed fails in CI."""
    if os.geteuid() != 0:
        pytest.skip("a Slurm of one's own needs root")
    lacking = [name for name in _PROGRAMS if not shutil.which(name, path=_PATH)]
    if lacking:
        reason = f"no {', '.join(lacking)} here: `scripts/setup --test` installs what is missing"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    if reason := unable():
        pytest.skip(reason)


class Slurm:
    """A controller and a node. `bin` holds Slurm's commands as a login node has them."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.space = f"{space_tag()}slurm"
        self.bin = place / "bin"
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Make the namespace, write the configuration, start the daemons, wait for the node."""
        ip("netns", "add", self.space)
        ip("-n", self.space, "link", "set", "lo", "up")
        veth = ("link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
        ip("-n", self.space, *veth)
        ip("-n", self.space, "address", "add", f"{_ADDRESS}/24", "dev", "eth0")
        ip("-n", self.space, "link", "set", "eth0", "up")
        ip("-n", self.space, "link", "set", "eth1", "up")
        for name in ("state", "spool", "bin"):
            (self.place / name).mkdir()
        configuration = _CONFIGURATION.format(
            address=_ADDRESS, host=socket.gethostname(), place=self.place
        )
        (self.place / "slurm.conf").write_text(configuration)
        cgroup = "CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n"
        (self.place / "cgroup.conf").write_text(cgroup)
        for name in _CLIENTS:
            self._client(name)
        self._munge()
        self.start_controller()
        self._run("slurmd", "slurmd", "-D", "-N", "head", "-f", str(self.place / "slurm.conf"))
        self._ready()

    def _client(self, name: str) -> None:
        path = self.bin / name
        path.write_text(
            f"#!/bin/sh\nexport SLURM_CONF={self.place}/slurm.conf\n"
            f'exec nsenter --net=/run/netns/{self.space} /usr/bin/{name} "$@"\n'
        )
        path.chmod(0o755)

    def _munge(self) -> None:
        key = self.place / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        words = ["munged", "--foreground", "--force", f"--key-file={key}"]
        words += [f"--socket={self.place}/munge.socket", f"--pid-file={self.place}/munge.pid"]
        words += [f"--seed-file={self.place}/munge.seed"]
        self._run("munged", *words)
        _until(lambda: (self.place / "munge.socket").exists(), self.told)

    def _run(self, name: str, *words: str) -> None:
        command = ["nsenter", f"--net=/run/netns/{self.space}", *words]
        environ = {"PATH": _PATH, "SLURM_CONF": str(self.place / "slurm.conf"), "LC_ALL": "C"}
        with (self.place / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environ, cwd="/"
            )

    def start_controller(self) -> None:
        """Start slurmctld."""
        self._run("slurmctld", "slurmctld", "-D", "-f", str(self.place / "slurm.conf"))

    def stop_controller(self) -> None:
        """End slurmctld; it saves its state."""
        process = self._running.pop("slurmctld")
        process.terminate()
        process.wait(60)

    def _ready(self) -> None:
        _until(lambda: self.command("sinfo", "-h", "-o", "%T").strip() == "idle", self.told)

    def told(self) -> str:
        """Return what the daemons said last."""
        return "\n".join(
            f"{path.name}: {path.read_text()[-2000:]}" for path in self.place.glob("*.log")
        )

    def command(self, name: str, *words: str) -> str:
        """Run one of Slurm's commands; return what it prints, also where it fails."""
        path = self.bin / name
        done = subprocess.run(
            [path, *words], capture_output=True, text=True, timeout=60, check=False, cwd="/"
        )
        return done.stdout

    def jobs(self, *states: str) -> list[str]:
        """Return "name state" of the jobs in these states, of all without any."""
        chosen = ",".join(states) or "all"
        return self.command("squeue", "-h", "-o", "%j %T", f"--states={chosen}").splitlines()

    def stop(self) -> None:
        """End all of it, and the jobs that are left."""
        for process in self._running.values():
            process.send_signal(signal.SIGKILL)
            process.wait(20)
        with suppress(AssertionError):
            clear(self.space)


def _until(true: Callable[[], bool], told: Callable[[], str]) -> None:
    end = time.monotonic() + _START
    while not true():
        assert time.monotonic() < end, told()
        time.sleep(0.1)


@contextmanager
def running_slurm(place: Path) -> Iterator[Slurm]:
    """Run a Slurm for as long as the block takes."""
    require()
    clear_abandoned()
    slurm = Slurm(place)
    with terminable():
        try:
            slurm.start()
            yield slurm
        finally:
            slurm.stop()
