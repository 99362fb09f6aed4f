"""Cron expressions in upstream's dialect, against a plain model of a calendar."""

from __future__ import annotations

import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.model.types import SECOND
from node.timers.cronexpr import (
    UTC,
    CronTimes,
    FixedInterval,
    ScheduleError,
    local_zone,
    next_moment,
    parse,
)

DAYS = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"]
MONTHS = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]


def at(text: str) -> int:
    """Unix ns of a time in ISO notation."""
    return int(datetime.datetime.fromisoformat(text).timestamp()) * SECOND


def following(expression: str, after: str, zone: ZoneInfo = UTC) -> str:
    """The next moment in the same notation, in UTC."""
    plan = parse(expression, zone)
    assert isinstance(plan, CronTimes)
    moment = next_moment(plan, at(after))
    return datetime.datetime.fromtimestamp(moment / SECOND, datetime.UTC).isoformat()[:19]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("0/1 * * * * *", "2026-01-05T12:00:01"),
        ("30 * * * * *", "2026-01-05T12:00:30"),
        ("0/20 * * * * *", "2026-01-05T12:00:20"),
        ("50/20 * * * * *", "2026-01-05T12:00:50"),
        ("59 3 15 * * MON", "2026-01-05T15:03:59"),
        ("0 0 15 24 12 *", "2026-12-24T15:00:00"),
        ("0 0 9-17/4 ? * mon-fri", "2026-01-05T13:00:00"),
        ("0 0 0 1 jan,jul ?", "2026-07-01T00:00:00"),
        ("0 0 12 ? * 0", "2026-01-11T12:00:00"),
        ("0 0 12 13 * 5", "2026-01-09T12:00:00"),  # either the 13th or a Friday
        ("0 0 12 */2 * 2", "2026-01-06T12:00:00"),  # a star with a step counts as a restriction
        ("0 0 12 5-5/3 * *", "2026-02-05T12:00:00"),
        ("0 0 12 ? * 1-MON/2", "2026-01-12T12:00:00"),
        ("0 0 12 * * 1/3", "2026-01-08T12:00:00"),  # Monday and Thursday, not Sunday as a 7th
        ("0 0 12 *,9 * TUE", "2026-01-06T12:00:00"),
        ("  0   30 6 * * *  ", "2026-01-06T06:30:00"),
        ("0 0 12 L * ?", "2026-01-31T12:00:00"),  # not upstream's: the last of the month
        ("0 0 12 ? * 1#2", "2026-01-12T12:00:00"),  # nor this: the second Monday
        ("@yearly", "2027-01-01T00:00:00"),
        ("@annually", "2027-01-01T00:00:00"),
        ("@monthly", "2026-02-01T00:00:00"),
        ("@weekly", "2026-01-11T00:00:00"),
        ("@daily", "2026-01-06T00:00:00"),
        ("@midnight", "2026-01-06T00:00:00"),
        ("@hourly", "2026-01-05T13:00:00"),
        ("TZ=Asia/Tokyo 0 0 6 * * *", "2026-01-05T21:00:00"),
        ("CRON_TZ=America/New_York @daily", "2026-01-06T05:00:00"),
        ("TZ= 0 0 6 * * *", "2026-01-06T06:00:00"),
    ],
)
def test_what_expressions_name(expression: str, expected: str) -> None:
    assert following(expression, "2026-01-05T12:00:00+00:00") == expected


def test_the_zone_is_the_machines_unless_one_is_named() -> None:
    tokyo = ZoneInfo("Asia/Tokyo")
    noon = "2026-01-05T12:00:00+00:00"
    assert following("0 0 6 * * *", noon, tokyo) == "2026-01-05T21:00:00"
    assert following("TZ=UTC 0 0 6 * * *", noon, tokyo) == "2026-01-06T06:00:00"
    assert following("TZ=Local 0 0 6 * * *", noon, tokyo) == "2026-01-05T21:00:00"


def test_where_the_machine_has_its_zone_from(tmp_path: Path) -> None:
    file = tmp_path / "localtime"
    assert local_zone({}, file) == UTC
    file.write_bytes(Path("/usr/share/zoneinfo/Asia/Tokyo").read_bytes())
    summer = datetime.datetime(2026, 7, 1)
    assert local_zone({}, file).utcoffset(summer) == datetime.timedelta(hours=9)
    assert local_zone({"TZ": "nonsense/zone"}, file).utcoffset(summer) == datetime.timedelta(
        hours=9
    )
    assert local_zone({"TZ": ""}, file) == UTC
    assert local_zone({"TZ": ":Europe/Rome"}, file) == ZoneInfo("Europe/Rome")


def test_clocks_that_are_changed() -> None:
    rome = ZoneInfo("Europe/Rome")
    # 2:30 is left out on 29 March 2026, and comes twice on 25 October: as upstream has both.
    assert following("0 30 2 * * *", "2026-03-28T12:00:00+01:00", rome) == "2026-03-30T00:30:00"
    first = following("0 30 2 * * *", "2026-10-24T12:00:00+02:00", rome)
    assert first == "2026-10-25T00:30:00"
    assert following("0 30 2 * * *", f"{first}+00:00", rome) == "2026-10-25T01:30:00"
    # What runs each second does so through both.
    assert following("* * * * * *", "2026-10-25T00:59:59+00:00", rome) == "2026-10-25T01:00:00"
    assert following("* * * * * *", "2026-03-29T00:59:59+00:00", rome) == "2026-03-29T01:00:00"


@pytest.mark.parametrize(
    ("expression", "seconds"),
    [
        ("@every 5m", 300),
        ("@every 1h30m10s", 5410),
        ("@every 1.5h", 5400),
        ("@every 90s", 90),
        ("@every 300ms", 1),
        ("TZ=Asia/Tokyo @every 2s", 2),
        ("@every 2500ms", 2),
    ],
)
def test_every(expression: str, seconds: int) -> None:
    assert parse(expression, UTC) == FixedInterval(seconds)


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("", "six fields"),
        ("* * * * *", "six fields .* not 5"),
        ("60 * * * * *", "bad second"),
        ("* * 24 * * *", "bad hour"),
        ("* * * 0 * *", "bad day-of-month"),
        ("* * * * 13 *", "bad month"),
        ("* * * * * 8", "bad day-of-week"),
        ("*/0 * * * * *", "bad second"),
        ("*/ * * * * *", "bad second"),
        ("5-1 * * * * *", "bad second"),
        ("1,,2 * * * * *", "bad second"),
        ("-1 * * * * *", "bad second"),
        ("foo * * * * *", "bad second"),
        ("0 0 0 30 2 *", "bad day-of-month"),
        ("@fortnightly", "no descriptor"),
        ("@every", "no descriptor"),
        ("@every soon", "no duration"),
        ("@every -5m", "no duration"),
        ("@every 5", "no duration"),
        ("@every 999999999999h", "at most"),
        ("TZ=Mars/Olympus * * * * * *", "unknown"),
        ("TZ=../../etc/passwd * * * * * *", "not usable"),
        ("TZ=Europe * * * * * *", "time zone"),
        ("TZ=UTC", "six fields"),
        ("*" * 300, "at most 256"),
    ],
)
def test_what_means_nothing(expression: str, words: str) -> None:
    with pytest.raises(ScheduleError, match=words):
        parse(expression, UTC)


@st.composite
def fields(draw: st.DrawFn, low: int, high: int, names: list[str]) -> tuple[str, set[int], bool]:
    """A field, the values it means, and whether upstream counts it as a star."""

    def say(value: int) -> str:
        named: bool = bool(names) and draw(st.booleans())
        return names[value - low] if named else str(value)

    texts, values, star = list[str](), set[int](), False
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["star", "step", "one", "span", "from"]))
        first = draw(st.integers(low, high))
        last = draw(st.integers(first, high))
        step = draw(st.integers(2, 20))
        if kind == "star":
            texts.append(draw(st.sampled_from(["*", "?", "*/1"])))
            values.update(range(low, high + 1))
            star = True
        elif kind == "step":
            texts.append(f"*/{step}")
            values.update(range(low, high + 1, step))
        elif kind == "one":
            texts.append(say(first))
            values.add(first)
        elif kind == "span":
            step = draw(st.integers(1, 5))
            texts.append(f"{say(first)}-{say(last)}/{step}" if step > 1 else f"{first}-{last}")
            values.update(range(first, last + 1, step))
        else:
            texts.append(f"{say(first)}/{step}")
            values.update(range(first, high + 1, step))
    return ",".join(texts), values, star


BOUNDS = [(0, 59, []), (0, 59, []), (0, 23, []), (1, 31, []), (1, 12, MONTHS), (0, 6, DAYS)]
ANY_TIME = st.integers(at("1990-01-01T00:00:00+00:00"), at("2060-01-01T00:00:00+00:00"))


@settings(deadline=None, max_examples=60)
@given(st.tuples(*[fields(*bounds) for bounds in BOUNDS]), ANY_TIME)
def test_the_next_moment_is_that_of_a_plain_calendar(
    drawn: tuple[tuple[str, set[int], bool], ...], after: int
) -> None:
    (_, seconds, _), (_, minutes, _), (_, hours, _), (_, doms, dom_star), (_, months, _), dow = (
        drawn
    )
    _, dows, dow_star = dow

    def fits(day: datetime.date) -> bool:
        dom, weekday = day.day in doms, day.isoweekday() % 7 in dows
        either = (dom and weekday) if dom_star or dow_star else (dom or weekday)
        return day.month in months and either

    def expected() -> int:
        start = datetime.datetime.fromtimestamp(after // SECOND, datetime.UTC)
        day = start.date()
        for _ in range(366 * 45):
            if fits(day):
                for hour in sorted(hours):
                    for minute in sorted(minutes):
                        head = datetime.datetime(
                            day.year, day.month, day.day, hour, minute, tzinfo=datetime.UTC
                        )
                        if head + datetime.timedelta(minutes=1) <= start:
                            continue
                        for second in sorted(seconds):
                            moment = int(head.timestamp() + second) * SECOND
                            if moment > after:
                                return moment
            day += datetime.timedelta(days=1)
        return 0

    try:
        plan = parse(" ".join(text for text, _, _ in drawn), UTC)
        assert isinstance(plan, CronTimes)
        found = next_moment(plan, after)
    except ScheduleError:
        found = 0
    assert found == expected()


ZONES = ["Europe/Rome", "America/New_York", "Australia/Lord_Howe", "America/Sao_Paulo", "Asia/Gaza"]


@settings(deadline=None, max_examples=60)
@given(st.tuples(*[fields(*bounds) for bounds in BOUNDS[:3]]), ANY_TIME, st.sampled_from(ZONES))
def test_the_next_moment_is_after_now_wherever_clocks_are_changed(
    drawn: tuple[tuple[str, set[int], bool], ...], after: int, zone: str
) -> None:
    text = " ".join(text for text, _, _ in drawn)
    plan = parse(f"TZ={zone} {text} * * *", UTC)
    assert isinstance(plan, CronTimes)
    found = next_moment(plan, after)
    assert after < found <= after + 3 * 86_400 * SECOND
