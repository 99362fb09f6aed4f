"""Where things are on this machine: a colony's home, its keys, and where its daemon listens."""

from __future__ import annotations

import ipaddress
import os
import pwd
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec

from colonyd.names import in_file

# The home of the service that Debian's package installs.
SYSTEM_HOME = Path("/var/lib/colonyd")
# The file in a home that tells where its daemon listens, and how many bytes of it are read.
LISTENING = "listening.json"
_LONGEST = 65_536

Address = Annotated[str, msgspec.Meta(pattern=r"^.+:[0-9]{1,5}\Z", max_length=300)]


def default_home(environ: Mapping[str, str], *, to_write: bool = False) -> Path:
    """Return the home of a command that names none.

    It is `$COLONYD_HOME`, else systemd's state directory, else the user's own below the platform's
    data directory if that is there, else the one of this machine's service if its keys may be read,
    else the user's own, still to be made. What is to be written must be this user's.
    """
    for variable in ("COLONYD_HOME", "STATE_DIRECTORY"):
        if environ.get(variable):
            return Path(environ[variable])
    own = data_directory(environ) / "colonyd"
    if not own.is_dir() and _is_open(SYSTEM_HOME, to_write=to_write):
        return SYSTEM_HOME
    return own


def data_directory(environ: Mapping[str, str]) -> Path:
    """Return the directory of this user's data, by the XDG base directory specification."""
    base = environ.get("XDG_DATA_HOME") or str(Path(environ.get("HOME", "/")) / ".local/share")
    return Path(base)


def key_file(home: Path, name: str) -> Path:
    """Return the path of the key file `name`; the name of a member may have any character."""
    return home / "keys" / f"{in_file(name)}.key"


def _is_open(home: Path, *, to_write: bool) -> bool:
    """Return whether this user owns a home, or, if nothing is to be written, may read its keys."""
    try:
        if home.stat().st_uid == os.geteuid():
            return True
    except OSError:
        return False
    return not to_write and os.access(key_file(home, "user"), os.R_OK)


class Listening(msgspec.Struct, frozen=True):
    """The addresses of a running daemon, as "host:port", as they were bound.

    `serverid` is that of the store as the daemon started.
    """

    pid: int
    colony: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.\-]{0,62}\Z")]
    serverid: str
    rpc: list[Address]
    tls: bool = False
    federation: list[Address] = []

    @property
    def url(self) -> str:
        """Return the URL by which a program on this machine calls RPC."""
        # IPv4 before IPv6: of two addresses, the one that more programs can speak to.
        first = min(self.rpc, key=lambda address: address.startswith("["))
        host, _, port = first.rpartition(":")
        return url_of(host.strip("[]"), int(port), tls=self.tls)


def url_of(host: str, port: int, *, tls: bool) -> str:
    """Return the URL by which a program on this machine reaches the address `host`."""
    if host in ("", "*"):
        host = "127.0.0.1"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        if address.is_unspecified:
            host = "127.0.0.1" if address.version == 4 else "::1"
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def read_listening(home: Path) -> Listening | None:
    """Return the addresses that the daemon of a home last wrote, None if it stopped in order, or
    wrote none.

    After a kill the file stays: then no daemon answers at that address, or another one does.
    """
    # The home of another user may be read: a special file there must not make us wait.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(home / LISTENING, flags), "rb") as file:
            found = msgspec.json.decode(file.read(_LONGEST) or b"", type=Listening)
    except (OSError, msgspec.DecodeError):
        return None
    return found if found.rpc else None


def user_name(uid: int) -> str:
    """Return the login name of a user id, or `#` and its number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"
