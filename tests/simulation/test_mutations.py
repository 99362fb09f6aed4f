"""Each check of federation broken once: the simulation, or a named test, must notice.

What the checks are for is told by `tests.simulation.witness`; here it is shown to bite. The
mutations are in `tests.simulation.mutations`, the worlds in which they matter in
`tests.simulation.plots`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from msgspec.structs import replace

from colonyd.errors import RpcError
from federation.forward import machine
from federation.forward.machine import Forward
from federation.outbox.resolve import resolve
from federation.peers.context import Context
from federation.peers.keys import Keys
from federation.peers.registry import Peers
from federation.wire.clock import SigningClock
from federation.wire.signer import Signer
from node.etcd.client import KeyValue
from node.etcd.txn import Put, Txn
from node.host.clock import Clock
from node.model.codec import pack, unpack
from node.model.types import SECOND, Conditions, FunctionSpec, Process
from node.processes.service import Processes
from node.store.work import processes as store
from tests.federation.outbox import test_bindings
from tests.federation.outbox import test_machine as named
from tests.federation.peers import test_names
from tests.federation.routing import test_router
from tests.federation.wire import test_envelope
from tests.simulation import plots, scenario, witness, world
from tests.simulation.client import MemoryClient
from tests.simulation.mutations import outcomes, receiving, sending, storing
from tests.simulation.plots import Tune
from tests.simulation.scenario import play
from tests.simulation.store import MemoryStore
from tests.simulation.witness import Witness
from tests.simulation.world import EPOCH, World, key_of
from tests.support.parts import ledger_of

Patch = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Mutation:
    """One broken check, the worlds that are played with it, and what the witness then says.

    `most` is how many seeds it may take: about four times as many as it does.
    """

    patch: Patch
    tune: Tune
    rule: str
    most: int = 20

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.patch.__name__} in {self.tune.__name__}"


MUTATIONS = [
    Mutation(receiving.no_signature, plots.hostile, "cancelled against the origin's will"),
    Mutation(receiving.any_kind, plots.hostile, "cancelled against the origin's will"),
    Mutation(receiving.any_audience, plots.haunted, "a marker for what was never sent here", 60),
    Mutation(receiving.any_time, plots.tardy, "accepted what had expired"),
    Mutation(
        receiving.anyones_trust, plots.strangers, "accepted from a colony that is not trusted"
    ),
    Mutation(receiving.no_marker, plots.calm, "accepted without a marker"),
    Mutation(receiving.no_dedupe, plots.echoing, "accepted twice"),
    Mutation(receiving.losing_cancel, plots.hurried, "a cancel that came first did not win"),
    Mutation(receiving.early_sweep, plots.restless, "a marker went too early"),
    Mutation(receiving.blind_path, plots.circular, "a loop"),
    Mutation(receiving.no_hop_limit, plots.faraway, "further away than the policy allows"),
    Mutation(receiving.no_waiting_cap, plots.crowded, "more waits than the policy allows"),
    Mutation(receiving.no_running_cap, plots.crowded, "more runs than the policy allows"),
    Mutation(sending.early_again, plots.evasive, "a second hand-out while"),
    Mutation(sending.undoubting_block, plots.cross, "a doubt was not shown"),
    Mutation(sending.silent_doubt, plots.pressed, "the two sides disagree"),
    Mutation(sending.forgotten_failure, plots.secluded, "not closed in the end"),
    Mutation(sending.no_record, plots.secluded, "a forward left no record"),
    Mutation(sending.unsaved_sending, plots.deadly, "a doubt was not shown", 90),
    Mutation(sending.overtaken_cancel, plots.crossed, "a cancel was written over"),
    Mutation(sending.untold_cancel, plots.hurried, "ended here, and the peer is not told"),
    Mutation(sending.untold_ledger, plots.frail, "not quiet in the end"),
    Mutation(sending.unlooked_for, plots.undecided, "not quiet in the end"),
    Mutation(outcomes.second_outcome, plots.hurried, "a closed process changed"),
    Mutation(outcomes.anybodys_outcome, plots.hostile, "an outcome that the peer never had"),
    Mutation(outcomes.hasty_acknowledgement, plots.frail, "an outcome was lost"),
    Mutation(outcomes.unheard_cancel, plots.cross, "a cancel's outcome was lost"),
    Mutation(outcomes.unowed_outcome, plots.moody, "a late outcome was not kept"),
    Mutation(outcomes.traceless_decision, plots.revoked, "an outcome was lost"),
    Mutation(outcomes.no_second_look, plots.mortal, "not quiet in the end", 40),
    Mutation(outcomes.endless_patience, plots.lying, "no end"),
    Mutation(storing.blind_assign, plots.torn, "handed out while it runs"),
    Mutation(storing.blind_close, plots.frail, "a closed process changed", 40),
    Mutation(storing.blind_move, plots.wavering, "sent away while it runs", 80),
    Mutation(
        storing.blind_hand_out,
        plots.undecided,
        "a forwarded process was handed out here",
        40,
    ),
    Mutation(storing.careless_removal, plots.tidy, "a process that somebody waits for was removed"),
]

# What no single check keeps from happening, with the test below that brings it about.
TAMPERED = {"a success without its signed outcome": "test_a_success_needs_its_signed_outcome"}


def first_noticed(mutation: Mutation) -> tuple[int, list[str]]:
    """How many seeds it took until the witness said so, and all that it said on the way."""
    said: list[str] = []
    for seed in range(mutation.most):
        problem = play(seed, 3, tune=mutation.tune).problem
        said += [problem] * bool(problem)
        if mutation.rule in problem:
            return seed + 1, said
    return 0, said


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_the_simulation_notices(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    mutation.patch(monkeypatch)
    seeds, said = first_noticed(mutation)
    assert not [each for each in said if "nobody expected" in each], "the mutation itself is broken"
    assert seeds, f"{mutation.most} seeds, and nobody noticed; but {said}"


TUNES = list({mutation.tune: None for mutation in MUTATIONS} | {plots.unsettled: None})


@pytest.mark.slow
@pytest.mark.parametrize("tune", TUNES, ids=lambda tune: tune.__name__)
def test_without_a_mutation_there_is_nothing_to_notice(tune: Tune) -> None:
    """It is the mutation that is noticed, not the plot."""
    for seed in range(4):
        assert play(seed, 3, tune=tune).problem == "", f"seed {seed}"


def test_every_rule_is_shown_to_bite() -> None:
    sources = [inspect.getsource(module) for module in (witness, scenario, world)]
    rules = {
        rule
        for source in sources
        for rule in re.findall(r'(?:broken\(\s*|Broken\(f)"([^":{]+)', source)
    }
    assert len(rules) > 25
    bitten = {mutation.rule for mutation in MUTATIONS} | set(TAMPERED)
    assert rules == bitten
    assert set(TAMPERED.values()) <= set(globals())


def test_a_success_needs_its_signed_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    final = Witness.final

    def robbed(self: Witness) -> None:
        for site in self.sites.values():
            for item in site.store.items(site.keys.proofs):
                bare = replace(unpack(item.value, Forward), outcome=b"")
                site.store.commit(Txn([], [Put(item.key, pack(bare))]))
        final(self)

    monkeypatch.setattr(Witness, "final", robbed)
    problem = play(0, 3, tune=plots.calm).problem
    assert problem.startswith("a success without its signed outcome")


# -- what the simulation does not get to -------------------------------------------------


_times = test_envelope.TestTime()


class _Meddler(MemoryClient):
    """A store in which a forward turns out not to have left, just after somebody read it."""

    async def get(self, key: str) -> KeyValue | None:
        """As the store has it, for the last time."""
        found = await super().get(key)
        if found is not None and "/outbox/" in key:
            forward = replace(
                unpack(found.value, Forward), state=machine.ForwardState.QUEUED, sent=0
            )
            self.store.commit(Txn([], [Put(key, pack(forward))]))
        return found


async def decide_about_what_never_left() -> None:
    """A person sees a doubt that there is no more when it is ended."""
    client = _Meddler(MemoryStore(), World(0), "c0", lambda: None, lambda: False)
    key, peer, keys = key_of("c0"), key_of("c1"), Keys("c0")
    signer = Signer(key, SigningClock(lambda: EPOCH * SECOND))
    processes = Processes(client, Clock(signer.clock.now))
    peers = Peers(client, keys, signer)
    outbox = ledger_of(Context("c0", signer, client, processes, peers, keys))
    spec = FunctionSpec(funcname="f", conditions=Conditions(colonyname="c1", executortype="t"))
    begin = signer.clock.now()
    process = Process("a" * 64, "b" * 64, "me", "c0", spec, begin, begin, peer=peer.id)
    forward = machine.sending(machine.new_forward(process), b"sealed", begin)
    entry = Put(keys.forward(peer.id, process.processid), pack(forward))
    await client.commit(store.submit(process, b"", [entry]).txn)
    with pytest.raises(RpcError, match="not in doubt, it is queued"):
        await resolve(outbox, process.processid, requeue=True)


async def test_a_decision_is_about_the_forward_that_was_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await decide_about_what_never_left()
    storing.unguarded_decision(monkeypatch)
    with pytest.raises(pytest.fail.Exception):
        await decide_about_what_never_left()


@pytest.mark.parametrize(
    ("patch", "check"),
    [
        (
            storing.endless_cancel,
            named.test_a_cancel_waits_for_the_outcome_only_where_the_process_was_known,
        ),
        (sending.undoubting_refusal, named.test_a_refusal_after_a_lost_answer_leaves_doubt),
        (
            sending.unsigned_refusal,
            test_router.test_only_a_signed_refusal_of_the_only_copy_is_certain,
        ),
        (receiving.forgotten_time, _times.test_boot_in_the_past),
        (receiving.any_future, _times.test_not_yet_valid),
        (
            outcomes.any_request,
            test_bindings.test_an_outcome_is_bound_to_what_was_asked_and_by_whom,
        ),
        (outcomes.anybodys_name, test_bindings.test_a_name_that_is_known_is_one_colony),
        (receiving.chosen_name, test_names.test_a_later_card_does_not_change_a_name),
        (receiving.any_name, test_names.test_a_name_that_is_none_makes_no_card),
    ],
    ids=lambda function: function.__name__,
)
def test_a_named_test_notices(
    patch: Patch, check: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    check()
    patch(monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check()
