"""Upstream's own variables, exported before the first start, make a node its tools can use."""

from __future__ import annotations

from collections.abc import Callable

from pycolonies import Colonies, func_spec

from tests.support.daemons import Daemon

VARIABLES = {
    "COLONIES_SERVER_PRVKEY": "fcc79953d8a751bf41db661592dc34d30004b1a651ffa0725b03ac227641499d",
    "COLONIES_COLONY_NAME": "test",
    "COLONIES_COLONY_PRVKEY": "ba949fa134981372d6da62b6a56f336ab4d843b22c02a4257dcf7d0d73097514",
    "COLONIES_PRVKEY": "ddf7f7791208083b6a9ed975a72684f6406a269cfa36f1b1c32045c0a71fff05",
    "COLONIES_EXECUTOR_NAME": "test-executor",
    "COLONIES_EXECUTOR_TYPE": "cli",
}


def test_the_sdks_variables_are_enough(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon("test", COLONYD_FEDERATION__ENABLED="false", **VARIABLES)
    daemon.start()
    colonies = Colonies("127.0.0.1", daemon.port)
    executor = VARIABLES["COLONIES_PRVKEY"]
    listed = colonies.list_colonies(VARIABLES["COLONIES_SERVER_PRVKEY"])
    assert [colony["name"] for colony in listed] == ["test"]
    spec = func_spec("echo", ["x"], "test", "cli")
    submitted = colonies.submit_func_spec(spec, executor)
    assert colonies.assign("test", 5, executor).processid == submitted.processid
    colonies.close(submitted.processid, ["x"], executor)
    assert colonies.get_process(submitted.processid, executor).output == ["x"]
    assert daemon.stop() == 0
    # The keys are in the home now: the variables are not needed again, and change nothing.
    daemon.environ = {"COLONYD_FEDERATION__ENABLED": "false"}
    daemon.start()
    assert colonies.get_process(submitted.processid, executor).output == ["x"]
