"""The life of a process as events and spans, across the colonies that it went through.

Values in, values out; the signatures were verified by the daemon for this answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from cli.core.output import at, cell_text, short, state_name


class Event(msgspec.Struct):
    """One thing that happened, at a time (Unix s) if that is known.

    `signed` is whether the signature of it holds: null where nothing is signed.
    """

    at: float | None
    colony: str
    what: str
    detail: str = ""
    signed: bool | None = None
    kind: str = ""
    id: str = ""


class Span(msgspec.Struct):
    """A time in one colony; without an end it lasts."""

    colony: str
    kind: str
    start: float
    end: float | None


class Story(msgspec.Struct):
    """The life of a process."""

    events: list[Event]
    spans: list[Span]


def story(
    found: Mapping[str, Any],
    home: str,
    names: Mapping[str, str],
    forward: Mapping[str, Any] | None,
    hops: Sequence[Mapping[str, Any]],
) -> Story:
    """Return the life of a process: `names` are those of executors, `hops` who asked for it."""
    submitted, started, ended = (
        at(found.get(name)) for name in ("submissiontime", "starttime", "endtime")
    )
    peer = str((forward or {}).get("peername") or (forward or {}).get("peer") or "")
    away = forward is not None and forward.get("state") != "returned"
    where = peer if away else home
    events = [
        Event(
            float(hop.get("issued") or 0),
            _name(hop),
            "asked for it",
            f"for {hop.get('initiator')}" if hop.get("initiator") else "",
            bool(hop.get("signaturevalid")),
            "asked",
            str(hop.get("issuer") or ""),
        )
        for hop in hops
    ]
    by = found.get("initiatorname") or short(found.get("initiatorid"))
    events.append(
        Event(submitted, home, "submitted", f"by {by}", None, "submitted",
              str(found.get("initiatorid") or ""))
    )  # fmt: skip
    if retries := int(found.get("retries") or 0):
        events.append(
            Event(
                None,
                home,
                f"given out {retries} time{'s' * (retries != 1)} before, without a result",
                f"at most {(found.get('spec') or {}).get('maxretries')} retries",
                None,
                "failed",
            )
        )
    for event in _forward_events(forward, home, peer):
        # What is signed has whole seconds, and is neither before the submission nor after the end.
        if event.kind == "signed" and event.at is not None and submitted is not None:
            event.at = max(event.at, submitted)
            event.at = event.at if ended is None else min(event.at, ended)
        events.append(event)
    if started is not None and not away:
        ident = str(found.get("assignedexecutorid") or "")
        runs = names.get(ident, short(ident))
        events.append(Event(started, where, "started", f"on {runs}" if runs else "", kind="running",
                            id=ident))  # fmt: skip
    state = state_name(found.get("state"))
    if ended is not None:
        errors = "; ".join(map(cell_text, found.get("errors") or []))
        events.append(Event(ended, home, state, errors, kind=state))
    for name, wanted, what in (
        ("waitdeadline", "waiting", "fails if nobody has taken it by then"),
        ("execdeadline", "running", "is taken from its executor if it has not ended by then"),
    ):
        if state == wanted and (limit := at(found.get(name))) is not None:
            events.append(Event(limit, home, what, kind="deadline"))
    # What has no time of its own came after the submission.
    events.sort(key=lambda each: each.at if each.at is not None else (submitted or 0))
    there = (forward or {}).get("there") or {}
    spans = _spans(home, where, away, submitted, started, ended, state, hops, there)
    return Story(events, spans)


def _spans(
    home: str,
    where: str,
    away: bool,
    submitted: float | None,
    started: float | None,
    ended: float | None,
    state: str,
    hops: Sequence[Mapping[str, Any]],
    there: Mapping[str, Any],
) -> list[Span]:
    spans = [Span(_name(hop), "asked", float(hop.get("issued") or 0), ended) for hop in hops]
    if submitted is None:
        return spans
    if away:
        spans.append(Span(home, "sent", submitted, ended))
        if started is None:
            return spans
        began = at(there.get("starttime"))
        if ended is not None:
            kind = state if state in ("successful", "failed", "cancelled") else "running"
            spans.append(Span(where, kind, began or started, ended))
            return spans
        spans.append(Span(where, "waiting", started, began))
        if began is not None:
            spans.append(Span(where, "running", began, None))
        return spans
    spans.append(Span(home, "waiting", submitted, started or ended))
    if started is not None:
        kind = state if ended is not None else "running"
        spans.append(Span(home, kind, started, ended))
    return spans


def _forward_events(forward: Mapping[str, Any] | None, home: str, peer: str) -> list[Event]:
    if forward is None:
        return []
    events = [
        Event(
            float(tried.get("at") or 0),
            str(tried.get("peername") or short(tried.get("peer"))),
            "did not run it",
            str(tried.get("error") or ""),
            None,
            "failed",
            str(tried.get("peer") or ""),
        )
        for tried in forward.get("tried") or []
    ]
    sent = int(forward.get("attempts") or 0)
    route = f", by the route {forward['route']}" if forward.get("route") else ""
    error = f"; last error: {forward['lasterror']}" if forward.get("lasterror") else ""
    events.append(
        Event(None, home, f"given to {peer}", f"sent {sent} time{'s' * (sent != 1)}{route}{error}",
              None, "sent", str(forward.get("peer") or ""))
    )  # fmt: skip
    if there := forward.get("there"):
        by = f"on {there['executor']}" if there.get("executor") else ""
        events.append(
            Event(at(there.get("starttime")), peer, f"{state_name(there.get('state'))} there", by,
                  kind="running")
        )  # fmt: skip
    outcome = forward.get("outcome") or {}
    for place, step in enumerate(forward.get("chain") or []):
        problem = str(step.get("problem") or "")
        answers = outcome.get("answers") if place == 0 else None
        detail = {
            True: "for the very submission that was sent",
            False: "for ANOTHER submission than the one sent",
            None: "",
        }[answers if isinstance(answers, bool) else None]
        events.append(
            Event(
                float(step.get("issued") or 0),
                _name(step),
                f"signed that it ended {state_name(step.get('state'))}",
                "; ".join(filter(None, (detail, problem))),
                bool(step.get("signaturevalid")) and not problem and answers is not False,
                "signed",
                str(step.get("issuer") or ""),
            )
        )
    if late := forward.get("late"):
        events.append(
            Event(
                float(late.get("issued") or 0),
                _name(late),
                f"said {state_name(late.get('state'))}, after it had ended here",
                "this outcome counts no more",
                bool(late.get("signaturevalid")) and late.get("answers") is not False,
                "signed",
                str(late.get("issuer") or ""),
            )
        )
    return events


def _name(step: Mapping[str, Any]) -> str:
    return str(step.get("name") or f"colony {short(step.get('issuer'))}")
