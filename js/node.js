// What Node.js adds: a store on disk, the SDKs' variables, and signals of the system.

import { mkdir, open, readFile, readdir, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import process from "node:process";
import { Client } from "./client.js";
import { Identity } from "./wire.js";

const LONGEST_LINE = 500; // characters of a report: outputs may be large

/** Keeps results in a directory, durably. One worker to a directory. */
export class DirectoryStore {
  constructor(directory) {
    this.directory = directory;
  }

  #path(id) {
    // The server may not be ours, and its ids become names of files.
    if (!/^[0-9A-Za-z]{1,128}$/.test(id)) throw new Error(`${id} is no id of a process`);
    return join(this.directory, `${id}.json`);
  }

  async set(id, value) {
    await mkdir(this.directory, { recursive: true, mode: 0o700 });
    const path = this.#path(id);
    const part = await open(`${path}.part`, "w", 0o600);
    try {
      await part.writeFile(JSON.stringify(value));
      await part.sync();
    } finally {
      await part.close();
    }
    await rename(`${path}.part`, path);
  }

  async delete(id) {
    await rm(this.#path(id), { force: true });
  }

  async entries() {
    const found = [];
    const names = await readdir(this.directory).catch((error) => {
      if (error.code === "ENOENT") return [];
      throw error;
    });
    for (const name of names.filter((each) => each.endsWith(".json"))) {
      const path = join(this.directory, name);
      try {
        found.push([name.slice(0, -".json".length), JSON.parse(await readFile(path, "utf8"))]);
      } catch (error) {
        if (!(error instanceof SyntaxError)) throw error;
        await rename(path, `${path}.unusable`); // for people to look at
      }
    }
    return found;
  }
}

/**
 * Make a client from the SDKs' variables: COLONIES_SERVER_HOST (localhost), COLONIES_SERVER_PORT
 * (50080), COLONIES_SERVER_TLS, COLONIES_SERVER_ID, COLONIES_COLONY_NAME and COLONIES_PRVKEY.
 */
export function fromEnvironment(environ = process.env) {
  for (const name of ["COLONIES_COLONY_NAME", "COLONIES_PRVKEY"]) {
    if (!environ[name]) throw new Error(`${name} is not set`);
  }
  const tls = (environ.COLONIES_SERVER_TLS ?? "").toLowerCase();
  if (!["", "true", "false"].includes(tls)) throw new Error("COLONIES_SERVER_TLS: write true or false");
  const scheme = tls === "true" ? "https" : "http";
  const host = environ.COLONIES_SERVER_HOST || "localhost";
  const port = environ.COLONIES_SERVER_PORT || "50080";
  return new Client(`${scheme}://${host}:${port}`, {
    identity: new Identity(environ.COLONIES_PRVKEY.trim()),
    colony: environ.COLONIES_COLONY_NAME,
    audience: environ.COLONIES_SERVER_ID,
  });
}

/**
 * Run a worker until SIGTERM or SIGINT. Running functions may end first: for `grace` seconds, then
 * they are aborted and their processes fail. What the worker reports goes to the standard error
 * unless its settings have a `report`.
 */
export async function serve(worker, { grace = 30 } = {}) {
  if (!worker.settings.report) {
    worker.report = (state, text) => console.error(`${state}: ${text.slice(0, LONGEST_LINE)}`);
  }
  const stop = () => worker.stop({ seconds: grace });
  process.once("SIGTERM", stop).once("SIGINT", stop);
  try {
    await worker.run();
  } finally {
    process.off("SIGTERM", stop).off("SIGINT", stop);
  }
}
