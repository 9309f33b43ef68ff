"""Does with our Python client what scenarios.rs asks for, one line of JSON each, and says what comes of it."""

import asyncio
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "node/clients/python"))

from roost_client import (  # noqa: E402
    Counts,
    Gap,
    Joined,
    Left,
    Live,
    Member,
    Message,
    Position,
    Reset,
    RoostError,
    Stale,
    connect,
)

clients = {}
storages = {}


def say(value):
    print(json.dumps(value), flush=True)


def told(event):
    """As the JavaScript client tells it."""
    match event:
        case Message(ephemeral=True):
            return "message", {"ephemeral": True, "data": event.data, "from": event.sender and {"session": event.sender.session, "user": event.sender.user}}
        case Message():
            return "message", {"epoch": event.epoch, "offset": event.offset, "data": event.data, "from": event.sender and {"session": event.sender.session, "user": event.sender.user}}
        case Gap():
            return "gap", {"epoch": event.epoch, "from": event.first, "to": event.last, "reason": event.reason}
        case Reset():
            return "reset", {"epoch": event.epoch, "offset": event.offset, "reason": event.reason}
        case Stale():
            return "stale", {}
        case Live():
            return "live", {"epoch": event.epoch, "offset": event.offset}
        case Member():
            return "member", {"event": event.event, "session": event.member.session, "info": event.member.info}
        case Counts():
            return "presence", {"sessions": event.sessions, "users": event.users, "anonymous": event.anonymous}
        case Joined():
            return "joined", {"epoch": event.epoch, "offset": event.offset, "recovered": event.recovered}
        case Left():
            return "left", {"reason": event.reason}


async def open_one(ask):
    name, tokens, storage = ask["as"], ask.get("tokens"), ask.get("storage")
    roost = connect(
        ask["urls"],
        token=ask.get("token"),
        client=ask.get("client"),
        get_token=(lambda: tokens.pop(0) if tokens else None) if tokens is not None else None,
        storage=storages.setdefault(storage, {}) if storage else None,
    )

    def state(state):
        value = {"state": state, "code": roost.ended and roost.ended.code, "node": roost.node, "session": roost.session}
        say({"as": name, "event": "state", "value": value})

    roost.on("state", state)
    roost.on("direct", lambda data: say({"as": name, "event": "direct", "value": data}))
    roost.on("error", lambda error: say({"as": name, "event": "error", "value": {"code": getattr(error, "code", str(error))}}))
    clients[name] = roost, {}
    await roost.__aenter__()


def group(ask):
    roost, followed = clients[ask["as"]]
    group = roost.group(ask["group"])
    if ask["group"] not in followed:
        followed[ask["group"]] = asyncio.create_task(follow(ask["as"], ask["group"], group))
    return group


async def follow(name, group_name, group):
    """All that comes, by the stream."""
    while True:
        try:
            async for event in group.events():
                kind, value = told(event)
                say({"as": name, "event": kind, "group": group_name, "value": value})
        except RoostError:
            pass
        if clients[name][0].ended:
            return


def position(value):
    return Position(**value) if value else None


async def do(ask):
    match ask["do"]:
        case "connect":
            return await open_one(ask)
        case "follow":
            group(ask)
            # The stream begins with the next step of its task.
            return await asyncio.sleep(0)
        case "join":
            one = group(ask)
            await asyncio.sleep(0)
            joined = await one.join(since=position(ask.get("since")))
            return told(joined)[1]
        case "leave":
            return await group(ask).leave()
        case "publish" if ask.get("ephemeral"):
            return await group(ask).publish(ask["data"], ephemeral=True)
        case "publish":
            published = await group(ask).publish(ask["data"], key=ask.get("key"))
            return {"epoch": published.epoch, "offset": published.offset, "copies": published.copies}
        case "history":
            history = await group(ask).history(since=position(ask.get("since")), limit=ask.get("limit"), last=ask.get("last"))
            messages = [{"data": one.data, "offset": one.offset} for one in history.messages]
            return {"epoch": history.epoch, "offset": history.offset, "complete": history.complete, "messages": messages}
        case "members":
            page = await group(ask).members(after=ask.get("after"), limit=ask.get("limit"))
            return {"members": [{"session": one.session, "user": one.user} for one in page.members], "more": page.more}
        case "position":
            at = group(ask).position
            return at and at.to_json()
        case "close":
            return await clients[ask["as"]][0].close()


async def answer(ask):
    try:
        say({"n": ask["n"], "ok": await do(ask)})
    except RoostError as error:
        say({"n": ask["n"], "error": {"code": error.code, "unsure": error.unsure, "detail": error.detail}})
    except Exception as error:
        say({"n": ask["n"], "error": {"code": repr(error)}})


async def main():
    reader = asyncio.StreamReader(limit=1 << 22)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    tasks = []
    while line := await reader.readline():
        # In the order of the lines; what has to be waited for is answered later.
        tasks.append(asyncio.create_task(answer(json.loads(line))))


asyncio.run(main())
