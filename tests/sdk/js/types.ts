// Each marked line is a mistake that the package's types must find: tsc fails where it does not.
import { Client, Identity, Worker, type Context } from "colonyd";
import { DirectoryStore, fromEnvironment, serve } from "colonyd/node";
import { ColonyRuntime } from "colonyd/upstream";

const client = new Client("http://127.0.0.1:50080", { identity: Identity.generate(), colony: "dev" });
const worker = new Worker(client, { name: "js-1", type: "js", slots: 2, store: new DirectoryStore("results") });
worker.function("upper", ([text]) => text.toUpperCase());
worker.function("slow", async ([], context: Context) => context.log(context.deadline?.toISOString()));
const out = await client.run("upper", ["x"], { type: "js", maxexectime: 10 });
out[0];
await client.submitWorkflow({ a: { func: "upper", args: ["x"] }, b: { func: "join", after: ["a"] } });
for await (const line of client.logs("id")) line.message.length;
await serve(worker, { grace: 3 });
fromEnvironment().cancel("id");
new ColonyRuntime("localhost", "50080").assign("dev", "key");

// @ts-expect-error: a key is a text
new Identity(7);
// @ts-expect-error: a worker has a type
new Worker(client, { name: "js-1" });
// @ts-expect-error: a function is one
worker.function("upper", "toUpperCase");
// @ts-expect-error: the seconds are a number
client.wait("id", { seconds: "ten" });
// @ts-expect-error: no such option
client.run("upper", [], { executortyp: "js" });
// @ts-expect-error: a function is no JSON
client.run("upper", [() => 1]);
// @ts-expect-error: the context has no such thing
worker.function("x", (args, context) => context.cancelled);
