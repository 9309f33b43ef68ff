"""The connection: kept up, and asked through. What it does is the same as in the client for JavaScript."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import random
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, MutableMapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_socket
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from ._events import RoostError
from ._group import Group

# The server welcomes by then, or another node is asked.
_WELCOME_S = 10.0
# A heartbeat is answered by then, or the connection is lost; sooner where heartbeats are more often.
_ANSWER_S = 10.0
# Waits between attempts are by chance, up to the first of these, doubled each time up to the second.
_WAIT_S, _WAIT_MAX_S = 0.25, 10.0
# What was connected for this time begins with short waits again.
_STEADY_S = 5.0
# Requests under way at once, and groups in a hello: within what a node takes.
_REQUESTS, _RESUMED = 100, 300
# A request whose outcome is not known by then is given up: nodes know keys for five minutes.
_REQUEST_S = 240.0
# The longest frame that is taken.
_FRAME_BYTES = 32 << 20
# How a connection ends that does not come back as it was.
_CLOSES = {"frame_too_large": 1009, "displaced": 4100, "session_ended": 4101, "unauthorized": 4102, "bad_frame": 4103, "too_many_clients": 4104, "crowded_out": 4105, "disconnected": 4106, "token_expired": 4107}

_log = logging.getLogger("roost_client")

State = Literal["connecting", "connected", "waiting", "ended"]
T = TypeVar("T")


@dataclass(eq=False)
class Request:
    """A request until it is answered."""

    id: int
    kind: str
    group: str
    text: str
    answer: asyncio.Future[dict[str, Any]]
    once: bool = False
    """It is never repeated."""
    sent: bool = False
    unsure: bool = False
    """An attempt may have been carried out."""
    held: bool = False
    """It waits before it is repeated."""
    tries: int = 0
    timers: list[asyncio.TimerHandle] = field(default_factory=list)


class _Lost(Exception):
    """The connection is lost, or was never made."""

    def __init__(self, code: int, after_s: float = 0.0) -> None:
        super().__init__(code)
        self.code, self.after_s = code, after_s


def connect(
    urls: str | Iterable[str],
    *,
    token: str | None = None,
    get_token: Callable[[], str | None | Awaitable[str | None]] | None = None,
    storage: MutableMapping[str, str] | None = None,
    storage_key: str = "roost",
    client: str | None = None,
) -> Connection:
    """A connection, for `async with`: kept up until the block ends, or until the server says that coming back makes no sense.

    `urls` name nodes of the cluster; the first is one by chance, the next one follows when it fails. `get_token` is asked at
    first and each time the session is over, and for a later JWT before one expires; None ends the connection, or leaves it to
    expire, and when it raises it is asked again. Without it and
    without a `token` the session is a new anonymous one, where the cluster allows that. `storage` keeps token, client and
    positions. `client` says which client of its session this is: a later connection of the same client takes the place of the
    earlier one. Unless given it is one of its own.
    """
    return Connection([urls] if isinstance(urls, str) else list(urls), token, get_token, storage, storage_key, client)


class Connection:
    """See `connect`."""

    def __init__(
        self,
        urls: list[str],
        token: str | None,
        get_token: Callable[[], str | None | Awaitable[str | None]] | None,
        storage: MutableMapping[str, str] | None,
        storage_key: str,
        client: str | None,
    ) -> None:
        for url in urls:
            if urlsplit(url).scheme not in ("http", "https", "ws", "wss"):
                raise ValueError(f"{url!r} is no http or https URL of a node")
        if not urls:
            raise ValueError("connect needs the URL of one node at least")
        self._nodes = [re.sub(r"(/ws)?/*$", "/ws", re.sub("^http", "ws", url), count=1) for url in urls]
        self._next = random.randrange(len(urls))
        self._token, self._get_token = token, get_token
        self._storage, self._storage_key = storage, storage_key
        self._current = token or (storage.get(storage_key) if storage is not None else None)
        self._keys, self._key_count = secrets.token_hex(8), 0
        self._client_key = f"{storage_key}.client"
        # Out of the storage while it is used, or a copy of that would be the same client.
        kept = storage.pop(self._client_key, None) if storage is not None else None
        self._client = client or kept or self._keys
        self._groups: dict[str, Group] = {}
        self._requests: dict[int, Request] = {}
        self._listeners: dict[str, list[Callable[[Any], object]]] = {}
        self._ids = 0
        self._tries = 0
        self._heartbeat_s = _ANSWER_S
        self._bye: dict[str, Any] | None = None
        self._fault: dict[str, Any] = {}
        self._welcome: dict[str, Any] | None = None
        self._connected_s = 0.0
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._running: asyncio.Task[None] | None = None
        self.state: State = "connecting"
        self.ended: RoostError | None = None
        """Why the connection has ended."""

    @property
    def session(self) -> str | None:
        """The session's id, once it was connected."""
        return self._welcome["session"] if self._welcome else None

    @property
    def user(self) -> str | None:
        """The session's user; empty: nobody in particular."""
        return self._welcome["user"] if self._welcome else None

    @property
    def node(self) -> str | None:
        """The node that it is at, or was last."""
        return self._welcome["node"] if self._welcome else None

    async def __aenter__(self) -> Connection:
        if self.ended or self._running:
            raise RuntimeError("a connection is entered once: connect anew")
        self._running = self._spawn(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends it. What is under way is refused with the code `closed`."""
        self._end(RoostError("closed", "the connection was closed here"))
        if self._running and self._running is not asyncio.current_task():
            self._running.cancel()
            await asyncio.wait([self._running])

    def group(self, name: str) -> Group:
        """Always the same one for the same name."""
        if name not in self._groups:
            stored = self._storage.get(f"{self._storage_key}:{name}") if self._storage is not None else None
            self._groups[name] = Group(self, name, stored)
        return self._groups[name]

    def on(self, event: Literal["state", "error", "direct"], listener: Callable[[Any], object]) -> Connection:
        """`state`: it has changed. `error`: one that answers no request, or what `get_token` raised; the connection goes on.
        `direct`: what a backend has sent to this client alone."""
        self._listeners.setdefault(event, []).append(listener)
        return self

    def off(self, event: Literal["state", "error", "direct"], listener: Callable[[Any], object]) -> Connection:
        if listener in self._listeners.get(event, []):
            self._listeners[event].remove(listener)
        return self

    def _tell(self, event: str, value: object) -> None:
        self._call(self._listeners.get(event, []), value)

    def _call(self, listeners: list[Callable[[Any], object]], value: object) -> None:
        for listener in list(listeners):
            try:
                listener(value)
            except Exception as error:  # noqa: BLE001
                asyncio.get_running_loop().call_exception_handler(
                    {"message": f"a listener of {value!r} raised", "exception": error}
                )

    def _be(self, state: State) -> None:
        self.state = state
        self._tell("state", state)

    def _keep(self, name: str, value: str | None) -> None:
        if self._storage is None:
            return
        if value is not None:
            self._storage[name] = value
        else:
            self._storage.pop(name, None)

    def _spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # What it raised is the business of those who wait for it.
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        return task

    def _next_key(self) -> str:
        self._key_count += 1
        return f"{self._keys}-{self._key_count}"

    async def _run(self) -> None:
        try:
            while self.ended is None:
                self._be("connecting")
                self._bye, self._fault = None, {}
                try:
                    await self._once()
                except _Lost as lost:
                    self._lost(lost.code)
                    after_s = max(lost.after_s, self._bye["after_ms"] / 1_000 if self._bye else 0.0)
                if self.ended is None:
                    self._be("waiting")
                    await asyncio.sleep(after_s + _jitter(self._tries))
                    self._tries += 1
        except Exception as error:
            # Nobody would come back: whoever waits is told.
            _log.exception("the connection ends by a fault")
            self._end(RoostError("fault", f"the client ended by a fault: {error!r}"))

    async def _once(self) -> None:
        """One connection, until it is lost."""
        if self._get_token and not self._current:
            try:
                self._current = await self._given()
            except Exception as error:
                self._tell("error", error)
                raise _Lost(1006) from error
            if not self._current:
                self._end(RoostError("unauthorized", "get_token gave no token"))
                raise _Lost(1006)
        url = self._nodes[self._next % len(self._nodes)]
        self._next += 1
        try:
            connecting = open_socket(
                url, open_timeout=_WELCOME_S, ping_interval=None, close_timeout=1, max_size=_FRAME_BYTES, compression=None
            )
            async with connecting as socket:
                await self._talk(socket)
        except InvalidStatus as error:
            after = error.response.headers.get("Retry-After", "")
            raise _Lost(1006, float(after) if after.isdigit() else 0.0) from error
        except ConnectionClosed as error:
            raise _Lost(error.rcvd.code if error.rcvd else 1006) from error
        except (OSError, WebSocketException) as error:
            raise _Lost(1006) from error

    async def _talk(self, socket: ClientConnection) -> None:
        await socket.send(json.dumps({"type": "hello", "session": self._current, "client": self._client, "resume": self._resume()}))
        patience_s, asked = _WELCOME_S, True
        writing: asyncio.Task[None] | None = None
        try:
            while True:
                try:
                    text = await asyncio.wait_for(socket.recv(), patience_s)
                except TimeoutError:
                    if asked:
                        socket.transport.abort()
                        raise
                    # Nothing was heard for long: a sign of life is asked for.
                    patience_s, asked = min(self._heartbeat_s, _ANSWER_S), True
                    await asyncio.wait_for(socket.send('{"type":"heartbeat"}'), patience_s)
                    continue
                self._heard(json.loads(text))
                patience_s, asked = self._heartbeat_s, False
                if self.ended is not None:
                    raise _Lost(1006)
                if writing is None and self.state == "connected":
                    writing = self._spawn(self._write(socket))
        finally:
            if writing:
                writing.cancel()

    def _resume(self) -> dict[str, Any]:
        known = [group for group in self._groups.values() if group._at and not group._joins and not group._behind]
        resume = {group.name: group._at.to_json() for group in known[:_RESUMED] if group._at}
        for group in self._groups.values():
            group._resumed = group.name in resume
        return resume

    async def _write(self, socket: ClientConnection) -> None:
        """Sends what waits, each group's in its order."""
        try:
            while True:
                self._wake.clear()
                for request in self._sendable():
                    if request.id in self._requests:
                        request.sent = True
                        await socket.send(request.text)
                await self._wake.wait()
        except ConnectionClosed:
            # The one who reads is told so too.
            pass

    def _sendable(self) -> list[Request]:
        held: set[str] = set()
        room = _REQUESTS
        sendable = []
        for request in self._requests.values():
            if request.sent:
                room -= 1
            elif request.held or request.group in held:
                held.add(request.group)
            elif room > 0:
                room -= 1
                sendable.append(request)
        return sendable

    def _heard(self, frame: dict[str, Any]) -> None:
        kind, request = frame["type"], self._requests.get(frame.get("id", 0))
        if kind == "welcome":
            self._welcomed(frame)
        elif kind == "bye":
            self._bye = {**frame, **self._fault}
        elif kind == "direct":
            self._tell("direct", frame["data"])
        elif kind == "expiring":
            self._spawn(self._refresh())
        elif kind == "error":
            unsure = request is not None and (request.unsure or (request.once and frame["code"] == "unknown_outcome"))
            error = RoostError(frame["code"], frame["message"], unsure, frame["detail"])
            if request is None:
                # Of this a bye says only that a frame was wrong.
                if error.code == "frame_too_large":
                    self._fault = {"code": error.code, "reason": frame["message"]}
                self._tell("error", error)
            elif "retry_after_ms" in frame and not request.once:
                self._repeat(request, frame)
            else:
                self._settle(request, error)
            return
        elif frame.get("group") in self._groups:
            self._groups[frame["group"]]._heard(frame, request)
        if request:
            self._settle(request, frame)

    async def _refresh(self) -> None:
        """The session ends soon: it goes on with a later token of the backend's, if there is one."""
        try:
            later = await self._given() if self._get_token else None
            if later:
                await self._ask({"type": "refresh", "token": later})
        except Exception as error:
            if self.ended is None:
                self._tell("error", error)

    async def _given(self) -> str | None:
        given = self._get_token() if self._get_token else None
        return await given if inspect.isawaitable(given) else given

    def _welcomed(self, frame: dict[str, Any]) -> None:
        # Keys are the session's: in another one a repeat would be a second publish.
        if self._welcome and self._welcome["session"] != frame["session"]:
            for request in list(self._requests.values()):
                if request.kind == "publish" and request.unsure:
                    words = "the session is another one now: it may or may not have been done"
                    self._settle(request, RoostError("unknown_outcome", words, True))
        self._welcome = frame
        self._current = frame.get("token") or self._current
        self._keep(self._storage_key, self._current)
        self._heartbeat_s = frame["heartbeat_s"]
        self._connected_s = time.monotonic()
        self._be("connected")
        for group in self._groups.values():
            if group._wanted and not group._joins and not group._behind and not (group._resumed and group.name in frame["groups"]):
                group._enter()
        self._wake.set()

    def _lost(self, code: int) -> None:
        """What was sent on the connection may have been done."""
        if self.ended is not None:
            return
        bye = self._bye or {}
        sent = [request for request in self._requests.values() if request.sent]
        for request in sent:
            request.sent, request.unsure = False, True
        code = _CLOSES.get(bye.get("code", ""), code)
        why = RoostError(bye.get("code", f"closed_{code}"), bye.get("reason", f"the server closed the connection ({code})"))
        if code == 1009 and sent:
            # The longest of what was sent it was; it was not done, and the others go on.
            self._settle(max(sent, key=lambda request: len(request.text)), why)
        elif code in (4101, 4102, 4107):
            # Another session, where there is a way to one. A token that makes sessions was given another for the one that it made.
            if not self._get_token and (self._current == self._token if self._token else not self._current):
                return self._end(why)
            self._current = None if self._get_token else self._token
            self._keep(self._storage_key, self._current)
            self._tell("error", why)
        elif not bye["reconnect"] if bye else 4100 <= code < 4200 or 4600 <= code < 4700:
            return self._end(why)
        for request in [request for request in self._requests.values() if request.once]:
            self._late(request)
        if self.state == "connected" and time.monotonic() - self._connected_s > _STEADY_S:
            self._tries = 0

    def _end(self, why: RoostError) -> None:
        if self.ended is not None:
            return
        self.ended = why
        self._keep(self._client_key, self._client)
        for request in list(self._requests.values()):
            self._settle(request, RoostError(why.code, why.message, request.unsure or request.sent))
        for group in self._groups.values():
            group._end(self._end_of_streams())
        self._be("ended")

    def _end_of_streams(self) -> RoostError | None:
        return None if self.ended is None or self.ended.code == "closed" else self.ended

    def _request(self, frame: dict[str, Any]) -> asyncio.Future[dict[str, Any]]:
        """Asks until there is an answer that is more than "later", over as many connections as it takes."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[dict[str, Any]] = loop.create_future()
        if self.ended is not None:
            answer.set_exception(self.ended)
            return answer
        once = "ephemeral" in frame or frame["type"] == "refresh"
        if once and self.state != "connected":
            answer.set_exception(RoostError("unavailable", "there is no connection"))
            return answer
        self._ids += 1
        text = json.dumps({**frame, "id": self._ids})
        request = Request(self._ids, frame["type"], frame.get("group", ""), text, answer, once)
        self._requests[request.id] = request
        # Who joins waits for as long as it takes.
        if request.kind != "join":
            request.timers.append(loop.call_later(_REQUEST_S, self._late, request))
        # Where the caller gives up, nothing is repeated.
        answer.add_done_callback(lambda _: self._forget(request))
        self._wake.set()
        return answer

    def _late(self, request: Request) -> None:
        unsure = request.unsure or request.sent
        code = "unknown_outcome" if unsure else "unavailable"
        self._settle(request, RoostError(code, "there was no answer in time", unsure))

    async def _ask(self, frame: dict[str, Any]) -> dict[str, Any]:
        return await self._request(frame)

    def _repeat(self, request: Request, frame: dict[str, Any]) -> None:
        request.unsure = request.unsure or frame["code"] == "unknown_outcome"
        request.sent, request.held = False, True

        def again() -> None:
            request.held = False
            self._wake.set()

        wait_s = frame["retry_after_ms"] / 1_000 + _jitter(request.tries)
        request.timers.append(asyncio.get_running_loop().call_later(wait_s, again))
        request.tries += 1
        self._wake.set()

    def _settle(self, request: Request, outcome: dict[str, Any] | RoostError) -> None:
        if request.answer.done():
            return
        # At once, so that nothing that comes next is taken for an answer.
        self._forget(request)
        if isinstance(outcome, RoostError):
            request.answer.set_exception(outcome)
        else:
            request.answer.set_result(outcome)

    def _forget(self, request: Request) -> None:
        for timer in request.timers:
            timer.cancel()
        self._requests.pop(request.id, None)
        self._wake.set()


def _jitter(tries: int) -> float:
    return random.random() * min(_WAIT_MAX_S, _WAIT_S * 2.0 ** min(tries, 16))
