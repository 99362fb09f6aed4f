"""Upstream's own variables, exported before the first start, make a node its tools can use."""

from __future__ import annotations

from collections.abc import Callable

from pycolonies import Colonies, func_spec

from tests.node.members.support import VARIABLES
from tests.support.daemons import Daemon


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
