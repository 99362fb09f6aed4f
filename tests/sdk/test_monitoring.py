"""`/metrics` beside Prometheus: the format, the alert rules and the dashboard."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.node.http.support import parse, scrape
from tests.support.daemons import REPOSITORY, Daemon, until
from tests.support.sides import pair

FOLDER = REPOSITORY / "docs" / "monitoring"
REFERENCE = REPOSITORY / "docs" / "reference" / "metrics.md"
# Metrics that a daemon tells from the first event on that they count.
LATER = {"colonyd_progress", "colonyd_channels", "colonyd_files"}
# Metrics of a daemon with federation.global.
WIDE = {"colonyd_dht", "colonyd_reach", "colonyd_routers"}
# Metrics that Prometheus makes itself.
PROMETHEUS = {"up"}
NAME = re.compile(r"\b((?:colonyd|colonies|process)_\w+|up)\b")


@pytest.fixture
def promtool() -> str:
    """Return the path of promtool, which `scripts/setup --test` brings."""
    local = REPOSITORY / ".venv" / "bin" / "promtool"
    found = str(local) if local.exists() else shutil.which("promtool")
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("no promtool: scripts/setup --test should have brought it")
        pytest.skip("no promtool: scripts/setup --test brings it")
    return found


def checked(promtool: str, *arguments: str, stdin: str | None = None) -> str:
    command = [promtool, *arguments]
    done = subprocess.run(
        command, cwd=FOLDER, input=stdin, text=True, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_alert_rules_are_valid(promtool: str) -> None:
    assert "11 rules found" in checked(promtool, "check", "rules", "alerts.yml")


def test_each_alert_fires_when_it_should(promtool: str) -> None:
    assert "SUCCESS" in checked(promtool, "test", "rules", "alerts_test.yml")
    told = (FOLDER / "alerts_test.yml").read_text("utf-8")
    page = (REPOSITORY / "docs" / "how-to" / "monitoring.md").read_text("utf-8")
    for alert in re.findall(r"alert: (\w+)", (FOLDER / "alerts.yml").read_text("utf-8")):
        assert f"alertname: {alert}\n" in told, f"{alert} fires in no test"
        assert f"| `{alert}` |" in page, f"{alert} is not in docs/how-to/monitoring.md"


def expressions() -> Iterator[str]:
    """Return each expression of the dashboard and of the alert rules."""
    board = json.loads((FOLDER / "dashboard.json").read_text("utf-8"))
    for panel in board["panels"]:
        for target in panel["targets"]:
            yield target["expr"]
    yield from (each["query"]["query"] for each in board["templating"]["list"][1:])
    rules = (FOLDER / "alerts.yml").read_text("utf-8")
    yield from re.findall(r"expr: (?:\|\n)?((?:.|\n)*?)\n +(?:for|labels):", rules)


def test_every_expression_of_the_dashboard_is_one(promtool: str, tmp_path: Any) -> None:
    """Prometheus reads each: as a rule, with the dashboard's variables filled in."""
    board = json.loads((FOLDER / "dashboard.json").read_text("utf-8"))
    rules = [
        {
            "record": "a:b",
            "expr": target["expr"].replace("$instance", ".*"),
            "labels": {"n": str(n)},
        }
        for n, target in enumerate(t for panel in board["panels"] for t in panel["targets"])
    ]
    assert len(rules) > 20
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    checked(promtool, "check", "rules", str(file))


def families(text: str) -> dict[str, tuple[str, str]]:
    """Return the kind and the help of each metric by name."""
    told = dict(re.findall(r"^# HELP (\w+) (.*)$", text, re.M))
    kinds = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.M))
    assert told.keys() == kinds.keys()
    return {name: (kinds[name], about) for name, about in told.items()}


def series(text: str) -> set[str]:
    """Return the names of all samples."""
    return {name for name, _ in parse(text)}


def rows(text: str) -> list[str]:
    """Return the rows of the reference for what a daemon tells."""
    labels: dict[str, set[str]] = {}
    for name, pairs in parse(text):
        family = re.sub(r"_(bucket|sum|count)$", "", name)
        labels.setdefault(family, set()).update(each for each, _ in pairs)
    found = sorted(families(text).items(), key=lambda each: each[0])
    return [
        f"| `{name}` | {kind} | {_listed(labels[name] - {'le'})} | {about} |"
        for name, (kind, about) in found
    ]


def _listed(names: set[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


async def scraped(daemon: Daemon, needed: str) -> str:
    """Return what a daemon tells once it tells of `needed`: a reading is kept for two seconds."""

    async def fresh() -> str:
        text = scrape(daemon).text
        return text if needed in text else ""

    found: str = await until(50, fresh)
    return found


@pytest.mark.slow
async def test_what_a_daemon_tells(make_daemon: Callable[..., Daemon], promtool: str) -> None:
    async with pair(make_daemon) as (ant, bee):
        processid = await ant.submit("bee")
        await bee.work("X")
        await ant.closed(processid)
        for _ in range(3):
            with pytest.raises(Exception, match="unknown"):
                await ant.call("nosuchmsg")
        text = await scraped(ant.daemon, "colonyd_forward_outcome_seconds_count")
        peer = bee.owner.id
    samples = parse(text)
    checked(promtool, "check", "metrics", stdin=text)

    # Each hop of the forward, counted once, by the peer.
    for hop in ("receipt", "outcome"):
        name = f"colonyd_forward_{hop}_seconds"
        labels = {"peer": peer, "name": "bee"}
        assert samples[f"{name}_count", frozenset(labels.items())] == 1
        assert 0 < samples[f"{name}_sum", frozenset(labels.items())] < 40
        whole = frozenset((labels | {"le": "+Inf"}).items())
        assert samples[f"{name}_bucket", whole] == 1

    # Each call that was served has its histogram; a refused one, and a poll, has none.
    submits = frozenset({("payloadtype", "submitfuncspecmsg")})
    assert samples["colonyd_rpc_duration_seconds_count", submits] == 1
    assert 0 < samples["colonyd_rpc_duration_seconds_sum", submits] < 20
    measured = {
        dict(labels)["payloadtype"]
        for name, labels in samples
        if name == "colonyd_rpc_duration_seconds_count"
    }
    assert "nosuchmsg" not in text
    assert measured.isdisjoint({"unknown", "others", "assignprocessmsg"})

    # What the dashboard and the rules ask for is there.
    named = {name for each in expressions() for name in NAME.findall(each)}
    assert len(named) > 15
    assert named - PROMETHEUS - series(text) == set()

    # And the reference is what the daemon says.
    page = REFERENCE.read_text("utf-8").split("\nThese three ")
    told = [line for line in page[0].splitlines() if line.startswith("| `")]
    right = [row for row in rows(text) if row.split("`")[1] not in LATER]
    assert told == right, f"{REFERENCE} differs; right is:\n" + "\n".join(right)
    later, _, wide = page[1].partition("\nWhere `federation.global` is on")
    assert set(re.findall(r"^\| `(\w+)` \|", later, re.M)) == LATER
    # tests/federation/membership/test_finder.py compares these with such a daemon's.
    assert set(re.findall(r"^\| `(\w+)` \|", wide, re.M)) == WIDE
