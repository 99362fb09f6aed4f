"""The session that all commands share: home, server address, keys, options, exit codes, errors.

Values are drawn in `cli.core.output`; the calls are in the module of each command group.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cli.core.errors import (
    DENIED,
    EXIT_CODES,
    FAILED,
    NOT_FOUND,
    OK,
    TIMEOUT,
    USAGE,
    Failure,
    failing,
    failure_of,
)
from cli.core.words import Aliases, WordGroup, furnish
from colonyd.errors import ColonyError
from colonyd.replies import TOO_LARGE

if TYPE_CHECKING:
    from colonyd.keys import PrivateKey
    from colonyd.rpc import RpcClient, Signed
    from colonyd.settings import Settings
    from node.host.config import Config

# Exit code and next step after a refusal with this status.
_DOCTOR = "`colony doctor` looks for causes"
_BY_STATUS = {
    400: (FAILED, "correct the request: the message names what is wrong"),
    403: (DENIED, "check which key signs: COLONIES_PRVKEY / COLONIES_COLONY_PRVKEY, or --home"),
    404: (NOT_FOUND, "list what exists with an `ls` command, e.g. `colony process ls`"),
    408: (TIMEOUT, _DOCTOR),
    409: (FAILED, "look at it again with a `show` or `ls` command, then decide"),
    413: (FAILED, "send less at once, or raise rpc.max_body at the daemon"),
    429: (FAILED, "wait a little, then try again"),
    503: (FAILED, "try again; `colony status` shows how the daemon is"),
}
# The subject of a message decides before the status does; the first that fits counts.
_NEXT_BY_CAUSE = (
    (
        "trust is missing",
        "compare the id with its owner, then trust it: `colony peer trust ID`, there as well",
    ),
    (
        "look-up by id is off",
        "`global = true` below [federation] in the configuration (`colonyd[global]`), or ask its"
        " owner for `colony card --link` and open that: `colony card --open LINK`",
    ),
    (
        "nobody there is the colony",
        "ask its owner: is federation.global on there, its daemon up? `colony card --link` there"
        " and `colony card --open LINK` here need no look-up",
    ),
    (
        "it could not be looked up",
        "`colony doctor` says how the DHT is; `colony card --link` at the other colony and `colony"
        " card --open LINK` here need no look-up",
    ),
    ("the id of this colony itself", "leave --colony out"),
    ("lifts the block", "`colony peer trust ID` if that is meant"),
    (
        "^link: it is this colony's own",
        "`colony card --open LINK` at the other colony; `colony card --link` there prints its own",
    ),
    ("has no name of yours", "`colony peer name` lists the names that you gave"),
    ("^link: .* wait for a decision", "`colony peer ls`, then `colony peer trust` or `forget`"),
    ("^link: ", "get the link anew from its colony: `colony card --link`"),
    (
        "neither here nor a trusted peer",
        "`colony peer ls` shows the colonies known here; `colony peer trust` takes one as a peer",
    ),
    (
        "what goes to another colony has",
        "give large values as files (`colony file`), or run it here: no setting raises this",
    ),
    (
        "are taken from your colony",
        "send less at once; the other colony's owner may raise max_body of its policy for yours",
    ),
    (TOO_LARGE.pattern, "ask for fewer rows: `--count 5`, where the command has that"),
    (
        r"^issuedat\b",
        "set the clock that is wrong: `colony doctor` shows this one's",
    ),
    (r"^nonce\b", "run the command again: a signed call counts once"),
    (r"^ticket\b", "run the command again: it gets a new ticket"),
    (r"\b(token|invitation)\b", "ask for another: `colony peer invite` at the other colony"),
)
_LISTS = (
    ("peer", "colony peer ls"),
    ("executor", "colony executor ls"),
    ("function", "colony function ls"),
    ("user", "colony user ls"),
    ("snapshot", "colony file snapshot ls"),
    ("file", "colony file label ls"),
    ("cron", "colony cron ls"),
    ("generator", "colony generator ls"),
    ("blueprint", "colony blueprint ls"),
    ("location", "colony location ls"),
    ("workflow", "colony workflow ls"),
    ("process", "colony process ls"),
    ("colony", "colony colony ls"),
)

T = TypeVar("T")


@dataclass
class Session:
    """One run of the command line: the home, the server, the keys, and the form of output."""

    home_option: str | None = None
    server_option: str | None = None
    as_json: bool = False
    quiet: bool = False  # no notes and no bars on stderr
    environ: dict[str, str] = field(default_factory=lambda: dict(os.environ))

    @property
    def home(self) -> Path:
        """Return --home, else the first that there is of `default_home`."""
        return self._home()

    @property
    def home_to_write(self) -> Path:
        """Return the home of a command that makes it or runs its daemon: never another user's,
        unless --home or $COLONYD_HOME names it.
        """
        return self._home(to_write=True)

    def _home(self, *, to_write: bool = False) -> Path:
        from colonyd.places import default_home

        if self.home_option:
            return Path(self.home_option).expanduser().absolute()
        return default_home(self.environ, to_write=to_write)

    def config(self, origins: dict[str, str] | None = None, *, home: Path | None = None) -> Config:
        """Return the configuration of the home, or of another one; `origins` gets the origin of
        each setting.

        Raises Failure naming the wrong field.
        """
        from node.host.config import ConfigError, load_config

        try:
            return load_config(home or self.home, {}, environ=self.environ, origins=origins)
        except ConfigError as error:
            raise Failure(
                str(error), next_step="correct it there; `colony config` shows what is in force"
            ) from None

    @property
    def settings(self) -> Settings:
        """Return where the colony is, as options, environment and home have it."""
        from colonyd.settings import Settings

        return Settings(
            self.home,
            self.server_option or "",
            environ=self.environ,
            chosen=self.home_option is not None,
            otherwise=self._configured,
        )

    @failing
    def url(self) -> str:
        """Return --server, else COLONIES_SERVER_*, else the address that the home's daemon wrote.

        Without a daemon, the address that its configuration has.
        """
        return self.settings.url()

    def _configured(self) -> str:
        from colonyd.places import url_of

        rpc = self.config().rpc
        return url_of(rpc.host, rpc.port, tls=rpc.tls)

    @property
    def own(self) -> bool:
        """Return whether the server is this home's daemon: no other address was given."""
        return self.settings.own

    @failing
    def client(self) -> RpcClient:
        """Return a client of this session's server."""
        return self.settings.client(
            lambda: self.home / (self.config().rpc.certificate or "tls.crt")
        )

    @asynccontextmanager
    async def signed(self, key: PrivateKey) -> AsyncIterator[Signed]:
        """Give the calls to that server that this key signs."""
        from colonyd.rpc import Signed

        async with self.client() as client:
            yield Signed(client, key)

    @failing
    def colony(self) -> str:
        """Return the home colony's name: $COLONIES_COLONY_NAME, else the one that `colony init`
        wrote.
        """
        return self.settings.colony

    def member_key(self) -> PrivateKey:
        """Return the key that signs a member's calls: $COLONIES_PRVKEY or keys/user.key."""
        return self._key("COLONIES_PRVKEY", "user")

    def owner_key(self) -> PrivateKey:
        """Return the key of the colony's owner: $COLONIES_COLONY_PRVKEY or keys/colony.key."""
        return self._key("COLONIES_COLONY_PRVKEY", "colony")

    def server_key(self) -> PrivateKey:
        """Return the key of the server's owner: $COLONIES_SERVER_PRVKEY or keys/server.key."""
        return self._key("COLONIES_SERVER_PRVKEY", "server")

    def signer(self, executor: str | None) -> PrivateKey:
        """Return the key of an executor of this home, by name; without one the member's key."""
        if executor is None:
            return self.member_key()
        from cli.core.keyfiles import check_member_name

        return self._key("", f"executor-{check_member_name(executor)}")

    def executor_name(self, executor: str | None) -> str:
        """Return the executor's name, from --as or $COLONIES_EXECUTOR_NAME."""
        if name := executor or self.environ.get("COLONIES_EXECUTOR_NAME"):
            return name
        raise Failure(
            "this is an executor's call",
            code=USAGE,
            next_step="name it with --as, or set COLONIES_EXECUTOR_NAME and COLONIES_PRVKEY",
        )

    @failing
    def _key(self, variable: str, name: str) -> PrivateKey:
        return self.settings.key(variable, name)

    def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """Run async `work` to its end; known errors become Failures with exit codes."""
        import trio

        from cli.core.endpoint import denied_by_another, not_colonyd, not_reachable
        from colonyd.rpc import NoEnvelope, RpcError, Unreachable

        try:
            return trio.run(work)
        except Exception as error:
            leaf = _leaf(error)
            if isinstance(leaf, NoEnvelope):
                raise not_colonyd(self, leaf) from None
            if isinstance(leaf, RpcError):
                failure = denied_by_another(self, leaf)
                raise failure or rpc_failure(leaf.status, leaf.message) from None
            if isinstance(leaf, Unreachable):
                raise not_reachable(self, leaf) from None
            if isinstance(leaf, ColonyError):
                raise failure_of(leaf) from None
            if isinstance(leaf, click.ClickException | click.exceptions.Exit):
                raise leaf from None
            if leaf is not error:
                raise leaf from None
            raise
        except BaseExceptionGroup as group:
            raise _leaf(group) from None

    def call(
        self,
        payloadtype: str,
        fields: dict[str, Any],
        *,
        owner: bool = False,
        key: PrivateKey | None = None,
        timeout: float = 10.0,
        attempts: int = 1,
    ) -> Any:
        """Make one signed call in a run of its own: what most commands need. `timeout` in seconds.

        `attempts` above 1 is for calls that take effect once however often the same bytes are sent.
        """
        signing = key or (self.owner_key() if owner else self.member_key())

        async def work() -> Any:
            async with self.signed(signing) as client:
                return await client.call(payloadtype, fields, timeout, attempts=attempts)

        return self.run(work)


def rpc_failure(status: int, message: str) -> Failure:
    """Return the Failure for an error reply of the daemon."""
    if status == 403 and message.startswith("payloadtype"):
        # Upstream's status for calls it doesn't have: it is no matter of rights.
        return Failure(
            f"the daemon does not offer this: {message}",
            next_step="is [federation] enabled there, and is it as new as this command?",
        )
    if status == 403 and message.startswith("audience"):
        return Failure(
            message,
            code=DENIED,
            next_step="COLONIES_SERVER_ID names the server that requests are for; correct it, or"
            " leave it out to ask the server",
        )
    code, step = _BY_STATUS.get(status, (FAILED, _DOCTOR))
    known = next((step for pattern, step in _NEXT_BY_CAUSE if re.search(pattern, message)), "")
    if code == NOT_FOUND and not known:
        # The colony is often told as well, as the place where something is not.
        named = [
            (noun == "colony", message.find(noun), listing)
            for noun, listing in _LISTS
            if noun in message
        ]
        known = f"`{min(named)[2]}` shows what there is" if named else ""
    return Failure(f"{message} (status {status})", code=code, next_step=known or step)


def _leaf(error: BaseException) -> BaseException:
    # One failing task cancels its siblings, so the first leaf is the cause in practice.
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _remember(attribute: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value:
            setattr(context.ensure_object(Session), attribute, value)

    return keep


def shared_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --home, --server, --json and --quiet, accepted before and after the command's name."""
    for name, attribute, help_text, flag in (
        ("--quiet", "quiet", "No notes and no bars on stderr; errors stay.", True),
        ("--json", "as_json", "Print JSON instead of text.", True),
        ("--server", "server_option", "Daemon's address, host:port or URL.", False),
        (
            "--home",
            "home_option",
            "Home directory [$COLONYD_HOME, else your own, else the service's].",
            False,
        ),
    ):
        function = click.option(
            name,
            is_flag=flag,
            default=False if flag else None,
            expose_value=False,
            help=help_text,
            callback=_remember(attribute),
        )(function)
    return function


as_executor = click.option(
    "--as", "executor", metavar="EXECUTOR", default=None,
    help="Sign as this executor of the home [$COLONIES_PRVKEY, else the user].",
)  # fmt: skip


def confirm(yes: bool, what: str) -> None:
    """Ask before a change that can't be undone, unless --yes was given or there is no terminal."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise Failure(f"this would {what}", code=USAGE, next_step="give --yes if that is meant")
    click.confirm(f"Really {what}?", abort=True, err=True)


def _epilog(examples: tuple[str, ...]) -> str:
    lines = "\n".join(f"  {example}" for example in examples)
    title = "Example:" if len(examples) == 1 else "Examples:"
    return f"\b\n{title}\n{lines}\n\nExit codes: {EXIT_CODES}"


def colony_command(name: str, *examples: str) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a command whose first argument is the Session, with shared options and examples."""

    def wrap(function: Callable[..., Any]) -> click.Command:
        passed = click.make_pass_decorator(Session, ensure=True)(failing(function))
        command = click.command(name, epilog=_epilog(examples))(shared_options(passed))
        furnish(command)
        return command

    return wrap


def colony_group(
    name: str, help_text: str, *examples: str, aliases: Aliases | None = None
) -> WordGroup:
    """Return a named group of commands with examples in its help; `aliases` are old words in it."""
    group = WordGroup(name, help=help_text, epilog=_epilog(examples), no_args_is_help=True)
    group.aliases = aliases or {}
    return group


def finish(code: int) -> None:
    """End the command with an exit code, after all output is printed."""
    if code != OK:
        sys.stdout.flush()
        raise click.exceptions.Exit(code)
