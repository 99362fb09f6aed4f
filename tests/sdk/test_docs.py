"""What the documents name exists: tests, refusal codes, messages, and files that they link to."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import get_args

import msgspec

from federation.wire import envelope, messages
from federation.wire.envelope import Kind
from tests.support import reference
from tests.support.daemons import REPOSITORY

DOCS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
FEDERATION = REPOSITORY / "docs" / "federation"
# In a sender's own words only: never on the wire, so in no table of codes.
LOCAL = {"join_unproven", "clocks_apart"}


def read(name: str) -> str:
    return (REPOSITORY / "docs" / name).read_text("utf-8")


# -- the threat model ---------------------------------------------------------------------------


def names_in(file: str) -> set[str]:
    """Names of the tests in a file, as "test" or "Class::test"."""
    tree = ast.parse((REPOSITORY / "tests" / file).read_text("utf-8"))
    found: set[str] = set()
    for node in tree.body:
        inside = node.body if isinstance(node, ast.ClassDef) else [node]
        where = f"{node.name}::" if isinstance(node, ast.ClassDef) else ""
        for each in inside:
            if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef):
                found.add(f"{where}{each.name}")
    return found


def test_every_test_that_the_threat_model_names_exists() -> None:
    named = re.findall(r"`((?:\w+/)*test_\w+\.py)::((?:\w+::)?test_\w+)`", read("threat-model.md"))
    assert len(named) > 20
    for file, test in named:
        assert test in names_in(file), f"{file}::{test}"


def test_every_line_of_the_threat_model_has_a_test() -> None:
    rows = re.findall(r"^\| (?:can|can't) \|.*$", read("threat-model.md"), re.M)
    assert len(rows) > 20
    for row in rows:
        assert re.search(r"`(?:\w+/)*test_\w+\.py::", row), row


def test_every_threat_that_is_tested_is_a_line() -> None:
    shown = read("threat-model.md")
    for test in names_in("federation/service/test_threats.py"):
        if test.startswith("test_"):
            assert f"`federation/service/test_threats.py::{test}`" in shown, test


# -- refusals -------------------------------------------------------------------------------------


def codes_in_the_code() -> Iterator[str]:
    """The code of every refusal that is made anywhere in federation."""
    place = {"Refusal": 1, "Rejected": 0, "RemoteRefusal": 0}
    for path in (REPOSITORY / "federation").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            if name not in place or len(node.args) <= place[name]:
                continue
            for inner in ast.walk(node.args[place[name]]):
                # Of `"a" if status == 413 else "b"` both; what a variable holds is found below.
                if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
                    yield inner.value
    # The one place where codes are in a table that is looped over.
    policy = (REPOSITORY / "federation" / "peers" / "policy.py").read_text("utf-8")
    yield from re.findall(r'"(policy_\w+)"', policy)
    yield from get_args(envelope.Code)


def test_every_code_is_documented_and_every_documented_code_exists() -> None:
    table = set(re.findall(r"^\| `(\w+)` \| \d{3}", read("federation/refusals.md"), re.M))
    assert set(codes_in_the_code()) - LOCAL == table
    for code in LOCAL:
        assert f"`{code}`" in read("federation/refusals.md")


def test_the_order_of_checks_and_the_others_name_codes_that_exist() -> None:
    """A misspelt code anywhere in the specification is found."""
    known = set(codes_in_the_code())
    for page in (FEDERATION / "forwards.md", FEDERATION / "trust.md", FEDERATION / "relays.md"):
        for told in re.findall(r"[Rr]efused: ([^.]*)\.", page.read_text("utf-8")):
            named = set(re.findall(r"`(\w+)`", told))
            assert named
            assert named <= known, page.name


# -- messages -------------------------------------------------------------------------------------


def test_the_tables_of_messages_have_every_key() -> None:
    sections = re.split(r"^## ", read("federation/messages.md"), flags=re.M)[1:]
    tables = {
        section.split("\n", 1)[0]: re.findall(r"^\| `(\w+)` \|.*?\| (yes)? ?\|", section, re.M)
        for section in sections
    }
    structs = {
        name: getattr(messages, name)
        for name in messages.__all__
        if isinstance(getattr(messages, name), type)
        and issubclass(getattr(messages, name), msgspec.Struct)
    }
    assert tables.keys() == structs.keys()
    for name, struct in structs.items():
        fields = [
            (each.encode_name, "yes" if each.required else "")
            for each in msgspec.structs.fields(struct)
        ]
        assert tables[name] == fields, name


def test_every_kind_and_path_is_in_the_specification() -> None:
    text = read("federation.md")
    section = text.split("\n## Kinds\n")[1].split("\n## ")[0]
    assert set(re.findall(r"`(\w+)`", section)) == {kind.value for kind in Kind}
    pattern = re.compile(r'Endpoint\("(/v\d/\w+)"|_FORMER = \((.*)\)|path == "(/v\d/card)"')
    sources = (path.read_text("utf-8") for path in (REPOSITORY / "federation").rglob("*.py"))
    found = (match for source in sources for match in pattern.finditer(source))
    paths = {path for match in found for path in re.findall(r"/v\d/\w+", match[0])}
    assert paths == set(re.findall(r"^\| `(?:GET )?(/v\d/\w+)` \|", text, re.M))


# -- the reference --------------------------------------------------------------------------------


def test_the_reference_is_what_the_code_says() -> None:
    for name, make in reference.PAGES.items():
        shown = read(f"reference/{name}")
        assert shown == make(), f"docs/reference/{name} is stale: run scripts/reference"


# -- links ----------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """What headings are called in links, as common renderers make it."""
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_relative_links_lead_somewhere() -> None:
    for page in DOCS:
        if "node_modules" in page.parts:
            continue
        text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.S)
        for connection in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            if "://" not in connection:
                assert (page.parent / connection).exists(), f"{page.name}: {connection}"


def test_links_to_headings_lead_to_one() -> None:
    for page in (REPOSITORY / "docs" / "federation.md", *sorted(FEDERATION.glob("*.md"))):
        for connection, anchor in re.findall(
            r"\]\(([^)#\s]*)#([^)\s]+)\)", page.read_text("utf-8")
        ):
            there = page.parent / connection if connection else page
            assert anchor in anchors(there.read_text("utf-8")), (
                f"{page.name}: {connection}#{anchor}"
            )


# -- the map --------------------------------------------------------------------------------------


def test_the_map_has_every_package() -> None:
    """Each package of the product has a line, and no line is about another one."""
    shown = read("architecture.md").split("\n## The map\n")[1].split("```")[1]
    top, told = "", set[str]()
    for line in shown.strip().splitlines():
        name = line.split()[0].rstrip("/")
        if not line.startswith(" "):
            top = name
        told.add(name if name == top else f"{top}/{name}")
    there = {
        str(path.relative_to(REPOSITORY)).removesuffix(".py")
        for top in ("cli", "federation", "node", "colonyd")
        for path in [REPOSITORY / top, *(REPOSITORY / top).iterdir()]
        if (path.suffix == ".py" and path.stem != "__init__") or (path / "__init__.py").exists()
    }
    assert told == there


def test_what_the_map_leads_to_exists() -> None:
    section = read("architecture.md").split("\n## The map\n")[1].split("\n## ")[0]
    habits = (REPOSITORY / "CONTRIBUTING.md").read_text("utf-8")
    places = r"`((?:cli|colonyd|docs|federation|node|tests)/[\w/.]*)`"
    for path in re.findall(places, section + habits):
        assert (REPOSITORY / path).exists(), path
