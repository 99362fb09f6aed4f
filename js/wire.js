// The wire of Colonies: ids, signatures, envelopes, and one call. Nothing here knows of pages, of
// Node.js, or of what a worker does.

import { secp256k1 } from "@noble/curves/secp256k1.js";
import { sha3_256 } from "@noble/hashes/sha3.js";
import { bytesToHex, hexToBytes, randomBytes, utf8ToBytes } from "@noble/hashes/utils.js";

/** The server answered, with an error. `status` is the HTTP status. */
export class Refused extends Error {
  name = "Refused";

  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** No answer came: whether the call had an effect is unknown. */
export class Unreachable extends Error {
  name = "Unreachable";
}

/** A private key and the id that follows from it. The key leaves this object only through `hex`. */
export class Identity {
  #secret;

  /** `hex`: the private key, 64 hexadecimal characters. Throws when it is none. */
  constructor(hex) {
    if (!/^[0-9a-f]{64}$/i.test(hex) || !secp256k1.utils.isValidSecretKey(hexToBytes(hex))) {
      throw new Error("a private key is 64 hexadecimal characters");
    }
    this.#secret = hexToBytes(hex);
    // The hash of the public key's hexadecimal text, not of its bytes.
    const publicKey = secp256k1.getPublicKey(this.#secret, false);
    this.id = bytesToHex(sha3_256(utf8ToBytes(bytesToHex(publicKey))));
  }

  static generate() {
    return new Identity(bytesToHex(secp256k1.utils.randomSecretKey()));
  }

  get hex() {
    return bytesToHex(this.#secret);
  }

  /** Sign the base64 text of a payload: 130 hexadecimal characters, r ‖ s ‖ recovery id. */
  sign(payload) {
    const digest = sha3_256(utf8ToBytes(payload));
    // RFC 6979 nonce and low s are this library's defaults; a node refuses a high s.
    const signature = secp256k1.sign(digest, this.#secret, { prehash: false, format: "recovered" });
    return bytesToHex(signature.subarray(1)) + bytesToHex(signature.subarray(0, 1));
  }
}

/** Make the body of a signed request. `audience` is the id of the server that it is for. */
export function encode(payloadtype, fields, identity, audience = "") {
  const message = {
    msgtype: payloadtype,
    ...fields,
    // What keeps a copy of the request from being used again; nodes of upstream ignore it.
    nonce: bytesToHex(randomBytes(16)),
    issuedat: Math.floor(Date.now() / 1000),
    ...(audience && { audience }),
  };
  const payload = toBase64(utf8ToBytes(toJson(message)));
  return JSON.stringify({ payloadtype, payload, signature: identity.sign(payload) });
}

/** Return a value as JSON. Throws for what has no form there, and would become something else in silence. */
export function toJson(value) {
  return JSON.stringify(value, (_, each) => {
    const odd = typeof each === "number" ? !Number.isFinite(each)
      : typeof each === "function" || typeof each === "symbol" || each instanceof Map || each instanceof Set
        || each instanceof ArrayBuffer || ArrayBuffer.isView(each);
    if (!odd) return each;
    const named = typeof each === "object" ? `a value of class ${each.constructor?.name}`
      : typeof each === "number" ? String(each) : `a ${typeof each}`;
    throw new TypeError(`${named} has no form in JSON`);
  });
}

/** Read the body of a reply. Throws Refused for errors, and for what is no reply. */
export function decode(status, text) {
  let envelope, payload;
  try {
    envelope = JSON.parse(text);
    payload = JSON.parse(new TextDecoder().decode(fromBase64(envelope.payload)));
  } catch {
    throw new Refused(status >= 400 ? status : 502, `not a Colonies reply (HTTP status ${status})`);
  }
  if (envelope.error || status >= 400) {
    throw new Refused(payload?.status ?? status, payload?.message ?? "no reason was given");
  }
  return payload;
}

/** The calls to one server, which is at the base address `url`, such as http://127.0.0.1:50080. */
export class Wire {
  #given;
  #audience;

  /** `audience` is the id of the server that requests are signed for; else the server is asked. */
  constructor(url, audience = "") {
    let base;
    try {
      base = new URL(url.endsWith("/") ? url : `${url}/`);
    } catch {
      throw new Error(`${url} is no address of a server; write it as http://127.0.0.1:50080`);
    }
    this.base = base.href;
    this.url = new URL("api", base).href;
    this.#given = this.#audience = audience || undefined;
  }

  /** The id of the server, which is asked once; "" for one of upstream, which has none. */
  async audience(options) {
    if (this.#audience === undefined) {
      const payloadtype = "getserverinfomsg";
      const payload = toBase64(utf8ToBytes(JSON.stringify({ msgtype: payloadtype })));
      const body = JSON.stringify({ payloadtype, payload, signature: "" });
      try {
        this.#audience = (await this.#post(body, options)).serverid ?? "";
      } catch (error) {
        if (!(error instanceof Refused)) throw error;
        this.#audience = "";
      }
    }
    return this.#audience;
  }

  /**
   * Make one call and return its result. `seconds` bounds each attempt, `signal` ends it early. With
   * `attempts` above 1, the same bytes are sent again after a lost answer: a daemon knows them by
   * their nonce, gives the first answer again, and changes nothing twice.
   */
  async call(payloadtype, fields, identity, options = {}) {
    for (let again = true; ; again = false) {
      const audience = await this.audience(options);
      const body = encode(payloadtype, fields, identity, audience);
      try {
        return await this.#send(body, options);
      } catch (error) {
        const moved = error instanceof Refused && error.message.startsWith("audience");
        if (!moved || this.#given || !audience || !again) throw error;
        this.#audience = undefined; // the server goes on under another key
      }
    }
  }

  async #send(body, options) {
    let pause = 0.2;
    for (let left = options.attempts ?? 1; ; left -= 1) {
      try {
        return await this.#post(body, options);
      } catch (error) {
        if (!(error instanceof Unreachable) || left <= 1 || options.signal?.aborted) throw error;
      }
      await sleep(pause, options.signal);
      pause *= 2;
    }
  }

  async #post(body, { signal, seconds = 15 } = {}) {
    const bound = AbortSignal.timeout(seconds * 1000);
    let status, text;
    try {
      const reply = await fetch(this.url, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body,
        credentials: "omit",
        cache: "no-store",
        signal: signal ? AbortSignal.any([signal, bound]) : bound,
      });
      status = reply.status;
      text = await reply.text();
    } catch (error) {
      throw unreachable(this.base, error, bound);
    }
    return decode(status, text);
  }

  /** Open a subscription; null where there are no WebSockets. Its errors show only as its close. */
  async subscribe(payloadtype, fields, identity, options) {
    if (typeof WebSocket === "undefined") return null;
    const body = encode(payloadtype, fields, identity, await this.audience(options));
    const socket = new WebSocket(new URL("pubsub", this.base.replace(/^http/, "ws")));
    socket.addEventListener("open", () => socket.send(body));
    return socket;
  }
}

/** The error of a request without an answer; `bound` is the signal of its time limit. */
export function unreachable(url, error, bound) {
  // Node.js hides what happened one level down: "fetch failed".
  const why = bound?.aborted ? "no answer in time" : error.cause?.message || error.message;
  return new Unreachable(`${url}: ${why}`, { cause: error });
}

export function toBase64(bytes) {
  // In pieces, as the arguments of one call are limited in number.
  let text = "";
  for (let at = 0; at < bytes.length; at += 8192) {
    text += String.fromCharCode(...bytes.subarray(at, at + 8192));
  }
  return btoa(text);
}

export function fromBase64(text) {
  return Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
}

/** Wait; less long when `signal` aborts. */
export function sleep(seconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(done, seconds * 1000);
    function done() {
      clearTimeout(timer);
      signal?.removeEventListener("abort", done);
      resolve();
    }
    signal?.addEventListener("abort", done);
    if (signal?.aborted) done();
  });
}
