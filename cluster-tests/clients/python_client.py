"""A stock WebSocket client from Python's registry against two nodes: hello, join, publish on one, message on the other,
and a resume on the other node after the connection was lost.

    python python_client.py http://127.0.0.1:8000 http://127.0.0.1:8001
"""

import asyncio
import itertools
import json
import sys
import uuid

from websockets.asyncio.client import connect

LIMIT_S = 20


class Client:
    """One connection. Answers are told apart by the `id` that they echo; everything else is kept in order."""

    def __init__(self, socket):
        self.socket = socket
        self.ids = itertools.count(1)
        self.pushed = []

    @classmethod
    async def open(cls, node, back=None, resume=None):
        client = cls(await connect(node.replace("http", "ws", 1) + "/ws"))
        hello = {"type": "hello", "resume": resume or {}}
        if back:
            hello |= {"session": back.welcome["token"], "client": back.welcome["client"]}
        client.welcome = await client.ask(hello)
        assert client.welcome["type"] == "welcome", client.welcome
        return client

    async def ask(self, frame):
        frame["id"] = f"python-{next(self.ids)}"
        await self.socket.send(json.dumps(frame))
        async with asyncio.timeout(LIMIT_S):
            while True:
                answer = json.loads(await self.socket.recv())
                if answer.get("id") == frame["id"]:
                    return answer
                self.pushed.append(answer)

    async def pushes(self, kind, count):
        """Waits for so many pushed frames of this type, and takes them."""
        async with asyncio.timeout(LIMIT_S):
            while sum(frame["type"] == kind for frame in self.pushed) < count:
                self.pushed.append(json.loads(await self.socket.recv()))
        found = [frame for frame in self.pushed if frame["type"] == kind]
        assert len(found) == count, f"{len(found)} instead of {count} times {kind}: {found}"
        self.pushed = [frame for frame in self.pushed if frame["type"] != kind]
        return found


def consecutive(messages, epoch, after):
    assert all(message["epoch"] == epoch for message in messages), messages
    offsets = [message["offset"] for message in messages]
    assert offsets == list(range(after + 1, after + 1 + len(offsets))), offsets


async def main(node_a, node_b):
    group = f"chat:python-{uuid.uuid4().hex[:8]}"
    a, b = await Client.open(node_a), await Client.open(node_b)
    assert a.welcome["node"] != b.welcome["node"], "both are on one node"
    joined_a, joined_b = [await client.ask({"type": "join", "group": group}) for client in (a, b)]
    assert joined_a["type"] == joined_b["type"] == "joined", (joined_a, joined_b)
    epoch, offset = joined_a["epoch"], joined_a["offset"]
    assert joined_b["epoch"] == epoch, (joined_a, joined_b)

    # Published on one node, a message on both.
    for number in range(10):
        data = {"number": number, "text": "grüße 🐓"}
        published = await b.ask({"type": "publish", "group": group, "data": data, "key": f"key-{number}"})
        # Three while a slot moves.
        assert published["type"] == "published" and published["copies"] in (2, 3), published
    again = await b.ask({"type": "publish", "group": group, "data": "again", "key": "key-9"})
    assert again["offset"] == published["offset"], (published, again)
    for client in (a, b):
        messages = await client.pushes("message", 10)
        consecutive(messages, epoch, offset)
        assert [message["data"]["number"] for message in messages] == list(range(10)), messages
        assert messages[0]["data"]["text"] == "grüße 🐓", messages[0]
        assert messages[0]["from"]["session"] == b.welcome["session"], messages[0]

    # The connection is lost; what comes meanwhile follows on the other node.
    a.socket.transport.abort()
    for number in range(5):
        await b.ask({"type": "publish", "group": group, "data": f"missed {number}"})
    position = {"epoch": epoch, "offset": messages[-1]["offset"]}
    back = await Client.open(node_b, a, {group: position})
    assert back.welcome["session"] == a.welcome["session"], back.welcome
    assert group in back.welcome["groups"], back.welcome
    missed = await back.pushes("message", 5)
    consecutive(missed, epoch, position["offset"])
    joined = [frame for frame in back.pushed if frame["type"] == "joined" and frame["group"] == group]
    assert len(joined) == 1 and joined[0]["recovered"] is True, joined

    history = await back.ask({"type": "history", "group": group, "limit": 100})
    assert len(history["messages"]) == 15, history
    members = await back.ask({"type": "members", "group": group})
    present = {member["session"] for member in members["members"]}
    assert {back.welcome["session"], b.welcome["session"]} <= present, members
    left = await back.ask({"type": "leave", "group": group})
    assert left["type"] == "left", left
    error = await back.ask({"type": "publish", "group": group, "data": 1})
    assert error["type"] == "error" and error["code"] == "forbidden", error
    for client in (back, b):
        await client.socket.close()
    print(json.dumps({"messages": 15, "resumed": 5}))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
