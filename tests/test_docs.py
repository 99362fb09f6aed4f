"""What the documents name exists: tests, and files that they link to."""

from __future__ import annotations

import re

from tests.support import REPOSITORY

DOCS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]


def test_every_test_that_the_threat_model_names_exists() -> None:
    text = (REPOSITORY / "docs/threat-model.md").read_text("utf-8")
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", text)
    assert len(named) > 20
    for file, test in named:
        source = (REPOSITORY / "tests" / file).read_text("utf-8")
        assert re.search(rf"def {test}\(", source), f"{file}::{test}"


def test_relative_links_lead_somewhere() -> None:
    for page in DOCS:
        if "node_modules" in page.parts:
            continue
        text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.S)
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.name}: {link}"
