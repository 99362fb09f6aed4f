// A workflow as a drawn graph: layers by the longest way, few crossings, long edges led around nodes.

import { h, s } from "./dom.js";
import { cut } from "./format.js";

const W = 172;
const H = 54;
const ALONG = 64; // between layers
const ACROSS = 22; // between nodes of a layer
const THIN = 14; // the room of an edge that passes a layer
const SWEEPS = 6;

// Returns places of nodes and the points of edges; `down` turns the layers from columns into rows.
export function layout(count, edges, down) {
  const layer = new Array(count).fill(0);
  const parents = Array.from({ length: count }, () => []);
  for (const [from, to] of edges) parents[to].push(from);
  // As many rounds as a way can be long; a cycle, which no server sends, ends with them.
  for (let round = 0, moved = true; moved && round < count; round += 1) {
    moved = false;
    for (const [from, to] of edges) {
      if (layer[to] < layer[from] + 1 && layer[from] + 1 < count) {
        layer[to] = layer[from] + 1;
        moved = true;
      }
    }
  }
  const cells = Array.from({ length: count }, (_, id) => ({ id, layer: layer[id], thick: down ? W : H, next: [], prev: [] }));
  const ways = edges.map(([from, to]) => {
    const way = [from];
    for (let at = layer[from] + 1; at < layer[to]; at += 1) {
      cells.push({ id: -1, layer: at, thick: THIN, next: [], prev: [] });
      way.push(cells.length - 1);
    }
    way.push(to);
    for (let step = 1; step < way.length; step += 1) {
      cells[way[step - 1]].next.push(way[step]);
      cells[way[step]].prev.push(way[step - 1]);
    }
    return way;
  });
  const layers = [];
  cells.forEach((cell, index) => (layers[cell.layer] ??= []).push(index));
  for (let at = 0; at < layers.length; at += 1) layers[at] ??= [];
  const rank = new Array(cells.length);
  const number = () => layers.forEach((each) => each.forEach((cell, place) => { rank[cell] = place; }));
  number();
  for (let sweep = 0; sweep < SWEEPS; sweep += 1) {
    const side = sweep % 2 ? "next" : "prev";
    for (const each of sweep % 2 ? [...layers].reverse() : layers) {
      const middle = new Map(each.map((cell) => {
        const around = cells[cell][side];
        return [cell, around.length ? around.reduce((sum, other) => sum + rank[other], 0) / around.length : rank[cell]];
      }));
      each.sort((a, b) => middle.get(a) - middle.get(b) || rank[a] - rank[b]);
      each.forEach((cell, place) => { rank[cell] = place; });
    }
  }
  const sizes = layers.map((each) => each.reduce((sum, cell) => sum + cells[cell].thick + ACROSS, -ACROSS));
  const most = Math.max(...sizes, 0);
  const middle = new Array(cells.length);
  layers.forEach((each, index) => {
    let at = (most - sizes[index]) / 2;
    for (const cell of each) {
      middle[cell] = at + cells[cell].thick / 2;
      at += cells[cell].thick + ACROSS;
    }
  });
  const long = down ? H : W;
  const deep = (index) => index * (long + ALONG);
  const place = (cell) => (down
    ? { x: middle[cell], y: deep(cells[cell].layer) + long / 2 }
    : { x: deep(cells[cell].layer) + long / 2, y: middle[cell] });
  return {
    nodes: Array.from({ length: count }, (_, id) => place(id)),
    ways: ways.map((way) => way.map(place)),
    width: down ? most : deep(layers.length - 1) + long,
    height: down ? deep(layers.length - 1) + long : most,
  };
}

function curve(way, down) {
  const half = (down ? H : W) / 2;
  let path = "";
  for (let step = 1; step < way.length; step += 1) {
    const from = { ...way[step - 1] };
    const to = { ...way[step] };
    const along = down ? "y" : "x";
    if (step === 1) from[along] += half;
    if (step === way.length - 1) to[along] -= half + 1;
    const bend = (to[along] - from[along]) / 2;
    if (!path) path = `M${from.x} ${from.y}`;
    path += down
      ? `C${from.x} ${from.y + bend} ${to.x} ${to.y - bend} ${to.x} ${to.y}`
      : `C${from.x + bend} ${from.y} ${to.x - bend} ${to.y} ${to.x} ${to.y}`;
  }
  return path;
}

export function graph(nodes, edges, wide) {
  const down = wide < 620;
  const made = layout(nodes.length, edges, down);
  const width = made.width + 16;
  const height = made.height + 16;
  return h("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "Graph of the workflow", "data-scroll": "graph", "data-key": "graph" },
    s("svg", { viewBox: `-8 -8 ${width} ${height}`, width, height, class: "graph" },
      s("defs", {}, s("marker", { id: "arrow", viewBox: "0 0 8 8", refX: 8, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto" }, s("path", { d: "M0 0L8 4L0 8z" }))),
      made.ways.map((way, index) => s("path", { d: curve(way, down), class: `edge ${nodes[edges[index][0]].state}`, "marker-end": "url(#arrow)" })),
      nodes.map((node, index) => {
        const { x, y } = made.nodes[index];
        const name = node.node || node.func;
        return s("a", { href: `#/process/${encodeURIComponent(node.id)}`, class: `node ${node.state}`, "data-key": `node-${node.id}`, "aria-label": `${name}: ${node.state}` },
          s("title", {}, `${name}: ${node.func} is ${node.state}`),
          s("rect", { x: x - W / 2, y: y - H / 2, width: W, height: H, rx: 9 }),
          s("rect", { x: x - W / 2, y: y - H / 2, width: 6, height: H, rx: 3, class: "side" }),
          s("text", { x: x - W / 2 + 18, y: y - 4, class: "name" }, cut(name, 19)),
          s("text", { x: x - W / 2 + 18, y: y + 15, class: "what" }, `${node.state} · ${cut(node.func, 12)}`));
      })));
}
