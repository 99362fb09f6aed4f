// Files by label, with downloads.

import { live } from "./api.js";
import { fill, h } from "./dom.js";
import { amount, cut } from "./format.js";
import { card, page, table } from "./parts.js";

export function files(main, signal, { query }) {
  const label = query.get("label") ?? "";
  const body = h("div", { class: "body columns files" });
  main.append(...page("Files"), body);
  live(signal, "files", { label: label || "/" }, (view) => {
    if (!label && !view.files.length && view.labels.length) {
      location.replace(`#/files?label=${encodeURIComponent(view.labels[0][0])}`);
      return;
    }
    fill(body,
      card("Labels", {}, view.labels.length ? h("ul", { class: "labels" }, view.labels.map(([name, count]) => h("li", {},
        h("a", { href: `#/files?label=${encodeURIComponent(name)}`, "aria-current": name === view.label ? "true" : null, "data-key": `label-${name}` }, cut(name, 80)),
        h("span", { class: "quiet" }, String(count))))) : h("p", { class: "empty" }, "No labels.")),
      card("Files", { class: "wide", tools: h("code", {}, cut(view.label, 80)) }, table("Files", ["Name", "Size", "SHA-256", ""],
        view.files.map((each) => [
          h("span", { class: "name" }, cut(each.name, 80)), amount(each.size), h("code", {}, each.checksum.slice(0, 12)),
          h("a", { class: "button", download: "", href: `download?label=${encodeURIComponent(view.label)}&name=${encodeURIComponent(each.name)}`, "aria-label": `Download ${each.name}`, "data-key": `get-${each.name}` }, "Download")]),
        "No files directly under this label. Put one: colony file put FILE --label LABEL"),
        view.more ? h("p", {}, `${view.more} more are not shown`) : ""));
  }, 5000);
}
