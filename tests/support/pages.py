"""Pages of the documentation, run: their `console` blocks against daemons in scratch homes.

A prompt is `$`, or names the machine: `lab-1$`. Each machine has a home directory, ports and a
shell of its own, on this host's loopback. 50080 and 50081 in a command or a file stand for its
ports. `<!-- daemons: lab-1 lab-2 -->` at the top names machines whose daemon runs already, and
`<!-- discovery -->` lets daemons find each other by mDNS. HTML comments before a block say what
can't be seen in it:

    <!-- not run: REASON -->      the block needs what a test can't have
    <!-- background -->           its last command goes on; the page continues after its first line
    <!-- until -->                repeated until it is as shown: other machines take a moment
    <!-- restart: MACHINE -->     what runs in the machine's background is stopped before
    <!-- exit: 3 -->              the exit code of its last command
    <!-- file: MACHINE/NAME -->   the block, of any language, is a file in the working directory
    <!-- config: MACHINE -->      the block is added to the machine's config.toml

`colony up` and `colony worker` are in the background without being marked. What a block shows below
a command has to be printed, line by line and in order; `...` stands for any lines. Ids, numbers and
blanks may differ, and a word that ends with … stands for any word. A word that differs is
remembered: where the page uses it later, what was really printed is used.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.daemons import REPOSITORY, free_port

_BLOCK = re.compile(
    r"(?P<notes>(?:^<!--[^>]*-->\n)*)^(?P<fence>```+)(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=fence)$",
    re.M | re.S,
)
_NOTE = re.compile(r"<!-- ([\w ]+?)(?:: (.*?))? -->")
_PROMPT = re.compile(r"^((?:[a-z][\w-]*)?)([$#]) (.*)$")
_LASTING = re.compile(r"^colony (up|worker)\b")
_VARIES = re.compile(r"(?P<id>[0-9a-f]{6,})|(?P<number>\d+(?:\.\d+)?)|(?P<rest>…)")
LONGEST = 90.0  # seconds that one command may take


@dataclass(frozen=True)
class Command:
    """A command at a prompt, and the lines that the page shows below it."""

    machine: str
    root: bool
    text: str
    shown: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """A fenced block, with the notes before it."""

    line: int
    language: str
    text: str
    notes: dict[str, str]

    def commands(self) -> Iterator[Command]:
        """Return the commands of a console block."""
        current: tuple[str, bool, str] | None = None
        shown: list[str] = []
        for line in self.text.replace("\\\n", "").splitlines():
            match = _PROMPT.match(line)
            if match is None:
                shown.append(line)
                continue
            if current is not None:
                yield Command(*current, tuple(shown))
            current, shown = (match[1], match[2] == "#", match[3]), []
        if current is not None:
            yield Command(*current, tuple(shown))


def blocks(page: Path) -> list[Block]:
    """Return all fenced blocks of a page."""
    text = page.read_text("utf-8")
    return [
        Block(
            text.count("\n", 0, match.start("fence")) + 1,
            match["language"],
            match["text"],
            dict(_NOTE.findall(match["notes"])),
        )
        for match in _BLOCK.finditer(text)
    ]


@dataclass
class Machine:
    """A machine of a page: a home directory, ports, a shell, and what runs in the background."""

    name: str
    place: Path
    discovery: bool = False
    ports: tuple[int, int] = field(default_factory=lambda: (free_port(), free_port()))
    lasting: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.work = self.place / "work"
        self.work.mkdir(parents=True)
        kept = ("LANG", "LC_ALL", "TMPDIR", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")
        self.environ = {name: os.environ[name] for name in kept if name in os.environ} | {
            "HOME": str(self.place),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
            "COLONYD_RPC__HOST": "127.0.0.1",
            "COLONYD_RPC__PORT": str(self.ports[0]),
            "COLONYD_FEDERATION__HOST": "127.0.0.1",
            "COLONYD_FEDERATION__PORT": str(self.ports[1]),
            "COLONYD_FEDERATION__INTERFACES": "127.0.0.1",
            # Daemons of other tests announce themselves on the same loopback.
            "COLONYD_FEDERATION__DISCOVERY": "true" if self.discovery else "false",
            "COLUMNS": "100",
        }
        self.shell = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=self.work,
            env=self.environ,
            start_new_session=True,
        )

    @property
    def home(self) -> Path:
        """Return the home directory of its daemon."""
        return self.place / ".local" / "share" / "colonyd"

    def own(self, text: str) -> str:
        """Return a command or file with the machine's ports."""
        for usual, port in zip(("50080", "50081"), self.ports, strict=True):
            text = re.sub(rf"\b{usual}\b", str(port), text)
        return text

    def run(self, command: str) -> tuple[int, str]:
        """Run a command in the shell; return its exit code and what it printed."""
        assert self.shell.stdin is not None
        assert self.shell.stdout is not None
        out = self.place / "out"
        self.shell.stdin.write(f"{{ {command}\n}} >{out} 2>&1 </dev/null; echo $?\n".encode())
        self.shell.stdin.flush()
        if not select.select([self.shell.stdout], [], [], LONGEST)[0]:
            raise AssertionError(f"took over {LONGEST:.0f} s: {command}\n{out.read_text('utf-8')}")
        return int(self.shell.stdout.readline()), out.read_text("utf-8")

    def begin(self, command: str) -> str:
        """Start a command that goes on; return its first line, once it is printed."""
        self.run(f"env -0 >{self.place}/exported")  # what the page has exported so far
        exported = (self.place / "exported").read_text("utf-8").strip("\0").split("\0")
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self.work,
            env=dict(each.split("=", 1) for each in exported),
            start_new_session=True,
        )
        self.lasting.append(process)
        assert process.stdout is not None
        heard, text = process.stdout, b""
        while not re.search(rb"event=ready " if command.startswith("colony up") else rb"\n", text):
            if not select.select([heard], [], [], LONGEST)[0]:
                raise AssertionError(
                    f"said nothing for {LONGEST:.0f} s: {command}\n{text.decode()}"
                )
            piece = os.read(heard.fileno(), 65_536)
            assert piece, f"ended: {command}\n{text.decode()}"
            text += piece
        # Nobody reads on: what it prints must not fill the pipe.
        drain = ["sh", "-c", "cat >/dev/null"]
        self.lasting.insert(0, subprocess.Popen(drain, stdin=heard, start_new_session=True))
        heard.close()
        return text.decode()

    def end_lasting(self) -> None:
        """End what runs in the background, the latest first."""
        for process in reversed(self.lasting):
            if process.poll() is None:
                process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
        self.lasting.clear()

    def stop(self) -> None:
        """End the shell and all that runs."""
        self.end_lasting()
        self.shell.kill()
        self.shell.wait(10)
        for pipe in (self.shell.stdin, self.shell.stdout):
            if pipe is not None:
                pipe.close()


@dataclass
class Reader:
    """A reader who follows a page from its first block to its last."""

    page: Path
    place: Path
    usual: str = "lab-1"  # the machine of a prompt without a name
    machines: dict[str, Machine] = field(default_factory=dict)
    # Words of the page, and what was really printed in their place.
    meant: dict[str, str] = field(default_factory=dict)

    def machine(self, name: str) -> Machine:
        """Return the machine of a name; it is made when it is first used."""
        if name not in self.machines:
            discovery = "<!-- discovery -->" in self.page.read_text("utf-8")
            self.machines[name] = Machine(name, self.place / name, discovery)
        return self.machines[name]

    def follow(self) -> int:
        """Do what the page says; return how many commands were run. Raises AssertionError."""
        done = 0
        try:
            for name in self._daemons():
                self.machine(name).begin(f"colony up --name {name}")
            for block in blocks(self.page):
                done += self._do(block)
        finally:
            for machine in self.machines.values():
                machine.stop()
            shutil.rmtree(self.place, ignore_errors=True)
        return done

    def _daemons(self) -> list[str]:
        """Return the machines whose daemon runs before the page begins, as it says at its top."""
        match = re.search(r"^<!-- daemons: (.*) -->$", self.page.read_text("utf-8"), re.M)
        return match[1].split() if match else []

    def _do(self, block: Block) -> int:
        if "file" in block.notes:
            name, _, file = block.notes["file"].rpartition("/")
            machine = self.machine(name or self.usual)
            (machine.work / file).write_text(self._told(machine, block.text), "utf-8")
        elif "config" in block.notes:
            machine = self.machine(block.notes["config"])
            machine.home.mkdir(parents=True, exist_ok=True)
            path = machine.home / "config.toml"
            before = path.read_text("utf-8") if path.exists() else ""
            path.write_text(before + self._told(machine, block.text), "utf-8")
        if block.language != "console" or "not run" in block.notes:
            return 0
        if "restart" in block.notes:
            self.machine(block.notes["restart"]).end_lasting()
        commands = list(block.commands())
        for number, command in enumerate(commands):
            last = number == len(commands) - 1
            where = f"{self.page.name}, block of line {block.line}: {command.text}"
            assert not command.root, f"{where}: a command of root; mark the block as not run"
            machine = self.machine(command.machine or self.usual)
            text = self._told(machine, command.text)
            if _LASTING.match(text) or (last and "background" in block.notes):
                self._compare(where, command.shown, machine.begin(text))
                continue
            wanted = int(block.notes.get("exit", 0)) if last else 0
            until = time.monotonic() + (LONGEST if "until" in block.notes else 0)
            while True:
                code, printed = machine.run(text)
                try:
                    assert code == wanted, f"{where}: exit code {code}\n{printed}"
                    self._compare(where, command.shown, printed)
                    break
                except AssertionError:
                    if time.monotonic() > until:
                        raise
        return len(commands)

    def _told(self, machine: Machine, text: str) -> str:
        """Return a command or file with what was really printed, and the machine's ports."""

        def real(match: re.Match[str]) -> str:
            word = match[0]
            for shown, found in self.meant.items():
                if shown == word or (len(word) >= 6 and shown.startswith(word)):
                    return found if shown == word else found[: len(word)]
            return word

        return machine.own(re.sub(r"(?:COLONY:)?\w+…?", real, text))

    def _compare(self, where: str, shown: tuple[str, ...], printed: str) -> None:
        """Find each shown line in what was printed, in order. Raises AssertionError."""
        left = printed.splitlines()
        for line in shown:
            if not line.strip() or line.strip() == "...":
                continue
            while left and not _like(line, left[0]):
                left.pop(0)
            assert left, f"{where}: printed no line like {line!r}\n{printed}"
            real = left.pop(0)
            self.meant |= {
                word.strip("()[],"): found.strip("()[],")
                for word, found in zip(line.split(), real.split(), strict=False)
                if word != found and re.search(r"[0-9a-f]{6,}|…$", word)
            }


def _like(shown: str, printed: str) -> bool:
    """Return whether a printed line is like a shown one, apart from ids, numbers and blanks."""
    shown, printed = (_AGO.sub("never", line) for line in (shown, printed))
    words = (
        r"\S+"
        if word.endswith("…")
        else "".join(_VARYING.get(kind, re.escape(piece)) for piece, kind in _pieces(word))
        for word in shown.split()
    )
    return re.fullmatch(r"\s*" + r"\s+".join(words) + r"\s*", printed) is not None


_AGO = re.compile(r"\b\d+ (ms|s|min|h|d) ago\b")
_VARYING = {"id": r"[0-9a-f]+", "number": r"\d+(?:\.\d+)?", "rest": r"\S*"}


def _pieces(word: str) -> Iterator[tuple[str, str]]:
    """Return the pieces of a word, each with what may vary in it; "" if nothing may."""
    at = 0
    for match in _VARIES.finditer(word):
        yield word[at : match.start()], ""
        yield match[0], str(match.lastgroup)
        at = match.end()
    yield word[at:], ""
