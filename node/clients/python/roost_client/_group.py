"""One group as a program follows it: where it is, what it is told, and what it asks."""

from __future__ import annotations

import asyncio
import json
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

from ._events import (
    Event,
    Counts,
    Gap,
    History,
    Joined,
    Left,
    Live,
    Member,
    Members,
    Message,
    Position,
    Published,
    Reset,
    RoostError,
    Stale,
    message,
    presence,
)

if TYPE_CHECKING:
    from ._connection import Connection, Request

E = TypeVar("E", bound=Event)

_NAMES: dict[type[Any], str] = {
    Message: "message",
    Gap: "gap",
    Reset: "reset",
    Stale: "stale",
    Live: "live",
    Member: "member",
    Counts: "presence",
    Joined: "joined",
    Left: "left",
}


class Stream(AsyncIterator[E], Generic[E]):
    """What comes to a group from when this was made, each once, in order.

    A program that is slower than the group misses nothing and fills no memory: past `size` of them the group is left behind,
    and followed again from there once all that waits is taken.
    """

    def __init__(self, group: Group, kinds: tuple[type[E], ...], size: int, joins: bool = False) -> None:
        self._group, self._kinds, self._size, self._joins = group, kinds, size, joins
        self._waiting: deque[E] = deque()
        self._wake = asyncio.Event()
        self._over: RoostError | Literal[True] | None = None

    def __aiter__(self) -> Stream[E]:
        return self

    async def __anext__(self) -> E:
        if self._joins:
            self._joins = False
            if self._over is None and not self._group._wanted:
                try:
                    await self._group.join()
                except RoostError:
                    # Where the join has ended this stream, that is told below.
                    if self._over is None:
                        raise
        while not self._waiting:
            if isinstance(self._over, RoostError):
                raise self._over
            if self._over:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        event = self._waiting.popleft()
        if not self._waiting:
            self._group._drained()
        return event

    @property
    def _is_full(self) -> bool:
        return len(self._waiting) >= self._size

    def _tell(self, event: Any) -> None:
        if isinstance(event, self._kinds):
            self._waiting.append(event)
            self._wake.set()

    def _end(self, why: RoostError | None) -> None:
        self._over = self._over or why or True
        self._wake.set()


class Group:
    """A group. `async for message in group` joins it and gives its messages."""

    def __init__(self, connection: Connection, name: str, stored: str | None) -> None:
        self.name = name
        self._connection = connection
        self._listeners: dict[str, list[Callable[[Any], object]]] = {}
        self._streams: weakref.WeakSet[Stream[Any]] = weakref.WeakSet()
        self._at = Position(**json.loads(stored)) if stored else None
        # It is to be joined again and again.
        self._wanted = False
        # The hello said where it stopped.
        self._resumed = False
        # Joins under way: until the last is answered, what comes belongs to an earlier one.
        self._joins = 0
        # A stream is full: nothing is told until it is empty.
        self._behind = False
        self._entering: asyncio.Task[Joined] | None = None

    @property
    def position(self) -> Position | None:
        """Up to where messages were told. Save it with what they came to, and give it to `join` as `since`."""
        return self._at

    @overload
    def on(self, event: Literal["message"], listener: Callable[[Message], object]) -> Group: ...
    @overload
    def on(self, event: Literal["gap"], listener: Callable[[Gap], object]) -> Group: ...
    @overload
    def on(self, event: Literal["reset"], listener: Callable[[Reset], object]) -> Group: ...
    @overload
    def on(self, event: Literal["stale"], listener: Callable[[Stale], object]) -> Group: ...
    @overload
    def on(self, event: Literal["live"], listener: Callable[[Live], object]) -> Group: ...
    @overload
    def on(self, event: Literal["member"], listener: Callable[[Member], object]) -> Group: ...
    @overload
    def on(self, event: Literal["presence"], listener: Callable[[Counts], object]) -> Group: ...
    @overload
    def on(self, event: Literal["joined"], listener: Callable[[Joined], object]) -> Group: ...
    @overload
    def on(self, event: Literal["left"], listener: Callable[[Left], object]) -> Group: ...
    def on(self, event: str, listener: Callable[[Any], object]) -> Group:
        """Calls a function, not a coroutine, for each such event. One that raises disturbs nobody else."""
        self._listeners.setdefault(event, []).append(listener)
        return self

    def off(self, event: str, listener: Callable[[Any], object]) -> Group:
        if listener in self._listeners.get(event, []):
            self._listeners[event].remove(listener)
        return self

    def messages(self, *, size: int = 1_000) -> Stream[Message]:
        """Messages from now on. Take it before `join`, so that none comes in between."""
        return self._stream(Stream(self, (Message,), size))

    def events(self, *, size: int = 1_000) -> Stream[Event]:
        """All that comes, in order."""
        return self._stream(Stream(self, tuple(_NAMES), size))

    def __aiter__(self) -> Stream[Message]:
        return self._stream(Stream(self, (Message,), 1_000, joins=True))

    def _stream(self, stream: Stream[E]) -> Stream[E]:
        if self._connection.ended is not None:
            stream._end(self._connection._end_of_streams())
        self._streams.add(stream)
        return stream

    async def join(self, *, since: Position | None = None) -> Joined:
        """Joins and stays, over all reconnects, until `leave`. With `since`, or a position that was kept, what came after it
        follows."""
        if since and not self._entering:
            self._at = since
        return await asyncio.shield(self._enter())

    async def leave(self) -> None:
        self._wanted = False
        self._at = self._entering = None
        self._connection._keep(self._kept, None)
        await self._ask("leave")
        self._end(None)

    @overload
    async def publish(self, data: Any, *, key: str | None = None, ephemeral: Literal[False] = False) -> Published: ...
    @overload
    async def publish(self, data: Any, *, ephemeral: Literal[True]) -> None: ...
    async def publish(self, data: Any, *, key: str | None = None, ephemeral: bool = False) -> Published | None:
        """Publishes once: repeated with the same key, over reconnects, until its outcome is known. Of publishes that are under
        way at once one that had to be repeated may come after the others; await one before the next where that matters.

        With `ephemeral` it tells those who are there now, and is kept nowhere: for typing indicators and cursors. It is sent
        once, or not at all without a connection."""
        if ephemeral:
            await self._ask("publish", data=data, ephemeral=True)
            return None
        answer = await self._ask("publish", data=data, key=key or self._connection._next_key())
        return Published(answer["epoch"], answer["offset"], answer["copies"])

    async def history(
        self, *, since: Position | None = None, limit: int | None = None, last: int | None = None
    ) -> History:
        """Messages after `since`, or from the oldest that is kept on, at most `limit` (1 to 1000, else 100); or the `last`
        ones (1 to 1000): the newest of them that fit in an answer; where older ones were left out it is not `complete`."""
        answer = await self._ask("history", since=since and since.to_json(), limit=limit, last=last)
        epoch = answer["epoch"]
        messages = [message(self.name, epoch or "", one) for one in answer["messages"]]
        return History(epoch, answer["offset"], answer["complete"], messages)

    async def members(self, *, after: str | None = None, limit: int | None = None) -> Members:
        """Who is present, a page at a time: `after` is the last session of the page before."""
        answer = await self._ask("members", after=after, limit=limit)
        return Members([presence(one) for one in answer["members"]], answer["more"])

    async def _ask(self, kind: str, **fields: Any) -> dict[str, Any]:
        return await self._connection._ask({"type": kind, "group": self.name, **fields})

    def _enter(self) -> asyncio.Task[Joined]:
        """Joins, once for all who ask at the same time. What comes of it is told as an event, too."""
        if self._entering:
            return self._entering
        self._wanted = True
        self._joins += 1
        # Asked at once, so that what the program asks next comes after it.
        answer = self._connection._request(
            {"type": "join", "group": self.name, "since": self._at and self._at.to_json()}
        )
        entering = self._connection._spawn(self._entered(answer))
        self._entering = entering
        return entering

    async def _entered(self, answer: asyncio.Future[dict[str, Any]]) -> Joined:
        mine = asyncio.current_task()
        try:
            frame = await answer
            return Joined(self.name, frame["epoch"], frame["offset"], frame["recovered"])
        except RoostError as error:
            self._joins -= 1
            if self._entering is mine:
                self._wanted = False
            if self._connection.ended is None:
                self._left(error.code)
            raise
        finally:
            if self._entering is mine:
                self._entering = None

    @property
    def _kept(self) -> str:
        return f"{self._connection._storage_key}:{self.name}"

    def _move(self, epoch: str, offset: int) -> None:
        """Notes where we are, after the program was told of it."""
        self._at = Position(epoch, offset)
        self._connection._keep(self._kept, json.dumps(self._at.to_json()))

    def _reset(self, epoch: str, offset: int, reason: str) -> None:
        self._tell(Reset(self.name, epoch, offset, reason))
        self._move(epoch, offset)

    def _left(self, reason: str | None) -> None:
        self._tell(Left(self.name, reason))
        if reason:
            self._end(RoostError(reason, f"{self.name} was left"))

    def _tell(self, event: Event) -> None:
        self._connection._call(self._listeners.get(_NAMES[type(event)], []), event)
        for stream in list(self._streams):
            stream._tell(event)

    def _end(self, why: RoostError | None) -> None:
        for stream in list(self._streams):
            stream._end(why)
        self._streams.clear()

    def _drained(self) -> None:
        if self._behind and not any(stream._waiting for stream in self._streams):
            self._behind = False
            if self._wanted or self._at:
                self._enter()

    def _heard(self, frame: dict[str, Any], request: Request | None) -> None:
        kind = frame["type"]
        if kind == "joined" and request:
            self._joins -= 1
        if kind == "left":
            if frame.get("reason"):
                self._wanted = False
            self._at = None
            self._connection._keep(self._kept, None)
            return self._left(frame.get("reason"))
        if self._joins or self._behind:
            return
        if any(stream._is_full for stream in self._streams):
            # What is ephemeral is missed by nobody.
            self._behind = "ephemeral" not in frame
            return
        at, epoch, offset = self._at, frame.get("epoch", ""), frame.get("offset", 0)
        if kind == "joined":
            if at is None:
                self._move(epoch, offset)
            elif at.epoch != epoch or (at.offset > offset and not frame["recovered"]):
                self._reset(epoch, offset, "not_recovered")
            self._tell(Joined(self.name, epoch, offset, frame["recovered"]))
        elif kind == "message" and "ephemeral" in frame:
            self._tell(message(self.name, "", frame))
        elif kind == "message":
            if at and at.epoch == epoch and offset <= at.offset:
                return
            # The server tells of every break. Should it not, the program learns of it all the same.
            if at and at.epoch != epoch:
                self._reset(epoch, offset - 1, "not_told")
            elif at and offset > at.offset + 1:
                self._tell(Gap(self.name, epoch, at.offset + 1, offset - 1, "not_told"))
            self._tell(message(self.name, epoch, frame))
            self._move(epoch, offset)
        elif kind == "gap":
            self._tell(Gap(self.name, epoch, frame["from"], frame["to"], frame["reason"]))
            self._move(epoch, frame["to"])
        elif kind == "reset":
            self._reset(epoch, offset, frame["reason"])
        elif kind == "stale":
            self._tell(Stale(self.name))
        elif kind == "live":
            self._tell(Live(self.name, epoch, offset))
        elif kind == "member":
            self._tell(Member(self.name, frame["event"], presence(frame)))
        elif kind == "presence":
            self._tell(Counts(self.name, frame["sessions"], frame["users"], frame["anonymous"]))
