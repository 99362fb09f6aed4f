// Parts that several pages are made of: cards, tables, buttons, the dialog that asks.

import { act } from "./api.js";
import { h, s } from "./dom.js";
import { ago, chip, cut, lasts, short, span } from "./format.js";

export const may = { write: false, owner: false };

export function page(title, lead, ...rest) {
  return [h("div", { class: "title" }, h("h1", { tabindex: -1 }, title), rest), lead ? h("p", { class: "lead" }, lead) : ""];
}

export function card(title, props, ...children) {
  const id = `card-${title.toLowerCase().replace(/[^a-z]+/g, "-")}`;
  return h("section", { class: `card ${props?.class ?? ""}`, "aria-labelledby": id },
    h("div", { class: "head" }, h("h2", { id }, title), props?.tools ?? ""), children);
}

// Rows as a table; on a phone each row is a block with the column's name before each value.
export function table(caption, columns, rows, empty, kind = "") {
  if (!rows.length) return h("p", { class: "empty" }, empty);
  return h("table", { class: `rows ${kind}`, role: "table", "aria-label": caption },
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" },
      columns.map((name) => h("th", { scope: "col", role: "columnheader" }, name)))),
    h("tbody", { role: "rowgroup" },
      rows.map((cells) => h("tr", { role: "row" }, cells.map((cell, place) =>
        h("td", { role: "cell", "data-label": columns[place] }, h("span", { class: "cell" }, cell)))))));
}

export function facts(pairs) {
  const kept = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "" && value !== false);
  return h("dl", { class: "facts" }, kept.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

export function processLink(id, text) {
  return h("a", { href: `#/process/${encodeURIComponent(id)}`, "data-key": `process-${id}`, class: "id" }, text ?? short(id));
}

export function processTable(caption, rows, empty) {
  return table(caption, ["Function", "State", "Submitted", "Took", "Executor", "By", "Id"],
    rows.map((row) => [
      h("span", { class: "call" }, h("a", { href: `#/process/${encodeURIComponent(row.id)}`, "data-key": `call-${row.id}` }, cut(row.node || row.func || "(no name)", 48)),
        row.node ? h("span", { class: "args" }, cut(row.func, 40)) : "", row.args ? h("span", { class: "args" }, cut(row.args, 60)) : ""),
      chip(row.state),
      ago(row.submitted),
      row.started ? (row.ended ? span(row.ended - row.started) : lasts(row.started)) : "–",
      cut(row.executor || (row.type ? `any ${row.type}` : "–"), 32),
      cut(row.by, 28),
      processLink(row.id),
    ]), empty, "brief");
}

export function ask(question, verb, danger = true) {
  return new Promise((resolve) => {
    const before = document.activeElement;
    const done = (answer) => {
      dialog.close();
      dialog.remove();
      before?.isConnected && before.focus();
      resolve(answer);
    };
    const dialog = h("dialog", { "aria-label": verb, oncancel: (event) => { event.preventDefault(); done(false); } },
      h("p", {}, question),
      h("div", { class: "buttons" },
        h("button", { type: "button", onclick: () => done(false) }, "Leave it"),
        h("button", { type: "button", class: danger ? "danger" : "main", onclick: () => done(true) }, verb)));
    document.body.append(dialog);
    dialog.showModal();
  });
}

// A button for a change: nothing where the page only reads.
export function change(label, name, params, { question, done, owner, kind = "", then } = {}) {
  if (!may.write || (owner && !may.owner)) return "";
  return h("button", {
    type: "button", class: kind, "data-key": `${name}-${JSON.stringify(params)}`,
    onclick: async (event) => {
      if (question && !(await ask(question, label, kind === "danger"))) return;
      const button = event.target;
      button.disabled = true;
      const value = await act(name, params, done ?? `${label}: done`);
      button.disabled = false;
      if (value && then) then(value);
    },
  }, label);
}

const ICONS = {
  overview: "M3 12h4l3-8 4 16 3-8h4",
  processes: "M4 6h16M4 12h16M4 18h10",
  workflows: "M6 4v6m0 0h12m-12 0v4m12-4v4M6 14a3 3 0 1 0 0 6 3 3 0 0 0 0-6zm12 0a3 3 0 1 0 0 6 3 3 0 0 0 0-6z",
  timers: "M12 7v5l3 3M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18z",
  files: "M3 7a2 2 0 0 1 2-2h4l2 2h8a2 2 0 0 1 2 2v8a2 2 0 0 1-2 2H5a2 2 0 0 1-2-2z",
  federation: "M12 8.5a3 3 0 1 0 0-6 3 3 0 0 0 0 6zM5 21.500a3 3 0 1 0 0-6 3 3 0 0 0 0 6zM19 21.500a3 3 0 1 0 0-6 3 3 0 0 0 0 6zM10.500 8 6.500 15.500M13.500 8l4 7.500M8 18.500h8",
  history: "M4 5v5h5M4.500 10A8 8 0 1 1 4 13M12 8v4l3 2",
  submit: "M12 5v14M5 12h14",
};

export function icon(name) {
  return s("svg", { viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true" }, s("path", { d: ICONS[name] }));
}

// The width of what stands in `main`, in px; `share` of it where cards stand beside each other.
export function room(element, share = 1) {
  const main = element.closest("main");
  const style = getComputedStyle(main);
  const whole = main.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
  const beside = share < 1 && window.matchMedia("(min-width: 1020px)").matches;
  return Math.floor(beside ? (whole - 20) * share : whole) - 34;
}
