"""The words of the command line: groups with one verb a meaning, and short options.

Old words, and those of upstream's `colonies`, go on working. They are in no help and no completion.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType

import click
from click.shell_completion import CompletionItem

# An old word → what it stands for, which may have options with it.
Aliases = Mapping[str, "str | tuple[str, ...]"]

# What a person may type in any group that has no command of that name.
_EVERYWHERE: Aliases = {
    "get": "show",
    "info": "show",
    "check": "show",
    "list": "ls",
    "create": "add",
    "new": "add",
    "remove": "rm",
    "delete": "rm",
    "chid": "change-id",
    "log": "logs",
}

# A letter → the long names that have it; it means the same in every command. Options of the first
# name get it on their own.
SHORT: Mapping[str, tuple[str, ...]] = {
    "-F": ("--func",),
    "-T": ("--executor-type", "--type"),
    "-a": ("--as",),
    "-c": ("--colony",),
    "-e": ("--executor",),
    "-f": ("--follow",),
    "-g": ("--generation",),
    "-h": ("--help",),
    "-j": ("--json",),
    "-k": ("--kwargs",),
    "-l": ("--label",),
    "-n": ("--count",),
    "-p": ("--process",),
    "-q": ("--quiet",),
    "-s": ("--state",),
    "-t": ("--time",),
    "-V": ("--version",),
    "-w": ("--wait",),
    "-y": ("--yes",),
}
_LETTERS = {names[0]: letter for letter, names in SHORT.items()}


class _Known(click.types.StringParamType):
    """Text for which the daemon may have suggestions."""

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from cli.core.complete import complete

        return complete(ctx, param, incomplete)


def furnish(command: click.Command) -> None:
    """Give the options of a command their letters, and what is text its completion."""
    for parameter in command.params:
        if isinstance(parameter.type, click.types.StringParamType):
            parameter.type = _Known()
        if isinstance(parameter, click.Option):
            for name in [name for name in parameter.opts if name in _LETTERS]:
                if _LETTERS[name] not in parameter.opts:
                    parameter.opts.insert(0, _LETTERS[name])


def spelled(command: click.Command, old: Mapping[str, str]) -> None:
    """Let options of a command also go by an old name, which no help has. No dashes."""
    command.context_settings["token_normalize_func"] = lambda name: old.get(name, name)


class WordGroup(click.Group):
    """A group that knows old words, and suggests a command for a misspelt one."""

    aliases: Aliases = MappingProxyType({})

    def words(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands that are shown."""
        found = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        return [name for name, command in found if command is not None and not command.hidden]

    def meant(self, ctx: click.Context, word: str) -> tuple[str, ...]:
        """Return the words that an old one stands for; () if it stands for nothing here."""
        found = self.aliases.get(word) or _EVERYWHERE.get(word, ())
        words = (found,) if isinstance(found, str) else found
        return words if words and self.get_command(ctx, words[0]) is not None else ()

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command of the first word, and the words for it. Raises UsageError."""
        name = args[0]
        if self.get_command(ctx, name) is None:
            words = self.meant(ctx, name)
            if words:
                args = [*words, *args[1:]]
            elif not ctx.resilient_parsing and not name.startswith("-"):
                raise click.UsageError(f"No such command {name!r}.{self._hint(ctx, name)}", ctx)
        return super().resolve_command(ctx, args)

    def _hint(self, ctx: click.Context, name: str) -> str:
        shown = self.words(ctx)
        known = {word: word for word in shown}
        for old in {**_EVERYWHERE, **self.aliases}:
            if words := self.meant(ctx, old):
                known.setdefault(old, " ".join(words))
        near = difflib.get_close_matches(name, known, n=3)
        meant = list(dict.fromkeys(known[word] for word in near))
        return f" Did you mean {' or '.join(map(repr, meant))}?" if meant else ""
