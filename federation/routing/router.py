"""The router: chooses a peer by routes at submission, and a new place after a peer's refusal.

`routing.rules` decides, `routing.requeue` watches our own queue.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from federation.forward import machine
from federation.forward.machine import Effect, FailedAttempt, RouteTrace
from federation.outbox.outbox import Reroute
from federation.peers.context import Context
from federation.routing.capabilities import CapabilityCache, present
from federation.routing.exchange import Exchange
from federation.routing.rules import (
    LocalExecutors,
    RemoteColony,
    Route,
    RouteDecision,
    RoutedProcess,
    RouteOption,
    RouteReport,
    decide,
    explain,
    matches,
    pick,
)
from federation.wire.sizes import FORWARD, forward_size
from node.host.log import get_logger
from node.model.types import SECOND, ExecutorState, FunctionSpec, Process

_MOST_TRIED = 16  # peers that one process is tried at

log = get_logger("router")


@dataclass
class Router:
    """Applies `routes` in order. `exchange` knows our executors, `capability_cache` offers."""

    context: Context
    routes: Sequence[Route]
    capability_cache: CapabilityCache
    exchange: Exchange
    counters: dict[int, int] = field(default_factory=dict)
    _chosen: tuple[str, RouteTrace] | None = None

    # -- at submission -------------------------------------------------------------------------

    def route(self, process: Process) -> str:
        """Return the id of the peer for a process that is submitted or ready now, or ""."""
        self._chosen = None
        if not self.routes or process.colonyname != self.context.home:
            return ""
        subject = self.subject_of(process, 0.0)
        found = self.choose(subject)
        if found is None:
            return ""
        report, choice = found
        self._chosen = (process.processid, self.route_trace_by(subject, report, choice, ()))
        self.sent(report, choice, process)
        return choice.id

    def route_trace(self, process: Process) -> RouteTrace | None:
        """Return why `route` sent this process to its peer; None if the process named the peer."""
        chosen, self._chosen = self._chosen, None
        return chosen[1] if chosen and chosen[0] == process.processid else None

    # -- decision ------------------------------------------------------------------------------

    def subject(self, spec: FunctionSpec, age: float) -> RoutedProcess:
        """Return a spec submitted here as routes see it, after a wait of `age` seconds."""
        conditions = spec.conditions
        return RoutedProcess(spec.funcname, conditions.executortype, spec.label, age, _bound(spec))

    def subject_of(
        self,
        process: Process,
        age: float,
        tried: Sequence[FailedAttempt] = (),
        path: Collection[str] = (),
    ) -> RoutedProcess:
        """Return a process here as routes see it; `path` are colonies that had it before."""
        subject = self.subject(process.spec, age)
        bound = subject.bound or (self.onward(process) if process.origin else "")
        if not bound and forward_size(process) > FORWARD:
            bound = f"it has more than {FORWARD} bytes, which is the most that peers take"
        before = frozenset({process.origin, *path} - {""})
        return replace(subject, bound=bound, path=before, tried=self._barring(tried))

    def onward(self, process: Process) -> str:
        """Return why a process of another colony may not go on from here, or ""."""
        if process.hops < 1:
            return "it came from another colony, as far as it may go"
        if not self.context.peers.policy(process.origin).forward:
            return "the policy of the colony it came from keeps it here"
        return ""

    def _barring(self, tried: Sequence[FailedAttempt]) -> dict[str, str]:
        """Return the peers not to try again, with reasons. A new statement allows a new try."""
        barring: dict[str, str] = {}
        for each in tried:
            statement = self.capability_cache.get(each.peer)
            if each.final or statement is None or statement.said.seq <= each.seq:
                barring[each.peer] = each.error
        return barring

    def here(self, executortype: str) -> LocalExecutors:
        """Return our own executors of a type."""
        survey = self.exchange.survey()
        there = [each for each in present(survey) if each.executortype == executortype]
        approved = [
            each
            for each in survey.executors
            if each.executortype == executortype and each.state == ExecutorState.APPROVED
        ]
        return LocalExecutors(len(there) or self.exchange.polls(executortype), len(approved))

    def others(self) -> list[RemoteColony]:
        """Return every known colony, with what it offers us."""
        peers = self.context.peers
        away = [
            RemoteColony(peerid, name, "", petname=name)
            for peerid, name in peers.petnames.all().items()
            if peerid not in peers.known
        ]
        return away + [
            RemoteColony(
                entry.peer.id,
                peers.name(entry.peer.id),
                entry.peer.state,
                self.capability_cache.get(entry.peer.id),
                self.capability_cache.age(entry.peer.id),
                entry.peer.mismatch,
                peers.petname(entry.peer.id),
            )
            for entry in peers.known.values()
        ]

    def decision(self, subject: RoutedProcess, *, thorough: bool = False) -> RouteDecision:
        """Return what the routes decide about a process now."""
        here = self.here(subject.executortype)
        return decide(self.routes, subject, here, self.others(), thorough=thorough)

    def choose(self, subject: RoutedProcess) -> tuple[RouteReport, RouteOption] | None:
        """Return the route and the peer that a process goes to now; None if it stays."""
        if subject.bound or not any(not matches(route, subject) for route in self.routes):
            return None
        report = self.decision(subject).report
        return None if report is None else (report, pick(report, self.context.chance))

    def route_trace_by(
        self,
        subject: RoutedProcess,
        report: RouteReport,
        choice: RouteOption,
        tried: Sequence[FailedAttempt],
    ) -> RouteTrace:
        """Return the trace that is kept with a forward; `places` counts other places and ours."""
        more = len({option.id for option in report.eligible} - {choice.id})
        more += self.exchange.approved(subject.executortype)
        return RouteTrace(explain(report, choice), report.route.retry, more, tuple(tried))

    def sent(self, report: RouteReport, choice: RouteOption, process: Process) -> None:
        """Count a process that goes to its choice, for the peer's load and the route."""
        self.capability_cache.sent(choice.id, process.spec.conditions.executortype)
        number = report.route.number
        self.counters[number] = self.counters.get(number, 0) + 1

    # -- after a refusal -----------------------------------------------------------------------

    def elsewhere(self, process: Process, effect: Effect) -> Reroute | None:
        """Return the new place of a process that its peer will not run; None if it has to fail.

        It is the next peer of a route, else our own queue if an executor here may take the process.
        """
        forward, now = effect.forward, self.context.clock.now()
        if not forward.retry or len(forward.tried) >= _MOST_TRIED:
            return None
        statement = self.capability_cache.get(forward.peer)
        refused = forward.state == machine.ForwardState.REFUSED
        seq = statement.said.seq if statement else -1
        this = FailedAttempt(forward.peer, forward.lasterror, now, refused, seq)
        tried = (*(each for each in forward.tried if each.peer != forward.peer), this)
        age = (now - max(process.submissiontime, process.endtime)) / SECOND
        subject = self.subject_of(process, age, tried)
        found = self.choose(subject)
        if found is not None:
            report, choice = found
            route_trace = self.route_trace_by(subject, report, choice, tried)
            self.sent(report, choice, process)
            log.info("sent elsewhere", process=process.processid, to=choice.name, why=this.error)
            after = msgspec.structs.replace(process, peer=choice.id)
            return Reroute(choice.id, machine.new_forward(after, route_trace, now))
        if self.exchange.approved(subject.executortype):
            log.info("back in the queue", process=process.processid, why=this.error)
            return Reroute("", machine.returned(forward, tried, now))
        return None


def _bound(spec: FunctionSpec) -> str:
    """Return why a process cannot leave: it names something of its own colony; or ""."""
    names = [name for name in spec.conditions.executornames or [] if name]
    if names and "*" not in names:
        return "it names executors of this colony"
    if spec.conditions.locationname:
        return "it names a location of this colony"
    return ""
