// Read every vector of docs/vectors and make it again, byte for byte.
//   node vectors.mjs DIRECTORY      prints the number of checks by file; exit code 1 after a mistake

import { readFileSync } from "node:fs";
import { join } from "node:path";

import { Malformed, decode, encode } from "./cbor.mjs";
import {
  Key, Refused, authenticate, bytesToHex, derivedCti, externalAad, hashText, hexToBytes, idOf,
  inspect, localId, open, protectedHeader, seal, sha, sigStructure, utf8ToBytes,
} from "./cose.mjs";
import { proof, knock, readToken, writeToken } from "./invitation.mjs";
import { SIZES, openCard, parse } from "./messages.mjs";
import { checkChain, checkWay } from "./relay.mjs";

const directory = process.argv[2];
const keys = {};
let file = "";
const counts = {};
const mistakes = [];

/** Numbers beyond 2^53 become bigints: JSON.parse alone would round them. */
function read(name) {
  file = name;
  const text = readFileSync(join(directory, name), "utf8");
  const marked = text.replace(/([:[,]\s*)(-?\d{16,})(?=\s*[,\]}])/g, '$1{"big":"$2"}');
  return JSON.parse(marked, (_, value) => {
    if (value && typeof value === "object" && "big" in value) return BigInt(value.big);
    if (value && typeof value === "object" && "hex" in value) return hexToBytes(value.hex);
    return value;
  });
}

const plain = (value) => (value instanceof Uint8Array ? bytesToHex(value) : value);

function same(found, wanted, what) {
  counts[file] = (counts[file] ?? 0) + 1;
  if (JSON.stringify(plain(found)) !== JSON.stringify(plain(wanted))) {
    mistakes.push(`${file}: ${what}: ${plain(found)} instead of ${plain(wanted)}`);
  }
}

/** Compare what was read with the fields of a vector, which leave out those with their default. */
function compare(found, wanted, what) {
  if (wanted instanceof Uint8Array || typeof wanted !== "object" || wanted === null) {
    same(encode(found), encode(wanted), what);
    return;
  }
  const read = found instanceof Map ? Object.fromEntries(found) : found;
  if (Array.isArray(wanted)) same(read.length, wanted.length, `${what}: length`);
  for (const [name, value] of Object.entries(wanted)) compare(read[name], value, `${what}: ${name}`);
}

/** The code with which an action is refused; "" if it is not. */
function code(action) {
  try {
    action();
    return "";
  } catch (error) {
    if (error instanceof Refused) return error.code;
    throw error;
  }
}

for (const each of read("keys.json").keys) {
  const key = new Key(each.private);
  keys[key.id] = key;
  same(key.public, each.public, "public key");
  same(key.id, each.id, "id");
  same(key.sign(hexToBytes(each.es256k.message)), each.es256k.signature, "signature");
}

const cbor = read("cbor.json");
function valueOf([type, held]) {
  if (type === "int") return BigInt(held);
  if (type === "bytes") return hexToBytes(held);
  if (type === "array") return held.map(valueOf);
  if (type === "map") return new Map(held.map(([key, value]) => [valueOf(key), valueOf(value)]));
  return held;
}
for (const { value, cbor: hex } of cbor.accepted) {
  same(encode(valueOf(value)), hex, "encoding");
  same(encode(decode(hexToBytes(hex), { depth: cbor.depth })), hex, "decoded and encoded again");
}
for (const { cbor: hex, why } of cbor.refused) {
  let refused = false;
  try {
    decode(hexToBytes(hex), { depth: cbor.depth });
  } catch (error) {
    refused = error instanceof Malformed;
  }
  same(refused, true, why);
}

/** Make a message of the vectors again, in steps, and read it. */
function remake(each, now) {
  const key = keys[each.issuer];
  const { kind, audience, issued, expires } = each;
  const cti = hexToBytes(each.cti);
  const payload = encode(each.message);
  const header = protectedHeader({ issuer: key.id, audience, issued, expires, cti });
  same(payload, each.payload, `${each.name}: payload`);
  same(externalAad(kind), bytesToHex(utf8ToBytes(each.external_aad)), `${each.name}: external_aad`);
  same(header, each.protected, `${each.name}: protected`);
  same(sigStructure(kind, header, payload), each.sig_structure, `${each.name}: Sig_structure`);
  const envelope = seal(key, kind, payload, { audience, issued, expires, cti });
  same(envelope.slice(-64), each.signature, `${each.name}: signature`);
  same(envelope, each.envelope, `${each.name}: envelope`);
  same(sha(envelope), each.sha256, `${each.name}: SHA-256`);
  const limit = SIZES[kind][0];
  const about = { keyOf: (id) => keys[id]?.public, audiences: [audience], clock: now, limit };
  const opened = open(hexToBytes(each.envelope), kind, about);
  const told = parse(kind, opened.payload);
  // A field of a later version is left out of what is read, and nothing else.
  const { later, ...fields } = each.message;
  compare(told, fields, each.name);
}

const cards = read("card.json");
for (const each of cards.accepted) {
  remake(each, cards.now);
  same(openCard(hexToBytes(each.envelope), cards.now).id, each.issuer, each.name);
}
for (const { envelope, code: wanted, why } of cards.refused) {
  same(code(() => openCard(hexToBytes(envelope), cards.now)), wanted, why);
}

const envelopes = read("envelopes.json");
for (const each of envelopes.cases) remake(each, envelopes.now);
const other = envelopes.by_another_library;
const known = envelopes.cases.find((each) => each.name === other.case);
for (const [signature, wanted] of [
  [other.signature_low_s, ""],
  [other.signature_high_s, "bad_signature"],
]) {
  const bytes = hexToBytes(known.envelope.slice(0, -128) + signature);
  const issuer = keys[known.issuer].public;
  same(code(() => authenticate(inspect(bytes), known.kind, issuer)), wanted, "another library");
}

const refused = read("refused.json");
for (const each of refused.cases) {
  const { envelope, now, high_water: mark, limit, why } = each;
  const keyOf = (id) => (refused.known.includes(id) ? keys[id].public : undefined);
  const about = { keyOf, audiences: [refused.audience], clock: Math.max(now, mark), limit };
  same(code(() => open(hexToBytes(envelope), refused.kind, about)), each.code, why);
}

const derived = read("derived.json");
for (const { issuer, pid, attempt, id } of derived.local_id) {
  same(localId(issuer, pid, attempt), id, "local id");
}
for (const { parts, cti } of derived.cti) same(derivedCti(...parts), cti, "cti");
for (const { out, digest } of derived.output_digest) {
  const empty = out === "" || out === "5b5d";
  same(empty ? "" : sha(hexToBytes(out)).slice(0, 8), digest, "digest of an output");
}
const { pid, label, file: one, snapshot } = derived.files;
same(`/forwarded/${pid}/${one.mount}${one.label}`, label, "label of a file");
same(hashText([pid, one.mount, one.label, one.name].join("\n")), one.id, "id of a file");
same(hashText(`${pid}\nsnapshot ${snapshot.place}`), snapshot.id, "id of a snapshot");
const invitation = derived.invitation;
const token = readToken(invitation.token);
for (const name of ["inviter", "fingerprint", "addresses", "expires", "secret", "name", "key"]) {
  same(token[name], invitation[name], `token: ${name}`);
}
same(writeToken(token), invitation.token, "token");
const exchange = { ...invitation, nonces: invitation.nonces.map(hexToBytes) };
for (const role of ["joiner", "inviter"]) {
  same(proof(token.key, role, exchange), invitation.proofs[role], `proof of the ${role}`);
}
same(knock(token.key, hexToBytes(invitation.knock.body)), invitation.knock.mac, "knock");
const { old, new: heir, issued, until, by_old: byOld, by_new: byNew } = derived.succession;
const payload = encode({ old: keys[old].public, new: keys[heir].public });
const cti = derivedCti("succession", old, heir);
for (const [id, wanted] of [[old, byOld], [heir, byNew]]) {
  const times = { audience: "*", issued, expires: until, cti };
  same(seal(keys[id], "succession", payload, times), wanted, "succession");
  authenticate(inspect(hexToBytes(wanted)), "succession", keys[id].public);
}

const relays = read("relays.json");
const { asked } = relays;
same(sha(hexToBytes(asked.submission)), asked.sha256, "what was asked");
for (const each of relays.there) {
  const envelope = inspect(hexToBytes(each.envelope));
  authenticate(envelope, "submit", keys[envelope.issuer].public);
  let way;
  same(
    code(() => (way = checkWay(envelope, parse("submit", envelope.payload), [each.me]))),
    each.code,
    each.name,
  );
  if (way) same(way.asked, each.asked, `${each.name}: what was asked`);
}
for (const each of relays.back) {
  const peer = { id: each.peer, key: keys[each.peer].public };
  const about = { peer, mine: [each.me], asked: asked.sha256, origin: asked.origin };
  let chain;
  const { wanted, known: names } = each;
  const found = code(() => {
    chain = checkChain(hexToBytes(each.outcome), { ...about, wanted, known: names });
  });
  same(found === "", each.holds, `${each.name} (${found})`);
  if (chain) same(chain.outcome.out, each.out, `${each.name}: output`);
}

console.log(JSON.stringify({ counts, mistakes }));
process.exitCode = mistakes.length ? 1 : 0;
