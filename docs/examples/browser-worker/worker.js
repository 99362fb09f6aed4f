// An executor: gets registered, waits for approval, takes processes, answers them. What is shown of
// that is up to the page, which hands in `report`.

import { Refused, Unreachable } from "./colonies.js";

const POLL = 20; // seconds of one long poll, unless the settings say otherwise
const LOOK = 2; // seconds between two looks at whether the owner has approved
const FIRST_PAUSE = 0.5; // seconds of back-off while the node is away; doubles
const LONGEST_PAUSE = 30;
const [PENDING, APPROVED, REJECTED] = [0, 1, 2]; // states of an executor
const RUNNING = 1; // state of a process

/** The functions that this page offers: name → function of (args, kwargs), giving the output. */
export const FUNCTIONS = new Map([
  ["helloworld", (args) => [`Hello, ${args[0] ?? "world"}!`]],
]);

export class Worker {
  #owner;
  #pause = FIRST_PAUSE;

  /**
   * `settings`: {colony, name, type, poll}. `owner`, if given, is the identity of the colony's owner; it
   * signs the registration, once, and is forgotten. `report(state, text)` hears of all that happens.
   */
  constructor(client, identity, settings, report, owner = null) {
    this.client = client;
    this.identity = identity;
    this.settings = { poll: POLL, ...settings };
    this.report = report;
    this.#owner = owner;
  }

  /** Work until `signal` aborts. A process that is being worked on is finished first. */
  async run(signal) {
    let joined = false;
    let lost = true; // whether processes may be ours that we have not heard of
    while (!signal.aborted) {
      try {
        if (!joined) {
          await this.#join(signal);
          if (signal.aborted) break;
          joined = true;
          this.report("ready", `waiting for work of type ${this.settings.type}`);
        }
        if (lost) {
          // An assignment whose reply got lost is ours all the same.
          const mine = await this.#assigned(signal);
          if (this.#pause !== FIRST_PAUSE) this.report("ready", "the node is back");
          this.#pause = FIRST_PAUSE;
          for (const process of mine) await this.#work(process, signal);
          lost = false;
        }
        const process = await this.#assign(signal);
        if (process) await this.#work(process, signal);
      } catch (error) {
        if (signal.aborted) break;
        if (error instanceof Refused && error.status === 403 && joined) {
          joined = false; // rejected, removed, or not approved any more
          this.report("waiting", error.message);
          await sleep(LOOK, signal);
          continue;
        }
        if (!(error instanceof Unreachable || error instanceof Refused)) throw error;
        lost = true;
        await this.#backOff(error, signal);
      }
    }
    this.report("stopped", "stopped");
  }

  async #backOff(error, signal) {
    // Spread, so that not all workers of a node that returns knock at the same moment.
    const seconds = this.#pause * (0.75 + Math.random() / 2);
    const state = error instanceof Refused ? "refused" : "offline";
    this.report(state, `${error.message}; again in ${seconds.toFixed(1)} s`);
    this.#pause = Math.min(this.#pause * 2, LONGEST_PAUSE);
    await sleep(seconds, signal);
  }

  // -- registration -------------------------------------------------------------------------

  /** Return when the colony knows and has approved us, or when `signal` aborts. */
  async #join(signal) {
    const { name, type } = this.settings;
    let said = null;
    while (!signal.aborted) {
      const mine = await this.#me(signal);
      if (mine.state === APPROVED) {
        this.#owner = null;
        return;
      }
      if (mine.state !== PENDING && mine.state !== REJECTED && this.#owner) {
        await this.#register(signal);
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
      await sleep(LOOK, signal);
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

  async #register(signal) {
    const executor = {
      executorid: this.identity.id,
      executorname: this.settings.name,
      executortype: this.settings.type,
      colonyname: this.settings.colony,
    };
    const owner = this.#owner;
    try {
      await this.client.call("addexecutormsg", { executor }, owner, { signal });
      this.report("waiting", `registered as ${this.settings.name}`);
    } catch (error) {
      if (!(error instanceof Refused)) throw error; // tried again, with the same key
      this.report("waiting", `not registered: ${error.message}`);
    }
    this.#owner = null; // the most powerful key of a colony stays no longer than needed
  }

  // -- work -----------------------------------------------------------------------------------

  /** One long poll: a process, or null when there was none. */
  async #assign(signal) {
    const { colony, poll } = this.settings;
    const fields = { colonyname: colony, timeout: poll };
    const began = Date.now();
    try {
      const bounds = { signal, seconds: poll + 15 };
      return await this.client.call("assignprocessmsg", fields, this.identity, bounds);
    } catch (error) {
      // 404: none came in time. 408 and 503: the colony hands out nothing at the moment.
      if (!(error instanceof Refused) || ![404, 408, 503].includes(error.status)) throw error;
      // A node that says so at once is not to be hammered.
      if (Date.now() - began < 1000) await sleep(1, signal);
      return null;
    }
  }

  /** The running processes that are ours. Of this identity, only one page may be open. */
  async #assigned(signal) {
    const { colony, type } = this.settings;
    const fields = { colonyname: colony, count: 100, state: RUNNING, executortype: type };
    const all = await this.client.call("getprocessesmsg", fields, this.identity, { signal });
    return all.filter((process) => process.assignedexecutorid === this.identity.id);
  }

  async #work(process, signal) {
    const { processid, spec } = process;
    const call = `${spec.funcname}(${(spec.args ?? []).map((arg) => JSON.stringify(arg))})`;
    this.report("working", `${processid.slice(0, 8)} ${call}`);
    let kind, fields;
    try {
      const known = FUNCTIONS.get(spec.funcname);
      if (!known) throw new Error(`no function ${spec.funcname} here`);
      const out = await known(spec.args ?? [], spec.kwargs ?? {});
      [kind, fields] = ["closesuccessfulmsg", { processid, out }];
    } catch (error) {
      [kind, fields] = ["closefailedmsg", { processid, errors: [String(error.message ?? error)] }];
    }
    await this.#close(kind, fields, signal);
    const what = fields.out ? `→ ${JSON.stringify(fields.out)}` : `failed: ${fields.errors[0]}`;
    this.report("ready", `${processid.slice(0, 8)} ${what}`);
  }

  /** Close until it is acknowledged: saying the same again does no harm. */
  async #close(kind, fields, signal) {
    for (;;) {
      try {
        // Not ended by `signal`: what is done should be told.
        await this.client.call(kind, fields, this.identity);
        this.#pause = FIRST_PAUSE;
        return;
      } catch (error) {
        if (error instanceof Refused && error.status < 500) {
          // Cancelled, or past its deadline and given to another: nobody wants it any more.
          this.report("working", `not taken: ${error.message}`);
          return;
        }
        if (!(error instanceof Unreachable || error instanceof Refused) || signal.aborted) throw error;
        await this.#backOff(error, signal);
      }
    }
  }
}

/** Wait; less long when `signal` aborts. */
function sleep(seconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(done, seconds * 1000);
    function done() {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    }
    signal.addEventListener("abort", done);
    if (signal.aborted) done();
  });
}
