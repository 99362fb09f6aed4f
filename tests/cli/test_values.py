"""What the commands are made of, without a daemon: files, ids, times, graphs, keys, secrets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from cli.automation.blueprint import set_path
from cli.automation.blueprint_doctor import check
from cli.core.errors import NOT_FOUND, USAGE, Failure
from cli.core.inputs import pick, read_object, since, workflow_spec
from cli.core.keyfiles import check_id, check_name, read_or_make, rotate
from cli.core.session import Session
from cli.daemon.config import flat, without_secrets
from cli.main import COMMANDS, main
from cli.work.graph import leaves, order, progress, tree
from colonyd.keys import PrivateKey, read_key

# -- graphs ------------------------------------------------------------------------------


def graph_of(edges: list[tuple[str, str]], ids: list[str]) -> dict[str, Any]:
    return {
        "processgraphid": "g" * 64,
        "processids": ids,
        "edges": [{"source": source, "target": target} for source, target in edges],
        "nodes": [{"id": each, "data": {"label": f"node-{each}"}} for each in ids],
    }


@st.composite
def dags(draw: st.DrawFn) -> dict[str, Any]:
    ids = [str(number) for number in range(draw(st.integers(1, 12)))]
    pairs = [(a, b) for i, a in enumerate(ids) for b in ids[i + 1 :]]
    edges = draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    return graph_of(edges, draw(st.permutations(ids)))


@given(dags())
def test_each_node_is_drawn_once_after_all_it_waits_for(graph: dict[str, Any]) -> None:
    drawn = order(graph)
    place = {processid: number for number, (processid, _) in enumerate(drawn)}
    depth = dict(drawn)
    assert sorted(place) == sorted(graph["processids"])
    assert len(drawn) == len(place)
    for edge in graph["edges"]:
        assert place[edge["source"]] < place[edge["target"]]
        assert depth[edge["source"]] < depth[edge["target"]]
    ends = set(leaves(graph))
    assert ends == set(place) - {edge["source"] for edge in graph["edges"]}


def test_a_graph_as_a_table() -> None:
    graph = graph_of([("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")], ["a", "b", "c", "d"])
    processes = {
        "a": {"state": 2, "spec": {"nodename": "fetch", "funcname": "f"}},
        "b": {"state": 3, "spec": {"nodename": "left", "funcname": "g"}, "errors": ["boom"]},
    }
    rows = tree(graph, processes)
    assert [row[0] for row in rows] == ["fetch", "  left", "  node-c", "    node-d"]
    assert rows[1][1:] == ["failed", "g", "fetch", "b", "boom"]
    assert rows[3][3] == "left, node-c"
    assert progress(graph, processes) == "4: 1 successful, 1 failed"


def test_a_cycle_is_drawn_at_all() -> None:
    graph = graph_of([("a", "b"), ("b", "a")], ["a", "b"])
    assert order(graph) == [("a", 0), ("b", 0)]


# -- what is read ------------------------------------------------------------------------


def test_workflow_files(tmp_path: Path) -> None:
    file = tmp_path / "w.json"
    specs = [{"nodename": "a", "funcname": "f"}]
    for value, colony in (
        (specs, "dev"),
        ({"functionspecs": specs}, "dev"),
        ({"colonyname": "other", "functionspecs": specs}, "other"),
    ):
        file.write_text(json.dumps(value))
        assert workflow_spec(str(file), "dev") == {"colonyname": colony, "functionspecs": specs}
    for wrong in ("[]", "{}", "[1]", '{"functionspecs": 1}', "nonsense"):
        file.write_text(wrong)
        with pytest.raises(Failure) as caught:
            workflow_spec(str(file), "dev")
        assert vars(caught.value)["exit_code"] == USAGE
    with pytest.raises(Failure) as caught:
        workflow_spec(str(tmp_path / "none"), "dev")
    assert vars(caught.value)["exit_code"] == NOT_FOUND
    file.write_text('{"cron": {"a": 1}}')
    assert read_object(str(file), "cron") == {"a": 1}
    file.write_text("[1]")
    with pytest.raises(Failure, match="JSON object"):
        read_object(str(file))


def test_moments() -> None:
    now = 1_000_000.0
    assert since("5min", now) == int((now - 300) * 1e9)
    assert since("2h", now) == int((now - 7200) * 1e9)
    assert since("1700000000000000000") == 1_700_000_000_000_000_000
    assert since("2030-01-01T00:00:00Z") == since("2030-01-01T01:00:00+01:00")
    with pytest.raises(Failure, match="no time"):
        since("yesterday")


ROWS = [{"name": "a", "id": "1111"}, {"name": "11", "id": "1122"}, {"name": "b", "id": "3333"}]


def test_rows_are_picked_by_name_id_or_its_beginning() -> None:
    def picked(text: str) -> str:
        return str(pick(ROWS, text, ["name", "id"], "thing", "colony thing ls")["id"])

    assert (picked("a"), picked("3333"), picked("33")) == ("1111", "3333", "3333")
    assert picked("11") == "1122"  # a name before the beginning of an id
    for text, code in (("1", USAGE), ("zz", NOT_FOUND)):
        with pytest.raises(Failure) as caught:
            picked(text)
        assert vars(caught.value)["exit_code"] == code
        assert caught.value.next_step


# -- keys --------------------------------------------------------------------------------


def test_ids_and_names_are_checked() -> None:
    assert check_id("ab" * 32) == "ab" * 32
    assert check_name("w-1") == "w-1"
    for wrong in ("", "AB" * 32, "ab" * 31, "../x"):
        with pytest.raises(Failure):
            check_id(wrong)
    for wrong in ("", "../x", "a/b", "a:b"):
        with pytest.raises(Failure):
            check_name(wrong)


class Interrupted(Exception):
    pass


def test_an_interrupted_change_of_keys_is_finished_by_the_next(tmp_path: Path) -> None:
    """Cut off before and after the daemon knows, the files always hold the key that counts."""
    session = Session(str(tmp_path))
    path = tmp_path / "keys/user.key"
    first, made = read_or_make(path)
    assert made
    known = {first.id}
    broken = ["before", "after"]

    def change(key: PrivateKey, new: str) -> None:
        assert known == {key.id}
        cut = broken.pop(0) if broken else ""
        if cut == "before":
            raise Interrupted
        known.clear()
        known.add(new)
        if cut == "after":
            raise Interrupted

    def accepted(key: PrivateKey) -> bool:
        return key.id in known

    for _ in range(2):
        with pytest.raises(Interrupted):
            rotate(session, first, path, change, accepted)
        assert read_key(path).id == first.id
    new = rotate(session, first, path, change, accepted)
    assert known == {new}
    assert read_key(path).id == new
    assert read_key(path.with_name("user.key.old")).id == first.id
    assert path.stat().st_mode & 0o777 == 0o600
    assert not path.with_name("user.key.new").exists()


def test_key_commands(tmp_path: Path) -> None:
    def colony(*args: str, text: str | None = None) -> Any:
        command = ["--home", str(tmp_path / "home"), "key", *args]
        return CliRunner().invoke(main, command, env={}, input=text)

    file = tmp_path / "e.key"
    made = colony("generate", str(file))
    assert (made.exit_code, made.stdout.strip()) == (0, read_key(file).id)
    assert file.stat().st_mode & 0o777 == 0o600
    assert colony("generate", str(file)).exit_code == USAGE
    assert read_key(file).id == made.stdout.strip()
    printed = colony("generate")
    assert PrivateKey.from_hex(printed.stdout).id in printed.stderr
    assert colony("id", str(file)).stdout == made.stdout
    assert colony("id", "-", text=file.read_text()).stdout == made.stdout
    wrong = colony("id", "-", text="secret words")
    assert wrong.exit_code == USAGE
    assert "secret words" not in wrong.output
    assert colony("ls").exit_code == NOT_FOUND


# -- settings ----------------------------------------------------------------------------


def test_secrets_are_not_shown() -> None:
    shown = without_secrets(
        {
            "files": {"s3": {"secretkey": "abc", "accesskey": "def", "bucket": "b"}},
            "etcd": {"endpoints": ["https://user:word@host:1"], "password": ""},
        }
    )
    text = json.dumps(shown)
    assert not {"abc", "def", "word"} & set(text.replace('"', " ").split())
    assert "user:word" not in text
    assert shown["files"]["s3"]["bucket"] == "b"
    assert dict(flat(shown))["files.s3.bucket"] == "b"


def test_config_shows_no_key(tmp_path: Path) -> None:
    environ = {"COLONIES_PRVKEY": "77" * 32, "COLONIES_COLONY_NAME": "dev"}
    for args in (["config"], ["config", "--json"]):
        result = CliRunner().invoke(main, ["--home", str(tmp_path), *args], env=environ)
        assert result.exit_code == 0
        assert "77" * 32 not in result.output
        assert "dev" in result.output


def test_config_tells_where_each_setting_stands(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[rpc]\nport = 7\n")
    environ = {"COLONYD_LOG__LEVEL": "debug"}

    def run(*args: str) -> str:
        command = ["--home", str(tmp_path), "config", *args]
        return CliRunner().invoke(main, command, env=environ, catch_exceptions=False).stdout

    lines = {line.split()[0]: line for line in run().splitlines()}
    assert lines["rpc.port"].endswith(f"7  (in {tmp_path}/config.toml)")
    assert lines["log.level"].endswith("debug  ($COLONYD_LOG__LEVEL)")
    assert lines["rpc.host"].endswith("*")
    assert lines["history.keep"].split()[1:] == ["auto"]
    shown = json.loads(run("--json"))
    assert shown["settings"]["history"]["keep"] == "auto"
    assert shown["files"] == [f"{tmp_path}/config.toml"]
    assert shown["origins"]["log.level"] == "$COLONYD_LOG__LEVEL"


# -- blueprints --------------------------------------------------------------------------


def test_dotted_paths() -> None:
    target: dict[str, Any] = {"spec": {"lens": [{"focus": 1}], "name": "x"}}
    set_path(target, "spec.lens.0.focus", "2.5")
    set_path(target, "spec.new.deep", '{"a": [true]}')
    set_path(target, "spec.name", "plain text")
    assert target == {
        "spec": {"lens": [{"focus": 2.5}], "name": "plain text", "new": {"deep": {"a": [True]}}}
    }
    for wrong in ("spec..x", "spec.name.x", "spec.lens.9", ""):
        with pytest.raises(Failure):
            set_path(target, wrong, "1")


def test_why_a_blueprint_is_not_real() -> None:
    blueprint = {"kind": "Cam", "metadata": {"name": "c1", "locationname": "Hall"}}
    handler = {"executorType": "cam", "functionName": "reconcile"}
    definition = {"spec": {"names": {"kind": "Cam"}, "handler": handler}}
    executor = {"executortype": "cam", "state": 1, "locationname": "hall"}
    cron = {"name": "reconcile-Cam-Hall"}

    def judged(*parts: Any) -> list[bool | None]:
        return [each.ok for each in check(blueprint, *parts)]

    assert judged([definition], [executor], [cron], None) == [True]
    assert judged([], [executor], [cron], None) == [False]
    assert judged([definition], [executor | {"state": 0}], [cron], None) == [False]
    assert judged([definition], [executor | {"locationname": ""}], [cron], None) == [False]
    assert judged([definition], [executor], [], None) == [True, None]
    failed = {"processid": "ab" * 32, "state": 3, "errors": ["boom"]}
    assert judged([definition], [executor], [cron], failed) == [True, False]
    empty = {"spec": {"names": {"kind": "Cam"}}}
    assert judged([empty], [executor], [cron], None) == [None]


# -- completion --------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    result = CliRunner().invoke(main, ["completion", shell], env={})
    assert result.exit_code == 0
    assert f"_COLONY_COMPLETE={shell}_complete" in result.stdout


def completed(words: str, number: int) -> list[str]:
    environ = {"_COLONY_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(number)}
    result = CliRunner().invoke(main, [], env=environ, prog_name="colony")
    return [line.partition(",")[2] for line in result.stdout.splitlines()]


def test_what_is_completed() -> None:
    assert completed("colony wor", 1) == ["workflow", "worker"]
    assert set(completed("colony ", 1)) == set(COMMANDS)
    assert completed("colony workflow r", 2) == ["rm", "run"]  # not the old "rm-all"
    assert completed("colony workflow ls --state f", 4) == ["failed"]
    assert "--json" in completed("colony --j", 1)
