"""Checks of transitions in the store, and of what a person decides, each broken."""

from __future__ import annotations

from typing import Any

import pytest

from colonyd.errors import Conflict, NotFound
from federation.forward import machine
from federation.forward.machine import Effect, Forward
from federation.outbox import resolve as resolving
from node.etcd.txn import Absent, Txn
from node.model.types import Executor, Process, State
from node.processes.assignment import Assigner
from node.processes.queue import QueueEntry as Waiting
from node.processes.service import Processes
from node.store.work import processes as store

_NEVER = "/never"  # a key that is not there: to demand its absence is to demand nothing


def _blind(patch: pytest.MonkeyPatch, name: str) -> None:
    """A transition compares nothing."""
    exact = getattr(store, name)

    def careless(*args: Any, **kwargs: Any) -> store.Transition:
        step = exact(*args, **kwargs)
        return store.Transition(step.process, Txn([], step.txn.success))

    patch.setattr(store, name, careless)


def blind_assign(patch: pytest.MonkeyPatch) -> None:
    """Whoever asks first is not compared, nor is a hand-out without an answer looked for."""
    _blind(patch, "assign")
    patch.setattr(Assigner, "_doubt", lambda self, process, **_: None)
    # A submission that meets a waiting poll is assigned by a transaction of its own.
    patch.setattr(Assigner, "_first_waiting", lambda self, process: None)


def blind_close(patch: pytest.MonkeyPatch) -> None:
    """An end is written over whatever there is."""
    _blind(patch, "close")


def blind_move(patch: pytest.MonkeyPatch) -> None:
    """A process goes elsewhere, whatever became of it."""
    _blind(patch, "move")


def blind_hand_out(patch: pytest.MonkeyPatch) -> None:
    """What the index holds is handed out, although a peer has it."""

    async def hand_out(self: Assigner, entry: Waiting, executor: Executor) -> Process | None:
        for _ in range(8):
            known = await self.processes.load(entry.colony, entry.processid)
            if known is None or known[0].state != State.WAITING:
                return None
            step = store.assign(*known, executor, self.processes.clock.now())
            result = await self.processes.client.commit(step.txn)
            if result.succeeded:
                self.processes.settle(step.process, result.revision)
                return step.process
        return None

    patch.setattr(Assigner, "_assign", hand_out)


def careless_removal(patch: pytest.MonkeyPatch) -> None:
    """A process may be removed, wherever it is."""

    async def remove(self: Processes, colony: str, processid: str) -> None:
        found = await self.load(colony, processid)
        if found is None:
            raise NotFound("it is gone")
        if not (await self.client.commit(store.remove(*found))).succeeded:
            raise Conflict("it changed")
        self.forget(processid)

    patch.setattr(Processes, "remove", remove)


def unguarded_decision(patch: pytest.MonkeyPatch) -> None:
    """A person's word counts, whatever became of the forward since it was read."""
    patch.setattr(resolving, "ModRevision", lambda key, revision: Absent(_NEVER))


def endless_cancel(patch: pytest.MonkeyPatch) -> None:
    """A cancel that nobody answers is sent for ever."""
    passed = machine.deadline_passed

    def ever(forward: Forward, *args: Any) -> Effect | None:
        return None if forward.state == machine.ForwardState.CANCELLING else passed(forward, *args)

    patch.setattr(machine, "deadline_passed", ever)
