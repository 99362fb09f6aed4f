"""Which colony a program works for: the address of its server, its name, and the keys that sign.

They are found in the environment (COLONIES_*, as upstream's SDKs and commands have them), and in
the home of a colony on this machine.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from colonyd.errors import ColonyError, NotPermitted, NotThere, WrongSetting
from colonyd.keys import IdentityError, PrivateKey, read_key
from colonyd.places import (
    SYSTEM_HOME,
    data_directory,
    default_home,
    key_file,
    read_listening,
    user_name,
)
from colonyd.rpc import RpcClient
from colonyd.tls import PIN, is_local, verification

DEFAULT_PORT = 50080


def checked(url: str) -> str:
    """Return a server's URL unchanged. Raises WrongSetting for one that names no address."""
    scheme, _, rest = url.partition("://")
    place = rest.partition("/")[0]
    step = "write it as HOST:PORT, or https://HOST:PORT"
    wrong = ""
    if scheme.lower() not in ("http", "https"):
        wrong = f"{scheme}:// is neither http:// nor https://"
    elif not place or not url.isprintable() or " " in url:
        wrong = "it is empty, or has a blank or a control character"
    elif place.count(":") > 1 and "[" not in place:
        wrong, step = "an IPv6 address stands in brackets", f"write it as '[{place}]:PORT'"
    else:
        try:
            port = urlsplit(url).port
        except ValueError:
            port = 0
        if port == 0:
            wrong = "its port is no number from 1 to 65535, or its brackets are wrong"
    if wrong:
        raise WrongSetting(f"{url!r} is no server's address: {wrong}", next_step=step)
    return url


@dataclass(frozen=True)
class Settings:
    """Where a colony is. What is not given is looked up when it is used, `environ` first."""

    home: Path
    server: str = ""  # host:port or a URL
    named: str = ""  # the colony
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)
    chosen: bool = False  # whether the home was named
    # Returns the address that the home's daemon would have, where none runs.
    otherwise: Callable[[], str] = lambda: f"http://127.0.0.1:{DEFAULT_PORT}"

    @classmethod
    def find(
        cls,
        *,
        server: str = "",
        colony: str = "",
        home: str | os.PathLike[str] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Settings:
        """Return the settings of the colony that these name, or that the `colony` command would
        find.
        """
        environ = os.environ if environ is None else environ
        place = default_home(environ) if home is None else Path(home).expanduser().absolute()
        return cls(place, server, colony, environ, home is not None)

    @property
    def own(self) -> bool:
        """Return whether the server is the home's daemon: no other address was given."""
        named = ("COLONIES_SERVER_HOST", "COLONIES_SERVER_PORT", "COLONIES_SERVER_HTTP_PORT")
        return not self.server and not any(self.environ.get(each) for each in named)

    def url(self) -> str:
        """Return the server's address: the given one, else that of COLONIES_SERVER_*, else the one
        that the home's daemon wrote. Raises WrongSetting.
        """
        if self.server:
            return checked(self.server if "://" in self.server else f"http://{self.server}")
        environ = self.environ
        host = environ.get("COLONIES_SERVER_HOST")
        port = environ.get("COLONIES_SERVER_PORT") or environ.get("COLONIES_SERVER_HTTP_PORT")
        if host or port:
            tls = environ.get("COLONIES_SERVER_TLS", "")
            if tls.lower() not in ("", "true", "false"):
                # Anything else was taken for false, and calls went without TLS.
                raise WrongSetting(
                    f"COLONIES_SERVER_TLS is {tls!r}", next_step="write true or false"
                )
            scheme = "https" if tls.lower() == "true" else "http"
            return checked(f"{scheme}://{_bracketed(host or '127.0.0.1')}:{port or DEFAULT_PORT}")
        if (told := read_listening(self.home)) is not None:
            return told.url
        return self.otherwise()

    def client(self, certificate: Callable[[], Path] | None = None) -> RpcClient:
        """Return a client of the server. `certificate` returns the file of the home's own daemon.

        Raises ColonyError, Unreachable.
        """
        url, audience = self.url(), self.environ.get("COLONIES_SERVER_ID", "")
        again = self._told if self.own else None
        if not url.lower().startswith("https://"):
            return RpcClient(url, audience=audience, again=again)
        own, pin = None, self.environ.get(PIN, "")
        if not pin and (self.own or is_local(urlsplit(url).hostname or "")):
            own = certificate() if certificate else self.home / "tls.crt"
        verify = verification(url, pin=pin, own=own)
        return RpcClient(url, verify, audience=audience, again=again)

    def _told(self) -> str:
        """Return the address that the home's daemon wrote, "" while it has none.

        Then it starts or is stopped, and whatever answers at another address is another colony's.
        """
        told = read_listening(self.home)
        return told.url if told is not None else ""

    @property
    def colony(self) -> str:
        """Return the colony's name: the given one, $COLONIES_COLONY_NAME, or the home's. Raises
        ColonyError.
        """
        if name := self.named or self.environ.get("COLONIES_COLONY_NAME"):
            return name
        path = self.home / "colony"
        try:
            return path.read_text("utf-8").strip()
        except FileNotFoundError:
            raise NotThere(
                f"no colony at {self.home}",
                next_step=f"{self._service()}`colony init`, or name another home with --home or"
                " COLONYD_HOME; for a colony elsewhere set COLONIES_SERVER_HOST,"
                " COLONIES_COLONY_NAME and COLONIES_PRVKEY",
            ) from None
        except (OSError, ValueError) as error:
            raise ColonyError(f"{path}: {error}") from None

    def member_key(self) -> PrivateKey:
        """Return the key that signs a member's calls: $COLONIES_PRVKEY or keys/user.key."""
        return self.key("COLONIES_PRVKEY", "user")

    def owner_key(self) -> PrivateKey:
        """Return the key of the colony's owner: $COLONIES_COLONY_PRVKEY or keys/colony.key."""
        return self.key("COLONIES_COLONY_PRVKEY", "colony")

    def key(self, variable: str, name: str) -> PrivateKey:
        """Return the key in an environment variable, else in the home's file called `name`. Raises
        ColonyError.
        """
        path = key_file(self.home, name)
        instead = f", or set {variable}" if variable else ""
        try:
            if variable and (text := self.environ.get(variable)):
                return PrivateKey.from_hex(text)
            return read_key(path)
        except FileNotFoundError:
            raise NotThere(
                f"no key at {path}",
                next_step=f"{self._service()}`colony init`, or --home{instead}"
                if variable
                else "`colony key ls`",
            ) from None
        except PermissionError:
            raise NotPermitted(
                f"{path}: not readable by this user", next_step=f"run as the key's owner{instead}"
            ) from None
        except IdentityError as error:
            raise ColonyError(f"{error}", next_step=f"restore the file{instead}") from None

    def state(self) -> Path:
        """Return the directory in which a worker keeps its key and its results: this user's own.

        It is the home, unless that is another user's or there is none.
        """
        try:
            if self.home.stat().st_uid == os.geteuid():
                return self.home
        except OSError:
            pass
        return data_directory(self.environ) / "colony-worker"

    def _service(self) -> str:
        """Return what to do where a service has the colony, and this user may not read its home."""
        if self.chosen or not SYSTEM_HOME.is_dir() or self.home == SYSTEM_HOME:
            return ""
        return (
            "to act as the owner of the colony that is a service here, join its group (`sudo"
            f" adduser {user_name(os.geteuid())} colonyd`, then log in again); for one of your own "
        )


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
