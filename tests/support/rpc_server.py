"""A small real HTTP server that speaks the Colonies envelope, for tests of the command line.

It checks signatures and keeps one queue in memory; it is no model of a colony beyond that.
"""

from __future__ import annotations

import base64
import json
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from colonyd.keys import recover_payload

UNSET = "0001-01-01T00:00:00Z"
Answer = Callable[[dict[str, Any], str], Any]


class Refuse(Exception):
    """An answer that is an error envelope, or the `page` of a proxy."""

    def __init__(self, status: int, message: str, *, page: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.page = page


class ColonyServer:
    """Answers by a table (payload type → function of payload and caller id) set by the test."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.seen: list[tuple[str, dict[str, Any], str]] = []
        self.drop: dict[str, int] = {}  # payload type → replies to lose after the effect
        self.lock = threading.Condition()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                kind, status, reply = outer.answer(body)
                if outer.drop.get(kind, 0) > 0:
                    outer.drop[kind] -= 1
                    self.close_connection = True
                    return
                self.send_response(status)
                self.send_header("content-length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, request: Any, client_address: Any) -> None:
                # A client that has what it wants leaves, whatever else it asked meanwhile.
                if not isinstance(sys.exception(), ConnectionError):
                    super().handle_error(request, client_address)

        self.http = Server(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.thread = threading.Thread(
            target=self.http.serve_forever, kwargs={"poll_interval": 0.01}
        )

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.http.server_address[1]}"

    def __enter__(self) -> ColonyServer:
        self.thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()

    def answer(self, body: bytes) -> tuple[str, int, bytes]:
        envelope = json.loads(body)
        kind = envelope["payloadtype"]
        payload = json.loads(base64.b64decode(envelope["payload"]))
        signature = envelope["signature"]
        caller = recover_payload(envelope["payload"], signature) if signature else ""
        if kind != "getserverinfomsg":  # asked before others, and as good as any to count
            with self.lock:
                self.seen.append((kind, payload, caller))
        try:
            if payload["msgtype"] != kind:
                raise Refuse(400, "msgtype differs")
            if kind not in self.answers:
                raise Refuse(403, f"{kind} is unknown")
            return kind, 200, seal(kind, self.answers[kind](payload, caller), False)
        except Refuse as refusal:
            if refusal.page:
                return kind, refusal.status, f"<html>{refusal.message}</html>".encode()
            failure = {"status": refusal.status, "message": refusal.message}
            return kind, refusal.status, seal("error", failure, True)

    def kinds(self) -> list[str]:
        return [kind for kind, _, _ in self.seen]


def seal(kind: str, value: Any, error: bool) -> bytes:
    payload = base64.b64encode(json.dumps(value).encode()).decode()
    return json.dumps({"payloadtype": kind, "payload": payload, "error": error}).encode()


class Queue:
    """Processes and executors of one colony: what `run`, `process` and `worker` need."""

    def __init__(self, server: ColonyServer) -> None:
        self.processes: dict[str, dict[str, Any]] = {}
        self.executors: dict[str, dict[str, Any]] = {}
        self.functions: list[dict[str, Any]] = []
        server.answers |= {
            "submitfuncspecmsg": self.submit,
            "getprocessmsg": lambda p, _: self._find(p),
            "getprocessesmsg": lambda p, _: [
                row for row in self.processes.values() if row["state"] == p["state"]
            ],
            "assignprocessmsg": self.assign,
            "closesuccessfulmsg": lambda p, c: self.close(p, c, 2),
            "closefailedmsg": lambda p, c: self.close(p, c, 3),
            "cancelprocessmsg": self.cancel,
            "getexecutorsmsg": self.list_executors,
            "addexecutormsg": self.add_executor,
            "approveexecutormsg": lambda p, _: self.decide(p, 1),
            "rejectexecutormsg": lambda p, _: self.decide(p, 2),
            "getfunctionsmsg": lambda p, _: self.functions,
            "addfunctionmsg": lambda p, _: self.functions.append(p["fun"]),
        }

    def add(self, name: str = "f", args: list[Any] | None = None, **changes: Any) -> str:
        processid = f"{len(self.processes):02x}" * 32
        spec = {
            "funcname": name,
            "args": args or [],
            "kwargs": {},
            "conditions": {"executortype": "cli", "colonyname": "dev"},
        }
        row = {"processid": processid, "state": 0, "spec": spec, "out": None, "errors": None}
        row |= {"assignedexecutorid": "", "initiatorname": "owner", "retries": 0}
        times = ("submissiontime", "starttime", "endtime", "execdeadline")
        row |= dict.fromkeys(times, UNSET)
        self.processes[processid] = row | changes
        return processid

    def _find(self, payload: dict[str, Any]) -> dict[str, Any]:
        if payload["processid"] not in self.processes:
            raise Refuse(404, "no such process")
        return self.processes[payload["processid"]]

    def submit(self, payload: dict[str, Any], caller: str) -> dict[str, Any]:
        nonce = payload["nonce"]
        for row in self.processes.values():
            if row.get("nonce") == nonce:
                return row
        return self.processes[self.add(spec=payload["spec"], nonce=nonce)]

    def assign(self, payload: dict[str, Any], caller: str) -> dict[str, Any]:
        for row in self.processes.values():
            if row["state"] == 0:
                row |= {"state": 1, "assignedexecutorid": caller}
                return row
        raise Refuse(404, "no process")

    def close(self, payload: dict[str, Any], caller: str, state: int) -> dict[str, Any]:
        row = self._find(payload)
        if row["assignedexecutorid"] != caller:
            raise Refuse(403, "not assigned to the caller")
        if row["state"] != 1 and row["state"] != state:
            raise Refuse(400, "not running")
        row |= {"state": state, "out": payload.get("out"), "errors": payload.get("errors")}
        return {}

    def cancel(self, payload: dict[str, Any], caller: str) -> dict[str, Any]:
        self._find(payload)["state"] = 4
        return {}

    def list_executors(self, payload: dict[str, Any], caller: str) -> list[dict[str, Any]]:
        return list(self.executors.values())

    def add_executor(self, payload: dict[str, Any], caller: str) -> dict[str, Any]:
        executor = payload["executor"]
        if executor["executorname"] in self.executors:
            raise Refuse(400, "the name is taken")
        self.executors[executor["executorname"]] = executor | {"state": 0}
        return dict(executor)

    def decide(self, payload: dict[str, Any], state: int) -> dict[str, Any]:
        self.executors[payload["executorname"]]["state"] = state
        return {}
