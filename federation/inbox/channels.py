"""The receiver of channel messages from the origins of processes here."""

from __future__ import annotations

from dataclasses import dataclass

from federation.forward import channels as words
from federation.forward.receipt import SAID, ReceiptRecord
from federation.limits.accounts import PeerQuotas
from federation.peers.context import Context
from federation.transport.endpoint import Endpoint
from federation.wire.envelope import Kind, VerifiedMessage
from federation.wire.messages import Heard, Say, load
from federation.wire.refusals import Refusal
from node.etcd.pressure import Need
from node.etcd.txn import Get, ModRevision, Put, Txn
from node.model.codec import pack, unpack
from node.model.types import Process
from node.store import keys
from node.store.work import channels as store

_TRIES = 5
_ENTRY = 300  # bytes of a message with its key beside the payload, about


@dataclass
class ChannelReceiver:
    """Stores the messages that origins send to their processes here."""

    context: Context
    peer_quotas: PeerQuotas

    def endpoints(self) -> list[Endpoint]:
        """Return the endpoint to which peers send messages of channels."""
        return [Endpoint("/v1/say", Kind.SAY, self.hear)]

    async def hear(self, opened: VerifiedMessage, data: bytes) -> bytes:
        """Store messages, once. The answer says how many entries of that colony's we have now.

        Refused, and not stored: unknown_process, no_channel, closed, channel_full, bad_message.
        Raises StoreFull.
        """
        say, context = load(opened.payload, Say), self.context
        found = await context.client.get(context.keys.receipt_record(opened.issuer, say.pid))
        receipt_record = unpack(found.value, ReceiptRecord) if found else None
        if (
            receipt_record is None
            or not receipt_record.localpid
            or receipt_record.attempt != say.attempt
        ):
            raise Refusal(404, "unknown_process", "no such process of your colony is here")
        context.client.pressure.demand(Need.GROWS)
        for _ in range(_TRIES):
            after = await self._store(opened.issuer, receipt_record.localpid, say)
            if after is not None:
                heard = Heard(say.pid, say.attempt, say.name, after)
                return context.signer.seal(Kind.HEARD, opened.issuer, heard)
        raise Refusal(503, "busy", "the channel changes too fast", again=1)

    async def _store(self, issuer: str, pid: str, say: Say) -> int | None:
        """Try once to store the messages. Return None if the channel was changed meanwhile."""
        context, home = self.context, self.context.home
        key = context.keys.hearing(issuer, say.pid)
        place = store.head(home, pid, say.name)
        reads = [Get(keys.process(home, pid)), Get(key), Get(place)]
        there, known, head = (await context.client.commit(Txn([], reads))).responses
        if not there:
            raise Refusal(404, "unknown_process", "the process was removed")
        process = unpack(there[0].value, Process)
        heard = unpack(known[0].value, dict[str, int]) if known else {}
        if say.name not in (process.spec.channels or ()):
            raise Refusal(404, "no_channel", f"the process has no channel {say.name[:80]!r}")
        if say.start != heard.get(say.name, 0) or say.after <= say.start:
            return heard.get(say.name, 0)
        if process.closed:
            raise Refusal(409, "closed", f"the process is {process.state.name.lower()}")
        holds = unpack(head[0].value, store.ChannelHead) if head else store.ChannelHead()
        entries = words.entries(say.said, say.start, say.after, issuer, context.clock.now())
        if not entries:
            raise Refusal(400, "bad_message", "no messages, out of order, or one too large")
        if not words.fits(holds, entries):
            raise Refusal(409, "channel_full", "the channel takes no more messages")
        size = sum(len(each.payload) + _ENTRY for each in entries)
        full = self.peer_quotas.take(issuer, size, 0)
        if full is not None:
            raise full
        compare, ops = store.extend(
            home, pid, say.name, entries, holds, head[0].mod_revision if head else 0
        )
        compare = [
            *compare,
            ModRevision(key, known[0].mod_revision if known else 0),
            ModRevision(there[0].key, there[0].mod_revision),
        ]
        put = Put(key, pack(heard | {say.name: say.after, SAID: heard.get(SAID, 0) + size}))
        written = True  # without an answer, it may have happened
        try:
            written = (await context.client.commit(Txn(compare, [*ops, put]))).succeeded
        finally:
            self.peer_quotas.settle(issuer, size, 0, left=written)
        if not written:
            return None
        context.processes.hooks.progressed(process)
        return say.after
