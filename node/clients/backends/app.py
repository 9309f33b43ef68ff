"""Notes that several people write, and answers that come word by word: a backend on FastAPI, whose page follows both at Roost.

    ROOST_URLS=http://localhost:8000,http://localhost:8001 ROOST_API_KEY=dev-key uvicorn app:app --port 9000

README.md says what it shows.
"""

import asyncio
import os
import re
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
from fastapi import Cookie, Depends, FastAPI, HTTPException, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel

NODES = os.environ["ROOST_URLS"].split(",")
KEY = {"Authorization": f"Bearer {os.environ['ROOST_API_KEY']}"}
# A part of the notes' keys: their numbers begin anew with each run. Yours come from your database, and need none.
RUN = uuid.uuid4().hex

app = FastAPI()
http = httpx.AsyncClient(headers=KEY, timeout=10)
# Who is logged in, by the secret in the cookie: the user and the session at Roost. Yours are in your database, as the notes are.
logins: dict[str, tuple[str, str]] = {}
notes: list[dict[str, object]] = []
writing: set[asyncio.Task[None]] = set()


async def roost(method: str, path: str, body: object = None) -> httpx.Response:
    """Asks one node after the other, until one has done it. A publish has a key: repeated, it is still done once."""
    for attempt in range(30):
        try:
            answer = await http.request(method, NODES[attempt % len(NODES)] + path, json=body)
            if answer.status_code not in (429, 503, 504):
                # What is to be ended and is not there any more has ended.
                return answer if (method, answer.status_code) == ("DELETE", 404) else answer.raise_for_status()
        except httpx.TransportError:
            pass
        await asyncio.sleep(0.2)
    raise HTTPException(503, "no node has done it")


async def publish(group: str, data: object, key: str) -> dict[str, object]:
    answer = await roost("POST", f"/v1/groups/{group}/messages", {"data": data, "key": key})
    return answer.json()


class Login(BaseModel):
    user: str


class Text(BaseModel):
    text: str


def logged_in(login: str = Cookie("")) -> tuple[str, str]:
    if login not in logins:
        raise HTTPException(401, "log in")
    return logins[login]


@app.get("/")
def page() -> FileResponse:
    return FileResponse(Path(__file__).with_name("page.html"))


@app.post("/login", status_code=204)
async def log_in(body: Login, response: Response, login: str = Cookie("")) -> None:
    """Yours asks for a password. The name becomes a part of groups' names."""
    if not re.fullmatch("[a-z]{1,20}", body.user):
        raise HTTPException(422, "a name has 1 to 20 small letters")
    # What the page may follow; it publishes nothing by itself.
    grants = [{"pattern": name, "join": True, "publish": False} for name in ("notes:all", f"answer:{body.user}:*")]
    created = await roost("POST", "/v1/sessions", {"user": body.user, "grants": grants})
    await end(login)
    login = uuid.uuid4().hex
    logins[login] = (body.user, created.json()["session"]["id"])
    # The session's cookie as Roost has made it: HttpOnly, with SameSite, and Secure where session.cookie_secure says so.
    session = created.headers["set-cookie"]
    response.headers.append("set-cookie", session)
    response.set_cookie("login", login, httponly=True, samesite="lax", secure="; secure" in session.lower())


async def end(login: str) -> None:
    """Ends a log-in. It is there until its session has ended, so that a log-out that fails can be tried again."""
    if there := logins.get(login):
        # Its connections are closed, wherever they are.
        await roost("DELETE", f"/v1/sessions/{there[1]}")
        logins.pop(login, None)


@app.post("/logout", status_code=204)
async def log_out(response: Response, login: str = Cookie("")) -> None:
    await end(login)
    for cookie in ("login", "session_id"):
        response.delete_cookie(cookie)


@app.get("/me")
def me(there: tuple[str, str] = Depends(logged_in)) -> dict[str, object]:
    return {"user": there[0], "nodes": NODES}


@app.get("/notes", dependencies=[Depends(logged_in)])
def read_notes() -> list[dict[str, object]]:
    return notes


@app.post("/notes", status_code=201)
async def add_note(body: Text, there: tuple[str, str] = Depends(logged_in)) -> dict[str, object]:
    note: dict[str, object] = {"id": len(notes) + 1, "text": body.text, "by": there[0]}
    # Kept first, then told: whoever joins before loading the notes misses none.
    notes.append(note)
    await publish("notes:all", note, f"{RUN}-note-{note['id']}")
    return note


async def words(question: str) -> AsyncIterator[str]:
    """In place of your model's stream."""
    for word in f"You asked: {question}".split(" "):
        await asyncio.sleep(0.05)
        yield word + " "


async def write(group: str, question: str) -> None:
    number = 0
    async for word in words(question):
        number += 1
        await publish(group, {"word": word}, f"{group}-{number}")
    await publish(group, {"done": True}, f"{group}-done")


@app.post("/ask")
async def ask(body: Text, there: tuple[str, str] = Depends(logged_in)) -> dict[str, object]:
    group = f"answer:{there[0]}:{uuid.uuid4().hex}"
    begun = await publish(group, {"question": body.text}, group)
    task = asyncio.create_task(write(group, body.text))
    writing.add(task)
    task.add_done_callback(writing.discard)
    return {"group": group, "since": {"epoch": begun["epoch"], "offset": 0}}
