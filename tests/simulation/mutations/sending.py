"""Checks of what goes out, each broken."""

from __future__ import annotations

import sys
from typing import Any

import msgspec
import pytest

from federation.forward import machine as outbox
from federation.forward.machine import Forward, Move
from federation.outbox.ledger import Entry, Ledger
from federation.wire.refusals import Proof
from node.etcd.txn import Delete, Op
from node.processes.extension import Addition
from node.processes.service import Processes


def early_again(patch: pytest.MonkeyPatch) -> None:
    """Silence counts as a certain no."""
    patch.setattr(outbox, "lost", outbox.unsent)


def undoubting_refusal(patch: pytest.MonkeyPatch) -> None:
    """A refusal of one copy is taken for one of all."""
    refused = outbox.refused

    def certain(forward: Forward, *args: Any, **kwargs: Any) -> Move:
        return refused(msgspec.structs.replace(forward, sent=1), *args, **kwargs)

    patch.setattr(outbox, "refused", certain)


def unsigned_refusal(patch: pytest.MonkeyPatch) -> None:
    """A refusal counts as certain, whoever made it."""
    refused = outbox.refused

    def certain(
        forward: Forward, code: str, message: str, name: str, now: int, proof: Proof = Proof.NONE
    ) -> Move:
        signed = {Proof.NONE: Proof.SIGNED, Proof.CARRIED: Proof.SIGNED_CARRIED}
        return refused(forward, code, message, name, now, signed.get(proof, proof))

    patch.setattr(outbox, "refused", certain)


def undoubting_block(patch: pytest.MonkeyPatch) -> None:
    """What went to a colony that is blocked never ran, the owner is told."""
    blocked = outbox.blocked

    def unsent(forward: Forward, *args: Any) -> Move:
        if forward.state != outbox.State.CANCELLING:
            forward = msgspec.structs.replace(forward, state=outbox.State.QUEUED)
        return blocked(forward, *args)

    patch.setattr(outbox, "blocked", unsent)


def silent_doubt(patch: pytest.MonkeyPatch) -> None:
    """What may still run has simply failed."""
    passed = outbox.deadline_passed

    def unsaid(*args: Any) -> Move | None:
        move = passed(*args)
        if move is not None:
            move = Move(move.forward, move.stays, move.act, ["it took too long"], move.certain)
        return move

    patch.setattr(outbox, "deadline_passed", unsaid)


def forgotten_failure(patch: pytest.MonkeyPatch) -> None:
    """What was not delivered in time is given up, and its process waits on."""
    passed = outbox.deadline_passed

    def unsaid(*args: Any) -> Move | None:
        move = passed(*args)
        return move and Move(move.forward, move.stays)

    patch.setattr(outbox, "deadline_passed", unsaid)


def no_record(patch: pytest.MonkeyPatch) -> None:
    """What is known of a forward goes with it."""
    leaving = Ledger.leaving

    def traceless(self: Ledger, move: Move) -> list[Op]:
        return [op for op in leaving(self, move) if move.stays or isinstance(op, Delete)]

    patch.setattr(Ledger, "leaving", traceless)


def unsaved_sending(patch: pytest.MonkeyPatch) -> None:
    """A copy leaves before it is stored that one may have left."""
    save = Ledger.save

    async def saved(self: Ledger, entry: Entry, forward: Forward, before: Forward) -> bool:
        if forward.state == outbox.State.DOUBT and before.state == outbox.State.QUEUED:
            entry.forward = forward
            return True
        return await save(self, entry, forward, before)

    patch.setattr(Ledger, "save", saved)


def overtaken_cancel(patch: pytest.MonkeyPatch) -> None:
    """What becomes of a message is written over a cancel that came meanwhile."""
    save = Ledger.save

    async def saved(self: Ledger, entry: Entry, forward: Forward, before: Forward) -> bool:
        if forward.state in (outbox.State.DOUBT, outbox.State.QUEUED):
            before = entry.forward
        return await save(self, entry, forward, before)

    patch.setattr(Ledger, "save", saved)


def untold_cancel(patch: pytest.MonkeyPatch) -> None:
    """A cancel ends the process here and leaves the forward as it is."""
    patch.setattr(Ledger, "cancelling", lambda self, process: Addition())


def untold_ledger(patch: pytest.MonkeyPatch) -> None:
    """A submission whose answer from the store was lost is not looked for."""
    patch.setattr(Processes, "tell", lambda self, process: None)


def unlooked_for(patch: pytest.MonkeyPatch) -> None:
    """A write without an answer counts as one that did not happen."""
    look_for = Ledger.look_for

    def looked(self: Ledger, processid: str, peerid: str) -> None:
        if sys.exception() is None:
            look_for(self, processid, peerid)

    patch.setattr(Ledger, "look_for", looked)
