// The federation: the map, each colony, invitations, routes.

import { act, live, say } from "./api.js";
import { fill, h, rich, s } from "./dom.js";
import { ago, chip, cut, plural, short } from "./format.js";
import { map } from "./map.js";
import { card, change, facts, may, page, room, table } from "./parts.js";

function code(rows) {
  const path = rows.map((row, y) => [...row].map((dark, x) => (dark === "1" ? `M${x} ${y}h1v1h-1z` : "")).join("")).join("");
  return s("svg", { viewBox: `0 0 ${rows.length} ${rows.length}`, class: "qr", role: "img", "aria-label": "QR code of the invitation", "shape-rendering": "crispEdges" },
    s("rect", { width: rows.length, height: rows.length, fill: "#fff" }), s("path", { d: path, fill: "#000" }));
}

function trust(peer, colony) {
  const theirs = peer.theirs === null ? "not known" : peer.theirs ? "trusted" : "not trusted";
  return [h("div", {}, `${cut(colony, 24)} → ${cut(peer.name, 24)}: `, chip(peer.ours)), h("div", {}, `${cut(peer.name, 24)} → ${cut(colony, 24)}: `, h("span", { class: `chip ${peer.theirs ? "trusted" : "unknown"}` }, theirs))];
}

function peerCard(peer, view, chosen) {
  return h("li", { class: `card peer ${chosen ? "chosen" : ""}`, id: `peer-${peer.id}` },
    h("div", { class: "head" }, h("h3", { tabindex: -1 }, cut(peer.name || "(no name)", 60)), chip(peer.ours)),
    peer.error ? h("p", { class: "wrong" }, cut(peer.error, 300)) : "",
    facts([
      ["Your name", cut(peer.petname, 60)], ["So called", cut(peer.called, 300)],
      ["Trust", trust(peer, view.colony)], ["Last heard", ago(peer.seen, "never")],
      ["Forwards", peer.out || peer.back_waiting || peer.back_running ? `${peer.out} to it; ${peer.back_waiting} waiting and ${peer.back_running} running here for it` : "none under way"],
      ["Introduced by", peer.introducedby.join(", ")], ["Addresses", peer.endpoints.join(", ")],
      ["Offers us", peer.offers.length ? peer.offers.map((each) => h("div", {}, cut(each, 200))) : ""],
      ["Id", h("code", { class: "whole" }, peer.id)]]),
    h("details", { "data-key": `policy-${peer.id}` }, h("summary", {}, "What it may do here"), facts(peer.policy)),
    h("div", { class: "buttons" },
      h("button", { type: "button", "data-key": `ping-${peer.id}`, onclick: async () => {
        const answer = await act("ping", { peer: peer.id });
        if (answer) say(answer.ok ? `${peer.name} answers in ${(answer.rtt * 1000).toFixed(1)} ms` : `${peer.name} does not answer: ${answer.error}`);
      } }, "Ping"),
      peer.ours !== "trusted" ? change("Trust", "trust", { peer: peer.id }, { owner: true, kind: "main", question: `Trust ${peer.name}? It may send work here, and gets work from here. Compare its id first: ${peer.id}`, done: `${peer.name} is trusted` }) : "",
      peer.ours !== "blocked" ? change("Block", "block", { peer: peer.id }, { owner: true, kind: "danger", question: `Block ${peer.name}? What is under way there and here ends.`, done: `${peer.name} is blocked` }) : ""));
}

function inviting(view, made) {
  if (!may.write || !may.owner) return h("p", { class: "empty" }, rich("Inviting and joining need `colony ui --write` and the owner's key."));
  const invite = h("button", { type: "button", class: "main", "data-key": "invite", onclick: async () => {
    const value = await act("invite", {}, "The invitation is good for one colony and one hour");
    if (value) fill(made, h("div", { class: "invitation" }, code(value.rows),
      h("div", {}, h("label", {}, "Token", h("textarea", { readonly: true, rows: 5, "data-key": "token" }, value.token)),
        h("p", { class: "quiet" }, "Who has it is trusted. On the other side: ", rich("`colony peer join TOKEN`, or the field here."), " It ends ", ago(value.expires)))));
  } }, "Invite a colony");
  const token = h("textarea", { id: "join", rows: 3, placeholder: "Paste the token here", spellcheck: "false", required: true });
  const join = h("form", { onsubmit: async (event) => {
    event.preventDefault();
    const value = await act("join", { token: token.value });
    if (value) {
      token.value = "";
      say(`${value.name} and this colony trust each other`);
    }
  } }, h("label", { for: "join" }, "Join with the token of another colony"), token, h("button", { type: "submit", class: "main" }, "Join"));
  return h("div", { class: "invite" }, h("div", {}, invite, made), join);
}

export function federation(main, signal, { query }) {
  const chosen = query.get("peer");
  const top = h("div", { class: "body" });
  const doing = h("div", { class: "body" });
  const below = h("div", { class: "body" });
  const made = h("div", { "aria-live": "polite" });
  let drawn = false;
  main.append(...page("Federation"), top, doing, below);
  live(signal, "federation", {}, (view) => {
    fill(top, !view.on ? h("p", { class: "empty" }, "Federation is off, or this command has no owner's key.")
      : card("Map", {}, view.peers.length ? map(view, room(top), (peer) => `#/federation?peer=${encodeURIComponent(peer.id)}`)
        : h("p", { class: "empty" }, "No other colonies are known. Those on the same network appear on their own; invite others below.")));
    if (!drawn && view.on) fill(doing, card("Invite and join", {}, inviting(view, made)));
    fill(below,
      h("ul", { class: "cards" }, view.peers.map((peer) => peerCard(peer, view, peer.id === chosen))),
      view.more ? h("p", {}, `${view.more} more are not shown`) : "",
      view.invitations.length ? card("Open invitations", {}, table("Open invitations", ["Name", "Made", "Ends", ""], view.invitations.map((each) => [
        short(each.invitation), ago(each.created), ago(Number(each.expires)), change("Revoke", "revoke", { invitation: each.invitation }, { owner: true, question: "Revoke this invitation?", kind: "danger" })]), "")) : "",
      card("Routes", {}, table("Routes", ["#", "Function", "Type", "When", "To", "Sent"], view.routes.map((each) => [
        String(each.number), each.func, each.executortype, each.when, (each.to ?? []).join(", "), plural(each.sent, "process", "processes")]),
      "No routes: a process that names no colony stays here.")));
    if (!drawn && chosen) document.getElementById(`peer-${chosen}`)?.scrollIntoView({ block: "center" });
    drawn = true;
  });
}

