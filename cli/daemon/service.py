"""`colony service`: the daemon and shell workers as services of systemd.

The Debian package brings the units itself; `install` is for hosts without it. The units lie in
`systemd/`.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from cli.core.errors import NOT_FOUND, USAGE, Failure
from cli.core.output import print_done
from cli.core.session import Session, colony_command, colony_group, finish
from cli.core.terminal import print_note

PACKAGED = Path("/usr/lib/systemd/system/colonyd.service")
SYSTEM_UNITS = Path("/etc/systemd/system")
WORKERS = Path("/etc/colonyd/workers")
_CLOSED = ("/home", "/root", "/run/user")  # what ProtectHome= hides
_INSTANCE = re.compile(r"[A-Za-z0-9_.\-]{1,64}")
# What of the unit makes sense for a user's own manager, which may not change users or namespaces.
_OF_USER = re.compile(
    r"(Type|NotifyAccess|ExecReload|WatchdogSec|Restart|RestartSec|RestartPreventExitStatus"
    r"|KillMode|TimeoutStartSec|TimeoutStopSec|LimitCORE|UMask)="
)

service = colony_group(
    "service",
    "The daemon, and shell workers, as services of this host's systemd.",
    "sudo colony service install",
    "colony service status",
    "colony service logs -f",
    "sudo colony service worker add upper --func upper='tr a-z A-Z'",
)


# -- the units -------------------------------------------------------------------------------


def unit_files() -> Path:
    """Return the directory of the units that came with this installation. Raises Failure."""
    for place in (
        Path(__file__).resolve().parents[2] / "systemd",  # a checkout
        Path(sys.prefix) / "share/colonyd",
    ):
        if (place / "colonyd.service").is_file():
            return place
    raise Failure("this installation has no units", next_step="install colonyd with pip, anew")


def system_unit(text: str, programs: Path) -> str:
    """Return a unit of the package for programs that lie elsewhere."""
    return text.replace("/usr/bin/colony", f"{programs}/colony")


def user_unit(text: str, programs: Path, home: Path) -> str:
    """Return the unit of the package for a user's own manager and home."""
    kept = [line for line in text.splitlines() if _OF_USER.match(line)]
    start = f"{_quoted(str(programs / 'colonyd'))} --home {_quoted(str(home))}"
    head = ["[Unit]", "Description=colonyd, a self-sovereign colony", "", "[Service]"]
    end = ["", "[Install]", "WantedBy=default.target", ""]
    return "\n".join([*head, f"ExecStart={start}", *kept, *end])


def _quoted(word: str) -> str:
    """Return a word for systemd, which reads specifiers, variables and escapes in it."""
    for character, written in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("$", "$$")):
        word = word.replace(character, written)
    return f'"{word}"'


def _programs(*, closed: Sequence[str] = ()) -> Path:
    """Return the directory of `colony` and `colonyd` of this installation. Raises Failure."""
    place = Path(sys.executable).parent
    programs = next(
        (each for each in (place, Path(sys.argv[0]).parent.absolute()) if _has(each)), None
    )
    if programs is None:
        raise Failure(f"no program colonyd in {place}", next_step="install colonyd with pip, anew")
    if any(programs.is_relative_to(each) for each in closed):
        raise Failure(
            f"{programs} is in a home directory, which a service must not look into",
            code=USAGE,
            next_step="install it elsewhere, e.g. below /opt/colonyd, and call it from there; or,"
            " without root, make it a service of your own user",
        )
    return programs


def _has(directory: Path) -> bool:
    return all((directory / name).is_file() for name in ("colony", "colonyd"))


def _need_etcd() -> None:
    path = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/usr/bin:/bin"
    if shutil.which("etcd", path=path) is None:
        raise Failure(
            "etcd is not installed",
            code=NOT_FOUND,
            next_step="as root: `apt-get install etcd-server && systemctl disable --now etcd`",
        )


def _run(*command: str) -> None:
    """Run a command of the system. Raises Failure with what it says."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=150)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failure(f"{shlex.join(command)}: {error}") from None
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"
        raise Failure(
            f"{shlex.join(command)}: {said}", next_step="`colony service logs` may say more"
        )


def _as_root() -> bool:
    return os.geteuid() == 0


def _systemctl(*words: str) -> list[str]:
    return ["systemctl", *([] if _as_root() else ["--user"]), *words]


def _user_units(session: Session) -> Path:
    base = session.environ.get("XDG_CONFIG_HOME") or f"{session.environ.get('HOME', '')}/.config"
    return Path(base) / "systemd/user"


def _not_packaged(instead: str) -> None:
    if PACKAGED.exists():
        raise Failure(
            "the Debian package has made colonyd a service of this host",
            code=USAGE,
            next_step=instead,
        )


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    """Replace a file as a whole. Raises Failure."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.unlink(missing_ok=True)
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
            file.write(text)
        fresh.replace(path)
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}") from None


# -- commands --------------------------------------------------------------------------------


@colony_command("install", "sudo /opt/colonyd/bin/colony service install", "colony service install")
def install(session: Session) -> None:
    """Make colonyd a service that starts with this host, and start it.

    As root: a service of the host with a user of its own, its home /var/lib/colonyd and its
    settings in /etc/colonyd/config.toml. As another user: a service of this user with the home
    that `colony up` has. With the Debian package there is nothing left to do.
    """
    _not_packaged("`colony service status`")
    _need_etcd()
    source = unit_files()
    text = (source / "colonyd.service").read_text("utf-8")
    if _as_root():
        programs = _programs(closed=_CLOSED)
        for path, made in _of_host(source, programs):
            if path.name != "config.toml" or not path.exists():
                _write(path, made)
        _run("systemd-sysusers", "/etc/sysusers.d/colonyd.conf")
        _run("systemd-tmpfiles", "--create", "/etc/tmpfiles.d/colonyd.conf")
    else:
        home = session.home_to_write
        unit = user_unit(text, _programs(), home)
        _write(_user_units(session) / "colonyd.service", unit)
    _run(*_systemctl("daemon-reload"))
    _run(*_systemctl("enable", "--now", "colonyd.service"))
    place = SYSTEM_UNITS if _as_root() else _user_units(session)
    print_done(session, {"unit": str(place / "colonyd.service")}, "colonyd runs as a service")
    if not _as_root():
        print_note("it ends when you log out, unless: `loginctl enable-linger`")
    print_note("next: `colony status`; `colony service logs`")


def _of_host(source: Path, programs: Path) -> Iterator[tuple[Path, str]]:
    """Yield what a host's service is made of: each file's place and text."""
    for name in ("colonyd.service", "colonyd@.service", "colonyd-worker@.service"):
        yield SYSTEM_UNITS / name, system_unit((source / name).read_text("utf-8"), programs)
    for kind in ("sysusers", "tmpfiles"):
        text = (source / f"colonyd.{kind}.conf").read_text("utf-8")
        yield Path(f"/etc/{kind}.d/colonyd.conf"), text
    yield Path("/etc/colonyd/config.toml"), (source / "config.toml").read_text("utf-8")


@colony_command("uninstall", "sudo colony service uninstall")
def uninstall(session: Session) -> None:
    """Stop the service and remove what `install` wrote; the home and the settings stay.

    As root it stops workers and further colonies of this host, too; their keys stay.
    """
    _not_packaged("`apt remove colonyd`, or `apt purge colonyd` to remove its keys and data, too")
    place = SYSTEM_UNITS if _as_root() else _user_units(session)
    if not (place / "colonyd.service").exists():
        raise Failure(
            f"no service here: there is no {place / 'colonyd.service'}",
            code=NOT_FOUND,
            next_step="a service of the host is root's: `sudo colony service uninstall`",
        )
    if _as_root():
        _end_instances()
    _run(*_systemctl("disable", "--now", "colonyd.service"))
    removed = [place / "colonyd.service"]
    if _as_root():
        removed = [path for path, _ in _of_host(unit_files(), place) if path.name != "config.toml"]
    for path in removed:
        path.unlink(missing_ok=True)
    _run(*_systemctl("daemon-reload"))
    print_done(session, {"removed": [str(path) for path in removed]}, "colonyd is no service now")
    home = "/var/lib/colonyd" if _as_root() else session.home
    print_note(f"its keys and data are still in {home}")


def _end_instances() -> None:
    """Stop and disable all workers and further colonies, whose units are about to go."""
    patterns = ("colonyd-worker@*.service", "colonyd@*.service")
    for pattern in patterns:  # a worker hands in what it does to its colony
        _run("systemctl", "stop", pattern)
        enabled = [path.name for path in SYSTEM_UNITS.glob(f"*.wants/{pattern}")]
        if enabled:
            _run("systemctl", "disable", *enabled)


_instance = click.argument("name", required=False)


def _unit(name: str | None) -> str:
    """Return the unit of the colony, or of the one with a name of its own. Raises Failure."""
    if name is None:
        return "colonyd.service"
    if _INSTANCE.fullmatch(name) is None:
        raise Failure(f"{name!r} is no name of a service", code=USAGE)
    return f"colonyd@{name}.service"


def _is_users(session: Session) -> bool:
    return not _as_root() and (_user_units(session) / "colonyd.service").exists()


def _hand_over(session: Session, command: list[str]) -> None:
    """Run a program of systemd in this terminal, and end with its exit code."""
    if _is_users(session):
        command.insert(1, "--user")
    sys.stdout.flush()
    try:
        finish(subprocess.run(command, check=False).returncode)
    except FileNotFoundError:
        raise Failure(f"{command[0]}: not here; is systemd this host's init?") from None


@colony_command("status", "colony service status", "colony service status lab-2")
@_instance
def status(session: Session, name: str | None) -> None:
    """Show the service as systemd sees it; NAME is that of one of several colonies.

    The exit code is that of `systemctl status`: 0 runs, 3 does not, 4 there is none.
    """
    _hand_over(session, ["systemctl", "status", "--no-pager", _unit(name)])


@colony_command("logs", "colony service logs -f", "colony service logs lab-2 --count 200")
@_instance
@click.option("--follow", "-f", is_flag=True, help="Go on with what comes.")
@click.option("--count", "-n", type=click.IntRange(1, 100_000), default=50, show_default=True)
def logs(session: Session, name: str | None, follow: bool, count: int) -> None:
    """Show the log of the service; NAME is that of one of several colonies."""
    command = ["journalctl", "--no-pager", "-o", "cat", "-n", str(count), "-u", _unit(name)]
    _hand_over(session, [*command, *(["-f"] if follow else [])])


worker = colony_group(
    "worker",
    "Shell workers as services of this host, each with a user of its own.",
    "sudo colony service worker add upper --func upper='tr a-z A-Z'",
    "sudo colony service worker rm upper",
)


@colony_command("add", "sudo colony service worker add upper --func upper='tr a-z A-Z'")
@click.argument("name")
@click.option("--func", "-F", "funcs", multiple=True, metavar="NAME=COMMAND", help="As a worker's.")
@click.option("--type", "-T", "kind", default="cli", show_default=True, help="Type of executor.")
@click.option("--slots", type=click.IntRange(1, 64), default=1, show_default=True)
def add(session: Session, name: str, funcs: tuple[str, ...], kind: str, slots: int) -> None:
    """Make a shell worker a service of this host, with a user of its own, and start it.

    As root. Adds executor NAME with the key of the colony's owner, and writes
    /etc/colonyd/workers/NAME.conf (its options: edit it, then restart the service
    colonyd-worker@NAME) and NAME.key. The worker and its commands can read that key, and none of
    the colony's. Called again it replaces the options.
    """
    from cli.worker.command import parse_function

    unit = _worker_unit(name)
    functions = [parse_function(text) for text in funcs]
    if not functions:
        raise Failure(
            "a worker needs a function",
            code=USAGE,
            next_step=f"colony service worker add {name} --func upper='tr a-z A-Z'",
        )
    options = ["--type", kind, "--slots", str(slots)]
    for function, command in functions:
        options += ["--func", f"{function}={command}"]
    text = worker_settings(session, options)
    identity = _enrol(session, name, kind)
    _write(WORKERS / f"{name}.conf", text, 0o600)
    _run("systemctl", "enable", unit)
    _run("systemctl", "restart", unit)
    print_done(
        session, {"executorname": name, "executorid": identity, "unit": unit}, f"{unit} runs"
    )


def worker_settings(session: Session, options: Sequence[str]) -> str:
    """Return the environment file of a worker: where its daemon is, and its options.

    Raises Failure for what such a file cannot hold.
    """
    from urllib.parse import urlsplit

    from colonyd.tls import PIN

    url = session.url()
    parts = urlsplit(url)
    variables = {
        "COLONIES_COLONY_NAME": session.colony(),
        "COLONIES_SERVER_HOST": parts.hostname or "",
        "COLONIES_SERVER_PORT": str(parts.port or 443),
        "COLONIES_SERVER_TLS": "true" if parts.scheme == "https" else "false",
    }
    if parts.scheme == "https" and (pin := _fingerprint(session)):
        variables[PIN] = pin
    words = " ".join(_word(each) for each in options)
    if not words.isprintable():
        raise Failure(
            "a command with a line break or another control character can't be an option",
            code=USAGE,
            next_step="put it into a script, and name that",
        )
    lines = [f"{name}={_value(text)}" for name, text in variables.items()]
    head = "# The options of a worker, as words of a shell; `colony worker --help`."
    return "\n".join([head, f"WORKER_OPTIONS={_value(words)}", *lines, ""])


def _word(text: str) -> str:
    """Return a word as systemd splits the value of a variable."""
    if re.fullmatch(r"[A-Za-z0-9_.,:/@%+=\-]+", text):
        return text
    if "'" not in text and "\\" not in text:
        return f"'{text}'"
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _value(text: str) -> str:
    """Return the value of a variable as systemd reads an environment file."""
    return '"' + re.sub(r'([\\"`$])', r"\\\1", text) + '"'


def _fingerprint(session: Session) -> str:
    import ssl

    from node.host.certificate import fingerprint_of

    with suppress(OSError, ValueError):
        text = (session.home / (session.config().rpc.certificate or "tls.crt")).read_text("ascii")
        end = "-----END CERTIFICATE-----"
        return fingerprint_of(ssl.PEM_cert_to_DER_cert(text.partition(end)[0] + end + "\n"))
    return ""


def _enrol(session: Session, name: str, kind: str) -> str:
    """Make the worker's key, if it has none, and its executor, approved; return the id."""
    from cli.core.keyfiles import read_or_make

    WORKERS.mkdir(mode=0o700, parents=True, exist_ok=True)
    key, _ = read_or_make(WORKERS / f"{name}.key")
    colony = session.colony()
    rows: list[dict[str, Any]] = session.call("getexecutorsmsg", {"colonyname": colony}) or []
    mine = next((row for row in rows if row["executorid"] == key.id), None)
    if mine is None or mine.get("state") == 3:
        fields = {"executorname": name, "executorid": key.id, "colonyname": colony}
        fields["executortype"] = kind
        session.call("addexecutormsg", {"executor": fields}, owner=True)
    elif mine.get("executortype") != kind:
        raise Failure(
            f"executor {name} is of type {mine.get('executortype')!r}",
            next_step=f"give that --type, or `colony service worker rm {name}` first",
        )
    if mine is None or mine.get("state") != 1:
        named = {"colonyname": colony, "executorname": name}
        session.call("approveexecutormsg", named, owner=True)
    return key.id


@colony_command("rm", "sudo colony service worker rm upper")
@click.argument("name")
def rm(session: Session, name: str) -> None:
    """Stop the service of a worker, and remove its executor. As root."""
    unit = _worker_unit(name)
    if not (WORKERS / f"{name}.conf").exists():
        raise Failure(
            f"there is no {WORKERS / name}.conf",
            code=NOT_FOUND,
            next_step="`systemctl list-units 'colonyd-worker@*'`",
        )
    _run("systemctl", "disable", "--now", unit)
    named = {"colonyname": session.colony(), "executorname": name}
    session.call("removeexecutormsg", named, owner=True)
    for ending in ("conf", "key"):
        (WORKERS / f"{name}.{ending}").unlink(missing_ok=True)
    print_done(session, {"executorname": name, "removed": True}, f"{unit} is removed")


def _worker_unit(name: str) -> str:
    """Return the unit of a worker. Raises Failure where there can be none."""
    if _INSTANCE.fullmatch(name) is None:
        raise Failure(f"{name!r}: use letters, digits, '_', '-' and '.'", code=USAGE)
    if not _as_root():
        raise Failure("services of this host are root's", code=USAGE, next_step="call it with sudo")
    places = (PACKAGED.parent, SYSTEM_UNITS)
    if not any((place / "colonyd-worker@.service").exists() for place in places):
        raise Failure("colonyd is no service here", next_step="`colony service install` first")
    return f"colonyd-worker@{name}.service"


for _command in (add, rm):
    worker.add_command(_command)
for _command in (install, uninstall, status, logs, worker):
    service.add_command(_command)
