// Does with our JavaScript client what scenarios.rs asks for, one line of JSON each, and says what comes of it.

import { createInterface } from "node:readline";
import WebSocket from "ws";
import { connect } from "../../node/clients/js/roost.js";

const EVENTS = ["message", "gap", "reset", "stale", "live", "member", "presence", "joined", "left"];
const clients = new Map();
const storages = new Map();
const say = (value) => process.stdout.write(JSON.stringify(value) + "\n");

class Kept extends Map {
  getItem = (name) => this.get(name) ?? null;
  setItem = (name, value) => void this.set(name, value);
  removeItem = (name) => void this.delete(name);
}

function open({ as, urls, token, tokens, storage, client }) {
  if (storage && !storages.has(storage)) storages.set(storage, new Kept());
  const more = { token, client, storage: storages.get(storage), getToken: tokens && (() => tokens.shift()) };
  const roost = connect({ urls, WebSocket, ...more });
  const told = (event, value, group) => say({ as, event, group, value });
  roost.on("state", (state) => told("state", { state, code: roost.ended?.code, node: roost.node, session: roost.session }));
  roost.on("direct", (data) => told("direct", data));
  roost.on("error", (error) => told("error", { code: error.code }));
  clients.set(as, { roost, told, known: new Set() });
}

function group({ as, group: name }) {
  const { roost, told, known } = clients.get(as);
  const group = roost.group(name);
  if (!known.has(name)) for (const event of EVENTS) group.on(event, (value) => told(event, value, name));
  known.add(name);
  return group;
}

const does = {
  connect: open,
  follow: (ask) => void group(ask),
  join: (ask) => group(ask).join({ since: ask.since }),
  leave: (ask) => group(ask).leave(),
  publish: ({ data, key, ephemeral, ...ask }) => group(ask).publish(data, ephemeral ? { ephemeral } : key && { key }),
  history: (ask) => group(ask).history({ since: ask.since, limit: ask.limit, last: ask.last }),
  members: (ask) => group(ask).members({ after: ask.after, limit: ask.limit }),
  position: (ask) => group(ask).position,
  close: ({ as }) => clients.get(as).roost.close(),
};

for await (const line of createInterface({ input: process.stdin })) {
  const ask = JSON.parse(line);
  // In the order of the lines; what has to be waited for is answered later.
  Promise.resolve()
    .then(() => does[ask.do](ask))
    .then((ok) => say({ n: ask.n, ok: ok ?? null }))
    .catch((error) => say({ n: ask.n, error: { code: error.code ?? String(error), unsure: error.unsure, detail: error.detail } }));
}
process.exit();
