"""What is played: on nodes that are warm, by clients outside of them, on the first node and the last."""

import dataclasses
import time
from collections.abc import Callable

from client import Client, Compressing, Reader, Secure

DATA = "x" * 126  # 128 bytes of JSON.
BURST = 16


@dataclasses.dataclass
class Scene:
    """`prepare`, given the nodes' ports, returns what plays a number of rounds. A round has `units` of what is counted."""

    about: str
    unit: str
    units: int
    rounds: int
    prepare: Callable
    nodes: int = 1
    # How many times the margin its ceilings get.
    loose: int = 1
    # Waiting itself is what is counted: nothing is taken off for it, and the nodes' timers are as they come.
    waits: bool = False
    # Over TLS, with a certificate made for it.
    secure: bool = False


def fan_out(subscribers, burst, subscriber=Client, group="hall", publisher=Client, **more):
    """A publisher and its subscribers: the next burst when all have all of the last one."""

    def prepare(ports):
        clients = [subscriber(ports[-1], [group]) for _ in range(subscribers)]
        publishes = publisher(ports[0])

        def play(rounds):
            for _ in range(rounds):
                publishes.send(*[{**publish(group, number), **more} for number in range(burst)])
                for client in clients:
                    client.messages(burst)
                publishes.answered(burst, "published")

        return play

    return prepare


def groups(count, subscribers):
    """Groups with a publisher each: all publish, then all is read."""

    def prepare(ports):
        clients = [Client(ports[-1], [f"room-{group}"]) for group in range(count) for _ in range(subscribers)]
        publishers = [Client(ports[0]) for _ in range(count)]

        def play(rounds):
            for _ in range(rounds):
                for group, publisher in enumerate(publishers):
                    publisher.send(publish(f"room-{group}", 1))
                for client in clients:
                    client.messages(1)
                for publisher in publishers:
                    publisher.answered(1, "published")

        return play

    return prepare


def many_groups(count):
    """One publisher to many groups at once, each with the same subscriber."""

    def prepare(ports):
        names = [f"room-{group}" for group in range(count)]
        client, publisher = Client(ports[-1], names), Client(ports[0])

        def play(rounds):
            for _ in range(rounds):
                publisher.send(*[publish(name, 1) for name in names])
                client.messages(count)
                publisher.answered(count, "published")

        return play

    return prepare


def connects(client):
    """One after the other, to a group that is there already."""

    def prepare(ports):
        clients = [client(ports[-1], ["hall"])]

        def play(rounds):
            clients.extend(client(ports[-1], ["hall"]) for _ in range(rounds))

        return play

    return prepare


def waiting(ports):
    """A session in a group, and nothing happens, for a second a round."""
    client = Client(ports[0], ["hall"])

    def play(rounds):
        time.sleep(rounds)
        client.ask({"type": "heartbeat"}, "heartbeat")

    return play


def publish(group, number):
    return {"type": "publish", "group": group, "data": DATA, "id": number}


SCENES = {
    "publish": Scene("one message in flight, one delivery, the answer", "publish", 1, 400, fan_out(1, 1)),
    "fanout": Scene("one message in flight, 100 subscribers", "delivery", 100, 150, fan_out(100, 1)),
    "events": Scene("the same, readers of server-sent events", "delivery", 100, 150, fan_out(100, 1, Reader)),
    "deflated": Scene("the same, compressed", "delivery", 100, 150, fan_out(100, 1, Compressing, "small:hall")),
    "ephemeral": Scene(
        "one message in flight that nobody keeps, one delivery, the answer", "publish", 1, 400, fan_out(1, 1, ephemeral=True)
    ),
    "burst": Scene(f"{BURST} messages in flight, 100 subscribers", "delivery", 100 * BURST, 12, fan_out(100, BURST)),
    "groups": Scene("30 groups of 10, each with a publisher", "delivery", 300, 30, groups(30, 10)),
    "connect": Scene("a connection, a new session, a join; its rows in the store", "connect", 1, 100, connects(Client)),
    "secure": Scene("one message in flight, 100 subscribers, TLS", "delivery", 100, 150, fan_out(100, 1, Secure, publisher=Secure), secure=True),
    "secure-connect": Scene("a connection over TLS, a new session, a join", "connect", 1, 100, connects(Secure), secure=True),
    "cluster": Scene("64 groups over three nodes, two copies, one delivery each", "publish", 64, 20, many_groups(64), 3, 3),
    "idle": Scene("a node with 64 slots to which nothing happens", "second", 1, 5, waiting, loose=2, waits=True),
}
