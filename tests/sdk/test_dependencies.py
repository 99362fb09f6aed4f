"""Dependencies: what the code imports is declared, and what is declared has its reason."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import packages_distributions

import pytest

from tests.support.daemons import REPOSITORY

PRODUCT = ("colonyd", "node", "federation", "cli")
OURS = {*PRODUCT, "tests", "bench"}
# One a line, as ruff keeps them (E401); parsing 700 files would take seconds.
IMPORT = re.compile(
    r"^ *(?:from (\w+)[\w.]* import |import (\w+)[\w.]*(?: as \w+)?(?: *#|$))", re.M
)
# Installed by the script that needs it: `scripts/fuzz --atheris`.
ELSEWHERE = {"atheris"}


def bare(requirement: str) -> str:
    """Return the name of a requirement as PyPI compares it: lower case, `-` for `_` and `.`."""
    match = re.match(r"[\w.-]+", requirement)
    assert match, requirement
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def declared() -> Mapping[str, set[str]]:
    """Return the names that pyproject.toml declares: "" for run time, and each extra."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    return {group: {bare(each) for each in required} for group, required in groups.items()}


@cache
def distributions() -> Mapping[str, set[str]]:
    """Return which distributions each importable top-level package comes with."""
    return {top: {bare(each) for each in names} for top, names in packages_distributions().items()}


@cache
def imports(folder: str) -> list[tuple[str, str]]:
    """Return (file, imported top-level package) for all imports neither ours nor Python's.

    Imports inside functions, and those for the type checker alone, count too.
    """
    known = sys.stdlib_module_names | OURS | ELSEWHERE
    return [
        (str(path.relative_to(REPOSITORY)), top)
        for path in sorted((REPOSITORY / folder).rglob("*.py"))
        for tops in IMPORT.findall(path.read_text("utf-8"))
        if (top := "".join(tops)) not in known
    ]


def undeclared(folder: str, allowed: set[str]) -> list[str]:
    """Return "file imports package" for all imports that come with none of the `allowed`."""
    return [
        f"{file} imports {top}"
        for file, top in imports(folder)
        if not distributions().get(top, set()) & allowed
    ]


@pytest.mark.parametrize("folder", PRODUCT)
def test_the_product_imports_what_is_declared(folder: str) -> None:
    groups = declared()
    # Whoever installs colonyd without the extras `s3` and `global` can't use S3, nor look colonies
    # up by id, and can do all the rest.
    assert undeclared(folder, groups[""] | groups["s3"] | groups["global"]) == []
    without = undeclared(folder, groups[""])
    assert {line.split()[0] for line in without} <= {"cli/files/s3.py", "federation/dht/node.py"}


@pytest.mark.parametrize("folder", ["tests", "bench"])
def test_tests_import_what_is_declared(folder: str) -> None:
    assert undeclared(folder, set().union(*declared().values())) == []


def test_each_run_time_dependency_is_imported_by_the_product() -> None:
    used = {
        name
        for folder in PRODUCT
        for _, top in imports(folder)
        for name in distributions().get(top, set())
    }
    assert declared()[""] - used == set()


def test_each_dependency_has_its_reason() -> None:
    shown = (REPOSITORY / "docs" / "dependencies.md").read_text("utf-8")
    run_time, _, rest = shown.partition("## Beside Python")
    rows = re.findall(r"^\| ([\w-]+) \| [^|]+ \| [^|]+ \|$", run_time, re.M)
    groups = declared()
    assert set(rows[1:]) == groups[""]
    for name in groups["s3"] | groups["global"]:
        assert name in run_time
    development = rest.partition("## Development only")[2].partition("\n## ")[0]
    missing = {name for name in groups["dev"] if not re.search(rf"\b{name}\b", development)}
    assert missing == set()


@pytest.mark.parametrize("program", ["cli.daemon.colonyd", "colonyd.rpc"])
def test_programs_load_only_what_they_call(program: str) -> None:
    """What etcd3 and httpx would bring for clients and commands of their own stays on disk."""
    code = f"import cli, {program}, sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    shown = subprocess.check_output([sys.executable, "-c", code], cwd=REPOSITORY, text=True)
    assert {"httpx", "msgspec"} <= set(shown.split())
    assert {"etcd3", "grpc", "rich", "pygments"} & set(shown.split()) == set()
