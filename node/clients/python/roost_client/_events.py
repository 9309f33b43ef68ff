"""What a program is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


class RoostError(Exception):
    """Why something was refused, or the connection is over."""

    def __init__(self, code: str, message: str, unsure: bool = False, detail: list[dict[str, Any]] | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        """For programs: `forbidden`, `displaced`, …"""
        self.message = message
        """For people."""
        self.unsure = unsure
        """An earlier attempt of the same request may have been carried out."""
        self.detail = detail or []
        """What is wrong with the request, as `{loc, msg, type}`."""


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a group: offsets count from 1 within an epoch, which changes when the group's messages were lost."""

    epoch: str
    offset: int

    def to_json(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "offset": self.offset}


@dataclass(frozen=True, slots=True)
class Sender:
    session: str
    user: str


@dataclass(frozen=True, slots=True)
class Message:
    """A message; each once, in order. Of those that are `ephemeral` some may be lost: they have no place in the group."""

    group: str
    epoch: str
    offset: int
    """From 1. 0, and no epoch, where it is ephemeral."""
    data: Any
    sender: Sender | None
    """None for what a backend has published."""
    at_ms: int
    ephemeral: bool = False

    @property
    def position(self) -> Position | None:
        """None where it is ephemeral: it moves nothing."""
        return None if self.ephemeral else Position(self.epoch, self.offset)


@dataclass(frozen=True, slots=True)
class Gap:
    """The messages `first` to `last` are not to be had any more."""

    group: str
    epoch: str
    first: int
    last: int
    reason: str


@dataclass(frozen=True, slots=True)
class Reset:
    """The group begins anew after this position: messages may be lost."""

    group: str
    epoch: str
    offset: int
    reason: str


@dataclass(frozen=True, slots=True)
class Stale:
    """What was told may not be all: the group cannot be heard at the moment."""

    group: str


@dataclass(frozen=True, slots=True)
class Live:
    """The group is heard again, and nothing up to here is missing."""

    group: str
    epoch: str
    offset: int


@dataclass(frozen=True, slots=True)
class Presence:
    """Somebody who is in a group."""

    session: str
    user: str
    info: Any


@dataclass(frozen=True, slots=True)
class Member:
    """Somebody came, went, or has other attributes."""

    group: str
    event: Literal["join", "leave", "update"]
    member: Presence


@dataclass(frozen=True, slots=True)
class Counts:
    """How many are there, where the namespace tells that instead of who: sessions, different users, sessions without a user."""

    group: str
    sessions: int
    users: int
    anonymous: int


@dataclass(frozen=True, slots=True)
class Joined:
    """Joined, for the first time or again; with `recovered` everything since the last position follows."""

    group: str
    epoch: str
    offset: int
    recovered: bool


@dataclass(frozen=True, slots=True)
class Left:
    """Left; with a `reason` where nobody here asked for it."""

    group: str
    reason: str | None


Event = Message | Gap | Reset | Stale | Live | Member | Counts | Joined | Left


@dataclass(frozen=True, slots=True)
class Published:
    """Where a message stands, and how many nodes hold it."""

    epoch: str
    offset: int
    copies: int


@dataclass(frozen=True, slots=True)
class History:
    epoch: str | None
    offset: int
    complete: bool
    """Nothing is missing between `since` and the first message; with `last`, none of so many was left out."""
    messages: list[Message]


@dataclass(frozen=True, slots=True)
class Members:
    members: list[Presence]
    more: bool


def message(group: str, epoch: str, frame: dict[str, Any]) -> Message:
    """Of a frame, or of an item of a history."""
    sender = frame.get("from")
    return Message(
        group,
        epoch,
        frame.get("offset", 0),
        frame["data"],
        Sender(sender["session"], sender["user"]) if sender else None,
        frame["at_ms"],
        "ephemeral" in frame,
    )


def presence(frame: dict[str, Any]) -> Presence:
    return Presence(frame["session"], frame["user"], frame["info"])
