"""Routes: the place of a process that names no colony, and the reasons.

Values in, values out: `router` collects the values, and carries a decision out.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from federation.routing.capabilities import STALE, Statement, fits, load
from node.host.config import WAITING, RouteConfig

ALWAYS, NO_EXECUTOR = "always", "no-executor"
ANY = "any"
_SHORTEST = 8  # characters that the beginning of an id has at least
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}


@dataclass(frozen=True)
class Route:
    """One route as it is configured; `number` counts from 1.

    `after` is the seconds of `when = "waiting > ..."`, else None. `to` is empty for any peer.
    """

    number: int
    func: str = "*"
    executortype: str = "*"
    label: str = "*"
    when: str = ALWAYS
    after: float | None = None
    to: tuple[str, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)
    retry: bool = True

    @property
    def pinned(self) -> bool:
        """Return whether the first possible peer of the list is taken, not the less busy of two."""
        return bool(self.to) and not self.weights

    @property
    def text(self) -> str:
        """Return the route as text, such as 'route 1 (func "up*", waiting > 30 s → any)'."""
        names = (("func", self.func), ("type", self.executortype), ("label", self.label))
        said = [f'{name} "{value}"' for name, value in names if value != "*"]
        when = self.when if self.after is None else f"waiting > {self.after:g} s"
        return f"route {self.number} ({', '.join([*said, when])} → {', '.join(self.to) or ANY})"


def read_routes(settings: Iterable[RouteConfig]) -> list[Route]:
    """Return the routes of a checked configuration, in order."""
    return [_route(number, each) for number, each in enumerate(settings, 1)]


def _route(number: int, setting: RouteConfig) -> Route:
    match = re.fullmatch(WAITING, setting.when)
    to = [setting.to] if isinstance(setting.to, str) else setting.to
    return Route(
        number,
        setting.func,
        setting.executortype,
        setting.label,
        "waiting" if match else setting.when,
        float(match[1]) * _SECONDS[match[2] or "s"] if match else None,
        () if ANY in to else tuple(dict.fromkeys(to)),
        dict(setting.weights),
        setting.retry,
    )


@dataclass(frozen=True)
class RoutedProcess:
    """A process as routes see it. `age` is how many seconds it has waited.

    `bound` says why it cannot leave, or "". `path` are the colonies that had it, `tried` those that
    surely will not run it, each with the reason.
    """

    func: str
    executortype: str
    label: str = ""
    age: float = 0.0
    bound: str = ""
    path: frozenset[str] = frozenset()
    tried: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LocalExecutors:
    """Our own executors of the wanted type: how many are present, how many could come back."""

    present: int = 0
    approved: int = 0


@dataclass(frozen=True)
class RemoteColony:
    """A colony that may take the process. `age` is that of its statement, in seconds.

    `mismatch` says why no process can go there whatever it offers, or "". `petname` is our owner's
    name for it, or "".
    """

    id: str
    name: str
    state: str
    statement: Statement | None = None
    age: float | None = None
    mismatch: str = ""
    petname: str = ""


@dataclass(frozen=True)
class RouteOption:
    """A route's verdict on one colony: `why` not, or its load and its odds."""

    id: str
    name: str
    why: str = ""
    load: float = 0.0
    weight: float = 1.0
    probability: float = 0.0

    @property
    def eligible(self) -> bool:
        """Return whether it may be chosen."""
        return not self.why


@dataclass(frozen=True)
class RouteReport:
    """The result of one route: whether it matches, whether its `when` holds, and each colony."""

    route: Route
    matches: bool
    holds: bool
    why: str
    options: Sequence[RouteOption] = ()

    @property
    def eligible(self) -> list[RouteOption]:
        """Return the colonies that may be chosen, in the order of the route."""
        return [option for option in self.options if option.eligible]


@dataclass(frozen=True)
class RouteDecision:
    """The reports of the routes, the one that decides, or why the process stays."""

    reports: Sequence[RouteReport]
    report: RouteReport | None = None
    stays: str = ""


def matches(route: Route, subject: RoutedProcess) -> str:
    """Return why a route does not match, or ""."""
    for what, pattern, value in (
        ("func", route.func, subject.func),
        ("executortype", route.executortype, subject.executortype),
        ("label", route.label, subject.label),
    ):
        if value != pattern and not fnmatchcase(value, pattern):
            return f'{what} "{value}" is not "{pattern}"'
    return ""


def holds(route: Route, age: float, here: LocalExecutors) -> tuple[bool, str]:
    """Return whether the time for a route has come, and why."""
    if route.after is not None:
        past = age > route.after
        return past, f"it waits {age:.1f} s, {'more' if past else 'not more'} than {route.after:g}"
    if route.when == NO_EXECUTOR:
        if here.present:
            return False, f"{here.present} of our executors of this type are there"
        silent = f"; {here.approved} approved, but silent" if here.approved else ""
        return True, f"none of our executors of this type is there{silent}"
    return True, "always"


def barred(subject: RoutedProcess, other: RemoteColony) -> str:
    """Return why a colony cannot take a process, or ""."""
    if other.state != "trusted":
        return f"not trusted ({other.state})" if other.state else "no such trusted peer"
    if other.mismatch:
        return other.mismatch
    if other.id in subject.path:
        return "the process was there before"
    if other.id in subject.tried:
        return f"tried: {subject.tried[other.id]}"
    if other.statement is None or other.age is None:
        return "it has not said yet what it offers"
    if other.age > STALE:
        return f"what it offers is {other.age:.0f} s old; at most {STALE:.0f} s are believed"
    said = other.statement.said
    if not said.accepting:
        return "it accepts nothing now"
    if said.limits.get("room") == 0:
        return "as many of our processes wait there as it allows"
    if subject.executortype not in said.types:
        return f'it offers us no executor of type "{subject.executortype}"'
    if not fits(said.types[subject.executortype].functions, subject.func):
        return f'it offers us no function "{subject.func}"'
    if said.labels and not fits(said.labels, subject.label):
        return f'it takes no label "{subject.label}" from us'
    return ""


def consider(
    route: Route,
    subject: RoutedProcess,
    here: LocalExecutors,
    others: Sequence[RemoteColony],
    *,
    thorough: bool = False,
) -> RouteReport:
    """Return a route's report on a process. Colonies are checked only if the route's time has come.

    With `thorough` they are checked in any case, and the odds are reported.
    """
    mismatch = matches(route, subject)
    held, why = holds(route, subject.age, here)
    if (mismatch or not held) and not thorough:
        return RouteReport(route, not mismatch, held, mismatch or why)
    options = [_option(route, subject, other) for other in _reached(route, others)]
    if thorough:
        chances = odds(route, [option for option in options if option.eligible])
        options = [
            RouteOption(o.id, o.name, o.why, o.load, o.weight, chances.get(o.id, 0.0))
            for o in options
        ]
    return RouteReport(route, not mismatch, held, mismatch or why, options)


def _reached(route: Route, others: Sequence[RemoteColony]) -> list[RemoteColony]:
    if not route.to:
        return [other for other in others if other.state == "trusted"]
    found: list[RemoteColony] = []
    for text in route.to:
        named = [other for other in others if text == other.id]
        named = named or [other for other in others if text == other.petname]
        if not named:
            # A name may look like the beginning of another's id: then both fit.
            named = [
                other
                for other in others
                if text == other.name or (len(text) >= _SHORTEST and other.id.startswith(text))
            ]
        trusted = [other for other in named if other.state == "trusted"]
        if len(trusted) > 1:
            found.append(RemoteColony("", text, "several are called so"))
        else:
            found.extend(trusted or named[:1] or [RemoteColony("", text, "")])
    return found


def _option(route: Route, subject: RoutedProcess, other: RemoteColony) -> RouteOption:
    keys = (other.id, other.petname or other.name, other.name)
    weight = next((route.weights[each] for each in keys if each in route.weights), 1.0)
    why = barred(subject, other) or ("" if weight > 0 else "its weight is 0")
    if why or other.statement is None:
        return RouteOption(other.id, other.name, why, weight=weight)
    offer = other.statement.said.types[subject.executortype]
    return RouteOption(
        other.id, other.name, "", load(offer, other.statement.sent[subject.executortype]), weight
    )


def decide(
    routes: Sequence[Route],
    subject: RoutedProcess,
    here: LocalExecutors,
    others: Sequence[RemoteColony],
    *,
    thorough: bool = False,
) -> RouteDecision:
    """Return the decision: the first route that matches, is due, and has a colony.

    With `thorough` there are reports of every route, else only of those up to that one.
    """
    reports: list[RouteReport] = []
    chosen: RouteReport | None = None
    for route in routes:
        report = consider(route, subject, here, others, thorough=thorough)
        reports.append(report)
        ready = report.matches and report.holds and report.eligible
        if ready and chosen is None and not subject.bound:
            chosen = report
            if not thorough:
                break
    return RouteDecision(reports, chosen, "" if chosen else _stays(subject, reports))


def _stays(subject: RoutedProcess, reports: Sequence[RouteReport]) -> str:
    if subject.bound:
        return subject.bound
    if not reports:
        return "no routes are configured"
    fitting = [report for report in reports if report.matches]
    if not fitting:
        return "no route matches"
    ready = [report for report in fitting if report.holds]
    if not ready:
        return "the time of no matching route has come"
    return "no peer of a matching route can take it"


def odds(route: Route, eligible: Sequence[RouteOption]) -> dict[str, float]:
    """Return the probability with which `pick` takes each colony."""
    if not eligible:
        return {}
    if route.pinned or len(eligible) == 1:
        return {eligible[0].id: 1.0}
    total = sum(option.weight for option in eligible)
    chances = dict.fromkeys((option.id for option in eligible), 0.0)
    for place, one in enumerate(eligible):
        for other in eligible[place + 1 :]:
            # Either may be drawn first; the second is drawn from the rest.
            drawn = one.weight / total * other.weight / (total - one.weight)
            drawn += other.weight / total * one.weight / (total - other.weight)
            share = _share(one, other)
            chances[one.id] += drawn * share
            chances[other.id] += drawn * (1 - share)
    return chances


def _share(one: RouteOption, other: RouteOption) -> float:
    """Return how often the first of two drawn colonies is taken: the less busy, by weight."""
    left, right = one.load / one.weight, other.load / other.weight
    if left != right:
        return float(left < right)
    return one.weight / (one.weight + other.weight)


def pick(report: RouteReport, chance: random.Random) -> RouteOption:
    """Return a colony of a report with an eligible one: two are drawn, the better one is taken.

    So the least busy colony gets most, but not everything at once from every colony that knows it.
    """
    eligible = report.eligible
    if report.route.pinned or len(eligible) == 1:
        return eligible[0]
    one = chance.choices(eligible, [option.weight for option in eligible])[0]
    rest = [option for option in eligible if option.id != one.id]
    other = chance.choices(rest, [option.weight for option in rest])[0]
    return one if chance.random() < _share(one, other) else other


def explain(report: RouteReport, choice: RouteOption) -> str:
    """Return why a process goes where it goes, in one line."""
    eligible, route = report.eligible, report.route
    if len(eligible) == 1:
        return f"{route.text}: {choice.name} is the only peer that can"
    if route.pinned:
        return f"{route.text}: {choice.name} is the first in the list that can"
    return f"{route.text}: {choice.name}, load {choice.load:.2f}, of {len(eligible)} that can"
