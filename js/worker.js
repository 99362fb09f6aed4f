// An executor: gets registered, waits for approval, takes processes, runs functions, answers.

import { isPassing, State } from "./client.js";
import { MemoryStore } from "./stores.js";
import { Refused, Unreachable, sleep, toJson } from "./wire.js";

const POLL = 20; // seconds of one long poll
const LOOK = 5; // seconds between two looks at a running process: a heartbeat, and sees a cancel
const APPROVAL = 2; // seconds between two looks at whether the owner has approved
const FIRST_PAUSE = 0.5; // seconds of back-off while the server is away; doubles
const LONGEST_PAUSE = 30;
const CLOSING = 60; // seconds of one try to close: an output may be large, and the way slow
const REMEMBERED = 1000; // processes that are known to be done: none is run twice
const LOG_EVERY = 1; // seconds between two messages of one process's log
const LOG_MESSAGE = 16_000; // characters of one message
const LOG_PROCESS = 1_000_000; // characters of all messages of one process
const LONGEST_ERROR = 12_000; // characters of what a function threw
const [PENDING, APPROVED, REJECTED] = [0, 1, 2]; // states of an executor
const STOPPED = "the worker was stopped before the process had ended";

/** Offers functions to a colony. */
export class Worker {
  #functions = new Map();
  #owner;
  #approve;
  #pause = FIRST_PAUSE;
  #away = false;
  #stopping = new AbortController();
  #leaving = new AbortController();
  #active = new Map(); // process id → execution
  #done = new Set();
  #joined = null; // the promise of the registration that is under way, or was the last
  #stop = null; // the signal of the present run
  #lost = true; // whether processes may be ours that we have not heard of

  /** `settings` are described with their defaults in the types. */
  constructor(client, settings) {
    const { owner = null, approve = false, functions = {}, identity = client.identity, ...rest } = settings;
    if (!identity) throw new Error("a worker needs an identity: give it, or its client, one");
    this.identity = identity;
    this.client = client.as(identity, rest.colony ?? client.colony);
    this.settings = { colony: client.colony, poll: POLL, look: LOOK, slots: 1, ...rest };
    for (const name of ["colony", "name", "type"]) {
      if (!this.settings[name]) throw new Error(`a worker needs a ${name}`);
    }
    this.store = this.settings.store ?? new MemoryStore();
    this.report = this.settings.report ?? (() => {});
    this.#owner = owner;
    this.#approve = approve;
    for (const [name, does] of Object.entries(functions)) this.function(name, does);
  }

  /** Offer a function: it gets (args, context) and returns the output. Returns the worker. */
  function(name, does) {
    if (typeof does !== "function") throw new Error(`${name} must be a function`);
    if (/^(Async)?GeneratorFunction$/.test(does.constructor?.name)) {
      throw new Error(`${name} is a generator, which has no result: return a list`);
    }
    this.#functions.set(name, does);
    return this;
  }

  /**
   * Take no more processes; those that run are finished first. After `seconds`, if given, their
   * functions are aborted and the processes fail.
   */
  stop({ seconds } = {}) {
    this.#stopping.abort();
    if (seconds === undefined) return;
    sleep(seconds, this.#leaving.signal).then(() => {
      for (const execution of this.#active.values()) execution.leave();
    });
  }

  /** Work until `signal` aborts, or `stop` is called. Throws nothing that time may heal. */
  async run(signal) {
    const stop = signal ? AbortSignal.any([signal, this.#stopping.signal]) : this.#stopping.signal;
    this.#stop = stop;
    this.#lost = true;
    const slots = Array.from({ length: this.settings.slots }, () => this.#slot(stop));
    try {
      await Promise.all(slots);
    } finally {
      // One slot failed: the others go, too.
      this.#stopping.abort();
      await Promise.allSettled(slots);
      this.#leaving.abort();
      this.#stopping = new AbortController();
      this.#leaving = new AbortController();
      this.#joined = null;
    }
    this.report("stopped", "stopped");
  }

  async #slot(stop) {
    while (!stop.aborted) {
      try {
        await this.#join(stop);
        if (stop.aborted) break;
        if (this.#lost) await this.#adopt(stop);
        const process = await this.#assign(stop);
        if (process) await this.#work(process);
      } catch (error) {
        if (stop.aborted && (error instanceof Unreachable || error instanceof Refused)) break;
        if (error instanceof Refused && error.status === 403 && this.#joined) {
          this.#joined = null; // rejected, removed, or not approved any more
          this.report("waiting", error.message);
          await sleep(APPROVAL, stop);
          continue;
        }
        if (!(error instanceof Unreachable || error instanceof Refused)) throw error;
        this.#lost = true;
        await this.#backOff(error, stop);
      }
    }
  }

  async #backOff(error, stop) {
    // Spread, so that not all workers of a server that returns knock at the same moment.
    const seconds = this.#pause * (0.75 + Math.random() / 2);
    const state = error instanceof Refused ? "refused" : "offline";
    this.#away = true;
    this.report(state, `${error.message}; again in ${seconds.toFixed(1)} s`);
    this.#pause = Math.min(this.#pause * 2, LONGEST_PAUSE);
    await sleep(seconds, stop);
  }

  // -- registration -------------------------------------------------------------------------

  /** Return when the colony knows and has approved us, or when `stop` aborts. */
  #join(stop) {
    // All slots wait for one registration.
    this.#joined ??= this.#register(stop).catch((error) => {
      this.#joined = null;
      throw error;
    });
    return this.#joined;
  }

  async #register(stop) {
    const { name, type, colony } = this.settings;
    let said = null;
    while (!stop.aborted) {
      const mine = await this.#me(stop);
      if (mine.executortype !== undefined && mine.executortype !== type) {
        throw new Error(
          `executor ${name} is registered with type ${mine.executortype}; use that type, or another name`,
        );
      }
      if (mine.state === APPROVED) {
        this.#owner = null; // the most powerful key of a colony stays no longer than needed
        await this.#offer(stop);
        this.report("ready", `waiting for work of type ${type}`);
        return;
      }
      if (mine.state !== PENDING && mine.state !== REJECTED && this.#owner) {
        await this.#add(stop);
        continue;
      }
      if (mine.state === PENDING && this.#owner && this.#approve) {
        const fields = { colonyname: colony, executorname: name };
        await this.client.call("approveexecutormsg", fields, this.#owner, { signal: stop });
        continue;
      }
      const words = {
        [PENDING]: `registered; the owner approves with: colony executor approve ${name}`,
        [REJECTED]: `rejected; the owner may still: colony executor approve ${name}`,
      };
      const add = `colony executor add ${name} --type ${type} --id ${this.identity.id} --approve`;
      const now = words[mine.state] ?? `${mine.why}; the owner registers it with: ${add}`;
      if (now !== said) this.report("waiting", now);
      said = now;
      await sleep(APPROVAL, stop);
    }
  }

  /** What the colony knows of us; when that is nothing, only `why`. */
  async #me(signal) {
    try {
      const fields = { colonyname: this.settings.colony };
      const all = await this.client.call("getexecutorsmsg", fields, this.identity, { signal });
      return all.find((executor) => executor.executorid === this.identity.id) ?? { why: "not registered" };
    } catch (error) {
      if (error instanceof Refused && error.status === 403) return { why: error.message };
      throw error;
    }
  }

  async #add(signal) {
    const executor = {
      executorid: this.identity.id,
      executorname: this.settings.name,
      executortype: this.settings.type,
      colonyname: this.settings.colony,
    };
    try {
      await this.client.call("addexecutormsg", { executor }, this.#owner, { signal });
      this.report("waiting", `registered as ${this.settings.name}`);
    } catch (error) {
      if (!(error instanceof Refused)) throw error; // tried again, with the same key
      this.report("waiting", `not registered: ${error.message}`);
      this.#owner = null;
    }
    if (!this.#approve) this.#owner = null;
  }

  /** List our functions with the colony, so that others find them. */
  async #offer(signal) {
    const { colony, name, type } = this.settings;
    const where = { colonyname: colony, executorname: name };
    const rows = (await this.client.call("getfunctionsmsg", where, this.identity, { signal })) ?? [];
    const there = new Set(rows.map((row) => row.funcname));
    for (const funcname of this.#functions.keys()) {
      if (there.has(funcname)) continue;
      const fun = { ...where, executortype: type, funcname };
      await this.client.call("addfunctionmsg", { fun }, this.identity, { signal });
    }
  }

  // -- assignment ---------------------------------------------------------------------------

  /** One long poll: a process, or null when there was none. */
  async #assign(signal) {
    const { colony, poll } = this.settings;
    const fields = { colonyname: colony, timeout: poll };
    const began = Date.now();
    try {
      const bounds = { signal, seconds: poll + 15 };
      const process = await this.client.call("assignprocessmsg", fields, this.identity, bounds);
      this.#pause = FIRST_PAUSE;
      return process;
    } catch (error) {
      // 404: none came in time. 408 and 503: the colony hands out nothing at the moment.
      if (!(error instanceof Refused) || ![404, 408, 503].includes(error.status)) throw error;
      // A server that says so at once is not to be hammered.
      if (Date.now() - began < 1000) await sleep(1, signal);
      return null;
    }
  }

  /**
   * Offer kept results, and run what is ours without our knowing: an assignment whose reply was lost.
   * What was begun by an earlier run of this worker fails instead: it may have had effects.
   */
  async #adopt(stop) {
    this.#lost = false;
    try {
      const kept = new Map(await this.store.entries());
      for (const [processid, result] of kept) {
        if (this.#active.has(processid) || result.begun) continue;
        await this.#close(processid, result);
      }
      const mine = await this.#assigned(stop);
      if (this.#away) this.report("ready", "the node is back");
      this.#away = false;
      this.#pause = FIRST_PAUSE;
      for (const [processid, result] of kept) {
        if (!result.begun || this.#active.has(processid)) continue;
        if (mine.some((process) => process.processid === processid)) {
          await this.#close(processid, { errors: [STOPPED] });
        } else {
          await this.store.delete(processid);
        }
      }
      for (const process of mine) await this.#work(process);
    } catch (error) {
      this.#lost = true;
      throw error;
    }
  }

  /** The running processes that are ours. Of this identity, only one worker may run. */
  async #assigned(signal) {
    const { colony, type } = this.settings;
    const fields = { colonyname: colony, count: 100, state: State.RUNNING, executortype: type };
    const all = (await this.client.call("getprocessesmsg", fields, this.identity, { signal })) ?? [];
    return all.filter((process) => process.assignedexecutorid === this.identity.id);
  }

  // -- one process --------------------------------------------------------------------------

  async #work(process) {
    const { processid, spec } = process;
    // Two slots may learn of it: one by the reply, one by `#adopt`.
    if (this.#active.has(processid) || this.#done.has(processid)) return;
    const execution = new Execution(this, process);
    this.#active.set(processid, execution);
    try {
      const call = `${spec.funcname}(${execution.args.map((arg) => JSON.stringify(arg))})`;
      this.report("working", `${processid.slice(0, 8)} ${call}`);
      await this.#keep(processid, { begun: true });
      const watching = this.#watch(execution);
      const result = await execution.result(this.#functions.get(spec.funcname));
      execution.over.abort();
      await watching;
      if (execution.withdrawn) {
        await this.store.delete(processid);
        this.report("working", `${processid.slice(0, 8)} is no longer ours: ${execution.why}`);
        return;
      }
      await this.#keep(processid, result);
      const closed = await this.#close(processid, result);
      if (!closed) return;
      const what = closed.out ? `→ ${JSON.stringify(closed.out)}` : `failed: ${closed.errors[0]}`;
      this.report("ready", `${processid.slice(0, 8)} ${what}`);
    } finally {
      this.#active.delete(processid);
      this.#done.add(processid);
      if (this.#done.size > REMEMBERED) this.#done.delete(this.#done.values().next().value);
    }
  }

  /** Keep a result; a store that takes no more leaves it in memory alone. */
  async #keep(processid, result) {
    try {
      await this.store.set(processid, result);
    } catch (error) {
      this.report("not kept", `${processid.slice(0, 8)} ${error.message}`);
    }
  }

  /** Abort the function of a process that was cancelled, is past its deadline, or was given away. */
  async #watch(execution) {
    const { identity, client } = this;
    const gone = (process) =>
      process.state !== State.RUNNING || process.assignedexecutorid !== identity.id;
    try {
      const bounds = { signal: execution.over.signal, every: this.settings.look };
      const process = await client.until(execution.processid, gone, { ...bounds, state: State.CANCELLED });
      const cancelled = process.state === State.CANCELLED;
      execution.withdraw(cancelled ? "it was cancelled" : "its deadline is over, or another has it");
    } catch (error) {
      if (execution.over.signal.aborted) return;
      if (error instanceof Refused && error.status === 404) execution.withdraw("it was removed");
      else this.report("refused", `${execution.processid.slice(0, 8)} is not watched: ${error.message}`);
    }
  }

  /** Close until it is acknowledged: saying the same again does no harm. Returns what was taken. */
  async #close(processid, result) {
    let pause = FIRST_PAUSE;
    for (let told = result; ; ) {
      const kind = told.out ? "closesuccessfulmsg" : "closefailedmsg";
      try {
        // A stop doesn't end this try: what is done should be told.
        await this.client.call(kind, { processid, ...told }, this.identity, { seconds: CLOSING });
        await this.store.delete(processid);
        this.#pause = FIRST_PAUSE;
        return told;
      } catch (error) {
        if (!(error instanceof Refused || error instanceof Unreachable)) throw error;
        // A clock, or a server's id, can be set right: the result lasts until then.
        const amiss = /^(issuedat|audience)/.test(error.message);
        if (isPassing(error) || amiss) {
          const state = error instanceof Refused ? "refused" : "offline";
          this.report(state, `${error.message}; the result is offered again`);
          this.#away = this.#lost = true;
          if (this.#stop.aborted) return null; // the store has it for the next start
          await sleep(pause * (0.75 + Math.random() / 2), this.#stop);
          pause = Math.min(pause * 2, LONGEST_PAUSE);
          continue;
        }
        if (told.out && [400, 413].includes(error.status) && !error.message.endsWith("not running")) {
          told = { errors: [`the colony refused the output: ${error.message}`] };
          continue;
        }
        // Cancelled, or past its deadline and given to another: nobody wants it any more.
        this.report("working", `not taken: ${error.message}`);
        await this.store.delete(processid);
        return null;
      }
    }
  }
}

/** One process, and what its function may use: the context that it gets. */
class Execution {
  #worker;
  #aborting = new AbortController();
  #lines = [];
  #size = 0;
  #dropped = 0;
  #said = 0;
  #progress = null;
  #sending = null;
  over = new AbortController(); // the function has ended
  withdrawn = false;
  why = "";

  constructor(worker, process) {
    this.#worker = worker;
    this.process = process;
    this.processid = process.processid;
    const { args, kwargs, env } = process.spec;
    this.kwargs = kwargs ?? {};
    this.env = env ?? {};
    this.input = process.in ?? [];
    this.args = [...(args ?? []), ...this.input];
    const deadline = Date.parse(process.execdeadline);
    this.deadline = deadline > 0 ? new Date(deadline) : null;
    this.signal = this.#aborting.signal;
    this.context = Object.freeze({
      process,
      processid: process.processid,
      args: this.args,
      kwargs: this.kwargs,
      env: this.env,
      input: this.input,
      deadline: this.deadline,
      signal: this.signal,
      client: worker.client,
      log: (line) => this.#log(String(line)),
      progress: (line) => this.#tell(String(line)),
      attribute: (key, value) => this.#attribute(key, value),
      output: (...out) => this.#call("setoutputmsg", { processid: this.processid, out }),
      channel: (name) => worker.client.channel(this.processid, name),
    });
  }

  /** Run the function: {out} or {errors}. */
  async result(does) {
    let result;
    try {
      if (!does) throw new Error(`no function ${this.process.spec.funcname} here`);
      const given = does(this.args, this.context);
      const out = await Promise.race([given, this.#left()]);
      // What can't be sent fails the process, not the worker.
      result = JSON.parse(toJson({ out: listed(out) }));
    } catch (error) {
      result = { errors: [textOf(error)] };
    }
    await this.#flush();
    return result;
  }

  // Rejects when the worker leaves, or when the process is no longer ours.
  #left() {
    return new Promise((_, reject) => {
      this.signal.addEventListener("abort", () => reject(this.signal.reason), { once: true });
    });
  }

  withdraw(why) {
    this.withdrawn = true;
    this.why = why;
    this.#aborting.abort(new Error(why));
  }

  leave() {
    this.#aborting.abort(new Error(STOPPED));
  }

  async #call(kind, fields) {
    return this.#worker.client.call(kind, fields, this.#worker.identity, { attempts: 3 });
  }

  async #attribute(key, value) {
    const attribute = {
      targetid: this.processid,
      targetcolonyname: this.process.spec.conditions?.colonyname,
      key,
      value: String(value),
      attributetype: 1,
    };
    await this.#call("addattributemsg", { attribute });
  }

  #log(line) {
    if (this.#size + line.length > LOG_MESSAGE) this.#dropped += 1;
    else {
      this.#lines.push(line);
      this.#size += line.length + 1;
    }
    this.#soon();
  }

  #tell(line) {
    this.#progress = line.slice(0, LOG_MESSAGE);
    this.#soon();
  }

  #soon() {
    this.#sending ??= (async () => {
      await sleep(LOG_EVERY, this.over.signal);
      await this.#send();
      this.#sending = null;
    })();
  }

  async #flush() {
    this.over.abort();
    await this.#sending;
    await this.#send();
  }

  async #send() {
    const lines = this.#lines;
    if (this.#dropped) lines.push(`(${this.#dropped} lines left out: more than is logged of a second)`);
    if (this.#progress !== null) lines.push(`progress: ${this.#progress}`);
    [this.#lines, this.#size, this.#dropped, this.#progress] = [[], 0, 0, null];
    if (!lines.length || this.withdrawn || this.#said > LOG_PROCESS) return;
    let message = lines.join("\n");
    this.#said += message.length;
    if (this.#said > LOG_PROCESS) message += "\n(nothing more of this process is logged)";
    try {
      await this.#worker.client.call("addlogmsg", { processid: this.processid, message }, this.#worker.identity);
    } catch (error) {
      // These lines are lost: a process must not wait for its log.
      this.#worker.report("not logged", `${this.processid.slice(0, 8)} ${error.message}`);
    }
  }
}

/**
 * The text of what a function has thrown, which may be any value. Cut, and without halves of
 * characters: a server refuses those, and the process would never end.
 */
function textOf(error) {
  let text;
  try {
    text = String(error?.message ?? error) || String(error?.name ?? "an error without a message");
  } catch {
    text = "an error that can't be made a text";
  }
  return new TextDecoder().decode(new TextEncoder().encode(text.slice(0, LONGEST_ERROR)));
}

/** An output is a list; a single value is a list of one. */
function listed(value) {
  if (value === undefined) return [];
  return Array.isArray(value) ? value : [value];
}
