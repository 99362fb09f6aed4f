// The payload of each kind, from docs/federation/messages.md, and the sizes of docs/federation.md.
// Values are parsed here; what they mean for a process is in peer.mjs and relay.mjs.

import { Malformed, decode, encode } from "./cbor.mjs";
import { Refused, authenticate, inspect, isPublicKey, timely } from "./cose.mjs";

/** Most bytes of a message and most items of its payload, by kind. */
export const SIZES = {
  card: [8_192, 256],
  hello: [41_984, 128],
  join: [41_984, 64],
  welcome: [4_096, 64],
  succession: [2_048, 16],
  refusal: [8_192, 64],
  submit: [1_500_000, 27_000],
  cancel: [4_096, 64],
  receipt: [4_096, 64],
  poll: [262_144, 8_192],
  outcome: [4_000_000, 4_096],
  outcomes: [6_000_000, 2_048],
  say: [1_500_000, 2_048],
  heard: [4_096, 64],
  capabilities: [65_536, 8_192],
  introductions: [528_384, 1_024],
  collect: [1_500_000, 512],
  parcels: [2_500_000, 1_024],
  pass: [1_500_000, 64],
  passed: [6_001_024, 64],
  fetch: [4_096, 64],
  chunk: [1_052_672, 64],
  submits: [1_500_000, 64],
  receipts: [134_144, 512],
  dial: [4_096, 64],
  dialled: [4_096, 64],
};

const fail = (what) => {
  throw new Malformed(what);
};
const big = (power) => (1n << BigInt(power)) - 1n;

const int = (low = -(1n << 64n), high = big(64)) => (value) =>
  (typeof value === "number" || typeof value === "bigint") && value >= low && value <= high
    ? value
    : fail("an integer out of its range");
// Characters are Unicode code points, which a string of JavaScript does not count.
const text = (most = Infinity, form = /^/) => (value) =>
  typeof value === "string" && [...value].length <= most && form.test(value) ? value : fail("text");
const bytes = (most = Infinity, least = 0) => (value) =>
  value instanceof Uint8Array && value.length <= most && value.length >= least
    ? value
    : fail("bytes");
const bool = (value) => (typeof value === "boolean" ? value : fail("true or false"));
const array = (item, most = Infinity, least = 0) => (value) =>
  Array.isArray(value) && value.length <= most && value.length >= least
    ? value.map((each) => item(each))
    : fail("an array");
const orNull = (inner) => (value) => (value === null ? null : inner(value));
const mapOf = (key, item, most) => (value) =>
  value instanceof Map && value.size <= most
    ? new Map([...value].map(([name, held]) => [key(name), item(held)]))
    : fail("a map");

/** A map of text keys. A field is [parser], or [parser, default] if it may be left out. */
const struct = (fields) => (value) => {
  if (!(value instanceof Map)) fail("a map");
  const found = {};
  for (const [name, [parse, missing]] of Object.entries(fields)) {
    if (value.has(name)) found[name] = parse(value.get(name));
    else found[name] = missing === undefined ? fail(`without ${name}`) : missing;
  }
  return found;
};

const id = text(64, /^[0-9a-f]{64}$/);
const attempt = int(1, 1_000_000);
const none = new Uint8Array(0);
const time = int(0, big(40));
const count = int(0, 2 ** 40);
const long = int(0, big(63));
const name = text(200);

const carried = struct({
  mount: [text(3, /^(d|[0-9]{1,3})$/)],
  label: [text()],
  name: [text()],
  size: [long],
  checksum: [text()],
  ref: [bytes(), none],
});
const follow = struct({
  pid: [id],
  attempt: [attempt],
  version: [long, 0],
  line: [long, 0],
  attributes: [count, 0],
  output: [bytes(32), none],
  heard: [mapOf(name, count, 100), new Map()],
});
const said = struct({
  name: [name],
  place: [count],
  payload: [bytes()],
  type: [name, ""],
  sequence: [int(), 0],
  inreplyto: [int(), 0],
});
const offer = struct({
  functions: [array(name, 256), []],
  executors: [count, 0],
  free: [count, 0],
  waiting: [count, 0],
  running: [count, 0],
});
const answer = struct({
  status: [int(100, 599)],
  body: [bytes()],
  again: [int(0, 2 ** 31 - 1), 0],
});
const parcel = struct({
  id: [bytes(16, 1)],
  path: [name],
  body: [bytes()],
  wait: [int(0, 30)],
  knock: [name, ""],
});
const reply = struct({
  id: [bytes(16, 1)],
  status: [int(100, 599)],
  after: [name],
  data: [bytes(1_000_000)],
  more: [bool, false],
});

/** Payload parsers by kind. */
export const PAYLOADS = {
  card: struct({
    key: [bytes(65, 65)],
    name: [text()],
    seq: [long],
    fp: [bytes(32, 32)],
    at: [array(text(), 16)],
    ver: [array(int(), 16, 1)],
    mb: [array(id, 4), []],
  }),
  hello: struct({
    card: [bytes(8192)],
    nonce: [bytes(32), none],
    clock: [time, 0],
    latest: [time, 0],
    successors: [array(struct({ by_old: [bytes(2048)], by_new: [bytes(2048)] }), 8), []],
    mailbox: [time, 0],
  }),
  succession: struct({ old: [bytes(65, 65)], new: [bytes(65, 65)] }),
  join: struct({
    card: [bytes()],
    invitation: [text(16, /^[0-9a-f]{16}$/)],
    nonce: [bytes(32, 16)],
    answer: [bytes(), none],
    proof: [bytes(), none],
  }),
  welcome: struct({ nonce: [bytes(32, 16)], proof: [bytes(), none] }),
  submit: struct({
    pid: [id],
    attempt: [attempt],
    spec: [bytes()],
    initiator: [text()],
    hops: [int()],
    path: [array(text())],
    target: [text(400), ""],
    inner: [bytes(), none],
    keys: [array(bytes(), 4), []],
    input: [bytes(), none],
    files: [orNull(array(carried, 2000)), null],
  }),
  receipt: struct({
    pid: [id],
    attempt: [attempt],
    status: [text(20, /^(accepted|cancelled|already_closed)$/)],
    remote: [text()],
    asked: [bytes(32), none],
    origin: [text(), ""],
  }),
  submits: struct({ submits: [array(bytes(), 32, 1)] }),
  receipts: struct({ answers: [array(answer, 32)] }),
  cancel: struct({ pid: [id], attempt: [attempt] }),
  poll: struct({
    wait: [int(0, 30)],
    ack: [array(id, 100)],
    follow: [orNull(array(follow, 128)), null],
    whole: [bool, false],
  }),
  outcomes: struct({
    outcomes: [array(bytes())],
    news: [orNull(array(bytes(), 512)), null],
    cut: [bool, false],
  }),
  outcome: struct({
    pid: [id],
    attempt: [attempt],
    state: [int(2, 4)],
    out: [bytes()],
    errors: [array(text())],
    localpid: [text()],
    executor: [text()],
    start: [int()],
    end: [int()],
    below: [bytes(), none],
    keys: [array(bytes(), 4), []],
    asked: [bytes(32), none],
    origin: [text(), ""],
  }),
  say: struct({
    pid: [id],
    attempt: [attempt],
    name: [name],
    start: [count],
    after: [count],
    said: [array(said, 100), []],
  }),
  heard: struct({ pid: [id], attempt: [attempt], name: [name], after: [count] }),
  fetch: struct({ pid: [id], attempt: [attempt], checksum: [id], offset: [long] }),
  chunk: struct({ checksum: [id], offset: [long], data: [bytes(1 << 20)] }),
  capabilities: struct({
    seq: [int(0)],
    accepting: [bool, true],
    types: [mapOf(name, offer, 64), new Map()],
    labels: [array(name, 64), []],
    limits: [mapOf(name, int(), 16), new Map()],
    clock: [int(), 0],
  }),
  introductions: struct({
    known: [array(struct({ card: [bytes(8192)], hops: [int(1, 3)], called: [name, ""] }), 64)],
    seq: [long],
  }),
  dial: struct({ port: [int(1, 65_535)], nonce: [bytes(32, 16)] }),
  dialled: struct({ nonce: [bytes(32, 16)], reached: [bool], host: [name], problem: [name, ""] }),
  collect: struct({
    wait: [int(0, 30)],
    answers: [array(reply, 16)],
    senders: [orNull(bytes(8192)), null],
    invitations: [bytes(1024), none],
  }),
  parcels: struct({ parcels: [array(parcel, 64)] }),
  pass: struct({
    to: [id],
    path: [name],
    body: [bytes()],
    wait: [int(0, 30)],
    card: [bytes(8192), none],
    knock: [name, ""],
  }),
  passed: struct({ status: [int(100, 599)], after: [name], data: [bytes()] }),
  refusal: struct({
    code: [text()],
    message: [text()],
    digest: [bytes()],
    clock: [count, 0],
    latest: [count, 0],
    path: [name, ""],
    kept: [bool, false],
  }),
};

/** Read a payload. Throws Refused: malformed. */
export function parse(kind, payload) {
  const depth = kind === "card" ? 2 : 4;
  try {
    return PAYLOADS[kind](decode(payload, { depth, items: SIZES[kind][1] }));
  } catch (error) {
    if (error instanceof Malformed) throw new Refused("malformed", `${kind}: ${error.message}`);
    throw error;
  }
}

export { encode as pack };

const NAME = /^[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}$/;
const ADDRESS = /^(\[[0-9A-Fa-f:.]+(%[^\]\s]+)?\]|[^\s:[\]]+):([0-9]{1,5})$/;

/** Open a card: return its envelope and fields. Throws Refused. */
export function openCard(bytes, clock) {
  if (bytes.length > SIZES.card[0]) throw new Refused("too_large");
  const envelope = inspect(bytes);
  const card = parse("card", envelope.payload);
  authenticate(envelope, "card", card.key, { guess: false });
  if (envelope.audience !== "*") throw new Refused("wrong_audience");
  timely(envelope, clock);
  if (!NAME.test(card.name) || card.name === "any") throw new Refused("malformed", "no name");
  for (const address of card.at) {
    const port = Number(ADDRESS.exec(address)?.[3]);
    if (!(port >= 1 && port <= 65_535)) throw new Refused("malformed", "no address");
  }
  if (!isPublicKey(card.key)) throw new Refused("malformed", "no key");
  return { ...card, id: envelope.issuer, envelope, bytes };
}
