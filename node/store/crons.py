"""Crons in the store: a small value that changes with each firing, and a workflow that stays.

Values in, transactions out. A firing is written before its workflow is submitted, and removed
after. Any daemon that finds a firing can submit it (again): the graph's id is in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from node.etcd.txn import Absent, Compare, Delete, Get, ModRevision, Present, Put, Txn
from node.model.codec import pack
from node.store import keys

CRONS = keys.ROOT + "timed/cron/"
# Classes of keys that go with a colony.
CLASSES = ("timed/cron", "cronspec", "cronname")


class CronFiring(msgspec.Struct, frozen=True):
    """A workflow that is to be submitted: its id, and the graph whose output is its input.

    `at` is when this was decided, in Unix ns.
    """

    graphid: str
    previous: str
    at: int


class Cron(msgspec.Struct, frozen=True):
    """A cron. Times are Unix nanoseconds, 0 for unset; `interval` is seconds, -1 for none.

    `window` is the end of the interval that a random `nextrun` was drawn from. `skipped` says why
    the last due run did not happen, "" if it did.
    """

    cronid: str
    colonyname: str
    name: str
    initiatorid: str
    initiatorname: str
    cronexpression: str = ""
    interval: int = -1
    random: bool = False
    waitforprevprocessgraph: bool = False
    nextrun: int = 0
    window: int = 0
    lastrun: int = 0
    prevprocessgraphid: str = ""
    firing: CronFiring | None = None
    skipped: str = ""


def prefix(colony: str) -> str:
    """Return the prefix of the crons of a colony."""
    return f"{CRONS}{colony}/"


def key(colony: str, cronid: str) -> str:
    """Return the key of a cron."""
    return prefix(colony) + cronid


def spec_key(colony: str, cronid: str) -> str:
    """Return the key of the workflow of a cron, as it was sent."""
    return f"{keys.ROOT}cronspec/{colony}/{cronid}"


def name_key(colony: str, name: str) -> str:
    """Return the key that names the cron with this name; hashed, since names are free text."""
    digest = hashlib.sha3_256(name.encode()).hexdigest()
    return f"{keys.ROOT}cronname/{colony}/{digest}"


def graph_id(cronid: str, due: int) -> str:
    """Return the id of the graph that a cron starts for a due time in Unix ns."""
    return hashlib.sha3_256(f"cron/{cronid}/{due}".encode()).hexdigest()


def graph_token(cronid: str, token: str) -> str:
    """Return the id of the graph that a cron starts for a request."""
    return hashlib.sha3_256(f"cron/{cronid}/run/{token}".encode()).hexdigest()


def add(cron: Cron, workflowspec: str) -> Txn:
    """Add a cron, if its name is free and its colony exists; otherwise the reads tell what is
    there.
    """
    mine, name = key(cron.colonyname, cron.cronid), name_key(cron.colonyname, cron.name)
    return Txn(
        [Absent(mine), Absent(name), Present(keys.colony(cron.colonyname))],
        [
            Put(mine, pack(cron)),
            Put(spec_key(cron.colonyname, cron.cronid), workflowspec.encode()),
            Put(name, cron.cronid.encode()),
        ],
        [Get(mine), Get(name)],
    )


def update(cron: Cron, revision: int, compare: Sequence[Compare] = ()) -> Txn:
    """Write another value of a cron that was read at `revision`."""
    mine = key(cron.colonyname, cron.cronid)
    return Txn([ModRevision(mine, revision), *compare], [Put(mine, pack(cron))], [Get(mine)])


def remove(cron: Cron) -> Txn:
    """Remove a cron, and a firing that was not submitted; its graphs stay."""
    colony, cronid = cron.colonyname, cron.cronid
    ops = [
        Delete(key(colony, cronid)),
        Delete(spec_key(colony, cronid)),
        Delete(name_key(colony, cron.name)),
    ]
    return Txn([Present(key(colony, cronid))], ops)
