"""Numbers of seconds on the command line."""

from __future__ import annotations

from typing import Any

import click


class Seconds(click.ParamType[float]):
    """A number of seconds, `least` or more."""

    name = "seconds"

    def __init__(self, least: float = 0.0) -> None:
        self.least = least

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the seconds; anything else, NaN among it, is wrong usage."""
        seconds: float = click.FLOAT.convert(value, param, ctx)
        if not seconds >= self.least:  # NaN is neither more nor less
            self.fail(f"{value}: give {self.least:g} seconds or more", param, ctx)
        return seconds
