// Gives a test in Python a real Chromium: each line of input is {id, code, args}, where `code` is
// the body of an async function that gets `browser`, `pages` (an object to keep pages in) and
// `args`; each line of output is {id, value} or {id, error}.

import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const browser = await chromium.launch({
  executablePath: process.argv[2],
  args: [
    "--no-sandbox", // the tests run as root in CI, on pages of their own
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
  ],
});
const pages = {};
const Body = Object.getPrototypeOf(async () => {}).constructor;

function say(answer) {
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}

say({ id: 0, value: browser.version() });
for await (const line of createInterface({ input: process.stdin })) {
  const { id, code, args } = JSON.parse(line);
  // Not awaited: one question may wait for what another brings about.
  new Body("browser", "pages", "args", code)(browser, pages, args).then(
    (value) => say({ id, value: value ?? null }),
    (error) => say({ id, error: String(error.message ?? error) }),
  );
}
await browser.close();
