"""Draws the states of a forward into docs/federation/forwards.md, from the table of transitions.

`python -m tests.support.forward_states` writes it; with `--check` it only compares.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from federation.forward.machine import TRANSITIONS, ForwardState, ProcessAction

PAGE = Path(__file__).parents[2] / "docs" / "federation" / "forwards.md"
_DRAWING = re.compile(r"```mermaid\nstateDiagram-v2\n.*?```\n", re.S)
_FATES = {
    ProcessAction.NOTHING: "",
    ProcessAction.START: "the process starts",
    ProcessAction.FAIL: "the process fails",
    ProcessAction.CANCEL: "the process is cancelled",
}


def diagram() -> str:
    """The states as a Mermaid diagram: a line for each row of the table, in its order."""
    lines = ["stateDiagram-v2", f"    [*] --> {ForwardState.QUEUED}"]
    for (state, event), step in TRANSITIONS.items():
        over = not step.stays and step.to is ForwardState.DOUBT  # only the record says so then
        fate = _FATES[step.act] + (" in doubt" if over else "")
        # A colon would end the name of the arrow.
        label = event.value.replace(":", " -") + (f" / {fate}" if fate else "")
        lines.append(f"    {state} --> {'[*]' if over else step.to} : {label}")
    ends = {step.to for step in TRANSITIONS.values() if not step.stays} - {ForwardState.DOUBT}
    lines += [f"    {state} --> [*]" for state in ForwardState if state in ends]
    return "\n".join(["```mermaid", *lines, "```", ""])


def drawn(page: str) -> str:
    """The page with the diagram as the table has it."""
    return _DRAWING.sub(lambda _: diagram(), page)


def main() -> int:
    """Write the page, or with `--check` tell whether it differs; returns the exit code."""
    page = PAGE.read_text("utf-8")
    changed = drawn(page) != page
    if changed and "--check" not in sys.argv[1:]:
        PAGE.write_text(drawn(page), "utf-8")
    print(f"changed: {PAGE.name if changed else 'nothing'}")
    return 1 if changed and "--check" in sys.argv[1:] else 0


if __name__ == "__main__":
    sys.exit(main())
