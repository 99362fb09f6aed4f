"""`colony help`: what no single command's --help can say, by topic.

The texts are in `cli.ops.topics`; man pages are made of the same by `scripts/man`.
"""

from __future__ import annotations

import difflib

import click

from cli.core.errors import USAGE, Failure
from cli.core.output import print_json
from cli.core.session import Session, colony_command
from cli.core.terminal import print_line
from cli.core.words import WordGroup
from cli.ops.topics import TOPICS


def _topics() -> str:
    width = max(map(len, TOPICS))
    lines = [f"  {name.ljust(width)}  {title}" for name, (title, _) in TOPICS.items()]
    return "\n".join(["Topics, each by `colony help TOPIC`:", "", *lines])


def topic_text(name: str) -> str:
    """Return a topic as it is printed: its title, and its text."""
    title, text = TOPICS[name]
    body = text.strip("\n")
    return f"{title}\n\n{body}"


def _of_command(words: tuple[str, ...]) -> str:
    """Return the --help of a command. Raises Failure (usage)."""
    context = click.get_current_context().find_root()
    command: click.Command = context.command
    left = list(words)
    while left:
        if not isinstance(command, WordGroup):
            raise Failure(f"{context.command_path} has no commands", code=USAGE)
        try:
            name, found, left = command.resolve_command(context, left)
        except click.UsageError as error:
            near = difflib.get_close_matches(words[0], TOPICS, n=1)
            raise Failure(
                error.message.replace("No such command", "no topic and no command"),
                code=USAGE,
                next_step=f"`colony help{' ' + near[0] if near else ''}`",
            ) from None
        if found is None:
            break
        context = click.Context(found, info_name=name, parent=context)
        command = found
        left = [] if left and left[0].startswith("-") else left
    return command.get_help(context)


@colony_command("help", "colony help", "colony help keys", "colony help process ls")
@click.argument("words", nargs=-1, metavar="[TOPIC | COMMAND...]")
def help_(session: Session, words: tuple[str, ...]) -> None:
    """Explain a topic, or show the help of a command; alone it lists the topics."""
    if not words:
        text = f"{_topics()}\n\n`colony --help` lists the commands."
        value: object = {name: title for name, (title, _) in TOPICS.items()}
    else:
        name = " ".join(words)
        text = topic_text(name) if name in TOPICS else _of_command(words)
        value = {"name": name, "text": text}
    if session.as_json:
        print_json(value)
    else:
        print_line(text)
