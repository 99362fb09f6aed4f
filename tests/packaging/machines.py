"""Debian machines for tests: roots made from the mirrors of this host, booted with systemd as init,
each in a network namespace of its own, a cable between two.

Needs root, mmdebstrap, systemd-nspawn and iproute2. Names begin with `colonypkg-<pid>-`; what is
made here is ended and removed by its process id and its name, and nothing else is touched. What a
killed run leaves behind (machines, networks, directories in $TMPDIR), the next run removes.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.daemons import REPOSITORY
from tests.support.netns import clear, ip, terminable

PYTHON = {"bookworm": "3.11", "trixie": "3.13"}
DEBIAN = {"bookworm": "12", "trixie": "13"}
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_INSIDE = ["systemd", "systemd-sysv", "dbus", "iproute2", "sudo", "python3-minimal"]
# What `apt install ./colonyd.deb` asks for; fetched before, as the machines have no Internet.
_FETCHED = ["etcd-server", "tzdata", "init-system-helpers", "python3-venv"]
# Where roots, wheels and packages stay between runs; without it they last as long as the tests.
_CACHE = os.environ.get("COLONYD_PACKAGING_CACHE")
_PREFIX = "colonypkg"


def require(*more: str) -> None:
    """Skip where it cannot be tried at all; what is only not installed fails in CI."""
    if os.geteuid() != 0:
        pytest.skip("booting a Debian root needs root")
    tools = ("mmdebstrap", "systemd-nspawn", "ip", "apt-get", "dpkg-deb", *more)
    if lacking := [tool for tool in tools if shutil.which(tool, path=_PATH) is None]:
        reason = f"no {', '.join(lacking)} here: `scripts/setup --test` installs what is missing"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


def call(*command: str, seconds: float = 600, **environ: str) -> str:
    """Run a command of this host; its standard output."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
        cwd=REPOSITORY,
        env={**os.environ, "PATH": _PATH, "LC_ALL": "C", **environ},
    )
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


# -- what is made once ------------------------------------------------------------------------


def mirror() -> str:
    """Return where this host has Debian's packages from."""
    told = call(
        "apt-get", "indextargets", "--format", "$(REPO_URI)",
        "Created-By: Packages", "Origin: Debian", "Label: Debian", "Component: main",
    )  # fmt: skip
    assert told.strip(), "this host's apt has no lists of Debian: `apt-get update`"
    return told.split()[0]


def apt_settings() -> list[str]:
    """Return this host's settings of proxies, certificates and checks, as apt writes them."""
    kept = ("http", "https", "Check-Valid-Until", "Check-Date", "Retries")
    lines = call("apt-config", "dump").splitlines()
    return [line for line in lines if line.startswith(tuple(f"Acquire::{each}" for each in kept))]


class Made:
    """Roots, wheels and packages, each made when first asked for."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._packages: dict[tuple[str, str], Path] = {}

    def _once(self, name: str, make: Callable[[Path], object]) -> Path:
        path = self.place / name
        if not path.exists():
            fresh = self.place / f"new-{name}"
            make(fresh)
            fresh.rename(path)
        return path

    def root(self, release: str) -> Path:
        """The archive of a Debian root, with the packages that the tests install in its cache."""

        def make(path: Path) -> None:
            fetched = " ".join([*_FETCHED, f"python{PYTHON[release]}"])
            call(
                "mmdebstrap", "--quiet", "--variant=apt", "--format=tar", "--skip=cleanup/apt",
                f"--include={','.join(_INSIDE)}", "--dpkgopt=force-unsafe-io",
                *(f"--aptopt={line}" for line in apt_settings()),
                '--customize-hook=APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get install --quiet'
                f" --yes --download-only -o APT::Install-Recommends=true {fetched}",
                release, str(path), mirror(), seconds=500,
            )  # fmt: skip

        wanted = zlib.crc32(" ".join(_INSIDE + _FETCHED).encode())
        return self._once(f"{release}-{wanted:08x}.tar", make)

    def wheels(self, release: str) -> Path:
        """The wheels for a release's Python; our own is this tree's."""

        def make(path: Path) -> None:
            call("scripts/wheels", str(path), os.uname().machine, PYTHON[release], seconds=500)

        path = self._once(f"wheels-{release}", make)
        if _CACHE:
            for old in path.glob("colonyd-*"):
                old.unlink()
            call("scripts/wheels", "--own", str(path))
        return path

    def package(self, release: str, version: str) -> Path:
        """The Debian package, made from this tree."""
        if (release, version) in self._packages:
            return self._packages[release, version]
        made = call(
            "scripts/deb", "--fast", "--release", release, "--version", version,
            "--wheels", str(self.wheels(release)), "--out", str(self.place / "packages"),
        )  # fmt: skip
        self._packages[release, version] = Path(made.split()[-1])
        return self._packages[release, version]

    def older(self, package: Path, version: str) -> Path:
        """The same package with the number of an earlier version."""
        name, new, rest = re.split("[_+]", package.name, maxsplit=2)
        made = package.with_name(f"{name}_{version}+{rest}")
        with tempfile.TemporaryDirectory(dir=self.place) as scratch:
            call("dpkg-deb", "--raw-extract", str(package), f"{scratch}/all")
            control = Path(scratch, "all/DEBIAN/control")
            text = control.read_text()
            control.write_text(text.replace(f"Version: {new}+", f"Version: {version}+"))
            call("dpkg-deb", "-Znone", "--root-owner-group", "--build", f"{scratch}/all", str(made))
        return made


@contextmanager
def workshop() -> Iterator[Made]:
    """Where things are made once for the tests of a module."""
    clear_abandoned()
    if _CACHE:
        Path(_CACHE).mkdir(parents=True, exist_ok=True)
        yield Made(Path(_CACHE))
        return
    with scratch() as place:
        yield Made(place)


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory that is gone after the block, or, if this run is killed, in the next run."""
    place = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}-{os.getpid()}-"))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def at_once(*calls: Callable[[], object]) -> None:
    """Make calls in threads beside each other; all end before the first error is raised."""
    with ThreadPoolExecutor(len(calls)) as pool:
        for made in [pool.submit(each) for each in calls]:
            made.result()


# -- machines ---------------------------------------------------------------------------------


class Machine:
    """One Debian system; `run` runs a command in it as root, `log` is told each."""

    def __init__(self, root: Path, name: str, space: str, log: Callable[[str], None]) -> None:
        self.root, self.name, self.space, self.log = root, name, space, log
        self.init = 0
        self._boots = 0
        self._nspawn: subprocess.Popen[bytes] | None = None

    def boot(self) -> None:
        """Start it, and wait until its systemd has no more to start."""
        assert self._nspawn is None
        self._boots += 1
        console = self.root.with_name(f"{self.root.name}.console-{self._boots}")
        with console.open("wb") as output:
            self._nspawn = subprocess.Popen(
                ["systemd-nspawn", "--quiet", f"--directory={self.root}",
                 f"--machine={self.space}", f"--hostname={self.name}", "--register=no",
                 "--keep-unit", f"--network-namespace-path=/run/netns/{self.space}",
                 "--resolv-conf=off", "--timezone=off", "--link-journal=no", "--boot"],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                env={"PATH": _PATH}, start_new_session=True,
            )  # fmt: skip
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children")

        def is_up() -> bool:
            assert self._nspawn is not None
            if self._nspawn.poll() is not None:
                return True
            with suppress(OSError, ValueError):
                self.init = int((children.read_text().split() or ["0"])[0])
            # Of the booting systemd the first answers may be none.
            return self.init > 0 and self._run("systemctl", "is-system-running").stdout.strip() in (
                "running",
                "degraded",
            )

        eventually(f"{self.name} is up", is_up)
        assert self._nspawn.poll() is None, console.read_text(errors="replace")[-2000:]

    def shut_down(self) -> None:
        """Power it off in order."""
        assert self._nspawn is not None
        self._nspawn.send_signal(signal.SIGTERM)  # nspawn asks its init to power off
        self._nspawn.wait(90)
        self._nspawn, self.init = None, 0

    def reboot(self) -> None:
        """Power it off in order, and start it again."""
        self.shut_down()
        self.boot()

    def end(self) -> None:
        """End it at once, whatever it does."""
        if self._nspawn is not None:
            if self.init:
                with suppress(ProcessLookupError):
                    os.kill(self.init, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                self._nspawn.wait(10)
            if self._nspawn.poll() is None:
                self._nspawn.kill()
                self._nspawn.wait(20)
            self._nspawn, self.init = None, 0

    def _run(self, *command: str, seconds: float = 240) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["nsenter", "--target", str(self.init), "--all", "env", "-i", f"PATH={_PATH}",
             "LANG=C.UTF-8", "HOME=/root", "DEBIAN_FRONTEND=noninteractive", *command],
            capture_output=True, text=True, check=False, timeout=seconds, cwd="/",
        )  # fmt: skip

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as root."""
        began = time.monotonic()
        done = self._run(*command)
        took = time.monotonic() - began
        said = "".join(f"    {line}\n" for line in (done.stdout + done.stderr).splitlines())
        self.log(f"{self.name}# {' '.join(command)}\n{said}    [{done.returncode}, {took:.1f} s]")
        return done

    def ok(self, *command: str) -> str:
        """Run a command inside that must succeed; its standard output."""
        done = self.run(*command)
        assert done.returncode == 0, f"{self.name}# {' '.join(command)}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def person(self, name: str, *command: str) -> str:
        """Run a command that must succeed as a person types it after logging in."""
        return self.ok("runuser", "-u", name, "--", "env", f"HOME=/home/{name}", *command)

    def install(self, *packages: str) -> str:
        """`apt install`, of files in /root too; what else it takes was fetched with the root."""
        # What was not fetched is refused at once, and not waited for.
        options = (
            "--yes",
            "--quiet",
            "--allow-downgrades",
            "-oAcquire::http::Proxy=http://127.0.0.1:9",
        )
        return self.ok("apt-get", "install", *options, *packages)

    def take(self, path: Path) -> str:
        """Copy a file into /root; its place there."""
        shutil.copy(path, self.root / "root" / path.name)
        return f"/root/{path.name}"

    def write(self, path: str, text: str) -> None:
        """Write a file inside."""
        place = self.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)

    def active(self, unit: str) -> str:
        """The state of a unit."""
        return self._run("systemctl", "is-active", unit).stdout.strip()


def eventually(what: str, check: Callable[[], object], seconds: float = 90) -> None:
    """Poll `check` until it returns something true."""
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.1)


def clear_abandoned() -> None:
    """Remove what killed runs left behind: machines that run on, networks, and directories."""
    for path in Path("/run/netns").glob(f"{_PREFIX}-*"):
        if _is_abandoned(path):
            with suppress(AssertionError):  # another run may be at it, too
                clear(path.name)
    for place in (tempfile.gettempdir(), "/run/systemd/nspawn/propagate"):
        for path in Path(place).glob(f"{_PREFIX}-*"):
            if _is_abandoned(path):
                shutil.rmtree(path, ignore_errors=True)


def _is_abandoned(path: Path) -> bool:
    made = re.match(rf"{_PREFIX}-(\d+)-", path.name)
    return made is not None and not Path(f"/proc/{made[1]}").exists()


@contextmanager
def pair(
    place: Path, roots: dict[str, Path], log: Callable[[str], None]
) -> Iterator[list[Machine]]:
    """Two machines by name, a cable between them; gone after the block."""
    tag = f"{_PREFIX}-{os.getpid()}-{secrets.token_hex(2)}-"
    machines = [Machine(place / name, name, f"{tag}{name}", log) for name in roots]
    spaces = [machine.space for machine in machines]
    with terminable(), ExitStack() as stack:
        for machine, archive in zip(machines, roots.values(), strict=True):
            stack.callback(_remove, machine)
            machine.root.mkdir(parents=True)
            call("tar", "--extract", f"--file={archive}", f"--directory={machine.root}")
            machine.write("/etc/hostname", f"{machine.name}\n")
            machine.write("/etc/hosts", f"127.0.0.1 localhost\n127.0.1.1 {machine.name}\n")
            machine.write("/etc/dpkg/dpkg.cfg.d/quick", "force-unsafe-io\n")
            ip("netns", "add", machine.space)
            ip("-n", machine.space, "link", "set", "lo", "up")
        ip("-n", spaces[0], "link", "add", "eth0", "type", "veth", "peer", "eth0", "netns",
           spaces[1])  # fmt: skip
        for number, space in enumerate(spaces, 1):
            ip("-n", space, "address", "add", f"10.78.0.{number}/24", "dev", "eth0")
            ip("-n", space, "link", "set", "eth0", "up")
            ip("-n", space, "route", "add", "default", "via", f"10.78.0.{3 - number}")
        at_once(*(machine.boot for machine in machines))
        yield machines


def _remove(machine: Machine) -> None:
    """End a machine at once, and remove all that it had on this host."""
    machine.end()
    if Path(f"/run/netns/{machine.space}").exists():
        clear(machine.space)
    shutil.rmtree(f"/run/systemd/nspawn/propagate/{machine.space}", ignore_errors=True)
    shutil.rmtree(machine.root, ignore_errors=True)
