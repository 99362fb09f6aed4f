// Words for values: times, spans, sizes, ids, states.

import { h, visible } from "./dom.js";

export const STATES = ["waiting", "running", "successful", "failed", "cancelled"];

export function span(seconds) {
  const left = Math.max(0, seconds);
  if (left < 0.95) return `${Math.round(left * 1000)} ms`;
  if (left < 10) return `${Number(left.toFixed(1))} s`;
  if (left < 120) return `${Math.round(left)} s`;
  if (left < 7200) return `${Math.round(left / 60)} min`;
  if (left < 172800) return `${Math.round(left / 3600)} h`;
  return `${Math.round(left / 86400)} d`;
}

function relative(at) {
  const away = Date.now() / 1000 - at;
  if (Math.abs(away) < 1) return "now";
  const text = span(Math.max(1, Math.round(Math.abs(away))));
  return away > 0 ? `${text} ago` : `in ${text}`;
}

// A time that goes on being true: `tick` writes it anew each second.
export function ago(at, none = "–") {
  if (at === null || at === undefined) return none;
  const date = new Date(at * 1000);
  return h(
    "time",
    { datetime: date.toISOString(), "data-at": at, title: date.toLocaleString() },
    relative(at),
  );
}

// How long something lasts that has begun.
export function lasts(at) {
  const date = new Date(at * 1000);
  return h("time", { datetime: date.toISOString(), "data-at": at, "data-lasts": true, title: date.toLocaleString() }, lasting(at));
}

function lasting(at) {
  return span(Math.max(1, Math.round(Date.now() / 1000 - at)));
}

export function tick() {
  for (const each of document.querySelectorAll("time[data-at]")) {
    const text = (each.dataset.lasts === undefined ? relative : lasting)(Number(each.dataset.at));
    if (each.textContent !== text) each.textContent = text;
  }
}

export function clock(at) {
  if (at === null || at === undefined) return "";
  const date = new Date(at * 1000);
  const far = Math.abs(Date.now() - date.getTime()) > 20 * 3600 * 1000;
  const time = date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
  return far ? `${date.toLocaleDateString()} ${time}` : time;
}

export function amount(bytes) {
  let left = Number(bytes) || 0;
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (left < 1024) return unit === "B" ? `${left} B` : `${left.toFixed(1)} ${unit}`;
    left /= 1024;
  }
  return `${left.toFixed(1)} TiB`;
}

export function short(id) {
  return String(id ?? "").slice(0, 12);
}

export function cut(text, most) {
  const whole = [...String(text ?? "")];
  return whole.length <= most ? visible(text) : `${visible(whole.slice(0, most - 1).join(""))}…`;
}

export function plural(number, one, many = `${one}s`) {
  return `${number} ${number === 1 ? one : many}`;
}

export function chip(state) {
  const known = [...STATES, "pending", "approved", "rejected", "trusted", "blocked"];
  return h("span", { class: `chip ${known.includes(state) ? state : "unknown"}` }, state);
}
