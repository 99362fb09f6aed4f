"""Pages of the reference that are made from the code: commands, exit codes, log events.

`scripts/reference` writes them; the tests compare. Pages that people write are not here, nor is
`docs/protocol.md`, which `colony rpc ls --markdown` makes.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from cli.daemon import colonyd
from cli.main import SECTIONS, main
from cli.ops.topics import TOPICS
from tests.support.daemons import REPOSITORY

FOLDER = REPOSITORY / "docs" / "reference"
_WIDTH = 96  # characters of a line of help
_LEVELS = ("debug", "info", "warning", "error", "exception")


def _commands(command: click.Command, context: click.Context) -> Iterator[click.Context]:
    """Return the contexts of all commands below a group that its help shows."""
    if not isinstance(command, click.Group):
        return
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        if found is not None and not found.hidden:
            inner = click.Context(
                found,
                info_name=name,
                parent=context,
                **_settings(found),
            )
            yield inner
            yield from _commands(found, inner)


def _settings(command: click.Command) -> dict[str, Any]:
    """Return what makes a context print help as a terminal of `_WIDTH` characters does."""
    width = {"terminal_width": _WIDTH, "max_content_width": _WIDTH}
    return {**command.context_settings, **width}


def commands() -> str:
    """Return the page of all commands, with the help of each."""
    top = click.Context(main, info_name="colony", **_settings(main))
    texts: dict[str, list[click.Context]] = {}
    for each in _commands(main, top):
        texts.setdefault(each.command_path.split()[1], []).append(each)
    lines = [
        "# Commands",
        "",
        "What `colony COMMAND --help` prints, for every command. Made by `scripts/reference`.",
    ]
    for title, names in SECTIONS.items():
        lines += ["", f"## {title}"]
        for name in names:
            for context in texts.pop(name):
                level = "###" if len(context.command_path.split()) == 2 else "####"
                shown = context.command.get_help(context).rstrip()
                lines += ["", f"{level} {context.command_path}", "", "```text", shown, "```"]
    assert not texts, f"in no section: {list(texts)}"
    return "\n".join(lines) + "\n"


_OF_DAEMON = {
    0: "it was stopped (SIGTERM, SIGINT) and finished its work",
    1: "it failed: the last lines of its log say why",
    2: "wrong usage: a flag is not understood",
    colonyd.EXIT_STORE: "the store is not to be had: etcd does not start or answer, or holds what"
    " this version must not use, or another daemon runs with this home",
    colonyd.EXIT_AGAIN: "an address or port can't be had now; the line names the setting and who"
    " has it",
    colonyd.EXIT_CONFIG: "the configuration or the home is wrong: starting again does not help",
}


def exit_codes() -> str:
    """Return the page of exit codes, of the command and of the daemon."""
    lines = [
        "# Exit codes",
        "",
        "Made by `scripts/reference` from the code.",
        "",
        "## Of `colony`",
        "",
        "`colony help exit-codes` prints this:",
        "",
        "```text",
        TOPICS["exit-codes"][1].strip("\n"),
        "```",
        "",
        "## Of the daemon",
        "",
        "`colonyd`, and `colony up`:",
        "",
        "| code | when |",
        "|---|---|",
        *(f"| {code} | {about} |" for code, about in _OF_DAEMON.items()),
        "",
        "The service starts the daemon again after 1, 69 and 75, and not after 78.",
    ]
    return "\n".join(lines) + "\n"


def _events(path: Path) -> Iterator[tuple[str, str, str, str]]:
    """Return (event, level, name of the logger, fields) of each log call of a file."""
    tree = ast.parse(path.read_text("utf-8"))
    name = ""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="get_logger"), args=[ast.Constant(value=str(told))]):
                name = told
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        owner = node.func.value
        if not (isinstance(owner, ast.Name) and owner.id == "log" and node.func.attr in _LEVELS):
            continue
        event = node.args[0]
        if isinstance(event, ast.Constant):
            fields = ", ".join(f"`{each.arg}`" for each in node.keywords if each.arg)
            level = {"exception": "error"}.get(node.func.attr, node.func.attr)
            yield str(event.value), level, name, fields


def events() -> str:
    """Return the page of log events."""
    found: Mapping[tuple[str, str, str, str], None] = {
        row: None
        for folder in ("node", "federation", "cli")
        for path in sorted((REPOSITORY / folder).rglob("*.py"))
        for row in _events(path)
    }
    lines = [
        "# Events in the log",
        "",
        "The daemon writes one line an event to its standard error, as `key=value` pairs:",
        "`ts` (the time; not in the journal, which has its own), `level`, `name` (of the logger),",
        "`event`, and the fields of the event. As a service: `journalctl -u colonyd -o cat`.",
        "`log.level` says from which level on. No field holds a key, an argument or an output.",
        "",
        "Made by `scripts/reference` from the code.",
        "",
        "What happens to processes is told to subscribers of the RPC port: see",
        "[the calls](../protocol.md).",
        "",
        "| event | level | logger | fields |",
        "|---|---|---|---|",
        *(
            f"| {event} | {level} | `{name}` | {fields} |"
            for event, level, name, fields in sorted(found)
        ),
    ]
    return "\n".join(lines) + "\n"


PAGES = {"commands.md": commands, "exit-codes.md": exit_codes, "events.md": events}


def run(check: bool) -> int:
    """Write the pages, or compare them; return the exit code."""
    stale = []
    for name, make in PAGES.items():
        path, text = FOLDER / name, make()
        if not path.exists() or path.read_text("utf-8") != text:
            stale.append(name)
            if not check:
                path.write_text(text, "utf-8")
    print(f"{'stale' if check else 'written'}: {', '.join(stale) or 'nothing'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(run("--check" in sys.argv[1:]))
