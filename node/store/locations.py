"""Locations in the store: one key for each, by name.

Values in, transactions out.
"""

from __future__ import annotations

from urllib.parse import quote

import msgspec

from node.store import keys


class Location(msgspec.Struct):
    """A named place where executors are; `long` and `lat` in degrees."""

    name: str
    colonyname: str
    locationid: str = ""
    description: str = ""
    long: float = 0.0
    lat: float = 0.0


def locations(colony: str) -> str:
    """Return the prefix of the locations of a colony."""
    return f"{keys.ROOT}location/{colony}/"


def location(colony: str, name: str) -> str:
    """Return the key of a location; its name may hold any character."""
    return locations(colony) + quote(name, safe="")
