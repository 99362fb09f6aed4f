// A form for a process, made from the functions that executors have registered.

import { act, live } from "./api.js";
import { fill, h } from "./dom.js";
import { cut } from "./format.js";
import { card, may, page } from "./parts.js";

// A field's text as the value that its type means.
function valueOf(text, type) {
  if (/^(int|integer|float|number|bool|boolean|json|object|array|list|dict|map)/i.test(type)) {
    try {
      return JSON.parse(text);
    } catch {
      return text;
    }
  }
  return text;
}

function field(arg, place) {
  const name = `arg-${place}`;
  const props = { id: name, name, required: arg.required };
  const input = arg.enum.length
    ? h("select", props, arg.required ? "" : h("option", { value: "" }, "–"), arg.enum.map((value) => h("option", { value }, value)))
    : h("input", { ...props, autocomplete: "off", type: /^(int|integer|float|number)/i.test(arg.type) ? "number" : "text", step: "any" });
  return h("label", { for: name }, h("span", {}, arg.name || `argument ${place + 1}`, arg.type ? h("span", { class: "quiet" }, ` ${cut(arg.type, 24)}`) : "", arg.required ? " *" : ""), input,
    arg.description ? h("small", {}, cut(arg.description, 300)) : "");
}

export function submit(main, signal) {
  const body = h("div", { class: "body" });
  main.append(...page("Submit a process"), body);
  if (!may.write) {
    body.append(h("p", { class: "empty" }, "This page only reads: colony ui --write"));
    return;
  }
  let drawn = false;
  live(signal, "offers", {}, (offers) => {
    if (drawn) return;
    drawn = true;
    const args = h("fieldset", {});
    const names = offers.map((each, place) => h("option", { value: place }, `${cut(each.func, 60)} · ${cut(each.type, 40)}${each.colony ? ` · at ${cut(each.colony, 40)}` : ""}`));
    const chosen = h("select", { id: "offer" }, names, h("option", { value: "" }, "another function…"));
    const offer = () => offers[chosen.value] ?? { func: "", type: "", colony: "", args: [], description: "" };
    const draw = () => {
      const now = offer();
      fill(args, h("legend", {}, "Arguments"),
        chosen.value === "" ? [h("label", { for: "func" }, "Function *", h("input", { id: "func", required: true })), h("label", { for: "type" }, "Executor type *", h("input", { id: "type", required: true }))] : "",
        now.description ? h("p", { class: "quiet" }, cut(now.description, 400)) : "",
        now.args.map(field),
        now.args.length ? "" : h("label", { for: "list" }, "One argument a line", h("textarea", { id: "list", rows: 3, spellcheck: "false" })));
    };
    chosen.addEventListener("change", draw);
    const number = (id, label, value) => h("label", { for: id }, label, h("input", { id, type: "number", min: 0, step: 1, value }));
    const send = async (event) => {
      event.preventDefault();
      const now = offer();
      const value = (id) => document.getElementById(id)?.value ?? "";
      const given = now.args.map((arg, place) => [arg, value(`arg-${place}`)]);
      const last = given.findLastIndex(([, text]) => text !== "");
      const list = now.args.length ? given.slice(0, last + 1).map(([arg, text]) => valueOf(text, arg.type)) : value("list").split("\n").filter((line) => line !== "");
      const made = await act("submit", {
        func: now.func || value("func"), type: now.type || value("type"), colony: now.colony, args: list, label: value("label"),
        maxwaittime: Number(value("wait")) || 0, maxexectime: Number(value("exec")) || 0, maxretries: Number(value("retries")) || 0, priority: Number(value("priority")) || 0,
      }, "Submitted");
      if (made) location.hash = `#/process/${encodeURIComponent(made.id)}`;
    };
    draw();
    fill(body, card("Process", { class: "narrow" }, h("form", { class: "submit", onsubmit: send },
      h("label", { for: "offer" }, "Function", chosen), args,
      h("fieldset", { class: "limits" }, h("legend", {}, "Limits"),
        number("wait", "Seconds to wait (0: no limit)", 0), number("exec", "Seconds to run (0: no limit)", 600), number("retries", "Retries", 0),
        h("label", { for: "priority" }, "Priority", h("input", { id: "priority", type: "number", step: 1, value: 0 })), h("label", { for: "label" }, "Label", h("input", { id: "label", autocomplete: "off" }))),
      h("div", { class: "buttons" }, h("button", { type: "submit", class: "main" }, "Submit")))));
  }, 10000);
}
