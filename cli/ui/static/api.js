// Calls of the command that serves this page. It has the keys; the page has a cookie.

import { h, rich } from "./dom.js";

export class CallError extends Error {
  constructor(status, message, next) {
    super(message);
    this.status = status;
    this.next = next;
  }
}

export async function call(name, params = {}, seen = null, signal = undefined) {
  const headers = { "content-type": "application/json" };
  if (seen) headers["x-seen"] = seen;
  let reply;
  try {
    reply = await fetch(`api/${name}`, {
      method: "POST",
      body: JSON.stringify(params),
      headers,
      signal,
      redirect: "error",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new CallError(0, "the command `colony ui` has ended, or can't be reached", "start it again");
  }
  if (reply.status === 204) return { same: true };
  if (!(reply.headers.get("content-type") ?? "").startsWith("application/json")) {
    throw new CallError(reply.status, "this browser is not signed in any more",
      "open the address that `colony ui` has printed last");
  }
  const value = await reply.json();
  if (!reply.ok) throw new CallError(reply.status, value.error, value.next);
  return { value, seen: reply.headers.get("x-seen") };
}

const box = () => document.getElementById("trouble");

export function trouble(error) {
  if (!error) {
    box().hidden = true;
    return;
  }
  box().replaceChildren(
    h("strong", {}, rich(error.message)),
    error.next ? h("span", {}, " Next: ", rich(error.next)) : "",
  );
  box().hidden = false;
}

export function say(text) {
  const region = document.getElementById("said");
  region.replaceChildren(h("p", {}, text));
  setTimeout(() => {
    if (region.textContent === text) region.replaceChildren();
  }, 6000);
}

function pause(ms, signal) {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      window.removeEventListener("colony:changed", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal.addEventListener("abort", done);
    window.addEventListener("colony:changed", done);
  });
}

function shown(signal) {
  return new Promise((resolve) => {
    const look = () => {
      if (document.hidden && !signal.aborted) return;
      document.removeEventListener("visibilitychange", look);
      signal.removeEventListener("abort", look);
      resolve();
    };
    document.addEventListener("visibilitychange", look);
    signal.addEventListener("abort", look);
    look();
  });
}

// Asks again and again, as long as the page is shown, and draws what has changed.
export async function live(signal, name, params, draw, every = 2000) {
  let seen = null;
  let last = null;
  const redraw = () => last !== null && draw(last);
  window.addEventListener("resize", redraw, { signal });
  while (!signal.aborted) {
    try {
      const answer = await call(name, params, seen, signal);
      trouble(null);
      if (!answer.same) {
        ({ seen } = answer);
        last = answer.value;
        draw(last);
      }
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof CallError)) throw error;
      trouble(error);
    }
    await pause(every, signal);
    await shown(signal);
  }
}

// Makes a change, says how it went, and has all regions looked at anew.
export async function act(name, params, done) {
  try {
    const { value } = await call(name, params);
    trouble(null);
    if (done) say(done);
    window.dispatchEvent(new Event("colony:changed"));
    return value;
  } catch (error) {
    if (!(error instanceof CallError)) throw error;
    trouble(error);
    return null;
  }
}
