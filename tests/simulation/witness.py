"""What must hold in every world, checked at each write of each store and once more at the end.

The witness sees everything and changes nothing; the rules are those of the design's promise.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from federation.forward.machine import Forward, ForwardState
from federation.forward.path import local_id
from federation.forward.receipt import ReceiptRecord
from federation.peers.policy import Policy
from federation.peers.record import Peer
from federation.peers.registry import BLOCKED, TRUSTED
from federation.wire.envelope import MAX_LIFETIME
from node.model.codec import unpack
from node.model.types import SECOND, Process, State
from node.store import keys
from tests.simulation.colony import WORKERS, Site
from tests.simulation.store import Change
from tests.simulation.world import Broken, World

__all__ = ["Witness"]

_PROCESS = f"{keys.ROOT}process/"
_SLOW = 10  # seconds from the check of a message to the end of its transaction, at most


@dataclass
class Witness:
    """`sites` by colony id. `decided` holds the processes about which a person decided."""

    world: World
    sites: dict[str, Site] = field(default_factory=dict)
    forwarded: set[tuple[str, str, str]] = field(default_factory=set)  # origin, pid, peer
    taken: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # peer, origin, pid
    copies: dict[tuple[str, str], dict[str, str]] = field(  # (origin, pid) -> peer -> local id
        default_factory=lambda: defaultdict(dict)
    )
    ran: dict[tuple[str, str], Process] = field(default_factory=dict)  # last seen, by colony, pid
    submitted: dict[tuple[str, str], str] = field(default_factory=dict)  # (colony, nonce) -> pid
    decided: set[tuple[str, str]] = field(default_factory=set)
    foes: set[str] = field(default_factory=set)
    problem: str = ""

    def watch(self, site: Site) -> None:
        """Look at every write of a colony from now on."""
        self.sites[site.key.id] = site

        def observe(revision: int, changes: list[Change]) -> None:
            world = self.world
            world.note(site.name, "·", revision, *(_brief(change, site) for change in changes))
            for change in changes:
                self._changed(site, change)

        site.store.observers.append(observe)

    def broken(self, rule: str, *details: object) -> None:
        """Remember the first violation, and stop."""
        text = f"{rule}: {' '.join(map(str, details))}"
        self.world.note("world", "BROKEN", text)
        self.problem = self.problem or text
        raise Broken(self.problem)

    def check(self) -> None:
        """Raise what was found, even if somebody swallowed it."""
        if self.problem:
            raise Broken(self.problem)

    # -- at each write ---------------------------------------------------------------------

    def _changed(self, site: Site, change: Change) -> None:
        key = change.key
        if key.startswith(_PROCESS):
            before = unpack(change.before.value, Process) if change.before else None
            after = unpack(change.after.value, Process) if change.after else None
            self._process(site, before, after)
        elif key.startswith(site.keys.owed_all):
            if change.after is None:
                issuer, pid = key[len(site.keys.owed_all) :].split("/")
                assert change.before is not None
                self._acknowledged(site, issuer, pid, change.before.value.decode())
        elif key.startswith(site.keys.markers):
            issuer, pid = key[len(site.keys.markers) :].split("/")
            self._receipt_record(site, issuer, pid, change)
        elif key.startswith(site.keys.outbox):
            peer, pid = key[len(site.keys.outbox) :].split("/")
            if change.before is None:
                self._forwarded(site, pid, peer)
            elif unpack(change.before.value, Forward).state == ForwardState.CANCELLING:
                self._cancelling(site, pid, change)
            if change.after is not None and unpack(change.after.value, Forward).aside:
                self.decided.add((site.key.id, pid))

    def _process(self, site: Site, before: Process | None, after: Process | None) -> None:
        if after is None:
            if before is not None and _elsewhere(before):
                self.broken("a process that somebody waits for was removed", before.processid)
            return
        self.ran[site.name, after.processid] = after
        if before is None:
            if after.origin:
                self._came(site, after)
            return
        if before.closed:
            if _end(before) != _end(after):
                self.broken("a closed process changed", site.name, before.processid)
            return
        runs = before.state == after.state == State.RUNNING
        if runs and before.assignedexecutorid != after.assignedexecutorid:
            self.broken("handed out while it runs", site.name, after.processid)
        if before.state == State.RUNNING and after.peer not in ("", before.peer):
            self.broken("sent away while it runs", site.name, after.processid)
        if after.state == State.RUNNING and before.state == State.WAITING:
            self._started(site, after)
        if after.closed:
            self._closed(site, before, after)

    def _came(self, site: Site, process: Process) -> None:
        """A process of another colony is in the store of `site`."""
        origin, pid = process.origin, process.notify.rpartition("/")[2]
        if not self._trusts(site, origin):
            self.broken("accepted from a colony that is not trusted", site.name, pid)
        self.taken[site.key.id, origin, pid] += 1
        if self.taken[site.key.id, origin, pid] > 1:
            self.broken("accepted twice", site.name, pid)
        found = site.store.get(site.keys.receipt_record(origin, pid))
        if found is None:
            self.broken("accepted without a marker", site.name, pid)
            return
        if (
            unpack(found.value, ReceiptRecord).expires - MAX_LIFETIME
            <= site.now() // SECOND - _SLOW
        ):
            self.broken("accepted what had expired", site.name, pid)
        if origin in self.foes:
            return
        self._demand_stopped(origin, pid, site.key.id)
        self._demand_room(site, process)
        self.copies[origin, pid][site.key.id] = process.processid
        self._demand_way(site, process)

    def _policy(self, site: Site, origin: str) -> Policy:
        found = site.store.get(site.keys.peer(origin))
        return (unpack(found.value, Peer).policy if found else None) or Policy()

    def _held(self, site: Site, origin: str, state: State) -> int:
        return sum(
            process.state == state and process.origin == origin and not process.peer
            for (name, _), process in self.ran.items()
            if name == site.name
        )

    def _demand_room(self, site: Site, process: Process) -> None:
        """A colony may have no more waiting than its policy says when one more is let in.

        What is being handed out at that moment waits in the store and no longer in the index.
        """
        most = self._policy(site, process.origin).max_waiting
        if most and self._held(site, process.origin, State.WAITING) > most + WORKERS:
            self.broken("more waits than the policy allows", site.name, process.processid)

    def _demand_way(self, site: Site, process: Process) -> None:
        """It was in no colony twice, and went no further than the policy for its last hop says."""
        seen, here = [site.key.id], process
        while here.origin and here.origin not in self.foes:
            if here.origin in seen:
                self.broken("a loop", site.name, process.processid)
            seen.append(here.origin)
            origin = self.sites[here.origin]
            parent = self.ran.get((origin.name, here.notify.rpartition("/")[2]))
            if parent is None:
                break
            here = parent
        if len(seen) - 1 > self._policy(site, process.origin).max_hops:
            self.broken("further away than the policy allows", site.name, process.processid)

    def _demand_stopped(self, origin: str, pid: str, but: str) -> None:
        """No other copy of a process may run, unless a person said so."""
        if (origin, pid) in self.decided:
            return
        for peer, localpid in self.copies[origin, pid].items():
            copy = self.ran.get((self.sites[peer].name, localpid))
            if peer != but and copy is not None and not copy.closed:
                self.broken("a second hand-out while", self.sites[peer].name, "may run", pid)

    def _started(self, site: Site, process: Process) -> None:
        if process.peer and process.assignedexecutorid != process.peer:
            self.broken("a forwarded process was handed out here", site.name, process.processid)
        if not process.peer:
            self._demand_stopped(site.key.id, process.processid, "")
            most = self._policy(site, process.origin).max_running if process.origin else 0
            if most and self._held(site, process.origin, State.RUNNING) > most:
                self.broken("more runs than the policy allows", site.name, process.processid)

    def _closed(self, site: Site, before: Process, after: Process) -> None:
        if after.origin and after.origin not in self.foes:
            self._ended_there(site, after)
        found = site.store.get(site.keys.forward(after.peer, after.processid))
        if found is not None and unpack(found.value, Forward).state != ForwardState.CANCELLING:
            self.broken("ended here, and the peer is not told", site.name, after.processid)
        if not after.peer or after.peer in self.foes:
            return
        peer = self.sites[after.peer]
        copy = self.ran.get((peer.name, local_id(site.key.id, after.processid, _attempt(after))))
        told = after.state == State.SUCCESSFUL or after.output not in ([], before.output)
        if told and (copy is None or _end(copy)[:2] != _end(after)[:2]):
            self.broken("an outcome that the peer never had", site.name, after.processid)

    def _cancelling(self, site: Site, pid: str, change: Change) -> None:
        """A wish to cancel stays one until the peer knows of it, or nobody waits any more."""
        if (
            change.after is not None
            and unpack(change.after.value, Forward).state != ForwardState.CANCELLING
        ):
            self.broken("a cancel was written over", site.name, pid)

    def _ended_there(self, site: Site, process: Process) -> None:
        """The process of a colony ended here: a cancel must have been that colony's wish."""
        if process.state != State.CANCELLED or self._state(site, process.origin) == BLOCKED:
            return
        origin, pid = self.sites[process.origin], process.notify.rpartition("/")[2]
        parent = self.ran.get((origin.name, pid))
        if parent is not None and not parent.closed and parent.peer == site.key.id:
            self.broken("cancelled against the origin's will", site.name, process.processid)

    def _acknowledged(self, site: Site, issuer: str, pid: str, localpid: str) -> None:
        """An outcome is owed no longer: the origin must have it."""
        copy = self.ran.get((site.name, localpid))
        if issuer in self.foes or copy is None:
            return
        origin = self.sites[issuer]
        if copy.state == State.CANCELLED:
            parent = self.ran.get((origin.name, pid))
            waits = parent is not None and not parent.closed
            if waits and (issuer, pid) not in self.decided:
                self.broken("a cancel's outcome was lost", site.name, pid)
            return
        if origin.store.get(keys.process(origin.name, pid)) is None:
            return  # its owner removed the process, and with it the wish to know
        proof = origin.store.get(origin.keys.proof(pid))
        kept = proof is not None and bool(unpack(proof.value, Forward).outcome)
        if not kept and origin.store.get(origin.keys.late(pid)) is None:
            self.broken("an outcome was lost", site.name, localpid, "for", origin.name, pid)

    def _receipt_record(self, site: Site, issuer: str, pid: str, change: Change) -> None:
        if change.after is not None:
            if issuer not in self.foes and (issuer, pid, site.key.id) not in self.forwarded:
                self.broken("a marker for what was never sent here", site.name, pid)
            if (
                change.before is not None
                and not unpack(change.before.value, ReceiptRecord).localpid
            ):
                self.broken("a cancel that came first did not win", site.name, pid)
            return
        assert change.before is not None
        receipt_record = unpack(change.before.value, ReceiptRecord)
        if receipt_record.expires > max(site.now() // SECOND, 0):
            self.broken("a marker went too early", site.name, pid)

    def _forwarded(self, site: Site, pid: str, peer: str) -> None:
        self.forwarded.add((site.key.id, pid, peer))
        self._demand_stopped(site.key.id, pid, peer)

    def _state(self, site: Site, other: str) -> str:
        found = site.store.get(site.keys.peer(other))
        return unpack(found.value, Peer).state if found else ""

    def _trusts(self, site: Site, other: str) -> bool:
        return self._state(site, other) == TRUSTED

    # -- at the end ------------------------------------------------------------------------

    def unfinished(self) -> list[str]:
        """What keeps the world from being quiet, in words."""
        found: list[str] = []
        for site in self.sites.values():
            store = site.store
            for prefix in (site.keys.outbox, site.keys.owed_all, keys.LIVE):
                found += [
                    f"{site.name}: {item.key}"
                    for item in store.items(prefix)
                    if prefix != site.keys.owed_all or not _names(item.key, self.foes)
                ]
            if not site.up:
                found.append(f"{site.name} is down")
        return found

    def final(self) -> None:
        """The world is quiet: both sides agree, and nothing is left over."""
        for site in self.sites.values():
            for item in site.store.items(keys.processes(site.name)):
                process = unpack(item.value, Process)
                if not process.closed:
                    self.broken("not closed in the end", site.name, process.processid)
                if process.peer and process.peer not in self.foes:
                    self._agree(site, process)

    def _agree(self, site: Site, process: Process) -> None:
        pid = process.processid
        proof = site.store.get(site.keys.proof(pid))
        if proof is None:
            self.broken("a forward left no record", site.name, pid)
            return
        forward = unpack(proof.value, Forward)
        peer = self.sites[process.peer]
        copy = self.ran.get((peer.name, local_id(site.key.id, pid, forward.attempt)))
        accepted = bool(forward.outcome)
        if process.state == State.SUCCESSFUL and not accepted:
            self.broken("a success without its signed outcome", site.name, pid)
        doubt = any("in doubt" in error for error in process.errors)
        if accepted:
            same = copy is not None and _end(copy)[:2] == _end(process)[:2]
            if not same and process.state != State.CANCELLED and not doubt:
                self.broken("the two sides disagree", site.name, pid)
            return
        if copy is None or copy.state == State.CANCELLED or process.state == State.CANCELLED:
            return
        if process.state == State.FAILED and not doubt:
            self.broken("a doubt was not shown", site.name, pid, process.errors)
        if site.store.get(site.keys.late(pid)) is None:
            self.broken("a late outcome was not kept", site.name, pid)


def _names(key: str, colonies: set[str]) -> bool:
    return any(each in key for each in colonies)


def _attempt(process: Process) -> int:
    return max(1, process.attempt)


def _elsewhere(process: Process) -> bool:
    """Whether it is in other hands than its owner's, who may remove what only waits."""
    abroad = bool(process.peer or process.origin)
    return process.state == State.RUNNING or (abroad and not process.closed)


def _end(process: Process) -> tuple[object, ...]:
    return (process.state, process.output, process.errors, process.endtime)


def _brief(change: Change, site: Site) -> str:
    """A key as the trace shows it."""
    parts = change.key.removeprefix(keys.ROOT).split("/")
    short = "/".join(part[:6] if len(part) > 20 else part for part in parts if part != site.name)
    if change.after is None:
        return f"-{short}"
    if change.key.startswith(_PROCESS):
        process = unpack(change.after.value, Process)
        return f"{short}={process.state.name.lower()}#{process.attempt}"
    if change.key.startswith(site.keys.outbox):
        forward = unpack(change.after.value, Forward)
        return f"{short}={forward.state}#{forward.sent}"
    return short
