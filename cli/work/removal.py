"""Removal of all processes or workflows of one state: the options, and the call.

One at a time is removed by `cli.work.manage` and `cli.work.workflow`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from cli.core.errors import USAGE, Failure
from cli.core.output import STATES, print_done
from cli.core.session import Session, confirm

REMOVABLE = ("waiting", "successful", "failed", "cancelled")
# Upstream's words, for the groups of both.
OLD_WORDS: dict[str, tuple[str, ...]] = {
    "rm-all": ("rm", "--all"),
    "removeall": ("rm", "--all"),
    "ps": ("ls", "--state", "running"),
    "psw": ("ls", "--state", "waiting"),
    "pss": ("ls", "--state", "successful"),
    "psf": ("ls", "--state", "failed"),
    "psc": ("ls", "--state", "cancelled"),
}


def removal_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --all, --state and --yes to a command that removes."""
    for option in (
        click.option("--yes", is_flag=True, help="Don't ask."),
        click.option(
            "--state", type=click.Choice(REMOVABLE), default=None, help="With --all: of this state."
        ),
        click.option("--all", "everything", is_flag=True, help="All of them, as the owner."),
    ):
        function = option(function)
    return function


def removed_all(
    session: Session,
    payloadtype: str,
    noun: str,
    identifier: str | None,
    *,
    everything: bool,
    state: str | None,
    yes: bool,
) -> bool:
    """Remove all of one state, or all; return False if one is to be removed. Raises Failure."""
    if everything == bool(identifier):
        raise Failure("give an id or --all, one of them", code=USAGE)
    if not everything:
        if state is not None:
            raise Failure("--state goes with --all", code=USAGE)
        return False
    colony = session.colony()
    confirm(yes, f"remove all {state or ''} {noun} of colony {colony}".replace("  ", " "))
    fields = {"colonyname": colony, "state": -1 if state is None else STATES.index(state)}
    session.call(payloadtype, fields, owner=True, timeout=600.0)
    print_done(session, {"removed": state or "all"}, f"removed {state or 'all'} {noun}")
    return True
