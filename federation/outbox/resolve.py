"""A person's decision about a process in doubt: it has failed, or runs here after all.

`forward.machine` says which decisions are allowed. Either way, `outbox.sender` tells the peer to
stop.
"""

from __future__ import annotations

import msgspec

from colonyd.errors import Conflict, Invalid, NotFound
from federation.forward import machine
from federation.forward.machine import Forward
from federation.outbox.outbox import Outbox
from node.etcd.txn import ModRevision, Op, Put, Txn
from node.host.log import get_logger
from node.model.codec import pack, unpack
from node.model.types import Process, State
from node.store.work import processes as store

_TRIES = 4

log = get_logger("resolving")


async def resolve(outbox: Outbox, processid: str, *, requeue: bool) -> Process:
    """End the doubt about a process: fail it, or put it into our own queue. Return the process.

    One transaction changes the process and turns its forward into a cancel. It compares both, so an
    outcome that comes meanwhile wins. A crash before it changes nothing; after it, the cancel is in
    the outbox and is sent. Raises Invalid, NotFound or Conflict.
    """
    problem = ""
    for _ in range(_TRIES):
        loaded = await outbox.context.processes.load(outbox.context.home, processid)
        if loaded is None:
            raise NotFound(f"process {processid} is not in colony {outbox.context.home}")
        process = loaded[0]
        _demand_doubtful(process, outbox, requeue=requeue)
        key = outbox.context.keys.forward(process.peer, processid)
        found = await outbox.context.client.get(key)
        if found is None:
            # An outcome may have come since the process was read; the next read shows it.
            problem = "no forward of the process is under way; look at it again"
            continue
        forward = unpack(found.value, Forward)
        if (forward.state, machine.ForwardEvent.FAILED) not in machine.TRANSITIONS:
            raise Invalid(f"the process is not in doubt, it is {forward.state}; cancel it instead")
        try:
            done = await _decide(outbox, forward, found.mod_revision, requeue=requeue)
        except Conflict as error:
            problem = error.message
            continue  # the forward or the process has changed: read both again
        finally:
            # Whether or not the write happened, the store says what is to be sent.
            outbox.touched(process)
        log.info("doubt resolved", process=processid, peer=process.peer, requeued=requeue)
        return done
    raise Conflict(problem)


def _demand_doubtful(process: Process, outbox: Outbox, *, requeue: bool) -> None:
    if process.closed:
        state = process.state.name.lower()
        raise Invalid(f"the process is {state} already, and stays so; submit it again if need be")
    if not process.peer:
        raise Invalid("the process is at no other colony, so nothing about it is in doubt")
    if requeue and process.origin:
        name = outbox.context.peers.name(process.origin)
        raise Invalid(f"the process came from colony {name}; only its owner may run it elsewhere")


async def _decide(outbox: Outbox, forward: Forward, revision: int, *, requeue: bool) -> Process:
    key = outbox.context.keys.forward(forward.peer, forward.processid)
    guard = ModRevision(key, revision)
    name = outbox.context.peers.name(forward.peer)

    def step(process: Process, at: int) -> store.Transition:
        now = outbox.context.clock.now()
        if process.closed or process.peer != forward.peer:
            raise Conflict("the process went on meanwhile; look at it again")
        effect = machine.resolved(forward, name, now, aside=requeue)
        extra: list[Op] = [Put(key, pack(effect.forward))]
        if not requeue:
            return store.close(
                process, at, State.FAILED, now, errors=effect.errors, extra=extra, compare=[guard]
            )
        extra.append(
            Put(outbox.context.keys.proof(forward.processid), pack(machine.overruled(effect, now)))
        )
        # The next attempt gets another number than the attempt that may still run.
        here = msgspec.structs.replace(
            process, peer="", attempt=max(process.attempt, forward.attempt)
        )
        back = store.requeue(here, at, now, counts=False)
        txn = Txn([*back.txn.compare, guard], [*back.txn.success, *extra])
        return store.Transition(back.process, txn)

    return await outbox.context.processes.change(outbox.context.home, forward.processid, step)
