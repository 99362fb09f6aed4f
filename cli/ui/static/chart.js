// The last hour as a chart: lines of what waits and runs, bars of what ended.

import { h, s } from "./dom.js";
import { plural } from "./format.js";

const HIGH = 120;
const BARS = 56;
const GAP = 14;
const RECENT = 60; // slots of the last ten minutes
const LEFT = 34;

function ceiling(most) {
  for (const step of [4, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000]) {
    if (most <= step) return step;
  }
  return 10 ** Math.ceil(Math.log10(most));
}

// Slots are [at, waiting, running, done, failed]: the last ten minutes as they are where all of it
// happened in them, else the hour, three of them together.
function choose(slots) {
  const named = slots.map(([at, waiting, running, done, failed]) => ({ at, waiting, running, done, failed }));
  const first = named.findIndex((each) => each.waiting || each.running || each.done || each.failed);
  if (first >= named.length - RECENT) return { title: "The last 10 minutes", ago: ["10 min ago", "5 min"], slots: named.slice(-RECENT) };
  const merged = [];
  for (let at = 0; at < named.length; at += 3) {
    const part = named.slice(at, at + 3);
    const sum = (kind) => part.reduce((all, each) => all + each[kind], 0);
    merged.push({ ...part[part.length - 1], done: sum("done"), failed: sum("failed") });
  }
  return { title: "The last hour", ago: ["1 h ago", "30 min"], slots: merged };
}

export function chart(all, wide) {
  const { title, ago, slots } = choose(all);
  const width = Math.max(260, wide);
  const room = width - LEFT;
  const x = (index) => LEFT + (index / (slots.length - 1)) * room;
  const top = ceiling(Math.max(...slots.map((each) => Math.max(each.waiting, each.running))));
  const most = ceiling(Math.max(...slots.map((each) => each.done + each.failed)));
  const y = (value) => 6 + (HIGH - 6) * (1 - value / top);
  const base = HIGH + GAP + BARS;
  const line = (name) => slots.map((each, index) => `${index ? "L" : "M"}${x(index).toFixed(1)} ${y(each[name]).toFixed(1)}`).join("");
  const area = (name) => `${line(name)}L${x(slots.length - 1)} ${HIGH}L${LEFT} ${HIGH}Z`;
  const thick = Math.max(1, room / slots.length - 1.2);
  const bars = [];
  slots.forEach((each, index) => {
    let below = base;
    for (const kind of ["done", "failed"]) {
      if (!each[kind]) continue;
      const tall = Math.max(2, (each[kind] / most) * BARS);
      below -= tall;
      bars.push(s("rect", { class: `bar ${kind}`, x: (x(index) - thick / 2).toFixed(1), y: below.toFixed(1), width: thick.toFixed(1), height: tall.toFixed(1) }));
    }
  });
  const total = (kind) => slots.reduce((sum, each) => sum + each[kind], 0);
  const now = slots[slots.length - 1];
  const label = `${title}. Now ${now.waiting} waiting and ${now.running} running; since then ${plural(total("done"), "process", "processes")} done and ${total("failed")} failed or cancelled.`;
  const grid = (at, text) => [
    s("line", { class: "grid", x1: LEFT, x2: width, y1: at, y2: at }),
    s("text", { x: LEFT - 7, y: at + 4, class: "tick", "text-anchor": "end" }, String(text)),
  ];
  const figure = h("figure", { class: "chart" },
    s("svg", { viewBox: `0 0 ${width} ${base + 18}`, width, height: base + 18, role: "img", "aria-label": label },
      grid(y(top), top), grid(y(top / 2), top / 2), grid(HIGH, 0), grid(base, 0), grid(base - BARS, most),
      s("path", { d: area("waiting"), class: "area waiting" }),
      s("path", { d: area("running"), class: "area running" }),
      s("path", { d: line("waiting"), class: "line waiting" }),
      s("path", { d: line("running"), class: "line running" }),
      bars,
      s("text", { x: LEFT, y: base + 15, class: "tick" }, ago[0]),
      s("text", { x: LEFT + room / 2, y: base + 15, class: "tick", "text-anchor": "middle" }, ago[1]),
      s("text", { x: width, y: base + 15, class: "tick", "text-anchor": "end" }, "now")),
    h("figcaption", {},
      [["waiting", "waiting"], ["running", "running"], ["done", `done (${total("done")})`], ["failed", `failed or cancelled (${total("failed")})`]]
        .map(([kind, text]) => h("span", { class: `key ${kind}` }, text))));
  return { title, figure };
}
