// Workflows: the list, and one as a graph.

import { live } from "./api.js";
import { fill, h } from "./dom.js";
import { STATES, ago, chip, cut, short, span } from "./format.js";
import { graph } from "./graph.js";
import { card, change, facts, page, processTable, room, table } from "./parts.js";

export function workflows(main, signal) {
  const body = h("div", { class: "body" });
  main.append(...page("Workflows"), body);
  live(signal, "workflows", {}, (rows) => fill(body, table("Workflows", ["Id", "State", "Nodes", "Submitted", "Took", "By"],
    rows.map((row) => [
      h("a", { href: `#/workflow/${encodeURIComponent(row.id)}`, class: "id", "data-key": row.id }, short(row.id)),
      chip(row.state), String(row.nodes), ago(row.submitted),
      row.started && row.ended ? span(row.ended - row.started) : "–", cut(row.by, 32)]),
    "No workflows. Submit one: colony workflow submit FILE")));
}

export function workflow(main, signal, { id }) {
  const tools = h("div", { class: "tools" });
  const body = h("div", { class: "body" });
  main.append(...page(`Workflow ${short(id)}`, "", tools), body);
  live(signal, "workflow", { id }, (view) => {
    const row = view.row;
    const open = row.state === "waiting" || row.state === "running";
    fill(tools, chip(row.state),
      open ? change("Cancel", "cancel-workflow", { id }, { question: "Cancel what waits and runs of this workflow?", kind: "danger" }) : "",
      !open ? change("Remove", "remove-workflow", { id }, { question: "Remove this workflow and its processes?", kind: "danger", then: () => { location.hash = "#/workflows"; } }) : "");
    const counts = STATES.map((state) => [state, view.nodes.filter((node) => node.state === state).length]).filter(([, number]) => number);
    fill(body,
      h("p", { class: "lead" }, counts.map(([state, number]) => h("span", { class: `key ${state}` }, `${number} ${state}`))),
      card("Graph", {}, graph(view.nodes, view.edges, room(body)), view.more ? h("p", {}, `${view.more} more nodes are not drawn`) : ""),
      card("Nodes", {}, processTable("Nodes", view.nodes.slice(0, 100), "No nodes.")),
      card("Facts", {}, facts([["Submitted by", row.by], ["Submitted", ago(row.submitted)], ["Started", row.started ? ago(row.started) : ""], ["Ended", row.ended ? ago(row.ended) : ""], ["Id", h("code", { class: "whole" }, row.id)]])));
  });
}
