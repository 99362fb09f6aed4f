"""The RPC rows about routes: list them, and explain where a spec would go and why.

`routing.rules` decides; nothing here sends a process.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from colonyd.errors import Invalid
from federation.forward import path as relays
from federation.forward.machine import Forward
from federation.peers.policy import opening
from federation.routing.capabilities import Statement
from federation.routing.rules import Route, RouteOption, RouteReport, odds
from node.etcd.pressure import Need
from node.model.types import FunctionSpec
from node.rpc.calls import Caller, Calls, Who
from node.rpc.requests import Empty

if TYPE_CHECKING:
    from federation.service.main import Federation


class ExplainRoute(msgspec.Struct):
    """A spec that was not submitted, as if it had waited for `age` seconds."""

    spec: FunctionSpec
    age: Annotated[float, msgspec.Meta(ge=0, le=1e9)] = 0.0


calls: Calls[Federation] = Calls("Ours", home=lambda federation: federation.home)


@calls.row("getroutesmsg", Empty, Who.OWNER, reply="Route[]")
async def get_routes(
    federation: Federation, caller: Caller, request: Empty
) -> list[dict[str, Any]]:
    """Return the configured routes."""
    sent = federation.router.counters
    return [
        route_view(route) | {"sent": sent.get(route.number, 0)}
        for route in federation.router.routes
    ]


@calls.row(
    "explainroutemsg",
    ExplainRoute,
    Who.OWNER,
    reply="{stays, why, choices, routes}",
    need=Need.FREES,
    reads=True,
)
async def explain(federation: Federation, caller: Caller, request: ExplainRoute) -> dict[str, Any]:
    """Return where a spec would go now, and why."""
    return explanation(federation, request.spec, request.age)


def route_view(route: Route) -> dict[str, Any]:
    """Return a route as it is configured."""
    return {
        "number": route.number,
        "text": route.text,
        "func": route.func,
        "executortype": route.executortype,
        "label": route.label,
        "when": route.when if route.after is None else f"waiting > {route.after:g} s",
        "to": list(route.to) or ["any"],
        "weights": dict(route.weights),
        "retry": route.retry,
    }


def explanation(federation: Federation, spec: FunctionSpec, age: float) -> dict[str, Any]:
    """Return where a spec would go now, with a verdict on every route and peer. Raises Invalid."""
    if not spec.conditions.executortype:
        raise Invalid("spec.conditions.executortype: routes look at it, so a name is needed")
    name, router = spec.conditions.colonyname, federation.router
    base: dict[str, Any] = {"age": age, "routes": [], "choices": [], "needs": []}
    if name and name != federation.home:
        if federation.hooks.hosts(name):
            return base | {"stays": True, "why": f"{name!r} is hosted here, but no home colony"}
        peer = federation.hooks.peer_of(name)
        reason = f"the spec names {name!r}; no route is asked"
        if peer is None and (several := federation.hooks.ambiguity(name)):
            return base | {"stays": False, "why": f"{reason}, and {several}"}
        if peer is None:
            return base | {"stays": False, "why": f"{reason}, and no trusted peer is called so"}
        only = {"id": peer, "name": federation.peers.name(peer), "probability": 1.0}
        needs = _needs(federation, name, peer)
        return base | {"stays": False, "why": reason, "choices": [only], "needs": needs}
    subject = router.subject(spec, age)
    decision = router.decision(subject, thorough=True)
    reports = [_report(federation, report) for report in decision.reports]
    if decision.report is None:
        return base | {"stays": True, "why": decision.stays, "routes": reports}
    eligible = decision.report.eligible
    chances = odds(decision.report.route, eligible)
    choices = [
        {"id": option.id, "name": option.name, "probability": chances[option.id]}
        for option in eligible
        if option.id in chances
    ]
    why = decision.report.route.text
    return base | {"stays": False, "why": why, "routes": reports, "choices": choices}


def _needs(federation: Federation, target: str, peer: str) -> list[dict[str, str]]:
    """Return what each owner on the way to a target must allow, with the command for it."""
    peers, way = federation.peers, relays.segments(target)
    if peers.named(way[0]) is None:
        way = [peers.name(peer), *way]  # one that a peer introduced
    # The other owners know nothing of our petnames.
    owned = [(each, peers.petnames.id_of(each)) for each in way]
    way = [peers.name(owner) if owner else each for each, owner in owned]
    needs: list[dict[str, str]] = []
    for hops, (before, here) in enumerate(itertools.pairwise([federation.home, *way]), 1):
        command = opening(before, hops=hops, further=hops < len(way))
        if command:
            needs.append({"at": here, "command": command})
    return needs


def _report(federation: Federation, report: RouteReport) -> dict[str, Any]:
    return route_view(report.route) | {
        "matches": report.matches,
        "holds": report.holds,
        "why": report.why,
        "peers": [_option(federation, option) for option in report.options],
    }


def _option(federation: Federation, option: RouteOption) -> dict[str, Any]:
    return {
        "id": option.id,
        "name": option.name,
        "petname": federation.peers.petname(option.id),
        "eligible": option.eligible,
        "why": option.why,
        "load": option.load,
        "weight": option.weight,
        "probability": option.probability,
    }


def tried_view(federation: Federation, forward: Forward) -> list[dict[str, Any]]:
    """Return the peers that a process was tried at before, and why each will not run it."""
    return [
        {
            "peer": each.peer,
            "peername": federation.peers.name(each.peer),
            "error": each.error,
            "at": each.at // 1_000_000_000,
            "final": each.final,
        }
        for each in forward.tried
    ]


def statement_view(statement: Statement | None, age: float | None) -> dict[str, Any] | None:
    """Return what a peer offered us `age` seconds ago; None if it never offered anything."""
    if statement is None or age is None:
        return None
    said: dict[str, Any] = msgspec.to_builtins(statement.said)
    return said | {"age": age, "stale": statement.stale(statement.at + age)}
