"""Policies on the command line: what a colony may do here, as options, files, and text.

The daemon knows what the fields mean, and checks their values.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cli.core.errors import NOT_FOUND, USAGE, Failure

# Option, field of the policy, and how it is shown.
_LISTS = (
    ("--function", "functions", "Function, or a glob; repeat for more. '*' allows all."),
    ("--executor-type", "executor_types", "Executor type, or a glob; repeat for more."),
    ("--label", "labels", "Label, or a glob; repeat for more."),
)
_NUMBERS = (
    ("--max-waiting", "max_waiting", 0, "Most of its processes that wait here; 0: no limit."),
    ("--max-running", "max_running", 0, "Most of its processes that run here; 0: no limit."),
    ("--rate", "rate", 0, "Most submissions a minute; 0: no limit."),
    ("--messages", "messages", 0, "Most messages of every kind a minute; 0: no limit."),
    ("--max-entries", "max_entries", 0, "Most entries that it leaves in the store; 0: no limit."),
    ("--max-hops", "max_hops", 1, "Most hops from the origin of a process, 1 to 4."),
)
_SIZES = ("max_body", "max_kept")
_FIELDS = (*_SIZES, "forward")


def _size(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    from node.host.config import ByteSize

    if value is None:
        return None
    try:
        return int(ByteSize.parse(int(value) if value.isdigit() else value))
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def policy_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a policy to a command, which gets them as `asked`."""

    def gathered(*args: Any, **kwargs: Any) -> Any:
        names = ["policy_file", *_FIELDS, *(each[1] for each in (*_LISTS, *_NUMBERS))]
        asked = {name: kwargs.pop(name) for name in names}
        return function(*args, asked=asked, **kwargs)

    gathered.__doc__ = function.__doc__
    wrapped: Callable[..., Any] = gathered
    for option, name, help_text in reversed(_LISTS):
        wrapped = click.option(option, name, multiple=True, metavar="NAME", help=help_text)(wrapped)
    for option, name, least, help_text in reversed(_NUMBERS):
        wrapped = click.option(option, name, type=click.IntRange(least), help=help_text)(wrapped)
    wrapped = click.option(
        "--max-body", "max_body", callback=_size, metavar="SIZE",
        help="Largest submission, such as 64KiB; 0: no limit.",
    )(wrapped)  # fmt: skip
    wrapped = click.option(
        "--max-kept", "max_kept", callback=_size, metavar="SIZE",
        help="Most bytes that it leaves in the store, such as 64MiB; 0: no limit.",
    )(wrapped)  # fmt: skip
    wrapped = click.option(
        "--forward/--no-forward", "forward", default=None,
        help="Whether its processes may go on from here to other colonies.",
    )(wrapped)  # fmt: skip
    return click.option(
        "--policy", "policy_file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
        help="A whole policy, TOML or JSON; the other options are laid over it.",
    )(wrapped)  # fmt: skip


def wish(asked: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a request that name the wanted policy: none when no option was given."""
    fields: dict[str, Any] = {}
    if asked["policy_file"] is not None:
        fields["policy"] = _read(asked["policy_file"])
    change = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in asked.items()
        if name != "policy_file" and value not in (None, ())
    }
    if change:
        fields["change"] = change
    return fields


def _read(path: Path) -> dict[str, Any]:
    """Read a file of policy; sizes may be written as text. Raises Failure."""
    from node.host.config import ByteSize

    try:
        text = path.read_text("utf-8")
        value = json.loads(text) if text.lstrip().startswith("{") else tomllib.loads(text)
        for name in _SIZES:
            if isinstance(value.get(name), str):
                value[name] = int(ByteSize.parse(value[name]))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise Failure(
            f"{path}: {reason}",
            code=NOT_FOUND if isinstance(error, FileNotFoundError) else USAGE,
            next_step='TOML such as `functions = ["ping*"]`, fields as in [federation.policy]',
        ) from None
    return dict(value)


def policy_fields(policy: dict[str, Any]) -> list[tuple[str, object]]:
    """Return a policy for people, one line for each field."""
    limits = (
        ("most waiting", "max_waiting", ""),
        ("most running", "max_running", ""),
        ("rate", "rate", " a minute"),
        ("largest body", "max_body", " bytes"),
        ("messages", "messages", " a minute"),
        ("most entries left", "max_entries", ""),
        ("most bytes left", "max_kept", " bytes"),
    )
    return [
        ("functions", ", ".join(policy.get("functions") or ["all"])),
        ("executor types", ", ".join(policy.get("executor_types") or ["all"])),
        ("labels", ", ".join(policy.get("labels") or ["all"])),
        *(
            (title, f"{policy[name]}{unit}" if policy.get(name) else "no limit")
            for title, name, unit in limits
        ),
        ("forward further", "yes" if policy.get("forward") else "no"),
        ("most hops", policy.get("max_hops")),
    ]
