"""The worker page of `docs/examples/browser-worker` in a real Chromium, against a real daemon.

The header fields that make it possible are in `node.http.test_cors`.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from colonyd.keys import PrivateKey, recover_payload, sign_payload
from tests.sdk.browser.page import Page, address, at_work, call, colony, process
from tests.sdk.browser.support import EXAMPLE, Browser, require, running_browser, serving_files
from tests.support.daemons import Daemon

pytestmark = pytest.mark.slow

WAITING, RUNNING, SUCCESSFUL, FAILED = range(4)


@pytest.fixture(scope="module")
def lone_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon whose limit of bodies is known."""
    environ = {"COLONYD_FEDERATION__ENABLED": "false", "COLONYD_RPC__MAX_BODY": "2MB"}
    daemon = Daemon(tmp_path_factory.mktemp("lone") / "dev", "dev", environ).start()
    yield daemon
    assert daemon.stop() == 0


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    require()
    with running_browser() as running:
        yield running


@pytest.fixture(scope="module")
def origin(browser: Browser) -> Iterator[str]:
    with serving_files(EXAMPLE) as address:
        yield address


@pytest.fixture(scope="module")
def stranger(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Another origin, with a page of no good intentions."""
    directory = tmp_path_factory.mktemp("stranger")
    (directory / "index.html").write_text("<!doctype html><title>Free kittens</title>")
    with serving_files(directory) as address:
        yield address


def submit(daemon: Daemon, kind: str, *args: object, func: str = "helloworld") -> str:
    conditions = {"colonyname": "dev", "executortype": kind}
    spec = {"funcname": func, "args": list(args), "conditions": conditions, "maxexectime": 60}
    return str(call(daemon, "submitfuncspecmsg", {"spec": spec})["processid"])


@pytest.fixture
def open_page(browser: Browser, origin: str) -> Iterator[Callable[[Daemon, str], Page]]:
    """Opens worker pages; each must have been without a fault."""
    opened: list[Page] = []

    def go(daemon: Daemon, name: str) -> Page:
        page = Page(browser, daemon, name)
        opened.append(page.open(address(origin, daemon, name)))
        return page

    yield go
    for page in opened:
        page.close()


def test_ids_and_signatures_are_the_wires(browser: Browser, origin: str) -> None:
    """Published pairs, and for other keys and texts what the node's own library makes."""
    chance = random.Random(7)
    keys = {
        "ddf7f7791208083b6a9ed975a72684f6406a269cfa36f1b1c32045c0a71fff05": "3fc05cf3df4b494e95d6"
        "a3d297a34f19938f7daa7422ab0d4f794454133341ac",
        "ba949fa134981372d6da62b6a56f336ab4d843b22c02a4257dcf7d0d73097514": "4787a5071856a4acf702"
        "b2ffcea422e3237a679c681314113d86139461290cf4",
        "fcc79953d8a751bf41db661592dc34d30004b1a651ffa0725b03ac227641499d": "039231c7644e04b68954"
        "71dd5335cf332681c54e27f81fac54f9067b3f2c0103",
    }
    for _ in range(40):
        key = PrivateKey.from_hex(chance.randbytes(32).hex())
        keys[key.hex] = key.id
    texts = [base64.b64encode(chance.randbytes(chance.randrange(200))).decode() for _ in keys]
    first = b'{"msgtype": "getcolonymsg", "colonyname": "dev"}'
    texts[0] = base64.b64encode(first).decode()
    made = browser.run(
        """
        const page = await browser.newPage();
        await page.goto(args.origin);
        const made = await page.evaluate(async ({keys, texts}) => {
          const {Identity, encode, decode} = await import("./colonies.js");
          const refused = ["", "0".repeat(64), "f".repeat(64), "xyz", " " + keys[0]].filter(
            (hex) => { try { new Identity(hex); return false } catch { return true } });
          const me = new Identity(keys[0].toUpperCase());
          const utf8 = '"\\xc3\\xbc\\xe2\\x82\\xac"';
          const reply = {payloadtype: "x", error: false, payload: btoa(utf8)};
          return {
            ids: keys.map((key) => new Identity(key).id),
            signatures: keys.map((key, index) => new Identity(key).sign(texts[index])),
            generated: Identity.generate().hex,
            refused: refused.length,
            envelope: encode("submitfuncspecmsg", {spec: {args: ["ü€😀" + "x".repeat(40000)]}}, me),
            reply: decode(200, JSON.stringify(reply)),
          };
        }, args);
        await page.close();
        return made;
        """,
        origin=origin,
        keys=[*keys],
        texts=texts,
    )
    assert made["ids"] == [*keys.values()]
    assert made["signatures"][0] == (
        "c7f3e05a972b20e3986201f12cc33a03921b5b3a900c9203541cefe7f8c7b792"
        "20a19521a852fbb950469677584638f3130003e87fe5a3ab051c71bd3c0113d900"
    )
    ours = [sign_payload(PrivateKey.from_hex(k), t) for k, t in zip(keys, texts, strict=True)]
    assert made["signatures"] == ours
    assert len(PrivateKey.from_hex(made["generated"]).id) == 64
    assert made["refused"] == 5
    assert made["reply"] == "ü€"
    envelope = json.loads(made["envelope"])
    assert recover_payload(envelope["payload"], envelope["signature"]) == made["ids"][0]
    fields = json.loads(base64.b64decode(envelope["payload"]))
    assert fields["msgtype"] == envelope["payloadtype"] == "submitfuncspecmsg"
    assert fields["spec"]["args"] == ["ü€😀" + "x" * 40000]
    assert len(fields["nonce"]) == 32


def test_a_page_registers_is_approved_and_works(
    open_page: Callable[[Daemon, str], Page], lone_daemon: Daemon
) -> None:
    page = open_page(lone_daemon, "tab-1")
    page.click("#new")
    assert page.text("#id") == page.key().id
    page.run("await page.fill('#owner', args.key)", key=lone_daemon.key("colony").hex)
    page.click("#start")
    told = page.logged("the owner approves with")
    page.state("waiting")
    early = submit(lone_daemon, "type-tab-1", "early")
    assert process(lone_daemon, early)["state"] == WAITING  # a pending executor gets nothing
    colony(lone_daemon, told[told.index("colony executor approve") :])
    page.logged("Hello, early!")

    # The colony's key signed one message, and is nowhere any more.
    kept = page.run("return page.evaluate(() => [{...sessionStorage}, {...localStorage}])")
    assert kept == [{"private-key": page.key().hex}, {}]
    assert page.run("return page.inputValue('#owner')") == ""

    # Now it polls. Arguments are shown as text.
    page.state("ready")
    nasty = "<img src=x onerror=alert(1)>"
    for args, output in (
        ([], "Hello, world!"),
        (["ü€😀"], "Hello, ü€😀!"),
        ([nasty], f"Hello, {nasty}!"),
    ):
        done = submit(lone_daemon, "type-tab-1", *args)
        page.logged(f"{done[:8]} →")
        closed = process(lone_daemon, done)
        assert (closed["state"], closed["out"]) == (SUCCESSFUL, [output])
        assert closed["assignedexecutorid"] == page.key().id
    assert page.run("return page.locator('#log img').count()") == 0
    for func in ("nosuch", "constructor", "__proto__"):
        done = submit(lone_daemon, "type-tab-1", func=func)
        page.logged(f"{done[:8]} failed")
        closed = process(lone_daemon, done)
        assert (closed["state"], closed["errors"]) == (FAILED, [f"no function {func} here"])

    # After Stop nothing is taken; what was submitted meanwhile is done by the next Start.
    page.click("#stop")
    page.state("stopped")
    later = submit(lone_daemon, "type-tab-1", "later")
    page.run("await page.reload(); await page.locator('html[data-loaded]').waitFor()")
    # The daemon may hand it to the poll that just ended, before it learns of that: not done it is.
    assert process(lone_daemon, later)["state"] in (WAITING, RUNNING)
    page.click("#start")
    page.logged("Hello, later!")
    assert process(lone_daemon, later)["state"] == SUCCESSFUL
    page.click("#stop")
    page.state("stopped")


def test_a_wrong_owner_key_and_a_taken_name_are_explained(
    open_page: Callable[[Daemon, str], Page], lone_daemon: Daemon
) -> None:
    page = open_page(lone_daemon, "tab-2")
    page.click("#new")
    page.run("await page.fill('#owner', args.key)", key=PrivateKey.generate().hex)
    page.click("#start")
    assert "colony owner" in page.logged("not registered: ")
    page.logged("colony executor add tab-2")
    page.click("#stop")
    page.state("stopped")
    other = {
        "executorname": "tab-2",
        "executorid": PrivateKey.generate().id,
        "executortype": "x",
        "colonyname": "dev",
    }
    call(lone_daemon, "addexecutormsg", {"executor": other}, "colony")
    page.run("await page.fill('#owner', args.key)", key=lone_daemon.key("colony").hex)
    page.click("#start")
    assert "exists already" in page.logged("not registered: ", 2)
    page.click("#stop")
    page.state("stopped")


def test_a_rejected_worker_waits_for_approval_again(
    browser: Browser, origin: str, lone_daemon: Daemon
) -> None:
    """With polls of one second, so that the rejection is met soon."""
    key = PrivateKey.generate()
    executor = {
        "executorname": "tab-3",
        "executorid": key.id,
        "executortype": "type-tab-3",
        "colonyname": "dev",
    }
    name = {"colonyname": "dev", "executorname": "tab-3"}
    call(lone_daemon, "addexecutormsg", {"executor": executor}, "colony")
    call(lone_daemon, "approveexecutormsg", name, "colony")
    started = partial(
        browser.run,
        key=key.hex,
        server=f"http://127.0.0.1:{lone_daemon.port}",
        origin=origin,
    )
    started(
        """
        const page = pages.module = await browser.newPage();
        await page.goto(args.origin);
        await page.evaluate(async ({key, server}) => {
          const {Client, Identity} = await import("./colonies.js");
          const {Worker} = await import("./worker.js");
          window.said = [];
          window.stop = new AbortController();
          const settings = {colony: "dev", name: "tab-3", type: "type-tab-3", poll: 1};
          const report = (state, text) => said.push(`${state}: ${text}`);
          const worker = new Worker(new Client(server), new Identity(key), settings, report);
          window.ended = worker.run(stop.signal);
        }, args);
        """
    )
    heard = """await pages.module.waitForFunction(
        ([text, times]) => said.filter((line) => line.startsWith(text)).length >= times,
        args.what)"""
    browser.run(heard, what=["ready: waiting for work", 1])
    call(lone_daemon, "rejectexecutormsg", name, "colony")
    browser.run(heard, what=["waiting: rejected", 1])
    call(lone_daemon, "approveexecutormsg", name, "colony")
    browser.run(heard, what=["ready: waiting for work", 2])
    done = submit(lone_daemon, "type-tab-3")
    browser.run(heard, what=[f"ready: {done[:8]} →", 1])
    said = browser.run(
        "return pages.module.evaluate(async () => { stop.abort(); await ended; return said })"
    )
    assert said[-1] == "stopped: stopped"
    browser.run("await pages.module.close()")


def test_a_page_outlives_its_node(
    open_page: Callable[[Daemon, str], Page], make_daemon: Callable[..., Daemon]
) -> None:
    daemon = make_daemon("dev", COLONYD_FEDERATION__ENABLED="false").start()
    with at_work(open_page, daemon, "tab-4") as page:
        daemon.kill()
        page.state("offline")
        daemon.start()
        page.logged("the node is back")
        done = submit(daemon, "type-tab-4", "again")
        page.logged("Hello, again!")
        assert process(daemon, done)["state"] == SUCCESSFUL


def test_work_whose_assignment_got_lost_is_done(
    open_page: Callable[[Daemon, str], Page], lone_daemon: Daemon
) -> None:
    """The reply to an assign was lost, so the page finds the process by asking."""
    with at_work(open_page, lone_daemon, "tab-5") as page:
        page.click("#stop")
        page.state("stopped")
        lost = submit(lone_daemon, "type-tab-5", "lost")

        async def assign() -> Any:
            async with lone_daemon.client() as client:
                fields = {"colonyname": "dev", "timeout": 5}
                return await client.call("assignprocessmsg", fields, page.key())

        assert trio.run(assign)["processid"] == lost
        page.click("#start")
        page.logged("Hello, lost!")
        assert process(lone_daemon, lost)["state"] == SUCCESSFUL


STRANGERS_TRY = """
const page = await browser.newPage();
await page.goto(args.origin);
const found = await page.evaluate(async ({server, processid}) => {
  const tried = async (path, options) => {
    try {
      const reply = await fetch(server + path, {method: "POST", ...options});
      const text = await reply.text();
      return [reply.status, text ? atob(JSON.parse(text).payload) : ""];
    } catch (error) {
      return error.name;
    }
  };
  const envelope = (type, fields) => ({body: JSON.stringify({
    payloadtype: type,
    payload: btoa(JSON.stringify({msgtype: type, ...fields})),
    signature: "0".repeat(130),
  })});
  const listening = new Promise((resolve) => {
    const socket = new WebSocket(server.replace("http", "ws") + "/pubsub");
    socket.onopen = () => socket.send(envelope("subscribeprocessmsg",
      {colonyname: "dev", processid, state: 0, timeout: 2}).body);
    socket.onmessage = ({data}) => resolve(atob(JSON.parse(data).payload));
    socket.onclose = () => resolve("closed");
  });
  const json = {"content-type": "application/json"};
  return {
    version: await tried("/api", {...envelope("versionmsg"), headers: json}),
    health: await tried("/health", {method: "GET"}),
    noenvelope: await tried("/api", {body: "{"}),
    toolarge: await tried("/api", {body: "x".repeat(20_000_000)}),
    unsigned: await tried("/api", envelope("getcolonymsg", {colonyname: "dev"})),
    process: await tried("/api", envelope("getprocessmsg", {processid})),
    assign: await tried("/api", envelope("assignprocessmsg", {colonyname: "dev", timeout: -1})),
    subscription: await listening,
    withCookies: await tried("/api", {...envelope("versionmsg"), credentials: "include"}),
    otherMethod: await tried("/api", {method: "DELETE"}),
    otherPath: await tried("/pubsub", {method: "GET"}),
    otherRoot: await tried("/", {method: "GET"}),
  };
}, args);
await page.close();
return found;
"""


def test_a_page_of_another_origin_gets_what_anybody_gets(
    browser: Browser, stranger: str, lone_daemon: Daemon
) -> None:
    secret = submit(lone_daemon, "nobody", "secret")
    server = f"http://127.0.0.1:{lone_daemon.port}"
    got = browser.run(STRANGERS_TRY, origin=stranger, server=server, processid=secret)
    # Open to all, or refused, and then for a reason that the page can read.
    assert got["version"][0] == 200
    assert got["health"] == [200, ""]
    for name, status in (
        ("noenvelope", 400),
        ("toolarge", 413),
        ("unsigned", 403),
        ("process", 403),
        ("assign", 403),
    ):
        answered, text = got[name]
        assert answered == status, name
        assert json.loads(text)["status"] == status
        assert json.loads(text)["message"]
    assert json.loads(got["subscription"])["status"] == 403
    # The browser keeps these from the page, on the node's word.
    for name in ("withCookies", "otherMethod", "otherPath", "otherRoot"):
        assert got[name] == "TypeError", name
    assert "secret" not in json.dumps(got)
    assert process(lone_daemon, secret)["state"] == WAITING


def test_the_lock_files_name_no_registry() -> None:
    """They pin hashes; where the packages come from is each machine's own setting."""
    for directory in (EXAMPLE, Path(__file__).parent / "browser"):
        pinned = json.loads((directory / "package-lock.json").read_text())["packages"]
        wanted = json.loads((directory / "package.json").read_text())["dependencies"]
        for name, version in wanted.items():
            entry = pinned[f"node_modules/{name}"]
            if entry.get("link"):  # the package in this source
                assert (entry["resolved"], version) == ("../../../js", "file:../../../js")
                continue
            assert entry["version"] == version
            assert entry["integrity"].startswith("sha512-")
            assert "resolved" not in entry
