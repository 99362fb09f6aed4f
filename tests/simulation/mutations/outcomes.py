"""Checks of outcomes, each broken."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
import trio

from colonyd.errors import RpcError
from federation.forward import chain as chains
from federation.forward import machine
from federation.forward.machine import Effect, Forward
from federation.outbox import outcomes as results
from federation.outbox.outcomes import OutcomePoller
from federation.transport.errors import TransportError
from federation.wire.envelope import Rejected, inspect
from federation.wire.messages import Outcome, load
from node.etcd.errors import EtcdError
from node.etcd.txn import Put, Txn
from node.model.types import Process, State
from node.processes.service import Processes
from node.store.work import processes as store


class _Open:
    """`Processes` for whom none of those that are elsewhere has ended."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processes, name)

    async def change(self, colony: str, processid: str, step: Any) -> Process:
        """As if nobody had closed it."""

        def anew(process: Process, revision: int) -> store.Transition | None:
            if process.closed:
                process = msgspec.structs.replace(process, state=State.RUNNING)
            taken: store.Transition | None = step(process, revision)
            return taken

        return await self._processes.change(colony, processid, anew)


def second_outcome(patch: pytest.MonkeyPatch) -> None:
    """The last outcome counts, not the first."""
    close = OutcomePoller._close

    async def again(self: OutcomePoller, *args: Any) -> bool | None:
        blind = cast(Processes, _Open(self.context.processes))
        bold = copy.copy(self)
        bold.context = replace(self.context, processes=blind)
        return await close(bold, *args)

    patch.setattr(OutcomePoller, "_close", again)


def _told(sealed: bytes) -> Outcome:
    return load(inspect(sealed, limit=len(sealed)).payload, Outcome)


def anybodys_outcome(patch: pytest.MonkeyPatch) -> None:
    """It does not matter which colony tells the outcome."""
    settle = OutcomePoller.settle

    async def settled(self: OutcomePoller, connection: Any, sealed: bytes, *more: Any) -> str:
        entry = self.outbox.entries.get(_told(sealed).pid)
        if entry is not None and entry.forward.peer != connection.id:
            names = ("entry", "key_of", "seconds", "highest")
            same = {name: getattr(connection, name) for name in names}
            connection = SimpleNamespace(id=entry.forward.peer, **same)
        return await settle(self, connection, sealed, *more)

    patch.setattr(OutcomePoller, "settle", settled)


def hasty_acknowledgement(patch: pytest.MonkeyPatch) -> None:
    """An outcome is acknowledged, whether or not it is stored."""
    settle = OutcomePoller.settle

    async def settled(self: OutcomePoller, connection: Any, sealed: bytes, *more: Any) -> str:
        try:
            return await settle(self, connection, sealed, *more)
        except EtcdError:
            return _told(sealed).pid

    patch.setattr(OutcomePoller, "settle", settled)


def unheard_cancel(patch: pytest.MonkeyPatch) -> None:
    """That a peer cancelled a process is acknowledged, and nothing more."""
    settle = OutcomePoller.settle

    async def settled(self: OutcomePoller, connection: Any, sealed: bytes, *more: Any) -> str:
        outcome = _told(sealed)
        if outcome.state == State.CANCELLED:
            return outcome.pid
        return await settle(self, connection, sealed, *more)

    patch.setattr(OutcomePoller, "settle", settled)


def unowed_outcome(patch: pytest.MonkeyPatch) -> None:
    """A process ends, and the colony that it came from is not told."""
    close = store.close

    def closed(process: Process, *args: Any, **kwargs: Any) -> store.Transition:
        step = close(process, *args, **kwargs)
        owed = process.notify
        ops = [op for op in step.txn.success if not (isinstance(op, Put) and op.key == owed)]
        return store.Transition(step.process, Txn(step.txn.compare, ops))

    patch.setattr(store, "close", closed)


def traceless_decision(patch: pytest.MonkeyPatch) -> None:
    """Where a process was before its owner took it back is forgotten."""
    overruled = machine.overruled

    def untold(effect: Effect, now: int) -> Forward:
        return msgspec.structs.replace(overruled(effect, now), tried=[])

    patch.setattr(machine, "overruled", untold)


def no_second_look(patch: pytest.MonkeyPatch) -> None:
    """Outcomes are fetched only for forwards that this daemon knows to be under way."""
    patch.setattr(results, "_IDLE", float("inf"))

    async def poll_forever(self: OutcomePoller, connection: Any) -> None:
        wakeup = self.outbox.wakeup(connection.id)
        while True:
            event = wakeup.event
            if not self._awaited(connection.id):
                await event.wait()
                continue
            try:
                await self.poll_once(connection)
            except (TransportError, EtcdError, RpcError, Rejected):
                await trio.sleep(1)

    patch.setattr(OutcomePoller, "poll_forever", poll_forever)


def endless_patience(patch: pytest.MonkeyPatch) -> None:
    """A peer that tells of nothing but what is settled is asked again at once."""
    patch.setattr(results, "_VAIN", float("inf"))


def any_request(patch: pytest.MonkeyPatch) -> None:
    """An outcome need only name ids, whatever was asked under them."""
    patch.setattr(chains, "unbound", lambda *_: "")


def anybodys_name(patch: pytest.MonkeyPatch) -> None:
    """Whoever ran it may be the colony that the target names."""
    patch.setattr(chains, "_another", lambda *_: "")
