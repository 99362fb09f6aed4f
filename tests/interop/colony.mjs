// A colony in memory, from docs/federation.md: it shows a card, trusts peers, runs what they submit and
// signs outcomes, and sends forwards of its own. It keeps nothing over its end, and has no mailbox,
// channels, files or introductions, which a colony may leave out.

import { randomBytes } from "node:crypto";
import { createServer } from "node:https";

import { encode } from "./cbor.mjs";
import {
  Key, Refused, WEEK, authenticate, bytesToHex, derivedCti, hexToBytes, inspect, localId, open, seal,
  sha, utf8ToBytes,
} from "./cose.mjs";
import { derive, knock, proof, readToken, writeToken } from "./invitation.mjs";
import { SIZES, openCard, parse } from "./messages.mjs";
import { checkChain, checkWay } from "./relay.mjs";
import { Lost, exchange, makeCertificate } from "./tls.mjs";

const SIGNED = ["/v2/submit", "/v2/submits", "/v1/submit", "/v1/hello"];
const OLD = ["/v1/submit", "/v1/cancel", "/v1/outcomes"];
const TOGETHER = 8;
const STATUSES = {
  401: "unknown_issuer superseded bad_signature",
  403: "blocked untrusted join_refused join_expired policy_function",
  404: "not_found no_way",
  405: "method",
  409: "id_reuse join_stale no_files",
  413: "too_large",
  429: "join_rate",
};
const statusOf = (code) =>
  Number(Object.keys(STATUSES).find((status) => STATUSES[status].split(" ").includes(code)) ?? 400);
const now = () => Math.floor(Date.now() / 1000);
const nanoseconds = () => BigInt(Date.now()) * 1_000_000n;
const same = (one, two) => Buffer.compare(one, two) === 0;
const json = (bytes) => JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));

function readJson(bytes, code) {
  try {
    return json(bytes);
  } catch {
    throw new Refused(code);
  }
}

export class Colony {
  /** `run(spec)` resolves with the output, an array, or throws: then the process has failed. */
  constructor(name, run, note = () => {}) {
    Object.assign(this, { name, run, note });
    this.key = Key.generate();
    this.certificate = makeCertificate();
    this.seq = now();
    this.peers = new Map(); // id -> {card, trusted}
    this.invitations = new Map(); // name -> {key, expires, joiner, nonces}
    this.records = new Map(); // "issuer pid" -> receipt record
    this.owed = new Map(); // issuer -> Map of pid -> signed outcome
    this.forwards = new Map(); // pid -> forward
    this.statements = 0;
    this.waiting = new Set();
    this.routes = {
      "/v1/hello": ["hello", (...message) => this.#hello(...message)],
      "/v1/join": ["join", (...message) => this.#join(...message)],
      "/v2/submit": ["submit", (...message) => this.#submit(...message)],
      "/v2/submits": ["submits", (...message) => this.#submits(...message)],
      "/v2/cancel": ["cancel", (...message) => this.#cancel(...message)],
      "/v2/outcomes": ["poll", (...message) => this.#poll(...message)],
      "/v1/capabilities": ["capabilities", (...message) => this.#capabilities(...message)],
    };
  }

  get id() {
    return this.key.id;
  }

  /** Serve on a free port of 127.0.0.1; returns the address. */
  async listen() {
    const { key, cert } = this.certificate;
    const secure = { key, cert, minVersion: "TLSv1.3", ALPNProtocols: ["http/1.1"] };
    this.server = createServer(secure, (request, response) => this.#serve(request, response));
    await new Promise((resolve) => this.server.listen(0, "127.0.0.1", resolve));
    this.address = `127.0.0.1:${this.server.address().port}`;
    return this.address;
  }

  /** The own card, signed with an iat a day in the past. */
  card() {
    const issued = now() - 86_400;
    const fields = {
      key: this.key.public,
      name: this.name,
      seq: this.seq,
      fp: hexToBytes(this.certificate.fingerprint),
      at: [this.address],
      ver: [2],
    };
    const cti = utf8ToBytes(String(this.seq));
    const times = { audience: "*", issued, expires: issued + WEEK, cti };
    return seal(this.key, "card", encode(fields), times);
  }

  /** A message to a colony, valid for as long as possible. */
  sign(kind, audience, fields, cti = randomBytes(16), issued = now(), expires = issued + WEEK) {
    return seal(this.key, kind, encode(fields), { audience, issued, expires, cti });
  }

  // As a server

  async #serve(request, response) {
    const path = request.url;
    let body = new Uint8Array();
    try {
      if (request.method === "GET" && path === "/v1/card") {
        return answer(response, 200, this.card(), "application/cbor");
      }
      const route = this.routes[path];
      if (!route && !OLD.includes(path) && path !== "/v1/card") throw new Refused("not_found");
      if (request.method !== "POST" || path === "/v1/card") throw new Refused("method");
      body = await read(request, SIZES[route?.[0] ?? "submit"][0]);
      if (!route) throw new Refused("version");
      const knocked = request.headers["colonyd-knock"];
      const { envelope, told } = this.#opened(path, route[0], body);
      const reply = await route[1](envelope, told, { knocked });
      this.note({ event: "answered", path, issuer: envelope.issuer });
      answer(response, 200, reply, "application/cose");
    } catch (error) {
      this.note({ event: "refused", path, why: String(error.stack) });
      const code = error instanceof Refused ? error.code : "http";
      const status = code === "http" ? 500 : statusOf(code);
      const refusal = this.#refusal(path, body, code, error.message, status);
      answer(response, status, utf8ToBytes(JSON.stringify(refusal)), "application/json");
    }
  }

  /** Checks 4 to 14: the envelope and its payload. Throws Refused. */
  #opened(path, kind, body) {
    const first = inspect(body);
    let key = this.peers.get(first.issuer)?.card.key;
    let card = null;
    if (kind === "hello" || kind === "join") {
      // The card proves itself, and brings the key that the message is checked with.
      card = openCard(parse(kind, first.payload).card, now());
      if (card.id !== first.issuer) throw new Refused("unknown_issuer", "another colony's card");
      key = card.key;
    }
    const keyOf = () => key;
    const about = { keyOf, audiences: [this.id], clock: now(), limit: SIZES[kind][0], guess: !card };
    const envelope = open(body, kind, about);
    const peer = this.peers.get(envelope.issuer);
    if (kind !== "join" && !peer?.trusted) throw new Refused("untrusted");
    if (card && peer && card.seq > peer.card.seq) peer.card = card;
    return { envelope, told: parse(kind, envelope.payload) };
  }

  #refusal(path, body, code, message, status) {
    const refusal = { code, message, clock: now() };
    if (status >= 500 || !SIGNED.includes(path)) return refusal;
    try {
      const { issuer } = inspect(body);
      const short = message.slice(0, 300);
      const fields = { code, message: short, digest: sha(body), clock: refusal.clock, path };
      const signed = this.sign("refusal", issuer, fields);
      return { ...refusal, signed: Buffer.from(signed).toString("base64") };
    } catch (error) {
      if (error instanceof Refused) return refusal; // nobody to address it to
      throw error;
    }
  }

  #hello({ issuer }, { nonce }) {
    return this.sign("hello", issuer, { card: this.card(), nonce, clock: now() });
  }

  /** Make an invitation; returns its token. */
  invite(seconds = 600) {
    const secret = Uint8Array.from(randomBytes(16));
    const { key, name } = derive(secret);
    const expires = now() + seconds;
    this.invitations.set(name, { key, expires, joiner: "", nonces: new Map() });
    const { fingerprint } = this.certificate;
    return writeToken({ secret, inviter: this.id, fingerprint, expires, addresses: [this.address] });
  }

  #join({ issuer, bytes }, { card, invitation, nonce, answer, proof: shown }, { knocked }) {
    const found = this.invitations.get(invitation);
    if (knocked && found && knocked !== `${invitation} ${knock(found.key, bytes)}`) {
      throw new Refused("join_refused", "the knock is wrong");
    }
    if (!answer.length) {
      const fresh = Uint8Array.from(randomBytes(16));
      found?.nonces.set(`${issuer} ${bytesToHex(nonce)}`, { fresh, until: now() + 120 });
      return this.sign("welcome", issuer, { nonce: fresh });
    }
    const given = found?.nonces.get(`${issuer} ${bytesToHex(nonce)}`);
    if (!found) throw new Refused("join_refused");
    if (!given || given.until < now() || !same(given.fresh, answer)) throw new Refused("join_stale");
    const exchanged = {
      joiner: issuer,
      inviter: this.id,
      nonces: [nonce, answer],
      fingerprint: this.certificate.fingerprint,
    };
    if (!same(shown, proof(found.key, "joiner", exchanged))) throw new Refused("join_refused");
    if (found.joiner && found.joiner !== issuer) throw new Refused("join_refused");
    if (found.expires < now()) throw new Refused("join_expired");
    found.joiner = issuer;
    this.peers.set(issuer, { card: openCard(card, now()), trusted: true });
    const own = proof(found.key, "inviter", exchanged);
    return this.sign("welcome", issuer, { nonce: answer, proof: own });
  }

  #receipt(envelope, told, status, remote, more = {}) {
    const cti = derivedCti("receipt", bytesToHex(envelope.cti), status);
    const { pid, attempt } = told;
    return this.sign("receipt", envelope.issuer, { pid, attempt, status, remote, ...more }, cti);
  }

  #submit(envelope, told) {
    const { issuer, bytes } = envelope;
    const place = `${issuer} ${told.pid}`;
    const digest = sha(bytes);
    const known = this.records.get(place);
    if (known?.cancelled) return known.receipt;
    if (known && !same(known.digest, digest)) throw new Refused("id_reuse");
    if (known) return known.receipt;
    const { core, asked, origin } = checkWay(envelope, told, [this.id]);
    if (told.target) throw new Refused("no_way", "nothing goes on from here");
    if (told.files?.length) throw new Refused("no_files");
    const spec = readJson(core.spec, "bad_spec");
    if (typeof spec?.funcname !== "string") throw new Refused("bad_spec");
    const input = told.input.length ? readJson(told.input, "bad_input") : [];
    if (!Array.isArray(input)) throw new Refused("bad_input");
    const remote = localId(issuer, told.pid, told.attempt);
    const receipt = this.#receipt(envelope, told, "accepted", remote, { asked, origin });
    const path = [...told.path, issuer];
    const process = { issuer, told, digest, receipt, remote, asked, origin, path, open: true };
    this.records.set(place, process);
    this.#work(process, spec, input);
    return receipt;
  }

  /** Each submission gets the answer that it would get alone. */
  #submits({ issuer }, { submits }) {
    const answers = submits.map((body) => {
      try {
        const { envelope, told } = this.#opened("/v2/submit", "submit", body);
        if (envelope.issuer !== issuer) throw new Refused("malformed", "another colony's");
        return { status: 200, body: this.#submit(envelope, told) };
      } catch (error) {
        if (!(error instanceof Refused)) throw error;
        const { code, message } = error;
        const refusal = this.#refusal("/v2/submit", body, code, message, statusOf(code));
        return { status: statusOf(code), body: utf8ToBytes(JSON.stringify(refusal)) };
      }
    });
    this.note({ event: "together", count: submits.length });
    return this.sign("receipts", issuer, { answers });
  }

  async #work(process, spec, input) {
    const start = nanoseconds();
    const { signal } = (process.abort = new AbortController());
    let end;
    try {
      const out = await this.run(spec, { input, signal, path: process.path });
      end = { state: 2, out: utf8ToBytes(JSON.stringify(out)), errors: [] };
    } catch (error) {
      end = { state: 3, out: utf8ToBytes("[]"), errors: [String(error.message)] };
    }
    if (process.open) this.#close(process, end, start);
  }

  /** Sign the outcome, and owe it. Its iat is the end: the same outcome has the same bytes. */
  #close(process, end, start) {
    process.open = false;
    const { issuer, told, remote, asked, origin } = process;
    const { pid, attempt } = told;
    const times = { start, end: nanoseconds() };
    const about = { pid, attempt, localpid: remote, executor: this.id, asked, origin };
    const cti = derivedCti("outcome", pid, attempt);
    const issued = Number(times.end / 1_000_000_000n);
    const signed = this.sign("outcome", issuer, { ...about, ...end, ...times }, cti, issued);
    if (!this.owed.has(issuer)) this.owed.set(issuer, new Map());
    this.owed.get(issuer).set(pid, signed);
    this.#wake();
  }

  #cancel(envelope, told) {
    const { issuer } = envelope;
    const place = `${issuer} ${told.pid}`;
    const known = this.records.get(place);
    if (!known) {
      const receipt = this.#receipt(envelope, told, "cancelled", "");
      this.records.set(place, { cancelled: true, receipt });
      return receipt;
    }
    if (known.cancelled) return known.receipt;
    const { remote, asked, origin, open: runs } = known;
    if (runs) {
      const end = { state: 4, out: utf8ToBytes("[]"), errors: [] };
      this.#close(known, end, nanoseconds());
      known.abort.abort();
    }
    const status = runs ? "cancelled" : "already_closed";
    return this.#receipt(envelope, known.told, status, remote, { asked, origin });
  }

  #wake() {
    for (const wake of this.waiting) wake();
  }

  async #poll({ issuer }, { wait, ack, follow }) {
    const owed = () => this.owed.get(issuer) ?? new Map();
    for (const pid of ack) owed().delete(pid);
    const until = Date.now() + wait * 1000;
    while (!owed().size && Date.now() < until) {
      await new Promise((resolve) => {
        const wake = () => {
          clearTimeout(timer);
          this.waiting.delete(wake);
          resolve();
        };
        const timer = setTimeout(wake, until - Date.now());
        this.waiting.add(wake);
      });
    }
    const outcomes = [...owed().values()].slice(0, 64);
    return this.sign("outcomes", issuer, { outcomes, ...(follow && { news: [] }) });
  }

  #statement() {
    this.statements += 1;
    return {
      seq: BigInt(this.seq) * (1n << 24n) + BigInt(this.statements),
      types: { js: { functions: ["*"], executors: 1, free: 1 } },
      limits: { body: SIZES.submit[0], together: TOGETHER },
      clock: now(),
    };
  }

  #capabilities({ issuer }) {
    return this.sign("capabilities", issuer, this.#statement());
  }

  // As a client

  /** Fetch and check the card at an address. Throws Refused, Unsent, Lost. */
  async look(address) {
    const options = { method: "GET", most: SIZES.card[0] };
    const { status, body, shown } = await exchange(address, "/v1/card", options);
    if (status !== 200) throw new Lost(`${address} shows no card: status ${status}`);
    const card = openCard(body, now());
    if (bytesToHex(card.fp) !== shown) throw new Refused("unknown_issuer", "another certificate");
    return card;
  }

  /** Trust the colony at an address: the owner's word. Returns its id. */
  async trust(address) {
    const card = await this.look(address);
    this.peers.set(card.id, { card, trusted: true, address });
    return card.id;
  }

  /** Post a message to a peer; returns the checked answer, {envelope, told}. Throws Refused too. */
  async #post(card, address, path, kind, body, { answer: expected = kind, ...options } = {}) {
    const fingerprint = bytesToHex(card.fp);
    const most = SIZES[expected][0];
    const reply = await exchange(address, path, { body, fingerprint, most, ...options });
    if (reply.status !== 200) throw this.#refused(card, path, body, reply);
    const keyOf = (id) => (id === card.id ? card.key : undefined);
    const about = { keyOf, audiences: [this.id], clock: now(), limit: most };
    const envelope = open(reply.body, expected, about);
    return { envelope, told: parse(expected, envelope.payload) };
  }

  #refused(card, path, body, reply) {
    const refusal = json(reply.body);
    const error = new Refused(refusal.code, `${refusal.code}: ${refusal.message}`);
    error.status = reply.status;
    error.certain = false;
    if (refusal.signed) {
      const envelope = inspect(Uint8Array.from(Buffer.from(refusal.signed, "base64")));
      authenticate(envelope, "refusal", card.key);
      const told = parse("refusal", envelope.payload);
      const fits = told.path === path && same(told.digest, sha(body)) && told.code === error.code;
      error.certain = fits && envelope.audience === this.id && told.code !== "id_reuse";
    }
    return error;
  }

  #to(id) {
    const peer = this.peers.get(id);
    if (!peer?.trusted) throw new Refused("untrusted", `${id} is no peer`);
    return [peer.card, peer.address ?? peer.card.at[0]];
  }

  /** Exchange hellos; returns the peer's clock. */
  async hello(id) {
    const [card, address] = this.#to(id);
    const nonce = Uint8Array.from(randomBytes(16));
    const body = this.sign("hello", id, { card: this.card(), nonce });
    const { told } = await this.#post(card, address, "/v1/hello", "hello", body);
    if (!same(told.nonce, nonce)) throw new Lost("the hello answers another one");
    const newer = openCard(told.card, now());
    if (newer.id === id && newer.seq > card.seq) this.peers.get(id).card = newer;
    return told.clock;
  }

  /** Redeem an invitation; returns the inviter's id. */
  async join(text) {
    const token = readToken(text);
    const [address] = token.addresses;
    const card = await this.look(address);
    if (card.id !== token.inviter || bytesToHex(card.fp) !== token.fingerprint) {
      throw new Refused("join_refused", "another colony than the token names");
    }
    const nonce = Uint8Array.from(randomBytes(16));
    const asked = { card: this.card(), invitation: token.name, nonce };
    const post = (fields) => {
      const body = this.sign("join", card.id, fields);
      const headers = { "colonyd-knock": `${token.name} ${knock(token.key, body)}` };
      return this.#post(card, address, "/v1/join", "join", body, { answer: "welcome", headers });
    };
    const { told: first } = await post(asked);
    const { fingerprint, key } = token;
    const nonces = [nonce, first.nonce];
    const exchanged = { joiner: this.id, inviter: card.id, nonces, fingerprint };
    const shown = proof(key, "joiner", exchanged);
    const { told: second } = await post({ ...asked, answer: first.nonce, proof: shown });
    const proven = same(second.proof, proof(key, "inviter", exchanged));
    if (!proven || !same(second.nonce, first.nonce)) throw new Refused("join_unproven");
    this.peers.set(card.id, { card, trusted: true, address });
    return card.id;
  }

  /**
   * Submit processes to a peer, in one message if there are several, and return their pids.
   * `way` are the colonies beyond the peer, `hops` is how many hops are allowed.
   */
  async submit(id, specs, { way = [], hops = way.length + 1 } = {}) {
    const [card, address] = this.#to(id);
    const sent = specs.map((spec) => {
      const pid = bytesToHex(randomBytes(32));
      const conditions = { ...spec.conditions, colonyname: way.join("/") || id };
      const text = utf8ToBytes(JSON.stringify({ ...spec, conditions }));
      const fields = { pid, attempt: 1, spec: text, initiator: "someone", hops, path: [] };
      const message = { ...fields, target: "" };
      const body = this.sign("submit", id, message, derivedCti(pid, 1));
      const asked = bytesToHex(sha(body));
      const forward = { pid, attempt: 1, peer: id, body, asked, wanted: way, late: [] };
      this.forwards.set(pid, forward);
      return forward;
    });
    if (sent.length === 1) {
      const options = { answer: "receipt" };
      const [{ pid, body }] = sent;
      const { told } = await this.#post(card, address, "/v2/submit", "submit", body, options);
      this.#accepted(this.forwards.get(pid), told);
    } else {
      const whole = this.sign("submits", id, { submits: sent.map(({ body }) => body) });
      const options = { answer: "receipts" };
      const { told } = await this.#post(card, address, "/v2/submits", "submits", whole, options);
      if (told.answers.length !== sent.length) throw new Lost("another number of answers");
      told.answers.forEach(({ status, body }, at) => {
        const reply = { status, body };
        if (status !== 200) throw this.#refused(card, "/v2/submit", sent[at].body, reply);
        const keyOf = (issuer) => (issuer === id ? card.key : undefined);
        const limit = SIZES.receipt[0];
        const about = { keyOf, audiences: [this.id], clock: now(), limit };
        this.#accepted(sent[at], parse("receipt", open(body, "receipt", about).payload));
      });
    }
    return sent.map(({ pid }) => pid);
  }

  /** Check a receipt of a submission. Throws Lost: any other counts as no answer. */
  #accepted(forward, told) {
    const { pid, attempt, asked } = forward;
    const remote = localId(this.id, pid, attempt);
    const fits = told.pid === pid && told.attempt === attempt && told.status === "accepted";
    const names = bytesToHex(told.asked) === asked && told.origin === this.id;
    if (!fits || told.remote !== remote || !names) throw new Lost("a receipt of something else");
    forward.receipt = told;
  }

  /** Send the stored bytes of a submission again; returns whether the receipt is the first one. */
  async again(pid) {
    const forward = this.forwards.get(pid);
    const [card, address] = this.#to(forward.peer);
    const options = { answer: "receipt" };
    const reply = await this.#post(card, address, "/v2/submit", "submit", forward.body, options);
    this.#accepted(forward, reply.told);
    return true;
  }

  /** Cancel a process; returns the receipt's status. */
  async cancel(pid) {
    const { peer, attempt } = this.forwards.get(pid);
    const [card, address] = this.#to(peer);
    const body = this.sign("cancel", peer, { pid, attempt });
    const options = { answer: "receipt" };
    return (await this.#post(card, address, "/v2/cancel", "cancel", body, options)).told.status;
  }

  /** Poll a peer until a process has ended; returns its outcome, checked. Throws Refused, Lost. */
  async outcome(pid, seconds = 60) {
    const forward = this.forwards.get(pid);
    const until = Date.now() + seconds * 1000;
    while (!forward.ended) {
      if (Date.now() > until) throw new Lost("no outcome in time");
      await this.#collect(forward.peer, 10);
    }
    return forward.ended;
  }

  async #collect(id, wait) {
    const [card, address] = this.#to(id);
    const peer = this.peers.get(id);
    const ack = [...(peer.ack ?? [])].slice(0, 100);
    const body = this.sign("poll", id, { wait, ack });
    const options = { answer: "outcomes", seconds: wait + 60 };
    const { told } = await this.#post(card, address, "/v2/outcomes", "poll", body, options);
    peer.ack = new Set([...(peer.ack ?? [])].filter((pid) => !ack.includes(pid)));
    for (const bytes of told.outcomes) this.#ended(card, peer, bytes);
  }

  #ended(card, peer, bytes) {
    const keyOf = (id) => (id === card.id ? card.key : undefined);
    const about = { keyOf, audiences: [this.id], clock: now(), limit: SIZES.outcome[0] };
    const { pid, attempt } = parse("outcome", open(bytes, "outcome", about).payload);
    const forward = this.forwards.get(pid);
    if (!forward || forward.peer !== card.id) return;
    const known = {};
    for (const { card: one, trusted } of this.peers.values()) {
      if (trusted) (known[one.name] ??= []).push(one.id);
    }
    const { asked, wanted } = forward;
    const whose = { peer: card, mine: [this.id], asked, origin: this.id, wanted, known };
    const { outcome, signers } = checkChain(bytes, { ...whose, pid, attempt });
    const out = json(outcome.out);
    forward.ended = { state: outcome.state, out, errors: outcome.errors, signers };
    peer.ack.add(pid);
  }

  close() {
    this.server.close();
    this.server.closeAllConnections();
  }
}

function answer(response, status, body, type) {
  response.writeHead(status, { "content-type": type, "content-length": body.length });
  response.end(body);
}

async function read(request, most) {
  const parts = [];
  let size = 0;
  for await (const part of request) {
    if ((size += part.length) > most) throw new Refused("too_large");
    parts.push(part);
  }
  return Uint8Array.from(Buffer.concat(parts));
}

