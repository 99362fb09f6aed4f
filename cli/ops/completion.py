"""`colony completion`: the script that lets a shell complete commands and options.

click completes; here the script is only printed.
"""

from __future__ import annotations

import click

from cli.core.session import Session, colony_command
from cli.core.terminal import print_line


@colony_command(
    "completion",
    "colony completion bash > ~/.local/share/bash-completion/completions/colony",
    "colony completion fish > ~/.config/fish/completions/colony.fish",
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(session: Session, shell: str) -> None:
    """Print the completion script for a SHELL; its own start-up file may also `eval` it.

    For zsh put it as _colony into a directory of $fpath, before compinit is called.
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    root = click.get_current_context().find_root().command
    made = kind(root, {}, "colony", "_COLONY_COMPLETE")
    # Not source(): it asks the installed bash for its version, and may be piped to another host.
    print_line(made.source_template % made.source_vars())
