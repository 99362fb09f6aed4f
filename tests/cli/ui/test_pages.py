"""The pages of `colony ui` in a real Chromium, against real daemons."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import segno

from colonyd.keys import PrivateKey
from colonyd.rpc import RpcError
from tests.cli.ui.conftest import ENVIRON, Workshop
from tests.cli.ui.scene import Scene, running_ui
from tests.cli.ui.tab import Tab
from tests.support.daemons import Daemon

pytestmark = pytest.mark.slow

Open = Callable[..., Tab]

PHONE = {"width": 360, "height": 780}
# The picture of a page in the documents, and what is shown on it.
PAGES = {
    "overview": ("", "checks passed"),
    "processes": ("processes", "lighthouse"),
    "process": ("process/{running}", "62 %"),
    "forwarded": ("process/{forwarded}", "signature valid"),
    "why": ("process/{busy}", "Why it does not run"),
    "workflow": ("workflow/{workflow}", "thumbnails"),
    "timers": ("timers", "nightly-backup"),
    "files": ("files?label=/scenes", "lighthouse.blend"),
    "federation": ("federation", "foundry"),
    "history": ("history", "Verify"),
    "submit": ("submit", "Limits"),
}
# A phone has a picture of its own where the page is another there.
ON_A_PHONE = ("overview", "processes", "why", "workflow", "federation")


@pytest.mark.parametrize("name", PAGES)
def test_each_page_shows_what_is_there(
    tab: Tab, workshop: Workshop, name: str, tmp_path: Path
) -> None:
    """On a desk and a phone, light and dark, without scrolling sideways; with its picture.

    COLONYD_SCREENSHOTS=DIRECTORY keeps the pictures.
    """
    path, shown = PAGES[name]
    kept = Path(os.environ.get("COLONYD_SCREENSHOTS") or tmp_path).absolute()
    widths = {"desk": (1280, 800), "phone": (360, 780), "narrow": (320, 568)}
    for kind, (width, height) in widths.items():
        scheme = "dark" if kind == "desk" and name in ("process", "federation") else "light"
        tab.run(
            "await page.setViewportSize(args.size);"
            "await page.emulateMedia({colorScheme: args.scheme, reducedMotion: 'reduce'})",
            size={"width": width, "height": height},
            scheme=scheme,
        )
        tab.go(path.format(**workshop.ids))
        tab.see(shown)
        assert tab.overflow() <= 0, kind
        if kind == "desk" or (kind == "phone" and name in ON_A_PHONE):
            picture = kept / (f"{name}.png" if kind == "desk" else f"{name}-{kind}.png")
            tab.run("await page.screenshot({path: args.path})", path=str(picture))
            assert picture.read_bytes().startswith(b"\x89PNG")
    tab.run("await page.setViewportSize({width: 1280, height: 800})")


def test_the_overview_tells_what_is_wrong(tab: Tab, workshop: Workshop) -> None:
    tab.go("")
    tab.see('1 process can\'t run: no executor of type "welder" is registered')
    tab.see('executor "robot-arm" of type "arm" waits for approval')
    tab.see("orchard: ")  # of the doctor
    assert "render" in tab.text("tr:has-text('gpu-1')")
    counts = tab.run("return page.locator('.counters .number').allInnerTexts()")
    assert int(counts[2]) >= 10
    label = tab.run("return page.locator('.chart svg').getAttribute('aria-label')")
    assert "running; since then" in label


def test_processes_are_filtered_and_paged(tab: Tab, workshop: Workshop) -> None:
    tab.go("processes")
    tab.see("page 1 of 2")
    tab.click("Older")
    tab.see("page 2 of 2")
    tab.run("await page.getByLabel('State').selectOption('failed')")
    tab.run("await page.locator('tbody .chip.failed').nth(1).waitFor()")
    rows = tab.run("return page.locator('tbody tr').allInnerTexts()")
    assert len(rows) == 2
    assert all("cut" in row and "shears" in row for row in rows)
    tab.run("await page.getByLabel('Text', {exact: true}).fill('tin')")
    tab.run("await page.locator('tbody tr').nth(1).waitFor({state: 'detached'})")
    # The address keeps the filters.
    assert tab.run("return page.url()").endswith("#/processes?state=failed&text=tin")
    tab.run("await page.reload(); await page.locator('tbody tr').first().waitFor()")
    assert tab.run("return page.locator('tbody tr').count()") == 1
    tab.run("await page.getByLabel('Text', {exact: true}).fill('nothing has this')")
    tab.see("No process passes these filters.")
    tab.go("processes?window=hour&executor=gpu-2")
    tab.see("4 processes")


def test_a_list_a_log_and_a_state_are_live(tab: Tab, workshop: Workshop) -> None:
    here = workshop.here
    here.hire("lathe", "lathe")
    tab.go("processes?executor=lathe")
    tab.see("No process passes these filters.")
    turned = here.submit("turn", "lathe", "spindle")
    tab.see("spindle")
    tab.run("await page.locator('tbody tr a').first().focus()")
    here.take("lathe")
    tab.run("await page.locator('tbody .chip.running').waitFor()")
    # What has the focus keeps it when the list is drawn anew.
    key = tab.run("return page.evaluate(() => document.activeElement.dataset.key)")
    assert key == f"call-{turned}"
    tab.go(f"process/{turned}")
    tab.see("It has logged nothing.")
    here.log("lathe", turned, "first cut", "done 40 %")
    tab.see("first cut")
    tab.see("40 %", ".progress")
    here.close("lathe", turned, "a spindle")
    tab.run("await page.locator('.title .chip.successful').waitFor()")
    tab.see("a spindle")


def test_a_forward_is_shown_with_its_signature(tab: Tab, workshop: Workshop) -> None:
    tab.go(f"process/{workshop.ids['forwarded']}")
    tab.see("✓ signature valid")
    story = tab.text(".events")
    assert story.index("submitted") < story.index("given to foundry") < story.index("signed that")
    assert "for the very submission that was sent" in story
    lanes = tab.run("return page.locator('.lanes .lane').allTextContents()")
    assert lanes == ["workshop", "foundry"]
    tab.see("hammering")
    tab.see("4 hinges")


def test_a_workflow_is_drawn_and_its_states_live(tab: Tab, workshop: Workshop) -> None:
    here, ids = workshop.here, workshop.ids
    flow = here.call(
        "submitworkflowspecmsg",
        spec={
            "colonyname": here.name,
            "functionspecs": [
                {
                    "nodename": name,
                    "funcname": "turn",
                    "conditions": {
                        "colonyname": here.name,
                        "executortype": "drill",
                        "dependencies": before,
                    },
                }
                for name, before in (("a", []), ("b", ["a"]), ("c", ["a"]), ("d", ["b", "c"]))
            ],
        },
    )
    here.hire("drill", "drill")
    tab.go(f"workflow/{flow['processgraphid']}")
    tab.run("await page.locator('.node.waiting').nth(3).waitFor()")
    assert tab.run("return page.locator('.edge').count()") == 4
    first = here.take("drill")["processid"]
    tab.run("await page.locator('.node.running').waitFor()")
    here.close("drill", first, "ok")
    tab.run("await page.locator('.node.successful').waitFor()")
    boxes = tab.run(
        "return page.locator('.node').evaluateAll((all) => Object.fromEntries(all.map((one) =>"
        " [one.querySelector('.name').textContent, one.getBoundingClientRect().left])))"
    )
    assert boxes["a"] < boxes["b"] == boxes["c"] < boxes["d"]
    tab.run("await page.locator('.node').first().focus(); await page.keyboard.press('Enter')")
    tab.run("await page.waitForURL('**/#/process/*')")
    assert ids["workflow"] != flow["processgraphid"]


def test_timers_have_their_next_run(tab: Tab) -> None:
    tab.go("timers")
    tab.see("0 30 2 * * *")
    assert tab.text(".timer:has-text('hourly-report') .next-run").startswith("next in ")
    tab.see("4 of 10 arguments")


def test_a_file_is_downloaded_whole(tab: Tab, workshop: Workshop, tmp_path: Path) -> None:
    tab.go("files")
    tab.click("/scenes", role="link")
    tab.see("harbour.blend")
    target = tmp_path / "got"
    name = tab.run(
        """
        const [download] = await Promise.all([
          page.waitForEvent("download"),
          page.getByRole("link", {name: "Download harbour.blend"}).click(),
        ]);
        await download.saveAs(args.path);
        return download.suggestedFilename();
        """,
        path=str(target),
    )
    assert name == "harbour.blend"
    assert target.read_bytes().hex() == workshop.ids["bytes"]


def test_the_map_shows_trust_both_ways_and_forwards(tab: Tab, workshop: Workshop) -> None:
    tab.run("await page.emulateMedia({reducedMotion: 'no-preference'})")
    tab.go("federation")
    tab.see("trust both ways", ".map")
    tab.see("does not answer", ".map")
    titles = tab.run("return page.locator('.map .count title').allTextContents()")
    assert "2 forwards to foundry" in titles
    assert "1 processes of foundry here" in titles
    trust = tab.run("return page.locator('.map .trust title').allTextContents()")
    assert "workshop has foundry as trusted" in trust
    assert "foundry trusts workshop" in trust
    assert tab.run("return page.locator('.map animateMotion').count()") >= 4
    tab.click("Ping")
    tab.see("foundry answers in", "#said")


def test_invite_join_block_and_trust(
    tab: Tab, workshop: Workshop, make_daemon: Callable[..., Daemon]
) -> None:
    tab.go("federation")
    tab.click("Invite a colony")
    tab.run("await page.locator('.qr').waitFor()")
    token = tab.run("return page.locator('.invitation textarea').inputValue()")
    drawn = tab.run("return page.locator('.qr path').getAttribute('d')")
    code = segno.make(token, error="l", micro=False).matrix_iter(border=2)
    assert drawn == "".join(
        f"M{x} {y}h1v1h-1z" for y, row in enumerate(code) for x, dark in enumerate(row) if dark
    )
    tab.see("Open invitations")
    tab.click("Revoke")
    tab.confirm("Revoke")

    grove = Scene(make_daemon("grove", **ENVIRON).start())
    address = f"127.0.0.1:{grove.daemon.peer_port}"
    made = grove.call("invitepeermsg", "colony", expires=600, addresses=[address])
    tab.run("await page.getByLabel('Join with').fill(args.token)", token=f" {made['token']}\n")
    tab.click("Join")
    tab.see("grove and this colony trust each other", "#said")
    peers = {peer["name"]: peer for peer in workshop.here.call("getpeersmsg", "colony")}
    assert peers["grove"]["state"] == "trusted"
    card = f"#peer-{peers['grove']['id']}"
    tab.run("await page.locator(args.at).waitFor()", at=card)
    tab.click("Block", within=card)
    tab.confirm("Block")
    tab.run("await page.locator(`${args.at} .head .chip.blocked`).waitFor()", at=card)
    tab.click("Trust", within=card)
    tab.confirm("Trust")
    tab.run("await page.locator(`${args.at} .head .chip.trusted`).waitFor()", at=card)
    tab.click("Block", within=card)
    tab.confirm("Block")
    tab.run("await page.locator(`${args.at} .head .chip.blocked`).waitFor()", at=card)


def test_the_history_is_verified(open_tab: Open, make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon("attic", COLONYD_FEDERATION__ENABLED="false", COLONYD_HISTORY__KEEP="1")
    scene = Scene(daemon.start())
    scene.hire("w", "cli")
    old = scene.submit("dust", "cli", "shelf")
    scene.take("w")
    scene.log("w", old, "wiping")
    scene.close("w", old, "clean")
    daemon.await_event('event="moved to history"', seconds=60)
    with running_ui(daemon) as command:
        tab = open_tab(command.address())
        tab.go("history")
        tab.see("shelf")
        tab.click("Verify")
        tab.see("each follows the one before")
        tab.run("await page.getByLabel('A digest').fill('0'.repeat(64))")
        tab.click("Verify")
        tab.see("no record has the digest")
        # What has left the store has its page, still.
        tab.go(f"process/{old}")
        tab.see("wiping")
        tab.see("clean")
        (chain,) = (daemon.home / "history" / "attic").iterdir()
        data = chain.read_bytes()
        chain.write_bytes(data[:40] + bytes(16) + data[56:])
        tab.go("history")
        tab.click("Verify")
        tab.see("1 problem")
        # The list can't be read either, and Chromium names that an error each time.
        tab.go("timers")
        tab.faults()


def test_buttons_change_things(tab: Tab, workshop: Workshop) -> None:
    here = workshop.here
    here.hire("kiln", "kiln", approve=False)
    fired = here.submit("fire", "kiln", "pot")
    tab.go("")
    row = "tr:has(.name:text-is('kiln'))"
    tab.click("Approve", within=row)
    tab.run("await page.locator(`${args.row} .chip.approved`).waitFor()", row=row)
    tab.click("Reject", within=row)
    tab.click("Leave it", within="dialog")
    tab.click("Reject", within=row)
    tab.confirm("Reject")
    tab.run("await page.locator(`${args.row} .chip.rejected`).waitFor()", row=row)
    tab.click("Remove", within=row)
    tab.confirm("Remove")
    tab.run("await page.locator(args.row).waitFor({state: 'detached'})", row=row)

    tab.click("Pause")
    tab.confirm("Pause")
    tab.see("No process is given to an executor.")
    assert here.call("getpausestatusmsg", colonyname=here.name)["ispaused"]
    tab.click("Resume")
    tab.run("await page.getByRole('button', {name: 'Pause'}).waitFor()")

    tab.go(f"process/{fired}")
    tab.click("Cancel")
    tab.confirm("Cancel")
    tab.run("await page.locator('.title .chip.cancelled').waitFor()")
    tab.click("Remove")
    tab.confirm("Remove")
    tab.run("await page.waitForURL('**/#/processes')")
    with pytest.raises(RpcError):
        here.call("getprocessmsg", processid=fired)
    tab.go("timers")
    tab.click("Run now", within=".timer:has-text('hourly-report')")
    tab.confirm("Run now")
    tab.run("await page.locator(\".timer:has-text('hourly-report') a\").waitFor()")


def test_a_form_is_made_from_the_arguments_of_a_function(tab: Tab, workshop: Workshop) -> None:
    tab.go("submit")
    tab.run("await page.getByLabel('Function').selectOption({label: 'render · gpu'})")
    tab.see("Renders a scene into frames.")
    tab.click("Submit")  # scene is required: nothing is sent
    assert tab.run("return page.locator('#arg-0:invalid').count()") == 1
    tab.run(
        "await page.getByLabel('scene').fill('weir');"
        "await page.getByLabel('frames').fill('96');"
        "await page.getByLabel('quality').selectOption('final');"
        "await page.getByLabel('Label').fill('by hand')"
    )
    tab.click("Submit")
    tab.run("await page.waitForURL('**/#/process/*')")
    made = workshop.here.call(
        "getprocessmsg", processid=tab.run("return page.url()").rpartition("/")[2]
    )
    assert made["spec"]["args"] == ["weir", 96, "final"]
    assert made["spec"]["label"] == "by hand"
    assert made["spec"]["conditions"]["executortype"] == "gpu"
    # One that nobody has registered.
    tab.go("submit")
    tab.run("await page.getByLabel('Function').selectOption({label: 'another function…'})")
    tab.run(
        "await page.locator('#func').fill('sew');"
        "await page.locator('#type').fill('tailor');"
        "await page.getByLabel('One argument a line').fill('coat\\n42')"
    )
    tab.click("Submit")
    tab.run("await page.waitForURL('**/#/process/*')")
    made = workshop.here.call(
        "getprocessmsg", processid=tab.run("return page.url()").rpartition("/")[2]
    )
    assert (made["spec"]["funcname"], made["spec"]["args"]) == ("sew", ["coat", "42"])
    assert made["spec"]["conditions"]["executortype"] == "tailor"


def test_a_page_that_only_reads_has_no_buttons(open_tab: Open, workshop: Workshop) -> None:
    with running_ui(workshop.here.daemon) as command:
        tab = open_tab(command.address())
        assert tab.text("#mode") == "reads only"
        for path in ("", f"process/{workshop.ids['running']}", "timers", "federation"):
            tab.go(path)
            names = tab.run("return page.locator('main button').allInnerTexts()")
            assert set(names) <= {"Look again", "Ping"}, path
        assert tab.run("return page.getByRole('link', {name: 'Submit'}).count()") == 0
        # Nor does the server do what a page asks that has them.
        told = tab.run(
            """
            return page.evaluate(async () => {
              const {call} = await import("./api.js");
              const told = (error) => `${error.status} ${error.message}`;
              return call("pause").then(() => "done", told);
            })
            """
        )
        assert told == "403 this page only reads"
        tab.faults()  # Chromium names the refusal an error
        assert not workshop.here.call("getpausestatusmsg", colonyname="workshop")["ispaused"]


def test_it_is_used_by_keyboard(open_tab: Open, workshop: Workshop) -> None:
    tab = open_tab(workshop.sign_in())
    focused = "return page.evaluate(() => document.activeElement.textContent.trim())"
    press = "await page.keyboard.press(args.key)"
    tab.run(press, key="Tab")
    assert tab.run(focused) == "Skip to the content"
    tab.run(press, key="Enter")
    assert tab.run("return page.evaluate(() => document.activeElement.id)") == "main"
    tab.run("await page.reload(); await page.locator('html[data-ready]').waitFor()")
    for _ in range(4):  # skip, brand, overview, processes
        tab.run(press, key="Tab")
    assert tab.run(focused) == "Processes"
    outline = "return page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle)"
    assert tab.run(outline) == "solid"
    tab.run(press, key="Enter")
    tab.see("page 1 of")
    # A new page is announced: its heading has the focus, and the title and the place tell it.
    assert tab.run(focused) == "Processes"
    assert tab.run("return page.title()") == "Processes · workshop"
    current = "return page.locator('#nav [aria-current=page]').innerText()"
    assert tab.run(current).strip() == "Processes"
    # A dialog takes the focus, Escape leaves it, and the button has the focus again.
    tab.go("")
    tab.run("await page.getByRole('button', {name: 'Pause'}).focus()")
    tab.run(press, key="Enter")
    tab.run("await page.locator('dialog[open]').waitFor()")
    tab.run(press, key="Escape")
    tab.run("await page.locator('dialog').waitFor({state: 'detached'})")
    assert tab.run(focused) == "Pause"
    # All that can be worked has a name.
    for path in ("", "processes", "federation", "submit"):
        tab.go(path)
        nameless = tab.run(
            """
            return page.evaluate(() => {
              const named = (each) => each.textContent.trim() || each.labels?.length
                || each.getAttribute("aria-label");
              const all = document.querySelectorAll("button, a, input, select, textarea");
              return [...all].filter((each) => !named(each)).map((each) => each.outerHTML);
            });
            """
        )
        assert nameless == []
        assert tab.run("return page.locator('main h1').count()") == 1


MARKUP = '<img src=x onerror="document.title=1">'
HOSTILE = (
    MARKUP,
    "</script><script>document.title=1</script>",
    "\"'`--><svg onload=document.title=1>",
    "x" * 180,
    "\u202eknalb\u202c \u05d0\u05d1\u05d2 \u200bzero",
    "bell\x07 esc\x1b[31m nul-ish\x01",
    "javascript:document.title=1",
)


def _fields(scene: Scene, text: str) -> list[tuple[str, str | PrivateKey, dict[str, Any]]]:
    """Return the calls that put a text into names and descriptions, each with its signer."""
    colony, worker = {"colonyname": scene.name}, scene.executors["worker"]
    argument = {"name": text, "type": text, "description": text, "enum": [text]}
    fun = {"executorname": "worker", "funcname": text, "description": text, "args": [argument]}
    conditions = colony | {"executortype": text, "locationname": text}
    spec = {"funcname": text, "nodename": text, "conditions": conditions}
    flow = colony | {"name": text, "workflowspec": json.dumps([spec])}
    executor = {"executorid": PrivateKey.generate().id, "executorname": text, "locationname": text}
    file = {
        "label": f"/{text}",
        "name": text,
        "checksum": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "checksumalg": "SHA256",
        "ref": {"protocol": "s3", "s3object": {"server": text}},
    }
    return [
        ("addexecutormsg", "colony", {"executor": colony | {"executortype": text} | executor}),
        ("addfunctionmsg", worker, {"fun": colony | fun}),
        ("submitfuncspecmsg", "user", {"spec": spec}),
        ("addcronmsg", "user", {"cron": flow | {"interval": 3600}}),
        ("addgeneratormsg", "user", {"generator": flow | {"trigger": 3}}),
        ("addfilemsg", "user", {"file": colony | file}),
    ]


def _poison(scene: Scene) -> tuple[list[str], str]:
    """Put hostile text into every field that takes it; return process ids and a workflow's id."""
    ids: list[str] = []
    scene.hire("worker", "cli")
    for number, text in enumerate(HOSTILE):
        spec = {"kwargs": {text: text}, "label": text, "env": {text: text}}
        ids.append(scene.submit(text, "cli", text, {"k": text}, **spec))
        scene.take("worker")
        scene.log("worker", ids[-1], f"{text}\n{text}")
        attribute = {"targetid": ids[-1], "key": text, "value": text}
        calls = _fields(scene, text)
        calls.append(("addattributemsg", scene.executors["worker"], {"attribute": attribute}))
        for kind, key, fields in calls:
            try:
                made = scene.call(kind, key, **fields)
            except RpcError as error:
                if error.status != 400:  # the daemon takes no such name
                    raise
            else:
                ids += [made["processid"]] if kind == "submitfuncspecmsg" else []
        if number % 2:
            scene.close("worker", attribute["targetid"], text, {"k": text})
        else:
            scene.fail("worker", attribute["targetid"], text)
    conditions = {"colonyname": scene.name, "executortype": "cli"}
    nodes = [{"nodename": text, "funcname": text, "conditions": conditions} for text in HOSTILE]
    made = scene.call(
        "submitworkflowspecmsg", spec={"colonyname": scene.name, "functionspecs": nodes}
    )
    return ids, str(made["processgraphid"])


def test_hostile_text_is_text_everywhere(
    open_tab: Open, make_daemon: Callable[..., Daemon]
) -> None:
    scene = Scene(make_daemon("trap", **ENVIRON).start())
    ids, flow = _poison(scene)
    with running_ui(scene.daemon, "--write") as command:
        tab = open_tab(command.address(), width=320, height=568)
        paths = ["", "processes", "processes?state=waiting", *(f"process/{each}" for each in ids)]
        paths += ["workflows", f"workflow/{flow}", "timers", "files", "submit", "federation"]
        seen = ""
        for path in ("", "processes", paths[3], paths[-5], "timers", "federation"):
            tab.go(path)
            assert tab.overflow() <= 0, path
            found = tab.run(
                """
                return page.evaluate(() => ({
                  made: document.querySelectorAll("main :is(img, script, iframe, object)").length,
                  handlers: [...document.querySelectorAll("*")].filter((each) =>
                    [...each.attributes].some((one) => one.name.startsWith("on"))).length,
                  links: [...document.querySelectorAll("main a")]
                    .map((each) => each.getAttribute("href"))
                    .filter((href) => !/^(#\\/|download\\?)/.test(href)),
                  title: document.title, text: document.querySelector("main").textContent,
                }))
                """
            )
            assert (found["made"], found["handlers"], found["links"]) == (0, 0, []), path
            assert found["title"] != "1"
            # Nothing that can't be seen, or turns the text around, is on the page as itself.
            assert not set(found["text"]) & set("\u202e\u202c\u200b\x07\x1b\x01"), path
            seen += found["text"]
        assert MARKUP in seen
        assert "\\u{202e}knalb\\u{202c}" in seen
        assert "bell\\u{7} esc\\u{1b}[31m" in seen
        tab.run("await page.setViewportSize({width: 1280, height: 800})")
        for path in ("", "processes", paths[3], paths[-5], "timers", "federation"):
            tab.go(path)
            assert tab.overflow() <= 0, path
