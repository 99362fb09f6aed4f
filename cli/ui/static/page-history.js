// What has left the store, and the check that it is as it was written.

import { act, live } from "./api.js";
import { fill, h } from "./dom.js";
import { plural } from "./format.js";
import { card, page, processTable } from "./parts.js";

export function history(main, signal) {
  const result = h("div", { "aria-live": "polite" });
  const list = h("div", { class: "body" });
  const digest = h("input", { id: "digest", autocomplete: "off", spellcheck: "false", placeholder: "optional" });
  const check = async (event) => {
    event.preventDefault();
    fill(result, h("p", { class: "quiet" }, "Reading every record…"));
    const found = await act("verify", { contains: digest.value });
    fill(result, !found ? "" : [
      h("p", { class: found.problems.length ? "wrong" : "fine" }, found.problems.length
        ? `History is not what was written: ${plural(found.problems.length, "problem")}`
        : `${plural(found.records, "record")} in ${plural(found.files, "file")}: each follows the one before.`),
      h("ul", {}, found.problems.map((each) => h("li", {}, each))),
      found.head ? h("p", {}, "Digest of the last record: ", h("code", { class: "whole" }, found.head)) : "",
    ]);
  };
  main.append(...page("History", "Closed processes that are past history.keep. They are in files of the daemon's home, in a chain: each record has the digest of the one before."),
    h("div", { class: "body" }, card("Verify", {}, h("form", { class: "filters", onsubmit: check },
      h("label", { for: "digest" }, "A digest that was noted before", digest), h("button", { type: "submit", class: "main" }, "Verify")), result)),
    list);
  live(signal, "history", {}, (view) => fill(list, card("The newest", {}, view.there
    ? processTable("History", view.rows, "Nothing is in history yet.")
    : h("p", { class: "empty" }, "There is no history at ", h("code", {}, view.directory), " on this machine."))), 20000);
}
