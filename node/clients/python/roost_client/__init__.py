"""Roost's client for asyncio: one connection, kept up over lost sockets and lost nodes. README.md says how it is used."""

from ._connection import Connection, State, connect
from ._events import (
    Counts,
    Event,
    Gap,
    History,
    Joined,
    Left,
    Live,
    Member,
    Members,
    Message,
    Position,
    Presence,
    Published,
    Reset,
    RoostError,
    Sender,
    Stale,
)
from ._group import Group, Stream

__all__ = [
    "Connection",
    "Counts",
    "Event",
    "Gap",
    "Group",
    "History",
    "Joined",
    "Left",
    "Live",
    "Member",
    "Members",
    "Message",
    "Position",
    "Presence",
    "Published",
    "Reset",
    "RoostError",
    "Sender",
    "Stale",
    "State",
    "Stream",
    "connect",
]
