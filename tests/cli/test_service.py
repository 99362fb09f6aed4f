"""`colony service`: what it writes, as systemd reads it, and what it refuses.

It runs in `tests/packaging`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from cli.core.errors import Failure
from cli.core.session import Session
from cli.daemon import service
from cli.main import main
from tests.support.daemons import REPOSITORY

UNITS = REPOSITORY / "systemd"
HOME = {
    "COLONIES_COLONY_NAME": "dev",
    "COLONIES_SERVER_HOST": "127.0.0.1",
    "COLONIES_SERVER_PORT": "50080",
}
printable = st.text(st.characters(exclude_categories=("C", "Z")) | st.just(" "), min_size=1)


def words_of(value: str) -> list[str]:
    """Split a value as systemd does: blanks, quotes, and a backslash before any character."""
    words: list[str] = []
    word, quote, inside = "", "", False
    characters = iter(value)
    for character in characters:
        if character == "\\":
            word, inside = word + next(characters), True
        elif quote:
            quote, word = ("", word) if character == quote else (quote, word + character)
        elif character in "'\"":
            quote, inside = character, True
        elif character == " ":
            words += [word] if inside else []
            word, inside = "", False
        else:
            word, inside = word + character, True
    return [*words, word] if inside else words


def variable(text: str, name: str) -> str:
    """The value of a variable in an environment file of systemd, in double quotes."""
    [line] = [line for line in text.splitlines() if line.startswith(f"{name}=")]
    value = line.removeprefix(f'{name}="').removesuffix('"')
    characters = iter(value)
    return "".join(next(characters) if each == "\\" else each for each in characters)


@given(st.lists(printable, min_size=1))
def test_the_options_of_a_worker_come_out_as_they_went_in(options: list[str]) -> None:
    text = service.worker_settings(Session(environ=HOME), options)
    assert words_of(variable(text, "WORKER_OPTIONS")) == options
    assert variable(text, "COLONIES_COLONY_NAME") == "dev"
    assert variable(text, "COLONIES_SERVER_PORT") == "50080"


def test_what_no_file_of_variables_can_hold_is_refused() -> None:
    with pytest.raises(Failure, match="line break"):
        service.worker_settings(Session(environ=HOME), ["--func", "f=a\nb"])


def test_a_unit_for_programs_elsewhere() -> None:
    for name in ("colonyd.service", "colonyd@.service", "colonyd-worker@.service"):
        text = service.system_unit((UNITS / name).read_text(), Path("/opt/colonyd/bin"))
        starts = [line for line in text.splitlines() if line.startswith("ExecStart")]
        assert len(starts) == 1
        assert starts[0].startswith("ExecStart=/opt/colonyd/bin/colony")
        assert "/usr/bin/colony" not in text


def test_one_of_several_colonies_differs_in_its_places_only() -> None:
    """What is decided for one service is decided for both."""
    one = (UNITS / "colonyd.service").read_text().splitlines()
    several = (UNITS / "colonyd@.service").read_text().splitlines()
    changed = set(one) - set(several)
    assert {line.partition("=")[0] for line in changed if not line.startswith("#")} == {
        "Description",
        "ExecStart",
        "StateDirectory",
        "RuntimeDirectory",
        "ConfigurationDirectory",
    }


def test_a_unit_of_a_user_is_one_that_systemd_takes(tmp_path: Path) -> None:
    programs = tmp_path / "a place/100%"
    programs.mkdir(parents=True)
    for name in ("colony", "colonyd"):
        shutil.copy("/bin/true", programs / name)
    text = (UNITS / "colonyd.service").read_text()
    unit = service.user_unit(text, programs, tmp_path / "my $HOME")
    assert "Type=notify" in unit
    for line in unit.splitlines():
        assert not line.startswith(("User=", "Protect", "Private", "Restrict", "SystemCall"))
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd here")
    path = tmp_path / "colonyd.service"
    path.write_text(unit)
    done = subprocess.run(
        [analyze, "verify", "--man=no", str(path)], capture_output=True, text=True, check=False
    )
    assert "colonyd.service" not in done.stderr, done.stderr


@pytest.mark.parametrize("place", ["/home/anna/.venv/bin", "/root/colonyd/bin"])
def test_programs_in_a_home_make_no_service_of_the_host(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_has", lambda directory: True)
    monkeypatch.setattr(sys, "executable", f"{place}/python")
    with pytest.raises(Failure, match="must not look into"):
        service._programs(closed=service._CLOSED)


def test_with_the_package_there_is_nothing_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packaged = tmp_path / "colonyd.service"
    packaged.touch()
    monkeypatch.setattr(service, "PACKAGED", packaged)
    for command, step in (("install", "colony service status"), ("uninstall", "apt remove")):
        done = CliRunner().invoke(main, ["service", command])
        assert done.exit_code == 2
        assert step in done.stderr


def test_a_worker_is_roots_and_needs_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    done = CliRunner().invoke(main, ["service", "worker", "add", "w", "--func", "f=true"])
    assert (done.exit_code, "call it with sudo" in done.stderr) == (2, True)
    for name in ("a/b", "", "-x " * 40):
        done = CliRunner().invoke(
            main, ["service", "worker", "add", "--func", "f=true", "--", name]
        )
        assert done.exit_code == 2, name
