// Elements of the page. All that comes from outside becomes text, never HTML; characters that can't
// be seen, or that would turn the order of the others around, are shown as escapes.

const SVG = "http://www.w3.org/2000/svg";
const UNSEEN = /[^\P{C}\n\t]/gu;

export function visible(text) {
  return String(text ?? "").replace(
    UNSEEN,
    (c) => `\\u{${c.codePointAt(0).toString(16)}}`,
  );
}

function make(element, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "title" || name === "aria-label") element.setAttribute(name, visible(value));
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  add(element, children);
  return element;
}

function add(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : visible(child));
  }
}

export function h(tag, props, ...children) {
  return make(document.createElement(tag), props, children);
}

export function s(tag, props, ...children) {
  return make(document.createElementNS(SVG, tag), props, children);
}

// Replaces what is in a region, and keeps what a person does there: focus, open details, scrolling.
export function fill(region, ...children) {
  const active = region.contains(document.activeElement) ? document.activeElement : null;
  const key = active?.dataset?.key;
  const open = new Map(
    [...region.querySelectorAll("details[data-key]")].map((each) => [each.dataset.key, each.open]),
  );
  const scrolled = new Map(
    [...region.querySelectorAll("[data-scroll]")].map((each) => [
      each.dataset.scroll,
      [each.scrollLeft, each.scrollTop, each.scrollHeight - each.scrollTop - each.clientHeight < 8],
    ]),
  );
  region.replaceChildren();
  add(region, children);
  for (const each of region.querySelectorAll("details[data-key]")) {
    if (open.has(each.dataset.key)) each.open = open.get(each.dataset.key);
  }
  for (const each of region.querySelectorAll("[data-scroll]")) {
    const [left, top, end] = scrolled.get(each.dataset.scroll) ?? [0, 0, true];
    each.scrollLeft = left;
    each.scrollTop = end && each.dataset.follow !== undefined ? each.scrollHeight : top;
  }
  if (key) {
    const again = [...region.querySelectorAll("[data-key]")].find((each) => each.dataset.key === key);
    (again ?? region.closest("main"))?.focus({ preventScroll: true });
  }
}

// Text with `commands` in it: what stands between backticks is code.
export function rich(text) {
  return String(text ?? "")
    .split("`")
    .map((part, index) => (index % 2 ? h("code", {}, part) : part));
}
