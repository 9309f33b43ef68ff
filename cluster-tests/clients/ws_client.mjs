// A stock WebSocket client from npm against two nodes: hello, join, publish on one, message on the other, and a resume on
// the other node after the connection was lost.
//
//     node ws_client.mjs http://127.0.0.1:8000 http://127.0.0.1:8001

import assert from "node:assert/strict";
import { once } from "node:events";
import WebSocket from "ws";

const LIMIT_MS = 20_000;

/** Connects, says hello, and keeps what is pushed; answers are told apart by the `id` that they echo. */
async function open(node, hello = {}) {
  const socket = new WebSocket(node.replace("http", "ws") + "/ws");
  const client = { socket, pushed: [], waiting: new Map(), looking: [] };
  socket.on("message", (text) => {
    const frame = JSON.parse(text);
    const answered = client.waiting.get(frame.id);
    client.waiting.delete(frame.id);
    answered ? answered(frame) : client.pushed.push(frame);
    client.looking.forEach((look) => look());
  });
  await once(socket, "open", { signal: AbortSignal.timeout(LIMIT_MS) });
  let next = 0;
  client.ask = (frame) => {
    const id = ++next;
    socket.send(JSON.stringify({ ...frame, id }));
    return within(`an answer to ${frame.type}`, (resolve) => client.waiting.set(id, resolve));
  };
  client.messages = (count) =>
    within(`${count} messages`, (resolve) => {
      const look = () => {
        const messages = client.pushed.filter((frame) => frame.type === "message");
        if (messages.length >= count) resolve(messages);
      };
      client.looking.push(look);
      look();
    });
  client.welcome = await client.ask({ type: "hello", ...hello });
  assert.equal(client.welcome.type, "welcome");
  return client;
}

function within(what, executor) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`waited in vain for ${what}`)), LIMIT_MS);
    executor((value) => (clearTimeout(timer), resolve(value)));
  });
}

const [nodeA, nodeB] = process.argv.slice(2);
const group = `chat:ws-${process.pid}`;
const [a, b] = [await open(nodeA), await open(nodeB)];
assert.notEqual(a.welcome.node, b.welcome.node);
const joined = await a.ask({ type: "join", group });
assert.equal(joined.type, "joined");
assert.equal((await b.ask({ type: "join", group })).epoch, joined.epoch);

for (let number = 0; number < 10; number++) {
  const published = await b.ask({ type: "publish", group, data: { number } });
  assert.equal(published.type, "published");
}
const seen = await a.messages(10);
assert.deepEqual(seen.map((message) => message.data.number), [...Array(10).keys()]);
assert.deepEqual(seen.map((message) => message.offset), seen.map((_, index) => joined.offset + 1 + index));

a.socket.terminate();
for (let number = 10; number < 15; number++) await b.ask({ type: "publish", group, data: { number } });
const resume = { [group]: { epoch: joined.epoch, offset: seen.at(-1).offset } };
const back = await open(nodeB, { session: a.welcome.token, client: a.welcome.client, resume });
assert.equal(back.welcome.session, a.welcome.session);
const missed = await back.messages(5);
assert.deepEqual(missed.map((message) => message.data.number), [10, 11, 12, 13, 14]);
assert.equal(back.pushed.find((frame) => frame.type === "joined" && frame.group === group).recovered, true);
for (const { socket } of [back, b]) socket.close();
console.log(JSON.stringify({ messages: 15, resumed: 5 }));
