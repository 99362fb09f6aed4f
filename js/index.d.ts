/** Client and worker of a Colonies server, for browsers, Node.js and service workers. */

/** A value that JSON can carry. Integers beyond 2^53 lose digits: send them as text. */
export type Json = string | number | boolean | null | Json[] | { [key: string]: Json };

/** The server answered, with an error. */
export class Refused extends Error {
  constructor(status: number, message: string);
  /** The HTTP status. */
  readonly status: number;
}

/** No answer came: whether the call had an effect is unknown. */
export class Unreachable extends Error {}

/** A process, or a node of a workflow, ended without success. */
export class ProcessFailed extends Error {
  constructor(process: Process);
  readonly process: Process;
}

/** A private key and the id that follows from it. */
export class Identity {
  /** @param hex the private key, 64 hexadecimal characters; throws when it is none */
  constructor(hex: string);
  static generate(): Identity;
  readonly id: string;
  /** The private key. */
  get hex(): string;
  /** Sign the base64 text of a payload: 130 hexadecimal characters. */
  sign(payload: string): string;
}

export const State: Readonly<{
  WAITING: 0;
  RUNNING: 1;
  SUCCESSFUL: 2;
  FAILED: 3;
  CANCELLED: 4;
}>;

/** Make the body of a signed request. */
export function encode(payloadtype: string, fields: object, identity: Identity, audience?: string): string;
/** Read the body of a reply. Throws Refused. */
export function decode(status: number, text: string): any;

export interface Conditions {
  colonyname?: string;
  executortype?: string;
  executornames?: string[] | null;
  dependencies?: string[] | null;
  [name: string]: unknown;
}

export interface FunctionSpec {
  nodename?: string;
  funcname: string;
  args?: Json[] | null;
  kwargs?: { [name: string]: Json } | null;
  conditions: Conditions;
  /** Seconds; 0 and below mean no limit. */
  maxwaittime?: number;
  maxexectime?: number;
  maxretries?: number;
  priority?: number;
  label?: string;
  env?: { [name: string]: string } | null;
  channels?: string[] | null;
  [name: string]: unknown;
}

export interface Attribute {
  attributeid: string;
  key: string;
  value: string;
  attributetype: number;
  [name: string]: unknown;
}

export interface Process {
  processid: string;
  state: 0 | 1 | 2 | 3 | 4;
  spec: FunctionSpec;
  assignedexecutorid: string;
  initiatorid: string;
  initiatorname: string;
  in: Json[] | null;
  out: Json[] | null;
  errors: string[] | null;
  attributes: Attribute[] | null;
  processgraphid: string;
  submissiontime: string;
  starttime: string;
  endtime: string;
  execdeadline: string;
  [name: string]: unknown;
}

export interface ProcessGraph {
  processgraphid: string;
  state: number;
  processids: string[];
  [name: string]: unknown;
}

export interface LogLine {
  processid: string;
  executorname: string;
  message: string;
  /** Unix time in nanoseconds, rounded to some 256 of them. */
  timestamp: number;
}

export interface CallOptions {
  signal?: AbortSignal;
  /** Seconds of one attempt (15). */
  seconds?: number;
  /** How often the same bytes are sent while no answer comes (1). */
  attempts?: number;
}

export interface WaitOptions {
  /** Throw an error after so many seconds; without it, wait as long as it takes. */
  seconds?: number;
  /** Aborting it ends the wait with the reason that it was aborted with. */
  signal?: AbortSignal;
  /** Seconds between two looks (1; 10 beside a subscription). */
  every?: number;
}

/** Beside these, any field of a spec. */
export interface SpecOptions {
  /** The type of executor that is to run it. */
  type?: string;
  /** The names of the executors that may run it. */
  executors?: string[];
  kwargs?: { [name: string]: Json };
  conditions?: Conditions;
  maxwaittime?: number;
  maxexectime?: number;
  maxretries?: number;
  priority?: number;
  label?: string;
  env?: { [name: string]: string };
  channels?: string[];
}

export interface Node extends SpecOptions {
  func: string;
  args?: Json[];
  /** The nodes that come before; their outputs follow this one's arguments. */
  after?: string[];
}

export interface Message {
  sequence: number;
  inreplyto?: number;
  type: string;
  text: string;
  senderid: string;
  [name: string]: unknown;
}

export interface Channel {
  /** Send a text; `type` is "" for data, "end" or "error". */
  send(text: string, options?: { type?: "" | "end" | "error"; inreplyto?: number }): Promise<void>;
  /** The messages after the first `after`. */
  read(after?: number, limit?: number): Promise<Message[]>;
  /** The messages as they come, up to one of type "end" or "error". */
  messages(options?: { after?: number; signal?: AbortSignal; every?: number }): AsyncGenerator<Message, void>;
}

export interface ClientOptions {
  identity?: Identity | null;
  /** The name of the colony. */
  colony?: string;
  /** The id of the server, where that should not be asked of it. */
  audience?: string;
}

export class Client {
  /** @param url the base address of a server, such as http://127.0.0.1:50080 */
  constructor(url: string, options?: ClientOptions);
  readonly url: string;
  readonly identity: Identity | null;
  readonly colony: string;
  /** Make one call of the protocol. Throws Refused or Unreachable. */
  call(payloadtype: string, fields: object, identity?: Identity | null, options?: CallOptions): Promise<any>;
  /** The same server and colony for another identity. */
  as(identity: Identity, colony?: string): Client;
  /** Subscribe over a WebSocket; the promise rejects when that is over. */
  listen(payloadtype: string, fields: object, identity: Identity, callback: (value: any) => void): Promise<never>;

  spec(funcname: string, args?: Json[], options?: SpecOptions): FunctionSpec;
  submit(funcname: string, args?: Json[], options?: SpecOptions & { signal?: AbortSignal }): Promise<Process>;
  submit(spec: FunctionSpec): Promise<Process>;
  /** Submit, wait, and return the output. Throws ProcessFailed. Aborting `signal` cancels it. */
  run(funcname: string, args?: Json[], options?: SpecOptions & { seconds?: number; signal?: AbortSignal }): Promise<Json[]>;
  process(processid: string, options?: { signal?: AbortSignal }): Promise<Process>;
  cancel(processid: string): Promise<void>;
  /** Wait until a process has ended, however it did. */
  wait(processid: string, options?: WaitOptions): Promise<Process>;
  until(processid: string, condition: (process: Process) => boolean, options?: WaitOptions & { state?: number }): Promise<Process>;
  attributes(processid: string): Promise<{ [key: string]: string }>;
  addAttribute(processid: string, key: string, value: string): Promise<Attribute>;
  /** The log lines of a process as they come, until it has ended. */
  logs(processid: string, options?: { signal?: AbortSignal; every?: number }): AsyncGenerator<LogLine, void>;

  submitWorkflow(nodes: { [name: string]: Node }, options?: { signal?: AbortSignal }): Promise<ProcessGraph>;
  /** Wait for all nodes: name → process. Throws ProcessFailed. */
  waitWorkflow(graphid: string, options?: { seconds?: number; signal?: AbortSignal }): Promise<{ [name: string]: Process }>;
  /** Submit and wait: name → output. Throws ProcessFailed. */
  runWorkflow(nodes: { [name: string]: Node }, options?: { seconds?: number; signal?: AbortSignal }): Promise<{ [name: string]: Json[] }>;
  cancelWorkflow(graphid: string): Promise<void>;

  channel(processid: string, name: string): Channel;

  /** Store bytes, or a text, as the newest version of a file, in the daemon's own directory. */
  putFile(label: string, name: string, data: Uint8Array | ArrayBuffer | string): Promise<any>;
  /** The bytes of the newest version of a file, checked against its checksum. */
  getFile(label: string, name: string): Promise<Uint8Array>;
}

/** What is known of a process until the colony has acknowledged its end. */
export type Result = { begun: true } | { out: Json[] } | { errors: string[] };

/** Where a worker keeps results. One worker to a store. */
export interface Store {
  set(id: string, value: Result): Promise<void>;
  delete(id: string): Promise<void>;
  entries(): Promise<[string, Result][]>;
}

/** Forgets with the program. */
export class MemoryStore implements Store {
  set(id: string, value: Result): Promise<void>;
  delete(id: string): Promise<void>;
  entries(): Promise<[string, Result][]>;
}

/** In `sessionStorage` or `localStorage` of a page. */
export class WebStore implements Store {
  constructor(
    storage: {
      readonly length: number;
      key(index: number): string | null;
      getItem(key: string): string | null;
      setItem(key: string, value: string): void;
      removeItem(key: string): void;
    },
    prefix?: string,
  );
  set(id: string, value: Result): Promise<void>;
  delete(id: string): Promise<void>;
  entries(): Promise<[string, Result][]>;
}

/** In IndexedDB, which pages and service workers have. */
export class IndexedStore implements Store {
  constructor(name?: string);
  set(id: string, value: Result): Promise<void>;
  delete(id: string): Promise<void>;
  entries(): Promise<[string, Result][]>;
}

/** What a function may use. */
export interface Context {
  readonly process: Process;
  readonly processid: string;
  /** The process's arguments, then the outputs of the nodes before it in a workflow. */
  readonly args: any[];
  readonly kwargs: { [name: string]: any };
  readonly env: { [name: string]: string };
  /** The outputs of the nodes before it in a workflow alone. */
  readonly input: any[];
  /** When the process must have ended; null without a limit. */
  readonly deadline: Date | null;
  /** Aborts when the process is cancelled, lost to another executor, or past its deadline. */
  readonly signal: AbortSignal;
  /** A client with the worker's identity. */
  readonly client: Client;
  /** Log a line; lines go out together, about once a second. */
  log(line: unknown): void;
  /** Log progress: what was not sent yet is replaced. */
  progress(line: unknown): void;
  attribute(key: string, value: unknown): Promise<void>;
  /** Set the output so far. */
  output(...out: Json[]): Promise<void>;
  channel(name: string): Channel;
}

/** Gets the arguments of the context. A list is the output; another value is an output of one; undefined is an empty one. */
export type Fn = (args: any[], context: Context) => unknown;

export interface WorkerSettings {
  /** The executor's name. */
  name: string;
  /** The executor's type. */
  type: string;
  /** The client's colony, unless another one is named. */
  colony?: string;
  /** The client's identity, unless another one is given. */
  identity?: Identity;
  /** The identity of the colony's owner: registers the worker once, and is forgotten. */
  owner?: Identity | null;
  /** Whether the owner approves the worker, too (false). */
  approve?: boolean;
  functions?: { [name: string]: Fn };
  /** How many processes it runs at a time (1). */
  slots?: number;
  /** Seconds of one long poll (20). */
  poll?: number;
  /** Seconds between two looks at a running process (5). */
  look?: number;
  /** Where results are kept until they are acknowledged (MemoryStore). */
  store?: Store;
  /** Hears of all that happens; without it, `serve` writes that to the standard error. */
  report?: (state: string, text: string) => void;
}

export class Worker {
  constructor(client: Client, settings: WorkerSettings);
  readonly client: Client;
  readonly identity: Identity;
  /** Offer a function, sync or async. Returns the worker. */
  function(name: string, does: Fn): this;
  /** Take no more processes. Running functions end first; after `seconds` they are aborted. */
  stop(options?: { seconds?: number }): void;
  /** Work until `signal` aborts or `stop` is called. */
  run(signal?: AbortSignal): Promise<void>;
}
