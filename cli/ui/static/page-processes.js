// The list of processes with its filters; the address keeps them.

import { live } from "./api.js";
import { fill, h } from "./dom.js";
import { STATES, plural } from "./format.js";
import { page, processTable } from "./parts.js";

const WINDOWS = [["newest", "the newest"], ["hour", "the last hour"], ["day", "the last day"], ["week", "the last week"]];

export function processes(main, signal, { query }) {
  const params = {
    state: STATES.includes(query.get("state")) ? query.get("state") : "",
    func: query.get("func") ?? "",
    executor: query.get("executor") ?? "",
    text: query.get("text") ?? "",
    window: WINDOWS.some(([name]) => name === query.get("window")) ? query.get("window") : "newest",
    page: Number.parseInt(query.get("page"), 10) || 0,
  };
  const list = h("div", { class: "body" });
  const choices = (name, values) => values.map(([value, text]) => h("option", { value, selected: params[name] === value }, text));
  const functions = h("datalist", { id: "functions" });
  const executors = h("datalist", { id: "executors" });
  let inner = new AbortController();
  signal.addEventListener("abort", () => inner.abort());

  function look() {
    inner.abort();
    inner = new AbortController();
    const every = params.window === "newest" || params.window === "hour" ? 2000 : 15000;
    live(inner.signal, "processes", params, draw, every);
  }

  function change(name, value) {
    params[name] = value;
    if (name !== "page") params.page = 0;
    const kept = Object.entries(params).filter(([key, each]) => each && !(key === "window" && each === "newest"));
    const text = new URLSearchParams(kept).toString();
    window.history.replaceState(null, "", `#/processes${text ? `?${text}` : ""}`);
    look();
  }

  function draw(view) {
    fill(functions, view.functions.map((value) => h("option", { value })));
    fill(executors, view.executors.map((value) => h("option", { value })));
    const turn = (text, to, off) => h("button", { type: "button", disabled: off, "data-key": text, onclick: () => change("page", to) }, text);
    fill(list,
      h("p", { class: "quiet", role: "status" }, plural(view.total, "process", "processes"),
        view.cut ? " among the newest 100 of each state; choose a time above to see all" : ""),
      processTable("Processes", view.rows, "No process passes these filters."),
      view.pages > 1 ? h("nav", { class: "pages", "aria-label": "Pages of the list" },
        turn("Newer", view.page - 1, view.page === 0), h("span", {}, `page ${view.page + 1} of ${view.pages}`),
        turn("Older", view.page + 1, view.page + 1 >= view.pages)) : "");
  }

  const input = (name, label, props) => h("label", {}, label, h("input", { value: params[name], oninput: (event) => {
    clearTimeout(input.timer);
    const { value } = event.target;
    input.timer = setTimeout(() => change(name, value), 250);
  }, ...props }));
  const select = (name, label, values) => h("label", {}, label, h("select", { onchange: (event) => change(name, event.target.value) }, choices(name, values)));
  main.append(...page("Processes"),
    h("form", { class: "filters", role: "search", "aria-label": "Filters", onsubmit: (event) => event.preventDefault() },
      select("state", "State", [["", "any"], ...STATES.map((each) => [each, each])]),
      input("func", "Function", { list: "functions", placeholder: "any" }),
      input("executor", "Executor or type", { list: "executors", placeholder: "any" }),
      input("text", "Text", { type: "search", placeholder: "arguments, errors, ids…" }),
      select("window", "Among", WINDOWS), functions, executors),
    list);
  look();
}

