"""The `colony` command: the list of commands, each loaded only when it is used.

What a command does is in its own module.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping

import click

from cli.session import EXIT_CODES, shared_options

# Name → (module, attribute, one line of help). Keeps `colony --help` from importing everything.
COMMANDS: Mapping[str, tuple[str, str, str]] = {
    "init": ("cli.init", "init", "Create a home directory: keys and a colony."),
    "up": ("cli.up", "up", "Run the daemon in the foreground."),
    "demo": ("cli.demo", "demo", "Two colonies on this machine, one forwarded function."),
    "status": ("cli.status", "status", "Show how the daemon is."),
    "doctor": ("cli.doctor", "doctor", "Look for what is wrong and say what to do."),
    "run": ("cli.run", "run", "Submit a function to run, here or in another colony."),
    "process": ("cli.process", "process", "List, show, await and cancel processes."),
    "executor": ("cli.executor", "executor", "List, approve and reject executors."),
    "peers": ("cli.peers", "peers", "Other colonies: list, trust, block, ping."),
    "worker": ("cli.worker", "worker", "Run shell commands as an executor's functions."),
}

_EPILOG = f"""\b
Examples:
  colony init && colony up
  colony worker --func upper='tr a-z A-Z'
  colony run --func upper hello --wait

Exit codes: {EXIT_CODES}"""


class _Lazy(click.Group):
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
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in COMMANDS.items()])


@click.group(
    cls=_Lazy, epilog=_EPILOG, no_args_is_help=True, context_settings={"max_content_width": 100}
)
@shared_options
def main() -> None:
    """Make this machine a colony: take work, give work, across trusted colonies.

    \b
    Environment: COLONYD_HOME, COLONIES_SERVER_HOST, COLONIES_SERVER_PORT,
    COLONIES_COLONY_NAME, COLONIES_PRVKEY, COLONIES_COLONY_PRVKEY.
    """


if __name__ == "__main__":
    main(prog_name="colony")
