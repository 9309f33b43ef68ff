"""A loop over a group that is slower than it: 200 messages, of which 20 may wait.

    python slow_loop.py http://127.0.0.1:8000 http://127.0.0.1:8001
"""

import asyncio
import sys
import uuid

from roost_client import Gap, Joined, Message, Reset, connect

COUNT, SIZE = 200, 20


async def main(node_a: str, node_b: str) -> None:
    name = f"chat:slow-{uuid.uuid4().hex}"
    async with connect(node_a) as reader, connect(node_b) as writer:
        events = reader.group(name).events(size=SIZE)
        await reader.group(name).join()
        await writer.group(name).join()
        read, joins = [], 0
        for number in range(COUNT):
            await writer.group(name).publish(number)
        async for event in events:
            assert not isinstance(event, Gap | Reset), event
            if isinstance(event, Joined):
                joins += 1
            if isinstance(event, Message):
                read.append(event.data)
                if len(read) == COUNT:
                    break
        assert read == list(range(COUNT)), read
        # Nothing was read until all were there: the group was left behind, and joined once more.
        assert joins >= 2, joins
        print(f"{COUNT} messages")


asyncio.run(main(*sys.argv[1:3]))
