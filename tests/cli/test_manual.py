"""The man pages: one for each command, and no roff reader complains about one."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cli.manual import pages
from cli.ops.topics import TOPICS
from tests.cli.support import TREE
from tests.support.daemons import REPOSITORY

READERS = [
    ["mandoc", "-T", "lint", "-W", "warning"],
    ["groff", "-man", "-Tutf8", "-ww", "-z"],
]
_MACROS = {"TH", "SH", "PP", "TP", "RS", "RE", "nf", "fi"}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages, as `scripts/man` writes them."""
    place = tmp_path_factory.mktemp("pages")
    told = subprocess.run(
        [REPOSITORY / "scripts/man", place / "man1"],
        env={"PATH": "/usr/bin:/bin", "SOURCE_DATE_EPOCH": "1750000000"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout == f"{len(list((place / 'man1').iterdir()))} pages in {place / 'man1'}\n"
    return place / "man1"


def test_there_is_a_page_for_each_command(written: Path) -> None:
    shown = [name for name, command in TREE.items() if not command.hidden]
    names = {f"colony-{name.replace(' ', '-')}.1" for name in shown}
    assert {path.name for path in written.iterdir()} == names | {"colony.1", "colonyd.1"}
    assert "2025-06-15" in (written / "colony.1").read_text()
    run = (written / "colony-run.1").read_text()
    for part in (".SH NAME", ".SH OPTIONS", ".SH EXAMPLES", ".SH EXIT STATUS", "\\-\\-kwargs"):
        assert part in run
    top = (written / "colony.1").read_text()
    assert all(f".SH {title.partition(':')[0].upper()}"[:8] in top for title, _ in TOPICS.values())


def test_no_text_is_a_command_of_roff() -> None:
    for name, text in pages("2026-01-01"):
        for line in text.splitlines():
            macro = re.match(r"[.'](\w*)", line)
            assert macro is None or macro[1] in _MACROS, (name, line)
        assert "\x08" not in text
        assert text.isascii(), name


@pytest.mark.parametrize("reader", READERS, ids=lambda each: each[0])
def test_a_reader_of_man_pages_finds_nothing_wrong(written: Path, reader: list[str]) -> None:
    if shutil.which(reader[0]) is None:
        pytest.skip(f"{reader[0]} is not installed")
    done = subprocess.run([*reader, *sorted(written.iterdir())], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
