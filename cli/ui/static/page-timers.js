// Crons and generators, with their next runs.

import { live } from "./api.js";
import { fill, h } from "./dom.js";
import { ago, cut, short } from "./format.js";
import { card, change, page } from "./parts.js";

function spec(row) {
  let text = row.spec;
  try {
    text = JSON.stringify(JSON.parse(row.spec), null, 2);
  } catch { /* shown as it is */ }
  return h("details", { "data-key": `spec-${row.id}` }, h("summary", {}, "Its workflow"), h("pre", { tabindex: 0, "aria-label": "Workflow", role: "group" }, text));
}

function cron(row) {
  return h("li", { class: "timer" },
    h("div", { class: "what" }, h("strong", {}, cut(row.name, 60)), h("code", {}, cut(row.schedule, 60))),
    h("div", { class: "next-run" }, h("span", { class: "quiet" }, "next "), ago(row.next, "never")),
    h("div", { class: "quiet" }, "last ", ago(row.last, "never"),
      row.workflow ? [" · ", h("a", { href: `#/workflow/${encodeURIComponent(row.workflow)}`, "data-key": `last-${row.id}` }, `workflow ${short(row.workflow)}`)] : ""),
    spec(row),
    h("div", { class: "buttons" }, change("Run now", "run-cron", { id: row.id }, { question: `Run ${row.name} now?` }), change("Remove", "remove-cron", { id: row.id }, { question: `Remove the cron ${row.name}?`, kind: "danger" })));
}

function generator(row) {
  return h("li", { class: "timer" },
    h("div", { class: "what" }, h("strong", {}, cut(row.name, 60)), h("span", { class: "quiet" }, `by ${cut(row.by, 32)}`)),
    h("div", { class: "progress" }, h("progress", { max: Math.max(1, row.trigger), value: Math.min(row.waiting, row.trigger), "aria-label": `Arguments of ${row.name}` }), h("span", {}, `${row.waiting} of ${row.trigger} arguments`)),
    h("div", { class: "quiet" }, row.timeout ? [`or ${row.timeout} s after the first`, row.first ? [": ", ago(row.first + row.timeout)] : "", " · "] : "", "last ", ago(row.last, "never")),
    spec(row),
    h("div", { class: "buttons" }, change("Remove", "remove-generator", { id: row.id }, { question: `Remove the generator ${row.name} with its arguments?`, kind: "danger" })));
}

export function timers(main, signal) {
  const body = h("div", { class: "body columns even" });
  main.append(...page("Timers", "What starts workflows: by the clock, or with enough arguments."), body);
  live(signal, "timers", {}, (view) => fill(body,
    card("Crons", {}, view.crons.length ? h("ul", { class: "timers" }, view.crons.map(cron)) : h("p", { class: "empty" }, "No crons. Make one: colony cron add")),
    card("Generators", {}, view.generators.length ? h("ul", { class: "timers" }, view.generators.map(generator)) : h("p", { class: "empty" }, "No generators. Make one: colony generator add"))), 3000);
}
