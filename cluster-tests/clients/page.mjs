// A plain page in Chromium, twice: each on another node, no library. What one sends the other shows, and a reload goes on
// where the page stopped.
//
//     node page.mjs http://127.0.0.1:8000 http://127.0.0.1:8001      (Chromium: ROOST_CHROMIUM, or /usr/bin/chromium)

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { chromium } from "playwright-core";

const LIMIT_MS = 30_000;
const SILENCE_MS = 1_500 * Number(process.env.ROOST_LIMITS__IDLE_S ?? 120);
const [nodeA, nodeB] = process.argv.slice(2);
const group = `chat:page-${process.pid}`;

/** The page that the README has, with the nodes and the group of this test. */
const ofReadme = await readFile(new URL("../../README.md", import.meta.url), "utf8").then((text) => {
  const [, page] = text.match(/```html\n([^]*?)```/);
  const ports = [nodeA, nodeB].map((node) => new URL(node).port);
  const [nodes, name] = ["[8000, 8001, 8002]", '"chat:lobby"'];
  assert(page.includes(nodes) && page.includes(name), "the README's page names its nodes and its group");
  return page.replace(nodes, `[${ports}]`).replace(name, JSON.stringify(group));
});
const html = await readFile(new URL("page.html", import.meta.url));
const server = createServer(({ url }, response) =>
  response.setHeader("content-type", "text/html").end(url.startsWith("/readme") ? ofReadme : html),
);
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
const browser = await chromium.launch({
  executablePath: process.env.ROOST_CHROMIUM ?? "/usr/bin/chromium",
  headless: true,
  args: [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
  ],
});

const url = (node) => `http://127.0.0.1:${server.address().port}/?${new URLSearchParams({ node, group })}`;

/** A page of its own browser profile, so that neither has the other's session. */
async function open(node) {
  const page = await (await browser.newContext()).newPage();
  page.setDefaultTimeout(LIMIT_MS);
  page.on("pageerror", (error) => assert.fail(error));
  await page.goto(url(node));
  await hasState(page, "joined");
  return page;
}

const hasState = (page, text) => page.locator("#state", { hasText: new RegExp(`^${text}$`) }).waitFor();

async function send(page, numbers) {
  for (const number of numbers) {
    await page.fill("#text", `message ${number}`);
    await page.click("button");
  }
}

/** Waits for so many messages and checks that they are all, in order, each once. */
async function shows(page, count) {
  await page.waitForFunction((count) => document.querySelectorAll("#messages li").length >= count, count);
  const items = await page.$$eval("#messages li", (items) => items.map((item) => [item.value, item.textContent]));
  assert.deepEqual(items.map(([, text]) => text), Array.from({ length: count }, (_, number) => `message ${number}`));
  assert.deepEqual(items.map(([offset]) => offset), items.map((_, index) => items[0][0] + index));
}

try {
  const a = await open(nodeA);
  const b = await open(nodeB);
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
  const sending = send(b, Array.from({ length: 40 }, (_, number) => 10 + number));
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

  // The README's page, which goes on by itself at the other node.
  const readme = await (await browser.newContext()).newPage();
  readme.setDefaultTimeout(LIMIT_MS);
  readme.on("pageerror", (error) => assert.fail(error));
  await readme.goto(`http://localhost:${server.address().port}/readme?0`);
  const logged = async (type) => {
    const lines = (await readme.textContent("#log")).split("\n").filter((line) => line);
    return lines.map((line) => JSON.parse(line)).filter((frame) => frame.type === type);
  };
  const hasLogged = async (type, count) => {
    const deadline = Date.now() + LIMIT_MS;
    while ((await logged(type)).length < count) {
      assert(Date.now() < deadline, `the README's page has not got ${count} × ${type}: ${await readme.textContent("#log")}`);
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  };
  await hasLogged("joined", 1);
  await send(b, [51]);
  await hasLogged("message", 1);
  await readme.evaluate("socket.close()");
  await send(b, [52, 53]);
  await hasLogged("message", 3);
  await readme.fill("input", "message 54");
  await readme.press("input", "Enter");
  await hasLogged("message", 4);
  const [first, second] = await logged("welcome");
  assert.equal(first.session, second.session);
  assert.notEqual(first.node, second.node);

  // Their programs say nothing for longer than a silent connection lives: the browser answers pings.
  await new Promise((resolve) => setTimeout(resolve, SILENCE_MS));
  await send(b, [55]);
  await shows(a, 56);
  await hasLogged("message", 5);
  assert.equal((await logged("welcome")).length, 2);
  const texts = (await logged("message")).map((frame) => frame.data);
  assert.deepEqual(texts, [51, 52, 53, 54, 55].map((number) => `message ${number}`));
  console.log(JSON.stringify({ messages: 56, reloads: 5 }));
} finally {
  await browser.close();
  server.close();
}
