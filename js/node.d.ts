/** What Node.js adds. */
import type { Client, Result, Store, Worker } from "./index.js";

/** Keeps results in a directory, durably. One worker to a directory. */
export class DirectoryStore implements Store {
  constructor(directory: string);
  set(id: string, value: Result): Promise<void>;
  delete(id: string): Promise<void>;
  entries(): Promise<[string, Result][]>;
}

/** Make a client from the SDKs' variables, COLONIES_*. Throws when one is missing. */
export function fromEnvironment(environ?: { [name: string]: string | undefined }): Client;

/** Run a worker until SIGTERM or SIGINT; `grace` is the seconds for what runs (30). */
export function serve(worker: Worker, options?: { grace?: number }): Promise<void>;
