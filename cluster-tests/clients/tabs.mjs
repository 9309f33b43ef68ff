// Two tabs of one browser profile, which has a session in its cookie, at two nodes: what is common both get, what one has joined it
// has alone; one reloads and misses nothing; one closes and the other stays; to others they are one member throughout.
//
//     ROOST_API_KEY=… node tabs.mjs http://127.0.0.1:8000 http://127.0.0.1:8001
//
// Chromium is ROOST_CHROMIUM, or /usr/bin/chromium. The nodes forget a client that is gone after a few seconds.

import assert from "node:assert/strict";
import { launch } from "./browser.mjs";

const LIMIT_MS = 30_000;
const [nodeA, nodeB] = process.argv.slice(2);
const [common, ownA, ownB] = ["all", "a", "b"].map((name) => `chat:${name}-${process.pid}`);
const browser = await launch();

async function call(method, path, body) {
  const headers = { authorization: `Bearer ${process.env.ROOST_API_KEY}`, "content-type": "application/json" };
  const answer = await fetch(nodeA + path, { method, headers, body: body && JSON.stringify(body) });
  assert(answer.ok, `${method} ${path}: ${answer.status}`);
  return answer.json();
}
const publish = (group, data) => call("POST", `/v1/groups/${encodeURIComponent(group)}/messages`, { data });

/** What a page does: it follows these groups, and keeps what it hears for the tab. */
async function follow(groups) {
  const { connect } = await import("/roost.js");
  const heard = (window.heard = JSON.parse(sessionStorage.heard ?? "{}"));
  const roost = (window.roost = connect({ storage: sessionStorage }));
  for (const name of groups) {
    heard[name] ??= [];
    roost.group(name).on("message", ({ data }) => {
      heard[name].push(data);
      sessionStorage.heard = JSON.stringify(heard);
    });
    await roost.group(name).join();
  }
}

async function waitFor(what, isSo) {
  const deadline = Date.now() + LIMIT_MS;
  while (!(await isSo())) {
    assert(Date.now() < deadline, `waited in vain for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** Waits until a tab has heard this of a group, and all of it once. */
async function hears(tab, group, expected) {
  const heard = () => tab.evaluate((group) => window.heard?.[group] ?? [], group);
  await waitFor(`${group} to say ${expected}`, async () => (await heard()).length >= expected.length);
  assert.deepEqual(await heard(), expected);
}

try {
  const { session, token } = await call("POST", "/v1/sessions", { user: "two-tabs" });
  const profile = await browser.newContext();
  // A cookie is of a host, whatever the port: here of both nodes.
  await profile.addCookies([{ name: "session_id", value: token, domain: "127.0.0.1", path: "/", httpOnly: true }]);
  const open = async (node, groups) => {
    const tab = await profile.newPage();
    tab.setDefaultTimeout(LIMIT_MS);
    tab.on("pageerror", (error) => assert.fail(error));
    await tab.goto(`${node}/`);
    await tab.evaluate(follow, groups);
    return tab;
  };
  const members = async () => {
    const { members } = await call("GET", `/v1/groups/${encodeURIComponent(common)}/members`);
    return members.map((member) => [member.session === session.id, member.clients]);
  };
  const [a, b] = [await open(nodeA, [common, ownA]), await open(nodeB, [common, ownB])];
  assert.deepEqual(await members(), [[true, 2]]);
  assert.equal(await a.evaluate("roost.session"), session.id);
  assert.equal(await b.evaluate("roost.session"), session.id);
  for (const [group, data] of [[common, "both"], [ownA, "first"], [ownB, "second"]]) await publish(group, data);
  await hears(a, common, ["both"]);
  await hears(b, common, ["both"]);
  await hears(a, ownA, ["first"]);
  await hears(b, ownB, ["second"]);

  // It reloads: what came meanwhile follows, of its own group too, and the other notices nothing.
  const reloading = a.reload();
  await publish(ownA, "while it reloads");
  await reloading;
  await publish(common, "before it is back");
  await a.evaluate(follow, [common, ownA]);
  await hears(a, ownA, ["first", "while it reloads"]);
  await hears(a, common, ["both", "before it is back"]);
  await hears(b, common, ["both", "before it is back"]);
  assert.deepEqual(await members(), [[true, 2]], "it is the client that it was");

  // One closes. The session stays a member, with one client once the other's grace is over.
  await a.close();
  assert.equal((await members()).length, 1);
  await waitFor("the first to be gone", async () => JSON.stringify(await members()) === "[[true,1]]");
  await publish(common, "alone");
  await hears(b, common, ["both", "before it is back", "alone"]);
  assert.deepEqual(await b.evaluate("[roost.state, Object.keys(heard)]"), ["connected", [common, ownB]]);
  console.log(JSON.stringify({ tabs: 2, members: 1 }));
} finally {
  await browser.close();
  process.stdin.destroy();
}
