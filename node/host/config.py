"""The daemon's configuration: TOML file, environment and flags become one checked value.

Nothing here opens sockets or keys; what the settings do is decided where they are used.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec

from node.host.configfiles import config_files, lay_over

_ENV_PREFIX = "COLONYD_"
_RETENTION = "COLONIES_RETENTION_POLICY"  # upstream's name; seconds
_REREGISTER = "COLONIES_ALLOW_EXECUTOR_REREGISTER"  # upstream's name
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9,
          "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}  # fmt: skip
_SECONDS = {"": 1, "s": 1, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
ColonyId = Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{64})?$")]
NonEmpty = Annotated[str, msgspec.Meta(min_length=1)]
# `when` of a route that lets processes wait first: a number with a unit, by default seconds.
WAITING = r"waiting *> *([0-9]+(?:\.[0-9]+)?) *(ms|s|min|m|h|d)?"
Pattern = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Patterns = Annotated[list[Pattern], msgspec.Meta(max_length=64)]
Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Limit = Annotated[int, msgspec.Meta(ge=0, le=1_000_000_000)]


class ConfigError(Exception):
    """A setting that is wrong; the message names the setting and where it was set."""


class ByteSize(int):
    """A number of bytes, written as an integer or as text such as "2MiB" or "500 kB"."""

    @classmethod
    def parse(cls, value: object) -> ByteSize:
        """Read `value`; raises ValueError with a message fit for the user."""
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return cls(value)
        match = re.fullmatch(r"(\d+)\s*([A-Za-z]*)", value) if isinstance(value, str) else None
        if match is None or match[2].upper() not in _UNITS:
            raise ValueError(f'expected a size such as "2MiB" or 1048576, got {value!r}')
        return cls(int(match[1]) * _UNITS[match[2].upper()])


class Duration(int):
    """Seconds, written as an integer or as text such as "30d"; 0 or "forever" have no end."""

    @classmethod
    def parse(cls, value: object) -> Duration:
        """Read `value`; raises ValueError with a message fit for the user."""
        if value == "forever":
            return cls(0)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return cls(value)
        match = re.fullmatch(r"(\d{1,12})\s*([a-z]*)", value) if isinstance(value, str) else None
        if match is None or match[2] not in _SECONDS:
            raise ValueError(
                f'expected a time such as "30d", "12h", 3600 (seconds) or "forever", got {value!r}'
            )
        return cls(int(match[1]) * _SECONDS[match[2]])


class Keep(Duration):
    """A duration, or "auto": as long as there is room."""

    @classmethod
    def parse(cls, value: object) -> Keep:
        """Read `value`; raises ValueError with a message fit for the user."""
        if value == "auto":
            return AUTO
        try:
            return cls(Duration.parse(value))
        except ValueError as error:
            raise ValueError(str(error).replace('or "forever"', '"forever" or "auto"')) from None

    @property
    def auto(self) -> bool:
        """Return whether the room in the store decides."""
        return self < 0


AUTO = Keep(-1)


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file."""


class NodeConfig(_Section, frozen=True):
    """[node]: where the data lives, the name of the home colony, and the group of its owners."""

    home: str = ""
    name: str = ""
    group: str = ""


class RpcConfig(_Section, frozen=True):
    """[rpc]: the port that SDKs talk to; a `host` of "*" is all addresses, IPv4 and IPv6.

    A connection is unsigned until a request on it shows a right: of these there are `max_unsigned`,
    of the others `max_connections`. `max_unread` bounds large answers that clients do not take, in
    bytes. With `tls` it is served with the daemon's own certificate, or with the one in the PEM
    file `certificate`, whose `key` is in another; relative paths are below the home. With
    `reregister` a colony's owner may add an executor under a taken name: it replaces the one that
    has it.
    """

    host: NonEmpty = "*"
    port: Port = 50080
    replay: Literal["lenient", "strict"] = "lenient"
    metrics: Literal["local", "open", "off"] = "local"
    max_body: ByteSize = ByteSize(16 * 2**20)
    max_connections: Count = 4096
    max_per_signer: Count = 512
    max_unsigned: Count = 1024
    max_unsigned_per_address: Count = 512
    max_unread: ByteSize = ByteSize(256 * 2**20)
    max_subscriptions: Count = 1024
    reregister: bool = False
    tls: bool = False
    certificate: str = ""
    key: str = ""

    def __post_init__(self) -> None:
        if bool(self.certificate) != bool(self.key):
            raise ValueError("certificate and key belong together")
        if self.certificate and not self.tls:
            raise ValueError("a certificate is only used with tls = true")


class EtcdConfig(_Section, frozen=True):
    """[etcd]: no endpoints means the embedded server, whose space quota is `quota` bytes.

    Endpoints are the members of one cluster. `ca`, `cert` and `key` are PEM files, relative paths
    are below the home; any of them, or https:// before an endpoint, means TLS.
    """

    endpoints: list[NonEmpty] = msgspec.field(default_factory=list)
    quota: ByteSize = ByteSize(2 * 2**30)
    ca: str = ""
    cert: str = ""
    key: str = ""
    user: str = ""
    password: str = ""

    def __post_init__(self) -> None:
        if bool(self.cert) != bool(self.key):
            raise ValueError("cert and key belong together")
        if not self.endpoints and (self.ca or self.cert or self.user):
            raise ValueError("ca, cert, key and user are for endpoints")
        if self.password and not self.user:
            raise ValueError("a password needs a user")

    @property
    def secure(self) -> bool:
        """Return whether the endpoints are reached over TLS."""
        return bool(self.ca or self.cert) or any(e.startswith("https://") for e in self.endpoints)


class FilesConfig(_Section, frozen=True):
    """[files]: the directory of bytes. `quota` in bytes, 0 for none; `grace` in seconds."""

    quota: ByteSize = ByteSize(10 * 2**30)
    grace: Annotated[int, msgspec.Meta(ge=1)] = 86_400


class HistoryConfig(_Section, frozen=True):
    """[history]: how long closed processes in `states`, workflows and log lines stay in the store.

    Then they move to files below the home; with a `keep` of 0, they never do. With AUTO they stay
    until half of `etcd.quota` is in use; then what ended first moves. The oldest files are dropped
    once all have more than `quota` bytes; 0 is no bound.
    """

    keep: Keep = AUTO
    quota: ByteSize = ByteSize(4 * 2**30)
    states: list[Literal["successful", "failed", "cancelled"]] = msgspec.field(
        default_factory=lambda: ["successful", "failed", "cancelled"]
    )


class QuotasConfig(_Section, frozen=True):
    """[quotas]: the most that a member, executor, generator or colony may have; 0 is no limit.

    Processes count while they are open: waiting or running. `generator_bytes` are bytes.
    """

    member_processes: Limit = 50_000
    colony_processes: Limit = 200_000
    colony_forwards: Limit = 50_000
    member_crons: Limit = 500
    colony_crons: Limit = 2_000
    member_generators: Limit = 500
    colony_generators: Limit = 2_000
    generator_packs: Limit = 20_000
    generator_bytes: ByteSize = ByteSize(64 * 2**20)
    executor_functions: Limit = 500
    colony_executors: Limit = 5_000
    colony_users: Limit = 5_000
    colony_definitions: Limit = 500
    colony_blueprints: Limit = 10_000
    colony_locations: Limit = 5_000
    colony_files: Limit = 500_000
    colony_snapshots: Limit = 1_000
    process_logs: Limit = 100_000
    uploads: Limit = 256


class PolicyConfig(_Section, frozen=True):
    """[federation.policy]: what a trusted colony without a policy of its own may do here.

    Empty lists allow all, a limit of 0 is none; `rate` is submissions and `messages` messages a
    minute, `max_body` bytes of one, `max_entries` and `max_kept` (bytes) what it may leave in the
    store.
    """

    functions: Patterns = msgspec.field(default_factory=list)
    executor_types: Patterns = msgspec.field(default_factory=list)
    labels: Patterns = msgspec.field(default_factory=list)
    max_waiting: Limit = 0
    max_running: Limit = 0
    rate: Limit = 0
    max_body: ByteSize = ByteSize(0)
    messages: Limit = 20_000
    max_entries: Limit = 500_000
    max_kept: ByteSize = ByteSize(512 * 2**20)
    forward: bool = False
    max_hops: Annotated[int, msgspec.Meta(ge=1, le=4)] = 1


class MailboxConfig(_Section, frozen=True):
    """[federation.mailbox]: what this colony does for trusted peers that nobody can connect to.

    Where `federation.global` is on, it offers to hold messages for them (`offer`), also those of
    colonies that it does not trust and that such a peer names (`strangers`).
    """

    offer: bool = True
    strangers: bool = True


class FederationConfig(_Section, frozen=True):
    """[federation]: the port that peers talk to, and how peers are found and trusted.

    `hops` is how many colonies our processes may pass to where they end, 1 for the peer alone.
    Colonies that trusted peers introduce are `pending`, or trusted as well; with "off", no colony
    is introduced either way. With `share_names`, introductions have the names that our owner gave.

    With `wide` ("global" in files), the colony is looked up by its id in the DHT of the `bootstrap`
    nodes, by default the public one of BitTorrent. `dht_port` is its UDP port. With `map_port`,
    routers are then asked to forward `port` to us.
    """

    enabled: bool = True
    host: NonEmpty = "*"
    port: Port = 50081
    trust: Literal["manual", "lan"] = "manual"
    discovery: bool = True
    wide: bool = msgspec.field(default=False, name="global")
    bootstrap: list[NonEmpty] = msgspec.field(default_factory=list)
    dht_port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 50082
    map_port: bool = True
    interfaces: list[NonEmpty] = msgspec.field(default_factory=list)
    hops: Annotated[int, msgspec.Meta(ge=1, le=4)] = 1
    introductions: Literal["pending", "off", "trust"] = "pending"
    share_names: bool = True
    policy: PolicyConfig = PolicyConfig()
    mailbox: MailboxConfig = MailboxConfig()


class PeerConfig(_Section, frozen=True):
    """[[peers]]: a colony beyond the local network; an empty id accepts the card found there.

    `mailbox`: no peer can connect to us, so we fetch messages for us from this peer, named by id.
    """

    url: NonEmpty
    id: ColonyId = ""
    mailbox: bool = False

    def __post_init__(self) -> None:
        if self.mailbox and not self.id:
            raise ValueError("a mailbox needs the id of its colony")


class RouteConfig(_Section, frozen=True):
    """[[routes]]: where processes go that name no colony; globs, the first that leads somewhere.

    `to` is "any", or names or ids of peers: the first one that can takes the process, with
    `weights` the less busy of two drawn by weight. With `retry`, a process that a peer surely will
    not run goes to another.
    """

    func: NonEmpty = "*"
    executortype: NonEmpty = "*"
    label: str = "*"
    when: str = "always"
    to: NonEmpty | Annotated[list[NonEmpty], msgspec.Meta(min_length=1)] = "any"
    weights: dict[str, Annotated[float, msgspec.Meta(ge=0, le=1e6)]] = msgspec.field(
        default_factory=dict
    )
    retry: bool = True

    def __post_init__(self) -> None:
        if re.fullmatch(f"always|no-executor|{WAITING}", self.when) is None:
            raise ValueError('when is "always", "no-executor", or such as "waiting > 30s"')


class LogConfig(_Section, frozen=True):
    """[log]: the least important level that is written."""

    level: Literal["debug", "info", "warning", "error"] = "info"


class Config(_Section, frozen=True):
    """Everything that can be set."""

    node: NodeConfig = NodeConfig()
    rpc: RpcConfig = RpcConfig()
    etcd: EtcdConfig = EtcdConfig()
    files: FilesConfig = FilesConfig()
    history: HistoryConfig = HistoryConfig()
    quotas: QuotasConfig = QuotasConfig()
    federation: FederationConfig = FederationConfig()
    peers: list[PeerConfig] = msgspec.field(default_factory=list)
    routes: list[RouteConfig] = msgspec.field(default_factory=list)
    log: LogConfig = LogConfig()


_LISTS: dict[Any, type] = {list[PeerConfig]: PeerConfig, list[RouteConfig]: RouteConfig}


def load_config(
    home: Path,
    overrides: Mapping[str, object],
    *,
    environ: Mapping[str, str] | None = None,
    files: Sequence[Path] = (),
    origins: dict[str, str] | None = None,
) -> Config:
    """Read the files of a home, if there, and lay the environment and `overrides` over them.

    `overrides` are flags by dotted path ("rpc.port"); None means that the flag was not given. The
    environment's names are COLONYD_SECTION__KEY. `files` replace those of the home, the weakest
    first; `origins` gets the origin of each set value by dotted path. Raises ConfigError.
    """
    files = files or config_files(home)
    path = files[-1]
    origins = {} if origins is None else origins
    settings: dict[str, Any] = {}
    for file in files:
        found = _read(file)
        _check_names(found, Config, "", str(file))
        lay_over(settings, found, origins, f"in {file}")
    for dotted, value, origin in _layers(os.environ if environ is None else environ, overrides):
        kind = _kind_of(dotted, origin)
        section, _, key = dotted.partition(".")
        table = settings.setdefault(section, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{section}: expected a table (in {path})")
        table[key] = _coerce(str(value), kind, dotted, origin) if origin[0] == "$" else value
        origins[dotted] = origin
    settings.setdefault("node", {})
    if isinstance(settings["node"], dict) and not settings["node"].get("home"):
        settings["node"]["home"] = str(home)
    try:
        return msgspec.convert(settings, Config, dec_hook=_decode)
    except msgspec.ValidationError as failure:
        problem, _, where = str(failure).partition(" - at `$")
        where = where.removeprefix(".").removesuffix("`")
        origin = origins.get(where) or origins.get(where.partition("[")[0]) or f"in {path}"
        raise ConfigError(f"{where}: {problem[:1].lower()}{problem[1:]} ({origin})") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as failure:
        raise ConfigError(f"{path}: {failure.strerror}") from failure
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as failure:
        raise ConfigError(f"{path}: not valid TOML: {failure}") from failure


def _layers(
    environ: Mapping[str, str], overrides: Mapping[str, object]
) -> Iterator[tuple[str, object, str]]:
    """Yield (dotted path, value, origin), the strongest last; environment origins start with $."""
    if environ.get("COLONIES_RETENTION", "").lower() == "true" and environ.get(_RETENTION):
        yield "history.keep", environ[_RETENTION], f"${_RETENTION}"
    if text := environ.get(_REREGISTER):
        allowed = {"t": "true", "f": "false"}.get(text.lower(), text)
        yield "rpc.reregister", allowed, f"${_REREGISTER}"
    for name in sorted(environ):
        # Names without "__" are not settings: $COLONYD_HOME, for one.
        section, separator, key = name.removeprefix(_ENV_PREFIX).lower().partition("__")
        if name.startswith(_ENV_PREFIX) and separator:
            yield f"{section}.{key}", environ[name], f"${name}"
    for dotted, value in overrides.items():
        if value is not None:
            yield dotted, value, f"flag {dotted}"


def _check_names(data: Mapping[str, object], kind: type, path: str, origin: str) -> None:
    """Refuse unknown names and say which known one comes nearest."""
    fields = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
    for name, value in data.items():
        here = f"{path}.{name}" if path else name
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(fields)}"
            raise ConfigError(f"{here}: unknown setting, {hint} ({_in(origin)})")
        inner = fields[name]
        if isinstance(inner, type) and issubclass(inner, _Section):
            if isinstance(value, Mapping):
                _check_names(value, inner, here, origin)
        elif inner in _LISTS and isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, Mapping):
                    _check_names(item, _LISTS[inner], f"{here}[{index}]", origin)


def _in(origin: str) -> str:
    return origin if origin.startswith(("$", "flag ")) else f"in {origin}"


def _kind_of(dotted: str, origin: str) -> Any:
    """Return the type of the setting at "section.key"."""
    section, _, key = dotted.partition(".")
    _check_names({section: {key: None}}, Config, "", origin)
    inner = next(field.type for field in msgspec.structs.fields(Config) if field.name == section)
    if not (isinstance(inner, type) and issubclass(inner, _Section)):
        raise ConfigError(f"{section}: can only be set in the file ({_in(origin)})")
    return next(field.type for field in msgspec.structs.fields(inner) if field.encode_name == key)


def _coerce(value: str, kind: Any, dotted: str, origin: str) -> object:
    """Convert the text of an environment variable to the type of its setting."""
    if get_origin(kind) is list:
        return [part.strip() for part in value.split(",") if part.strip()]
    plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    if plain in (int, bool):
        try:
            return msgspec.convert(value, plain, strict=False)
        except msgspec.ValidationError:
            wanted = "a number" if plain is int else "true or false"
            raise ConfigError(f"{dotted}: expected {wanted}, got {value!r} ({origin})") from None
    return value


def _decode(kind: type, value: object) -> object:
    if kind in (ByteSize, Duration, Keep):
        return kind.parse(value)
    raise NotImplementedError(kind)
