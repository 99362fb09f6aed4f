"""The command line as one language: its words, its letters, its help, and what went before."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from cli.core.words import SHORT
from cli.main import COMMANDS, main
from cli.ops.topics import TOPICS
from node.host.home import init_home
from tests.cli.support import TREE

# One word a meaning. A new command takes one of these, or its own reason to be here.
VERBS = {
    *("ls", "show", "add", "rm", "set", "update", "change-id", "rotate", "id"),
    *("run", "wait", "cancel", "pause", "resume", "why", "resolve"),
    *("approve", "reject", "trust", "block", "forget", "invite", "join", "ping", "policy", "clock"),
    *("name",),
    *("assign", "close", "fail", "set-output", "add-child", "add-log", "set-status"),
    *("get", "put", "sync", "pack", "send", "read", "search", "verify", "reconcile", "doctor"),
    *("logs", "history", "stats", "status", "alive"),
    *("install", "uninstall"),
    # hidden: upstream's names of `run`
    "exec",
}
NOUNS = {"worker", "label", "snapshot", "definition", "invite"}  # groups within groups

# What was typed before → the command that answers now.
OLD = {
    "peers ls": "peer ls",
    "peers invite revoke": "peer invite rm",
    "routes ls": "route ls",
    "routes explain": "route why",
    "attribute get": "attribute show",
    "blueprint get": "blueprint show",
    "blueprint definition get": "blueprint definition show",
    "blueprint log": "blueprint logs",
    "channel follow": "channel read",
    "cluster info": "cluster show",
    "server info": "server show",
    "file info": "file show",
    "file labels": "file label ls",
    "file snapshot create": "file snapshot add",
    "file snapshot info": "file snapshot show",
    "file snapshot download": "file snapshot get",
    "executor create": "executor add",
    "executor log": "executor add-log",
    "function register": "function add",
    "key generate": "key add",
    "log get": "log show",
    "process hist": "process history",
    "process output": "process set-output",
    "process rm-all": "process rm",
    "workflow rm-all": "workflow rm",
    "workflow submit": "workflow run",
    # upstream's words
    "process get": "process show",
    "process ps": "process ls",
    "process psw": "process ls",
    "workflow psf": "workflow ls",
    "process remove": "process rm",
    "process removeall": "process rm",
    "user chid": "user change-id",
    "colony check": "colony show",
    "fs ls": "file ls",
    "fs snapshot remove": "file snapshot rm",
    "fs label ls": "file label ls",
    "security generate": "key add",
    "security id": "key id",
    "function submit": "function exec",
}


def typed(*words: str) -> Result:
    """The end of `colony WORDS`, without a home or a daemon."""
    return CliRunner().invoke(main, words, env={}, prog_name="colony")


@pytest.mark.parametrize("name", list(TREE))
def test_a_command_has_help_an_example_and_words_of_the_language(name: str) -> None:
    command, words = TREE[name], name.split()
    shown = typed(*words, "-h")
    assert shown.exit_code == 0
    assert f"colony {name}" in shown.output.split("Example")[-1]
    assert (command.help or "").strip()
    assert shown.output == typed("help", *words).output
    assert "--json" in shown.output or isinstance(command, click.Group)
    if len(words) > 1:
        assert words[-1] in (NOUNS if isinstance(command, click.Group) else VERBS)
    elif isinstance(command, click.Group):
        assert words[0] == "process" or not words[0].endswith("s"), "a noun is singular"


def test_a_letter_means_the_same_in_every_command() -> None:
    seen: dict[str, set[str]] = {}
    for command in [main, *TREE.values()]:
        for option in command.params:
            if isinstance(option, click.Option):
                letters = [name for name in option.opts if not name.startswith("--")]
                names = [name for name in option.opts if name.startswith("--")]
                for letter in letters:
                    seen.setdefault(letter, set()).update(names)
    assert {letter: tuple(sorted(names)) for letter, names in seen.items()} == {
        letter: tuple(sorted(names)) for letter, names in SHORT.items() if letter != "-h"
    }
    assert "-h" not in seen


@pytest.mark.parametrize("old", list(OLD))
def test_an_old_word_goes_on_working_and_is_shown_nowhere(old: str) -> None:
    words = old.split()
    shown = typed(*words, "--help")
    assert shown.exit_code == 0
    assert shown.output.startswith(f"Usage: colony {OLD[old]} ")
    assert old not in TREE or TREE[old].hidden
    for number in range(len(words)):
        listed = typed(*OLD[old].split()[:number], "--help").output
        hidden = words[number] not in {*" ".join(TREE).split()}
        assert not hidden or not re.search(rf"^  {words[number]}\s", listed, re.M)


def test_old_words_bring_their_options(tmp_path: Path) -> None:
    init_home(tmp_path / "home", "dev", {})
    home = ["--home", str(tmp_path / "home")]
    for words, says in (
        (["process", "removeall"], "remove all processes of colony dev"),
        (["workflow", "rm-all", "--state", "failed"], "remove all failed workflows"),
    ):
        refused = CliRunner().invoke(main, [*home, *words], env={})
        assert (refused.exit_code, says in refused.stderr) == (2, True)
    for words in (["rm"], ["rm", "ab", "--all"], ["rm", "ab", "--state", "failed"]):
        assert CliRunner().invoke(main, [*home, "process", *words], env={}).exit_code == 2


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("process lss", "'ls'"),
        ("process submitt", ""),
        ("workflow submitt", "'run'"),
        ("peer trst", "'trust'"),
        ("peer invite revok", "'rm'"),
        ("file snapshot downlod", "'get'"),
        ("securty", "'key'"),
    ],
)
def test_a_misspelt_word_is_suggested_below_the_top_level_too(text: str, meant: str) -> None:
    refused = typed(*text.split())
    assert refused.exit_code == 2
    assert f"No such command {text.split()[-1]!r}." in refused.stderr
    assert ("Did you mean" in refused.stderr) is bool(meant)
    assert meant in refused.stderr


def test_pause_and_resume_are_where_a_person_looks() -> None:
    for word in ("pause", "resume"):
        assert TREE[word] is TREE[f"process {word}"]


# -- topics ------------------------------------------------------------------------------


def test_help_lists_topics_and_explains_each() -> None:
    listed = typed("help").output
    for name, (title, text) in TOPICS.items():
        assert f"  {name}" in listed
        told = typed("help", name)
        assert (told.exit_code, told.output) == (0, f"{title}\n{text}")
        assert max(map(len, told.output.splitlines())) < 80
        value = json.loads(typed("help", name, "--json").output)
        assert value["name"] == name
    lost = typed("help", "federatoin")
    assert (lost.exit_code, "`colony help federation`" in lost.stderr) == (2, True)


def test_the_commands_in_topics_are_commands() -> None:
    quoted = re.findall(r"`colony ([a-z -]+)", " ".join(text for _, text in TOPICS.values()))
    lines = [
        found[1]
        for _, text in TOPICS.values()
        for line in text.splitlines()
        if (found := re.match(r"\s*(?:lab-\d\$ )?colony ([a-z -]+)", line))
    ]
    assert len(quoted) + len(lines) > 20
    for text in [*quoted, *lines]:
        words = text.split()
        assert words[0] in COMMANDS, text
        group = isinstance(TREE[words[0]], click.Group)
        assert not group or len(words) < 2 or " ".join(words[:2]) in TREE, text
