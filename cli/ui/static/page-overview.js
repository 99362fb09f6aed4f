// The overview: counters, the last hour, executors, peers, and what is wrong.

import { act, live } from "./api.js";
import { chart } from "./chart.js";
import { fill, h, rich } from "./dom.js";
import { ago, amount, chip, cut, lasts, plural } from "./format.js";
import { card, change, page, processLink, room, table } from "./parts.js";

function counters(view) {
  const rows = [["waiting", "Waiting"], ["running", "Running"], ["successful", "Done"], ["failed", "Failed"], ["cancelled", "Cancelled"]];
  return h("ul", { class: "counters", "aria-label": "Processes" }, rows.map(([state, title]) =>
    h("li", {}, h("a", { href: `#/processes?state=${state}`, class: state, "data-key": `count-${state}` },
      h("span", { class: "number" }, String(view.counts[state])), h("span", { class: "of" }, title)))));
}

function executors(view) {
  const rows = view.executors.map((each) => [
    h("strong", { class: "name" }, cut(each.name, 40)),
    cut(each.type, 28),
    chip(each.state),
    each.running.length
      ? each.running.slice(0, 3).map((row) => h("span", { class: "doing" }, processLink(row.id, cut(row.func, 28)), " for ", lasts(row.started)))
      : h("span", { class: "quiet" }, each.state === "approved" ? "nothing" : "may not take work"),
    ago(each.heard, "never"),
    h("span", { class: "buttons" },
      each.state !== "approved" ? change("Approve", "approve", { name: each.name }, { owner: true, kind: "main", done: `Approved ${each.name}` }) : "",
      each.state !== "rejected" ? change("Reject", "reject", { name: each.name }, { owner: true, question: `Reject ${each.name}? What it runs waits again.`, kind: "danger" }) : "",
      each.state !== "approved" ? change("Remove", "remove-executor", { name: each.name }, { owner: true, question: `Remove ${each.name}?`, kind: "danger" }) : ""),
  ]);
  const columns = ["Name", "Type", "State", "Runs", "Heard from", ""];
  return table("Executors", columns, rows, "No executors. Start one: colony worker --func NAME='COMMAND'");
}

function findings(view) {
  const bad = view.findings.filter((each) => each.ok !== true);
  const good = view.findings.filter((each) => each.ok === true);
  const row = (each) => h("li", { class: each.ok === false ? "bad" : each.ok === null ? "maybe" : "good" },
    h("div", {}, h("strong", {}, each.name), " ", each.detail),
    each.next && each.ok !== true ? h("div", { class: "next" }, "Next: ", rich(each.next)) : "");
  if (!view.findings.length) return h("p", { class: "empty" }, "The doctor is looking…");
  return [
    bad.length ? h("ul", { class: "findings" }, bad.map(row)) : h("p", { class: "fine" }, "Nothing is wrong."),
    h("details", { "data-key": "good" }, h("summary", {}, `${plural(good.length, "check")} passed`), h("ul", { class: "findings" }, good.map(row))),
  ];
}

function stuck(view) {
  const rows = view.stuck.map((each) => h("li", { class: "bad" },
    h("div", {}, h("strong", {}, plural(each.count, "process", "processes")), " can't run: ", each.why),
    h("div", { class: "next" }, "Next: ", rich(each.next), " ", processLink(each.processid, "see the first"))));
  if (view.paused) rows.unshift(h("li", { class: "maybe" }, h("div", {}, h("strong", {}, "Paused"), " No process is given to an executor."), change("Resume", "resume", {}, { owner: true, kind: "main" })));
  return rows.length ? h("ul", { class: "findings banner", "aria-label": "What hinders processes" }, rows) : "";
}

function peers(view) {
  if (view.peers === null) return h("p", { class: "empty" }, "Federation is off, or this command has no owner's key.");
  if (!view.peers.length) return h("p", { class: "empty" }, "No other colonies are known.");
  return h("ul", { class: "peers" }, view.peers.slice(0, 12).map((each) => h("li", {},
    h("a", { href: `#/federation?peer=${encodeURIComponent(each.id)}`, "data-key": `peer-${each.id}` }, cut(each.name || each.id, 40)), " ", chip(each.state),
    each.outstanding ? h("span", { class: "quiet" }, ` ${plural(each.outstanding, "forward")} under way`) : "",
    each.error ? h("span", { class: "wrong" }, ` ${cut(each.error, 120)}`) : "")));
}

export function overview(main, signal) {
  const top = h("div", { class: "tools" });
  const body = h("div", { class: "body" });
  main.append(...page("Overview", "", top), body);
  live(signal, "overview", {}, (view) => {
    fill(top, view.paused ? "" : change("Pause", "pause", {}, { owner: true, question: "Pause the colony? No process is given to an executor until it is resumed." }));
    const failures = view.findings.filter((each) => each.ok === false).length;
    fill(body,
      stuck(view),
      counters(view),
      h("div", { class: "columns" },
        ((drawn) => card(drawn.title, { class: "wide" }, drawn.figure))(chart(view.slots, room(body, 0.62))),
        card("What is wrong", { tools: h("button", { type: "button", "data-key": "look", onclick: () => act("diagnose", {}, "Looked again") }, "Look again") },
          failures ? h("p", { class: "wrong" }, plural(failures, "check"), " failed") : "", findings(view))),
      card("Executors", {}, executors(view), view.more ? h("p", {}, `and ${view.more} more`) : ""),
      h("div", { class: "columns even" },
        card("Other colonies", {}, peers(view)),
        card("Daemon", {}, h("dl", { class: "facts" },
          [["Version", view.node.version ?? "not told"], ["Started", ago(view.node.started)],
            ["Store", view.node.store === null ? "not told" : `${amount(view.node.store)} of ${amount(view.node.quota)}`],
            ["Workflows", ["waiting", "running", "successful", "failed"].map((state) => `${view.workflows[state]} ${state}`).join(", ")]]
            .map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))))));
  });
}
