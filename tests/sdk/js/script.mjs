// Runs the body of an async function for test_js.py, which writes it to the standard input:
// `colonyd` is the package, `client` one of COLONIES_*, `args` what the test gives. Prints its value.

import { readFileSync } from "node:fs";
import * as core from "../../../js/index.js";
import * as node from "../../../js/node.js";
import * as upstream from "../../../js/upstream.js";

const Body = Object.getPrototypeOf(async () => {}).constructor;
const { code, args } = JSON.parse(readFileSync(0, "utf8"));
const client = process.env.COLONIES_PRVKEY ? node.fromEnvironment() : null;
const colonyd = { ...core, ...node, upstream };
try {
  const value = await new Body("colonyd", "client", "args", code)(colonyd, client, args);
  console.log(JSON.stringify({ value: value ?? null }));
} catch (error) {
  console.log(JSON.stringify({ error: `${error.name}: ${error.message}` }));
}
