// Check an implementation of the federation protocol from outside.
//   node conformance.mjs HOST:PORT [--invitation TOKEN]
// One line for each requirement: ok, FAIL or skip, the section of docs/federation.md or of a page below
// it, and the requirement. Exit code 0 if all hold, 1 if one does not, 2 if some were not checked: what
// only a trusted peer may do needs an invitation, which this colony redeems. It stays trusted: use an
// invitation for a colony made for this, and remove the peer afterwards. 64 for wrong arguments.

import { randomBytes } from "node:crypto";
import { connect } from "node:tls";

import { bytesOf, encode } from "./cbor.mjs";
import { Colony } from "./colony.mjs";
import {
  Key, WEEK, authenticate, bytesToHex, derivedCti, hexToBytes, inspect, localId, open,
  protectedHeader, sha, sigStructure, utf8ToBytes,
} from "./cose.mjs";
import { knock, proof, readToken } from "./invitation.mjs";
import { SIZES, openCard, parse } from "./messages.mjs";
import { exchange } from "./tls.mjs";

const [url = "", option, text, ...more] = process.argv.slice(2);
const address = url.replace(/^https:\/\//, "").replace(/\/$/, "");
const fits = /^(\[[0-9a-fA-F:.%]+\]|[^\s:/]+):\d{1,5}$/.test(address) && !more.length;
if (!fits || (option && (option !== "--invitation" || !text))) {
  const asked = ["-h", "--help"].includes(url);
  (asked ? console.log : console.error)(
    "usage: conformance HOST:PORT [--invitation TOKEN], such as\n" +
    "  scripts/conformance colony.example:50081 --invitation AEQSPJF6YGUN...\n" +
    "HOST:PORT is where peers connect, the federation port; TOKEN is of `colony peer invite` there.",
  );
  process.exit(asked ? 0 : 64);
}
const now = () => Math.floor(Date.now() / 1000);
const HALF = BigInt("0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141");
const same = (one, two) => Buffer.compare(one, two) === 0;
const must = (holds, why) => {
  if (!holds) throw new Error(why);
};

const me = new Colony("conformance", async () => []);
const stranger = new Colony("stranger", async () => []);
await me.listen();
await stranger.listen();
const found = { ok: 0, FAIL: 0, skip: 0 };
let card = null; // of the colony under test
let trusted = false;

const report = (result, section, requirement, why = "") => {
  found[result] += 1;
  console.log(`${result.padEnd(4)} ${section}: ${requirement}${why && ` (${why})`}`);
};

/** Check one requirement; `action` throws what is wrong, or returns a word to skip it. */
async function check(section, requirement, action, needs = "nothing") {
  if ((needs !== "nothing" && !card) || (needs === "trust" && !trusted)) {
    return report("skip", section, requirement, card ? "needs --invitation" : "there is no card");
  }
  try {
    await action();
    report("ok", section, requirement);
  } catch (error) {
    report("FAIL", section, requirement, error.message);
  }
}
const checkTrusted = (section, requirement, action) => check(section, requirement, action, "trust");

/** Post bytes; a refusal for a rate is waited for, and the same bytes are sent again. */
async function post(path, body, headers = {}) {
  const fingerprint = card ? bytesToHex(card.fp) : "";
  for (let left = 3; ; left -= 1) {
    const reply = await exchange(address, path, { body, fingerprint, headers, seconds: 60 });
    if (reply.status !== 429 || !left) return reply;
    const seconds = Math.min(Number(reply.headers["retry-after"] ?? 1), 60);
    await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
  }
}

/** Whether an answer is a refusal with this code (or one of several) and status. */
async function refused(path, body, codes, status) {
  const reply = await post(path, body);
  const told = reply.status === 200 ? { code: "(accepted)" } : JSON.parse(Buffer.from(reply.body));
  const named = [codes].flat().includes(told.code);
  must(named && reply.status === status, `${reply.status} ${told.code}: ${told.message ?? ""}`);
  must(typeof told.message === "string", "a refusal has a message");
  must(Number.isInteger(told.clock), "a refusal has the clock");
  return told;
}

/** An answer, checked as a client does. */
async function asked(path, kind, body, headers = {}) {
  const reply = await post(path, body, headers);
  must(reply.status === 200, `${reply.status} ${Buffer.from(reply.body).toString().slice(0, 200)}`);
  const type = reply.headers["content-type"] ?? "";
  must(type.startsWith("application/cose"), `the content type is ${type}`);
  const keyOf = (id) => (id === card.id ? card.key : undefined);
  const about = { keyOf, audiences: [me.id, stranger.id], clock: now(), limit: SIZES[kind][0] };
  const envelope = open(reply.body, kind, about);
  return { told: parse(kind, envelope.payload), envelope, body: reply.body };
}

const SPEC = { funcname: "conformance", args: [], conditions: { executortype: "conformance" } };
const fieldsOf = (more = {}) => ({
  pid: bytesToHex(randomBytes(32)),
  attempt: 1,
  spec: utf8ToBytes(JSON.stringify({ ...SPEC, conditions: { ...SPEC.conditions, colonyname: card.id } })),
  initiator: "conformance",
  hops: 1,
  path: [],
  ...more,
});
const submission = (more) => {
  const fields = fieldsOf(more);
  return me.sign("submit", card.id, fields, derivedCti(fields.pid, fields.attempt));
};

/** A submission whose parts are changed before, or after, it is signed. */
function forged({ issuer = me.key, claims = {}, header, aad = "submit", payload, after } = {}) {
  const cti = randomBytes(16);
  const issued = now();
  const about = { issuer: issuer.id, audience: card.id, issued, expires: issued + 600, cti };
  const head = header ? header({ ...about, ...claims }) : protectedHeader({ ...about, ...claims });
  const held = payload ?? encode(fieldsOf());
  const signature = issuer.sign(
    aad === "" ? encode(["Signature1", head, new Uint8Array(), held]) : sigStructure(aad, head, held),
  );
  const parts = after ? after([head, {}, held, signature]) : [head, {}, held, signature];
  return bytesOf([0xd2], encode(parts));
}

/** The protected header, with changes of headers and claims. */
const headers = (heads = {}, claimed = {}) => (about) => {
  const claims = { 1: about.issuer, 3: about.audience, 4: about.expires, 6: about.issued, 7: about.cti };
  const numbered = (fields) =>
    new Map(Object.entries(fields).map(([label, value]) => [Number(label), value]));
  const inner = numbered({ ...claims, ...claimed });
  const kid = hexToBytes(about.issuer);
  return encode(numbered({ 1: -47, 4: kid, 15: inner, ...heads }));
};

function highS(signature) {
  const s = BigInt(`0x${bytesToHex(signature.slice(32))}`);
  return bytesOf(signature.slice(0, 32), hexToBytes((HALF - s).toString(16).padStart(64, "0")));
}

// TLS and card

await check("TLS", "nothing older than TLS 1.3 is spoken", () => {
  const [host, port] = [address.slice(0, address.lastIndexOf(":")), address.split(":").at(-1)];
  return new Promise((resolve, reject) => {
    const options = { host: host.replace(/[[\]]/g, ""), port, rejectUnauthorized: false };
    const socket = connect({ ...options, minVersion: "TLSv1.2", maxVersion: "TLSv1.2" });
    socket.once("secureConnect", () => {
      socket.destroy();
      reject(new Error("TLS 1.2 was accepted"));
    });
    socket.once("error", (error) => {
      if (error.code === "ECONNREFUSED") reject(error);
      else resolve();
    });
  });
});
await check("Card", "the card proves itself, at GET /v1/card", async () => {
  const reply = await exchange(address, "/v1/card", { method: "GET", most: SIZES.card[0] });
  must(reply.status === 200, `status ${reply.status}`);
  must(reply.headers["content-type"]?.startsWith("application/cbor"), "the content type");
  const shown = openCard(reply.body, now());
  must(bytesToHex(shown.fp) === reply.shown, "fp is not the certificate that was shown");
  card = shown;
});
const checkCard = (section, requirement, action) => check(section, requirement, action, "card");
await checkCard("Card", "it lists version 2", () => must(card.ver.includes(2), `${card.ver}`));
await checkCard("Card", "a clock a day behind or ahead accepts it", () => {
  openCard(card.bytes, now() - 86_000);
});

// Paths and versions

const noise = Uint8Array.from([0xde, 0xad, 0xbe, 0xef]);
await checkCard("HTTP, Paths", "an unknown path is not_found", () =>
  refused("/v2/nothing", noise, "not_found", 404),
);
await checkCard("HTTP, Paths", "another method than the path has is method", async () => {
  const fingerprint = bytesToHex(card.fp);
  const reply = await exchange(address, "/v2/submit", { method: "GET", fingerprint });
  must(reply.status === 405 && JSON.parse(Buffer.from(reply.body)).code === "method", reply.status);
});
for (const path of ["/v1/submit", "/v1/cancel", "/v1/outcomes"]) {
  await checkCard("Paths", `${path} of version 1 is version`, () =>
    refused(path, noise, "version", 400),
  );
}
await checkCard("Signed refusals", "version at /v1/submit is signed for its sender", async () => {
  const body = submission();
  signedRefusal(await refused("/v1/submit", body, "version", 400), body, "/v1/submit");
});

function signedRefusal({ code, signed }, body, path) {
  must(signed, "the refusal is not signed");
  const envelope = inspect(Uint8Array.from(Buffer.from(signed, "base64")));
  authenticate(envelope, "refusal", card.key);
  must(envelope.audience === inspect(body).issuer, "it is for another colony");
  const told = parse("refusal", envelope.payload);
  must(told.code === code, `it is signed as ${told.code}`);
  must(same(told.digest, sha(body)), "its digest is of other bytes");
  must(told.path === path, `its path is ${told.path}`);
}

// Strangers

const helloOf = (colony, shown = colony) => {
  const fields = { card: shown.card(), nonce: Uint8Array.from(randomBytes(16)) };
  return colony.sign("hello", card.id, fields);
};
await checkCard("Order of checks, 6", "a submission of an unknown colony is unknown_issuer", () =>
  refused("/v2/submit", forged({ issuer: Key.generate() }), "unknown_issuer", 401),
);
await checkCard("Order of checks, 13", "the hello of a stranger is untrusted, and signed", async () => {
  const body = helloOf(stranger);
  signedRefusal(await refused("/v1/hello", body, "untrusted", 403), body, "/v1/hello");
});
await checkCard("Order of checks, 4", "a hello with another colony's card is unknown_issuer", () =>
  refused("/v1/hello", helloOf(stranger, me), "unknown_issuer", 401),
);
await checkCard("Invitations", "a proof for an unknown invitation is join_refused", async () => {
  const nonce = Uint8Array.from(randomBytes(16));
  const fields = { card: stranger.card(), invitation: bytesToHex(randomBytes(8)), nonce };
  const first = stranger.sign("join", card.id, fields);
  const { told } = await asked("/v1/join", "welcome", first);
  const shown = Uint8Array.from(randomBytes(32));
  const second = stranger.sign("join", card.id, { ...fields, answer: told.nonce, proof: shown });
  await refused("/v1/join", second, "join_refused", 403);
});

if (card && text) {
  await check("Invitations", "an invitation makes trust mutual, and is redeemed again by its joiner", async () => {
    const token = readToken(text);
    must(token.inviter === card.id, "the token is another colony's");
    must((await me.join(text)) === card.id, "the inviter's proof");
    trusted = true;
    await me.join(text);
  });
  await check("Invitations", "a redeemed one is join_refused for another colony", async () => {
    const token = readToken(text);
    const nonce = Uint8Array.from(randomBytes(16));
    const fields = { card: stranger.card(), invitation: token.name, nonce };
    const first = stranger.sign("join", card.id, fields);
    const knocked = (body) => ({ "colonyd-knock": `${token.name} ${knock(token.key, body)}` });
    const { told } = await asked("/v1/join", "welcome", first, knocked(first));
    const nonces = [nonce, told.nonce];
    const { fingerprint, inviter, key } = token;
    const shown = proof(key, "joiner", { joiner: stranger.id, inviter, nonces, fingerprint });
    const second = stranger.sign("join", card.id, { ...fields, answer: told.nonce, proof: shown });
    await refused("/v1/join", second, "join_refused", 403);
  });
}

// Envelopes

const cases = [
  ["Envelope", "noise is malformed", "malformed", 400, () => noise],
  ["Envelope", "nothing is malformed", "malformed", 400, () => new Uint8Array()],
  ["CBOR", "a trailing byte is malformed", "malformed", 400, () => bytesOf(forged(), [0])],
  ["CBOR", "a cut message is malformed", "malformed", 400, () => forged().slice(0, -1)],
  ["CBOR", "an array of indefinite length is malformed", "malformed", 400, () =>
    bytesOf([0xd2, 0x9f], forged().slice(2), [0xff])],
  ["CBOR", "a head that is not the shortest is malformed", "malformed", 400, () =>
    bytesOf([0xd2, 0x98, 4], forged().slice(2))],
  ["Envelope", "one without its tag is malformed", "malformed", 400, () => forged().slice(1)],
  ["Envelope", "an unprotected header is malformed", "malformed", 400, () =>
    forged({ after: ([head, , payload, end]) => [head, new Map([[99, 0]]), payload, end] })],
  ["Envelope", "a signature of 63 bytes is malformed", "malformed", 400, () =>
    forged({ after: ([head, open, payload, end]) => [head, open, payload, end.slice(1)] })],
  ["Envelope", "one more header is malformed", "malformed", 400, () =>
    forged({ header: headers({ 99: 0 }) })],
  ["Envelope", "one more claim is malformed", "malformed", 400, () =>
    forged({ header: headers({}, { 99: 0 }) })],
  ["Envelope", "a kid that is not the issuer's is malformed", "malformed", 400, () =>
    forged({ header: headers({ 4: hexToBytes(card.id) }) })],
  ["Envelope", "exp as text is malformed", "malformed", 400, () =>
    forged({ header: headers({}, { 4: "soon" }) })],
  ["Envelope", "exp that is not after iat is malformed", "malformed", 400, () =>
    forged({ header: headers({}, { 4: now(), 6: now() }) })],
  ["Envelope", "iat before 1970 is malformed", "malformed", 400, () =>
    forged({ header: headers({}, { 6: -1 }) })],
  ["Envelope", "an empty cti is malformed", "malformed", 400, () =>
    forged({ header: headers({}, { 7: new Uint8Array() }) })],
  ["Envelope", "a cti of 65 bytes is malformed", "malformed", 400, () =>
    forged({ header: headers({}, { 7: new Uint8Array(65) }) })],
  ["Order of checks, 5", "ES256 is bad_algorithm", "bad_algorithm", 400, () =>
    forged({ header: headers({ 1: -7 }) })],
  ["Order of checks, 7", "another payload than was signed is bad_signature", "bad_signature", 401, () =>
    forged({ after: ([head, open, , end]) => [head, open, encode(fieldsOf()), end] })],
  ["Envelope", "a high s is bad_signature", "bad_signature", 401, () =>
    forged({ after: ([head, open, payload, end]) => [head, open, payload, highS(end)] })],
  ["Envelope", "a signature without external_aad is bad_signature", "bad_signature", 401, () =>
    forged({ aad: "" })],
  ["Order of checks, 8", "a message for another colony is wrong_audience", "wrong_audience", 400, () =>
    forged({ claims: { audience: me.id } })],
  ["Order of checks, 8", "one for * is wrong_audience", "wrong_audience", 400, () =>
    forged({ claims: { audience: "*" } })],
  ["Order of checks, 9", "iat 200 s ahead is not_yet_valid", "not_yet_valid", 400, () =>
    forged({ claims: { issued: now() + 200, expires: now() + 600 } })],
  ["Order of checks, 10", "exp in the past is expired", "expired", 400, () =>
    forged({ claims: { issued: now() - 600, expires: now() - 2 } })],
  ["Order of checks, 11", "more than 7 days are lifetime_too_long", "lifetime_too_long", 400, () =>
    forged({ claims: { issued: now() - 9, expires: now() - 9 + WEEK + 1 } })],
  ["Order of checks", "changed, for another, expired: bad_signature is first", "bad_signature", 401, () =>
    forged({
      claims: { audience: me.id, issued: now() - 600, expires: now() - 2 },
      after: ([head, open, , end]) => [head, open, encode(fieldsOf()), end],
    })],
  ["Order of checks", "for another, expired: wrong_audience is first", "wrong_audience", 400, () =>
    forged({ claims: { audience: me.id, issued: now() - 600, expires: now() - 2 } })],
  ["Messages", "a payload without a required key is malformed", "malformed", 400, () => {
    const { initiator, ...fields } = fieldsOf();
    return forged({ payload: encode(fields) });
  }],
  ["Messages", "text in the place of bytes is malformed", "malformed", 400, () =>
    forged({ payload: encode(fieldsOf({ spec: "{}" })) })],
  ["CBOR", "a float in a payload is malformed", "malformed", 400, () =>
    forged({ payload: bytesOf([0xa1, 0x61, 0x61], [0xf9, 0x7e, 0]) })],
  ["CBOR", "a payload nested 5 deep is malformed", "malformed", 400, () =>
    forged({ payload: encode(fieldsOf({ zz: [[[[]]]] })) })],
  ["CBOR", "keys of a payload out of order are malformed", "malformed", 400, () =>
    forged({ payload: bytesOf([0xa2, 0x61, 0x62, 0, 0x61, 0x61, 0]) })],
  ["Acceptance, 1", "hops of 0 are hops", "hops", 400, () => submission({ hops: 0 })],
  ["Acceptance, 1", "hops of 5 are hops", "hops", 400, () => submission({ hops: 5 })],
  ["Acceptance, 1", "as many colonies before as hops is hops", "hops", 400, () =>
    submission({ path: [stranger.id] })],
  ["Acceptance, 2", "a path with the receiver in it is loop", "loop", 400, () =>
    submission({ hops: 3, path: [card.id] })],
  ["Acceptance, 3", "a path without a proof is bad_path", "bad_path", 400, () =>
    submission({ hops: 3, path: [stranger.id], spec: new Uint8Array() })],
  ["Acceptance, 5", "a spec that is no JSON is bad_spec", "bad_spec", 400, () =>
    submission({ spec: utf8ToBytes("{") })],
  ["Acceptance, 5", "an input that is no array is bad_input", "bad_input", 400, () =>
    submission({ input: utf8ToBytes("{}") })],
];
for (const [section, requirement, code, status, make] of cases) {
  await checkTrusted(section, `${requirement}`, async () => {
    const body = make();
    const told = await refused("/v2/submit", body, code, status);
    let addressed = true;
    try {
      inspect(body);
    } catch {
      addressed = false; // there may be nobody to sign for
    }
    if (addressed) signedRefusal(told, body, "/v2/submit");
  });
}
await checkTrusted("Order of checks, 7", "a cancel at /v2/submit is wrong_kind or bad_signature", async () => {
  const body = me.sign("cancel", card.id, { pid: fieldsOf().pid, attempt: 1 });
  const told = JSON.parse(Buffer.from((await post("/v2/submit", body)).body));
  must(["wrong_kind", "bad_signature"].includes(told.code), told.code);
});

// Sizes

await checkTrusted("Sizes", "a byte more than the kind may have is too_large, read or not", () =>
  refused("/v2/cancel", new Uint8Array(SIZES.cancel[0] + 1), "too_large", 413),
);
await checkTrusted("Sizes", "more items than the kind may have are malformed", () => {
  const fields = { pid: fieldsOf().pid, attempt: 1, zz: Array(70).fill(0) };
  return refused("/v2/cancel", me.sign("cancel", card.id, fields), "malformed", 400);
});

// What a trusted peer may do

await checkTrusted("Clocks", "a hello is answered with its nonce and the clock", async () => {
  const nonce = Uint8Array.from(randomBytes(16));
  const body = me.sign("hello", card.id, { card: me.card(), nonce });
  const { told } = await asked("/v1/hello", "hello", body);
  must(same(told.nonce, nonce), "another nonce");
  must(Math.abs(Number(told.clock) - now()) < 82_800, `its clock is ${told.clock}`);
  must(openCard(told.card, now()).id === card.id, "the card in it is another colony's");
});

const submitted = (body) => asked("/v2/submit", "receipt", body);
const cancelOf = (pid) => me.sign("cancel", card.id, { pid, attempt: 1 });
const polled = (ack = []) =>
  asked("/v2/outcomes", "outcomes", me.sign("poll", card.id, { wait: 0, ack }));

/** Check a receipt for a process that is there. */
function names({ told, envelope }, body, status) {
  const { pid, attempt } = parse("submit", inspect(body).payload);
  must(told.pid === pid && told.attempt === attempt, "it is of another process");
  must(told.status === status, `its status is ${told.status}`);
  must(told.remote === localId(me.id, pid, attempt), `remote is ${told.remote}`);
  must(same(told.asked, sha(body)), "asked is not the submission");
  must(told.origin === me.id, `origin is ${told.origin}`);
  return envelope;
}

const open1 = { body: null, pid: "" };
await checkTrusted("What was asked", "a receipt names the submission, its origin and the local id", async () => {
  open1.body = submission({ later: "a key of a later version" });
  open1.pid = parse("submit", inspect(open1.body).payload).pid;
  const found = await submitted(open1.body);
  const envelope = names(found, open1.body, "accepted");
  const cti = derivedCti("receipt", bytesToHex(inspect(open1.body).cti), "accepted");
  must(same(envelope.cti, cti), "its cti is not derived from that of the submission");
  open1.receipt = found.body;
});
await checkTrusted("Acceptance", "the same bytes get the first receipt, byte for byte", async () => {
  must(same((await submitted(open1.body)).body, open1.receipt), "another receipt");
});
await checkTrusted("Acceptance", "other bytes under the same pid are id_reuse", async () => {
  const body = submission({ pid: open1.pid, attempt: 2 });
  signedRefusal(await refused("/v2/submit", body, "id_reuse", 409), body, "/v2/submit");
});
await checkTrusted("Acceptance", "the cancel of an open process is cancelled, with remote", async () => {
  names(await asked("/v2/cancel", "receipt", cancelOf(open1.pid)), open1.body, "cancelled");
});
await checkTrusted("Outcomes", "its outcome is signed, and names the submission", async () => {
  const mine = ({ told }) =>
    told.outcomes.filter((each) => parse("outcome", inspect(each).payload).pid === open1.pid);
  const [first] = mine(await polled());
  must(first, "there is no outcome");
  const envelope = inspect(first);
  authenticate(envelope, "outcome", card.key);
  const told = parse("outcome", envelope.payload);
  must(envelope.audience === me.id, "it is for another colony");
  must(told.state === 4, `its state is ${told.state}`);
  must(told.localpid === localId(me.id, open1.pid, 1), "localpid");
  must(same(told.asked, sha(open1.body)) && told.origin === me.id, "it names another submission");
  must(same(envelope.cti, derivedCti("outcome", open1.pid, 1)), "its cti is not derived");
  const [again] = mine(await polled());
  must(again && same(first, again), "the second poll brought other bytes");
  must(!mine(await polled([open1.pid])).length, "it comes again after its acknowledgement");
});
await checkTrusted("Acceptance", "the cancel of a closed process is already_closed", async () => {
  names(await asked("/v2/cancel", "receipt", cancelOf(open1.pid)), open1.body, "already_closed");
});
await checkTrusted("Acceptance", "a cancel that comes first wins", async () => {
  const body = submission();
  const { pid } = parse("submit", inspect(body).payload);
  const first = await asked("/v2/cancel", "receipt", cancelOf(pid));
  must(first.told.status === "cancelled" && first.told.remote === "", "the receipt of the cancel");
  const again = await asked("/v2/cancel", "receipt", cancelOf(pid));
  must(same(first.body, again.body), "a second cancel gets another receipt");
  const late = await submitted(body);
  must(late.told.status === "cancelled" && late.told.remote === "", "the submission ran");
});
await checkTrusted("Together", "each submission gets the answer that it would get alone", async () => {
  const [good, bad] = [submission(), submission({ hops: 9 })];
  const body = me.sign("submits", card.id, { submits: [good, bad] });
  const reply = await post("/v2/submits", body);
  if (reply.status === 404) return; // a colony may leave it out
  const { told } = await asked("/v2/submits", "receipts", body);
  must(told.answers.length === 2, "another number of answers");
  const keyOf = () => card.key;
  const about = { keyOf, audiences: [me.id], clock: now(), limit: SIZES.receipt[0] };
  const envelope = open(told.answers[0].body, "receipt", about);
  names({ told: parse("receipt", envelope.payload), envelope }, good, "accepted");
  must(told.answers[1].status === 400, `status ${told.answers[1].status}`);
  signedRefusal(JSON.parse(Buffer.from(told.answers[1].body)), bad, "/v2/submit");
  await asked("/v2/cancel", "receipt", cancelOf(parse("submit", inspect(good).payload).pid));
});
await checkTrusted("Capabilities", "a statement is answered with one", async () => {
  const seq = BigInt(me.seq) * (1n << 24n) + 1n;
  const body = me.sign("capabilities", card.id, { seq });
  const reply = await post("/v1/capabilities", body);
  if (reply.status === 404) return; // a colony may leave it out
  const again = me.sign("capabilities", card.id, { seq: seq + 1n });
  must((await asked("/v1/capabilities", "capabilities", again)).told.seq >= 0, "no number");
});

console.log(`${found.ok} hold, ${found.FAIL} do not, ${found.skip} were not checked`);
me.close();
stranger.close();
process.exitCode = found.FAIL ? 1 : found.skip ? 2 : 0;
