"""pycolonies from its package index, unchanged, as user and executor of a real node."""

from __future__ import annotations

import threading
import time

import crypto  # type: ignore[import-untyped]
import pytest
from model import Conditions, FuncSpec, Process  # type: ignore[import-untyped]

from tests.sdk.support import COLONY, Party, field, plain
from tests.support.daemons import Daemon


@pytest.fixture
def party(lone_daemon: Daemon) -> Party:
    return Party(lone_daemon).join()


def test_an_executor_works_and_closes(party: Party) -> None:
    submitted = party.submit(env={"A": "1"})
    assert submitted.state == 0
    assert submitted.spec.args == ["hello"]
    got = party.assign()
    assert got.processid == submitted.processid
    assert got.state == 1
    assert got.assignedexecutorid == party.id
    assert [(a["key"], a["value"]) for a in plain(got.attributes)] == [("A", "1")]
    party.colonies.close(got.processid, ["hello", 7], party.key)
    closed = party.colonies.get_process(got.processid, party.user)
    assert closed.state == 2
    assert closed.output == ["hello", 7]


def test_a_long_poll_gets_what_is_submitted_meanwhile(party: Party) -> None:
    got: list[Process] = []
    waiter = threading.Thread(target=lambda: got.append(party.assign(20)))
    waiter.start()
    submitted = party.submit()
    waiter.join(20)
    assert [process.processid for process in got] == [submitted.processid]


def test_a_long_poll_without_work_ends_in_time_with_an_error(party: Party) -> None:
    began = time.monotonic()
    with pytest.raises(Exception, match="no process"):
        party.assign(1)
    assert 0.9 < time.monotonic() - began < 5


def test_failure_output_attributes_and_logs(party: Party) -> None:
    submitted = party.submit()
    got = party.assign()
    party.colonies.set_output(got.processid, ["so far"], party.key)
    attribute = party.colonies.add_attribute(got.processid, "k", "v", party.key)
    value = party.colonies.get_attribute(field(attribute, "attributeid"), party.user)
    assert field(value, "value") == "v"
    party.colonies.add_log(got.processid, "first\n", party.key)
    party.colonies.add_log(got.processid, "second\n", party.key)
    logs = party.colonies.get_process_log(COLONY, got.processid, 100, -1, party.user)
    assert [field(line, "message") for line in logs] == ["first\n", "second\n"]
    by_executor = party.colonies.get_executor_log(COLONY, party.name, 1, 0, party.user)
    assert [field(line, "message") for line in by_executor] == ["first\n"]
    later = party.colonies.get_process_log(
        COLONY, got.processid, 100, field(logs[0], "timestamp"), party.user
    )
    assert [field(line, "message") for line in later] == ["second\n"]
    party.colonies.fail(got.processid, ["broke"], party.key)
    failed = party.colonies.get_process(submitted.processid, party.user)
    assert (failed.state, failed.errors, failed.output) == (3, ["broke"], ["so far"])


def test_priority_and_age_decide(party: Party) -> None:
    late = party.submit(priority=-1)
    first = party.submit(priority=0)
    second = party.submit(priority=0)
    urgent = party.submit(priority=1)
    order = [party.assign().processid for _ in range(4)]
    wanted = [urgent, first, second, late]
    assert order == [process.processid for process in wanted]


def test_a_named_executor_is_the_only_one_to_get_it(party: Party, lone_daemon: Daemon) -> None:
    conditions = Conditions(
        colonyname=COLONY, executortype=party.type, executornames=["somebody-else"]
    )
    party.submit(conditions=conditions)
    mine = party.submit()
    assert party.assign().processid == mine.processid
    with pytest.raises(Exception, match="no process"):
        party.assign(1)


def test_lists_statistics_and_removal(party: Party) -> None:
    process = party.submit()
    waiting = party.colonies.list_processes(COLONY, 100, 0, party.user)
    assert process.processid in [field(p, "processid") for p in waiting]
    before = party.colonies.stats(COLONY, party.user)
    party.assign()
    running = party.colonies.list_processes(COLONY, 100, 1, party.user)
    assert process.processid in [field(p, "processid") for p in running]
    party.colonies.close(process.processid, [], party.key)
    done = party.colonies.list_processes(COLONY, 100, 2, party.user)
    assert field(done[0], "processid") == process.processid
    after = party.colonies.stats(COLONY, party.user)
    assert field(after, "successfulprocesses") == field(before, "successfulprocesses") + 1
    assert field(after, "waitingprocesses") == field(before, "waitingprocesses") - 1
    party.colonies.remove_process(process.processid, party.user)
    with pytest.raises(Exception, match="no process"):
        party.colonies.get_process(process.processid, party.user)


def test_maxexectime_requeues_until_retries_are_used_up(party: Party) -> None:
    process = party.submit(maxexectime=1, maxretries=1)
    party.assign()
    again = party.assign(10)
    assert again.processid == process.processid
    with pytest.raises(Exception, match="no process"):
        party.assign(3)
    deadline = time.monotonic() + 30
    while (failed := party.colonies.get_process(process.processid, party.user)).state != 3:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert failed.errors == ["Maximum execution time limit exceeded"]


def test_zero_means_no_limit(party: Party) -> None:
    spec = FuncSpec(
        funcname="echo",
        args=[],
        kwargs={},
        conditions=Conditions(colonyname=COLONY, executortype=party.type),
    )
    process = party.colonies.submit_func_spec(spec, party.user)
    party.assign()
    with pytest.raises(Exception, match="no process"):
        party.assign(3)
    assert party.state(process) == 1


def test_maxwaittime_fails_what_nobody_takes(party: Party) -> None:
    process = party.submit(maxwaittime=1)
    deadline = time.monotonic() + 15
    while party.state(process) == 0:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    failed = party.colonies.get_process(process.processid, party.user)
    assert failed.errors == ["Maximum waiting time limit exceeded"]


def test_functions_and_their_statistics(party: Party) -> None:
    party.colonies.add_function(COLONY, party.name, "echo", party.key)
    party.submit()
    got = party.assign()
    party.colonies.close(got.processid, ["x"], party.key)
    functions = party.colonies.get_functions_by_executor(COLONY, party.name, party.user)
    assert [(f["funcname"], f["counter"]) for f in plain(functions)] == [("echo", 1)]


def test_executors_come_go_and_come_back(party: Party) -> None:
    process = party.submit()
    party.assign()
    party.colonies.remove_executor(COLONY, party.name, party.owner)
    assert party.state(process) == 0
    with pytest.raises(Exception, match="only its approved executor"):
        party.assign()
    party.join()
    assert party.assign().processid == process.processid


def test_rights(party: Party, lone_daemon: Daemon) -> None:
    stranger = crypto.Crypto().prvkey()
    process = party.submit()
    for call in (
        lambda: party.colonies.get_process(process.processid, stranger),
        lambda: party.colonies.submit_func_spec(party.spec(), stranger),
        lambda: party.colonies.submit_func_spec(party.spec(), party.owner),
        lambda: party.colonies.assign(COLONY, 1, stranger),
        lambda: party.colonies.stats(COLONY, stranger),
        lambda: party.colonies.list_colonies(party.owner),
        lambda: party.colonies.add_user({"colonyname": COLONY, "userid": "0" * 64}, stranger),
        lambda: party.colonies.approve_executor(COLONY, party.name, party.user),
    ):
        with pytest.raises(Exception, match=r"member|only|user"):
            call()  # type: ignore[no-untyped-call]
    pending = Party(lone_daemon)
    executor = {
        "executorname": pending.name,
        "executorid": pending.id,
        "colonyname": COLONY,
        "executortype": party.type,
    }
    party.colonies.add_executor(executor, party.owner)
    with pytest.raises(Exception, match="only its approved executor"):
        pending.assign()
    got = party.assign()
    other = Party(lone_daemon).join()
    with pytest.raises(Exception, match="not assigned"):
        other.colonies.close(got.processid, [], other.key)


def test_colonies_and_users(party: Party) -> None:
    owner = crypto.Crypto().prvkey()
    name = f"c-{party.name}"
    colony = {"colonyid": crypto.Crypto().id(owner), "name": name}
    party.colonies.add_colony(colony, party.server)
    assert name in [field(c, "name") for c in party.colonies.list_colonies(party.server)]
    person = crypto.Crypto().prvkey()
    user = {
        "colonyname": name,
        "userid": crypto.Crypto().id(person),
        "name": "ann",
        "email": "",
        "phone": "",
    }
    party.colonies.add_user(user, owner)
    assert [u["name"] for u in plain(party.colonies.get_users(name, person))] == ["ann"]
    party.colonies.remove_user(name, "ann", owner)
    with pytest.raises(Exception, match="only its"):
        party.colonies.get_users(name, person)
    party.colonies.del_colony(name, party.server)
    assert name not in [field(c, "name") for c in party.colonies.list_colonies(party.server)]
