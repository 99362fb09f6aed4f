"""Cron expressions in upstream's dialect: their meaning, and the next moment that they name.

`cronsim` knows the calendar; `crons` decides when a cron fires, and what then happens.
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from node.model.ids import MAX_SECONDS
from node.model.types import SECOND

UTC = ZoneInfo("UTC")
_LONGEST = 256
_DESCRIPTORS = {
    "@yearly": "0 0 0 1 1 *",
    "@annually": "0 0 0 1 1 *",
    "@monthly": "0 0 0 1 * *",
    "@weekly": "0 0 0 * * 0",
    "@daily": "0 0 0 * * *",
    "@midnight": "0 0 0 * * *",
    "@hourly": "0 0 * * * *",
}
_BOUNDS = ((0, 59), (0, 59), (0, 23), (1, 31), (1, 12), (0, 6))
_NAMES = {
    4: ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"),
    5: ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"),
}
# Go's units of duration, in nanoseconds.
_UNITS = {"ns": 1, "us": 1_000, "µs": 1_000, "ms": 1_000_000, "s": SECOND}
_UNITS |= {"m": 60 * SECOND, "h": 3600 * SECOND}
_PART = re.compile(r"(\d{1,12}(?:\.\d{0,9})?)(ns|us|µs|ms|s|m|h)")
# Next moments that are looked at before an expression counts as naming none.
_TRIES = 4000


class ScheduleError(ValueError):
    """An expression without a meaning, or without any moment."""


@dataclass(frozen=True)
class FixedInterval:
    """A constant distance in seconds."""

    seconds: int


@dataclass(frozen=True)
class CronTimes:
    """The moments that six fields name on the clocks of a zone."""

    fields: str
    zone: ZoneInfo


def local_zone(environ: Mapping[str, str], file: Path = Path("/etc/localtime")) -> ZoneInfo:
    """Return the zone of this machine: `TZ` if it names one, else `file`, else UTC."""
    name = environ.get("TZ")
    if name is not None:
        try:
            return _zone(name.removeprefix(":"))
        except ScheduleError:
            pass
    try:
        with open(file, "rb") as content:
            return ZoneInfo.from_file(content, key="Local")
    except (OSError, ValueError):
        return UTC


def parse(text: str, local: ZoneInfo) -> FixedInterval | CronTimes:
    """Read an expression; `local` is the zone of an expression that names none. Raises
    ScheduleError.

    Six fields, seconds first, with names, ranges, lists, steps and `?`; a `TZ=` or `CRON_TZ=` in
    front; or a descriptor (`@hourly`, `@every 5m`). As upstream, and cronsim's `L` and `#`.
    """
    if len(text) > _LONGEST:
        raise ScheduleError(f"at most {_LONGEST} characters")
    zone = local
    found = re.match(r"\s*(?:CRON_)?TZ=(\S*)\s*(.*)\Z", text, re.DOTALL)
    if found is not None:
        zone = local if found[1] == "Local" else _zone(found[1])
        text = found[2]
    text = text.strip()
    if text.startswith("@every "):
        return FixedInterval(_duration(text.removeprefix("@every ").strip()))
    if text.startswith("@"):
        if text not in _DESCRIPTORS:
            raise ScheduleError(f"{text!r} is no descriptor: @every and {', '.join(_DESCRIPTORS)}")
        text = _DESCRIPTORS[text]
    fields = text.upper().split()
    if len(fields) != 6:
        raise ScheduleError(
            f"six fields are needed (second minute hour day month weekday), not {len(fields)}"
        )
    fields = [_plain(field, place) for place, field in enumerate(fields)]
    schedule = CronTimes(" ".join(fields), zone)
    try:
        CronSim(schedule.fields, datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC))
    except CronSimError as error:
        message = str(error)
        raise ScheduleError(message[:1].lower() + message[1:]) from None
    return schedule


def _plain(field: str, place: int) -> str:
    """Return a field in cronsim's dialect, which has no `?` and reads a star with a step otherwise.

    With days of the month and of the week both restricted, either may match. A field counts as
    unrestricted if it has a star without a step: to upstream anywhere, to cronsim at its start.
    """
    low, high = _BOUNDS[place]
    items: list[str] = []
    for item in field.split(","):
        span, slash, step = item.partition("/")
        if span in ("*", "?"):
            if not slash or step == "1":
                return "*"
            span = f"{low}-{high}"
        elif slash and "-" not in span:
            span = f"{span}-{high}"
        first, dash, last = (_number(part, place) for part in span.partition("-"))
        # cronsim takes a stepped range of one value for a range without an end.
        alone = bool(dash) and first == last and re.fullmatch("0*[1-9][0-9]*", step) is not None
        items.append(first if alone else span + slash + step)
    return ",".join(items)


def _number(text: str, place: int) -> str:
    """Return a value without its name or leading zeros, for comparison; other text unchanged."""
    names = _NAMES.get(place, ())
    if text in names:
        return str(names.index(text) + _BOUNDS[place][0])
    return text.lstrip("0") or "0" if text.isdecimal() else text


@lru_cache(maxsize=256)
def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name or "UTC")
    except (OSError, ValueError):  # ZoneInfoNotFoundError is a KeyError, below
        raise ScheduleError(f"time zone {name!r} is not usable") from None
    except KeyError:
        raise ScheduleError(
            f"time zone {name!r} is unknown to this server (does it have the tzdata package?)"
        ) from None


def _duration(text: str) -> int:
    """Return a duration in Go's notation as whole seconds, at least one, as upstream does."""
    total, end = 0.0, 0
    for part in _PART.finditer(text):
        if part.start() != end:
            break
        total += float(part[1]) * _UNITS[part[2]]
        end = part.end()
    if not text or end != len(text):
        raise ScheduleError(f"{text!r} is no duration such as 90s, 5m or 1h30m")
    if total > MAX_SECONDS * SECOND:
        raise ScheduleError(f"at most {MAX_SECONDS} seconds")
    return max(1, int(total) // SECOND)


def next_moment(schedule: CronTimes, after: int) -> int:
    """Return the first moment after `after`, in Unix ns. Raises ScheduleError when there is none.

    As upstream, a time that is left out when clocks are put forward is left out here, and a time
    that comes twice is taken twice.
    """
    seconds = after // SECOND
    try:
        moments = CronSim(
            schedule.fields,
            datetime.datetime.fromtimestamp(seconds, datetime.UTC).astimezone(schedule.zone),
        )
        for _ in range(_TRIES):
            moment = int(next(moments).timestamp()) * SECOND
            # Where clocks are changed by less than an hour, cronsim may step back over it.
            if moment > after:
                return moment
    except (StopIteration, OverflowError, OSError, ValueError):
        pass
    raise ScheduleError("no moment is named by these fields")


def environment_zone() -> ZoneInfo:
    """Return the zone of this machine by its environment."""
    return local_zone(os.environ)
