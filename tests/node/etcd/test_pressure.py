"""How full the store is, as a value: what is let in at which use, and what people are told."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from node.etcd.errors import StoreFull
from node.etcd.pressure import MIN_FREE, Level, Need, Pressure

MIB = 2**20


def used(percent: int, quota: int = 100 * MIB) -> Pressure:
    pressure = Pressure(quota)
    pressure.take_in(size=quota, used=percent * quota // 100, alarm=False, counted=0)
    return pressure


def refused(pressure: Pressure) -> set[Need]:
    return {need for need in Need if pressure.refuses(need)}


@pytest.mark.parametrize(
    ("percent", "level", "kinds"),
    [
        (0, Level.OK, set()),
        (79, Level.OK, set()),
        (80, Level.SOFT, {Need.GROWS}),
        (90, Level.FULL, {Need.GROWS, Need.WORKS}),
        (95, Level.FULL, {Need.GROWS, Need.WORKS, Need.ENDS}),
        (300, Level.FULL, {Need.GROWS, Need.WORKS, Need.ENDS}),
    ],
)
def test_what_grows_is_refused_first_and_what_frees_never(
    percent: int, level: Level, kinds: set[Need]
) -> None:
    pressure = used(percent)
    assert (pressure.level, refused(pressure)) == (level, kinds)
    assert pressure.tight is bool(kinds)
    pressure.demand(Need.FREES)
    for need in kinds:
        with pytest.raises(StoreFull, match=r"etcd\.quota.*history\.keep"):
            pressure.demand(need)


def test_what_is_written_between_two_looks_counts() -> None:
    """A flood reaches the limit before anybody looked again, and has the look come earlier."""
    pressure = used(50)
    for _ in range(40):
        assert not pressure.tight or pressure.percent >= 80
        pressure.wrote(MIB)
    assert pressure.look.is_set()
    assert refused(pressure) == {Need.GROWS, Need.WORKS}
    # What the look saw of it is not counted twice, and what came since stays.
    counted = pressure.since
    pressure.wrote(3 * MIB)
    pressure.take_in(size=60 * MIB, used=60 * MIB, alarm=False, counted=counted)
    assert (pressure.since, pressure.percent) == (3 * MIB, 63)


def test_what_etcd_has_not_in_its_file_yet_stays_counted() -> None:
    """Our own etcd gathers writes for two seconds: what it says of its file is that much older."""
    pressure = used(10)
    pressure.wrote(5 * MIB)
    assert pressure.counted(100.0) == 0
    pressure.wrote(3 * MIB)
    assert pressure.counted(102.0) == 0
    counted = pressure.counted(103.0)
    assert counted == 5 * MIB
    pressure.take_in(size=15 * MIB, used=15 * MIB, alarm=False, counted=counted)
    assert (pressure.since, pressure.percent) == (3 * MIB, 18)
    counted = pressure.counted(110.0)
    assert counted == 3 * MIB
    pressure.take_in(size=18 * MIB, used=18 * MIB, alarm=False, counted=counted)
    assert (pressure.since, pressure.percent) == (0, 18)


@example([80, 79])
@given(st.lists(st.integers(0, 100)))
def test_the_level_does_not_flicker(uses: list[int]) -> None:
    """Once reached, a limit holds until the use is 2 % below it."""
    pressure, before = used(0), 0
    for use in uses:
        pressure.take_in(size=0, used=use * MIB, alarm=False, counted=0)
        for need in (Need.GROWS, Need.WORKS, Need.ENDS):
            if before >= need > use:
                assert pressure.refuses(need) == (use >= need - 2)
            elif use >= need:
                assert pressure.refuses(need)
        before = pressure.percent


def test_an_alarm_leaves_what_frees_until_it_is_gone() -> None:
    pressure = used(10)
    pressure.refused()
    assert pressure.look.is_set()
    assert refused(pressure) == {Need.GROWS, Need.WORKS, Need.ENDS}
    assert "NOSPACE" in pressure.told()
    pressure.take_in(size=0, used=0, alarm=False, counted=0)
    assert pressure.level is Level.OK


def test_whose_cluster_it_is_decides_about_the_advice() -> None:
    pressure = used(85)
    assert "etcdctl" not in pressure.told()
    pressure.own = False
    assert "etcdctl alarm disarm" in pressure.told()


def test_a_disk_that_runs_full_stops_what_grows_and_is_told() -> None:
    pressure = used(10)
    pressure.place = "/var/lib/x"
    pressure.take_disk(MIN_FREE - 1)
    assert refused(pressure) == {Need.GROWS}
    assert "the disk of /var/lib/x" in pressure.told()
    assert "etcd.quota" not in pressure.told()
    pressure.take_disk(MIN_FREE)
    assert (pressure.level, pressure.told()) == (Level.OK, "")


def test_without_a_quota_nothing_is_refused() -> None:
    pressure = Pressure()
    pressure.wrote(2**60)
    pressure.take_in(size=2**60, used=2**60, alarm=True, counted=0)
    assert not pressure.tight
