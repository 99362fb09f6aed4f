// A colony that a test steers: one JSON object a line on stdin, {"do": name, "args": [...]}, and one
// answer a line on stdout, {"value"} or {"error"}. What happened at its server goes to stderr.
//   node peer.mjs [NAME [forgetful]]     a forgetful one keeps no receipt records, which is wrong

import { createInterface } from "node:readline";

import { Colony } from "./colony.mjs";

/** What the colony can do: functions by name. */
const FUNCTIONS = {
  upper: ({ args }) => args.map((text) => String(text).toUpperCase()),
  path: (_, { path }) => path,
  fail: ({ args }) => {
    throw new Error(args[0]);
  },
  wait: (_, { signal }) =>
    new Promise((_, reject) => signal.addEventListener("abort", () => reject(new Error("ended")))),
};

async function run(spec, about) {
  // A process that no executor takes waits.
  const name = Object.hasOwn(FUNCTIONS, spec.funcname) ? spec.funcname : "wait";
  return FUNCTIONS[name]({ args: spec.args ?? [] }, about);
}

const note = (event) => process.stderr.write(`${JSON.stringify(event)}\n`);
const colony = new Colony(process.argv[2] ?? "node", run, note);
if (process.argv[3] === "forgetful") colony.records.set = () => colony.records;
const say = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);

await colony.listen();
say({ value: { id: colony.id, address: colony.address } });
for await (const line of createInterface({ input: process.stdin })) {
  const { do: action, args = [] } = JSON.parse(line);
  try {
    if (!["trust", "join", "invite", "hello", "submit", "again", "cancel", "outcome"].includes(action)) {
      throw new Error(`no such action: ${action}`);
    }
    say({ value: await colony[action](...args) });
  } catch (error) {
    say({ error: `${error.name}: ${error.code ?? ""} ${error.message}` });
  }
}
colony.close();
