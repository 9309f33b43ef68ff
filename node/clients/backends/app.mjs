// Notes that several people write, and answers that come word by word: a backend on Express, whose page follows both at Roost.
//
//     ROOST_URLS=http://localhost:8000,http://localhost:8001 ROOST_API_KEY=dev-key PORT=9000 node app.mjs
//
// README.md says what it shows.

import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import express from "express";

const NODES = process.env.ROOST_URLS.split(",");
const headers = { authorization: `Bearer ${process.env.ROOST_API_KEY}`, "content-type": "application/json" };
// A part of the notes' keys: their numbers begin anew with each run. Yours come from your database, and need none.
const RUN = randomUUID();

// Who is logged in, by the secret in the cookie: the user and the session at Roost. Yours are in your database, as the notes are.
const logins = new Map();
const notes = [];

/** Asks one node after the other, until one has done it. A publish has a key: repeated, it is still done once. */
async function roost(method, path, body) {
  for (let attempt = 0; attempt < 30; attempt++) {
    const options = { method, headers, body: body && JSON.stringify(body), signal: AbortSignal.timeout(10_000) };
    const answer = await fetch(NODES[attempt % NODES.length] + path, options).catch(() => undefined);
    if (answer && ![429, 503, 504].includes(answer.status)) {
      // What is to be ended and is not there any more has ended.
      if (!answer.ok && !(method === "DELETE" && answer.status === 404)) throw new Error(`${method} ${path}: ${answer.status} ${await answer.text()}`);
      return answer;
    }
    await answer?.body?.cancel();
    await sleep(200);
  }
  throw Object.assign(new Error("no node has done it"), { status: 503 });
}

const publish = async (group, data, key) =>
  (await roost("POST", `/v1/groups/${group}/messages`, { data, key })).json();

const app = express().use(express.json());
const cookie = (request, name) => new Map(request.get("cookie")?.split("; ").map((one) => one.split("="))).get(name);

function loggedIn(request, response, next) {
  request.login = logins.get(cookie(request, "login"));
  if (request.login) next();
  else response.sendStatus(401);
}

app.get("/", (_, response) => response.sendFile("page.html", { root: import.meta.dirname }));

// Yours asks for a password. The name becomes a part of groups' names.
app.post("/login", async (request, response) => {
  const user = request.body?.user;
  if (!/^[a-z]{1,20}$/.test(user)) return response.status(422).send("a name has 1 to 20 small letters");
  // What the page may follow; it publishes nothing by itself.
  const grants = ["notes:all", `answer:${user}:*`].map((pattern) => ({ pattern, join: true, publish: false }));
  const created = await roost("POST", "/v1/sessions", { user, grants });
  await end(cookie(request, "login"));
  const login = randomUUID();
  logins.set(login, { user, session: (await created.json()).session.id });
  // The session's cookie as Roost has made it: HttpOnly, with SameSite, and Secure where session.cookie_secure says so.
  const session = created.headers.get("set-cookie");
  response.append("set-cookie", session);
  response.cookie("login", login, { httpOnly: true, sameSite: "lax", secure: /; *secure/i.test(session) }).sendStatus(204);
});

/** Ends a log-in. It is there until its session has ended, so that a log-out that fails can be tried again. */
async function end(login) {
  const there = logins.get(login);
  // Its connections are closed, wherever they are.
  if (there) await roost("DELETE", `/v1/sessions/${there.session}`);
  logins.delete(login);
}

app.post("/logout", async (request, response) => {
  await end(cookie(request, "login"));
  response.clearCookie("login").clearCookie("session_id").sendStatus(204);
});

app.get("/me", loggedIn, ({ login }, response) => response.json({ user: login.user, nodes: NODES }));

app.get("/notes", loggedIn, (_, response) => response.json(notes));

app.post("/notes", loggedIn, async ({ login, body }, response) => {
  if (typeof body?.text !== "string") return response.status(422).send("a note has a text");
  const note = { id: notes.length + 1, text: body.text, by: login.user };
  // Kept first, then told: whoever joins before loading the notes misses none.
  notes.push(note);
  await publish("notes:all", note, `${RUN}-note-${note.id}`);
  response.status(201).json(note);
});

/** In place of your model's stream. */
async function* words(question) {
  for (const word of `You asked: ${question}`.split(" ")) {
    await sleep(50);
    yield `${word} `;
  }
}

async function write(group, question) {
  let number = 0;
  for await (const word of words(question)) await publish(group, { word }, `${group}-${++number}`);
  await publish(group, { done: true }, `${group}-done`);
}

app.post("/ask", loggedIn, async ({ login, body }, response) => {
  if (typeof body?.text !== "string") return response.status(422).send("a question has a text");
  const group = `answer:${login.user}:${randomUUID()}`;
  const { epoch } = await publish(group, { question: body.text }, group);
  write(group, body.text).catch((error) => console.error(error));
  response.json({ group, since: { epoch, offset: 0 } });
});

app.listen(Number(process.env.PORT ?? 9000), "127.0.0.1");
