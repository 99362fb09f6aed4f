"""The manifests of `docs/examples/kubernetes`: what they say, and that a worker runs with it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.support import COLONY, ENVIRON, Worker, colony
from tests.support.daemons import REPOSITORY, Daemon

MANIFEST = REPOSITORY / "docs" / "examples" / "kubernetes" / "worker.yaml"


def manifests() -> dict[str, dict[str, Any]]:
    """The objects of the manifest by their kind."""
    return {each["kind"]: each for each in yaml.safe_load_all(MANIFEST.read_text("utf-8"))}


def test_a_pod_is_confined() -> None:
    pod = manifests()["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "privileged": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"requests", "limits"} == container["resources"].keys()
    assert container["livenessProbe"]
    assert container["startupProbe"]


def test_its_parts_fit_together() -> None:
    found = manifests()
    deployment = found["Deployment"]["spec"]
    pod = deployment["template"]["spec"]
    (container,) = pod["containers"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels
    assert (deployment["replicas"], deployment["strategy"]) == (1, {"type": "Recreate"})
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    (given,) = container["envFrom"]
    assert given["configMapRef"]["name"] == found["ConfigMap"]["metadata"]["name"]
    assert all(isinstance(value, str) for value in found["ConfigMap"]["data"].values())
    grace = next(word for word in container["args"] if word.startswith("--grace="))
    assert pod["terminationGracePeriodSeconds"] > int(grace.partition("=")[2]) + 5


@pytest.mark.slow
def test_a_worker_runs_with_its_flags(lone_daemon: Daemon, tmp_path: Path) -> None:
    """Its directories are others here, and its daemon's address; all else is as it stands there."""
    found = manifests()
    (container,) = found["Deployment"]["spec"]["template"]["spec"]["containers"]
    places = {mount["mountPath"]: tmp_path / mount["name"] for mount in container["volumeMounts"]}
    for place in places.values():
        place.mkdir()

    def here(text: str) -> str:
        for there, place in places.items():
            if text.startswith(there) or f"={there}" in text:
                return text.replace(there, str(place), 1)
        return text

    added = colony(lone_daemon, "key", "add", str(tmp_path / "key" / "executor.key"), "--json")
    assert added.returncode == 0, added.stderr
    identity = yaml.safe_load(added.stdout)["id"]
    words = ("executor", "add", "upper", "--type", "cli", "--id", identity, "--approve")
    assert colony(lone_daemon, *words).returncode == 0
    config = {
        **found["ConfigMap"]["data"],
        "COLONIES_SERVER_HOST": "127.0.0.1",
        "COLONIES_SERVER_PORT": str(lone_daemon.port),
    }
    variables = {each["name"]: here(each["value"]) for each in container["env"]}
    worker = PodWorker([here(word) for word in container["args"]], {**config, **variables})
    try:
        worker.event("ready")
        probe = [here(word) for word in container["startupProbe"]["exec"]["command"]]
        assert subprocess.run(probe, check=False).returncode == 0
        done = colony(lone_daemon, "run", "--func", "upper", "hello", "--wait")
        assert done.stdout.strip() == "HELLO"
    finally:
        worker.process.terminate()
        worker.process.communicate(timeout=60)


class PodWorker(Worker):
    """A worker with the arguments and the variables of a pod, and no others."""

    def __init__(self, args: list[str], variables: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [*COLONY, *args], stdout=subprocess.PIPE, env={**ENVIRON, **variables}, cwd="/"
        )
        self.seen = []
