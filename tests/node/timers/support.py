"""Crons and generators for tests."""

from __future__ import annotations

import datetime
from typing import Any

from node.store.crons import Cron
from node.store.generators import Generator
from tests.support.clocked import ANN


def cron(**changes: Any) -> Cron:
    """A cron of the test's colony, without an id."""
    fields: dict[str, Any] = {"cronid": "", "colonyname": "dev", "name": "beat", "interval": 10}
    fields |= {"initiatorid": ANN, "initiatorname": "ann"}
    return Cron(**(fields | changes))


def generator(**changes: Any) -> Generator:
    """A generator of the test's colony, without an id."""
    fields: dict[str, Any] = {"generatorid": "", "colonyname": "dev", "name": "frames"}
    fields |= {"initiatorid": ANN, "initiatorname": "ann", "trigger": 3}
    return Generator(**(fields | changes))


def seconds_of(text: str) -> int:
    """Whole Unix seconds of a time on the wire."""
    return int(datetime.datetime.fromisoformat(text[:19] + "+00:00").timestamp())
