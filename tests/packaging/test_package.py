"""The Debian package on new systems, as an administrator and a user meet it."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.packaging.machines import (
    PYTHON,
    Machine,
    Made,
    at_once,
    call,
    eventually,
    pair,
    require,
    scratch,
    workshop,
)
from tests.support.daemons import REPOSITORY

OLD, NEW = "0.0.9", "0.1.0"
AS_SERVICE = ("sudo", "-u", "colonyd", "colony")
SECOND = '[node]\ngroup = "colonyd"\n[rpc]\nport = 50090\n[federation]\nport = 50091\n'
# An etcd of the administrator's own, without Debian's package: only its unit matters here.
OWN_ETCD = "[Service]\nExecStart=sleep infinity\n[Install]\nWantedBy=multi-user.target\n"
SETTINGS = "/etc/colonyd/config.toml"
# Another package's `cli`, `node`, `federation` and `colonyd`, where Python would find them first.
HOSTILE = 'raise SystemExit("another package\'s module was imported")\n'


@pytest.fixture(scope="module")
def made() -> Iterator[Made]:
    require()
    with workshop() as things:
        yield things


class Log:
    """What was done and said, for people; kept in a file."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.lines: list[str] = []

    def __call__(self, text: str) -> None:
        self.lines.append(f"{time.monotonic() - self.began:6.1f} {text}")
        print(self.lines[-1], flush=True)


@pytest.mark.slow
def test_the_life_of_two_machines(made: Made) -> None:
    """Install, work, join, forward, reboot, upgrade, back up, move, remove and purge."""
    log = Log()
    releases = {"berg": "bookworm", "tal": "trixie"}
    packages: dict[str, list[Path]] = {}
    house: list[Path] = []

    def prepare(name: str, release: str) -> None:
        new = made.package(release, NEW)
        packages[name] = [made.older(new, OLD), new]
        made.root(release)
        if name == "berg":
            options = ("--wheels", str(made.wheels(release)), "--python", PYTHON[release])
            told = call("scripts/wheelhouse", *options, "--out", str(made.place / "houses"))
            house.append(Path(told.strip()))

    at_once(*(partial(prepare, name, release) for name, release in releases.items()))
    log("made roots and packages")
    roots = {name: made.root(release) for name, release in releases.items()}
    with scratch() as place:
        with pair(place, roots, log) as (berg, tal):
            log("booted")
            for machine in (berg, tal):
                for package in packages[machine.name]:
                    machine.take(package)
            at_once(partial(first_use, berg), partial(first_use, tal))
            worker(tal)
            process = join(berg, tal)
            at_once(berg.reboot, tal.reboot)
            log("rebooted")
            after_reboot(berg, tal, process)
            several(tal)
            at_once(partial(upgrade, berg, process), partial(interrupted_upgrade, tal))
            back_up(berg)
            at_once(
                partial(remove_and_purge, berg, process, house[0]), partial(leave_others_etcd, tal)
            )
            log("ended")


def file_of(machine: Machine, version: str) -> str:
    [path] = (machine.root / "root").glob(f"colonyd_{version}+*.deb")
    return f"/root/{path.name}"


def status(machine: Machine) -> dict[str, object]:
    told: dict[str, object] = json.loads(machine.ok(*AS_SERVICE, "--json", "status"))
    return told


def first_use(machine: Machine) -> None:
    """The whole install page, a person of the group, and one who is not."""
    machine.install(file_of(machine, OLD))
    told = status(machine)
    assert told["colonyname"] == machine.name
    assert machine.active("colonyd") == "active"
    assert machine.ok("systemctl", "is-enabled", "colonyd") == "enabled"
    # Nobody asked for an etcd with an open port.
    assert machine.active("etcd") == "inactive"
    assert machine.run("systemctl", "is-enabled", "etcd").stdout.strip() == "disabled"
    listening = machine.ok("ss", "-Hltn")
    assert ":2379" not in listening
    assert ":2380" not in listening
    assert "/usr/bin/colony" in machine.ok("dpkg", "-L", "colonyd")

    for person in ("anna", "otto"):
        machine.ok("useradd", "--create-home", person)
    machine.ok("usermod", "-aG", "colonyd", "anna")
    shown = machine.person("anna", "colony", "config")
    assert "/var/lib/colonyd" in shown
    assert "/etc/colonyd/config.toml" in shown, "the conffile is read, and named"
    machine.person("anna", "colony", "user", "ls")
    machine.person("anna", "colony", "doctor")
    refused = machine.run("runuser", "-u", "otto", "--", "colony", "status")
    assert refused.returncode == 3
    assert "sudo adduser otto colonyd" in refused.stderr
    for secret in ("server.key", "colony.key"):
        reading = ("cat", f"/var/lib/colonyd/keys/{secret}")
        assert machine.run("runuser", "-u", "otto", "--", *reading).returncode != 0
    assert machine.run(
        "runuser", "-u", "anna", "--", "cat", "/var/lib/colonyd/keys/server.key"
    ).returncode

    for package in ("cli", "node", "federation", "colonyd"):
        machine.write(f"/srv/hostile/{package}/__init__.py", HOSTILE)
        machine.write(f"/home/anna/{package}.py", HOSTILE)
    for program in ("colony", "colonyd"):
        machine.ok("env", "PYTHONPATH=/srv/hostile", "--chdir=/srv/hostile", program, "--version")
    machine.person("anna", "env", "--chdir=/home/anna", "colony", "version")
    # What a shell and `man` need is where they look.
    assert "_colony_completion" in machine.ok(
        "cat", "/usr/share/bash-completion/completions/colony"
    )


def worker(machine: Machine) -> None:
    """A worker with a user of its own, and a run."""
    spy = "who=id -un; cat /var/lib/colonyd/keys/*.key; ls /etc/colonyd"
    service = ("colony", "service", "worker", "add", "upper")
    told = machine.ok(*service, "--func", "upper=tr a-z A-Z", "--func", spy)
    assert "colonyd-worker@upper.service runs" in told
    modes = machine.ok(
        "stat", "--format=%n %a %U", "/etc/colonyd", SETTINGS, "/etc/colonyd/workers",
        "/etc/colonyd/workers/upper.key", "/etc/colonyd/workers/upper.conf",
    )  # fmt: skip
    assert modes.splitlines() == [
        "/etc/colonyd 755 root",
        f"{SETTINGS} 644 root",
        "/etc/colonyd/workers 700 root",
        "/etc/colonyd/workers/upper.key 600 root",
        "/etc/colonyd/workers/upper.conf 600 root",
    ]
    run = ("colony", "run", "--wait", "--func")
    assert machine.person("anna", *run, "upper", "hello from anna") == "HELLO FROM ANNA"
    done = machine.run("runuser", "-u", "anna", "--", *run, "who")
    said = done.stdout + done.stderr
    assert "denied" in said or "No such file" in said or "cannot" in said
    pid = machine.ok("systemctl", "show", "--property=MainPID", "--value", "colonyd-worker@upper")
    user = machine.ok("stat", "--format=%U", f"/proc/{pid}")
    assert user.strip() not in ("root", "colonyd")
    score = machine.ok("systemd-analyze", "security", "--no-pager", "colonyd-worker@upper")
    assert float(score.split("colonyd-worker@upper.service:")[1].split()[0]) < 3


def join(berg: Machine, tal: Machine) -> str:
    """An invitation, and a forward in its wake; returns the process."""
    token = json.loads(
        berg.person("anna", "colony", "--json", "peer", "invite", "--expires", "10m")
    )["token"]
    tal.person("anna", "colony", "peer", "join", token)
    return forward(berg)


def forward(berg: Machine) -> str:
    """A process of one that runs in the other; returns its id."""
    process = json.loads(
        berg.person("anna", "colony", "--json", "run", "--func", "upper", "over the hill",
                    "--colony", "tal", "--wait")
    )  # fmt: skip
    assert process["out"] == ["OVER THE HILL"]
    return str(process["processid"])


def serves(machine: Machine) -> bool:
    return machine.active("colonyd") == "active"


def after_reboot(berg: Machine, tal: Machine, process: str) -> None:
    """All is as before, without a hand on it."""
    for machine in (berg, tal):
        eventually(f"{machine.name} serves", partial(serves, machine))
        assert machine.active("etcd") == "inactive"
    assert process in berg.person("anna", "colony", "--json", "process", "show", process)
    assert tal.active("colonyd-worker@upper") == "active"
    forward(berg)


def upgrade(machine: Machine, process: str) -> None:
    """The next version, with all data, and a peer's settings as they were edited."""
    before = status(machine)
    machine.ok("sed", "-i", "s/^# port = 50080/port = 50080/", SETTINGS)
    machine.install("-o", "Dpkg::Options::=--force-confold", file_of(machine, NEW))
    assert NEW in machine.ok("dpkg-query", "-W", "colonyd")
    assert machine.active("colonyd") == "active"
    assert status(machine)["colonyid"] == before["colonyid"]
    assert "\nport = 50080" in machine.ok("cat", SETTINGS)
    assert process in machine.person("anna", "colony", "--json", "process", "show", process)


def interrupted_upgrade(machine: Machine) -> None:
    """An upgrade that ended halfway and is completed later: all that ran runs again."""
    before = status(machine)
    # It runs, though it does not start with the machine.
    machine.ok("systemctl", "disable", "colonyd@second")
    ran = ("colonyd", "colonyd@second", "colonyd-worker@upper")
    # As after a crash: the old version is told to stop twice.
    machine.ok("/var/lib/dpkg/info/colonyd.prerm", "upgrade", NEW)
    machine.ok("dpkg", "--unpack", file_of(machine, NEW))
    for unit in ran:
        assert machine.active(unit) != "active"
    machine.ok("dpkg", "--configure", "-a")
    assert f"{NEW}+deb" in machine.ok("dpkg-query", "-W", "colonyd")
    for unit in ran:
        assert machine.active(unit) == "active", unit
    machine.ok("test", "!", "-e", "/run/colonyd.were-running")
    assert status(machine)["colonyid"] == before["colonyid"]
    assert machine.person("anna", "colony", "run", "--wait", "--func", "upper", "x") == "X"
    # A new version whose own script fails: dpkg calls what is installed back.
    machine.ok("/var/lib/dpkg/info/colonyd.prerm", "upgrade", "9")
    machine.ok("/var/lib/dpkg/info/colonyd.postinst", "abort-upgrade", "9")
    for unit in ran:
        assert machine.active(unit) == "active", unit
    machine.ok("colony", "service", "worker", "rm", "upper")
    assert machine.active("colonyd-worker@upper") != "active"
    machine.ok("test", "!", "-e", "/etc/colonyd/workers/upper.key")


def several(machine: Machine) -> None:
    """A second colony on the same machine."""
    refused = machine.run("systemctl", "start", "colonyd@second")
    assert refused.returncode != 0, "without settings of its own it would take the same ports"
    machine.write("/etc/colonyd-second/config.toml", SECOND)
    machine.ok("systemctl", "enable", "--now", "colonyd@second")
    told = machine.person("anna", "colony", "--home", "/var/lib/colonyd-second", "--json", "status")
    assert json.loads(told)["colonyname"] == "second"
    assert json.loads(told)["colonyid"] != status(machine)["colonyid"]
    machine.ok("colony", "service", "status", "second")
    machine.ok("systemctl", "reload", "colonyd")
    assert machine.active("colonyd") == "active"


def back_up(machine: Machine) -> None:
    """A backup, as the page on moving to another machine has it."""
    machine.ok(*AS_SERVICE, "backup", "/var/tmp/berg.tar")
    machine.ok(*AS_SERVICE, "backup", "--check", "/var/tmp/berg.tar")


def remove_and_purge(machine: Machine, process: str, house: Path) -> None:
    """The version before has the same data; removed it keeps them, purged nothing; and the backup
    brings all back, in the version before, too.
    """
    before = status(machine)
    machine.install(file_of(machine, OLD))
    assert f"{OLD}+deb" in machine.ok("dpkg-query", "-W", "colonyd")
    assert status(machine)["colonyid"] == before["colonyid"], "a downgrade"
    assert process in machine.ok(*AS_SERVICE, "--json", "process", "show", process)

    machine.ok("apt-get", "remove", "--yes", "colonyd")
    assert machine.run("systemctl", "is-active", "colonyd").returncode != 0
    machine.ok("test", "-e", "/var/lib/colonyd/keys/colony.key")
    machine.ok("test", "-e", SETTINGS)
    machine.ok("test", "!", "-e", "/usr/lib/colonyd")
    # A service that can't start is no failure of the installation.
    machine.ok("sed", "-i", "s/^port = 50080/port = 500800/", SETTINGS)
    machine.install(file_of(machine, NEW))
    assert machine.ok("dpkg-query", "-W", "-f", "${db:Status-Status}", "colonyd") == "installed"
    assert machine.active("colonyd") == "failed"
    machine.ok("sed", "-i", "s/^port = 500800/port = 50080/", SETTINGS)
    # What failed is started by the next one.
    machine.ok("/var/lib/dpkg/info/colonyd.prerm", "upgrade", NEW)
    machine.ok("/var/lib/dpkg/info/colonyd.postinst", "configure", NEW)
    assert status(machine)["colonyid"] == before["colonyid"]

    purge(machine)
    # As on another machine: a new installation, and the backup in the place of its empty home.
    machine.ok("apt-get", "purge", "--yes", "etcd-server")
    etcd = own_etcd(machine)
    machine.install(file_of(machine, OLD))
    assert own_etcd(machine) == etcd
    assert status(machine)["colonyid"] != before["colonyid"]
    machine.ok("systemctl", "stop", "colonyd")
    machine.ok("chown", "colonyd:", "/var/tmp/berg.tar")
    machine.ok(*AS_SERVICE, "restore", "--force", "/var/tmp/berg.tar")
    machine.ok("systemctl", "start", "colonyd")
    assert status(machine)["colonyid"] == before["colonyid"]
    assert process in machine.ok(*AS_SERVICE, "--json", "process", "show", process)

    # A purge has nothing left to remove, not even the user.
    machine.ok("systemctl", "stop", "colonyd")
    machine.ok("userdel", "colonyd")
    machine.ok("rm", "-r", "/var/lib/colonyd", "/etc/colonyd")
    purge(machine)
    without_package(machine, house)


def purge(machine: Machine) -> None:
    """The package, its keys, its settings and its user are gone."""
    machine.ok("apt-get", "purge", "--yes", "colonyd")
    for gone in ("/var/lib/colonyd", "/etc/colonyd", "/usr/lib/colonyd", "/usr/bin/colony"):
        machine.ok("test", "!", "-e", gone)
    assert machine.run("getent", "passwd", "colonyd").returncode != 0
    assert machine.run("getent", "group", "colonyd").returncode != 0


def own_etcd(machine: Machine) -> str:
    """An etcd of the administrator's own runs and is enabled; returns its process."""
    if machine.active("etcd") != "active":
        machine.write("/etc/systemd/system/etcd.service", OWN_ETCD)
        machine.ok("systemctl", "daemon-reload")
        machine.ok("systemctl", "enable", "--now", "etcd")
    assert machine.ok("systemctl", "is-enabled", "etcd") == "enabled"
    return machine.ok("systemctl", "show", "--property=MainPID", "--value", "etcd")


def without_package(machine: Machine, house: Path) -> None:
    """`colony service` on a host without the package, from an archive of wheels."""
    machine.install("python3-venv")
    machine.ok("tar", "--extract", "--directory=/root", f"--file={machine.take(house)}")
    told = machine.ok(f"/root/{house.stem}/install")
    assert "colony service install" in told
    colony = "/usr/local/bin/colony"
    asked = machine.run(colony, "service", "status")
    assert asked.returncode == 4, "there is no such service yet"

    machine.ok(colony, "service", "install")
    assert machine.active("colonyd") == "active"
    assert machine.ok("systemctl", "is-enabled", "colonyd") == "enabled"
    machine.ok(colony, "service", "status")
    assert "event=ready" in machine.ok(colony, "service", "logs", "--count", "200")
    as_service = ("sudo", "-u", "colonyd", colony)
    first = json.loads(machine.ok(*as_service, "--json", "status"))
    assert first["colonyname"] == machine.name
    machine.ok(colony, "service", "worker", "add", "upper", "--func", "upper=tr a-z A-Z")
    run = ("run", "--wait", "--func", "upper", "without a package")
    assert machine.ok(*as_service, *run) == "WITHOUT A PACKAGE"
    workers = "/etc/colonyd/workers"
    modes = machine.ok("stat", "--format=%a", f"{workers}/upper.key", workers)
    assert modes.split() == ["600", "700"]
    # Once more is as once: settings stay, what runs goes on.
    machine.ok("sed", "-i", "s/^# port = 50080/port = 50080/", SETTINGS)
    machine.ok(colony, "service", "install")
    assert "\nport = 50080" in machine.ok("cat", SETTINGS)
    assert machine.active("colonyd") == "active"

    machine.ok(colony, "service", "uninstall")
    for unit in ("colonyd", "colonyd-worker@upper"):
        assert machine.active(unit) != "active", unit
    for gone in ("system/colonyd.service", "system/colonyd@.service"):
        machine.ok("test", "!", "-e", f"/etc/systemd/{gone}")
    assert machine.run(colony, "service", "uninstall").returncode != 0
    machine.ok("test", "-e", "/var/lib/colonyd/keys/colony.key")
    machine.ok("test", "-e", SETTINGS)
    # The home and the settings are there, and so it is the same colony.
    machine.ok(colony, "service", "install")
    again = json.loads(machine.ok(*as_service, "--json", "status"))
    assert again["colonyid"] == first["colonyid"]
    machine.ok(colony, "service", "uninstall")


def leave_others_etcd(machine: Machine) -> None:
    """A second colony keeps the user; an etcd that was there before keeps running."""
    machine.ok("apt-get", "purge", "--yes", "colonyd")
    machine.ok("test", "-e", "/var/lib/colonyd-second/keys/colony.key")
    machine.ok("getent", "passwd", "colonyd")
    machine.ok("test", "!", "-e", "/var/lib/private/colony-worker")
    machine.ok("apt-get", "purge", "--yes", "etcd-server")
    machine.install("etcd-server")
    machine.ok("systemctl", "enable", "--now", "etcd")
    assert machine.active("etcd") == "active"
    machine.install(file_of(machine, NEW))
    assert machine.active("etcd") == "active", "somebody's"
    assert machine.active("colonyd") == "active"
    status(machine)


@pytest.mark.slow
def test_the_image_has_the_layout_of_the_package(made: Made) -> None:
    """Built by buildah on a root of ours, since there is no registry of images here."""
    require("buildah")
    with scratch() as place:
        build_and_run(made, place)


def build_and_run(made: Made, place: Path) -> None:
    """The image, made and used in a directory of its own."""
    release = "trixie"
    context = place / "context"
    (context / "dist").mkdir(parents=True)
    shutil.copy(REPOSITORY / "Containerfile", context)
    shutil.copy(made.package(release, NEW), context / "dist")
    # No network in there: what apt needs is in the root's cache.
    text = (context / "Containerfile").read_text()
    assert text.count("apt-get update") == 1
    (context / "Containerfile").write_text(text.replace("apt-get update", "true"))
    store = (
        "--root", str(place / "store"), "--runroot", str(place / "run"),
        "--storage-driver", "vfs",
    )  # fmt: skip
    policy = place / "policy.json"
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')

    def buildah(*words: str) -> str:
        return call("buildah", *store, *words).strip()

    try:
        base = buildah("from", "scratch")
        buildah("add", base, str(made.root(release)), "/")
        buildah("commit", "--signature-policy", str(policy), "--rm", base, "localhost/base")
        buildah(
            "build", "--isolation", "chroot", "--signature-policy", str(policy),
            "--build-arg", "BASE=localhost/base", "--tag", "colonyd", str(context),
        )  # fmt: skip
        image = json.loads(buildah("inspect", "--type", "image", "colonyd"))["OCIv1"]["config"]
        assert image["Entrypoint"] == ["/usr/bin/colonyd"]
        assert image["User"] == "colonyd"
        assert "/var/lib/colonyd" in image["Volumes"]
        container = buildah("from", "--signature-policy", str(policy), "--pull-never", "colonyd")
        told = buildah("run", "--isolation", "chroot", container, "colonyd", "--version")
        assert told == "colonyd 0.1.0"
        init = ("colony", "--json", "init", "--name", "boxed")
        told = buildah("run", "--isolation", "chroot", container, *init)
        assert json.loads(told)["home"] == "/var/lib/colonyd"
    finally:
        subprocess.run(["buildah", *store, "rm", "--all"], check=False, capture_output=True)
        subprocess.run(
            ["buildah", *store, "rmi", "--all", "--force"], check=False, capture_output=True
        )
