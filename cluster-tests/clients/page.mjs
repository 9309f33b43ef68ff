// Pages in Chromium, each in a profile of its own: one that uses our client, in tabs on all nodes, over reloads and the end of a
// node; the README's; and the one that has nothing but a WebSocket. What one sends all show, once and in order.
//
//     node page.mjs http://127.0.0.1:8000 http://127.0.0.1:8001 http://127.0.0.1:8002
//
// It says {"kill": node} and waits for a line. Chromium is ROOST_CHROMIUM, or /usr/bin/chromium; with ROOST_SCREENSHOT=FILE a
// picture of a tab is taken.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { createInterface } from "node:readline";
import { launch } from "./browser.mjs";

const LIMIT_MS = 30_000;
const SILENCE_MS = 1_500 * Number(process.env.ROOST_LIMITS__IDLE_S ?? 120);
const nodes = process.argv.slice(2);
const [nodeA, nodeB] = nodes;
const group = `chat:page-${process.pid}`;
const orders = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

/** A page that a document has, with the nodes and the group of this test. */
async function pageOf(document, changes) {
  const text = await readFile(new URL(`../../${document}`, import.meta.url), "utf8");
  const [, page] = text.match(/```html\n([^]*?)```/);
  return changes.reduce((page, [from, to]) => {
    assert(page.includes(from), `the page of ${document} has ${from}`);
    return page.replaceAll(from, to);
  }, page);
}
const named = ['"chat:lobby"', JSON.stringify(group)];
const pages = {
  "/": await readFile(new URL("page.html", import.meta.url), "utf8"),
  "/readme": await pageOf("README.md", [...nodes.map((node, at) => [`http://localhost:${8000 + at}`, node]), named]),
  "/plain": await pageOf("node/clients/websocket/README.md", [
    ["[8000, 8001, 8002]", JSON.stringify([nodeA, nodeB].map((node) => new URL(node).port))],
    named,
  ]),
  // It begins at the node that will be killed.
  "/events": await pageOf("node/clients/sse/README.md", [
    ...[nodeB, nodeA, nodes[2]].map((node, at) => [`http://localhost:${8000 + at}`, node]),
    named,
  ]),
};
const server = createServer(({ url }, response) =>
  response.setHeader("content-type", "text/html").end(pages[new URL(url, "http://here").pathname] ?? ""),
);
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
const here = `http://127.0.0.1:${server.address().port}`;
const browser = await launch();

const url = (...nodes) =>
  `${here}/?${new URLSearchParams([...nodes.map((node) => ["node", node]), ["group", group]])}`;

/** A page of its own browser profile, so that neither has the other's session. */
async function open(url) {
  const page = await (await browser.newContext()).newPage();
  page.setDefaultTimeout(LIMIT_MS);
  page.on("pageerror", (error) => assert.fail(error));
  await page.goto(url);
  return page;
}

const hasState = (page, text) => page.locator("#state", { hasText: new RegExp(`^${text}$`) }).waitFor();

async function send(page, numbers) {
  for (const number of numbers) {
    await page.fill("#text", `message ${number}`);
    await page.click("button");
  }
}

const range = (from, to) => Array.from({ length: to - from }, (_, at) => from + at);

/** Waits until all up to this one are shown, and checks that they are all, in order, each once. */
async function shows(page, end, first = 0) {
  const last = (text) => [...document.querySelectorAll("#messages li")].at(-1)?.textContent === text;
  await page.waitForFunction(last, `message ${end - 1}`);
  const items = await page.$$eval("#messages li", (items) => items.map((item) => [item.value, item.textContent]));
  assert.deepEqual(items.map(([, text]) => text), range(first, end).map((number) => `message ${number}`));
  assert.deepEqual(items.map(([offset]) => offset), items.map((_, index) => items[0][0] + index));
}

/** What a page has written into `#log`: lines that this reads, of one type. */
const logged = async (page, read) => (await page.textContent("#log")).split("\n").map(read).filter(Boolean);
async function hasLogged(page, count, read) {
  const deadline = Date.now() + LIMIT_MS;
  while ((await logged(page, read)).length < count) {
    assert(Date.now() < deadline, `the page has not got ${count} × ${read}: ${await page.textContent("#log")}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}
const frame = (type) => (line) => line && JSON.parse(line).type === type && JSON.parse(line);
const line = (type) => (line) => line.startsWith(`${type} `) && JSON.parse(line.slice(type.length));

try {
  const [a, b] = await Promise.all([open(url(nodeA)), open(url(nodeB))]);
  await hasState(a, "joined");
  await hasState(b, "joined");
  await send(b, [0, 1, 2]);
  await shows(a, 3);
  await send(a, [3, 4]);
  await shows(b, 5);
  await shows(a, 5);

  // Away, and back: what came meanwhile follows.
  await a.goto("about:blank");
  await send(b, [5, 6, 7, 8, 9]);
  await shows(b, 10);
  await a.goto(url(nodeA));
  await hasState(a, "resumed");
  await shows(a, 10);

  // Reloads while the other one sends.
  const sending = send(b, range(10, 50));
  for (let reload = 0; reload < 3; reload++) {
    await a.reload();
    await hasState(a, "resumed");
  }
  await sending;
  await shows(a, 50);

  // The same session at another node.
  await a.goto(url(nodeB));
  await hasState(a, "resumed");
  await send(b, [50]);
  await shows(a, 51);

  // The page without a library, which goes on by itself at the other node; and the README's.
  const [plain, readme, events] = await Promise.all(["plain?0", "readme", "events"].map((page) => open(`${here}/${page}`)));
  await hasLogged(events, 1, frame("joined"));
  await hasLogged(plain, 1, frame("joined"));
  await hasLogged(readme, 1, line("connected"));
  await hasLogged(readme, 1, line("joined"));
  await send(b, [51]);
  await hasLogged(plain, 1, frame("message"));
  await hasLogged(readme, 1, line("message"));
  await plain.evaluate("socket.close()");
  await send(b, [52, 53]);
  await hasLogged(plain, 3, frame("message"));
  await plain.fill("input", "message 54");
  await plain.press("input", "Enter");
  await hasLogged(plain, 4, frame("message"));
  const [first, second] = await logged(plain, frame("welcome"));
  assert.equal(first.session, second.session);
  assert.notEqual(first.node, second.node);
  await readme.reload();
  await hasLogged(readme, 1, line("joined"));
  await readme.fill("input", "message 55");
  await readme.press("input", "Enter");
  await hasLogged(readme, 1, line("message"));

  // Their programs say nothing for longer than a silent connection lives: pings and heartbeats do.
  await new Promise((resolve) => setTimeout(resolve, SILENCE_MS));
  await send(b, [56]);
  await shows(a, 57);
  await hasLogged(plain, 6, frame("message"));
  await hasLogged(readme, 2, line("message"));
  assert.equal((await logged(plain, frame("welcome"))).length, 2);
  assert.equal((await logged(readme, line("connected"))).length, 1);
  const texts = (await logged(plain, frame("message"))).map((frame) => frame.data);
  assert.deepEqual(texts, range(51, 57).map((number) => `message ${number}`));

  // Tabs on all nodes. One node is killed, some tabs are reloaded, while one sends.
  const tabs = [];
  for (const at of range(0, 9)) {
    // One after the other: the nodes are on the same machine.
    tabs.push(await open(url(...nodes.slice(at % 3), ...nodes.slice(0, at % 3))));
    await hasState(tabs[at], "joined");
  }
  const at = await Promise.all(tabs.map((tab) => tab.evaluate("document.body.dataset.node")));
  const writing = send(tabs[0], range(57, 107));
  await tabs[1].waitForFunction(() => document.querySelectorAll("#messages li").length >= 3);
  console.log(JSON.stringify({ kill: at[1] }));
  await orders.next();
  await Promise.all([tabs[2].reload(), tabs[3].reload()]);
  await writing;
  await Promise.all(tabs.map((tab) => shows(tab, 107, 57)));
  const now = await Promise.all(tabs.map((tab) => tab.evaluate("document.body.dataset.node")));
  assert(!now.includes(at[1]), `nobody is at ${at[1]} any more: ${now}`);
  assert.equal((await logged(readme, line("message"))).length, 52);
  // A stock EventSource went on elsewhere: nothing missed, nothing twice.
  await hasLogged(events, 107 - 51, frame("message"));
  const read = (await logged(events, frame("message"))).map((message) => message.data);
  assert.deepEqual(read, range(51, 107).map((number) => `message ${number}`));
  const streams = (await logged(events, frame("joined"))).length;
  assert(streams > 1 || at[1] !== "n2", `its node was killed, and it has ${streams} streams`);
  if (process.env.ROOST_SCREENSHOT) await tabs[1].screenshot({ path: process.env.ROOST_SCREENSHOT });
  console.log(JSON.stringify({ messages: 107, reloads: 8, tabs: tabs.length }));
} finally {
  await browser.close();
  server.close();
  process.stdin.destroy();
}
