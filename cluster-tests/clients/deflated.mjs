// A stock WebSocket client from npm with compression and one without it, in a group that is compressed and in one that is not:
// what both hear is the same, and what it costs on the wire is printed.
//
//     node deflated.mjs http://127.0.0.1:8000 http://127.0.0.1:8001

import assert from "node:assert/strict";
import { once } from "node:events";
import WebSocket from "ws";

const LIMIT_MS = 20_000;
const COUNT = 50;

/** Says hello, joins both groups, and counts the bytes that come for each of them. */
async function open(node, perMessageDeflate) {
  const socket = new WebSocket(node.replace("http", "ws") + "/ws", { perMessageDeflate });
  const client = { socket, heard: [], waiting: new Map() };
  socket.on("message", (text) => {
    const frame = JSON.parse(text);
    if (frame.type === "message") client.heard.push(frame);
    client.waiting.get(frame.id ?? null)?.(frame);
  });
  await once(socket, "open", { signal: AbortSignal.timeout(LIMIT_MS) });
  let next = 0;
  client.ask = (frame) =>
    new Promise((resolve) => {
      client.waiting.set(++next, resolve);
      socket.send(JSON.stringify({ ...frame, id: next }));
    });
  client.bytes = () => socket._socket.bytesRead;
  assert.equal((await client.ask({ type: "hello" })).type, "welcome");
  return client;
}

async function until(what, holds) {
  for (const end = Date.now() + LIMIT_MS; !holds(); ) {
    assert.ok(Date.now() < end, `waited in vain for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

const data = (number) => ({
  order: number,
  customer: "a customer of ours",
  lines: [...Array(8).keys()].map((line) => ({ product: `product ${line}`, quantity: line * number, price: "12.50" })),
});

const [nodeA, nodeB] = process.argv.slice(2);
const [packed, plain] = [await open(nodeA, { threshold: 0 }), await open(nodeB, false)];
assert.match(packed.socket.extensions, /permessage-deflate/);
assert.equal(plain.socket.extensions, "");
const bytes = {};
for (const name of ["chat", "plain"]) {
  const group = `${name}:deflated`;
  for (const client of [packed, plain]) assert.equal((await client.ask({ type: "join", group })).type, "joined");
  const before = [packed, plain].map((client) => (client.heard.splice(0), client.bytes()));
  // What a client sends may be compressed in either.
  for (let number = 0; number < COUNT; number++) {
    const answer = await packed.ask({ type: "publish", group, data: data(number) });
    assert.equal(answer.type, "published", JSON.stringify(answer));
  }
  await until("all messages", () => [packed, plain].every((client) => client.heard.length === COUNT));
  assert.deepEqual(packed.heard.map((message) => message.data), [...Array(COUNT).keys()].map(data));
  assert.deepEqual(packed.heard, plain.heard);
  bytes[name] = [packed, plain].map((client, at) => client.bytes() - before[at]);
}
// The answers to its publishes are among what the first one read.
const answers = bytes.plain[0] - bytes.plain[1];
console.error(JSON.stringify(bytes));
assert.ok(bytes.chat[0] - answers < bytes.chat[1] / 2, `less than half: ${JSON.stringify(bytes)}`);

// What is no compressed message ends the connection, as a broken frame does.
const closed = once(packed.socket, "close", { signal: AbortSignal.timeout(LIMIT_MS) });
packed.socket._socket.write(Buffer.from([0xc1, 0x83, 0, 0, 0, 0, 0xff, 0xff, 0xff]));
assert.equal((await closed)[0], 1002);
plain.socket.close();
console.log(JSON.stringify({ messages: COUNT }));
