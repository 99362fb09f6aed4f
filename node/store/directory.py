"""The directory of members: an index of colonies, users, executors and functions.

Store events rebuild it, every authorisation asks it, and it writes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from colonyd.errors import Denied, NotFound
from colonyd.names import of_key
from node.model.codec import unpack
from node.model.types import Colony, Executor, ExecutorState, Function, User
from node.store import keys

Member = User | Executor
T = TypeVar("T")


@dataclass
class Roster:
    """One colony and its members, by name."""

    colony: Colony | None = None
    users: dict[str, User] = field(default_factory=dict)
    executors: dict[str, Executor] = field(default_factory=dict)
    functions: dict[str, Function] = field(default_factory=dict)
    # Ids of the functions of an executor, by its name and theirs.
    offered: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    # How many functions an executor offers, by its name.
    offering: Counter[str] = field(default_factory=Counter)


@dataclass
class Directory:
    """All colonies that this store hosts."""

    rosters: dict[str, Roster] = field(default_factory=dict)
    serverid: str = ""
    heard: dict[tuple[str, str], int] = field(default_factory=dict)
    _ids: dict[str, set[tuple[str, str, str]]] = field(default_factory=dict)
    _revisions: dict[str, int] = field(default_factory=dict)
    # As in `Processes`.
    told: int = 0

    def apply(self, key: str, value: bytes | None, revision: int) -> None:
        """Apply one change of a member key, unless a newer revision is known."""
        if revision < self.told or self._revisions.get(key, 0) >= revision:
            return
        self._revisions[key] = revision
        colony, kind, *rest = key[len(keys.MEMBERS) :].split("/", 2)
        roster = self.rosters.setdefault(colony, Roster())
        name = rest[0] if rest else ""
        if kind in ("user", "executor"):
            name = of_key(name)
        self._forget(roster, colony, kind, name)
        if value is not None:
            self._learn(roster, colony, kind, name, value)
        elif kind == "colony" and not (roster.users or roster.executors or roster.functions):
            del self.rosters[colony]
        if value is None:
            # A key that is gone can only come back at a higher revision.
            self._revisions.pop(key, None)

    def _learn(self, roster: Roster, colony: str, kind: str, name: str, value: bytes) -> None:
        if kind == "colony":
            roster.colony = unpack(value, Colony)
        elif kind == "user":
            roster.users[name] = unpack(value, User)
            self._ids.setdefault(roster.users[name].userid, set()).add((colony, kind, name))
        elif kind == "executor":
            roster.executors[name] = unpack(value, Executor)
            identity = roster.executors[name].executorid
            self._ids.setdefault(identity, set()).add((colony, kind, name))
        elif kind == "function":
            known = roster.functions[name] = unpack(value, Function)
            roster.offered.setdefault((known.executorname, known.funcname), set()).add(name)
            roster.offering[known.executorname] += 1

    def _forget(self, roster: Roster, colony: str, kind: str, name: str) -> None:
        identity = ""
        if kind == "colony":
            roster.colony = None
        elif kind == "user" and name in roster.users:
            identity = roster.users.pop(name).userid
        elif kind == "executor" and name in roster.executors:
            identity = roster.executors.pop(name).executorid
        elif kind == "function" and name in roster.functions:
            gone = roster.functions.pop(name)
            place = (gone.executorname, gone.funcname)
            roster.offered[place].discard(name)
            if not roster.offered[place]:
                del roster.offered[place]
            roster.offering[gone.executorname] -= 1
            if not roster.offering[gone.executorname]:
                del roster.offering[gone.executorname]
        if identity:
            places = self._ids[identity]
            places.discard((colony, kind, name))
            if not places:
                del self._ids[identity]

    def replace(self, items: list[tuple[str, bytes, int]]) -> None:
        """Replace the index after a new listing: (key, value, revision) of every member key."""
        self.rosters.clear()
        self._ids.clear()
        self._revisions.clear()
        self.told = 0
        for key, value, revision in items:
            self.apply(key, value, revision)

    def colony(self, name: str) -> Colony | None:
        """Return the colony called `name` if it is hosted here, else None."""
        roster = self.rosters.get(name)
        return roster.colony if roster else None

    def roster(self, name: str) -> Roster:
        """Return the members of a colony; an empty roster when there is none."""
        return self.rosters.get(name) or Roster()

    def colonies_of(self, identity: str) -> list[str]:
        """Return the names of the colonies in which an id is a user or an approved executor."""
        places = self._ids.get(identity, ())
        found = {colony for colony, _, _ in places if self.member(colony, identity)}
        return sorted(found)

    def demand_colonies(self, identity: str) -> list[str]:
        """Return the same names as `colonies_of`. Raises Denied when there are none."""
        colonies = self.colonies_of(identity)
        if not colonies:
            raise Denied("the caller is a member of no colony here")
        return colonies

    async def seek(
        self, identity: str, look: Callable[[str], Awaitable[T | None]], field: str, wanted: str
    ) -> T:
        """Return what `look` finds in the first of an id's colonies that has it.

        A thing of another colony looks like one that does not exist. Raises Denied when the id is a
        member of no colony here, and NotFound, which begins with the request's `field`.
        """
        for colony in self.demand_colonies(identity):
            if (found := await look(colony)) is not None:
                return found
        noun = {"processgraphid": "workflow"}.get(field, field.removesuffix("id"))
        raise NotFound(f"{field}: no {noun} {wanted[:80]!r} in the caller's colonies")

    def knows(self, identity: str) -> bool:
        """Return whether an id has a role: server, owner, user, or executor of any state."""
        if identity in self._ids or identity == self.serverid:
            return True
        owners = (roster.colony.colonyid for roster in self.rosters.values() if roster.colony)
        return identity in owners

    def executor_of(self, colony: str, identity: str) -> Executor | None:
        """Return the executor with this id in a colony, whatever its state, or None."""
        for home, kind, name in self._ids.get(identity, ()):
            if home == colony and kind == "executor":
                return self.rosters[colony].executors[name]
        return None

    def user_of(self, colony: str, identity: str) -> User | None:
        """Return the user with this id in a colony, or None."""
        for home, kind, name in self._ids.get(identity, ()):
            if home == colony and kind == "user":
                return self.rosters[colony].users[name]
        return None

    def member(self, colony: str, identity: str, *, approved: bool = True) -> Member | None:
        """Return the user or (approved) executor with this id in a colony, or None."""
        if self.colony(colony) is None:
            return None
        executor = self.executor_of(colony, identity)
        if executor and (not approved or executor.state == ExecutorState.APPROVED):
            return executor
        return self.user_of(colony, identity)


def name_of(member: Member) -> str:
    """Return the name of a member."""
    return member.name if isinstance(member, User) else member.executorname
