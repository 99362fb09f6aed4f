// The token of an invitation and the proofs made from it: docs/federation/trust.md, "Invitations".

import { createHmac } from "node:crypto";
import { isIP } from "node:net";

import { bytesOf, encode } from "./cbor.mjs";
import { Refused, bytesToHex, hexToBytes, sha, utf8ToBytes } from "./cose.mjs";

const ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
const LIKE = { 0: "O", 1: "I", 8: "B" };
const MOST = 2048;

const mac = (key, ...parts) =>
  Uint8Array.from(createHmac("sha256", key).update(bytesOf(...parts)).digest());
const checksum = (data) => sha(utf8ToBytes("colonyd/1/token"), data).slice(0, 4);

function toBase32(data) {
  let bits = "";
  for (const byte of data) bits += byte.toString(2).padStart(8, "0");
  return (bits.match(/.{1,5}/g) ?? [])
    .map((five) => ALPHABET[parseInt(five.padEnd(5, "0"), 2)])
    .join("");
}

function fromBase32(text) {
  let bits = "";
  for (const letter of text) {
    const value = ALPHABET.indexOf(LIKE[letter] ?? letter);
    if (value < 0) throw new Refused("bad_token", `no letter of a token: ${letter}`);
    bits += value.toString(2).padStart(5, "0");
  }
  return Uint8Array.from(bits.match(/.{8}/g) ?? [], (eight) => parseInt(eight, 2));
}

function writeAddress(address) {
  const [, bare, named, port] = /^(?:\[(.+)\]|([^:]+)):(\d+)$/.exec(address);
  const host = bare ?? named;
  const tail = Uint8Array.of(port >> 8, port & 255);
  if (isIP(host) === 4) return bytesOf([4], host.split(".").map(Number), tail);
  if (isIP(host) === 6 && !host.includes("%")) return bytesOf([6], sixteen(host), tail);
  const name = utf8ToBytes(host);
  return bytesOf([0, name.length], name, tail);
}

function sixteen(host) {
  const [left, right] = host.split("::").map((half) => (half ? half.split(":") : []));
  const gap = right ? Array(8 - left.length - right.length).fill("0") : [];
  const groups = [...left, ...gap, ...(right ?? [])].map((group) => parseInt(group, 16));
  return groups.flatMap((group) => [group >> 8, group & 255]);
}

/** The shortest text of an IPv6 address of 16 bytes, as URL writes it. */
function sixText(bytes) {
  const groups = Array.from({ length: 8 }, (_, at) =>
    ((bytes[2 * at] << 8) | bytes[2 * at + 1]).toString(16),
  );
  return new URL(`http://[${groups.join(":")}]`).hostname;
}

/** What follows from a secret: the key of the proofs, and the name of the invitation. */
export function derive(secret) {
  return {
    key: mac(secret, utf8ToBytes("colonyd/1/invitation/key")),
    name: bytesToHex(mac(secret, utf8ToBytes("colonyd/1/invitation/name")).slice(0, 8)),
  };
}

export function writeToken({ secret, inviter, fingerprint, expires, addresses }) {
  const until = new Uint8Array(5);
  let left = expires;
  for (let at = 4; at >= 0; at -= 1, left = Math.floor(left / 256)) until[at] = left % 256;
  const parts = [[1], secret, hexToBytes(inviter), hexToBytes(fingerprint), until];
  const data = bytesOf(...parts, [addresses.length], ...addresses.map(writeAddress));
  return toBase32(bytesOf(data, checksum(data)));
}

/** Read a token. Throws Refused: bad_token. */
export function readToken(text) {
  const bad = (why) => {
    throw new Refused("bad_token", why);
  };
  if (text.length > MOST) bad("too long");
  const bytes = fromBase32(text.replace(/[\s-]/g, "").toUpperCase());
  const data = bytes.slice(0, -4);
  if (bytes.length < 92 || Buffer.compare(checksum(data), bytes.slice(-4))) bad("its sum is wrong");
  if (data[0] !== 1) bad("another version");
  let at = 0;
  const take = (count) => {
    if (at + count > data.length) bad("cut short");
    return data.slice(at, (at += count));
  };
  take(1);
  const found = {
    secret: take(16),
    inviter: bytesToHex(take(32)),
    fingerprint: bytesToHex(take(32)),
    expires: take(5).reduce((sum, byte) => sum * 256 + byte, 0),
    addresses: [],
  };
  const [count] = take(1);
  if (count > 4) bad("too many addresses");
  for (let left = count; left; left -= 1) {
    const [kind] = take(1);
    let host;
    if (kind === 4) host = take(4).join(".");
    else if (kind === 6) host = sixText(take(16));
    else if (kind === 0) host = new TextDecoder("utf-8", { fatal: true }).decode(take(take(1)[0]));
    else bad("an address of another kind");
    if (kind === 0 && host.includes(":")) host = `[${host}]`;
    const [high, low] = take(2);
    found.addresses.push(`${host}:${high * 256 + low}`);
  }
  if (at !== data.length) bad("more than it says");
  return { ...found, ...derive(found.secret) };
}

export function proof(key, role, { joiner, inviter, nonces, fingerprint }) {
  return mac(key, encode(["colonyd/1/join", role, joiner, inviter, ...nonces, fingerprint]));
}

export function knock(key, body) {
  return bytesToHex(mac(key, utf8ToBytes("colonyd/1/invitation/knock"), sha(body)));
}
