"""Members: changes of colonies, users, executors and functions.

The directory answers questions; this shell writes, guarded by the revision it read.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from colonyd.errors import Conflict, Invalid, NotFound
from node.etcd.client import EtcdClient
from node.etcd.errors import EtcdNoSpace
from node.etcd.txn import Absent, Delete, DeletePrefix, Get, Op, Put, Txn
from node.model.codec import is_older, pack, unpack
from node.model.ids import new_id, valid_name
from node.model.names import check_id, check_name
from node.model.types import SECOND, Colony, Executor, ExecutorState, Function, User
from node.processes.quotas import Quotas
from node.store import blueprints, crons, files, generators, keys
from node.store.directory import Directory
from node.store.update import update

E = TypeVar("E", Executor, Executor | None)

# Heartbeats reach the store at most this often, in ns: flash wears.
_HEARTBEAT = 60 * SECOND
# Classes of keys that are removed with their colony, beside its members and processes.
_CLASSES = (
    "live/queue",
    "live/running",
    "live/blocked",
    "live/step",
    "pending",
    "graph",
    "graphpart",
    "graphstate",
    "submission",
    "closed",
    "closedby",
    "attribute",
    "log",
    "executorlog",
    "logtime",
    "history",
    "location",
    "channel",
    "channelhead",
    "channelmark",
    *files.CLASSES,
    *crons.CLASSES,
    *generators.CLASSES,
    *blueprints.CLASSES,
)


@dataclass
class Members:
    """The members of a node. `now` gives Unix nanoseconds."""

    client: EtcdClient
    directory: Directory
    now: Callable[[], int]
    quotas: Quotas = field(default_factory=Quotas)
    reregister: bool = False
    _heard: dict[tuple[str, str], int] = field(default_factory=dict)

    async def _create(self, key: str, value: object, what: str) -> None:
        data = pack(value)
        result = await self.client.commit(Txn([Absent(key)], [Put(key, data)]))
        if not result.succeeded:
            raise Invalid(f"{what} exists already")
        self.directory.apply(key, data, result.revision)

    async def _delete(self, key: str) -> None:
        result = await self.client.commit(Txn([], [Delete(key)]))
        self.directory.apply(key, None, result.revision)

    async def add_colony(self, colony: Colony) -> Colony:
        """Store a colony. Raises Invalid for a bad name or id, or a taken one."""
        if not valid_name(colony.name):
            raise Invalid("colony.name: use letters, digits, '_', '-' and '.'")
        _check_id(colony.colonyid, "colony.colonyid")
        await self._create(keys.colony(colony.name), colony, f"colony {colony.name}")
        return colony

    async def remove_colony(self, name: str) -> None:
        """Remove a colony with its members, processes and logs."""
        if self.directory.colony(name) is None:
            raise NotFound(f"colony {name} is not hosted here")
        prefixes = [keys.members(name), keys.processes(name)]
        prefixes += [f"{keys.ROOT}{kind}/{name}/" for kind in _CLASSES]
        # One key, not a class: a later colony of this name must not be paused.
        ops: list[Op] = [Delete(keys.paused(name))]
        ops += [DeletePrefix(prefix) for prefix in prefixes]
        roster = self.directory.roster(name)
        gone = [keys.colony(name)]
        gone += [keys.user(name, user) for user in roster.users]
        gone += [keys.executor(name, executor) for executor in roster.executors]
        gone += [keys.function(name, function) for function in roster.functions]
        result = await self.client.commit(Txn([], ops))
        for key in reversed(gone):
            self.directory.apply(key, None, result.revision)

    async def add_user(self, user: User) -> User:
        """Store a user. Raises Invalid for a bad name or id, or one that is taken in the colony."""
        check_name(user.name, "user.name")
        check_id(user.userid, "user.userid")
        if self.directory.user_of(user.colonyname, user.userid):
            raise Invalid("user.userid: another user of this colony has it")
        users = self.directory.roster(user.colonyname).users
        if user.name not in users:
            colony = f"colony {user.colonyname!r}"
            self.quotas.require("colony_users", colony, len(users), "users")
        await self._create(keys.user(user.colonyname, user.name), user, f"user {user.name}")
        return user

    async def remove_user(self, colony: str, name: str) -> None:
        """Remove a user. Raises NotFound when there is none."""
        if name not in self.directory.roster(colony).users:
            raise NotFound(f"user {name} is not in colony {colony}")
        await self._delete(keys.user(colony, name))

    def executor(self, colony: str, name: str) -> Executor:
        """Return the executor as last known, with its latest heartbeat. Raises NotFound."""
        executor = self.directory.roster(colony).executors.get(name)
        if executor is None:
            raise NotFound(f"executor {name} is not in colony {colony}")
        heard = self._heard.get((colony, name), 0)
        if heard > executor.lastheardfromtime:
            executor = msgspec.structs.replace(executor, lastheardfromtime=heard)
        return executor

    def check_executor(self, executor: Executor) -> None:
        """Raise Invalid for a bad name, type or id, or an id that another executor has."""
        check_name(executor.executorname, "executor.executorname")
        if not executor.executortype or "/" in executor.executortype:
            raise Invalid("executor.executortype: a name without '/' is needed")
        check_id(executor.executorid, "executor.executorid")
        twin = self.directory.executor_of(executor.colonyname, executor.executorid)
        if twin is not None and twin.executorname != executor.executorname:
            raise Invalid("executor.executorid: another executor of this colony has it")

    async def add_executor(self, executor: Executor) -> Executor:
        """Store a new executor, pending; an unregistered name may come back.

        Raises Invalid, Conflict.
        """
        self.check_executor(executor)
        executors = self.directory.roster(executor.colonyname).executors
        if executor.executorname not in executors:
            colony = f"colony {executor.colonyname!r}"
            self.quotas.require("colony_executors", colony, len(executors), "executors")
        executor.commissiontime = self.now()

        def added(there: Executor | None) -> Executor:
            if there is not None and there.state != ExecutorState.UNREGISTERED:
                raise Invalid(
                    f"executor {executor.executorname} exists already; remove it first, or set"
                    " rpc.reregister"
                )
            return executor

        await self._update(executor.colonyname, executor.executorname, added)
        return executor

    async def _update(self, colony: str, name: str, change: Callable[[Executor | None], E]) -> E:
        """Write what `change` returns for an executor as stored, or nothing if that is None."""
        key = keys.executor(colony, name)
        executor, revision = await update(
            self.client, key, Executor, change, what=f"executor {name}"
        )
        if executor is not None:
            self.directory.apply(key, pack(executor), revision)
        return executor

    async def change_executor(
        self, colony: str, name: str, change: Callable[[Executor], Executor]
    ) -> Executor:
        """Write what `change` returns for the executor as stored. Raises NotFound or Conflict."""

        def changed(there: Executor | None) -> Executor:
            if there is None:
                raise NotFound(f"executor {name} is not in colony {colony}")
            return change(there)

        return await self._update(colony, name, changed)

    async def set_state(self, colony: str, name: str, state: ExecutorState) -> Executor:
        """Approve, reject or unregister; an unregistered executor must be added anew.

        Unregistering it again is allowed: this takes several transactions, so a first attempt may
        have been cut off. Raises Invalid, NotFound or Conflict.
        """

        def change(executor: Executor) -> Executor:
            if executor.state == ExecutorState.UNREGISTERED != state:
                raise Invalid(f"executor {name} is unregistered; add it again")
            return msgspec.structs.replace(executor, state=state)

        executor = await self.change_executor(colony, name, change)
        if state == ExecutorState.UNREGISTERED:
            for function in list(self.directory.roster(colony).functions.values()):
                if function.executorname == name:
                    await self._delete(keys.function(colony, function.functionid))
        return executor

    async def heard_from(self, executor: Executor) -> None:
        """Note that an executor is alive; written to the store at most once a minute."""
        place = (executor.colonyname, executor.executorname)
        now = self.now()
        self._heard[place] = now

        def heard(there: Executor | None) -> Executor | None:
            # A time in the future was written by a clock that was ahead.
            if there is None or 0 <= now - there.lastheardfromtime < _HEARTBEAT:
                return None
            return msgspec.structs.replace(there, lastheardfromtime=now)

        if heard(executor) is not None:
            # Hundreds of polls may begin at once: one that loses the race finds the time written.
            with suppress(Conflict):
                await self._update(*place, heard)

    async def add_function(self, function: Function) -> Function:
        """Register a function; the same name of the same executor keeps its id."""
        executor = self.executor(function.colonyname, function.executorname)
        roster = self.directory.roster(function.colonyname)
        known = roster.offered.get((function.executorname, function.funcname), set())
        if known:
            function.functionid = max(known)
        elif (there := roster.functions.get(function.functionid)) is None or (
            there.executorname != function.executorname
        ):
            # The id of another executor's function would take that function away.
            function.functionid = "" if there else function.functionid
            whose = f"executor {function.executorname!r}"
            count = roster.offering[function.executorname]
            self.quotas.require("executor_functions", whose, count, "functions")
        if not function.functionid or "/" in function.functionid:
            function.functionid = new_id()
        function.executortype = executor.executortype
        function.locationname = executor.locationname
        key = keys.function(function.colonyname, function.functionid)
        data = pack(function)
        result = await self.client.commit(Txn([], [Put(key, data)]))
        self.directory.apply(key, data, result.revision)
        return function

    async def remove_function(self, colony: str, functionid: str) -> None:
        """Remove a function."""
        await self._delete(keys.function(colony, functionid))

    async def adopt(
        self, colony: Colony, user: User, executor: Executor | None, serverid: str
    ) -> str:
        """Make the home colony and its first members if missing; return the server's id.

        `executor` is one that the SDKs' variables name: approved, so that it can work at once.
        Raises Conflict when the store holds that colony under another key, SchemaVersionError when
        a later colonyd wrote there.
        """
        # Read first: a full etcd refuses any transaction that could write, even if it would not.
        server = await self._found_or_put(keys.SERVER, serverid.encode())
        key = keys.colony(colony.name)
        found = await self._found_or_put(key, pack(colony))
        there = unpack(found, Colony)
        if there.colonyid != colony.colonyid:
            raise Conflict(f"colony {colony.name} in this store belongs to another key")
        if is_older(found):
            # Each daemon reads it first: a daemon of an earlier version then refuses to start,
            # instead of failing at a value that it cannot read.
            with suppress(EtcdNoSpace):  # at the next start
                await update(self.client, key, Colony, lambda known: known, what="the colony")
        await self._found_or_put(keys.user(colony.name, user.name), pack(user))
        if executor is not None:
            executor.commissiontime = self.now()
            key = keys.executor(colony.name, executor.executorname)
            await self._found_or_put(key, pack(executor))
        return server.decode()

    async def _found_or_put(self, key: str, value: bytes) -> bytes:
        """Return the value at `key`, which is `value` if there was none."""
        found = await self.client.get(key)
        if found is not None:
            return found.value
        result = await self.client.commit(Txn([Absent(key)], [Put(key, value)], [Get(key)]))
        return value if result.succeeded else result.responses[0][0].value


def _check_id(identity: str, field_name: str) -> None:
    if len(identity) != 64 or not all(c in "0123456789abcdef" for c in identity):
        raise Invalid(f"{field_name}: 64 lower-case hex characters are needed")
