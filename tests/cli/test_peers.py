"""`colony peer`: policies, invitations and joining, from the command line."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cli.main import main
from cli.peers.invite import drawn
from colonyd.keys import read_key
from node.host.home import init_home
from tests.support.rpc_server import ColonyServer

Colony = Callable[..., Result]
POLICY = {
    "functions": ["f*"],
    "executor_types": [],
    "labels": [],
    "max_waiting": 5,
    "max_running": 0,
    "rate": 60,
    "max_body": 0,
    "forward": False,
    "max_hops": 1,
}
PEER = {
    "id": "ab" * 32,
    "name": "lab",
    "state": "trusted",
    "endpoints": [],
    "lastseen": 0,
    "error": "",
    "outstanding": 0,
    "waiting": 2,
    "running": 1,
    "policy": POLICY,
    "ownpolicy": True,
    "ending": False,
}


@pytest.fixture
def server() -> Any:
    with ColonyServer() as running:
        running.answers["trustpeermsg"] = lambda payload, caller: PEER
        running.answers["getpeermsg"] = lambda payload, caller: PEER
        running.answers["setpeerpolicymsg"] = lambda payload, caller: PEER
        running.answers["joinpeermsg"] = lambda payload, caller: PEER
        yield running


@pytest.fixture
def home(tmp_path: Path) -> Path:
    init_home(tmp_path / "home", "dev", {})
    return tmp_path / "home"


@pytest.fixture
def colony(server: ColonyServer, home: Path) -> Colony:
    def run(*args: str, stdin: str | None = None) -> Result:
        command = ["--home", str(home), "--server", server.address, "peers", *args]
        return CliRunner().invoke(main, command, env={}, input=stdin, catch_exceptions=False)

    return run


def asked(server: ColonyServer) -> dict[str, Any]:
    kind, payload, _ = server.seen[-1]
    return {"kind": kind, **{key: payload.get(key) for key in ("policy", "change", "default")}}


def test_trust_says_only_what_was_asked(colony: Colony, server: ColonyServer) -> None:
    assert colony("trust", "lab").exit_code == 0
    assert asked(server) == {
        "kind": "trustpeermsg", "policy": None, "change": None, "default": None,
    }  # fmt: skip
    result = colony(
        "trust", "lab", "--function", "a*", "--function", "b", "--executor-type", "gpu",
        "--label", "x", "--max-waiting", "9", "--max-running", "2", "--rate", "60",
        "--max-body", "64KiB", "--forward", "--max-hops", "3",
    )  # fmt: skip
    assert result.exit_code == 0
    assert asked(server)["change"] == {
        "functions": ["a*", "b"],
        "executor_types": ["gpu"],
        "labels": ["x"],
        "max_waiting": 9,
        "max_running": 2,
        "rate": 60,
        "max_body": 65536,
        "forward": True,
        "max_hops": 3,
    }
    colony("trust", "lab", "--no-forward", "--max-waiting", "0")
    assert asked(server)["change"] == {"forward": False, "max_waiting": 0}


@pytest.mark.parametrize(
    "text",
    [
        'functions = ["f*"]\nmax_body = "1MiB"\n',
        '{"functions": ["f*"], "max_body": 1048576}',
    ],
)
def test_a_file_is_a_whole_policy(
    colony: Colony, server: ColonyServer, tmp_path: Path, text: str
) -> None:
    file = tmp_path / "policy"
    file.write_text(text)
    assert colony("trust", "lab", "--policy", str(file), "--rate", "5").exit_code == 0
    found = asked(server)
    assert found["policy"] == {"functions": ["f*"], "max_body": 1048576}
    assert found["change"] == {"rate": 5}


def test_a_bad_file_or_size_is_wrong_usage(colony: Colony, tmp_path: Path) -> None:
    file = tmp_path / "policy"
    file.write_text("functions = [")
    for code, args in (
        (2, ["--policy", str(file)]),
        (3, ["--policy", "nowhere"]),
        (2, ["--max-body", "much"]),
    ):
        result = colony("trust", "lab", *args)
        assert result.exit_code == code
        assert result.stdout == ""


def test_policy_shows_and_changes(colony: Colony, server: ColonyServer) -> None:
    shown = colony("policy", "lab").stdout
    assert "its own" in shown
    assert "f*" in shown
    assert "60 a minute" in shown
    assert "no limit" in shown
    assert server.seen[-1][0] == "getpeermsg"
    assert json.loads(colony("policy", "lab", "--json").stdout) == POLICY
    colony("policy", "lab", "--rate", "1")
    assert asked(server) == {
        "kind": "setpeerpolicymsg", "policy": None, "change": {"rate": 1}, "default": False,
    }  # fmt: skip
    colony("policy", "lab", "--default")
    assert asked(server)["default"] is True
    assert colony("policy", "lab", "--default", "--rate", "1").exit_code == 2


def test_to_forward_takes_leave_at_the_far_end_too(colony: Colony, server: ColonyServer) -> None:
    shown = {"name": "ant", "ownpolicy": True, "policy": {"forward": True, "max_hops": 2}}
    server.answers["setpeerpolicymsg"] = lambda payload, caller: shown
    result = colony("policy", "ant", "--forward")
    assert "there, `colony peer policy dev --max-hops 2`" in result.stderr
    assert "max-hops" not in colony("policy", "ant", "--no-forward").stderr


def test_a_changed_name_is_shown_and_asks(colony: Colony, server: ColonyServer) -> None:
    two = "'lab' is the name of 2 colonies trusted here (abab, cdcd): give the id"
    renamed = PEER | {"said": "mint", "ambiguous": two}
    server.answers["getpeersmsg"] = lambda payload, caller: [renamed]
    server.answers["getpeermsg"] = lambda payload, caller: renamed
    assert "lab (now calls itself mint)" in colony("ls").stdout
    shown = colony("show", "lab").stdout
    assert "mint; work still goes to it as lab." in shown
    assert f"colony peer trust {'ab' * 6}" in shown
    assert two in shown


def test_show_tells_what_a_colony_left(colony: Colony, server: ColonyServer) -> None:
    """Of what it may leave, with the names of the fields that say how much."""
    limits = {"max_entries": 500, "max_kept": 0, "messages": 100}
    peer = PEER | {
        "policy": POLICY | limits,
        "left": {"entries": 12, "bytes": 3456, "news": 0},
    }
    server.answers["getpeermsg"] = lambda payload, caller: peer
    shown = colony("show", "lab").stdout
    assert "12 entries of 500 (max_entries), 3456 bytes" in shown
    assert "news" not in shown
    server.answers["setpeerpolicymsg"] = lambda payload, caller: peer
    result = colony("policy", "lab", "--max-kept", "64MiB", "--max-entries", "500",
                    "--messages", "100")  # fmt: skip
    assert asked(server)["change"] == limits | {"max_kept": 64 * 2**20}
    assert "12 entries of 500" in result.stdout


def test_invite_prints_the_token_and_nothing_else_on_stdout(
    colony: Colony, server: ColonyServer, home: Path
) -> None:
    token = "AF4HQ6DY" * 20
    reply = {
        "invitation": "3fa2" * 4, "token": token, "expires": int(time.time()) + 600,
        "addresses": ["10.0.0.1:50081"], "policy": POLICY,
    }  # fmt: skip
    server.answers["invitepeermsg"] = lambda payload, caller: reply
    result = colony("invite", "--expires", "10m", "--address", "h:1", "--function", "f*", "--qr")
    assert result.stdout == token + "\n"
    assert "█" in result.stderr
    assert "colony peer join" in result.stderr
    _, payload, caller = server.seen[-1]
    assert (payload["expires"], payload["addresses"]) == (600, ["h:1"])
    assert payload["change"] == {"functions": ["f*"]}
    assert caller == read_key(home / "keys/colony.key").id
    assert "█" not in colony("invite", "--no-qr").stderr
    assert "█" not in colony("invite").stderr, "no picture when nobody looks"
    assert json.loads(colony("invite", "--json").stdout)["token"] == token
    assert colony("invite", "--expires", "soon").exit_code == 2


def test_a_name_of_our_own_is_given_and_taken_back(colony: Colony, server: ColonyServer) -> None:
    server.answers["namepeermsg"] = lambda payload, caller: {
        "id": PEER["id"], "petname": payload["name"],
    }  # fmt: skip
    assert colony("name", "lab", "lab-paris").stdout == f"lab-paris is {PEER['id']}\n"
    assert server.seen[-1][1]["peer"] == "lab"
    assert "no name of yours any more" in colony("name", "lab-paris", "--remove").stdout
    assert server.seen[-1][1]["name"] == ""
    for args in (["name", "lab"], ["name", "lab", "x", "--remove"]):
        assert colony(*args).exit_code == 2
    assert colony("name", "--remove").exit_code == 2
    server.answers["getpetnamesmsg"] = lambda payload, caller: [
        {"id": PEER["id"], "petname": "lab-paris"}
    ]
    assert colony("name").stdout.splitlines()[1].split() == ["lab-paris", PEER["id"]]
    assert json.loads(colony("name", "--json").stdout)[0]["petname"] == "lab-paris"


def test_a_list_has_our_name_its_own_and_those_of_peers(
    colony: Colony, server: ColonyServer
) -> None:
    named = PEER | {"petname": "lab-paris", "said": "labo"}
    heard = PEER | {"state": "pending", "introducedby": ["factory-1", "bee"]}
    heard["calledby"] = [{"by": "factory-1", "name": "lyon"}]
    server.answers["getpeersmsg"] = lambda payload, caller: [named, heard]
    shown = colony("ls").stdout
    assert "lab-paris (calls itself labo, trusted as lab)" in shown
    assert "pending, introduced by factory-1 as lyon, bee" in shown
    server.answers["getpeermsg"] = lambda payload, caller: heard
    assert "lyon, so called by factory-1" in colony("show", "lab").stdout


def test_the_drawing_is_the_code(colony: Colony) -> None:
    import segno

    text = "AF4HQ6DY" * 20
    rows = [list(row) for row in segno.make(text, error="l", micro=False).matrix_iter(border=4)]
    lines = drawn(text).splitlines()
    assert len(lines) <= 30
    for at, line in enumerate(lines):
        upper = [block in " ▄" for block in line]
        lower = [block in " ▀" for block in line]
        assert upper == [bool(module) for module in rows[2 * at]]
        if 2 * at + 1 < len(rows):
            assert lower == [bool(module) for module in rows[2 * at + 1]]


def test_invitations_are_listed_and_revoked(colony: Colony, server: ColonyServer) -> None:
    now = int(time.time())
    rows = [
        {"invitation": "3fa2" * 4, "created": now, "expires": now + 600, "policy": POLICY},
        {"invitation": "4fa2" * 4, "created": now, "expires": now - 5, "policy": POLICY},
    ]
    server.answers["getinvitationsmsg"] = lambda payload, caller: rows
    server.answers["revokeinvitationmsg"] = lambda payload, caller: {"invitation": "3fa2" * 4}
    listed = colony("invite", "ls").stdout
    assert "10 min" in listed
    assert "expired" in listed
    assert colony("invite", "revoke", "3fa2").stdout == f"revoked {'3fa2' * 4}\n"
    server.answers["getinvitationsmsg"] = lambda payload, caller: []
    empty = colony("invite", "ls")
    assert (empty.stdout, empty.exit_code) == ("", 0)


def test_join_sends_the_token(colony: Colony, server: ColonyServer) -> None:
    result = colony("join", "AF4H", "--max-running", "2")
    assert "trust each other" in result.stdout
    kind, payload, _ = server.seen[-1]
    assert (kind, payload["token"], payload["change"]) == (
        "joinpeermsg",
        "AF4H",
        {"max_running": 2},
    )
    colony("join", "-", stdin="AF4H\n")
    assert server.seen[-1][1]["token"].strip() == "AF4H"
