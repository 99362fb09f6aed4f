// The life of a process as bars in time, a lane for each colony.

import { h, s } from "./dom.js";
import { clock, cut, span } from "./format.js";

const LANE = 42;

export function lanes(story, wide) {
  const spans = story.spans;
  if (!spans.length) return "";
  const now = Date.now() / 1000;
  const names = [...new Set(spans.map((each) => each.colony))];
  const first = Math.min(...spans.map((each) => each.start));
  const last = Math.max(...spans.map((each) => each.end ?? now), first + 0.001);
  const width = Math.max(280, wide);
  const x = (at) => 2 + ((at - first) / (last - first)) * (width - 4);
  const height = names.length * LANE + 22;
  const open = spans.some((each) => each.end === null);
  const said = spans.map((each) => `${each.kind} in ${each.colony} for ${span((each.end ?? now) - each.start)}`).join(", ");
  return h("figure", { class: "lanes" },
    s("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": `Timeline: ${said}` },
      names.map((name, index) => [
        s("text", { x: 2, y: index * LANE + 13, class: "lane" }, cut(name, Math.floor(width / 9))),
      ]),
      spans.map((each) => {
        const at = names.indexOf(each.colony) * LANE + 20;
        const start = x(each.start);
        const long = Math.max(4, x(each.end ?? now) - start);
        const from = Math.min(start, width - long - 2);
        const text = `${each.kind} ${span((each.end ?? now) - each.start)}`;
        return [
          s("rect", { class: `span ${each.kind}`, x: from.toFixed(1), y: at, width: long.toFixed(1), height: 18, rx: 4 }, s("title", {}, text)),
          long > text.length * 7.5 ? s("text", { class: `inside ${each.kind}`, x: from + 8, y: at + 13 }, text) : "",
        ];
      }),
      s("text", { x: 2, y: height - 4, class: "tick" }, clock(first)),
      s("text", { x: width - 2, y: height - 4, class: "tick", "text-anchor": "end" }, open ? "now" : clock(last))));
}
