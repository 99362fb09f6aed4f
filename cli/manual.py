"""Man pages made of the texts of --help: `scripts/man OUTDIR`.

One page for `colony`, with the topics of `colony help`; one for each command below it; one for
`colonyd`. Roff is written by hand here: a page is a few kinds of paragraphs.
"""

from __future__ import annotations

import argparse
import inspect
import os
import re
import textwrap
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from cli.core.errors import EXIT_CODES
from cli.core.terminal import print_line
from cli.daemon import colonyd
from cli.main import main as colony
from cli.ops.topics import TOPICS
from node.version import VERSION


def _roff(text: str) -> str:
    """Return text as roff prints it: no character is a command."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    text = text.replace("'", "\\(aq").replace("`", "\\(ga").replace("^", "\\(ha")
    text = text.replace("~", "\\(ti").replace("…", "...").replace("–", "\\(en")
    return re.sub(r"^([.])", r"\\&\1", text, flags=re.M)


def _filled(text: str) -> str:
    """Return text as one paragraph, in short lines."""
    lines = textwrap.wrap(
        " ".join(text.split()), 72, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(_roff(line) for line in lines)


def _as_is(text: str) -> list[str]:
    """Return text whose lines and blanks stay."""
    lines = inspect.cleandoc(text).splitlines()
    return [".PP", ".RS 4", ".nf", *(_roff(line) or "\\&" for line in lines), ".fi", ".RE"]


def _prose(text: str) -> list[str]:
    """Return help text: a paragraph that begins with \\b, or is indented, stays as it is."""
    found: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
        lines = paragraph.splitlines()
        if lines[0].strip() == "\b" or lines[0].startswith("  "):
            found += _as_is("\n".join(line for line in lines if line.strip() != "\b"))
        else:
            found += [".PP", _filled(paragraph)]
    return found


def _section(title: str, body: Iterable[str]) -> list[str]:
    """Return a section; the space before its first paragraph is that of its heading."""
    lines = list(body)
    return [f".SH {_roff(title)}", *(lines[1:] if lines[:1] == [".PP"] else lines)] if lines else []


def _terms(rows: Iterable[tuple[str, str]]) -> list[str]:
    """Return terms and what they mean."""
    found: list[str] = []
    for term, meaning in rows:
        found += [".TP", f"\\fB{_roff(term)}\\fR", _filled(meaning) or "\\&"]
    return found


def _title(name: str, day: str) -> str:
    return f'.TH {_roff(name.upper())} 1 "{day}" "colonyd {VERSION}" "colonyd"'


def page(words: tuple[str, ...], command: click.Command, context: click.Context, day: str) -> str:
    """Return the man page of one command."""
    name = "-".join(words)
    options = [record for each in command.get_params(context) if (record := _option(each, context))]
    short = command.get_short_help_str(200).rstrip(".")
    lines = [
        _title(name, day),
        *_section("NAME", [f"{_roff(name)} \\- {_filled(short)}"]),
        *_section(
            "SYNOPSIS",
            [
                f"\\fB{_roff(' '.join(words))}\\fR"
                f" {_filled(' '.join(command.collect_usage_pieces(context)))}"
            ],
        ),
        *_section("DESCRIPTION", _prose(inspect.cleandoc(command.help or ""))),
        *_section("OPTIONS", _terms(options)),
    ]
    if isinstance(command, click.Group):
        inner = [(each, command.get_command(context, each)) for each in _shown(command, context)]
        rows = [(each, found.get_short_help_str(200)) for each, found in inner if found is not None]
        lines += _section("COMMANDS", _terms(rows))
    examples = (command.epilog or "").partition("Exit codes:")[0]
    shown = re.sub(r"(?m)^\s*(\x08|Examples?:|.colony help. lists topics\.)\s*$", "", examples)
    shown = shown.replace("`colony help` lists topics.", "").strip("\n")
    lines += _section("EXAMPLES", _as_is(shown) if shown.strip() else [])
    lines += _section("EXIT STATUS", _prose(EXIT_CODES))
    if len(words) == 1:
        for title, text in TOPICS.values():
            heading, _, rest = title.partition(": ")
            lines += _section(heading.upper(), _prose(f"{rest[:1].upper()}{rest[1:]}\n\n{text}"))
    lines += _section("SEE ALSO", [", ".join(_roff(each) + "(1)" for each in _related(words))])
    return "\n".join(lines) + "\n"


def _option(each: click.Parameter, context: click.Context) -> tuple[str, str] | None:
    return each.get_help_record(context) if isinstance(each, click.Option) else None


def _shown(group: click.Group, context: click.Context) -> list[str]:
    found = ((name, group.get_command(context, name)) for name in group.list_commands(context))
    return [name for name, command in found if command is not None and not command.hidden]


def _related(words: tuple[str, ...]) -> list[str]:
    above = ["-".join(words[:-1])] if len(words) > 1 else []
    return [*(above or ["colonyd"]), *(["colony"] if len(words) > 2 else [])]


def _daemon(day: str) -> str:
    """Return the man page of `colonyd`."""
    parser = colonyd.arguments()
    rows = [
        (", ".join(action.option_strings) + f" {action.metavar or ''}".rstrip(), action.help or "")
        for action in parser._actions
    ]
    epilog = parser.epilog or ""
    example, _, codes = epilog.partition("; exit codes: ")
    usage = parser.format_usage().removeprefix("usage: colonyd")
    lines = [
        _title("colonyd", day),
        *_section("NAME", ["colonyd \\- " + _roff((parser.description or "").rstrip("."))]),
        *_section("SYNOPSIS", [f"\\fBcolonyd\\fR {_filled(usage)}"]),
        *_section("DESCRIPTION", _prose(_ABOUT)),
        *_section("OPTIONS", _terms(rows)),
        *_section("EXAMPLES", _as_is(example.removeprefix("example: "))),
        *_section("EXIT STATUS", _prose(codes)),
        *_section("SEE ALSO", ["colony(1), colony\\-up(1)"]),
    ]
    return "\n".join(lines) + "\n"


_ABOUT = """
The daemon serves one home directory: it makes a colony there at its first start, runs the store,
answers the calls of the command `colony` and of the SDKs, and talks to the daemons of other
colonies. SIGTERM and SIGINT let it finish what it does; SIGHUP lets it read its configuration
again.
Settings are in config.toml in the home directory, and over them in COLONYD_SECTION__KEY variables;
`colony config` shows those in force.
"""


def pages(day: str) -> Iterator[tuple[str, str]]:
    """Return the names and texts of all pages, such as "colony-run.1"; `day` is YYYY-MM-DD."""

    def below(
        words: tuple[str, ...], command: click.Command, above: click.Context | None
    ) -> Iterator[tuple[str, str]]:
        context = click.Context(
            command, info_name=words[-1], parent=above, **command.context_settings
        )
        yield f"{'-'.join(words)}.1", page(words, command, context, day)
        if isinstance(command, click.Group):
            for name in _shown(command, context):
                inner = command.get_command(context, name)
                assert inner is not None
                yield from below((*words, name), inner, context)

    yield from below(("colony",), colony, None)
    yield "colonyd.1", _daemon(day)


def main() -> None:
    """Write all pages into a directory, which is made; print how many."""
    parser = argparse.ArgumentParser(prog="scripts/man", description="Write the man pages.")
    parser.add_argument("directory", type=Path, metavar="OUTDIR")
    directory: Path = parser.parse_args().directory
    # For packages that are the same whenever they are built.
    moment = float(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
    day = time.strftime("%Y-%m-%d", time.gmtime(moment))
    directory.mkdir(parents=True, exist_ok=True)
    written = 0
    for name, text in pages(day):
        (directory / name).write_text(text, "utf-8")
        written += 1
    print_line(f"{written} pages in {directory}")


if __name__ == "__main__":
    main()
