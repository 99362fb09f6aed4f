// Keys and envelopes of docs/federation.md, "Identities" and "Envelope". What a payload means is in
// messages.mjs; whether its sender is trusted is for peer.mjs.

import { secp256k1 } from "@noble/curves/secp256k1.js";
import { sha256 } from "@noble/hashes/sha2.js";
import { sha3_256 } from "@noble/hashes/sha3.js";
import { bytesToHex, hexToBytes, utf8ToBytes } from "@noble/hashes/utils.js";

import { Malformed, bytesOf, decode, encode } from "./cbor.mjs";

export const WEEK = 604_800;
const AHEAD = 120;
const LATEST = 253_402_300_799;
const KINDS = (
  "card hello submit receipt cancel poll outcomes outcome capabilities introductions collect " +
  "parcels pass passed succession join welcome refusal say heard fetch chunk submits receipts " +
  "dial dialled"
).split(" ");

export { bytesToHex, hexToBytes, utf8ToBytes };
export const sha = (...parts) => sha256(bytesOf(...parts));
export const isId = (text) => typeof text === "string" && /^[0-9a-f]{64}$/.test(text);

/** A message is refused; `code` is one of docs/federation/refusals.md. */
export class Refused extends Error {
  name = "Refused";

  constructor(code, message = code) {
    super(message);
    this.code = code;
  }
}

/** SHA3-256 in hex of a text. */
export function hashText(text) {
  return bytesToHex(sha3_256(utf8ToBytes(text)));
}

/** The id of a public key of 65 bytes. */
export function idOf(publicKey) {
  return hashText(bytesToHex(publicKey));
}

/** The id that a submission has at its receiver (forwards, "Names"). */
export function localId(issuer, pid, attempt) {
  return hashText(`${issuer}/${pid}/${attempt}`);
}

/** A derived cti: the first 16 bytes of SHA-256 over the parts. */
export function derivedCti(...parts) {
  return sha(utf8ToBytes(parts.join(""))).slice(0, 16);
}

/** A private key, its public key (65 bytes) and its id. */
export class Key {
  constructor(secret) {
    this.secret = typeof secret === "string" ? hexToBytes(secret) : secret;
    this.public = secp256k1.getPublicKey(this.secret, false);
    this.id = idOf(this.public);
  }

  static generate() {
    return new Key(secp256k1.utils.randomSecretKey());
  }

  /** ES256K: r and s, 32 bytes each, s low, nonce by RFC 6979. */
  sign(message) {
    return secp256k1.sign(message, this.secret, { prehash: true, lowS: true });
  }
}

function verify(publicKey, message, signature) {
  try {
    return secp256k1.verify(signature, message, publicKey, { prehash: true, lowS: true });
  } catch {
    return false;
  }
}

/** Whether bytes are a public key, uncompressed. */
export function isPublicKey(bytes) {
  return bytes.length === 65 && bytes[0] === 4;
}

export function externalAad(kind) {
  return utf8ToBytes(`colonyd/1/${kind}`);
}

export function sigStructure(kind, header, payload) {
  return encode(["Signature1", header, externalAad(kind), payload]);
}

export function protectedHeader({ issuer, audience, issued, expires, cti }) {
  const claims = new Map([[1, issuer], [3, audience], [4, expires], [6, issued], [7, cti]]);
  return encode(new Map([[1, -47], [4, hexToBytes(issuer)], [15, claims]]));
}

/** A signed envelope. `payload` are bytes. */
export function seal(key, kind, payload, { audience, issued, expires, cti }) {
  const header = protectedHeader({ issuer: key.id, audience, issued, expires, cti });
  const signature = key.sign(sigStructure(kind, header, payload));
  return bytesOf([0xd2], encode([header, {}, payload, signature]));
}

const integer = (value) => typeof value === "bigint" || Number.isSafeInteger(value);

function structure(bytes) {
  if (bytes[0] !== 0xd2) throw new Malformed("no COSE_Sign1 with its tag");
  const parts = decode(bytes.subarray(1), { depth: 3 });
  if (!Array.isArray(parts) || parts.length !== 4) throw new Malformed("not four parts");
  const [header, open, payload, signature] = parts;
  if (!(header instanceof Uint8Array) || !(payload instanceof Uint8Array)) {
    throw new Malformed("a part that is no byte string");
  }
  if (!(open instanceof Map) || open.size) throw new Malformed("unprotected headers");
  if (!(signature instanceof Uint8Array) || signature.length !== 64) {
    throw new Malformed("a signature that has not 64 bytes");
  }
  return { header, payload, signature };
}

/** Read an envelope without checking who signed it. Throws Refused: malformed, bad_algorithm. */
export function inspect(bytes) {
  try {
    const { header, payload, signature } = structure(bytes);
    const heads = decode(header, { depth: 3 });
    if (!(heads instanceof Map)) throw new Malformed("no headers");
    const [algorithm, kid, claims] = [heads.get(1), heads.get(4), heads.get(15)];
    if (integer(algorithm) && algorithm !== -47) throw new Refused("bad_algorithm");
    if (algorithm !== -47 || heads.size !== 3) throw new Malformed("other headers");
    if (!(claims instanceof Map) || claims.size !== 5) throw new Malformed("other claims");
    const [issuer, audience, cti] = [claims.get(1), claims.get(3), claims.get(7)];
    const [expires, issued] = [claims.get(4), claims.get(6)];
    if (!isId(issuer)) throw new Malformed("an issuer that is no id");
    if (!(kid instanceof Uint8Array) || bytesToHex(kid) !== issuer) {
      throw new Malformed("a kid that is not the issuer's");
    }
    if (typeof audience !== "string") throw new Malformed("no audience");
    if (!(cti instanceof Uint8Array) || cti.length < 1 || cti.length > 64) {
      throw new Malformed("a cti that has not 1 to 64 bytes");
    }
    if (!integer(issued) || issued < 0) throw new Malformed("an iat before 1970, or none");
    if (!integer(expires) || expires <= issued || expires > LATEST) {
      throw new Malformed("an exp that is not after iat, or too late, or none");
    }
    return { header, payload, signature, issuer, audience, cti, issued, expires, bytes };
  } catch (error) {
    if (error instanceof Malformed) throw new Refused("malformed", error.message);
    throw error;
  }
}

/** Checks 6 and 7. `publicKey` is undefined if no key of the issuer is known. */
export function authenticate(envelope, kind, publicKey, { guess = true } = {}) {
  if (!publicKey || !isPublicKey(publicKey) || idOf(publicKey) !== envelope.issuer) {
    throw new Refused("unknown_issuer");
  }
  const { header, payload, signature } = envelope;
  const holds = (kind) => verify(publicKey, sigStructure(kind, header, payload), signature);
  if (holds(kind)) return;
  const other = guess && KINDS.find((each) => each !== kind && holds(each));
  throw new Refused(other ? "wrong_kind" : "bad_signature");
}

/** Checks 9 to 11. `clock` is in seconds. */
export function timely({ issued, expires }, clock) {
  if (issued > clock + AHEAD) throw new Refused("not_yet_valid");
  if (expires <= clock) throw new Refused("expired");
  if (expires - issued > WEEK) throw new Refused("lifetime_too_long");
}

/**
 * Open an envelope: checks 2 and 5 to 11 of "Order of checks", and return it.
 * `keyOf(issuer)` finds a public key, `audiences` holds the ids that are ours.
 */
export function open(bytes, kind, { keyOf, audiences, clock, limit, guess }) {
  if (bytes.length > limit) throw new Refused("too_large");
  const envelope = inspect(bytes);
  authenticate(envelope, kind, keyOf(envelope.issuer), { guess });
  if (!audiences.includes(envelope.audience)) throw new Refused("wrong_audience");
  timely(envelope, clock);
  return envelope;
}
