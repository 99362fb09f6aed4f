// The package: what runs in browsers, service workers and Node.js alike.

export { Client, ProcessFailed, State } from "./client.js";
export { IndexedStore, MemoryStore, WebStore } from "./stores.js";
export { Identity, Refused, Unreachable, decode, encode } from "./wire.js";
export { Worker } from "./worker.js";
