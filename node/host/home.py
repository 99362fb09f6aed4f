"""The home directory of a daemon: where keys, configuration and the store lie, and how it begins.

Configuration is read in `config`; `daemon.main` runs in a home.
"""

from __future__ import annotations

import grp
import os
import re
import shlex
import socket
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from colonyd.fsync import sync_directory
from colonyd.keys import IdentityError, PrivateKey, read_key, write_key
from colonyd.places import key_file, user_name
from node.model.ids import valid_name

# Present below a home whose restore from a backup was interrupted.
RESTORING = "restoring"


class HomeError(Exception):
    """The home directory can't be used; the message says why and what to do."""


@dataclass(frozen=True)
class HomeInfo:
    """The content that `init_home` made or found. `created` is false when everything existed."""

    name: str
    server: PrivateKey
    colony: PrivateKey
    user: PrivateKey
    username: str
    executor: PrivateKey | None
    executorname: str
    executortype: str
    created: bool


@dataclass(frozen=True)
class Home:
    """Paths below one home directory."""

    path: Path

    @property
    def keys(self) -> Path:
        """Return the directory of key files (mode 0700)."""
        return self.path / "keys"

    @property
    def config(self) -> Path:
        """Return the path of the optional configuration file."""
        return self.path / "config.toml"

    @property
    def etcd(self) -> Path:
        """Return the directory of the embedded store (mode 0700)."""
        return self.path / "etcd"

    @property
    def files(self) -> Path:
        """Return the directory of the bytes of files (mode 0700)."""
        return self.path / "files"

    @property
    def lock(self) -> Path:
        """Return the file that a running daemon holds locked."""
        return self.path / "lock"

    @property
    def store_mark(self) -> Path:
        """Return the file that names the store of this home."""
        return self.path / "store.id"

    @property
    def name_file(self) -> Path:
        """Return the file with the home colony's name."""
        return self.path / "colony"

    def key(self, name: str) -> Path:
        """Return the path of the key file called `name`; the name of a member may have any
        character.
        """
        return key_file(self.path, name)

    # The colony's next key lies ready in a file of its own until the store knows of it.

    @property
    def _next(self) -> Path:
        return self.keys / "colony.key.new"

    def has_next_key(self) -> bool:
        """Return whether a change of the colony's key was begun."""
        return self._next.exists()

    def next_key(self) -> PrivateKey:
        """Return the key that is to follow the colony's, made if there is none.

        Raises IdentityError.
        """
        try:
            return read_key(self._next)
        except FileNotFoundError:
            write_key(self._next, PrivateKey.generate())
            return read_key(self._next)

    def take_next_key(self, now: int) -> Path:
        """Put the next key in the place of the colony's, which is never empty; `now` in Unix ns.

        Returns where the old key is kept. May be repeated after a crash at any moment.
        """
        place, day = self.key("colony"), datetime.fromtimestamp(now // 10**9, UTC)
        kept = self.keys / f"colony.key.old-{day:%Y-%m-%d}"
        number = 1
        while kept.exists() and not kept.samefile(place):
            number += 1
            kept = self.keys / f"colony.key.old-{day:%Y-%m-%d}-{number}"
        if not kept.exists():
            os.link(place, kept)
        share_like(place, self._next)
        os.replace(self._next, place)
        sync_directory(self.keys)
        return kept


def require_owner(home: Path) -> None:
    """Raise HomeError if `home` belongs to another user, who could not use files that we write
    there.
    """
    try:
        owner = home.stat().st_uid
    except FileNotFoundError:
        return
    except OSError as error:
        raise HomeError(f"{home}: {error.strerror}") from None
    if owner != os.geteuid():
        name = user_name(owner)
        raise HomeError(
            f"{home} belongs to user {name}, and this is {user_name(os.geteuid())}:"
            f" run it as that user (sudo -u {name} ...), or choose another --home"
        )


def foreign_files(home: Path) -> Iterator[tuple[Path, int]]:
    """Find files in `home` that belong to another user than `home` itself: paths and user ids."""
    owner = home.stat().st_uid
    for directory, inner, names in os.walk(home):
        for name in (*inner, *names):
            path = Path(directory, name)
            with suppress(FileNotFoundError):
                uid = path.lstat().st_uid
                if uid != owner:
                    yield path, uid


def secrets_of(home: Path, group: str = "") -> Iterator[tuple[Path, int]]:
    """Yield the files and directories with secrets, and the mode bits that each may have.

    The members of `group` may read the keys of the colony and its user, the former ones too.
    """
    place = Home(home)
    yield place.keys, 0o750 if group else 0o700
    for path in sorted(place.keys.glob("*.key*")):
        shared = group and path.name.startswith(("colony.key", "user.key"))
        yield path, 0o740 if shared else 0o700
    yield place.path / "tls.key", 0o700


def tighten(home: Path, group: str = "") -> list[tuple[Path, int]]:
    """Remove other users' access to secrets, but for `group`; return paths and their old modes.

    Files of another user, and on read-only file systems, stay as they are: `colony doctor` reports
    them.
    """
    done = []
    for path, allowed in secrets_of(home, group):
        with suppress(OSError):
            mode = stat.S_IMODE(path.stat().st_mode)
            if mode & ~allowed & 0o077:
                path.chmod(mode & allowed)
                done.append((path, mode))
    return done


def share(home: Path, group: str) -> None:
    """Let the members of a group act as the colony's owner: they may read its keys, and its user's.

    The key of the server, the store and the files stay with the daemon's user. Raises HomeError.
    """
    try:
        gid = grp.getgrnam(group).gr_gid
    except KeyError:
        raise HomeError(
            f"node.group: there is no group {group!r} here; make it (addgroup --system {group}), or"
            " leave the setting out"
        ) from None
    place = Home(home)
    readable = [place.key("colony"), place.key("user"), place.name_file, place.path / "tls.crt"]
    for path, mode in [(home, 0o750), (place.keys, 0o750), *((path, 0o640) for path in readable)]:
        try:
            if path.stat().st_gid != gid:
                os.chown(path, -1, gid)
            path.chmod(mode)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise HomeError(
                f"node.group: {path} can't be given to group {group}: {error.strerror}; the"
                " daemon's user must be a member of it"
            ) from None


def share_like(old: Path, new: Path) -> None:
    """Give a new key file the group and the mode of the one that it follows."""
    there = old.stat()
    if stat.S_IMODE(there.st_mode) & 0o070:
        os.chown(new, -1, there.st_gid)
        new.chmod(0o640)


def _directory(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise HomeError(f"{path}: {error.strerror}; choose another place with --home") from None


def _adopt(path: Path, environ: Mapping[str, str], variable: str) -> tuple[PrivateKey, bool]:
    """Read the key at `path`, else adopt the one in the environment, else make one."""
    try:
        return read_key(path), False
    except FileNotFoundError:
        pass
    text = environ.get(variable)
    try:
        key = PrivateKey.from_hex(text) if text else PrivateKey.generate()
    except IdentityError as error:
        raise HomeError(f"{variable}: {error}") from None
    write_key(path, key)
    return key, True


def init_home(path: Path, name: str | None, environ: Mapping[str, str]) -> HomeInfo:
    """Create what is missing in the home at `path`, overwriting nothing.

    The SDKs' own variables (`COLONIES_SERVER_PRVKEY`, `COLONIES_COLONY_NAME`,
    `COLONIES_COLONY_PRVKEY`, `COLONIES_PRVKEY`, `COLONIES_EXECUTOR_NAME`) are adopted.
    Raises HomeError when the name is unusable or differs from the one already there.
    """
    home = Home(path)
    require_owner(home.path)
    _directory(home.path)
    if (home.path / RESTORING).exists():
        raise HomeError(
            f"{home.path}: a restore was interrupted; repeat it:"
            f" colony restore --force FILE --home {shlex.quote(str(home.path))}"
        )
    _directory(home.keys)
    made = False
    wanted = name or environ.get("COLONIES_COLONY_NAME")
    if home.name_file.exists():
        there = home.name_file.read_text("utf-8").strip()
        if name and name != there:
            raise HomeError(f"{home.path} is the home of colony {there!r}, not {name!r}")
        wanted = there
    else:
        if not wanted:
            wanted = re.sub(r"[^A-Za-z0-9_.\-]", "-", socket.gethostname().split(".")[0]) or "home"
        if not valid_name(wanted):
            raise HomeError(f"colony name {wanted!r}: use letters, digits, '_', '-' and '.'")
    server, fresh_server = _adopt(home.key("server"), environ, "COLONIES_SERVER_PRVKEY")
    colony, fresh_colony = _adopt(home.key("colony"), environ, "COLONIES_COLONY_PRVKEY")
    executorname = environ.get("COLONIES_EXECUTOR_NAME", "")
    executor = None
    if executorname and environ.get("COLONIES_PRVKEY"):
        if not valid_name(executorname):
            raise HomeError(f"COLONIES_EXECUTOR_NAME {executorname!r}: not a usable name")
        executor, _ = _adopt(home.key(f"executor-{executorname}"), environ, "COLONIES_PRVKEY")
    # With an executor named, COLONIES_PRVKEY is that executor's; else it is the user's.
    user_environ = {} if executor else environ
    user, fresh_user = _adopt(home.key("user"), user_environ, "COLONIES_PRVKEY")
    made = fresh_server or fresh_colony or fresh_user
    if not home.name_file.exists():
        descriptor = os.open(home.name_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(wanted + "\n")
        made = True
    username = environ.get("USER", "") if valid_name(environ.get("USER", "")) else "owner"
    executortype = environ.get("COLONIES_EXECUTOR_TYPE") or "cli"
    return HomeInfo(
        wanted, server, colony, user, username, executor, executorname, executortype, made
    )
