// Deterministic CBOR of the subset in docs/federation.md, "CBOR".
// Values: numbers and bigints, Uint8Array, string, Array, Map or object, true, false, null.
// A map is read as a Map, whose keys are integers or text. The rest of the protocol is elsewhere.

/** The bytes are no value of the subset. */
export class Malformed extends Error {
  name = "Malformed";
}

const TOP = 1n << 64n;
const DECODER = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const ENCODER = new TextEncoder();

export function bytesOf(...parts) {
  return Uint8Array.from(Buffer.concat(parts.map((part) => Buffer.from(part))));
}

function head(major, number) {
  const size = BigInt(number);
  const first = major << 5;
  if (size < 24n) return Uint8Array.of(first | Number(size));
  const width = size < 0x100n ? 1 : size < 0x10000n ? 2 : size < 0x100000000n ? 4 : 8;
  const found = new Uint8Array(1 + width);
  found[0] = first | (24 + Math.log2(width));
  for (let at = 0; at < width; at += 1) found[width - at] = Number((size >> BigInt(8 * at)) & 0xffn);
  return found;
}

/** The bytes of a value. Throws Malformed for a value outside of the subset. */
export function encode(value) {
  if (value === false) return Uint8Array.of(0xf4);
  if (value === true) return Uint8Array.of(0xf5);
  if (value === null) return Uint8Array.of(0xf6);
  if (typeof value === "bigint" || Number.isSafeInteger(value)) return encodeInteger(BigInt(value));
  if (typeof value === "string") {
    if (!value.isWellFormed()) throw new Malformed("text that is not Unicode");
    const text = ENCODER.encode(value);
    return bytesOf(head(3, text.length), text);
  }
  if (value instanceof Uint8Array) return bytesOf(head(2, value.length), value);
  if (Array.isArray(value)) return bytesOf(head(4, value.length), ...value.map(encode));
  if (typeof value !== "object") throw new Malformed(`no value of CBOR here: ${typeof value}`);
  const entries = value instanceof Map ? [...value] : Object.entries(value);
  const pairs = entries.map(([key, held]) => [encode(key), encode(held)]);
  pairs.sort(([one], [two]) => Buffer.compare(one, two));
  return bytesOf(head(5, pairs.length), ...pairs.flat());
}

function encodeInteger(value) {
  if (value >= TOP || value < -TOP) throw new Malformed("an integer of more than 64 bits");
  return value < 0n ? head(1, -1n - value) : head(0, value);
}

/**
 * The value of some bytes. `depth` bounds nested containers, `items` the values (keys of maps and
 * containers included). Throws Malformed.
 */
export function decode(bytes, { depth = 4, items = Infinity } = {}) {
  const reader = new Reader(bytes, items);
  const value = reader.value(depth);
  if (reader.at !== bytes.length) throw new Malformed("trailing bytes");
  return value;
}

class Reader {
  constructor(bytes, items) {
    this.bytes = bytes;
    this.left = items;
    this.at = 0;
  }

  take(count) {
    if (count > this.bytes.length - this.at) throw new Malformed("truncated");
    this.at += count;
    return this.bytes.subarray(this.at - count, this.at);
  }

  number(low) {
    if (low < 24) return BigInt(low);
    if (low > 27) throw new Malformed("an indefinite length, or a reserved head");
    const width = 1 << (low - 24);
    let found = 0n;
    for (const byte of this.take(width)) found = (found << 8n) | BigInt(byte);
    const least = width === 1 ? 24n : 1n << BigInt(4 * width);
    if (found < least) throw new Malformed("a head that is not the shortest");
    return found;
  }

  value(depth) {
    if ((this.left -= 1) < 0) throw new Malformed("too many items");
    const first = this.take(1)[0];
    const major = first >> 5;
    if (major === 7) {
      if (first === 0xf4) return false;
      if (first === 0xf5) return true;
      if (first === 0xf6) return null;
      throw new Malformed("a float or another simple value");
    }
    if (major === 6) throw new Malformed("a tag");
    const number = this.number(first & 31);
    if (major === 0) return small(number);
    if (major === 1) return small(-1n - number);
    if (number > BigInt(this.bytes.length - this.at)) throw new Malformed("truncated");
    const count = Number(number);
    if (major === 2) return Uint8Array.from(this.take(count));
    if (major === 3) return this.text(count);
    if (depth < 1) throw new Malformed("nested too deep");
    if (major === 4) return Array.from({ length: count }, () => this.value(depth - 1));
    return this.map(count, depth - 1);
  }

  text(count) {
    try {
      return DECODER.decode(this.take(count));
    } catch (error) {
      if (error instanceof Malformed) throw error;
      throw new Malformed("text that is not UTF-8");
    }
  }

  map(count, depth) {
    const found = new Map();
    let before = null;
    for (let left = count; left > 0; left -= 1) {
      const start = this.at;
      const key = this.value(0);
      if (typeof key === "object" || typeof key === "boolean") {
        throw new Malformed("a key that is neither integer nor text");
      }
      const written = this.bytes.subarray(start, this.at);
      if (before !== null && Buffer.compare(before, written) >= 0) {
        throw new Malformed("keys of a map out of order, or twice");
      }
      before = written;
      found.set(key, this.value(depth));
    }
    return found;
  }
}

function small(value) {
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : value;
}
