"""Text on stdout and stderr that cannot command a terminal: the only way of output.

Tables, fields and the shapes of replies are in `cli.core.output`. Nothing else in `cli` writes.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import click

# JSON escapes C0 itself, but not DEL, C1, bidi controls, line separators and lone surrogates.
_NOT_ASCII_OR_DEL = re.compile(r"[^\n -~]")


def printable(text: str) -> str:
    """Return `text` with each control and formatting character as an escape such as `\\x1b`.

    Newlines and tabs stay. Text of other people must not set the clipboard or the title, move the
    cursor, or change the order in which characters are read.
    """
    if text.isprintable():
        return text
    text = text.replace("\r\n", "\n")
    return "".join(c if c.isprintable() or c in "\n\t" else _escape(c) for c in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def json_text(value: Any, indent: int | None = None) -> str:
    """Return `value` as JSON in which only printable characters stand for themselves."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    if text.isascii() and "\x7f" not in text:
        return text
    return _NOT_ASCII_OR_DEL.sub(_json_escape, text)


def _json_escape(found: re.Match[str]) -> str:
    character = found[0]
    if character.isprintable():
        return character
    return json.dumps(character)[1:-1] if character != "\x7f" else "\\u007f"


def print_line(text: str = "", *, nl: bool = True) -> None:
    """Print text for people on stdout."""
    click.echo(printable(text), nl=nl)


def print_note(text: str) -> None:
    """Print text for people on stderr: hints and progress; nothing with --quiet."""
    if not quiet():
        print_error(text)


def print_error(text: str) -> None:
    """Print what must be read on stderr: errors, and what was asked for there."""
    click.echo(printable(text), err=True)


def quiet() -> bool:
    """Return whether --quiet was given."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(getattr(context.find_root().obj, "quiet", False))


def print_result(value: str | bytes) -> None:
    """Print a result on stdout: shown harmlessly on a terminal, byte for byte into a pipe or file.

    A newline follows. Text that has no UTF-8 form (a lone surrogate) gets a question mark.
    """
    if sys.stdout.isatty():
        text = value if isinstance(value, str) else value.decode("utf-8", "replace")
        click.echo(printable(text))
    else:
        # As bytes: click removes escape sequences from text that goes into a pipe.
        click.echo(value if isinstance(value, bytes) else value.encode("utf-8", "replace"))
