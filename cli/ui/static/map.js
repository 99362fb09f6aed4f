// The federation as a map: this colony, the others, trust in each direction, forwards on their way.

import { h, s } from "./dom.js";
import { cut } from "./format.js";

const W = 148;
const H = 58;
const MOST_DOTS = 6;

function places(peers, wide) {
  if (wide >= 640 && peers.length <= 10) {
    const height = peers.length > 4 ? 480 : peers.length > 2 ? 380 : 150;
    const rx = wide / 2 - W / 2 - 8;
    const ry = height / 2 - H / 2 - 10;
    const middle = { x: wide / 2, y: height / 2 };
    // One or two stand beside this colony; more around it, none straight above.
    const turn = peers.length <= 2 ? 0 : -Math.PI / 2 + Math.PI / peers.length;
    return {
      height,
      line: bow,
      back: bow,
      home: middle,
      at: peers.map((_, index) => {
        const angle = turn + (index / peers.length) * 2 * Math.PI;
        return { x: middle.x + rx * Math.cos(angle), y: middle.y + ry * Math.sin(angle) };
      }),
    };
  }
  const row = H + 46;
  const height = Math.max(1, peers.length) * row + H + 40;
  return {
    height,
    line: (home, at) => elbow(home, at, false),
    back: (at, home) => elbow(home, at, true),
    home: { x: W / 2 + 6, y: H / 2 + 8 },
    at: peers.map((_, index) => ({ x: wide - W / 2 - 6, y: H + 40 + index * row + H / 2 })),
  };
}

// From the edge of one box to the edge of the other, bent to one side: the way back is another line.
function bow(from, to) {
  const dx = to.x - from.x;
  const dy = to.y - from.y;
  const far = Math.hypot(dx, dy) || 1;
  const clip = Math.min(
    Math.abs(dx) > 1 ? (W / 2 + 8) / Math.abs(dx) : 9,
    Math.abs(dy) > 1 ? (H / 2 + 8) / Math.abs(dy) : 9,
    0.45,
  );
  const nx = -dy / far;
  const ny = dx / far;
  const a = { x: from.x + dx * clip + nx * 8, y: from.y + dy * clip + ny * 8 };
  const b = { x: to.x - dx * clip + nx * 8, y: to.y - dy * clip + ny * 8 };
  const c = { x: (a.x + b.x) / 2 + nx * 18, y: (a.y + b.y) / 2 + ny * 18 };
  return { d: `M${a.x} ${a.y}Q${c.x} ${c.y} ${b.x} ${b.y}`, middle: { x: (a.x + b.x) / 4 + c.x / 2, y: (a.y + b.y) / 4 + c.y / 2 } };
}

// Down from this colony's box and to the other's side: for a narrow map.
function elbow(from, to, back) {
  const x = from.x - W / 2 + (back ? 34 : 18);
  const y = to.y + (back ? -9 : 9);
  const end = to.x - W / 2 - 7;
  const top = from.y + H / 2 + 6;
  const points = [`${x} ${top}`, `${x} ${y - 12}`, `${x} ${y} ${x + 12} ${y}`, `${end} ${y}`];
  const d = back
    ? `M${end} ${y}L${x + 12} ${y}Q${x} ${y} ${x} ${y - 12}L${x} ${top}`
    : `M${points[0]}L${points[1]}Q${points[2]}L${points[3]}`;
  return { d, middle: { x: x + 40 + (back ? 22 : 0), y } };
}

function flow(line, number, title) {
  if (!number) return "";
  const dots = Math.min(MOST_DOTS, number);
  const seconds = 3;
  return [
    Array.from({ length: dots }, (_, index) => s("circle", { r: 4.5, class: "dot" },
      s("animateMotion", { path: line.d, dur: `${seconds}s`, begin: `${(-index * seconds) / dots}s`, repeatCount: "indefinite" }))),
    s("g", { class: "count" }, s("title", {}, title),
      s("circle", { cx: line.middle.x, cy: line.middle.y, r: 12 }),
      s("text", { x: line.middle.x, y: line.middle.y + 4, "text-anchor": "middle" }, number > 99 ? "99+" : String(number))),
  ];
}

function box(place, name, what, kind, href) {
  const inside = [
    s("rect", { x: place.x - W / 2, y: place.y - H / 2, width: W, height: H, rx: 12 }),
    s("text", { x: place.x, y: place.y - 3, "text-anchor": "middle", class: "name" }, cut(name, 15)),
    s("text", { x: place.x, y: place.y + 16, "text-anchor": "middle", class: "what" }, cut(what, 20)),
    s("title", {}, `${name}: ${what}`),
  ];
  return href ? s("a", { href, class: `colony ${kind}`, "aria-label": `${name}: ${what}`, "data-key": href }, inside)
    : s("g", { class: `colony ${kind}` }, inside);
}

export function map(view, wide, hrefOf) {
  const peers = view.peers.filter((each) => each.ours !== "blocked").slice(0, 24);
  const { height, home, at, line, back: returning } = places(peers, wide);
  const named = new Map(peers.map((each, index) => [each.name, at[index]]));
  const lines = peers.map((peer, index) => {
    const there = line(home, at[index]);
    const back = returning(at[index], home);
    const theirs = peer.theirs === null ? "unknown" : peer.theirs ? "trusted" : "no";
    return [
      s("path", { d: there.d, class: `trust ${peer.ours}`, "marker-end": `url(#tip-${peer.ours === "trusted" ? "on" : "off"})` }, s("title", {}, `${view.colony} has ${peer.name} as ${peer.ours}`)),
      s("path", { d: back.d, class: `trust ${theirs}`, "marker-end": `url(#tip-${theirs === "trusted" ? "on" : "off"})` }, s("title", {}, `${peer.name} ${theirs === "trusted" ? "trusts" : theirs === "no" ? "does not trust" : "may or may not trust"} ${view.colony}`)),
      flow(there, peer.out, `${peer.out} forwards to ${peer.name}`),
      flow(back, peer.back_waiting + peer.back_running, `${peer.back_waiting + peer.back_running} processes of ${peer.name} here`),
    ];
  });
  const told = peers.flatMap((peer, index) => peer.introducedby.filter((name) => named.has(name)).map((name) =>
    s("line", { class: "told", x1: named.get(name).x, y1: named.get(name).y, x2: at[index].x, y2: at[index].y })));
  const words = (peer) => peer.error ? "does not answer" : peer.ours === "trusted" ? (peer.theirs ? "trust both ways" : "trusted here") : peer.ours;
  const tip = (id) => s("marker", { id: `tip-${id}`, class: `tip ${id}`, viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto" }, s("path", { d: "M0 0L8 4L0 8z" }));
  return h("figure", { class: "map" },
    s("svg", { viewBox: `0 0 ${wide} ${height}`, width: wide, height, role: "group", "aria-label": `Map of the federation: ${view.colony} and ${peers.length} others` },
      s("defs", {}, tip("on"), tip("off")),
      told, lines,
      box(home, view.colony, "this colony", "home"),
      peers.map((peer, index) => box(at[index], peer.name || peer.id, words(peer), peer.error ? "silent" : peer.ours, hrefOf(peer)))),
    h("figcaption", {},
      [["on", "trusted"], ["off", "not trusted, or not known"], ["dot", "a forward under way"]].map(([kind, text]) => h("span", { class: `key ${kind}` }, text))));
}
