// What a program asks of a colony: processes, workflows, logs, channels, files.

import { sha256 } from "@noble/hashes/sha2.js";
import { bytesToHex, utf8ToBytes } from "@noble/hashes/utils.js";
import { Refused, Unreachable, Wire, decode, fromBase64, sleep, unreachable } from "./wire.js";

/** The states of a process and of a workflow. */
export const State = Object.freeze({ WAITING: 0, RUNNING: 1, SUCCESSFUL: 2, FAILED: 3, CANCELLED: 4 });

const SOCKETS = 16; // subscriptions of one client at a time; whoever comes later polls
const QUIET = 1; // seconds between two looks without a subscription
const SURE = 10; // seconds between two looks beside one: it may be lost in silence
const LONGEST_PAUSE = 10; // seconds of back-off while the server is away
const LISTEN = 600; // seconds that a subscription lasts before it is made anew
const PAGE = 100; // log lines of one call
const ANOTHER_FAILED = "another node of the workflow failed"; // a daemon's error of those others
const QUIET_TRANSFER = 60; // seconds without an answer after which a transfer counts as lost

/** A process, or a node of a workflow, ended without success. `process` is what the server says. */
export class ProcessFailed extends Error {
  name = "ProcessFailed";

  constructor(process) {
    const how = process.state === State.CANCELLED ? "was cancelled" : "failed";
    const why = (process.errors ?? []).join("; ");
    super(`process ${process.processid} (${process.spec?.funcname}) ${how}${why && `: ${why}`}`);
    this.process = process;
  }
}

export class Client {
  #wire;
  #sockets = 0;

  /**
   * `url`: the base address of a server. `identity` signs what no other identity is given for, and
   * `colony` is the name of the colony that is meant without another one.
   */
  constructor(url, { identity = null, colony = "", audience = "" } = {}) {
    if (identity && typeof identity.sign !== "function") {
      throw new Error("identity: give new Identity(key), with the private key in hex");
    }
    this.#wire = new Wire(url, audience);
    this.url = this.#wire.url;
    this.identity = identity;
    this.colony = colony;
  }

  /** Make one call of the protocol and return its result. Throws Refused or Unreachable. */
  async call(payloadtype, fields, identity = this.identity, options = {}) {
    if (!identity) throw new Error(`${payloadtype} must be signed: give the client an identity`);
    return this.#wire.call(payloadtype, fields, identity, options);
  }

  /** The same server and colony for another identity. */
  as(identity, colony = this.colony) {
    const client = new Client(this.#wire.base, { identity, colony });
    client.#wire = this.#wire;
    return client;
  }

  /**
   * Subscribe, and call back with each value that comes. The promise rejects when the subscription is
   * over: refused, after the time in its fields, or with its connection.
   */
  async listen(payloadtype, fields, identity, callback) {
    const socket = await this.#wire.subscribe(payloadtype, fields, identity);
    if (!socket) throw new Error("no WebSocket here: Node.js has it from version 22 on");
    return new Promise((_, reject) => {
      socket.addEventListener("message", ({ data }) => {
        try {
          callback(decode(200, data));
        } catch (error) {
          reject(error);
          socket.close();
        }
      });
      socket.addEventListener("close", () => reject(new Unreachable(`${this.url}: the subscription is over`)));
    });
  }

  // A call of this client's identity that is repeated after lost answers.
  async #ask(payloadtype, fields, signal) {
    return this.call(payloadtype, fields, this.identity, { signal, attempts: 3 });
  }

  #home() {
    if (!this.colony) throw new Error("which colony? give the client the name of one");
    return this.colony;
  }

  // -- processes ------------------------------------------------------------------------------

  /** Make the spec of a function. `options`: see the types. */
  spec(funcname, args = [], options = {}) {
    const colonyname = this.#home();
    const { type = "", executors, kwargs, conditions, ...fields } = options;
    const { executortype = type, executornames = executors } = conditions ?? {};
    if (!executortype && !executornames?.length) {
      throw new Error(`${funcname}: for executors of which type? give { type }`);
    }
    return {
      funcname,
      args,
      ...(kwargs && { kwargs }),
      ...fields,
      conditions: {
        colonyname,
        executortype: type,
        ...(executors && { executornames: executors }),
        ...conditions,
      },
    };
  }

  /** Submit a function, or a whole spec. Returns the process, which waits. */
  async submit(what, args = [], { signal, ...options } = {}) {
    const spec = typeof what === "string" ? this.spec(what, args, options) : what;
    return this.#ask("submitfuncspecmsg", { spec }, signal);
  }

  /** Submit a function, wait, and return its output: a list. Throws ProcessFailed.
   *
   * When `signal` aborts, the process is cancelled. */
  async run(what, args = [], { seconds, signal, ...options } = {}) {
    const { processid } = await this.submit(what, args, { signal, ...options });
    try {
      const ended = await this.wait(processid, { seconds, signal });
      if (ended.state !== State.SUCCESSFUL) throw new ProcessFailed(ended);
      return ended.out ?? [];
    } catch (error) {
      if (signal?.aborted) await this.cancel(processid).catch(() => {});
      throw error;
    }
  }

  async process(processid, { signal } = {}) {
    return this.#ask("getprocessmsg", { processid }, signal);
  }

  /** Cancel a process that waits or runs. */
  async cancel(processid) {
    await this.#ask("cancelprocessmsg", { processid });
  }

  /** Wait until a process has ended, and return it. Outlives restarts of the server. */
  async wait(processid, { seconds, signal, every } = {}) {
    return this.until(processid, (process) => process.state >= State.SUCCESSFUL, {
      seconds,
      signal,
      every,
    });
  }

  /**
   * Wait until `condition(process)` is true of a process; returns it. `every` is the seconds between
   * two looks. Throws what `signal` was aborted with, or an error after `seconds`.
   */
  async until(processid, condition, { seconds, signal, every, state = State.SUCCESSFUL } = {}) {
    const bound = seconds === undefined ? undefined : AbortSignal.timeout(seconds * 1000);
    const either = [signal, bound].filter(Boolean);
    const end = either.length ? AbortSignal.any(either) : undefined;
    const news = new News();
    let listening = null;
    let pause = 0.2;
    try {
      for (;;) {
        if (bound?.aborted) throw new Error(`process ${processid} has not ended in ${seconds} s`);
        signal?.throwIfAborted();
        try {
          listening ??= await this.#listen(processid, state, news, end);
          const process = await this.call("getprocessmsg", { processid }, this.identity, {
            signal: end,
          });
          if (condition(process)) return process;
          pause = 0.2;
        } catch (error) {
          if (!isPassing(error)) throw error;
          await sleep(pause, end);
          pause = Math.min(pause * 2, LONGEST_PAUSE);
          continue;
        }
        await news.wait(every ?? (listening.open ? SURE : QUIET), end);
        if (!listening.open && listening.socket) {
          listening.close();
          listening = null; // made anew: the server was restarted, or time was up
          await sleep(QUIET / 2, end);
        }
      }
    } finally {
      listening?.close();
    }
  }

  /** Listen for news of a process; without a WebSocket, `open` is false and there are none. */
  async #listen(processid, state, news, signal) {
    if (this.#sockets >= SOCKETS) return { open: false, socket: null, close() {} };
    this.#sockets += 1;
    const fields = { processid, state, timeout: LISTEN, colonyname: this.colony, executortype: "" };
    const listening = {
      open: false,
      socket: null,
      close: () => {
        listening.close = () => {}; // once is enough
        this.#sockets -= 1;
        listening.socket?.close();
      },
    };
    try {
      const identity = this.identity;
      listening.socket = await this.#wire.subscribe("subscribeprocessmsg", fields, identity, { signal });
    } catch (error) {
      listening.close();
      throw error;
    }
    if (listening.socket) {
      listening.open = true;
      listening.socket.addEventListener("message", () => news.tell());
      listening.socket.addEventListener("close", () => {
        listening.open = false;
        news.tell();
      });
    }
    return listening;
  }

  /** The attributes of a process: an object of keys and values. */
  async attributes(processid) {
    const { attributes } = await this.process(processid);
    return Object.fromEntries((attributes ?? []).map(({ key, value }) => [key, value]));
  }

  /** Add an attribute to a process that this identity runs. */
  async addAttribute(processid, key, value) {
    const attribute = { targetid: processid, targetcolonyname: this.colony, key, value, attributetype: 1 };
    return this.#ask("addattributemsg", { attribute });
  }

  /** The log of a process, as its lines come, until the process has ended and all were read. */
  async *logs(processid, { signal, every = QUIET } = {}) {
    let since = 0;
    let seen = new Set();
    let pause = every;
    for (let ended = false; ; ) {
      signal?.throwIfAborted();
      let rows;
      let over = ended;
      try {
        // The state first: after it has ended, nothing is logged any more.
        over ||= (await this.process(processid, { signal })).state >= State.SUCCESSFUL;
        const fields = { colonyname: this.#home(), processid, count: PAGE, since };
        rows = (await this.#ask("getlogsmsg", fields, signal)) ?? [];
      } catch (error) {
        if (!isPassing(error)) throw error;
        await sleep(pause, signal);
        pause = Math.min(pause * 2, LONGEST_PAUSE);
        continue;
      }
      pause = every;
      ended = over;
      const fresh = rows.filter((row) => !seen.has(`${row.timestamp} ${row.message}`));
      yield* fresh;
      if (rows.length) {
        seen = new Set(rows.map((row) => `${row.timestamp} ${row.message}`));
        // JavaScript's numbers are 256 ns apart here, so the last lines are asked for again.
        since = Math.max(since, rows.at(-1).timestamp - 1024);
      }
      if (rows.length >= PAGE && fresh.length) continue;
      if (ended) return;
      await sleep(every, signal);
    }
  }

  // -- workflows ------------------------------------------------------------------------------

  /**
   * Submit a workflow. `nodes`: name → {func, args, after, ...options of a spec}, where `after` names
   * the nodes whose outputs become the input of this one. Returns the graph.
   */
  async submitWorkflow(nodes, { signal } = {}) {
    const specs = Object.entries(nodes).map(([nodename, { func, args, after = [], ...options }]) => {
      for (const name of after) {
        if (!Object.hasOwn(nodes, name)) {
          throw new Error(`node ${nodename} comes after ${name}, but there is no such node`);
        }
      }
      const conditions = { ...options.conditions, dependencies: after };
      return { nodename, ...this.spec(func, args, { ...options, conditions }) };
    });
    const spec = { colonyname: this.#home(), functionspecs: specs };
    return this.#ask("submitworkflowspecmsg", { spec }, signal);
  }

  /**
   * Wait until a workflow has ended: node's name → process. Throws ProcessFailed of the node that made
   * it fail; others may run on then. Outlives restarts of the server.
   */
  async waitWorkflow(graphid, { seconds, signal } = {}) {
    const bound = seconds === undefined ? undefined : AbortSignal.timeout(seconds * 1000);
    const either = [signal, bound].filter(Boolean);
    const end = either.length ? AbortSignal.any(either) : undefined;
    const read = (payloadtype, fields) => this.call(payloadtype, fields, this.identity, { signal: end });
    for (let pause = 0.05, away = 0.2; ; ) {
      signal?.throwIfAborted();
      if (bound?.aborted) throw new Error(`workflow ${graphid} has not ended in ${seconds} s`);
      try {
        const graph = await read("getprocessgraphmsg", { processgraphid: graphid });
        away = 0.2;
        if (graph.state >= State.SUCCESSFUL) {
          const nodes = [];
          for (const processid of graph.processids) nodes.push(await read("getprocessmsg", { processid }));
          if (graph.state !== State.SUCCESSFUL) throw new ProcessFailed(causeOf(nodes));
          return Object.fromEntries(nodes.map((node) => [node.spec.nodename, node]));
        }
        await sleep(pause, end);
        pause = Math.min(pause * 1.6, QUIET);
      } catch (error) {
        if (!isPassing(error)) throw error;
        await sleep(away, end);
        away = Math.min(away * 2, LONGEST_PAUSE);
      }
    }
  }

  /** Submit a workflow and wait for it: node's name → output. Throws ProcessFailed. */
  async runWorkflow(nodes, options = {}) {
    const graph = await this.submitWorkflow(nodes, options);
    const ended = await this.waitWorkflow(graph.processgraphid, options);
    return Object.fromEntries(Object.entries(ended).map(([name, { out }]) => [name, out ?? []]));
  }

  async cancelWorkflow(graphid) {
    await this.#ask("cancelprocessgraphmsg", { processgraphid: graphid });
  }

  // -- channels -------------------------------------------------------------------------------

  /** A channel of a process, which its spec names in `channels`. */
  channel(processid, name) {
    return new Channel(this, processid, name);
  }

  // -- files ----------------------------------------------------------------------------------

  /** Store bytes, or a text, as the newest version of a file. */
  async putFile(label, name, data) {
    const bytes = typeof data === "string" ? utf8ToBytes(data) : new Uint8Array(data);
    const checksum = bytesToHex(sha256(bytes));
    const wanted = { colonyname: this.#home(), method: "PUT", checksum, size: bytes.length };
    let ticket = await this.#ask("fileticketmsg", wanted);
    let offset = ticket.offset;
    for (let tries = 0; !ticket.complete; ) {
      try {
        const part = bytes.subarray(offset, offset + ticket.partsize);
        const span = part.length ? `${offset}-${offset + part.length - 1}` : "*";
        const headers = { "content-range": `bytes ${span}/${bytes.length}` };
        const reply = await this.#transfer(ticket, { method: "PUT", body: part, headers });
        const text = await reply.text();
        if (reply.status !== 200) decode(reply.status, text);
        ({ offset } = ticket = { ...ticket, ...JSON.parse(text) });
        tries = 0;
      } catch (error) {
        if (!isPassing(error) && ![403, 409].includes(error.status)) throw error;
        if (++tries > 5) throw error;
        await sleep(0.2 * 2 ** tries);
        ({ offset } = ticket = await this.#ask("fileticketmsg", wanted));
      }
    }
    const file = {
      colonyname: this.colony,
      label,
      name,
      size: bytes.length,
      checksum,
      checksumalg: "SHA256",
      ref: { protocol: "colonyd", s3object: { object: checksum } },
    };
    return this.#ask("addfilemsg", { file });
  }

  /** The bytes of the newest version of a file, checked against its checksum. */
  async getFile(label, name) {
    const fields = { colonyname: this.#home(), label, name, latest: true };
    const found = await this.#ask("getfilemsg", fields).catch((error) => {
      if (error.status !== 404) throw error;
      return [];
    });
    const [file] = found ?? [];
    if (!file) throw new Refused(404, `there is no file ${name} under ${label}`);
    if (file.ref?.protocol !== "colonyd") {
      throw new Error(`the bytes of ${name} lie in S3; this package reads those of a daemon alone`);
    }
    const wanted = { colonyname: this.colony, method: "GET", checksum: file.checksum, size: file.size };
    for (let tries = 0; ; tries += 1) {
      try {
        const ticket = await this.#ask("fileticketmsg", wanted);
        const reply = await this.#transfer(ticket, { method: "GET" });
        if (reply.status !== 200) decode(Math.max(reply.status, 400), await reply.text());
        const bytes = new Uint8Array(await reply.arrayBuffer().catch((error) => {
          throw unreachable(this.url, error);
        }));
        if (bytesToHex(sha256(bytes)) !== file.checksum) {
          throw new Error(`${name}: the bytes that arrived are not those of the checksum`);
        }
        return bytes;
      } catch (error) {
        if (!isPassing(error) || tries >= 5) throw error;
        await sleep(0.2 * 2 ** tries);
      }
    }
  }

  async #transfer(ticket, request) {
    // Behind the server's address, "@host/" would be at another one.
    if (!ticket.url.startsWith("/") || ticket.url.startsWith("//")) {
      throw new Error(`the server names no path of its own: ${ticket.url.slice(0, 80)}`);
    }
    const url = new URL(ticket.url, this.url);
    const bound = AbortSignal.timeout(QUIET_TRANSFER * 1000);
    try {
      return await fetch(url, { ...request, credentials: "omit", cache: "no-store", signal: bound });
    } catch (error) {
      throw unreachable(url.origin, error, bound);
    }
  }
}

/** The messages between whoever submitted a process and whoever runs it. */
class Channel {
  #sent = 0;

  constructor(client, processid, name) {
    this.client = client;
    this.processid = processid;
    this.name = name;
  }

  #fields(more) {
    return { processid: this.processid, name: this.name, ...more };
  }

  /** Send a text. `type` is "" for data, "end" or "error". */
  async send(text, { type = "", inreplyto = 0 } = {}) {
    const sequence = ++this.#sent;
    const bytes = [...utf8ToBytes(text)];
    const fields = this.#fields({ sequence, inreplyto, payload: bytes, payloadtype: type });
    await this.client.call("channelappendmsg", fields, undefined, { attempts: 3 });
  }

  /** The messages after the first `after`; each with its `text`. */
  async read(after = 0, limit = 100) {
    const fields = this.#fields({ afterseq: after, limit });
    const rows = (await this.client.call("channelreadmsg", fields, undefined, { attempts: 3 })) ?? [];
    return rows.map((row) => ({
      ...row,
      text: new TextDecoder().decode(fromBase64(row.payload ?? "")),
    }));
  }

  /** The messages as they come, until one of type "end" or "error", or until `signal` aborts. */
  async *messages({ after = 0, signal, every = 0.5 } = {}) {
    for (let at = after; ; ) {
      signal?.throwIfAborted();
      const rows = await this.read(at);
      for (const row of rows) {
        yield row;
        if (row.type === "end" || row.type === "error") return;
      }
      at += rows.length;
      if (!rows.length) await sleep(every, signal);
    }
  }
}

/** The node that made its workflow fail: with it, a daemon ends those that wait for others. */
function causeOf(nodes) {
  const bad = nodes.filter(({ state }) => state === State.FAILED || state === State.CANCELLED);
  const own = ({ errors }) => errors?.length && errors[0] !== ANOTHER_FAILED;
  return bad.find(own) ?? bad[0] ?? nodes[0];
}

/** Whether the same call may succeed later. */
export function isPassing(error) {
  if (error instanceof Unreachable) return true;
  return error instanceof Refused && (error.status === 408 || error.status === 429 || error.status >= 500);
}

/** Lets one side wait for what another tells. */
class News {
  #told = false;
  #wake = null;

  tell() {
    this.#told = true;
    this.#wake?.abort();
  }

  async wait(seconds, signal) {
    if (!this.#told) {
      this.#wake = new AbortController();
      await sleep(seconds, signal ? AbortSignal.any([signal, this.#wake.signal]) : this.#wake.signal);
    }
    this.#told = false;
  }
}
