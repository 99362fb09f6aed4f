"""One node: the indexes and shells that the calls of the table work on.

It holds no tasks of its own; `daemon.main` runs what keeps it fed and serves it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import SystemRandom

import msgspec
import trio

from colonyd.errors import RpcError
from node.archive.lookup import HistoryReader
from node.blueprints.definitions import Definitions
from node.blueprints.reconcile import Reconciliation
from node.blueprints.service import Blueprints
from node.etcd.client import EtcdClient
from node.etcd.errors import EtcdError
from node.files.blobs import BlobStore
from node.files.catalog import Files
from node.files.tickets import Tickets
from node.host.clock import Clock
from node.host.config import Config
from node.host.listening import Serving
from node.host.log import get_logger
from node.members.locations import Locations
from node.members.rekey import Identities
from node.members.service import Members
from node.model.ids import new_id
from node.model.types import Function, Process
from node.processes.assignment import Assigner
from node.processes.service import Processes
from node.store.directory import Directory
from node.streams.channels import Channels
from node.streams.remote_changes import RemoteChanges
from node.streams.subscriptions import Subscriptions
from node.timers.crons import Crons
from node.timers.election import Leader
from node.timers.generators import Generators
from node.timers.retime import Retiming
from node.workflows.advance import Resolution
from node.workflows.children import Children
from node.workflows.service import PATIENCE, Workflows

log = get_logger("node")


@dataclass(frozen=True)
class Node:
    """All parts of a node. `home` is the name of the home colony.

    `started` is in Unix ns, `begun` in ns of the clock that is never set.
    """

    client: EtcdClient
    home: str
    clock: Clock
    serving: Serving
    directory: Directory
    members: Members
    locations: Locations
    identities: Identities
    processes: Processes
    assigner: Assigner
    workflows: Workflows
    channels: Channels
    subscriptions: Subscriptions
    remote_changes: RemoteChanges
    leader: Leader
    crons: Crons
    generators: Generators
    retiming: Retiming
    definitions: Definitions
    blueprints: Blueprints
    files: Files
    history_reader: HistoryReader
    started: int
    begun: int
    draining: trio.Event = field(default_factory=trio.Event)

    @classmethod
    def build(
        cls,
        client: EtcdClient,
        home: str,
        clock: Clock,
        config: Config | None = None,
        *,
        identity: str = "",
        boot: str = "",
        history: Path | None = None,
        blobs: BlobStore | None = None,
        tickets: Tickets | None = None,
        dice: Callable[[], float] | None = None,
    ) -> Node:
        """Make the parts, each from those before it.

        `identity` is the id of the home directory (made up if empty), `boot` the id of this start
        of the machine. `history` is the directory of records that left the store. `dice` returns
        the random numbers for random crons.
        """
        config = config or Config()
        serving = Serving(config.rpc.host, next(iter(config.etcd.endpoints), ""))
        directory, now = Directory(), clock.now
        processes = Processes(client, clock, config.quotas)
        quotas = processes.quotas
        members = Members(client, directory, now, quotas, reregister=config.rpc.reregister)
        locations = Locations(client, quotas)
        identities = Identities(client, directory, processes, home)
        assigner = Assigner(processes, identities.present)
        resolution = Resolution(client, processes)
        children = Children(client, processes, resolution)
        workflows = Workflows(client, processes, resolution, children)
        channels = Channels(client, directory, processes, now)
        subscriptions = Subscriptions(config.rpc.max_subscriptions, int(config.rpc.max_unread))
        remote_changes = RemoteChanges(processes, subscriptions)
        leader = Leader(client, identity or new_id())
        crons = Crons(client, directory, workflows, leader, now, dice or SystemRandom().random)
        processes.observe(assigner, remote_changes, channels, resolution, crons)
        generators = Generators(client, directory, workflows, leader, now)
        files = Files(
            client,
            now,
            blobs,
            tickets,
            float(config.files.grace),
            serving,
            quotas,
            int(config.rpc.max_body),
        )
        retiming = Retiming(
            client, clock, processes, crons, generators, leader, boot, [files.clock_set]
        )
        reconciliation = Reconciliation(client, processes, crons, now)
        return cls(
            client=client,
            home=home,
            clock=clock,
            serving=serving,
            directory=directory,
            members=members,
            locations=locations,
            identities=identities,
            processes=processes,
            assigner=assigner,
            workflows=workflows,
            channels=channels,
            subscriptions=subscriptions,
            remote_changes=remote_changes,
            leader=leader,
            crons=crons,
            generators=generators,
            retiming=retiming,
            definitions=Definitions(client, now, quotas),
            blueprints=Blueprints(client, processes, reconciliation, locations, now),
            files=files,
            history_reader=HistoryReader(history),
            started=now(),
            begun=clock.steady(),
        )

    def drain(self) -> None:
        """Assign nothing more, and answer every waiting poll now."""
        self.draining.set()
        self.assigner.stop()

    async def settle(self, process: Process) -> None:
        """Return once the steps of its workflow that follow from a process's end are done.

        Returns earlier, after a warning, if the store does not answer.
        """
        if not process.processgraphid:
            return
        try:
            await self.workflows.resolution.settle(
                process.colonyname, process.processgraphid, PATIENCE
            )
        except (EtcdError, RpcError) as error:
            # The end of the process is in the store. The steps follow once the store answers again.
            log.warning("workflow waits", graph=process.processgraphid, error=error)

    def count_function(self, process: Process, executorid: str) -> None:
        """Add a successful call to the statistics of its function, in memory."""
        executor = self.directory.executor_of(process.colonyname, executorid)
        if executor is None:
            return
        wait = max(0, process.starttime - process.submissiontime) / 1e9
        run = max(0, process.endtime - process.starttime) / 1e9
        roster = self.directory.roster(process.colonyname)
        for functionid in roster.offered.get((executor.executorname, process.spec.funcname), ()):
            roster.functions[functionid] = _counted(roster.functions[functionid], wait, run)


def _counted(known: Function, wait: float, run: float) -> Function:
    """Return the statistics of a function after one more call; `wait` and `run` are in seconds."""
    n = known.counter
    return msgspec.structs.replace(
        known,
        counter=n + 1,
        minwaittime=min(known.minwaittime, wait) if n else wait,
        maxwaittime=max(known.maxwaittime, wait),
        avgwaittime=(known.avgwaittime * n + wait) / (n + 1),
        minexectime=min(known.minexectime, run) if n else run,
        maxexectime=max(known.maxexectime, run),
        avgexectime=(known.avgexectime * n + run) / (n + 1),
    )
