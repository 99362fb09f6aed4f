// The calls that upstream's first JavaScript library had, for programs that were written against it:
// `runtime.assign(colonyid, prvkey)` and so on, with keys as text and callbacks as promises.

import { Client } from "./client.js";
import { Identity, Refused } from "./wire.js";

/** The types of attributes, by the names that upstream's examples give them. */
export const [input, output, error, environment] = [0, 1, 2, 3];

const TYPES = { in: 0, out: 1, output: 1, err: 2, env: 3 };

export class ColonyRuntime {
  #client;
  #colonies = new Map(); // id → name
  #identities = new Map(); // private key → identity
  #outputs = new Map(); // process id → what its attributes make its output
  #last = Promise.resolve();

  /**
   * `host` and `port` as text. `colony` is the name of the colony: today's servers know colonies by
   * name, where those of that time had ids alone.
   */
  constructor(host, port, { colony = "dev", tls = false } = {}) {
    this.#client = new Client(`${tls ? "https" : "http"}://${host}:${port}`, { colony });
    this.colony = colony;
  }

  /** Nothing needs to be loaded; the signing is at hand. */
  async load() {}

  #identity(prvkey) {
    if (!this.#identities.has(prvkey)) this.#identities.set(prvkey, new Identity(prvkey));
    return this.#identities.get(prvkey);
  }

  /**
   * Make calls one after the other, in the order in which they were asked for: the examples close a
   * process without waiting for the attribute before.
   */
  #inTurn(act) {
    const done = this.#last.then(act);
    this.#last = done.catch(() => {});
    return done;
  }

  #call(payloadtype, fields, prvkey) {
    return this.#inTurn(() => this.#client.call(payloadtype, fields, this.#identity(prvkey)));
  }

  /** The name of a colony that is given by name or id. */
  async #named(colony, prvkey) {
    if (!/^[0-9a-f]{64}$/.test(colony)) return colony;
    if (!this.#colonies.has(colony)) {
      const found = await this.#client.call("getcolonymsg", { colonyname: this.colony }, this.#identity(prvkey));
      this.#colonies.set(found.colonyid, found.name);
    }
    const name = this.#colonies.get(colony);
    if (name === undefined) {
      throw new Refused(404, `colony ${this.colony} has another id than ${colony}; name it to ColonyRuntime`);
    }
    return name;
  }

  async #assign(colony, timeout, prvkey) {
    // Not in turn: a long poll would hold up the closing of what runs.
    const colonyname = await this.#named(colony, prvkey);
    const bounds = { seconds: timeout + 15 };
    const fields = { colonyname, timeout };
    return withOldNames(
      await this.#client.call("assignprocessmsg", fields, this.#identity(prvkey), bounds),
    );
  }

  /** Take a process; waits a second for one, as upstream's did. */
  assign(colonyid, prvkey) {
    return this.#assign(colonyid, 1, prvkey);
  }

  /** The same without waiting. Which process is handed out is the server's choice alone, now. */
  assignLatest(colonyid, prvkey) {
    return this.#assign(colonyid, 0, prvkey);
  }

  getColony(colonyid, prvkey) {
    return this.#inTurn(async () => {
      const colonyname = await this.#named(colonyid, prvkey);
      return this.#client.call("getcolonymsg", { colonyname }, this.#identity(prvkey));
    });
  }

  getColonies(prvkey) {
    return this.#call("getcoloniesmsg", {}, prvkey);
  }

  getProcess(processid, prvkey) {
    return this.#call("getprocessmsg", { processid }, prvkey).then(withOldNames);
  }

  /** Submit a process spec of that time: func, args, conditions {colonyid, runtimetype, runtimeids}. */
  submitProcessSpec(spec, prvkey) {
    return this.#inTurn(async () => {
      const { func, conditions = {}, ...rest } = spec;
      const { colonyid, runtimetype, runtimeids, ...others } = conditions;
      const colonyname = await this.#named(others.colonyname ?? colonyid ?? this.colony, prvkey);
      const identity = this.#identity(prvkey);
      if (runtimeids?.length) {
        const all = await this.#client.call("getexecutorsmsg", { colonyname }, identity);
        others.executornames = runtimeids.map((id) => {
          const found = all.find((executor) => executor.executorid === id);
          if (!found) throw new Refused(404, `colony ${colonyname} has no executor ${id}`);
          return found.executorname;
        });
      }
      const today = {
        funcname: func,
        ...rest,
        conditions: { executortype: runtimetype, ...others, colonyname },
      };
      const made = await this.#client.call("submitfuncspecmsg", { spec: today }, identity);
      return withOldNames(made);
    });
  }

  /** Add an attribute; one of type output becomes part of the process's output, too. */
  addAttribute(attribute, prvkey) {
    const { targetcolonyid, attributetype, ...rest } = attribute;
    const type = TYPES[attributetype] ?? attributetype ?? output;
    if (type === output) {
      const made = this.#outputs.get(rest.targetid) ?? [];
      this.#outputs.set(rest.targetid, [...made, rest.value]);
    }
    return this.#inTurn(async () => {
      const targetcolonyname = await this.#named(rest.targetcolonyname ?? targetcolonyid ?? this.colony, prvkey);
      const today = { ...rest, targetcolonyname, attributetype: type };
      return this.#client.call("addattributemsg", { attribute: today }, this.#identity(prvkey));
    });
  }

  closeProcess(processid, successful, prvkey) {
    const out = this.#outputs.get(processid) ?? [];
    this.#outputs.delete(processid);
    return successful
      ? this.#call("closesuccessfulmsg", { processid, out }, prvkey)
      : this.#call("closefailedmsg", { processid, errors: out.map(String) }, prvkey);
  }

  /**
   * Call back with each process of a runtime type that gets into a state. The promise is rejected
   * when the subscription is over: after `timeout` seconds, or with its connection.
   */
  subscribeProcesses(runtimetype, timeout, state, prvkey, callback) {
    const fields = { colonyname: this.colony, executortype: runtimetype, state, timeout };
    return this.#client.listen("subscribeprocessesmsg", fields, this.#identity(prvkey), (process) =>
      callback(withOldNames(process)),
    );
  }
}

/** Give a process the names that its parts had then, beside those of today. */
function withOldNames(process) {
  const { spec } = process;
  if (spec) Object.assign(spec, { func: spec.funcname });
  return Object.assign(process, { assignedruntimeid: process.assignedexecutorid });
}

