"""Checks of what goes out, each broken."""

from __future__ import annotations

import sys
from typing import Any

import msgspec
import pytest

from federation.forward import machine
from federation.forward.machine import Effect, Forward
from federation.outbox.entries import OutboxEntry
from federation.outbox.outbox import Outbox
from federation.wire.refusals import Proof
from node.etcd.txn import Delete, Op
from node.processes.extension import Addition
from node.processes.service import Processes


def early_again(patch: pytest.MonkeyPatch) -> None:
    """Silence counts as a certain no."""
    patch.setattr(machine, "lost", machine.unsent)


def undoubting_refusal(patch: pytest.MonkeyPatch) -> None:
    """A refusal of one copy is taken for one of all."""
    refused = machine.refused

    def certain(forward: Forward, *args: Any, **kwargs: Any) -> Effect:
        return refused(msgspec.structs.replace(forward, sent=1), *args, **kwargs)

    patch.setattr(machine, "refused", certain)


def unsigned_refusal(patch: pytest.MonkeyPatch) -> None:
    """A refusal counts as certain, whoever made it."""
    refused = machine.refused

    def certain(
        forward: Forward, code: str, message: str, name: str, now: int, proof: Proof = Proof.NONE
    ) -> Effect:
        signed = {Proof.NONE: Proof.SIGNED, Proof.CARRIED: Proof.SIGNED_CARRIED}
        return refused(forward, code, message, name, now, signed.get(proof, proof))

    patch.setattr(machine, "refused", certain)


def undoubting_block(patch: pytest.MonkeyPatch) -> None:
    """What went to a colony that is blocked never ran, the owner is told."""
    blocked = machine.blocked

    def unsent(forward: Forward, *args: Any) -> Effect:
        if forward.state != machine.ForwardState.CANCELLING:
            forward = msgspec.structs.replace(forward, state=machine.ForwardState.QUEUED)
        return blocked(forward, *args)

    patch.setattr(machine, "blocked", unsent)


def silent_doubt(patch: pytest.MonkeyPatch) -> None:
    """What may still run has simply failed."""
    passed = machine.deadline_passed

    def unsaid(*args: Any) -> Effect | None:
        effect = passed(*args)
        if effect is not None:
            effect = Effect(
                effect.forward, effect.stays, effect.act, ["it took too long"], effect.certain
            )
        return effect

    patch.setattr(machine, "deadline_passed", unsaid)


def forgotten_failure(patch: pytest.MonkeyPatch) -> None:
    """What was not delivered in time is given up, and its process waits on."""
    passed = machine.deadline_passed

    def unsaid(*args: Any) -> Effect | None:
        effect = passed(*args)
        return effect and Effect(effect.forward, effect.stays)

    patch.setattr(machine, "deadline_passed", unsaid)


def no_record(patch: pytest.MonkeyPatch) -> None:
    """What is known of a forward goes with it."""
    leaving = Outbox.leaving

    def traceless(self: Outbox, effect: Effect) -> list[Op]:
        return [op for op in leaving(self, effect) if effect.stays or isinstance(op, Delete)]

    patch.setattr(Outbox, "leaving", traceless)


def unsaved_sending(patch: pytest.MonkeyPatch) -> None:
    """A copy leaves before it is stored that one may have left."""
    save = Outbox.save

    async def saved(
        self: Outbox, entry: OutboxEntry, forward: Forward, before: Forward, *compare: Any
    ) -> bool:
        if (
            forward.state == machine.ForwardState.DOUBT
            and before.state == machine.ForwardState.QUEUED
        ):
            entry.forward = forward
            return True
        return await save(self, entry, forward, before, *compare)

    patch.setattr(Outbox, "save", saved)


def overtaken_cancel(patch: pytest.MonkeyPatch) -> None:
    """What becomes of a message is written over a cancel that came meanwhile."""
    save = Outbox.save

    async def saved(
        self: Outbox, entry: OutboxEntry, forward: Forward, before: Forward, *compare: Any
    ) -> bool:
        if forward.state in (machine.ForwardState.DOUBT, machine.ForwardState.QUEUED):
            before = entry.forward
        return await save(self, entry, forward, before, *compare)

    patch.setattr(Outbox, "save", saved)


def untold_cancel(patch: pytest.MonkeyPatch) -> None:
    """A cancel ends the process here and leaves the forward as it is."""
    patch.setattr(Outbox, "cancelling", lambda self, process: Addition())


def untold_ledger(patch: pytest.MonkeyPatch) -> None:
    """A submission whose answer from the store was lost is not looked for."""
    patch.setattr(Processes, "tell", lambda self, process: None)


def unlooked_for(patch: pytest.MonkeyPatch) -> None:
    """A write without an answer counts as one that did not happen."""
    look_for = Outbox.look_for

    def looked(self: Outbox, processid: str, peerid: str) -> None:
        if sys.exception() is None:
            look_for(self, processid, peerid)

    patch.setattr(Outbox, "look_for", looked)
