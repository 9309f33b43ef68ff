"""Clients that spend little: blocking, one frame at a time, whatever has come already in one read."""

import json
import os
import socket
import ssl
import struct
import zlib

LIMIT_S = 60


class Client:
    """A session on a node. What it is told must be in order and whole: it fails where it is not."""

    EXTENSIONS = b""

    def __init__(self, port, groups=()):
        self.socket = self.open(port)
        self.buffer, self.place, self.offsets, self.answers = b"", 0, {}, []
        self.compressed = 0
        self.socket.sendall(
            b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n" + self.EXTENSIONS + b"\r\n"
        )
        while b"\r\n\r\n" not in self.buffer:
            self.fill()
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        if b" 101 " not in head.split(b"\r\n")[0]:
            raise RuntimeError(f"the node answered {head.decode()} {self.buffer.decode(errors='replace')}")
        self.token = self.ask({"type": "hello"}, "welcome")["token"]
        for group in groups:
            self.offsets[group] = self.ask({"type": "join", "group": group}, "joined")["offset"]

    def open(self, port):
        opened = socket.create_connection(("127.0.0.1", port), LIMIT_S)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return opened

    def fill(self):
        more = self.socket.recv(1 << 18)
        if not more:
            raise RuntimeError(f"the node closed the connection; the last that it said: {self.answers[-1:]}")
        self.buffer = self.buffer[self.place :] + more
        self.place = 0

    def frame(self):
        """The next frame of text, or None for any other."""
        while True:
            buffer, at = self.buffer, self.place
            have = len(buffer) - at
            if have >= 2:
                length, head = buffer[at + 1] & 127, 2
                if length == 126 and have >= 4:
                    length, head = struct.unpack_from("!H", buffer, at + 2)[0], 4
                elif length == 127 and have >= 10:
                    length, head = struct.unpack_from("!Q", buffer, at + 2)[0], 10
                if (length < 126 or head > 2) and have >= head + length:
                    self.place = at + head + length
                    payload = buffer[at + head : self.place]
                    if buffer[at] & 0x40:
                        payload = zlib.decompress(payload + b"\0\0\xff\xff\1\0\0\xff\xff", -15)
                        self.compressed += 1
                    return json.loads(payload) if buffer[at] & 15 == 1 else None
            self.fill()

    def send(self, *frames):
        """All of them in one write."""
        out = bytearray()
        for frame in frames:
            data, mask = json.dumps(frame, separators=(",", ":")).encode(), os.urandom(4)
            size = bytes([128 | len(data)]) if len(data) < 126 else b"\xfe" + struct.pack("!H", len(data))
            out += b"\x81" + size + mask + bytes(byte ^ mask[at & 3] for at, byte in enumerate(data))
        self.socket.sendall(out)

    def take(self):
        """Takes a frame in; true for a message, which must be the group's next."""
        frame = self.frame()
        if frame is None:
            return False
        if frame["type"] == "message" and frame.get("ephemeral"):
            return True
        if frame["type"] != "message":
            # Of itself a node tells of the session's own group, of what is late on a busy machine, and of what is wrong.
            if "id" in frame or frame["type"] not in ("joined", "stale", "live"):
                self.answers.append(frame)
            return False
        group, offset = frame["group"], frame["offset"]
        if offset != self.offsets[group] + 1:
            raise RuntimeError(f"offset {offset} of {group} came after {self.offsets[group]}")
        self.offsets[group] = offset
        return True

    def messages(self, count):
        """Reads until this number of messages have come."""
        while count:
            count -= self.take()

    def answered(self, count, kind):
        """Reads until this number of answers of this kind have come; any other than that is an error."""
        while len(self.answers) < count:
            self.take()
        answers, self.answers = self.answers, []
        others = [answer for answer in answers if answer["type"] != kind]
        if others or len(answers) != count:
            raise RuntimeError(f"{len(answers)} answers, {others} among them, instead of {count} times {kind}")
        return answers

    def ask(self, frame, kind):
        self.send({**frame, "id": 1})
        return self.answered(1, kind)[0]

    def close(self):
        self.socket.close()


class Compressing(Client):
    """The same, that offers compression; all messages must come compressed."""

    EXTENSIONS = b"Sec-WebSocket-Extensions: permessage-deflate\r\n"

    def messages(self, count):
        before = self.compressed
        super().messages(count)
        if self.compressed < before + count:
            raise RuntimeError(f"{self.compressed - before} of {count} messages were compressed")


class Secure(Client):
    """The same over TLS. Whose certificate it is does not matter here."""

    CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    CONTEXT.check_hostname, CONTEXT.verify_mode = False, ssl.CERT_NONE

    def open(self, port):
        return self.CONTEXT.wrap_socket(super().open(port))


class Reader(Client):
    """A reader of server-sent events of one group."""

    def __init__(self, port, groups):
        (group,) = groups
        token = Client(port).token
        self.socket = self.open(port)
        self.buffer, self.place, self.offsets, self.answers = b"", 0, {}, []
        request = f"GET /v1/groups/{group}/events HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n\r\n"
        self.socket.sendall(request.encode())
        while (joined := self.frame()) is None or joined["type"] != "joined":
            pass
        self.offsets[group] = joined["offset"]

    def frame(self):
        """The next event's data, or None for lines without any."""
        while (end := self.buffer.find(b"\n", self.place)) < 0:
            self.fill()
        line, self.place = self.buffer[self.place : end], end + 1
        return json.loads(line[6:]) if line.startswith(b"data: ") else None
