// Tabs in two Chromiums that follow groups with our client, most in their pages, some in workers, and write down all that they are told.
// The second Chromium is a laptop, which sleeps when it is told to: nothing of it runs, and nothing answers.
//
//     node laptop.mjs http://127.0.0.1:8000 http://127.0.0.1:8001 http://127.0.0.1:8002
//
// It reads {"sleep": seconds} and {"until": {group: {epoch, offset}}} from its input, a line each, and says
// {"open": {"tabs": tabs, "laptop": the group of its processes}}, {"slept": ms} and {"tabs": [{"client": …, "told": […]}]}.

import assert from "node:assert/strict";
import { createServer } from "node:http";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { launchApart } from "./browser.mjs";

const LIMIT_MS = 60_000;
/** Of the desktop and of the laptop: tabs in all, and those of them whose client is in a worker. */
const [DESK, LAPTOP] = [{ tabs: 15, workers: 2 }, { tabs: 5, workers: 1 }];
const GROUPS = ["chat:one", "chat:two"];
const nodes = process.argv.slice(2);
const say = (value) => console.log(JSON.stringify(value));

/** What a tab does, in its page or in a worker: `note` takes whatever it is told. */
const program = `
  export async function follow({ urls, groups, client }, note) {
    let connect;
    for (const url of urls) connect ??= (await import(url + "/roost.js").catch(() => ({}))).connect;
    const roost = connect({ urls, client });
    const at = {};
    // A clock that never goes back, in place of the message's own time.
    const told = (kind, more) => note({ ...more, kind, at_ms: Math.floor(performance.timeOrigin + performance.now()) });
    roost.on("state", (state) => told(state, { node: roost.node, session: roost.session, code: roost.ended?.code }));
    for (const name of groups) {
      const group = roost.group(name);
      const stand = (epoch, offset) => (at[name] = { epoch, offset });
      group.on("joined", (frame) => {
        told("joined", { ...frame, since: at[name] });
        at[name] ??= { epoch: frame.epoch, offset: frame.offset };
      });
      group.on("message", (frame) => (told("message", frame), stand(frame.epoch, frame.offset)));
      group.on("gap", (frame) => (told("gap", frame), stand(frame.epoch, frame.to)));
      group.on("reset", (frame) => (told("reset", frame), stand(frame.epoch, frame.offset)));
      group.on("left", (frame) => told("left", frame));
      group.join();
    }
  }
`;
const page = `<!doctype html><script type="module">
  import { follow } from "/program.js";
  const told = (window.told = []);
  const query = new URLSearchParams(location.search);
  const options = { urls: query.getAll("node"), groups: query.getAll("group"), client: query.get("client") };
  if (query.has("worker")) {
    const worker = (window.worker = new Worker("/worker.js", { type: "module" }));
    worker.onmessage = ({ data }) => told.push(data);
    worker.postMessage(options);
  } else follow(options, (what) => told.push(what));
</script>`;
const worker = `import { follow } from "/program.js"; onmessage = ({ data }) => follow(data, (what) => postMessage(what));`;
const files = { "/": ["text/html", page], "/program.js": ["text/javascript", program], "/worker.js": ["text/javascript", worker] };
const server = createServer(({ url }, response) => {
  const [type, body] = files[new URL(url, "http://here").pathname] ?? ["text/plain", ""];
  response.setHeader("content-type", type).end(body);
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));

/** A browser with its tabs, each of which begins at the next node. */
async function open({ tabs, workers }, name) {
  const { browser, group } = await launchApart();
  const opened = [];
  for (let at = 0; at < tabs; at++) {
    const client = `${name}-${at}`;
    const query = [...nodes.map((_, step) => ["node", nodes[(at + step) % nodes.length]]), ...GROUPS.map((name) => ["group", name]), ["client", client]];
    if (at < workers) query.push(["worker", ""]);
    const tab = await browser.newPage();
    tab.setDefaultTimeout(LIMIT_MS);
    tab.on("pageerror", (error) => assert.fail(error));
    await tab.goto(`http://127.0.0.1:${server.address().port}/?${new URLSearchParams(query)}`);
    await tab.waitForFunction((groups) => told.filter(({ kind }) => kind === "joined").length === groups, GROUPS.length);
    opened.push({ client, tab });
  }
  return { browser, group, tabs: opened };
}

/** Waits until a tab was told all up to these positions, and gives what it was told. */
async function toldUntil({ client, tab }, ends) {
  const has = (ends) =>
    Object.entries(ends).every(([group, { epoch, offset }]) => told.some((one) => one.group === group && one.epoch === epoch && one.offset === offset));
  await tab.waitForFunction(has, ends, { polling: 100 }).catch(async (error) => {
    throw new Error(`${client} was not told all: ${JSON.stringify(await tab.evaluate("told.slice(-20)"))}`, { cause: error });
  });
  return { client, told: await tab.evaluate("told") };
}

const [desk, laptop] = await Promise.all([open(DESK, "desk"), open(LAPTOP, "laptop")]);
const all = [...desk.tabs, ...laptop.tabs];
try {
  say({ open: { tabs: all.length, laptop: laptop.group } });
  for await (const line of createInterface({ input: process.stdin })) {
    const order = JSON.parse(line);
    if (order.sleep) {
      const began_ms = Date.now();
      process.kill(-laptop.group, "SIGSTOP");
      await sleep(order.sleep * 1_000);
      process.kill(-laptop.group, "SIGCONT");
      say({ slept: Date.now() - began_ms });
    } else {
      const tabs = [];
      for (const tab of all) tabs.push(await toldUntil(tab, order.until));
      say({ tabs });
    }
  }
} finally {
  await Promise.all([desk, laptop].map(({ browser }) => browser.close()));
  server.close();
}
