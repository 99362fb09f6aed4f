"""Routes without any colony: which one decides, who is eligible, who is chosen, how often."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.routing.capabilities import STALE, Statement
from federation.routing.rules import (
    ALWAYS,
    NO_EXECUTOR,
    LocalExecutors,
    RemoteColony,
    Route,
    RoutedProcess,
    RouteOption,
    RouteReport,
    decide,
    explain,
    odds,
    pick,
    read_routes,
)
from federation.wire.messages import Capabilities, Offer
from node.host.config import ConfigError, RouteConfig, load_config

SUBJECT = RoutedProcess("upper", "cli", "red", age=10.0)


def peer(
    number: int = 1,
    *,
    functions: tuple[str, ...] = ("*",),
    executortype: str = "cli",
    state: str = "trusted",
    age: float = 1.0,
    waiting: int = 0,
    sent: int = 0,
    **said: object,
) -> RemoteColony:
    offer = Offer(list(functions), executors=2, free=2, waiting=waiting)
    capabilities = Capabilities(1, types={executortype: offer}, **said)  # type: ignore[arg-type]
    statement = Statement(capabilities, 0.0, Counter({executortype: sent}))
    return RemoteColony(f"{number:064x}", f"peer-{number}", state, statement, age)


def only(
    route: Route,
    *others: RemoteColony,
    subject: RoutedProcess = SUBJECT,
    here: LocalExecutors = LocalExecutors(),
) -> RouteReport:
    return decide([route], subject, here, others, thorough=True).reports[0]


def why(other: RemoteColony, subject: RoutedProcess = SUBJECT) -> str:
    return only(Route(1, to=(other.name,)), other, subject=subject).options[0].why


# -- which route ---------------------------------------------------------------------------


def test_a_route_matches_by_function_type_and_label_as_globs() -> None:
    for route, fits in (
        (Route(1), True),
        (Route(1, func="up*"), True),
        (Route(1, func="Up*"), False),
        (Route(1, executortype="cl?"), True),
        (Route(1, executortype="web"), False),
        (Route(1, label="r*"), True),
        (Route(1, label=""), False),
        (Route(1, func="upper", executortype="cli", label="red"), True),
    ):
        report = only(route, peer())
        assert report.matches is fits, route
        assert bool(decide([route], SUBJECT, LocalExecutors(), [peer()]).report) is fits
        assert ('is not "' in report.why) is not fits


def test_the_first_route_that_leads_somewhere_decides() -> None:
    routes = [Route(1, func="other"), Route(2, to=("nobody",)), Route(3), Route(4)]
    decision = decide(routes, SUBJECT, LocalExecutors(), [peer()])
    assert decision.report is not None
    assert decision.report.route.number == 3
    assert [report.route.number for report in decision.reports] == [1, 2, 3]
    assert len(decide(routes, SUBJECT, LocalExecutors(), [peer()], thorough=True).reports) == 4


def test_why_it_stays_is_told() -> None:
    late = Route(1, when="waiting", after=30.0)
    for routes, subject, others, reason in (
        ([], SUBJECT, [peer()], "no routes are configured"),
        ([Route(1, func="x")], SUBJECT, [peer()], "no route matches"),
        ([late], SUBJECT, [peer()], "the time of no matching route has come"),
        ([Route(1)], SUBJECT, [], "no peer of a matching route can take it"),
        ([Route(1)], replace(SUBJECT, bound="it is bound"), [peer()], "it is bound"),
    ):
        decision = decide(routes, subject, LocalExecutors(), others, thorough=True)
        assert (decision.report, decision.stays) == (None, reason)


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_waiting_holds_only_after_the_time(age: float, after: float) -> None:
    route = Route(1, when="waiting", after=after)
    report = only(route, peer(), subject=replace(SUBJECT, age=age))
    assert report.holds is (age > after)


def test_no_executor_looks_at_those_that_are_there() -> None:
    route = Route(1, when=NO_EXECUTOR)
    assert not only(route, peer(), here=LocalExecutors(present=1, approved=1)).holds
    silent = only(route, peer(), here=LocalExecutors(present=0, approved=2))
    assert silent.holds
    assert "2 approved, but silent" in silent.why


def test_routes_are_read_from_the_configuration() -> None:
    late = RouteConfig(func="a*", when="waiting > 1.5 min", to=["bee", "cat"], weights={"bee": 3})
    first, second, third = read_routes(
        [late, RouteConfig(when="no-executor"), RouteConfig(to="bee", retry=False)]
    )
    assert (first.number, first.after, first.to, first.pinned) == (1, 90.0, ("bee", "cat"), False)
    assert first.text == 'route 1 (func "a*", waiting > 90 s → bee, cat)'
    assert (second.when, second.to, second.pinned, second.retry) == (NO_EXECUTOR, (), False, True)
    assert (third.when, third.to, third.pinned, third.retry) == (ALWAYS, ("bee",), True, False)


def test_a_route_that_makes_no_sense_is_found_when_the_file_is_read(tmp_path: Path) -> None:
    for text, problem in (
        ('when = "sometimes"', 'routes[0]: when is "always", "no-executor", or such as'),
        ('when = "waiting > soon"', "routes[0]: when is"),
        ('whem = "always"', "routes[0].whem: unknown setting, did you mean 'when'?"),
        ("to = []", "routes[0].to: expected `array` of length >= 1"),
        ("weights = { bee = -1 }", "routes[0].weights[...]: expected `float` >= 0.0"),
    ):
        (tmp_path / "config.toml").write_text(f"[[routes]]\n{text}\n")
        with pytest.raises(ConfigError, match=re.escape(problem)):
            load_config(tmp_path, {}, environ={})
    (tmp_path / "config.toml").write_text('[[routes]]\nwhen = "waiting>90"\nlabel = ""\n')
    (route,) = read_routes(load_config(tmp_path, {}, environ={}).routes)
    assert (route.after, route.label, route.to) == (90.0, "", ())


# -- who is eligible -----------------------------------------------------------------------


def test_each_reason_against_a_peer() -> None:
    one = peer()
    assert why(one) == ""
    assert why(peer(state="pending")) == "not trusted (pending)"
    assert why(replace(one, statement=None, age=None)) == "it has not said yet what it offers"
    assert "s old" in why(peer(age=STALE + 1))
    assert why(peer(age=STALE)) == ""
    assert why(peer(accepting=False)) == "it accepts nothing now"
    assert "as it allows" in why(peer(limits={"room": 0}))
    assert why(peer(limits={"room": 1})) == ""
    assert "no executor of type" in why(peer(executortype="web"))
    assert "no function" in why(peer(functions=("lower",)))
    assert why(peer(functions=("lower", "up*"))) == ""
    assert "no label" in why(peer(labels=["blue"]))
    assert why(peer(labels=["r*"])) == ""
    assert why(one, replace(SUBJECT, path=frozenset({one.id}))) == "the process was there before"
    assert why(one, replace(SUBJECT, tried={one.id: "full"})) == "tried: full"


def test_a_list_names_peers_by_name_id_or_beginning_of_it() -> None:
    others = [peer(1), peer(2)]
    route = Route(1, to=("peer-2", others[0].id, "0" * 63 + "9", "nobody"))
    options = only(route, *others).options
    assert [option.name for option in options] == ["peer-2", "peer-1", "0" * 63 + "9", "nobody"]
    assert [option.why for option in options[2:]] == ["no such trusted peer"] * 2
    twins = [peer(1), replace(peer(2), name="peer-1")]
    assert only(Route(1, to=("peer-1",)), *twins).options[0].why.startswith("not trusted (several")


def test_any_looks_at_trusted_peers_only() -> None:
    assert [o.name for o in only(Route(1), peer(1), peer(2, state="seen")).options] == ["peer-1"]


# -- who is chosen -------------------------------------------------------------------------


def test_a_list_is_a_preference() -> None:
    route = Route(1, to=("peer-2", "peer-1"))
    busy = [peer(1), peer(2, waiting=99)]
    report = only(route, *busy)
    assert pick(report, random.Random(1)).name == "peer-2"
    assert [option.probability for option in report.options] == [1.0, 0.0]
    without = only(route, peer(1), peer(2, age=STALE + 1))
    assert pick(without, random.Random(1)).name == "peer-1"


def test_of_two_the_less_busy_is_chosen_always_and_what_went_there_counts() -> None:
    for seed in range(20):
        busy, free = peer(1, waiting=1), peer(2)
        assert pick(only(Route(1), busy, free), random.Random(seed)).name == "peer-2"
        full = peer(2, sent=9)
        assert pick(only(Route(1), busy, full), random.Random(seed)).name == "peer-1"


def test_why_it_goes_there_is_told_in_a_line() -> None:
    one = only(Route(1), peer())
    assert explain(one, one.options[0]).endswith("peer-1 is the only peer that can")
    two = only(Route(1), peer(1), peer(2))
    assert explain(two, two.options[0]).endswith("peer-1, load 0.00, of 2 that can")


options_lists = st.lists(
    st.tuples(st.floats(0, 5), st.sampled_from([0.5, 1.0, 3.0])), min_size=1, max_size=8
).map(
    lambda pairs: [
        RouteOption(f"{number:064x}", f"peer-{number}", "", load, weight)
        for number, (load, weight) in enumerate(pairs)
    ]
)


@given(options_lists, st.booleans())
def test_the_odds_are_a_distribution(options: list[RouteOption], pinned: bool) -> None:
    route = Route(1, to=tuple(option.name for option in options) if pinned else ())
    chances = odds(route, options)
    assert chances.keys() <= {option.id for option in options}
    assert all(0 <= chance <= 1 + 1e-9 for chance in chances.values())
    assert abs(sum(chances.values()) - 1) < 1e-9


@given(options_lists, st.integers(0, 7))
def test_less_load_never_makes_it_less_likely(options: list[RouteOption], at: int) -> None:
    place = at % len(options)
    eased = list(options)
    eased[place] = replace(options[place], load=options[place].load / 2)
    before, after = odds(Route(1), options), odds(Route(1), eased)
    assert after[options[place].id] >= before[options[place].id] - 1e-9


def test_what_is_picked_has_the_odds_that_are_told() -> None:
    loads = ((0.0, 1.0), (1.0, 3.0), (1.0, 1.0), (2.0, 0.5))
    options = [
        RouteOption(f"{n}", f"{n}", "", load, weight) for n, (load, weight) in enumerate(loads)
    ]
    report = RouteReport(Route(1), True, True, "", options)
    chance = random.Random(7)
    times = 20_000
    found = Counter(pick(report, chance).id for _ in range(times))
    for option_id, probability in odds(Route(1), options).items():
        assert abs(found[option_id] / times - probability) < 0.015


def test_a_weight_of_zero_keeps_a_peer_out() -> None:
    report = only(Route(1, weights={"peer-1": 0.0}), peer(1), peer(2))
    assert [(o.eligible, o.probability) for o in report.options] == [(False, 0.0), (True, 1.0)]


def test_weights_share_what_is_equally_busy() -> None:
    report = only(Route(1, weights={"peer-1": 3.0}), peer(1, sent=0), peer(2, sent=0))
    assert [option.probability for option in report.options] == [0.75, 0.25]


others_lists = st.lists(
    st.builds(
        peer,
        st.integers(1, 30),
        functions=st.sampled_from([("*",), ("upper",), ("lower",)]),
        executortype=st.sampled_from(["cli", "web"]),
        state=st.sampled_from(["trusted", "pending", "blocked"]),
        age=st.sampled_from([0.0, STALE, STALE + 0.1]),
        waiting=st.integers(0, 5),
        accepting=st.booleans(),
    ),
    max_size=8,
    unique_by=lambda other: other.id,
)


@given(others_lists, st.sets(st.integers(1, 30)), st.integers())
def test_only_the_eligible_are_chosen_and_each_is_tried_once(
    others: list[RemoteColony], path: set[int], seed: int
) -> None:
    chance = random.Random(seed)
    subject = replace(SUBJECT, path=frozenset(f"{number:064x}" for number in path))
    by_id = {other.id: other for other in others}
    tried: dict[str, str] = {}
    while True:
        report = decide([Route(1)], replace(subject, tried=tried), LocalExecutors(), others).report
        if report is None:
            break
        choice = by_id[pick(report, chance).id]
        assert choice.id not in tried
        assert choice.id not in subject.path
        assert choice.state == "trusted"
        assert choice.age is not None
        assert choice.age <= STALE
        assert choice.statement is not None
        assert choice.statement.said.accepting
        assert set(choice.statement.said.types["cli"].functions) & {"*", "upper"}
        tried[choice.id] = "refused"
    # Nobody who could have is left out.
    assert all(
        other.id in tried or why(other, subject) for other in others if other.state == "trusted"
    )
