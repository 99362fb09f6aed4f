"""Generators: arguments that wait in a queue, and workflows that start with them in order.

Transactions are made by `store.generators`; which daemon looks after the queues is decided in
`timers.runner`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec
import trio

from colonyd.errors import Conflict, Invalid, NotFound, RpcError, TooMany
from node.etcd.client import EtcdClient
from node.etcd.errors import EtcdError
from node.etcd.pages import Pages, each, values
from node.etcd.pressure import Need
from node.etcd.txn import Compare, Delete, ModRevision, Op, Txn
from node.host.log import get_logger
from node.model.codec import unpack
from node.model.ids import MAX_SECONDS, new_id
from node.model.types import SECOND
from node.store import generators as store
from node.store.directory import Directory
from node.store.generators import Arg, Generator, GeneratorFiring, Packing
from node.store.limits import GENERATOR
from node.tasks.offload import apart
from node.timers.election import Leader
from node.timers.timerqueue import TimerIndex
from node.timers.trigger import (
    LATER,
    WarningLimiter,
    check_name,
    check_workflow,
    is_final,
    may_start,
)
from node.workflows.service import Workflows
from node.workflows.spec import read_workflow

log = get_logger("generators")

MAX_TRIGGER = 10_000
# Bytes of all arguments of one workflow, and in all nodes if several get them: the store must not
# hold a pack many times.
MAX_BYTES = GENERATOR
_IN_ALL = 2 * 2**20
# Nanoseconds for which the repeat of a request is recognised; requests are fresh for half of it.
REMEMBERED = 600 * SECOND
_TRIES = 32
# Arguments and bytes of one transaction of packs: each argument takes two operations of 128.
_TOGETHER, _TOGETHER_BYTES = 50, 512 * 1024
_NO_ROOM = 5.0  # seconds until a generator is tried again that a full store kept from starting
_PAGE = 16
_ARGS_PAGE = 1000


def check_generator(generator: Generator) -> None:
    """Raise Invalid that names the field of a generator that has no usable value."""
    check_name(generator.name, "generator.name")
    if not 1 <= generator.trigger <= MAX_TRIGGER:
        raise Invalid(f"generator.trigger: between 1 and {MAX_TRIGGER} arguments")
    if generator.timeout > MAX_SECONDS:
        raise Invalid(f"generator.timeout: at most {MAX_SECONDS} seconds")


def largest_arg(generator: Generator) -> int:
    """Return the bytes that an argument may have, so that a workflow can hold as many as trigger
    it.

    Each node without dependencies gets all of them.
    """
    most = MAX_BYTES if generator.roots == 1 else _IN_ALL // generator.roots
    return most // generator.trigger


def decide(generator: Generator, now: int) -> GeneratorFiring | None:
    """Return the firing at `now` (Unix ns): as many arguments as trigger it, or all when time is
    up.
    """
    size = generator.queuesize
    if size >= generator.trigger:
        upto = generator.head + generator.trigger
    elif size and generator.timeout > 0 and now >= _deadline(generator):
        upto = generator.tail
    else:
        return None
    return GeneratorFiring(store.graph_id(generator.generatorid, generator.head), upto, now)


def _deadline(generator: Generator) -> int:
    return generator.oldest + generator.timeout * SECOND


def due(generator: Generator) -> int | None:
    """Return when the leader has to look after a generator, in Unix ns; None for not before a
    pack.
    """
    if generator.firing is not None or generator.queuesize >= generator.trigger:
        return 0
    if generator.queuesize and generator.timeout > 0:
        return _deadline(generator)
    return None


def owner(generator: Generator) -> tuple[str, str]:
    """Return the colony of a generator and the id of its member."""
    return generator.colonyname, generator.initiatorid


@dataclass(eq=False)
class _PackSlot:
    packing: Packing
    done: bool = False
    error: Exception | None = None


@dataclass
class _PackQueue:
    """Packs of one generator in the order they came; the holder of the lock stores for those
    behind.
    """

    lock: trio.Lock = field(default_factory=trio.Lock)
    seats: list[_PackSlot] = field(default_factory=list)

    def front(self) -> list[_PackSlot]:
        """Return the packs that go into one transaction."""
        taken, tokens, size = list[_PackSlot](), set[str](), 0
        for seat in self.seats[:_TOGETHER]:
            size += len(seat.packing.arg.encode())
            # A repeat that came meanwhile goes later: its token tells then that it is one.
            if taken and (size > _TOGETHER_BYTES or seat.packing.token in tokens):
                break
            taken.append(seat)
            tokens |= {seat.packing.token} - {""}
        return taken


@dataclass
class Generators:
    """The generators of a node. `now` gives Unix nanoseconds."""

    client: EtcdClient
    directory: Directory
    workflows: Workflows
    leader: Leader
    now: Callable[[], int]
    index: TimerIndex[Generator] = field(default_factory=lambda: TimerIndex(Generator, due, owner))
    _told: WarningLimiter = field(default_factory=WarningLimiter)
    _lines: dict[str, _PackQueue] = field(default_factory=dict)

    # -- for callers ---------------------------------------------------------------------

    async def add(self, generator: Generator, workflowspec: str) -> Generator:
        """Store a new generator; an empty id is filled in.

        A repeat with the same id returns the stored generator. Raises Invalid, NotFound, or
        TooMany.
        """
        check_generator(generator)
        place = "generator.workflowspec"
        specs = await apart(
            len(workflowspec), check_workflow, workflowspec, generator.colonyname, place
        )
        generator = msgspec.structs.replace(
            generator,
            generatorid=generator.generatorid or new_id(),
            roots=sum(not spec.conditions.dependencies for spec in specs),
        )
        if largest_arg(generator) < 1:
            raise Invalid(
                f"generator.trigger: {generator.roots} nodes without dependencies would get all of"
                f" {generator.trigger} arguments; that is more than fits the store"
            )
        if self.index.get(store.key(generator.colonyname, generator.generatorid)) is None:
            self._require_room(generator)
        result = await self.client.commit(store.add(generator, workflowspec))
        if not result.succeeded:
            mine, name = result.responses
            if mine:
                return unpack(mine[0].value, Generator)
            if name:
                raise Invalid(f"generator.name: a generator {generator.name!r} exists already")
            raise NotFound(f"generator.colonyname: {generator.colonyname!r} is not hosted here")
        key = store.key(generator.colonyname, generator.generatorid)
        self.index.learn(key, generator, result.revision)
        return generator

    def _require_room(self, generator: Generator) -> None:
        quotas, colony = self.workflows.processes.quotas, generator.colonyname
        member, owners = f"{generator.initiatorname!r} in colony {colony!r}", self.index.owners
        quotas.require("member_generators", member, owners.get(owner(generator), 0), "generators")
        quotas.require(
            "colony_generators", f"colony {colony!r}", owners.get((colony, ""), 0), "generators"
        )

    async def remove(self, colony: str, generatorid: str) -> None:
        """Remove a generator with its queue. Raises NotFound."""
        generator = await self.get(colony, generatorid)
        result = await self.client.commit(store.remove(generator))
        self.index.apply(store.key(colony, generatorid), None, result.revision)

    async def get(self, colony: str, generatorid: str) -> Generator:
        """Return the generator from the store. Raises NotFound."""
        found = await self.load(colony, generatorid)
        if found is None:
            raise NotFound(f"generatorid: no generator {generatorid[:80]!r} in colony {colony}")
        return found[0]

    async def find(self, colony: str, name: str) -> Generator | None:
        """Return the generator with a name, or None."""
        found = await self.client.get(store.name_key(colony, name))
        known = await self.load(colony, found.value.decode()) if found is not None else None
        return known[0] if known is not None else None

    def listing(self, colony: str, count: int) -> list[Generator]:
        """Return at most `count` generators of a colony, by name, as the index has them."""
        return self.index.first(colony, count)

    async def spec(self, generator: Generator) -> str:
        """Return the workflow of a generator, as it was sent; "" if the generator is gone."""
        found = await self.client.get(store.spec_key(generator.colonyname, generator.generatorid))
        return found.value.decode() if found is not None else ""

    def with_specs(self, found: Sequence[Generator]) -> Pages[tuple[Generator, str]]:
        """Return generators with their workflows, in pages; without generators that are gone by
        now.
        """
        owners = {store.spec_key(each.colonyname, each.generatorid): each for each in found}
        return each(
            values(self.client, list(owners)), lambda kv: (owners[kv.key], kv.value.decode())
        )

    async def load(self, colony: str, generatorid: str) -> tuple[Generator, int] | None:
        """Return the generator and its revision from the store, or None."""
        if "/" in generatorid:
            return None
        found = await self.client.get(store.key(colony, generatorid))
        return (unpack(found.value, Generator), found.mod_revision) if found is not None else None

    async def pack(self, colony: str, generatorid: str, arg: str, token: str = "") -> None:
        """Append an argument to the queue; the same token appends it once in ten minutes.

        Packs of one generator keep their order, and simultaneous ones share a transaction. Raises
        RpcError, and EtcdError, which leaves open whether it was added.
        """
        key = store.key(colony, generatorid)
        line = self._lines.setdefault(key, _PackQueue())
        seat = _PackSlot(Packing(arg, token))
        line.seats.append(seat)
        try:
            # The lock is given in the order of the slots: the task that gets it is in front.
            async with line.lock:
                if not seat.done:
                    # Shielded: other packs are in this transaction; bounded by the store's timeout.
                    with trio.CancelScope(shield=True):
                        await self._store(colony, generatorid, line.front())
        finally:
            line.seats = [each for each in line.seats if each is not seat and not each.done]
            # Packs that were stored by another task may leave late, when others have a queue of
            # their own.
            if not line.seats and self._lines.get(key) is line:
                del self._lines[key]
        if seat.error is not None:
            raise seat.error

    async def _store(self, colony: str, generatorid: str, seats: list[_PackSlot]) -> None:
        """Append the arguments of the slots, or tell each slot what was wrong."""
        try:
            await self._enqueue(colony, generatorid, seats)
        except (RpcError, EtcdError) as error:
            for seat in seats:
                seat.error = seat.error if seat.done else error
        finally:
            for seat in seats:
                seat.done = True

    async def _enqueue(self, colony: str, generatorid: str, seats: list[_PackSlot]) -> None:
        key = store.key(colony, generatorid)
        known = self.index.get(key) or await self.load(colony, generatorid)
        for _ in range(_TRIES):
            if known is None:
                self.index.forget(key)
                raise NotFound(f"generatorid: no generator {generatorid[:80]!r} in colony {colony}")
            self._check_room(known[0], seats)
            left = [seat for seat in seats if not seat.done]
            if not left:
                return
            packings = [seat.packing for seat in left]
            after, txn = store.enqueue(known[0], known[1], packings, self.now())
            result = await self.client.commit(txn)
            if result.succeeded:
                self.index.learn(key, after, result.revision)
                return
            found, *tokens = result.responses
            known = (unpack(found[0].value, Generator), found[0].mod_revision) if found else None
            used = {kv.key.rpartition("/")[2] for kvs in tokens for kv in kvs}
            for seat in left:
                seat.done = seat.packing.token in used
        raise Conflict("generatorid: the generator changes too fast; try again")

    def _check_room(self, generator: Generator, seats: Sequence[_PackSlot]) -> None:
        """Refuse arguments that are too large, or for which the queue has no room."""
        most, quotas = largest_arg(generator), self.workflows.processes.quotas
        whose = f"generator {generator.name!r}"
        packs, size = generator.queuesize, generator.queuebytes
        for seat in seats:
            if seat.done:
                continue
            more = len(seat.packing.arg.encode())
            try:
                if more > most:
                    raise Invalid(
                        f"arg: at most {most} bytes, so that {generator.trigger} fit one workflow"
                    )
                quotas.require("generator_packs", whose, packs, "arguments that wait")
                quotas.require("generator_bytes", whose, size, "bytes that wait", more)
            except RpcError as error:
                seat.error, seat.done = error, True
            else:
                packs, size = packs + 1, size + more

    # -- for the leader ------------------------------------------------------------------

    async def act(self, key: str) -> float:
        """Start the workflow that a generator is due for, as the leader.

        Returns the seconds for which the generator is then left alone. Raises EtcdError.
        """
        known = self.index.get(key)
        if known is None:
            return 0.0
        generator, revision = known
        firing = generator.firing or decide(generator, self.now())
        if firing is None:
            return 0.0
        if not may_start(self.directory, generator.colonyname, generator.initiatorid):
            return self._wait(generator, "its creator left the colony")
        if self.client.pressure.refuses(Need.GROWS):
            return _NO_ROOM
        if generator.firing is None:
            after, txn = store.fire(generator, revision, firing, self.leader.fence)
            result = await self.client.commit(txn)
            if not result.succeeded:
                return await self._reload(key, revision)
            self.index.learn(key, after, result.revision)
            generator, revision = after, result.revision
        return await self._submit(key, generator, revision, firing)

    def _wait(self, generator: Generator, reason: str) -> float:
        """Log once in a while for all generators of a member why one waits; return the seconds of
        the wait.
        """
        if self._told.first(owner(generator), self.now()):
            name, generatorid = generator.name, generator.generatorid
            log.warning("generators wait", generator=generatorid, name=name, error=reason)
        return LATER

    async def _reload(self, key: str, revision: int) -> float:
        """Read the value that a lost transaction met; return the seconds to wait if it is
        unchanged.
        """
        found = await self.client.get(key)
        if found is None:
            self.index.forget(key)
            return 0.0
        self.index.apply(key, found.value, found.mod_revision)
        # Unchanged, so this daemon no longer leads and is about to hear of it.
        return 1.0 if found.mod_revision == revision else 0.0

    async def _submit(
        self, key: str, generator: Generator, revision: int, firing: GeneratorFiring
    ) -> float:
        """Submit the workflow of a firing, then remove the firing together with its arguments.

        Packs change the generator meanwhile, so submitting compares the first of the arguments: it
        is removed after success, and then no daemon can submit it again.
        """
        colony, generatorid = generator.colonyname, generator.generatorid
        spec = await self.client.get(store.spec_key(colony, generatorid))
        if spec is None:
            self.index.forget(key)
            return 0.0
        args, first, oldest = await self._args(generator, firing)
        if len(args) != firing.upto - generator.head:
            return await self._reload(key, revision)
        fence = self.leader.fence
        try:
            # An older release may have accepted a workflow that this one refuses.
            _, specs = await apart(
                len(spec.value), read_workflow, spec.value.decode(), "generator.workflowspec"
            )
            await self.workflows.submit(
                colony,
                specs,
                graphid=firing.graphid,
                initiatorid=generator.initiatorid,
                initiatorname=generator.initiatorname,
                root_args=list(args),
                field="generator.workflowspec",
                guard=[first, *fence],
                timed=True,
            )
        except TooMany as error:
            # No argument is given up; the queue is bounded, so packs get an error.
            return self._wait(generator, error.message)
        except Conflict:
            return await self._reload(key, revision)
        except (RpcError, EtcdError) as error:
            if isinstance(error, EtcdError) and not is_final(error):
                raise
            # No argument is given up until the generator is mended or removed.
            return self._wait(generator, f"its workflow is refused: {error}")
        size = sum(len(arg.encode()) for arg in args)
        return await self._strike_out(key, generator, revision, firing, oldest, size, fence)

    async def _strike_out(
        self,
        key: str,
        generator: Generator,
        revision: int,
        firing: GeneratorFiring,
        oldest: int,
        size: int,
        fence: Sequence[Compare],
    ) -> float:
        for _ in range(_TRIES):
            if generator.firing != firing:
                return 0.0  # done by another daemon
            if not oldest and generator.tail > firing.upto:
                oldest = (await self._args(generator, firing))[2]
            # The time may be by a clock that was ahead.
            oldest = min(oldest, self.now())
            after, txn = store.fired(generator, revision, oldest, fence, size)
            result = await self.client.commit(txn)
            if result.succeeded:
                self.index.learn(key, after, result.revision)
                return 0.0
            if await self._reload(key, revision) or (known := self.index.get(key)) is None:
                break
            generator, revision = known
        return 1.0

    async def _args(
        self, generator: Generator, firing: GeneratorFiring
    ) -> tuple[list[str], Compare, int]:
        """Return the arguments of a firing, the condition that they wait, and when the next one
        came.
        """
        colony, generatorid = generator.colonyname, generator.generatorid
        prefix = store.args_prefix(colony, generatorid)
        head, upto = (
            store.arg_key(colony, generatorid, number) for number in (generator.head, firing.upto)
        )
        start, found, oldest, first = head, list[str](), 0, ModRevision(head, 0)
        while True:
            count = firing.upto - generator.head - len(found) + 1
            page = await self.client.range(prefix, limit=min(count, _ARGS_PAGE), start=start)
            for kv in page.items:
                arg = unpack(kv.value, Arg)
                if kv.key == head:
                    first = ModRevision(head, kv.mod_revision)
                if kv.key >= upto:
                    oldest = arg.at
                    break
                found.append(arg.arg)
            if oldest or not page.more or not page.items:
                return found, first, oldest
            start = page.items[-1].key + "\0"

    async def sweep(self) -> None:
        """Remove the tokens of requests that are too old to be repeated."""
        start: str | None = None
        limit = self.now() - REMEMBERED
        while True:
            page = await self.client.range(store.PACKED, limit=_ARGS_PAGE, start=start)
            old: list[Op] = [Delete(kv.key) for kv in page.items if int(kv.value) < limit]
            for at in range(0, len(old), 100):
                await self.client.commit(Txn([], old[at : at + 100]))
            if not page.more:
                return
            start = page.items[-1].key + "\0"
