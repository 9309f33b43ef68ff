// Roost's client for browsers, workers and servers: one connection, kept up over lost sockets and lost nodes.
// README.md says how it is used, roost.d.ts has every type. It is served as it stands here.
/** @import { ConnectionEvents, Detail, Group, GroupEvents, Position, State, WebSocketLike } from "./roost.d.ts" */

/** The server welcomes by then, or another node is asked. */
const WELCOME_MS = 10_000;
/** A heartbeat is answered by then, or the connection is lost; sooner where heartbeats are more often. */
const ANSWER_MS = 10_000;
/** Waits between attempts are by chance, up to the first of these, doubled each time up to the second. */
const [WAIT_MS, WAIT_MAX_MS] = [250, 10_000];
/** What was connected for so long begins with short waits again. */
const STEADY_MS = 5_000;
/** Requests under way at once, and groups in a hello: within what a node takes. */
const [REQUESTS, RESUMED] = [100, 300];
/** A request whose outcome is not known by then is given up: nodes know keys for five minutes. */
const REQUEST_MS = 240_000;
/** How a connection ends that does not come back as it was. */
const CLOSES = { frame_too_large: 1009, displaced: 4100, session_ended: 4101, unauthorized: 4102, bad_frame: 4103, too_many_clients: 4104, crowded_out: 4105, disconnected: 4106, token_expired: 4107 };

export class RoostError extends Error {
  constructor(/** @type {string} */ code, /** @type {string} */ message, unsure = false, /** @type {Detail[]} */ detail = []) {
    super(message);
    Object.assign(this, { name: "RoostError" });
    this.code = code;
    this.unsure = unsure;
    this.detail = detail;
  }
}

/**
 * A request until it is answered. `unsure`: an attempt may have been carried out; `held`: it waits before it is repeated;
 * `once`: it is never repeated.
 * @typedef {{ id: number, group: string, type: string, text: string, once: boolean, sent: boolean, unsure: boolean, held: boolean,
 *   tries: number, timer: any, resolve: (frame: any) => void, reject: (error: unknown) => void }} Request
 */

/**
 * A group that the program knows. `wanted`: it is joined again and again; `resumed`: the hello said where it stopped;
 * `joins`: those under way, until the last is answered what comes belongs to an earlier one; `face`: what the program has.
 * @typedef {{ name: string, at: Position | undefined, wanted: boolean, resumed: boolean, joins: number,
 *   entering: Promise<any> | undefined, enter: () => Promise<any>, heard: (frame: any, request?: Request) => void,
 *   face: Group }} Followed
 */

/** Up to so long, by chance. */
const jitter = (/** @type {number} */ tries, max_ms = WAIT_MAX_MS) => Math.random() * Math.min(max_ms, WAIT_MS * 2 ** tries);

/** Listeners by event. One that throws disturbs nobody else: the error is the program's, outside of all this. */
const listeners = () => {
  /** @type {Record<string, Set<(value: any) => void>>} */
  const all = {};
  return {
    on: (/** @type {string} */ event, /** @type {any} */ listener) => (all[event] ??= new Set()).add(listener),
    off: (/** @type {string} */ event, /** @type {any} */ listener) => all[event]?.delete(listener),
    tell(/** @type {string} */ event, /** @type {any} */ value) {
      for (const listener of [...(all[event] ?? [])]) safely(() => listener(value));
    },
  };
};

const safely = (/** @type {() => void} */ act) => {
  try {
    act();
  } catch (error) {
    queueMicrotask(() => { throw error; });
  }
};

/** @type {typeof import("./roost.d.ts").connect} */
export function connect({ urls = new URL("/", import.meta.url).href, token, getToken, storage, storageKey = "roost", ...rest } = {}) {
  const Socket = rest.WebSocket ?? /** @type {any} */ (globalThis).WebSocket;
  if (!Socket) throw new TypeError("there is no WebSocket here: give one, as in connect({ WebSocket })");
  const nodes = [urls].flat().map((url) => {
    if (!/^(http|ws)s?:/.test(new URL(url).protocol)) throw new TypeError(`${url} is no http or https URL of a node`);
    return url.replace(/^http/, "ws").replace(/(\/ws)?\/*$/, "/ws");
  });
  if (!nodes.length) throw new TypeError("connect needs the URL of one node at least");
  let next = Math.floor(Math.random() * nodes.length);

  const { on, off, tell } = listeners();
  /** @type {Map<string, Followed>} */
  const groups = new Map();
  /** @type {Map<number, Request>} */
  const requests = new Map();
  /** Keys are this client's own, whoever else has the session. */
  const keys = [...crypto.getRandomValues(new Uint32Array(4))].map((part) => part.toString(36)).join("");
  let [ids, tries, since_ms, heartbeat_ms] = [0, 0, 0, ANSWER_MS];
  /** @type {State} */
  let state = "connecting";
  /** @type {WebSocketLike | undefined} */
  let socket;
  /** @type {RoostError | undefined} */
  let ended;
  /** @type {any} */
  let [bye, fault, welcome, timer, current] = [];
  current = token ?? storage?.getItem(storageKey) ?? undefined;
  // Which client of its session this is. It is out of the storage while it is used, or a copied tab would be the same client.
  const clientKey = `${storageKey}.client`;
  const client = rest.client ?? storage?.getItem(clientKey) ?? keys;

  const be = (/** @type {State} */ now) => tell("state", (state = now));
  const keep = (/** @type {string} */ name, /** @type {string | undefined} */ value) =>
    safely(() => (value ? storage?.setItem(name, value) : storage?.removeItem(name)));

  const leave = () => keep(clientKey, client);
  keep(clientKey, undefined);
  globalThis.addEventListener?.("pagehide", leave);

  async function open() {
    be("connecting");
    bye = fault = undefined;
    if (getToken && !current) {
      try {
        current = await getToken();
      } catch (error) {
        tell("error", error);
        return lost();
      }
      if (!current) return end(new RoostError("unauthorized", "getToken gave no token"));
    }
    // The program may have closed it meanwhile.
    if (ended) return;
    timer = setTimeout(lost, WELCOME_MS);
    /** @type {WebSocketLike} */
    let mine;
    try {
      mine = socket = new Socket(nodes[next++ % nodes.length]);
    } catch (error) {
      tell("error", error);
      return lost();
    }
    mine.onopen = () => mine === socket && hello();
    mine.onmessage = ({ data }) => mine === socket && heard(JSON.parse(data));
    mine.onclose = ({ code }) => mine === socket && lost(code);
    mine.onerror = () => {};
  }

  const send = (/** @type {object} */ frame) => socket?.send(JSON.stringify(frame));

  function hello() {
    /** @type {Record<string, Position>} */
    const resume = Object.create(null);
    for (const group of [...groups.values()].filter((group) => group.at && !group.joins).slice(0, RESUMED)) {
      resume[group.name] = /** @type {Position} */ (group.at);
    }
    for (const group of groups.values()) group.resumed = group.name in resume;
    send({ type: "hello", session: current, client, resume });
  }

  /** Whatever comes is a sign of life; where nothing comes, one is asked for. */
  function heard(/** @type {any} */ frame) {
    clearTimeout(timer);
    timer = setTimeout(probe, heartbeat_ms);
    const request = requests.get(frame.id);
    if (frame.type === "welcome") welcomed(frame);
    else if (frame.type === "bye") bye = { ...frame, ...fault };
    else if (frame.type === "direct") tell("direct", frame.data);
    else if (frame.type === "expiring") refresh();
    else if (frame.type !== "error") groups.get(frame.group)?.heard(frame, request);
    else if (!request) {
      // Of this a bye says only that a frame was wrong.
      if (frame.code === "frame_too_large") fault = { code: frame.code, reason: frame.message };
      tell("error", new RoostError(frame.code, frame.message, false, frame.detail));
    } else if (request.once || frame.retry_after_ms === undefined) {
      settle(request, new RoostError(frame.code, frame.message, request.unsure || frame.code === "unknown_outcome", frame.detail));
    } else repeat(request, frame);
    if (request && frame.type !== "error") settle(request, undefined, frame);
  }

  /** The session ends soon: it goes on with a later token of the backend's, if there is one. */
  async function refresh() {
    try {
      const later = await getToken?.();
      if (later) await ask({ type: "refresh", token: later });
    } catch (error) {
      if (!ended) tell("error", error);
    }
  }

  function probe() {
    send({ type: "heartbeat" });
    clearTimeout(timer);
    timer = setTimeout(lost, Math.min(heartbeat_ms, ANSWER_MS));
  }

  function welcomed(/** @type {any} */ frame) {
    // Keys are the session's: in another one a repeat would be a second publish.
    for (const request of requests.values()) {
      if (welcome && welcome.session !== frame.session && request.type === "publish" && request.unsure) {
        settle(request, new RoostError("unknown_outcome", "the session is another one now: it may or may not have been done", true));
      }
    }
    welcome = frame;
    current = frame.token ?? current;
    keep(storageKey, current);
    heartbeat_ms = frame.heartbeat_s * 1_000;
    since_ms = Date.now();
    be("connected");
    for (const group of groups.values()) {
      if (group.wanted && !group.joins && !(group.resumed && frame.groups.includes(group.name))) group.enter().catch(() => {});
    }
    pump();
  }

  /** The connection is lost, or was never made. What was sent on it may have been done. */
  function lost(code = 1006) {
    const old = socket;
    socket = undefined;
    clearTimeout(timer);
    safely(() => old?.close());
    const sent = [...requests.values()].filter((request) => request.sent);
    for (const request of sent) Object.assign(request, { sent: false, unsure: true });
    code = CLOSES[/** @type {keyof typeof CLOSES} */ (bye?.code)] ?? code;
    const why = new RoostError(bye?.code ?? `closed_${code}`, bye?.reason ?? `the server closed the connection (${code})`);
    if (code === 1009 && sent.length) {
      // The longest of what was sent it was; it was not done, and the others go on.
      settle(sent.reduce((one, other) => (other.text.length > one.text.length ? other : one)), why);
    } else if (code === 4101 || code === 4102 || code === 4107) {
      // Another session, where there is a way to one. A token that makes sessions was given another for the one that it made.
      if (!getToken && (token ? current === token : !current)) return end(why);
      keep(storageKey, (current = getToken ? undefined : token));
      tell("error", why);
    } else if (bye ? !bye.reconnect : (code > 4099 && code < 4200) || (code > 4599 && code < 4700)) return end(why);
    for (const request of requests.values()) if (request.once) late(request);
    if (state === "connected" && Date.now() - since_ms > STEADY_MS) tries = 0;
    be("waiting");
    if (!ended) timer = setTimeout(open, (bye?.after_ms ?? 0) + jitter(tries++));
  }

  function end(/** @type {RoostError} */ why) {
    if (ended) return;
    ended = why;
    clearTimeout(timer);
    globalThis.removeEventListener?.("online", online);
    globalThis.removeEventListener?.("pagehide", leave);
    leave();
    const old = socket;
    socket = undefined;
    safely(() => old?.close());
    for (const request of requests.values()) {
      settle(request, new RoostError(why.code, why.message, request.unsure || request.sent));
    }
    be("ended");
  }

  /** The network is back: no need to wait. */
  function online() {
    if (state === "connected") return probe();
    if (state !== "waiting") return;
    clearTimeout(timer);
    open();
  }

  const late = (/** @type {Request} */ request) => {
    const unsure = request.unsure || request.sent;
    settle(request, new RoostError(unsure ? "unknown_outcome" : "unavailable", "there was no answer in time", unsure));
  };

  /** Asks until there is an answer that is more than "later", over as many connections as it takes. */
  const ask = (/** @type {any} */ frame) =>
    new Promise((resolve, reject) => {
      if (ended) return reject(ended);
      if (frame.ephemeral && state !== "connected") return reject(new RoostError("unavailable", "there is no connection"));
      const id = ++ids;
      /** @type {Request} */
      const request = {
        ...{ id, group: frame.group, type: frame.type, text: JSON.stringify({ ...frame, id }), resolve, reject },
        ...{ once: frame.ephemeral || frame.token, sent: false, unsure: false, held: false, tries: 0, timer: undefined },
      };
      // Who joins waits for as long as it takes.
      if (frame.type !== "join") request.timer = setTimeout(late, REQUEST_MS, request);
      requests.set(id, request);
      pump();
    });

  /** Sends what waits, each group's in its order. */
  function pump() {
    if (state !== "connected" || !socket) return;
    const held = new Set();
    let room = REQUESTS;
    for (const request of requests.values()) {
      if (request.sent) room--;
      else if (request.held || held.has(request.group)) held.add(request.group);
      else if (room-- > 0) {
        request.sent = true;
        socket.send(request.text);
      }
    }
  }

  function repeat(/** @type {Request} */ request, /** @type {any} */ frame) {
    request.unsure ||= frame.code === "unknown_outcome";
    Object.assign(request, { sent: false, held: true });
    const again = () => ((request.held = false), pump());
    setTimeout(again, frame.retry_after_ms + jitter(request.tries++));
    pump();
  }

  function settle(/** @type {Request} */ request, /** @type {unknown} */ error, /** @type {any} */ frame = undefined) {
    clearTimeout(request.timer);
    requests.delete(request.id);
    error ? request.reject(error) : request.resolve(frame);
    pump();
  }

  function follow(/** @type {string} */ name) {
    const { on, off, tell } = listeners();
    const kept = `${storageKey}:${name}`;
    const askHere = (/** @type {string} */ type, /** @type {object} */ more) => ask({ type, group: name, ...more });

    /** Notes where we are, after the program was told of it. */
    const move = (/** @type {string} */ epoch, /** @type {number} */ offset) => {
      group.at = { epoch, offset };
      keep(kept, JSON.stringify(group.at));
    };
    const jump = (/** @type {Position} */ { epoch, offset }, /** @type {string} */ reason) => {
      tell("reset", { type: "reset", group: name, epoch, offset, reason });
      move(epoch, offset);
    };

    /** @type {Followed} */
    const group = {
      ...{ name, at: undefined, wanted: false, resumed: false, joins: 0, entering: undefined },

      /** Joins, once for all who ask at the same time. What comes of it is told as an event, too. */
      enter() {
        if (group.entering) return group.entering;
        group.wanted = true;
        group.joins++;
        const entering = (group.entering = askHere("join", { since: group.at }));
        const over = (wanted = group.wanted) => {
          if (group.entering === entering) Object.assign(group, { wanted, entering: undefined });
        };
        entering.then(() => over(), (error) => {
          group.joins--;
          over(false);
          if (!ended) tell("left", { type: "left", group: name, reason: error.code });
        });
        return entering;
      },

      heard(/** @type {any} */ frame, /** @type {Request | undefined} */ request) {
        const { type, epoch, offset } = frame;
        const { at } = group;
        if (type === "joined" && request) group.joins--;
        if (group.joins && type !== "left") return;
        if (type === "left") {
          if (frame.reason) group.wanted = false;
          group.at = undefined;
          keep(kept, undefined);
        } else if (type === "joined") {
          if (!at) move(epoch, offset);
          else if (at.epoch !== epoch || (at.offset > offset && !frame.recovered)) jump(frame, "not_recovered");
        } else if (type === "message" && !frame.ephemeral) {
          if (at && at.epoch === epoch && offset <= at.offset) return;
          // The server tells of every break. Should it not, the program learns of it all the same.
          if (at && at.epoch !== epoch) jump({ epoch, offset: offset - 1 }, "not_told");
          else if (at && offset > at.offset + 1) tell("gap", { type: "gap", group: name, epoch, from: at.offset + 1, to: offset - 1, reason: "not_told" });
          tell(type, frame);
          return move(epoch, offset);
        } else if (type === "gap") {
          tell(type, frame);
          return move(epoch, frame.to);
        } else if (type === "reset") return jump(frame, frame.reason);
        else if (request) return;
        tell(type, frame);
      },

      face: {
        name,
        get position() {
          return group.at;
        },
        on: (event, listener) => (on(event, listener), group.face),
        off: (event, listener) => (off(event, listener), group.face),
        join({ since } = {}) {
          if (!group.entering) group.at = since ?? group.at;
          return group.enter();
        },
        async leave() {
          group.wanted = false;
          group.at = group.entering = undefined;
          keep(kept, undefined);
          await askHere("leave", {});
        },
        publish: /** @type {any} */ (async (/** @type {any} */ data, { key = `${keys}-${ids}`, ephemeral = false } = {}) => {
          const { epoch, offset, copies } = await askHere("publish", ephemeral ? { data, ephemeral } : { data, key });
          return ephemeral ? undefined : { epoch, offset, copies };
        }),
        history: (options) => askHere("history", options ?? {}),
        members: (options) => askHere("members", options ?? {}),
      },
    };
    safely(() => (group.at = JSON.parse(storage?.getItem(kept) ?? "null") ?? undefined));
    groups.set(name, group);
    return group;
  }

  globalThis.addEventListener?.("online", online);
  queueMicrotask(() => ended ?? open());
  /** @type {import("./roost.d.ts").Connection} */
  const connection = {
    get state() {
      return state;
    },
    get ended() {
      return ended;
    },
    get session() {
      return welcome?.session;
    },
    get user() {
      return welcome?.user;
    },
    get node() {
      return welcome?.node;
    },
    group: (name) => (groups.get(name) ?? follow(name)).face,
    on: (event, listener) => (on(event, listener), connection),
    off: (event, listener) => (off(event, listener), connection),
    close: () => end(new RoostError("closed", "the connection was closed here")),
  };
  return connection;
}
