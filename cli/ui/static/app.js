// The frame of the page: which part is shown, the navigation, the name of the colony.

import { call, trouble } from "./api.js";
import { h } from "./dom.js";
import { tick } from "./format.js";
import { icon, may } from "./parts.js";
import { federation } from "./page-federation.js";
import { files } from "./page-files.js";
import { history } from "./page-history.js";
import { overview } from "./page-overview.js";
import { process } from "./page-process.js";
import { processes } from "./page-processes.js";
import { submit } from "./page-submit.js";
import { timers } from "./page-timers.js";
import { workflow, workflows } from "./page-workflows.js";

const PAGES = [
  ["", "overview", "Overview", overview],
  ["processes", "processes", "Processes", processes],
  ["workflows", "workflows", "Workflows", workflows],
  ["timers", "timers", "Timers", timers],
  ["files", "files", "Files", files],
  ["federation", "federation", "Federation", federation],
  ["history", "history", "History", history],
  ["submit", "submit", "Submit", submit],
];
const INNER = { process: ["processes", process], workflow: ["workflows", workflow] };

const main = document.getElementById("main");
let current = new AbortController();
let colony = "colony";

function where() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, ...rest] = path.split("/");
  return { name, rest: rest.map(decodeURIComponent), query: new URLSearchParams(query) };
}

function show(first = false) {
  const { name, rest, query } = where();
  const inner = INNER[name];
  const row = PAGES.find(([path]) => path === (inner ? inner[0] : name)) ?? PAGES[0];
  const draw = inner ? inner[1] : row[3];
  current.abort();
  current = new AbortController();
  trouble(null);
  for (const link of document.querySelectorAll("#nav a")) {
    if (link.dataset.page === row[0]) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  main.replaceChildren();
  main.dataset.page = inner ? name : row[1];
  draw(main, current.signal, { id: rest.join("/"), query });
  document.title = `${main.querySelector("h1")?.textContent ?? row[2]} · ${colony}`;
  document.querySelector("#nav a[aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
  if (!first) {
    window.scrollTo(0, 0);
    (main.querySelector("h1") ?? main).focus({ preventScroll: true });
  }
}

async function begin() {
  const { value } = await call("hello");
  Object.assign(may, { write: value.write, owner: value.owner });
  colony = value.colony;
  document.getElementById("colony").replaceChildren(h("span", {}, value.colony));
  document.getElementById("colony").title = value.colony;
  const mode = document.getElementById("mode");
  mode.textContent = value.write ? "may change things" : "reads only";
  mode.classList.toggle("write", value.write);
  document.getElementById("nav").replaceChildren(h("ul", {},
    PAGES.filter(([path]) => path !== "submit" || value.write).map(([path, sign, title]) =>
      h("li", {}, h("a", { href: `#/${path}`, "data-page": path }, icon(sign), h("span", {}, title))))));
  document.getElementById("skip").addEventListener("click", (event) => {
    event.preventDefault();
    main.focus();
  });
  window.addEventListener("hashchange", () => show());
  setInterval(tick, 1000);
  show(true);
  document.documentElement.dataset.ready = "";
}

begin().catch((error) => trouble(error));
