"""The `colony` command: the list of commands, each loaded only when it is used.

Each command is in its own module.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
from collections.abc import Mapping
from typing import Any

import click
from click.shell_completion import CompletionItem

from cli.core.errors import EXIT_CODES, Failure, failure_of_system
from cli.core.session import Session, shared_options
from cli.core.terminal import json_text, print_error, print_line
from cli.core.words import WordGroup, furnish

Command = tuple[str, str, str]

# Title → name → (module, attribute, one line of help). Keeps `colony --help` from importing
# everything.
SECTIONS: Mapping[str, Mapping[str, Command]] = {
    "A daemon of one's own": {
        "init": ("cli.daemon.init", "init", "Create a home directory: keys and a colony."),
        "up": ("cli.daemon.up", "up", "Run the daemon in the foreground."),
        "demo": (
            "cli.daemon.demo",
            "demo",
            "Two colonies on this machine, one forwarded function.",
        ),
        "status": ("cli.ops.status", "status", "Show how the daemon is."),
        "top": ("cli.ops.top", "top", "Watch queue, running work, executors and peers."),
        "ui": ("cli.ui.command", "ui", "Show the colony as a web page on this machine."),
        "doctor": ("cli.ops.doctor", "doctor", "Look for what is wrong and say what to do."),
        "chaos": (
            "cli.chaos.command",
            "chaos",
            "Kill workers at random; tell what it did to the work.",
        ),
        "backup": ("cli.daemon.backup", "backup", "Save everything of the colony to one file."),
        "restore": ("cli.daemon.backup", "restore", "Bring a saved colony back."),
        "history": (
            "cli.daemon.history",
            "history",
            "What has left the store: list, show, verify.",
        ),
        "config": ("cli.daemon.config", "config", "Show the settings in force."),
        "key": ("cli.daemon.key", "key", "Make private keys, tell their ids."),
        "service": (
            "cli.daemon.service",
            "service",
            "The daemon and workers as services of this host.",
        ),
    },
    "Work": {
        "run": ("cli.work.run", "run", "Submit a function to run, here or in another colony."),
        "process": ("cli.work.manage", "process", "Processes: list, show, await, cancel, close."),
        "pause": ("cli.work.manage", "pause", "Hand out no more work; submissions go on."),
        "resume": ("cli.work.manage", "resume", "Hand out work again."),
        "workflow": ("cli.work.workflow", "workflow", "Graphs of functions: submit, show, await."),
        "cron": ("cli.automation.cron", "cron", "Workflows that start by the clock."),
        "generator": (
            "cli.automation.generator",
            "generator",
            "Workflows that start with enough arguments.",
        ),
        "file": ("cli.files.file", "file", "Files that processes share."),
        "log": ("cli.work.log", "log", "What executors logged: get, search, add."),
        "channel": ("cli.work.channel", "channel", "Messages between submitter and executor."),
        "attribute": ("cli.work.attribute", "attribute", "Keys and values of a process."),
        "blueprint": (
            "cli.automation.blueprint",
            "blueprint",
            "Wanted states that executors make real.",
        ),
    },
    "Who and where": {
        "worker": (
            "cli.worker.command",
            "worker",
            "Run shell commands as an executor's functions.",
        ),
        "executor": (
            "cli.members.executor",
            "executor",
            "Executors: add, approve, reject, remove.",
        ),
        "function": ("cli.members.function", "function", "What executors say they can do."),
        "user": ("cli.members.user", "user", "People who may submit work."),
        "colony": ("cli.members.colony", "colony", "The colonies that a server hosts."),
        "location": ("cli.members.location", "location", "Named places where executors stand."),
        "peer": ("cli.peers.peers", "peer", "Other colonies: list, trust, block, ping."),
        "card": ("cli.peers.card", "card", "A colony's card as a link or QR code; open a link."),
        "route": (
            "cli.peers.routes",
            "route",
            "Where processes go that name no colony, and why.",
        ),
    },
    "The server": {
        "server": ("cli.ops.server", "server", "The server: info, counters, alive or not."),
        "cluster": ("cli.ops.cluster", "cluster", "The daemons that serve one store together."),
        "rpc": ("cli.ops.rpc", "rpc", "The calls that a daemon answers."),
        "version": ("cli.daemon.config", "version", "Show the versions of command and daemon."),
        "help": ("cli.ops.help", "help_", "Explain a topic, or show the help of a command."),
        "completion": ("cli.ops.completion", "completion", "Print a shell's completion script."),
    },
}
COMMANDS: Mapping[str, Command] = {
    name: command for commands in SECTIONS.values() for name, command in commands.items()
}

_EPILOG = f"""\b
Examples:
  colony init && colony up
  colony worker --func upper='tr a-z A-Z'
  colony run --func upper hello --wait

`colony help` lists topics. Exit codes: {EXIT_CODES}"""


# What is typed from habit, or was a command once.
_ALIASES = {"peers": "peer", "routes": "route", "fs": "file", "security": "key"}


class _Lazy(WordGroup):
    aliases = _ALIASES

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run as a program: on any terminal, with any locale, without a stdout."""
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is None:  # closed by the caller
                setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
            elif isinstance(stream, io.TextIOWrapper):
                # A character that the locale lacks is shown as an escape.
                stream.reconfigure(errors="backslashreplace")
        try:
            return super().main(*args, **extra)
        except OSError as error:  # while the options are read, as by --help
            failure = failure_of_system(error)
            failure.show()
            raise SystemExit(failure.exit_code) from None
        finally:
            _let_go(sys.stdout)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the named command; with --json its errors are JSON on stderr, too."""
        session = ctx.ensure_object(Session)
        try:
            return self._invoked(ctx)
        except click.ClickException as error:
            if not session.as_json:
                raise
            step = error.next_step if isinstance(error, Failure) else ""
            print_error(json_text({"error": error.message, "next": step, "exit": error.exit_code}))
            raise click.exceptions.Exit(error.exit_code) from None

    def _invoked(self, ctx: click.Context) -> Any:
        """Run the named command; a file, disk or stdout that fails it is an error for people."""
        try:
            return super().invoke(ctx)
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader of a pipe has gone: click ends quietly
                raise
            raise failure_of_system(error) from None

    def words(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, without importing them."""
        return list(COMMANDS)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}.{attribute} is not a click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, COMMANDS))
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                rows = [(name.ljust(width), line) for name, (_, _, line) in commands.items()]
                formatter.write_dl(rows)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return names from the list above: click would import every module to ask for its help."""
        if incomplete.startswith("-"):
            return click.Command.shell_complete(self, ctx, incomplete)
        return [
            CompletionItem(name, help=line)
            for name, (_, _, line) in COMMANDS.items()
            if name.startswith(incomplete)
        ]


def _let_go(stream: Any) -> None:
    """Give up what a full disk does not take: the interpreter would fail at it again."""
    try:
        stream.flush()
    except OSError:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())
    except ValueError:
        pass  # it is closed


def _show_version(ctx: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from node.version import VERSION  # reads the package's metadata

        print_line(f"colony {VERSION}")
        ctx.exit()


@click.group(
    cls=_Lazy,
    epilog=_EPILOG,
    no_args_is_help=True,
    context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version of this command and exit.",
)
@shared_options
def main() -> None:
    """Make this machine a colony: take work, give work, across trusted colonies.

    \b
    Environment: COLONYD_HOME, COLONIES_SERVER_HOST, COLONIES_SERVER_PORT,
    COLONIES_COLONY_NAME, COLONIES_PRVKEY, COLONIES_COLONY_PRVKEY,
    COLONIES_SERVER_PRVKEY, COLONIES_EXECUTOR_NAME.
    """


furnish(main)

if __name__ == "__main__":
    main(prog_name="colony")
