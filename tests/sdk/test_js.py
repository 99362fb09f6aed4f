"""The JavaScript package `js/` in Node.js and in Chromium, against real daemons."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import trio

from colonyd.keys import PrivateKey, recover_payload
from tests.node.members.support import VARIABLES
from tests.sdk.browser.page import call, process
from tests.sdk.browser.support import require, running_browser, serving_files
from tests.sdk.nodejs import (
    PACKAGE,
    SCRIPTS,
    at_work,
    environ,
    require_node,
)
from tests.support.daemons import REPOSITORY, Daemon

WAITING, RUNNING, SUCCESSFUL, FAILED, CANCELLED = range(5)


@pytest.fixture(autouse=True)
def needs_node() -> None:
    """Skip without Node.js."""
    require_node()


def script(daemon: Daemon | None, code: str, key: PrivateKey | None = None, **args: Any) -> Any:
    """Run the body of an async function in Node.js; raises AssertionError with what it throws."""
    done = subprocess.run(
        ["node", str(SCRIPTS / "script.mjs")],
        input=json.dumps({"code": code, "args": args}),
        env=environ(daemon, key),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    if "error" in told:
        raise AssertionError(told["error"])
    return told["value"]


def submit(daemon: Daemon, kind: str, func: str, *args: object, **fields: Any) -> str:
    conditions = {"colonyname": "dev", "executortype": kind}
    spec = {"funcname": func, "args": list(args), "conditions": conditions, "maxexectime": 60}
    return str(call(daemon, "submitfuncspecmsg", {"spec": spec | fields})["processid"])


def ended(daemon: Daemon, processid: str) -> Mapping[str, Any]:
    """Wait in Node.js until a process has ended, and return it."""
    code = "return client.wait(args.processid, {seconds: 60})"
    found: Mapping[str, Any] = script(daemon, code, processid=processid)
    return found


# -- the wire -------------------------------------------------------------------------------------


def test_ids_are_those_of_the_vectors() -> None:
    keys = json.loads((REPOSITORY / "docs" / "vectors" / "keys.json").read_text())["keys"]
    code = "return args.keys.map((key) => new colonyd.Identity(key).id)"
    ids = script(None, code, keys=[key["private"] for key in keys])
    assert ids == [key["id"] for key in keys]


def test_a_signed_request_is_the_wires() -> None:
    """The node's own library recovers the signer from what JavaScript signed."""
    key = PrivateKey.generate()
    code = """
        const identity = new colonyd.Identity(args.secret);
        return JSON.parse(colonyd.encode("x", {text: "ü€😀"}, identity));
    """
    made = script(None, code, secret=key.hex)
    assert recover_payload(made["payload"], made["signature"]) == key.id


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("new colonyd.Identity('abc')", "a private key is 64 hexadecimal characters"),
        ("new colonyd.Client('nowhere')", "nowhere is no address of a server"),
        ("await new colonyd.Client('http://127.0.0.1:1').run('x')", "give the client the name"),
        (
            "new colonyd.Client('http://127.0.0.1:1', {colony: 'a'}).spec('x', [])",
            "x: for executors of which type? give { type }",
        ),
        (
            "const identity = colonyd.Identity.generate();"
            "const at = new colonyd.Client('http://127.0.0.1:1', {identity, colony: 'a'});"
            "new colonyd.Worker(at, {name: 'a', type: 'b'}).function('g', function* () {})",
            "g is a generator, which has no result: return a list",
        ),
        ("colonyd.fromEnvironment({})", "COLONIES_COLONY_NAME is not set"),
        (
            "colonyd.fromEnvironment({COLONIES_COLONY_NAME: 'a', COLONIES_PRVKEY: '1'.repeat(64),"
            " COLONIES_SERVER_TLS: 'yes'})",
            "COLONIES_SERVER_TLS: write true or false",
        ),
        (
            "new colonyd.Client('http://127.0.0.1:1', {identity: '1'.repeat(64)})",
            "identity: give new Identity(key)",
        ),
        (
            "new colonyd.Worker(new colonyd.Client('http://127.0.0.1:1'), {name: 'a'})",
            "a worker needs an identity",
        ),
        (
            "const identity = colonyd.Identity.generate();"
            "await new colonyd.Client('http://127.0.0.1:1', {identity}).call('getcolonymsg', {})",
            "Unreachable: http://127.0.0.1:1/: ",
        ),
    ],
)
def test_mistakes_are_told_in_plain_words(code: str, words: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(words)):
        script(None, code)


# -- functions ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_functions_of_every_kind(lone_daemon: Daemon, tmp_path: Path) -> None:
    with at_work(lone_daemon, "js-1", tmp_path) as worker:
        code = "return client.run(args.func, args.given, {type: 'js-1', seconds: 60, ...args.more})"

        def run(func: str, *given: object, **more: Any) -> Any:
            return script(lone_daemon, code, func=func, given=given, more=more)

        assert run("upper", "größe") == ["GRÖSSE"]
        assert run("pair", 1, 2, kwargs={"unit": "m"}) == [2, "m"]
        assert run("nothing") == []
        for func, words in (
            ("throws", "failed: this text is no number"),
            ("circle", "circular structure"),
            ("nosuch", "no function nosuch here"),
            ("__proto__", "no function __proto__ here"),
        ):
            with pytest.raises(AssertionError, match=words):
                run(func)
        # A context: log, progress, attributes, output so far, the deadline, variables.
        told = submit(lone_daemon, "js-1", "told", env={"PLACE": "here"})
        assert ended(lone_daemon, told)["out"] == [True, "here"]
        read = """
            const lines = [];
            for await (const line of client.logs(args.told)) lines.push(line.message);
            return [lines.join("\\n"), await client.attributes(args.told)];
        """
        lines, attributes = script(lone_daemon, read, told=told)
        assert lines == "a line: ü€\nprogress: 100 %"
        assert attributes == {"colour": "blue", "PLACE": "here"}
        # The colony knows what it offers.
        where = {"colonyname": "dev", "executorname": "js-1"}
        listed = call(lone_daemon, "getfunctionsmsg", where)
        assert {"upper", "told", "waits"} <= {row["funcname"] for row in listed}
        assert worker.end() == 0
        assert worker.said[-2:] == ["stopped: stopped", "served"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_whatever_a_function_throws_ends_its_process(lone_daemon: Daemon, tmp_path: Path) -> None:
    """No error is one that the server refuses, or that ends the worker: callers would wait."""
    with at_work(lone_daemon, "js-odd", tmp_path) as worker:
        for kind, errors in (
            ("halves", ["half a character: \ufffd"]),
            ("long", ["x" * 12_000]),
            ("empty", ["RangeError"]),
            ("textless", ["an error that can't be made a text"]),
            ("getter", ["an error that can't be made a text"]),
            ("nothing", ["undefined"]),
        ):
            process = ended(lone_daemon, submit(lone_daemon, "js-odd", "odd", kind))
            assert (process["state"], process["errors"]) == (FAILED, errors)
        for kind, what in (
            ("nan", "NaN"),
            ("map", "a value of class Map"),
            ("bytes", "a value of class Uint8Array"),
            ("code", "a function"),
            ("sign", "a symbol"),
        ):
            process = ended(lone_daemon, submit(lone_daemon, "js-odd", "formless", kind))
            assert process["errors"] == [f"{what} has no form in JSON"]
        assert ended(lone_daemon, submit(lone_daemon, "js-odd", "once"))["out"] == [{"reads": "1"}]
        assert worker.end() == 0


@pytest.mark.slow
def test_workflows_files_and_channels(lone_daemon: Daemon, tmp_path: Path) -> None:
    with at_work(lone_daemon, "js-2", tmp_path, slots=2):
        flow = """
            const type = "js-2";
            return client.runWorkflow({
              a: {func: "upper", args: ["x"], type},
              b: {func: "upper", args: ["y"], type},
              both: {func: "join", after: ["a", "b"], type},
              behind: {func: "upper", args: ["z"], after: ["a"], type},
            }, {seconds: 60});
        """
        outs = script(lone_daemon, flow)
        assert (outs["a"], outs["b"]) == (["X"], ["Y"])
        assert sorted(outs["both"][0].split("+")) == ["X", "Y"]
        assert outs["behind"] == ["Z", "X"]
        with pytest.raises(AssertionError, match="node b comes after c, but there is no such node"):
            script(lone_daemon, "await client.submitWorkflow({b: {func: 'x', after: ['c']}})")

        talk = """
            const options = {type: "js-2", channels: ["chat"]};
            const {processid} = await client.submit("talks", [], options);
            const channel = client.channel(processid, "chat");
            await channel.send("?really");
            for await (const {text} of channel.messages({every: 0.1}))
              if (text === "?really yes") break;
            await channel.send("", {type: "end"});
            return (await client.wait(processid, {seconds: 60})).out;
        """
        assert script(lone_daemon, talk) == ["goodbye"]

    files = """
        const bytes = Uint8Array.from({length: 300_000}, (_, at) => at * at % 251);
        await client.putFile("/data", "bytes", bytes);
        await client.putFile("/data", "text", "ü€");
        await client.putFile("/data", "empty", "");
        const back = await client.getFile("/data", "bytes");
        const text = new TextDecoder().decode(await client.getFile("/data", "text"));
        const empty = await client.getFile("/data", "empty");
        return [back.every((byte, at) => byte === bytes[at]), back.length, text, empty.length];
    """
    assert script(lone_daemon, files) == [True, 300_000, "ü€", 0]
    with pytest.raises(AssertionError, match="no file gone under /data"):
        script(lone_daemon, "await client.getFile('/data', 'gone')")


@pytest.mark.slow
def test_a_workflow_that_fails_or_lasts_says_which_and_why(
    lone_daemon: Daemon, tmp_path: Path
) -> None:
    """The nodes before it in the list ended because of it: they are not the ones to name."""
    with at_work(lone_daemon, "js-wf", tmp_path, slots=2):
        nodes: dict[str, Any] = {
            "innocent": {"func": "until", "args": [str(tmp_path / "never")], "type": "js-wf"},
            "guilty": {"func": "throws", "type": "js-wf"},
        }
        code = "return client.runWorkflow(args.nodes, {seconds: args.seconds})"
        with pytest.raises(AssertionError, match=r"\(throws\) failed: this text is no number"):
            script(lone_daemon, code, nodes=nodes, seconds=60)
        del nodes["guilty"]
        with pytest.raises(AssertionError, match=r"workflow [0-9a-f]{64} has not ended in 1 s"):
            script(lone_daemon, code, nodes=nodes, seconds=1)


@pytest.mark.slow
def test_a_worker_that_waits_tells_why_on_the_standard_error(lone_daemon: Daemon) -> None:
    """It has no key of an executor: in silence, nobody would know that it waits for one."""
    key = PrivateKey.generate()
    code = f"""
        import {{ Worker }} from "{PACKAGE / "index.js"}";
        import {{ fromEnvironment, serve }} from "{PACKAGE / "node.js"}";
        const worker = new Worker(fromEnvironment(), {{ name: "js-new", type: "js" }});
        await serve(worker.function("upper", ([text]) => text.toUpperCase()));
    """
    with subprocess.Popen(
        ["node", "--input-type=module", "-e", code],
        env=environ(lone_daemon, key),
        stderr=subprocess.PIPE,
        text=True,
    ) as worker:
        silent = threading.Timer(20, worker.kill)
        silent.start()
        try:
            assert worker.stderr is not None
            told = worker.stderr.readline()
        finally:
            silent.cancel()
            worker.send_signal(signal.SIGTERM)
    assert told.startswith("waiting: ")
    assert f"colony executor add js-new --type js --id {key.id} --approve" in told


@pytest.mark.slow
def test_a_cancel_reaches_the_function(lone_daemon: Daemon, tmp_path: Path) -> None:
    note = tmp_path / "note"
    with at_work(lone_daemon, "js-3", tmp_path / "store") as worker:
        done = submit(lone_daemon, "js-3", "waits", str(note))
        worker.heard("waits: begun")
        call(lone_daemon, "cancelprocessmsg", {"processid": done})
        worker.heard("is no longer ours: it was cancelled")
        assert note.read_text() == "it was cancelled"
        assert process(lone_daemon, done)["state"] == CANCELLED
        # Its slot is free again, and a client that gives up cancels its own process.
        code = """
            const stop = AbortSignal.timeout(1500);
            const found = await client.run("waits", [args.note], {type: "js-3", signal: stop})
              .catch((error) => error.name);
            return found;
        """
        assert script(lone_daemon, code, note=str(note)) == "TimeoutError"
        worker.heard("is no longer ours: it was cancelled", 2)
        # SIGTERM: what runs has the grace of a second, then it is told and fails.
        note.unlink()
        last = submit(lone_daemon, "js-3", "waits", str(note))
        worker.heard("waits: begun", 3)
        assert worker.end() == 0
        assert "stopped before the process had ended" in note.read_text()
        closed = process(lone_daemon, last)
        assert closed["state"] == FAILED
        assert closed["errors"] == ["the worker was stopped before the process had ended"]


# -- faults ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_worker_and_a_client_outlive_a_killed_daemon(
    make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    daemon = make_daemon("dev", COLONYD_FEDERATION__ENABLED="false").start()
    gate = tmp_path / "gate"
    with at_work(daemon, "js-4", tmp_path / "store", slots=2) as worker:
        done = submit(daemon, "js-4", "until", str(gate))
        worker.heard("until: begun")
        waited: list[Mapping[str, Any]] = []
        waiting = threading.Thread(target=lambda: waited.append(ended(daemon, done)))
        waiting.start()
        daemon.kill()
        gate.touch()
        worker.heard("the result is offered again")
        daemon.start()
        waiting.join(60)
        assert (waited[0]["state"], waited[0]["out"]) == (SUCCESSFUL, ["done"])
        assert ended(daemon, submit(daemon, "js-4", "upper", "again"))["out"] == ["AGAIN"]
        assert worker.end() == 0
    assert list((tmp_path / "store").iterdir()) == []


@pytest.mark.slow
def test_a_killed_workers_results_and_processes(lone_daemon: Daemon, tmp_path: Path) -> None:
    """A kept result is offered, what had begun fails, and what was never begun is run."""
    store, key = tmp_path / "store", PrivateKey.generate()
    with at_work(lone_daemon, "js-5", store, key=key) as worker:
        begun = submit(lone_daemon, "js-5", "waits", str(tmp_path / "note"))
        worker.heard("waits: begun")
        worker.kill()

    def assign() -> str:
        async def go() -> Any:
            async with lone_daemon.client() as client:
                fields = {"colonyname": "dev", "timeout": 5}
                return await client.call("assignprocessmsg", fields, key)

        return str(trio.run(go)["processid"])

    kept = submit(lone_daemon, "js-5", "upper", "x")
    assert assign() == kept
    (store / f"{kept}.json").write_text('{"out": ["kept"]}')
    (store / f"{'0' * 64}.json").write_text('{"out": ["torn')
    lost = submit(lone_daemon, "js-5", "upper", "lost")
    assert assign() == lost
    with at_work(lone_daemon, "js-5", store, key=key) as worker:
        assert ended(lone_daemon, kept)["out"] == ["kept"]
        assert ended(lone_daemon, lost)["out"] == ["LOST"]
        failed = ended(lone_daemon, begun)
        assert failed["errors"] == ["the worker was stopped before the process had ended"]
        assert worker.end() == 0
    assert [path.suffix for path in store.iterdir()] == [".unusable"]


# -- upstream's first library ---------------------------------------------------------------------

# As upstream's first README had it, but for the parentheses of `if`: without them it is no
# JavaScript, and no library can change that.
HELLOWORLD = """
let colonyid = "4787a5071856a4acf702b2ffcea422e3237a679c681314113d86139461290cf4"
let runtimeid = "3fc05cf3df4b494e95d6a3d297a34f19938f7daa7422ab0d4f794454133341ac"
let prvkey = "ddf7f7791208083b6a9ed975a72684f6406a269cfa36f1b1c32045c0a71fff05"

runtime.assign(colonyid, prvkey)
.then((process) => {
    if (process.spec.func == "helloworld") {
        let attr = {
            targetid: process.processid,
            targetcolonyid: colonyid,
            attributetype: output,
            key: "result",
            value: "helloworld"
        }
        runtime.addAttribute(attr, prvkey)
        runtime.closeProcess(process.processid, true, prvkey)
    }
})
.catch((err) => {
})
"""


@pytest.mark.slow
@pytest.mark.parametrize("typed", [True, False])
def test_upstreams_helloworld_worker_runs(
    make_daemon: Callable[..., Daemon], tmp_path: Path, typed: bool
) -> None:
    """Both forms that the README had: the attribute with a type, and without one. The attribute is
    slow on its way, and the program closes without waiting for it.
    """
    text = HELLOWORLD if typed else HELLOWORLD.replace("attributetype: output,\n", "")
    daemon = make_daemon("test", COLONYD_FEDERATION__ENABLED="false", **VARIABLES).start()
    conditions = {"colonyname": "test", "executortype": "cli"}
    spec = {"funcname": "helloworld", "conditions": conditions, "maxexectime": 60}

    async def submitted() -> Any:
        async with daemon.client() as client:
            key = PrivateKey.from_hex(VARIABLES["COLONIES_PRVKEY"])
            return await client.call("submitfuncspecmsg", {"spec": spec}, key)

    async def found(processid: str) -> Any:
        async with daemon.client() as client:
            key = PrivateKey.from_hex(VARIABLES["COLONIES_PRVKEY"])
            return await client.call("getprocessmsg", {"processid": processid}, key)

    processid = trio.run(submitted)["processid"]
    program = tmp_path / "helloworld.mjs"
    program.write_text(
        f"""
        import {{ ColonyRuntime, output }} from "{PACKAGE / "upstream.js"}";
        const runtime = new ColonyRuntime("127.0.0.1", "{daemon.port}", {{colony: "test"}});
        const send = fetch;
        globalThis.fetch = async (url, request) => {{
          const slow = request.body.includes("addattributemsg");
          if (slow) await new Promise((go) => setTimeout(go, 500));
          return send(url, request);
        }};
        {text}
        """
    )
    subprocess.run(["node", str(program)], check=True, timeout=60)
    closed = trio.run(found, processid)
    assert (closed["state"], closed["out"]) == (SUCCESSFUL, ["helloworld"])
    assert [each["value"] for each in closed["attributes"]] == ["helloworld"]


# -- a page and a service worker ------------------------------------------------------------------

PAGE = """<!doctype html><title>colonyd</title>
<script type="importmap">{"imports": {"colonyd": "./js/index.js",
 "@noble/curves/": "./js/node_modules/@noble/curves/",
 "@noble/hashes/": "./js/node_modules/@noble/hashes/"}}</script>"""


@pytest.mark.slow
def test_a_page_and_its_service_worker_serve_functions(lone_daemon: Daemon, tmp_path: Path) -> None:
    """Service workers have no import maps: there, the addresses are written out by the bundler's
    stand-in below.
    """
    require()
    (tmp_path / "js").symlink_to(PACKAGE)
    (tmp_path / "index.html").write_text(PAGE)
    flat = tmp_path / "flat"
    flat.mkdir()
    for source in PACKAGE.glob("*.js"):
        text = source.read_text("utf-8").replace('"@noble/', '"/flat/noble/')
        (flat / source.name).write_text(text)
    owner = lone_daemon.key("colony").hex
    server = f"http://127.0.0.1:{lone_daemon.port}"
    for name in ("curves", "hashes"):
        for source in (PACKAGE / "node_modules" / "@noble" / name).rglob("*.js"):
            relative = source.relative_to(PACKAGE / "node_modules" / "@noble")
            target = flat / "noble" / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(re.sub(r"(['\"])@noble/", r"\1/flat/noble/", source.read_text()))
    settings = (
        '{name: NAME, type: NAME, colony: "dev", approve: true, poll: 2, look: 0.5,'
        " identity: Identity.generate(), owner: new Identity(OWNER), store: new IndexedStore(),"
        " functions: {upper: ([text]) => text.toUpperCase()}}"
    )
    (tmp_path / "sw.js").write_text(
        'import { Client, Identity, IndexedStore, Worker } from "./flat/index.js";\n'
        f"const [NAME, OWNER] = ['js-sw', '{owner}'];\n"
        f"const worker = new Worker(new Client('{server}'), {settings});\n"
        'addEventListener("message", (event) => event.waitUntil(worker.run()));\n'
    )
    with running_browser() as browser, serving_files(tmp_path) as origin:
        browser.run(
            """
            const page = pages.page = await browser.newPage();
            await page.goto(args.origin);
            await page.evaluate(async ({server, owner, settings}) => {
              const {Client, Identity, IndexedStore, Worker} = await import("colonyd");
              const make = new Function("NAME", "OWNER", "Identity", "IndexedStore",
                `return ${settings}`);
              window.stop = new AbortController();
              const worker = new Worker(new Client(server),
                make("js-page", owner, Identity, IndexedStore));
              window.ended = worker.run(stop.signal);
              await navigator.serviceWorker.register("/sw.js", {type: "module"});
              (await navigator.serviceWorker.ready).active.postMessage("work");
            }, args);
            """,
            origin=origin,
            server=server,
            owner=owner,
            settings=settings,
        )
        for kind in ("js-page", "js-sw"):
            done = submit(lone_daemon, kind, "upper", kind)
            # A page waits for it over a WebSocket.
            out = browser.run(
                """
                return pages.page.evaluate(async ({server, key, processid}) => {
                  const {Client, Identity} = await import("colonyd");
                  const client = new Client(server,
                    {colony: "dev", identity: new Identity(key)});
                  return (await client.wait(processid, {seconds: 30})).out;
                }, args);
                """,
                server=server,
                key=lone_daemon.key("user").hex,
                processid=done,
            )
            assert out == [kind.upper()]
        browser.run("await pages.page.evaluate(async () => { stop.abort(); await ended })")


# -- the package ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_types_accept_what_is_right_and_find_what_is_wrong() -> None:
    tsc = PACKAGE / "node_modules" / ".bin" / "tsc"
    if not tsc.exists() and not os.environ.get("CI"):
        pytest.skip("no TypeScript here: `scripts/setup --test` installs it")
    for project in (PACKAGE, SCRIPTS):
        done = subprocess.run(
            [tsc, "-p", project], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout


def test_the_core_has_nothing_of_a_page_or_of_node() -> None:
    """A service worker has neither."""
    for name in ("index", "wire", "client", "worker", "stores", "upstream"):
        text = (PACKAGE / f"{name}.js").read_text("utf-8")
        assert not re.search(r"\b(document|window|localStorage\.|Buffer)\b(?!\s*:)", code_of(text))
        assert not re.search(r'from "node:|require\(', text)


def code_of(text: str) -> str:
    return re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.S)


def test_the_package_names_its_files_and_no_registry() -> None:
    told = json.loads((PACKAGE / "package.json").read_text())
    for target in told["exports"].values():
        for path in target.values() if isinstance(target, dict) else [target]:
            assert (PACKAGE / path).is_file()
    pinned = json.loads((PACKAGE / "package-lock.json").read_text())["packages"]
    for name, version in (told["dependencies"] | told["devDependencies"]).items():
        entry = pinned[f"node_modules/{name}"]
        assert entry["version"] == version
        assert entry["integrity"].startswith("sha512-")
        assert "resolved" not in entry


def test_the_same_libraries_sign_in_the_example() -> None:
    example = REPOSITORY / "docs" / "examples" / "browser-worker" / "package.json"
    ours = json.loads((PACKAGE / "package.json").read_text())["dependencies"]
    theirs = json.loads(example.read_text())["dependencies"]
    assert theirs == ours | {"colonyd": "file:../../../js"}


# -- the README -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_readmes_examples_run(lone_daemon: Daemon, tmp_path: Path) -> None:
    """Its worker serves its client, as they stand there."""
    blocks = re.findall(
        r"<!-- file: (\S+) -->\n```js\n(.*?)```",
        (PACKAGE / "README.md").read_text("utf-8"),
        re.S,
    )
    assert [name for name, _ in blocks] == ["worker.mjs", "client.mjs", "more.mjs"]
    for name, text in blocks:
        (tmp_path / name).write_text(text)
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "colonyd").symlink_to(PACKAGE)
    key = PrivateKey.generate()
    executor = {
        "executorname": "js-1-readme",
        "executorid": key.id,
        "executortype": "js",
        "colonyname": "dev",
    }
    call(lone_daemon, "addexecutormsg", {"executor": executor}, "colony")
    name = {"colonyname": "dev", "executorname": "js-1-readme"}
    call(lone_daemon, "approveexecutormsg", name, "colony")
    variables = environ(lone_daemon, key)
    with subprocess.Popen(["node", "worker.mjs"], cwd=tmp_path, env=variables) as worker:
        try:
            for program, wanted in (("client.mjs", "HELLO\n"), ("more.mjs", "A+B\n")):
                done = subprocess.run(
                    ["node", program],
                    cwd=tmp_path,
                    env=environ(lone_daemon),
                    capture_output=True,
                    text=True,
                    timeout=60,
                    check=False,
                )
                assert (done.stdout, done.stderr) == (wanted, "")
        finally:
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(60) == 0
