"""Changes of ids: a user, an executor, a colony or the server goes on under another key.

The caller proves the old key by signing, and the new key by using it later. Crons and generators go
along (`members.ownership`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from colonyd.errors import Conflict, Denied, Invalid, NotFound
from node.etcd.client import EtcdClient
from node.etcd.txn import Compare, Get, ModRevision, Op, Put, Txn
from node.members import ownership as handover
from node.model.codec import pack, unpack
from node.model.types import Colony, Executor, ExecutorState, Process, State, User
from node.processes.service import Processes
from node.store import keys
from node.store.directory import Directory
from node.store.work import processes as store

_ID = re.compile(r"[0-9a-f]{64}\Z")
# Of one transaction: etcd takes 128 operations and 1.5 MiB.
_MOST, _BYTES = 50, 2**20
_TRIES = 40

S = TypeVar("S", bound=msgspec.Struct)


@dataclass
class Identities:
    """Changes ids. `home` is the name of the home colony."""

    client: EtcdClient
    directory: Directory
    processes: Processes
    home: str
    _changing: set[tuple[str, str]] = field(default_factory=set)

    def present(self, executor: Executor) -> Executor:
        """Return the executor as it is now; for polls that waited before they get a process.

        Raises Denied when it is no longer approved under this id, Conflict while that changes.
        """
        colony, identity = executor.colonyname, executor.executorid
        now_is = self.directory.executor_of(colony, identity)
        if now_is is None or now_is.state != ExecutorState.APPROVED:
            raise Denied("the caller is no longer an approved executor under this id")
        if (colony, identity) in self._changing:
            raise Conflict("the executor's id is changing; ask again")
        return now_is

    async def change_user(self, colony: str, old: str, new: str) -> None:
        """Change a user's id.

        Raises Invalid for a bad id, Denied when no user calls, Conflict for a taken id.
        """
        user = self.directory.user_of(colony, old)
        if user is None:
            raise Denied("only a user may change its user id")
        self._check_free(colony, old, new, "userid")
        key = keys.user(colony, user.name)
        await self._rewrite(key, User, lambda u: u.userid == old, (colony, old, new), userid=new)

    async def change_colony(self, colony: str, new: str) -> None:
        """Give a hosted colony another owner. Raises Invalid or Conflict."""
        _check_id(new, "colonyid")
        if colony == self.home:
            raise Conflict(
                f"colonyname: {colony} is the home colony of this daemon. Its id is what other"
                " colonies trust, and comes from keys/colony.key, so it can't change here;"
                " `colony key rotate` gives it a new key, and its peers follow"
            )
        for other in self.directory.rosters.values():
            if other.colony and other.colony.name != colony and other.colony.colonyid == new:
                raise Conflict("colonyid: another colony of this server has it")
        owner = self.directory.colony(colony)
        old = owner.colonyid if owner is not None else ""
        key = keys.colony(colony)
        await self._rewrite(
            key, Colony, lambda c: c.colonyid == old, (colony, old, new), colonyid=new
        )

    async def change_server(self, new: str) -> None:
        """Give the server another owner, also after a restart. Raises Invalid or Conflict."""
        _check_id(new, "serverid")
        old = self.directory.serverid.encode()
        found = await self.client.get(keys.SERVER)
        if found is None or found.value != old:
            raise Conflict("serverid: it changed meanwhile")
        txn = Txn([ModRevision(keys.SERVER, found.mod_revision)], [Put(keys.SERVER, new.encode())])
        if not (await self.client.commit(txn)).succeeded:
            raise Conflict("serverid: it changed meanwhile")
        self.directory.serverid = new

    async def change_executor(self, colony: str, old: str, new: str) -> None:
        """Change an executor's id, and that of everything it has.

        One transaction, unless the running processes do not fit in one: then the executor's own
        record comes last, so that after an interruption the old key can ask again. Raises Invalid
        for a bad id, Denied when no executor calls, Conflict for an id that is taken.
        """
        executor = self.directory.executor_of(colony, old)
        if executor is None:
            raise Denied("only an executor may change its executor id")
        self._check_free(colony, old, new, "executorid")
        if old == new:
            return
        key = keys.executor(colony, executor.executorname)
        with self._no_new_work(colony, old):
            for _ in range(_TRIES):
                found = await self.client.get(key)
                known = unpack(found.value, Executor) if found is not None else None
                if found is None or known is None or known.executorid != old:
                    raise Conflict("executorid: it changed meanwhile")
                await self._move_all(colony, old, new, leave=_MOST)
                data = pack(msgspec.structs.replace(known, executorid=new))
                timed = await handover.prepare(self.client, colony, old, new)
                revision = await self._move(
                    await self._load_work(colony, old, _MOST),
                    new,
                    [ModRevision(key, found.mod_revision), *timed.compare],
                    [Put(key, data), *timed.ops],
                )
                if revision:
                    self.directory.apply(key, data, revision)
                    break
            else:
                raise Conflict("executorid: the executor and its work change too fast; try again")
            # Processes that were assigned while this ran.
            await self._move_all(colony, old, new, leave=0)
            await handover.move_all(self.client, colony, old, new)

    @contextmanager
    def _no_new_work(self, colony: str, identity: str) -> Iterator[None]:
        if (colony, identity) in self._changing:
            raise Conflict("executorid: it is changing already")
        self._changing.add((colony, identity))
        try:
            yield
        finally:
            self._changing.discard((colony, identity))

    async def _move_all(self, colony: str, old: str, new: str, *, leave: int) -> None:
        """Move running processes in parts until at most `leave` are left, which fit a
        transaction.
        """
        for _ in range(1000):
            work = await self._load_work(colony, old, _MOST + 1)
            if not work or (len(work) <= leave and _fits(work)):
                return
            part = work[:_MOST] if _fits(work[:_MOST]) else work[:1]
            await self._move(part, new, [], [])

    async def _load_work(self, colony: str, identity: str, most: int) -> list[tuple[Process, int]]:
        """Return running processes of an executor, with their revisions."""
        work: list[tuple[Process, int]] = []
        for processid in self.processes.running.of_executor(colony, identity):
            known = await self.processes.load(colony, processid)
            if known is None or known[0].state != State.RUNNING:
                continue
            if known[0].assignedexecutorid == identity:
                work.append(known)
                if len(work) == most:
                    break
        return work

    async def _move(
        self, work: list[tuple[Process, int]], new: str, compare: list[Compare], ops: list[Op]
    ) -> int:
        """Assign running processes to another id, all or none; return the revision, or 0 if
        none.
        """
        moved: list[Process] = []
        for process, revision in work:
            after = msgspec.structs.replace(process, assignedexecutorid=new)
            key = keys.process(after.colonyname, after.processid)
            mark = keys.running(after.colonyname, after.processid)
            compare = [*compare, ModRevision(key, revision)]
            ops = [*ops, Put(key, pack(after)), Put(mark, pack(store.running_of(after)))]
            moved.append(after)
        result = await self.client.commit(Txn(compare, ops))
        if not result.succeeded:
            return 0
        for after in moved:
            self.processes.settle(after, result.revision)
        return result.revision

    def _check_free(self, colony: str, old: str, new: str, field_name: str) -> None:
        _check_id(new, field_name)
        taken = self.directory.user_of(colony, new) or self.directory.executor_of(colony, new)
        if taken is not None and old != new:
            raise Conflict(f"{field_name}: another member of this colony has it")

    async def _rewrite(
        self,
        key: str,
        kind: type[S],
        still: Callable[[S], bool],
        change: tuple[str, str, str],
        **fields: Any,
    ) -> None:
        """Replace fields of a member key, guarded by the revision that was read.

        `change` is the colony and its old and new id; crons and generators go along.
        """
        for _ in range(_TRIES):
            found = await self.client.get(key)
            if found is None:
                raise NotFound("it was removed meanwhile")
            value = unpack(found.value, kind)
            if not still(value):
                raise Conflict("it changed meanwhile")
            data = pack(msgspec.structs.replace(value, **fields))
            timed = await handover.prepare(self.client, *change)
            txn = Txn(
                [ModRevision(key, found.mod_revision), *timed.compare],
                [Put(key, data), *timed.ops],
                [Get(key)],
            )
            result = await self.client.commit(txn)
            if result.succeeded:
                self.directory.apply(key, data, result.revision)
                await handover.move_all(self.client, *change)
                return
        raise Conflict("it changes too fast; try again")


def _fits(work: list[tuple[Process, int]]) -> bool:
    return len(work) <= 1 or sum(len(pack(process)) for process, _ in work) <= _BYTES


def _check_id(identity: str, field_name: str) -> None:
    if _ID.match(identity) is None:
        raise Invalid(f"{field_name}: 64 lower-case hex characters are needed")
