"""Ids and names: how they are made, and which are valid."""

from __future__ import annotations

import re
import secrets

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,62}\Z")

# Longest time limit in seconds: about 31 years, so that every deadline is a date.
MAX_SECONDS = 1_000_000_000


def new_id() -> str:
    """Return a fresh id: 64 random hex characters, as upstream's."""
    return secrets.token_hex(32)


def valid_name(name: str) -> bool:
    """Return whether `name` can name a colony, user or executor: no '/', ':' or control
    characters.
    """
    return NAME.match(name) is not None
