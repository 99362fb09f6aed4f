// TLS between colonies (docs/federation.md, "TLS" and "HTTP"): an own certificate, a client that pins.
// What is in the messages is not known here.

import { createPrivateKey, createHash, generateKeyPairSync, sign } from "node:crypto";
import { request } from "node:http";
import { isIP } from "node:net";
import { connect } from "node:tls";

function der(tag, ...parts) {
  const body = Buffer.concat(parts.map((part) => Buffer.from(part)));
  if (body.length < 128) return Buffer.concat([Buffer.of(tag, body.length), body]);
  const size = body.length < 256 ? [0x81] : [0x82, body.length >> 8];
  return Buffer.concat([Buffer.of(tag, ...size, body.length & 255), body]);
}

const sequence = (...parts) => der(0x30, ...parts);

/** A self-signed P-256 certificate, valid from 1970 to 9999: {key, cert} in PEM, {fingerprint}. */
export function makeCertificate() {
  const { publicKey, privateKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
  const ecdsa = sequence(der(0x06, [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2])); // with SHA-256
  const named = sequence(der(0x06, [0x55, 4, 3]), der(0x0c, Buffer.from("colony")));
  const name = sequence(der(0x31, named));
  const dates = sequence(
    der(0x17, Buffer.from("700101000000Z")),
    der(0x18, Buffer.from("99991231235959Z")),
  );
  const spki = publicKey.export({ type: "spki", format: "der" });
  const version = der(0xa0, der(2, [2]));
  const tbs = sequence(version, der(2, [1]), ecdsa, name, dates, name, spki);
  const signature = sign("sha256", tbs, privateKey);
  const whole = sequence(tbs, ecdsa, der(3, [0], signature));
  const pem = `-----BEGIN CERTIFICATE-----\n${whole.toString("base64")}\n-----END CERTIFICATE-----\n`;
  const key = createPrivateKey(privateKey.export({ type: "pkcs8", format: "pem" }));
  return {
    key: key.export({ type: "pkcs8", format: "pem" }),
    cert: pem.replace(/(.{64})(?=.)/g, "$1\n"),
    fingerprint: createHash("sha256").update(whole).digest("hex"),
  };
}

/** No byte of the message left: no connection, or another certificate. */
export class Unsent extends Error {
  name = "Unsent";
}

/** The message may have arrived, and there is no answer that counts. */
export class Lost extends Error {
  name = "Lost";
}

function connected(address, fingerprint, seconds) {
  const [, bare, named, port] = /^(?:\[(.+)\]|([^:]+)):(\d+)$/.exec(address) ?? [];
  const host = bare ?? named;
  return new Promise((resolve, reject) => {
    const socket = connect({
      host,
      port: Number(port),
      minVersion: "TLSv1.3",
      ALPNProtocols: ["http/1.1"],
      rejectUnauthorized: false, // the fingerprint decides, not a name
      ...(isIP(host ?? "") ? {} : { servername: host }),
    });
    const fail = (error) => {
      socket.destroy();
      reject(new Unsent(`${address}: ${error.message}`));
    };
    socket.setTimeout(seconds * 1000, () => fail(new Error("no connection in time")));
    socket.once("error", fail);
    socket.once("secureConnect", () => {
      const shown = createHash("sha256").update(socket.getPeerCertificate().raw).digest("hex");
      if (fingerprint && shown !== fingerprint) return fail(new Error("another certificate"));
      socket.removeListener("error", fail);
      socket.setTimeout(0);
      resolve({ socket, shown });
    });
  });
}

/**
 * Send one request, over a connection of its own. Without a `fingerprint`, any certificate will do:
 * that is for the fetch of a card. Returns {status, headers, body, shown}. Throws Unsent, Lost.
 */
export async function exchange(address, path, options = {}) {
  const { method = "POST", body = null, fingerprint = "", most = 6_001_024, seconds = 20 } = options;
  const { socket, shown } = await connected(address, fingerprint, seconds);
  const headers = { host: address, "accept-encoding": "identity", connection: "close" };
  if (body) headers["content-type"] = "application/cose";
  if (body) headers["content-length"] = body.length;
  return new Promise((resolve, reject) => {
    const lose = (why) => {
      socket.destroy();
      reject(new Lost(`${address}: ${why}`));
    };
    const timer = setTimeout(() => lose("no answer in time"), seconds * 1000);
    const call = request(
      { method, path, headers: { ...headers, ...options.headers }, createConnection: () => socket },
      (reply) => {
        const limit = reply.statusCode === 200 ? most : 4096;
        const coding = reply.headers["content-encoding"];
        if (coding && coding !== "identity") return lose(`a content coding: ${coding}`);
        const parts = [];
        let size = 0;
        reply.on("data", (part) => {
          parts.push(part);
          if ((size += part.length) > limit) lose("a longer answer than allowed");
        });
        reply.on("error", (error) => lose(error.message));
        reply.on("end", () => {
          clearTimeout(timer);
          const whole = Uint8Array.from(Buffer.concat(parts));
          resolve({ status: reply.statusCode, headers: reply.headers, body: whole, shown });
        });
      },
    );
    call.on("error", (error) => {
      clearTimeout(timer);
      lose(error.message);
    });
    call.end(body ?? undefined);
  });
}
