"""The documentation site: it builds without a broken link, and fetches nothing from elsewhere."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from node.host.config import Config
from tests.support.daemons import REPOSITORY

SETTINGS = REPOSITORY / "docs" / "reference" / "configuration.md"


def build(tree: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [str(tree / "scripts" / "docs"), "--site", str(site)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_the_site_is_whole_and_fetches_nothing(tmp_path: Path) -> None:
    done = build(REPOSITORY, tmp_path / "site")
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {
        str(page.relative_to(REPOSITORY / "docs").with_suffix(".html"))
        for page in (REPOSITORY / "docs").rglob("*.md")
        if "examples" not in page.parts
    }
    built = {str(page.relative_to(tmp_path / "site")) for page in tmp_path.rglob("*.html")}
    assert pages <= built
    for page in tmp_path.rglob("*.html"):
        text = page.read_text("utf-8")
        fetched = re.findall(r"<(?:script|img|source|iframe)\b[^>]*\bsrc=\"?([^\s\">]+)", text)
        for tag in re.findall(r"<link\b[^>]*>", text):
            if not re.search(r'rel="?(canonical|next|prev)', tag):
                fetched += re.findall(r"href=\"?([^\s\">]+)", tag)
        assert [each for each in fetched if "//" in each] == [], page.name
    for sheet in tmp_path.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//|@import", sheet.read_text("utf-8")), sheet


@pytest.mark.slow
@pytest.mark.parametrize(
    "line", ["[gone](nowhere.md)", "[gone](#no-such-heading)", "![gone](images/none.svg)"]
)
def test_a_broken_link_ends_the_build(tmp_path: Path, line: str) -> None:
    for name in ("scripts", "docs"):
        kept = shutil.ignore_patterns("node_modules")
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=kept)
    (tmp_path / ".venv").symlink_to(REPOSITORY / ".venv")
    page = tmp_path / "docs" / "index.md"
    page.write_text(f"{page.read_text('utf-8')}\n{line}\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    assert "index.md" in done.stdout + done.stderr


def settings(kind: type, place: str = "") -> list[str]:
    """Return what each setting is called on the page: its path, or its name within a table."""
    found = []
    for field in msgspec.structs.fields(kind):
        inner = [
            each
            for each in (field.type, *getattr(field.type, "__args__", ()))
            if isinstance(each, type) and issubclass(each, msgspec.Struct)
        ]
        path = f"{place}.{field.encode_name}".removeprefix(".")
        if not inner:
            in_table = place in ("peers", "routes", "federation.policy")
            found.append(field.encode_name if in_table else path)
        for each in inner:
            found += settings(each, path)
    return found


def test_every_setting_is_documented() -> None:
    named = settings(Config)
    assert len(named) > 60
    table = set(re.findall(r"`([\w.]+)`", SETTINGS.read_text("utf-8")))
    # The home is given by --home and $COLONYD_HOME.
    assert set(named) - table - {"node.home"} == set()
