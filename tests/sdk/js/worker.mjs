// A worker for test_js.py: `node worker.mjs STORE SLOTS`; what it reports goes to the standard output.

import { writeFileSync } from "node:fs";
import { setTimeout as later } from "node:timers/promises";
import { Identity, Worker } from "../../../js/index.js";
import { DirectoryStore, fromEnvironment, serve } from "../../../js/node.js";

const [directory, slots] = process.argv.slice(2);
const worker = new Worker(fromEnvironment(), {
  name: process.env.NAME,
  type: process.env.NAME,
  owner: process.env.OWNER ? new Identity(process.env.OWNER) : null,
  approve: true,
  slots: Number(slots),
  poll: 2,
  look: 0.3,
  store: new DirectoryStore(directory),
  report: (state, text) => console.log(`${state}: ${text}`),
});

worker
  .function("upper", (texts) => texts.map((text) => text.toUpperCase()))
  .function("join", (_, { input }) => input.flat().join("+"))
  .function("pair", async (args, { kwargs }) => [args.length, kwargs.unit])
  .function("nothing", () => undefined)
  .function("throws", () => {
    throw new TypeError("this text is no number");
  })
  .function("circle", () => {
    const circle = {};
    circle.self = circle;
    return circle;
  })
  .function("odd", ([kind]) => {
    throw {
      halves: new Error("half a character: \ud800"),
      long: new Error("x".repeat(17_000_000)),
      empty: new RangeError(""),
      textless: Object.create(null),
      getter: Object.defineProperty({}, "message", { get: () => [].none.at }),
      nothing: undefined,
    }[kind];
  })
  .function("formless", ([kind]) => {
    return [{ nan: 0 / 0, map: new Map([[1, 2]]), bytes: new Uint8Array(2), code: () => 1, sign: Symbol("s") }[kind]];
  })
  .function("once", () => {
    let reads = 0;
    return Object.defineProperty({}, "reads", { enumerable: true, get: () => [1][reads++].toFixed() });
  })
  .function("told", async (_, context) => {
    for (let step = 0; step <= 100; step += 1) context.progress(`${step} %`);
    context.log("a line: ü€");
    await context.attribute("colour", "blue");
    await context.output("so far");
    return [context.deadline instanceof Date, context.env.PLACE];
  })
  .function("waits", async ([file], { signal }) => {
    console.log("waits: begun");
    try {
      await later(600_000, undefined, { signal });
    } catch {
      writeFileSync(file, String(signal.reason.message));
      throw signal.reason;
    }
  })
  .function("until", async ([file], { signal }) => {
    const { access } = await import("node:fs/promises");
    console.log("until: begun");
    while (!signal.aborted) {
      try {
        await access(file);
        return "done";
      } catch {
        await later(50);
      }
    }
  })
  .function("talks", async (_, context) => {
    const channel = context.channel("chat");
    for await (const { text, type } of channel.messages({ every: 0.1 })) {
      if (type === "end") return "goodbye";
      if (text.startsWith("?")) await channel.send(`${text} yes`);
    }
  });

await serve(worker, { grace: 1 });
console.log("served");
