"""Workflows on a real daemon: order, inputs, failure, cancelling, adding, removing, great ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import httpx
import pytest
import trio

from colonyd.keys import PrivateKey
from colonyd.rpc import RpcError, encode
from tests.node.workflows.support import Party, kill_at, party, patient, post, spec
from tests.support.daemons import Daemon, seeded_dice, until

Make = Callable[..., Daemon]


async def test_nodes_are_taken_in_the_order_in_which_they_are_written(lone_daemon: Daemon) -> None:
    """Where neither dependencies nor priorities decide: also those that are free later."""
    async with lone_daemon.client() as client:
        me = await party(lone_daemon, client)
        roots = [f"root-{number}" for number in range(12)]
        leaves = [f"leaf-{number}" for number in range(12)]
        await me.submit(
            *(spec(name, kind=me.kind) for name in roots),
            *(spec(leaf, root, kind=me.kind) for leaf, root in zip(leaves, roots, strict=True)),
        )
        assert [await me.work() for _ in range(24)] == [*roots, *leaves]


async def test_a_diamond_runs_in_order_and_outputs_become_inputs(lone_daemon: Daemon) -> None:
    async with lone_daemon.client() as client:
        me = await party(lone_daemon, client)
        kind = me.kind
        graph = await me.submit(
            spec("join", "left", "right", kind=kind),
            spec("top", kind=kind, args=["x"], env={"A": "1"}),
            spec("left", "top", kind=kind),
            spec("right", "top", kind=kind),
        )
        assert graph["state"] == 0
        assert len(graph["processids"]) == 4
        assert graph["rootprocessids"] == [graph["processids"][1]]
        nodes = await me.nodes(graph)
        assert nodes["join"]["waitforparents"] is True
        assert nodes["join"]["parents"] == [nodes["left"]["processid"], nodes["right"]["processid"]]
        assert nodes["top"]["children"] == [nodes["left"]["processid"], nodes["right"]["processid"]]
        assert nodes["top"]["processgraphid"] == graph["processgraphid"]
        top = await me.assign()
        assert (top["spec"]["nodename"], top["spec"]["args"], top["in"]) == ("top", ["x"], [])
        assert await me.nothing_to_do()
        assert (await me.graph(graph))["state"] == 1
        await me.close(top, "t")
        first, second = await me.assign(), await me.assign()
        assert {first["spec"]["nodename"], second["spec"]["nodename"]} == {"left", "right"}
        assert first["in"] == second["in"] == ["t"]
        await me.close(second, second["spec"]["nodename"])
        assert await me.nothing_to_do()
        await me.close(first, first["spec"]["nodename"], 1)
        join = await me.assign()
        left = ["left", 1] if first["spec"]["nodename"] == "left" else ["left"]
        right = ["right", 1] if first["spec"]["nodename"] == "right" else ["right"]
        assert join["in"] == [*left, *right]
        await me.close(join, "done")
        ended = await me.graph(graph)
        assert ended["state"] == 2
        assert ended["submissiontime"] < ended["starttime"] < ended["endtime"]
        assert [each["data"]["label"] for each in ended["nodes"]] == [
            "join",
            "top",
            "left",
            "right",
        ]
        assert len(ended["edges"]) == 4


async def test_a_failure_ends_what_waits_and_runs_and_leaves_what_is_done(
    lone_daemon: Daemon,
) -> None:
    async with lone_daemon.client() as client:
        me = await party(lone_daemon, client)
        kind = me.kind
        graph = await me.submit(
            spec("a", kind=kind),
            spec("b", kind=kind),
            spec("c", kind=kind),
            spec("after", "b", kind=kind),
        )
        tasks = {}
        for _ in range(3):
            task = await me.assign()
            tasks[task["spec"]["nodename"]] = task
        await me.close(tasks["a"], "kept")
        await me.fail(tasks["b"])
        assert await me.states(graph) == {"a": 2, "b": 3, "c": 3, "after": 3}
        nodes = await me.nodes(graph)
        assert nodes["a"]["out"] == ["kept"]
        assert nodes["b"]["errors"] == ["broken"]
        assert nodes["after"]["errors"] == ["another node of the workflow failed"]
        with pytest.raises(RpcError, match="failed, not running"):
            await me.close(tasks["c"], "late")
        assert (await me.graph(graph))["state"] == 3
        assert await me.nothing_to_do()


async def test_a_leaf_that_fails_leaves_its_siblings_running(lone_daemon: Daemon) -> None:
    async with lone_daemon.client() as client:
        me = await party(lone_daemon, client)
        graph = await me.submit(
            spec("a", kind=me.kind), spec("b", kind=me.kind), spec("c", "b", kind=me.kind)
        )
        tasks = {}
        for _ in range(2):
            task = await me.assign()
            tasks[task["spec"]["nodename"]] = task
        await me.fail(tasks["a"])
        assert (await me.graph(graph))["state"] == 3
        await me.close(tasks["b"], 1)
        assert await me.work(2) == "c"
        assert await me.states(graph) == {"a": 3, "b": 2, "c": 2}


async def test_cancelling_ends_every_node_and_nothing_is_handed_out(lone_daemon: Daemon) -> None:
    async with lone_daemon.client() as client:
        me = await party(lone_daemon, client)
        graph = await me.submit(spec("a", kind=me.kind), spec("b", "a", kind=me.kind))
        task = await me.assign()
        graphid = graph["processgraphid"]
        with pytest.raises(RpcError, match="part of a workflow") as refusal:
            await me.call("cancelprocessmsg", processid=task["processid"])
        assert refusal.value.status == 400
        await me.call("cancelprocessgraphmsg", processgraphid=graphid)
        assert await me.states(graph) == {"a": 4, "b": 4}
        assert (await me.graph(graph))["state"] == 4
        with pytest.raises(RpcError, match="cancelled, not running"):
            await me.close(task)
        with pytest.raises(RpcError, match="already cancelled"):
            await me.call("cancelprocessgraphmsg", processgraphid=graphid)
        assert await me.nothing_to_do()


async def test_waiting_too_long_fails_a_node_that_waits_for_its_parents(
    lone_daemon: Daemon,
) -> None:
    async with lone_daemon.client() as client:
        me = await party(lone_daemon, client)
        graph = await me.submit(
            spec("a", kind=me.kind), spec("b", "a", kind=me.kind, maxwaittime=1)
        )

        async def ended() -> bool:
            return (await me.states(graph))["b"] != 0

        await until(50, ended)
        nodes = await me.nodes(graph)
        assert nodes["b"]["errors"] == ["Maximum waiting time limit exceeded"]
        # A leaf: its parent may still run.
        assert await me.work() == "a"
        assert await me.states(graph) == {"a": 2, "b": 3}


async def test_an_executor_adds_nodes_below_the_one_it_runs(lone_daemon: Daemon) -> None:
    async with lone_daemon.client() as client:
        me = await party(lone_daemon, client)
        kind = me.kind
        graph = await me.submit(spec("a", kind=kind), spec("z", "a", kind=kind))
        nodes = await me.nodes(graph)
        task = await me.assign()
        base = {"processgraphid": graph["processgraphid"], "parentprocessid": task["processid"]}
        inserted = await me.call(
            "addchildmsg", me.key, **base, spec=spec("between", kind=kind), insert=True
        )
        assert inserted["children"] == [nodes["z"]["processid"]]
        leaf = await me.call("addchildmsg", me.key, **base, spec=spec("leaf", kind=kind))
        assert leaf["waitforparents"] is True
        linked = await me.call(
            "addchildmsg",
            me.key,
            **base,
            spec=spec("linked", kind=kind),
            childprocessid=nodes["z"]["processid"],
        )
        nodes = await me.nodes(graph)
        assert nodes["a"]["children"] == [
            inserted["processid"],
            leaf["processid"],
            linked["processid"],
        ]
        assert nodes["z"]["parents"] == [inserted["processid"], linked["processid"]]
        await me.close(task, "a")
        ran, last = [], {}
        for _ in range(4):
            last = await me.assign()
            ran.append(last["spec"]["nodename"])
            await me.close(last, f"out of {ran[-1]}")
        assert sorted(ran) == ["between", "leaf", "linked", "z"]
        assert ran.index("z") > max(ran.index("between"), ran.index("linked"))
        assert (await me.nodes(graph))["z"]["in"] == ["out of between", "out of linked"]
        ended = await me.graph(graph)
        assert (ended["state"], len(ended["processids"])) == (2, 5)
        with pytest.raises(RpcError) as refusal:
            await me.call("addchildmsg", me.key, **base, spec=spec("late", kind=kind))
        assert refusal.value.status == 400


async def test_removing_takes_the_nodes_along(lone_daemon: Daemon) -> None:
    async with lone_daemon.client() as client:
        me = await party(lone_daemon, client)
        graph = await me.submit(spec("a", kind=me.kind), spec("b", "a", kind=me.kind))
        graphid, pid = graph["processgraphid"], graph["processids"][0]
        await me.assign()
        with pytest.raises(RpcError, match="running; cancel it first"):
            await me.call("removeprocessgraphmsg", processgraphid=graphid)
        await me.call("cancelprocessgraphmsg", processgraphid=graphid)
        with pytest.raises(RpcError, match="part of a workflow"):
            await me.call("removeprocessmsg", processid=pid)
        await me.call("removeprocessgraphmsg", processgraphid=graphid)
        for payloadtype, fields in (
            ("getprocessgraphmsg", {"processgraphid": graphid}),
            ("getprocessmsg", {"processid": pid}),
        ):
            with pytest.raises(RpcError) as refusal:
                await me.call(payloadtype, **fields)
            assert refusal.value.status == 404


async def test_listing_counting_and_removing_by_state(make_daemon: Make) -> None:
    daemon = make_daemon("dev", COLONYD_FEDERATION__ENABLED="false").start()
    async with daemon.client() as client:
        me = await party(daemon, client)
        first = await me.submit(spec("a", kind=me.kind))
        second = await me.submit(spec("a", kind=me.kind))
        waiting = await me.call("getprocessgraphsmsg", count=10, state=0)
        assert [each["processgraphid"] for each in waiting] == [
            second["processgraphid"],
            first["processgraphid"],
        ]
        await me.work()
        counts = await me.call("getcolonystatsmsg")
        assert (counts["waitingworkflows"], counts["successfulworkflows"]) == (1, 1)
        await me.call("removeallprocessgraphsmsg", me.owner, state=2)
        assert await me.call("getprocessgraphsmsg", count=10, state=2) == []
        await me.assign()
        await me.call("removeallprocessesmsg", me.owner, state=-1)
        assert len(await me.call("getprocessgraphsmsg", count=10, state=1)) == 1
        await me.call("removeallprocessgraphsmsg", me.owner, state=-1)
        counts = await me.call("getcolonystatsmsg")
        assert {name: n for name, n in counts.items() if "workflows" in name and n} == {}
        assert (counts["runningprocesses"], counts["waitingprocesses"]) == (0, 0)


@pytest.mark.parametrize(
    ("specs", "words"),
    [
        ([], "spec.functionspecs: a workflow has at least one"),
        ([("a", "b"), ("b", "a")], "spec.functionspecs: nodes depend on themselves"),
        ([("a", "ghost")], "'ghost', which is no node"),
    ],
)
async def test_a_refused_workflow_leaves_nothing(
    lone_daemon: Daemon, specs: Sequence[tuple[str, ...]], words: str
) -> None:
    async with lone_daemon.client() as client:
        me = await party(lone_daemon, client)
        before = await me.call("getcolonystatsmsg")
        with pytest.raises(RpcError) as refusal:
            await me.submit(*(spec(name, *deps, kind=me.kind) for name, *deps in specs))
        assert refusal.value.status == 400
        assert words in refusal.value.message
        assert await me.call("getcolonystatsmsg") == before


async def test_a_bad_node_is_named(lone_daemon: Daemon) -> None:
    async with lone_daemon.client() as client:
        me = await party(lone_daemon, client)
        bad = spec("b", "a", kind=me.kind, priority=99_999_999)
        with pytest.raises(RpcError, match=r"spec\.functionspecs\[1\]\.priority"):
            await me.submit(spec("a", kind=me.kind), bad)


async def test_the_same_submission_twice_is_one_workflow(lone_daemon: Daemon) -> None:
    async with lone_daemon.client() as client:
        me = await party(lone_daemon, client)
        workflow = {"colonyname": "dev", "functionspecs": [spec("a", kind=me.kind)]}
        body = encode("submitworkflowspecmsg", {"spec": workflow}, me.user)
        first, second = [await post(client, "submitworkflowspecmsg", body) for _ in range(2)]
        assert first["processgraphid"] == second["processgraphid"]
        await me.work()
        assert await me.nothing_to_do()


async def test_outsiders_learn_nothing_of_a_workflow(lone_daemon: Daemon) -> None:
    async with lone_daemon.client() as client:
        me = await party(lone_daemon, client)
        graph = await me.submit(spec("a", kind=me.kind))
        for payloadtype in ("getprocessgraphmsg", "cancelprocessgraphmsg", "removeprocessgraphmsg"):
            with pytest.raises(RpcError) as refusal:
                await me.call(
                    payloadtype, PrivateKey.generate(), processgraphid=graph["processgraphid"]
                )
            assert refusal.value.status == 403
        assert (await me.graph(graph))["state"] == 0


@pytest.mark.slow
async def test_a_graph_of_ten_thousand_nodes(make_daemon: Make) -> None:
    """One root, 9,998 that wait for it, and one that waits for all of these."""
    daemon = make_daemon("dev", COLONYD_FEDERATION__ENABLED="false").start()
    async with daemon.client() as client:
        me = await party(daemon, client)
        other = me.kind + "-wide"
        middle = [f"m{number}" for number in range(9_998)]
        graph = await me.submit(
            spec("root", kind=me.kind),
            *(spec(name, "root", kind=other) for name in middle),
            spec("last", *middle, kind=me.kind),
        )
        assert len(graph["processids"]) == 10_000
        stats = await me.call("getcolonystatsmsg")
        assert (stats["waitingprocesses"], stats["waitingworkflows"]) == (10_000, 1)
        assert await me.work("seed") == "root"

        async def all_unblocked() -> bool:
            seen = await me.call("getprocessmsg", processid=graph["processids"][9_998])
            return (seen["in"], seen["waitforparents"]) == (["seed"], False)

        await until(60, all_unblocked)
        last = await me.call("getprocessmsg", processid=graph["processids"][9_999])
        assert len(last["parents"]) == 9_998
        await me.call("cancelprocessgraphmsg", processgraphid=graph["processgraphid"])

        async def nothing_waits() -> bool:
            stats = await me.call("getcolonystatsmsg")
            return bool(stats["waitingprocesses"] == 0)

        await until(60, nothing_waits)
        stats = await me.call("getcolonystatsmsg")
        assert (stats["cancelledprocesses"], stats["successfulprocesses"]) == (9_999, 1)


@pytest.mark.slow
async def test_kills_at_random_moments_of_workflows(make_daemon: Make) -> None:
    """Each node runs once to its end, in order, whatever dies; a seed repeats a run."""
    dice = seeded_dice()
    daemon = make_daemon("dev", COLONYD_FEDERATION__ENABLED="false").start()
    async with daemon.client() as client:
        me = await party(daemon, client)
        for number in range(5):
            large = number % 2 == 1
            middle = [f"m{each}" for each in range(40 if large else 4)]
            workflow = {
                "colonyname": "dev",
                "functionspecs": [
                    spec("root", kind=me.kind),
                    *(spec(name, "root", kind=me.kind) for name in middle),
                    spec("last", *middle, kind=me.kind),
                ],
            }
            body = encode("submitworkflowspecmsg", {"spec": workflow}, me.user)
            moment, below = dice.random() * (1.0 if large else 0.3), dice.random() < 0.4
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(kill_at, daemon, moment, below=below))
                graph = await patient(client, "submitworkflowspecmsg", body)
                ran = await _run_all(me, graph)
            assert ran[0] == "root"
            assert ran[-1] == "last"
            assert sorted(ran[1:-1]) == sorted(middle)
            nodes = await me.nodes(graph)
            assert {node["state"] for node in nodes.values()} == {2}
            assert nodes["last"]["in"] == [f"out of {name}" for name in middle]
            assert (await me.graph(graph))["state"] == 2
        waiting = await me.call("getprocessgraphsmsg", count=100, state=0)
        assert waiting == []


async def _run_all(me: Party, graph: dict[str, Any]) -> list[str]:
    """Work until the last node is done; the names in the order of their ends."""
    ran: list[str] = []
    while "last" not in ran:
        fields = {"colonyname": me.colony, "timeout": 2}
        body = encode("assignprocessmsg", fields, me.key)
        try:
            tasks = [await post(me.client, "assignprocessmsg", body)]
        except (httpx.TransportError, RpcError) as error:
            if isinstance(error, RpcError) and error.status not in (404, 503):
                raise
            # An answer that got lost: what was handed out is ours all the same.
            fields = {"processgraphid": graph["processgraphid"], "state": 1}
            body = encode("getprocessesmsg", {"colonyname": me.colony} | fields, me.user)
            tasks = await patient(me.client, "getprocessesmsg", body)
        for task in tasks:
            name = str(task["spec"]["nodename"])
            fields = {"processid": task["processid"], "out": [f"out of {name}"]}
            body = encode("closesuccessfulmsg", fields, me.key)
            await patient(me.client, "closesuccessfulmsg", body)
            ran.append(name)
    return ran
