// One process: why it does not run, its life across colonies, logs, output, spec.

import { live } from "./api.js";
import { fill, h, rich } from "./dom.js";
import { ago, chip, clock, cut, short, span } from "./format.js";
import { lanes } from "./lanes.js";
import { card, change, facts, page, processLink, room } from "./parts.js";

// The page where a reason can be dealt with, too; the next step is in words for a terminal.
const PLACES = { paused: ["#/", "Overview"], away: ["#/federation", "Federation"], route: ["#/federation", "Federation"] };

export function whyCard(why) {
  if (!why) return "";
  return h("section", { class: `card why ${why.kind}`, "aria-labelledby": "why" },
    h("h2", { id: "why" }, "Why it does not run"),
    h("p", { class: "headline" }, why.headline),
    h("ul", {}, why.reasons.map((each) => h("li", {}, each.process ? processLink(each.process, each.text) : each.text))),
    why.next ? h("p", { class: "next" }, "Next: ", rich(why.next), PLACES[why.kind] ? [" Or here: ", h("a", { href: PLACES[why.kind][0] }, PLACES[why.kind][1]), "."] : "") : "",
    why.until ? h("p", { class: "quiet" }, "It fails if nobody has taken it ", ago(why.until)) : "");
}

function mark(signed) {
  if (signed === null) return "";
  return h("span", { class: signed ? "signed" : "unsigned" }, signed ? "✓ signature valid" : "✗ signature NOT valid");
}

function events(story) {
  return h("ol", { class: "events" }, story.events.map((each) => h("li", { class: each.kind },
    h("span", { class: "when" }, each.at === null ? "" : clock(each.at)),
    h("div", {}, h("strong", {}, cut(each.colony, 60)), " ", each.what, " ", each.detail ? h("span", { class: "detail" }, each.detail) : "", " ", mark(each.signed)),
    each.id ? h("code", { class: "whole" }, each.id) : "")));
}

function block(title, text, key) {
  return h("div", {}, h("pre", { tabindex: 0, role: "group", "aria-label": title, "data-scroll": key, "data-key": key }, text));
}

function logs(rows) {
  if (!rows.length) return h("p", { class: "empty" }, "It has logged nothing.");
  return h("div", { class: "log", tabindex: 0, role: "log", "aria-label": "Log lines", "data-scroll": "log", "data-follow": "", "data-key": "log" },
    rows.map((each) => h("div", { class: "line" }, h("time", {}, clock(each.at)), h("span", { class: "text" }, each.text))));
}

// What a worker reports of its progress is its last line such as "40 %".
export function progress(rows, state) {
  if (state !== "running") return "";
  for (const each of [...rows].reverse()) {
    const found = /(\d{1,3}(?:\.\d+)?) ?%/.exec(each.text);
    if (found && Number(found[1]) <= 100) {
      return h("div", { class: "progress" }, h("progress", { max: 100, value: found[1], "aria-label": "Progress" }), h("span", {}, `${found[1]} %`));
    }
  }
  return "";
}

export function process(main, signal, { id }) {
  const tools = h("div", { class: "tools" });
  const body = h("div", { class: "body" });
  main.append(...page(`Process ${short(id)}`, "", tools), body);
  live(signal, "process", { id }, (view) => {
    const row = view.row;
    const conditions = view.spec.conditions ?? {};
    const open = row.state === "waiting" || row.state === "running";
    fill(tools, chip(row.state),
      open ? change("Cancel", "cancel", { id }, { question: `Cancel ${row.func}?`, kind: "danger", done: "Cancelled" }) : "",
      !open && !view.workflow ? change("Remove", "remove", { id }, { question: "Remove this process and what it logged?", kind: "danger", then: () => { location.hash = "#/processes"; } }) : "");
    const took = row.started && row.ended ? span(row.ended - row.started) : "";
    fill(body,
      h("p", { class: "lead call" }, h("code", {}, `${row.func}(${cut(row.args, 300)})`)),
      whyCard(view.why),
      view.errors.length ? h("section", { class: "card errors", "aria-labelledby": "errors" }, h("h2", { id: "errors" }, "Errors"), view.errors.map((each, place) => block("Error", each, `error-${place}`))) : "",
      h("div", { class: "columns" },
        card("Its life", { class: "wide" }, lanes(view.story, room(body, 0.62)), events(view.story)),
        card("Facts", {}, facts([
          ["Function", row.func], ["Executor type", row.type], ["Only by", (conditions.executornames ?? []).join(", ")],
          ["At", conditions.locationname], ["Wants", [conditions.cpu, conditions.mem].filter(Boolean).join(", ")],
          ["Colony", row.colony], ["Executor", row.executor && `${row.executor}`], ["Submitted by", row.by], ["Label", row.label],
          ["Submitted", ago(row.submitted)], ["Started", row.started ? ago(row.started) : ""], ["Ran for", took],
          ["Tried before", view.retries || ""],
          ["Workflow", view.workflow ? h("a", { href: `#/workflow/${encodeURIComponent(view.workflow)}`, "data-key": "workflow" }, short(view.workflow)) : ""],
          ["After", view.parents.length ? view.parents.slice(0, 8).map((each) => [processLink(each), " "]) : ""],
          ["Id", h("code", { class: "whole" }, row.id)]]))),
      card("Log", { tools: h("span", { class: "quiet" }, open ? "live" : `${view.logs.length} lines`) }, progress(view.logs, row.state), logs(view.logs)),
      view.output.length ? card("Output", {}, view.output.map((each, place) => block("Output", each, `output-${place}`))) : "",
      view.attributes.length ? card("Attributes", {}, facts(view.attributes.map((each) => [each.key, each.value]))) : "",
      card("Spec", {}, h("details", { "data-key": "spec" }, h("summary", {}, "What was asked for, as JSON"), block("Spec", JSON.stringify(view.spec, null, 2), "spec-text"))));
  }, 1500);
}
