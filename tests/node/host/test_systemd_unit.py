"""The unit under a real systemd, booted as PID 1 of its own namespaces, and the daemon's messages.

The namespaces take every process and mount with them when their PID 1 is killed; the machine's own
systemd, if it has one, its files and its users are not touched.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.daemon.service import system_unit
from tests.support.daemons import REPOSITORY, Daemon

UNITS = REPOSITORY / "systemd"
UNIT = UNITS / "colonyd.service"
SYSTEMD = Path("/lib/systemd/systemd")
TOOLS = ("unshare", "nsenter", "setpriv", "ip", "systemctl", "systemd-sysusers", "etcd")
NAMESPACES = ("--mount", "--pid", "--net", "--uts", "--ipc", "--mount-proc")

# $1: scratch directory, $2: cgroup, $3: Python, $4: its packages. The mounts shadow whatever
# systemd or the installation would write.
BOOT = """
set -e
mount --make-rprivate /
mount -t tmpfs none "$1/root"
cp -a /etc "$1/root/etc"
mount --bind "$1/root/etc" /etc
mount -t tmpfs none /run
mount -t tmpfs none /var
mkdir -p /var/lib /var/log
mkdir -m 1777 /var/tmp
mkdir -p /opt
mount --bind "$1/opt" /opt
mount --bind "$3" /opt/python
mount --bind "$4" /opt/libraries
systemd-sysusers "$1/units/colonyd.sysusers.conf"
systemd-tmpfiles --create "$1/units/colonyd.tmpfiles.conf"
ip link set lo up
ip link add colony0 type veth peer name colony1
ip link set colony1 up
ip address add 192.0.2.1/24 dev colony0
ip link set colony0 up multicast on
mkdir /run/dev
mount -t tmpfs none /run/dev
for device in null zero full random urandom tty; do
    touch "/run/dev/$device"
    mount --bind "/dev/$device" "/run/dev/$device"
done
mkdir /run/dev/shm /run/dev/pts
ln -s pts/ptmx /run/dev/ptmx
mount -t devpts -o newinstance,ptmxmode=0666 none /run/dev/pts
mount --rbind /run/dev /dev
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
echo 0 >"$2/cgroup.procs"
mount -t sysfs none /sys
export container=colonyd-test SYSTEMD_UNIT_PATH="$1/units" SYSTEMD_LOG_TARGET=console
exec unshare --cgroup sh -c 'mount -t cgroup2 none /sys/fs/cgroup &&
    exec /lib/systemd/systemd --unit=colonyd-test.target --show-status=no'
"""
TARGETS = (
    "basic",
    "network-online",
    "network",
    "shutdown",
    "sysinit",
    "time-sync",
    "timers",
    "sockets",
    "paths",
    "slices",
)
BROWSE = """
import threading, zeroconf
seen = threading.Event()
class Listener(zeroconf.ServiceListener):
    def add_service(self, zc, kind, name):
        seen.set()
    def update_service(self, zc, kind, name): pass
    def remove_service(self, zc, kind, name): pass
with zeroconf.Zeroconf(interfaces=["192.0.2.1"]) as zc:
    browser = zeroconf.ServiceBrowser(zc, "_colonyd._tcp.local.", Listener())
    assert seen.wait(60), "not announced"
    browser.cancel()
"""
HEALTH = """
import urllib.request
print(urllib.request.urlopen("http://127.0.0.1:50080/health", timeout=60).status)
"""


def eventually(what: str, check: Callable[[], object], seconds: float = 120) -> None:
    """Poll `check` until it returns something true."""
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.1)


class System:
    """A booted systemd; the daemon's log is in `log`."""

    def __init__(self, scratch: Path, cgroup: Path) -> None:
        self.scratch = scratch
        self.cgroup = cgroup
        self.output = scratch / "output"
        self.init = 0
        self._root: subprocess.Popen[bytes] | None = None

    def boot(self) -> None:
        """Start; raises TimeoutError if systemd does not come up, with what was said."""
        _install(self.scratch)
        self.cgroup.mkdir()
        site = next(path for path in sys.path if path.endswith("site-packages"))
        arguments = [str(self.scratch), str(self.cgroup), sys.base_prefix, site]
        script = ["--fork", "--kill-child", "sh", "-c", BOOT, "boot", *arguments]
        with self.output.open("wb") as output:
            self._root = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "unshare", *NAMESPACES, *script],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
            )
        children = Path(f"/proc/{self._root.pid}/task/{self._root.pid}/children")
        end = time.monotonic() + 120
        while time.monotonic() < end and self._root.poll() is None:
            self.init = self.init or int(children.read_text() or 0)
            if self.init and self.systemctl("is-active", "colonyd-test.target").returncode == 0:
                return
            time.sleep(0.1)
        raise TimeoutError(self.output.read_text()[-2000:])

    def end(self) -> None:
        """Kill PID 1, and with it all the others; the mounts go with the last of them."""
        if self._root is not None:
            if self.init and self._root.poll() is None:
                os.kill(self.init, signal.SIGKILL)
            else:
                self._root.kill()
            self._root.wait(20)
        if self.cgroup.is_dir():
            groups = [Path(path) for path, _, _ in os.walk(self.cgroup, topdown=False)]
            eventually("no processes left", lambda: not any(map(_pids, groups)))
            for group in groups:
                group.rmdir()

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in there, as root."""
        return subprocess.run(
            ["nsenter", "--target", str(self.init), "--all", *command],
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )

    def systemctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("systemctl", "--no-pager", *arguments)

    def ok(self, *arguments: str) -> None:
        """`systemctl` that must succeed."""
        done = self.systemctl(*arguments)
        assert done.returncode == 0, f"{arguments}: {done.stderr}\n{self.explain()}"

    def show(self, name: str) -> str:
        """A property of the unit."""
        return self.systemctl("show", "--value", "--property", name, "colonyd").stdout.strip()

    def python(self, program: str) -> str:
        done = self.run("/opt/colonyd/bin/python", "-c", program)
        assert done.returncode == 0, done.stderr + self.explain()
        return done.stdout.strip()

    def colony(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The command, as the service's user types it."""
        user = ["setpriv", "--reuid=colonyd", "--regid=colonyd", "--clear-groups", "env", "-i"]
        program = ["LD_LIBRARY_PATH=/opt/python/lib", "/opt/colonyd/bin/colony"]
        return self.run(*user, *program, "--home", "/var/lib/colonyd", *arguments)

    @property
    def log(self) -> str:
        path = self.path("/run/colonyd.log")
        return path.read_text() if path.exists() else ""

    def path(self, inside: str) -> Path:
        return Path(f"/proc/{self.init}/root{inside}")

    def children(self, pid: str) -> str:
        """Names and users of the children of a process of theirs."""
        return self.run("ps", "-o", "comm=,user=", "--ppid", pid).stdout.strip()

    def explain(self) -> str:
        state = self.systemctl("status", "--full", "colonyd").stdout
        return f"{self.output.read_text()[-2000:]}\n{state}\n{self.log[-4000:]}"


def _pids(group: Path) -> str:
    return (group / "cgroup.procs").read_text()


def _install(scratch: Path) -> None:
    """Lay out /opt, with what a virtual environment has, and the units."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for name in ("root", "opt/python", "opt/libraries", "opt/colonyd/bin", "units"):
        (scratch / name).mkdir(parents=True)
    home = scratch / "opt/colonyd"
    packages = home / "lib" / version / "site-packages"
    packages.mkdir(parents=True)
    for name in ("colonyd", "node", "federation", "cli"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, packages / name, ignore=ignored)
    (packages / "libraries.pth").write_text("/opt/libraries\n")
    (home / "pyvenv.cfg").write_text("home = /opt/python/bin\n")
    (home / "bin/python").symlink_to(f"/opt/python/bin/{version}")
    for name, module in {"colony": "cli.main", "colonyd": "cli.daemon.colonyd"}.items():
        script = home / "bin" / name
        script.write_text(
            f"#!/opt/colonyd/bin/python\nimport sys\nfrom {module} import main\nsys.exit(main())\n"
        )
        script.chmod(0o755)
    units = scratch / "units"
    for source in UNITS.iterdir():
        text = system_unit(source.read_text(), Path("/opt/colonyd/bin"))
        (units / source.name).write_text(text)
    for name in TARGETS:
        (units / f"{name}.target").write_text(f"[Unit]\nDescription={name}\n")
    (units / "colonyd-test.target").write_text("[Unit]\nRequires=basic.target\n")
    # No journal runs there, and a Python built to look for its library in a home does not find it.
    drop_in = units / "colonyd.service.d"
    drop_in.mkdir()
    (drop_in / "test.conf").write_text(
        "[Service]\nStandardOutput=append:/run/colonyd.log\nStandardError=append:/run/colonyd.log\n"
        "Environment=LD_LIBRARY_PATH=/opt/python/lib\n"
    )
    for path in (scratch / "opt", home):
        path.chmod(0o755)


def _cgroup_root() -> Path | None:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, options, *_ = line.split()
        if kind == "cgroup2" and "rw" in options.split(","):
            return Path(where)
    return None


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    """A systemd with the unit installed and not started."""
    if os.geteuid() != 0:
        pytest.skip("booting systemd in namespaces takes root")
    missing = [name for name in TOOLS if shutil.which(name) is None]
    if missing or not SYSTEMD.exists():
        pytest.skip(f"not installed: {', '.join(missing) or SYSTEMD}")
    groups = _cgroup_root()
    if groups is None:
        pytest.skip("no writable cgroup2 hierarchy")
    # What a container without the privileges refuses.
    attempt = "mount -t tmpfs none /run && mount -t cgroup2 none /mnt && ip link add type veth"
    probe = subprocess.run(
        ["unshare", *NAMESPACES, "--cgroup", "--fork", "sh", "-c", attempt],
        capture_output=True,
        text=True,
        check=False,
    )
    if probe.returncode != 0:
        pytest.skip(f"no namespaces here: {probe.stderr.strip()}")
    system = System(tmp_path, groups / f"colonyd-test-{os.getpid()}")
    try:
        system.boot()
        yield system
    finally:
        system.end()


def hold_promises(system: System, pid: str) -> None:
    """Check the settings on the running daemon: systemd ignores some of them silently."""
    status = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{_outer(system, pid)}/status").read_text().splitlines()
    )
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert {int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert "0" not in status["Uid"].split()
    root = Path(f"/proc/{_outer(system, pid)}/root")
    # PrivateTmp, ProtectHome, PrivateDevices
    system.path("/tmp/colonyd-outside").write_text("")
    assert not (root / "tmp/colonyd-outside").exists()
    system.path("/tmp/colonyd-outside").unlink()
    assert list((root / "root").iterdir()) == []
    assert not (root / "dev/kmsg").exists()
    # ProtectSystem, StateDirectoryMode
    enter = ["nsenter", "--target", pid, "--mount", "--", "sh", "-c"]
    for path in ("/usr/x", "/etc/x", "/opt/x", "/var/x", "/proc/sys/kernel/hostname"):
        done = system.run(*enter, f"echo x >{path}")
        assert (done.returncode, "Read-only file system" in done.stderr) == (2, True), path
    assert system.run(*enter, "stat -c %a /var/lib/colonyd").stdout.strip() == "700"
    limits = Path(f"/proc/{_outer(system, pid)}/limits").read_text().splitlines()
    cores = next(line for line in limits if line.startswith("Max core file size"))
    assert cores.split()[4:6] == ["0", "0"]
    threads = system.run(*enter, "cat /proc/[0-9]*/status").stdout
    used = sum(int(line.split()[1]) for line in threads.splitlines() if line.startswith("Threads:"))
    assert 4 * used < int(system.show("TasksMax")) == 256
    assert 0 < int(system.show("MemoryHigh")) < int(system.show("MemoryMax"))


def _outer(system: System, pid: str) -> int:
    """The process id here of a process of theirs."""
    for group in (Path(path) for path, _, _ in os.walk(system.cgroup)):
        for each in _pids(group).split():
            names = Path(f"/proc/{each}/status").read_text()
            if f"\t{pid}\n" in next(x for x in names.splitlines(True) if x.startswith("NSpid:")):
                return int(each)
    raise AssertionError(f"no process {pid}")


@pytest.mark.slow
def test_the_unit_under_systemd(system: System) -> None:
    path = f"SYSTEMD_UNIT_PATH={system.scratch}/units"
    verified = system.run("env", path, "systemd-analyze", "verify", "colonyd.service")
    assert (verified.returncode, verified.stderr) == (0, "")

    # Type=notify: `start` returns once the daemon said READY.
    system.ok("start", "colonyd")
    assert system.show("ActiveState") == "active"
    assert system.show("StatusText").endswith(" on port 50080")
    assert system.show("WatchdogUSec") == "30s"
    assert system.python(HEALTH) == "200"
    pid = system.show("MainPID")
    assert system.children(pid).split() == ["etcd", "colonyd"]

    hold_promises(system, pid)

    # The sandbox leaves discovery what it needs: netlink and multicast.
    system.python(BROWSE)
    eventually("announced", lambda: "192.0.2.1" in system.log)

    system.ok("reload", "colonyd")
    eventually("configuration read", lambda: 'event="configuration read"' in system.log)
    assert (system.show("MainPID"), system.show("ActiveState")) == (pid, "active")

    # A crash: etcd dies with the daemon, and both come back.
    assert system.run("kill", "-9", pid).returncode == 0
    eventually("restart after kill -9", lambda: system.show("NRestarts") == "1")
    eventually("active again", lambda: system.show("ActiveState") == "active")
    again = system.show("MainPID")
    assert again != pid
    assert system.python(HEALTH) == "200"
    assert system.run("pgrep", "-c", "-x", "etcd").stdout.strip() == "1"

    began = time.monotonic()
    system.ok("stop", "colonyd")
    assert time.monotonic() - began < 29  # after 30 systemd would kill it
    assert (system.show("Result"), system.show("ExecMainStatus")) == ("success", "0")
    assert system.run("pgrep", "-x", "etcd").stdout == ""

    # A daemon that hangs is replaced; the interval is shortened for the test's sake.
    drop_in = system.scratch / "units/colonyd.service.d/watchdog.conf"
    drop_in.write_text("[Service]\nWatchdogSec=10\n")
    system.ok("daemon-reload")
    system.ok("start", "colonyd")
    time.sleep(11)  # longer than the interval: the pings arrive
    assert (system.show("NRestarts"), system.show("ActiveState")) == ("0", "active")
    assert system.run("kill", "-STOP", system.show("MainPID")).returncode == 0
    eventually("restart by the watchdog", lambda: system.show("NRestarts") == "1")
    eventually("active again", lambda: system.show("ActiveState") == "active")
    system.ok("stop", "colonyd")

    # Settings of the machine's owner, and those of the home over them; commands find both, too.
    system.path("/etc/colonyd/config.toml").write_text("[rpc]\nport = 50090\nmax_body = 70000\n")
    system.path("/var/lib/colonyd/config.toml").write_text("[rpc]\nport = 50095\n")
    system.ok("start", "colonyd")
    assert system.show("StatusText").endswith(" on port 50095")
    told = system.colony("config").stdout
    assert "50095  (in /var/lib/colonyd/config.toml)" in told
    assert "70000  (in /etc/colonyd/config.toml)" in told
    system.path("/var/lib/colonyd/config.toml").unlink()
    system.ok("restart", "colonyd")
    assert system.show("StatusText").endswith(" on port 50090")
    status = system.colony("status")
    assert (status.returncode, "50090" in status.stdout) == (0, True), status.stderr
    system.ok("stop", "colonyd")

    # A configuration that is wrong is not tried again.
    system.path("/var/lib/colonyd/config.toml").write_text("[rpc]\nprot = 1\n")
    system.ok("reset-failed")
    assert system.systemctl("start", "colonyd").returncode != 0
    time.sleep(3)  # longer than RestartSec
    assert (system.show("ActiveState"), system.show("NRestarts")) == ("failed", "0")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
def test_the_sandbox_stays_tight() -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--threshold=20", "--no-pager", str(UNIT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_messages_of_a_real_daemon(tmp_path: Path, make_daemon: Callable[..., Daemon]) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)

        def heard() -> list[str]:
            return manager.recv(4096).decode().splitlines()

        def heard_but_pings() -> list[str]:
            while (message := heard()) == ["WATCHDOG=1"]:
                pass
            return message

        daemon = make_daemon(
            "told",
            NOTIFY_SOCKET=manager.getsockname(),
            WATCHDOG_USEC="1000000",
            COLONYD_FEDERATION__ENABLED="false",
        ).start()
        status = f"STATUS=colony told on port {daemon.port}"
        assert heard_but_pings() == ["READY=1", status]
        assert heard() == ["WATCHDOG=1"]

        def gap() -> float:
            began = time.monotonic()
            assert heard() == ["WATCHDOG=1"]
            return time.monotonic() - began

        # Some may come late on a busy machine; a daemon that pings too seldom is never in time.
        assert any(gap() < 0.9 for _ in range(20))

        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGHUP)
        assert heard_but_pings()[0] == "RELOADING=1"
        assert heard_but_pings() == ["READY=1", status]
        daemon.process.terminate()
        assert heard_but_pings() == ["STOPPING=1"]
        assert daemon.process.wait(20) == 0
