// The page of our backends in Chromium: notes that are written while they are loaded are shown once, and an answer is read from its
// first word to its last, though the page is reloaded while it is written.
//
//     node backends.mjs http://127.0.0.1:9000 …
//
// Chromium is ROOST_CHROMIUM, or /usr/bin/chromium.

import assert from "node:assert/strict";
import { launch } from "./browser.mjs";

const LIMIT_MS = 30_000;
const NOTES = 20;
const RELOADS = 3;
/** It is written for more than seven seconds. */
const WORDS = 150;
const QUESTION = Array.from({ length: WORDS }, (_, number) => `word-${number}`).join(" ");
const backends = process.argv.slice(2);
const browser = await launch();

/** A user with a profile of its own, logged in by the form. */
async function logIn(backend, user) {
  const page = await (await browser.newContext()).newPage();
  page.setDefaultTimeout(LIMIT_MS);
  page.on("pageerror", (error) => assert.fail(error));
  await page.goto(backend);
  await page.fill("#login input", user);
  await page.press("#login input", "Enter");
  await hasState(page, "connected");
  return page;
}

const hasState = (page, text) => page.locator("#state", { hasText: new RegExp(`^${text}$`) }).waitFor();

async function add(page, note) {
  await page.fill("#note input", note);
  const told = page.waitForResponse((answer) => answer.url().endsWith("/notes") && answer.request().method() === "POST");
  await page.press("#note input", "Enter");
  assert.equal((await told).status(), 201);
}

/**
 * Ann loads the notes, which fails at first and then is so slow that Bob writes before, during and after it: what she was sent has holes and
 * repeats, what she shows has neither.
 */
async function notes(ann, bob) {
  for (let number = 0; number < NOTES / 2; number++) await add(bob, `note ${number}`);
  const [asked, released] = [resolvers(), resolvers()];
  const slowly = async (route) => {
    const response = await route.fetch();
    asked.resolve();
    await released.promise;
    await route.fulfill({ response });
  };
  let failed = 0;
  await ann.route("**/notes", slowly, { times: 1 });
  // This one comes first: the later a route is made.
  await ann.route("**/notes", (route) => (failed++, route.fulfill({ status: 503, body: "it is being deployed" })), { times: 1 });
  await ann.reload();
  await asked.promise;
  assert.equal(failed, 1, "it failed before");
  for (let number = NOTES / 2; number < NOTES - 1; number++) await add(bob, `note ${number}`);
  assert.equal(await ann.locator("#notes li").count(), 0, "they are not loaded yet");
  released.resolve();
  await add(bob, `note ${NOTES - 1}`);
  const expected = Array.from({ length: NOTES }, (_, number) => `bob: note ${number}`);
  await ann.waitForFunction((count) => document.querySelectorAll("#notes li").length >= count, NOTES);
  assert.deepEqual(await ann.locator("#notes li").allTextContents(), expected);
}

function resolvers() {
  const all = {};
  all.promise = new Promise((resolve) => (all.resolve = resolve));
  return all;
}

/** The page is reloaded in the middle, again and again: what it shows in the end is the whole answer, once. */
async function answer(page) {
  await page.fill("#ask input", QUESTION);
  await page.press("#ask input", "Enter");
  const text = () => page.locator("#answer").textContent();
  for (let reload = 0; reload < RELOADS; reload++) {
    await page.waitForFunction((word) => document.getElementById("answer").textContent.includes(word), `word-${5 + 20 * reload} `);
    assert(!(await text()).includes(`word-${WORDS - 1}`), "it is still written");
    await page.reload();
  }
  await page.locator("#answer [data-state=done]").waitFor();
  assert.equal(await text(), `You asked: ${QUESTION} `);
  // Long over, it is read once more, from what the group has kept.
  await page.reload();
  await page.locator("#answer [data-state=done]").waitFor();
  assert.equal(await text(), `You asked: ${QUESTION} `);
}

try {
  for (const backend of backends) {
    const [ann, bob] = [await logIn(backend, "ann"), await logIn(backend, "bob")];
    await notes(ann, bob);
    await answer(ann);
    await ann.click("#logout");
    await hasState(ann, "session_ended");
    await Promise.all([ann, bob].map((page) => page.context().close()));
  }
  console.log(JSON.stringify({ backends: backends.length, notes: NOTES * backends.length, reloads: RELOADS * backends.length }));
} finally {
  await browser.close();
}
