"""Triggers: what crons and generators share: a name, a workflow to start, and a member.

Crons and generators decide when they start; `workflows.service` makes processes of a workflow.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from colonyd.errors import Invalid, RpcError
from node.etcd.errors import EtcdError, EtcdNoSpace
from node.model import graph as graphs
from node.model.types import SECOND, ExecutorState, FunctionSpec
from node.processes.spec import check_spec
from node.store.directory import Directory
from node.workflows.spec import read_workflow

# The period that upstream shows for its loops, in ms: how late a start may be there.
CHECKER_PERIOD = 1000
MAX_NAME = 255
# Seconds after which a workflow that may not start now is tried again.
LATER = 30.0
# Nanoseconds between two log lines about timers of one member that may not start.
_TOLD = 600 * SECOND


@dataclass
class WarningLimiter:
    """The members for which a timer that may not start was logged lately."""

    _until: dict[tuple[str, str], int] = field(default_factory=dict)

    def first(self, owner: tuple[str, str], now: int) -> bool:
        """Return whether to log at `now` (Unix ns): once in ten minutes for each member."""
        # None waits longer than ten minutes, also when the clock is set back.
        self._until = {
            known: until for known, until in self._until.items() if now < until <= now + _TOLD
        }
        if owner in self._until:
            return False
        self._until[owner] = now + _TOLD
        return True


def check_name(name: str, field: str) -> None:
    """Raise Invalid unless `name` is a text of one line and of a bounded length."""
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise Invalid(f"{field}: between 1 and {MAX_NAME} printable characters")


def check_workflow(text: str, colony: str, field: str) -> list[FunctionSpec]:
    """Read a workflow and check it, as far as that is possible without submitting it.

    Raises Invalid that begins with `field`, also for the workflow of another colony.
    """
    named, specs = read_workflow(text, field)
    if named not in ("", colony):
        raise Invalid(
            f"{field}.colonyname: {named[:80]!r} is not the colony {colony!r} of what has it"
        )
    try:
        graphs.plan(specs)
    except graphs.GraphError as error:
        raise Invalid(f"{field}.{error}") from None
    for place, spec in enumerate(specs):
        try:
            check_spec(spec)
        except RpcError as error:
            inner = f"{field}.functionspecs[{place}]"
            raise Invalid(error.message.replace("spec", inner, 1)) from None
    return specs


def may_start(directory: Directory, colony: str, identity: str, name: str = "") -> bool:
    """Return whether the timers of this identity may (still) start workflows in a colony.

    Its owner and users may; executors, too, unless they were rejected: an executor that is not
    registered at the moment keeps its rights, as upstream has it. A timer under the colony's own
    name, which no member can have, is the colony's, whichever key its owner has by now.
    """
    owner = directory.colony(colony)
    if owner is None:
        return False
    if name == f"colony/{colony}":
        return True
    executor = directory.executor_of(colony, identity)
    if executor is not None and executor.state != ExecutorState.REJECTED:
        return True
    return identity == owner.colonyid or directory.user_of(colony, identity) is not None


def is_final(error: EtcdError) -> bool:
    """Return whether the same request will fail again: it does not fit the store."""
    return not error.retryable and not isinstance(error, EtcdNoSpace)
