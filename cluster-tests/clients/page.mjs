// A plain page in Chromium, twice: each on another node, no library. What one sends the other shows, and a reload goes on
// where the page stopped.
//
//     node page.mjs http://127.0.0.1:8000 http://127.0.0.1:8001      (Chromium: ROOST_CHROMIUM, or /usr/bin/chromium)

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { chromium } from "playwright-core";

const LIMIT_MS = 30_000;
const [nodeA, nodeB] = process.argv.slice(2);
const group = `chat:page-${process.pid}`;

const html = await readFile(new URL("page.html", import.meta.url));
const server = createServer((_, response) => response.setHeader("content-type", "text/html").end(html));
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
  console.log(JSON.stringify({ messages: 51, reloads: 5 }));
} finally {
  await browser.close();
  server.close();
}
