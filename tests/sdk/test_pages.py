"""Every command in the documentation is run: against real daemons, in scratch homes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.daemons import REPOSITORY
from tests.support.pages import Reader, blocks

DOCS = REPOSITORY / "docs"
PAGES = [
    page
    for page in [REPOSITORY / "README.md", *sorted(DOCS.rglob("*.md"))]
    if "node_modules" not in page.parts
]


def runnable(page: Path) -> bool:
    return any(
        block.language == "console" and "not run" not in block.notes for block in blocks(page)
    )


def test_each_block_of_commands_is_run_or_says_why_not() -> None:
    """Only `console` blocks have commands, and a reason has some words."""
    for page in PAGES:
        text = page.read_text("utf-8")
        assert not re.search(r"^```(sh|bash|shell)\b", text, re.M), f"{page}: use console"
        for block in blocks(page):
            if block.language == "console":
                assert list(block.commands()), f"{page}:{block.line}: no prompt"
            if "not run" in block.notes:
                assert len(block.notes["not run"].split()) > 3, f"{page}:{block.line}: why?"


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, id=str(page.relative_to(REPOSITORY))) for page in PAGES if runnable(page)],
)
def test_a_reader_gets_what_the_page_shows(page: Path, tmp_path: Path) -> None:
    assert Reader(page, tmp_path / "m").follow() > 0
