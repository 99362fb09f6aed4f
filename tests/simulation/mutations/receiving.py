"""Checks of what comes in, each broken."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Any

import msgspec
import pytest

import federation.wire.card
from federation.forward import path as relays
from federation.forward.receipt import ReceiptRecord
from federation.inbox import accept as inbox
from federation.inbox import outcomes as owing
from federation.inbox import usage as stocktaking
from federation.inbox.accept import Inbox
from federation.peers import policy
from federation.peers.registry import Peer, Peers
from federation.service import server as gate
from federation.service.extension import NodeExtension
from federation.wire import envelope
from federation.wire.card import Card
from federation.wire.envelope import Kind, Rejected, VerifiedMessage, inspect, open_envelope
from node.etcd.txn import Absent, Delete, Op, Put
from node.model.codec import unpack

_NEVER = "/never"  # a key that is not there: to demand its absence is to demand nothing


def no_signature(patch: pytest.MonkeyPatch) -> None:
    """Whoever names a colony is that colony."""
    patch.setattr(envelope, "_check_signature", lambda *_: None)


def any_audience(patch: pytest.MonkeyPatch) -> None:
    """A message for another colony will do."""

    def opened(data: bytes, **checks: Any) -> VerifiedMessage:
        checks["audience"] = inspect(data, limit=len(data)).audience
        return open_envelope(data, **checks)

    patch.setattr(gate, "open_envelope", opened)


def any_kind(patch: pytest.MonkeyPatch) -> None:
    """A message of another kind will do."""

    def opened(data: bytes, **checks: Any) -> VerifiedMessage:
        for kind in Kind:
            try:
                return open_envelope(data, **checks | {"kind": kind})
            except Rejected as rejected:
                if rejected.code not in ("wrong_kind", "bad_signature"):
                    raise
        return open_envelope(data, **checks)

    patch.setattr(gate, "open_envelope", opened)


def any_time(patch: pytest.MonkeyPatch) -> None:
    """A message that expired will do."""
    patch.setattr(envelope, "_check_time", lambda *_: None)


def forgotten_time(patch: pytest.MonkeyPatch) -> None:
    """What time it was before is not asked."""
    check = envelope._check_time
    patch.setattr(envelope, "_check_time", lambda seen, now, high_water: check(seen, now, 0))


def any_future(patch: pytest.MonkeyPatch) -> None:
    """A message of any later time will do."""
    patch.setattr(envelope, "MAX_AHEAD", float("inf"))


def anyones_trust(patch: pytest.MonkeyPatch) -> None:
    """Whoever is known is trusted."""

    def revision(peers: Peers, issuer: str) -> int:
        entry = peers.get(issuer)
        return entry.revision if entry else 0

    patch.setattr(gate.Server, "_demand_trust", lambda self, issuer, **_: None)
    patch.setattr(inbox, "trusted_revision", revision)
    patch.setattr(owing, "trusted_revision", revision)


def no_marker(patch: pytest.MonkeyPatch) -> None:
    """What was taken in leaves no mark."""

    def put(key: str, value: bytes, lease: int = 0) -> Op:
        return Delete(key) if "/marker/" in key else Put(key, value, lease)

    patch.setattr(inbox, "Put", put)


def no_dedupe(patch: pytest.MonkeyPatch) -> None:
    """A message that came before is another process."""
    take_in = Inbox._take_in

    async def taken(
        self: Inbox, opened: VerifiedMessage, data: bytes, submit: Any, process: Any, *more: Any
    ) -> Any:
        if (
            await self.context.client.get(
                self.context.keys.receipt_record(opened.issuer, submit.pid)
            )
            is not None
        ):
            process.processid = hashlib.sha256(process.processid.encode()).hexdigest()
        return await take_in(self, opened, data, submit, process, *more)

    patch.setattr(inbox, "Absent", lambda _: Absent(_NEVER))
    patch.setattr(Inbox, "_take_in", taken)


def losing_cancel(patch: pytest.MonkeyPatch) -> None:
    """A submission counts although its cancel came before."""
    patch.setattr(inbox, "Absent", lambda _: Absent(_NEVER))


def early_sweep(patch: pytest.MonkeyPatch) -> None:
    """A marker is kept no longer than its process runs."""

    def unpacked(data: bytes, kind: Any) -> Any:
        value = unpack(data, kind)
        return msgspec.structs.replace(value, expires=0) if kind is ReceiptRecord else value

    patch.setattr(stocktaking, "unpack", unpacked)


def blind_path(patch: pytest.MonkeyPatch) -> None:
    """Nobody looks where a process was before."""
    unwrap, toward = relays.unwrap, Peers.toward

    def unwrapped(
        opened: VerifiedMessage, submit: Any, me: object, *more: Any
    ) -> relays.RelayedRequest:
        return unwrap(opened, submit, (), *more)

    def leads(self: Peers, target: str, avoid: Collection[str] = (), **more: Any) -> str:
        return toward(self, target, (), **more)

    patch.setattr(relays, "unwrap", unwrapped)
    patch.setattr(Peers, "toward", leads)


def no_hop_limit(patch: pytest.MonkeyPatch) -> None:
    """Each hop counts as the first one."""
    breach = policy.violation_of
    patch.setattr(inbox, "violation_of", lambda *args, **more: breach(*args, **more | {"hops": 1}))


def no_waiting_cap(patch: pytest.MonkeyPatch) -> None:
    """The policy is not asked how many may wait."""
    patch.setattr(Inbox, "_enter", lambda *_: None)


def no_running_cap(patch: pytest.MonkeyPatch) -> None:
    """The policy is not asked how many may run."""
    patch.setattr(NodeExtension, "most_running", lambda self, origin: 0)


def chosen_name(patch: pytest.MonkeyPatch) -> None:
    """A trusted peer is called what its latest card says."""
    described = Peer.described

    def anew(self: Peer, card: Card, data: bytes) -> Peer:
        return described(self, card, data).renamed()

    patch.setattr(Peer, "described", anew)


def any_name(patch: pytest.MonkeyPatch) -> None:
    """A colony may be called anything."""
    patch.setattr(federation.wire.card, "is_name", bool)
