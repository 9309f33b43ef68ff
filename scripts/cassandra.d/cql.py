"""As much of CQL's binary protocol (version 4) as it takes to ask a Cassandra node whether it is ready, and what it has.

A frame is: version, flags, stream (2 bytes), opcode, length (4 bytes), body. The whole is in Cassandra's
doc/native_protocol_v4.spec.
"""

import contextlib
import dataclasses
import pathlib
import socket
import ssl
import struct

ERROR, STARTUP, READY, OPTIONS, SUPPORTED, QUERY, RESULT = 0x00, 0x01, 0x02, 0x05, 0x06, 0x07, 0x08
AUTHENTICATE, AUTH_RESPONSE, AUTH_SUCCESS = 0x03, 0x0F, 0x10
ONE, TWO, ALL = 0x0001, 0x0002, 0x0005
SKIP_METADATA = 0x02


class CqlError(Exception):
    """The node does not answer, or not as wished."""


@dataclasses.dataclass
class Login:
    """The way into a node that wants TLS and a password: the file of the CA, and a role."""

    ca: pathlib.Path
    user: str
    password: str


@contextlib.contextmanager
def connect(address, port, login=None, limit_s=4):
    """A connection that has asked for the node's options, said hello, and logged in."""
    try:
        with contextlib.ExitStack() as stack:
            stream = stack.enter_context(socket.create_connection((address, port), limit_s))
            if login:
                tls = ssl.create_default_context(cafile=login.ca)
                stream = stack.enter_context(tls.wrap_socket(stream, server_hostname=address))
            expect(stream, OPTIONS, b"", SUPPORTED)
            hello = struct.pack(">H", 1) + text("CQL_VERSION") + text("3.0.0")
            expect(stream, STARTUP, hello, AUTHENTICATE if login else READY)
            if login:
                # SASL's PLAIN.
                token = f"\0{login.user}\0{login.password}".encode()
                expect(stream, AUTH_RESPONSE, struct.pack(">i", len(token)) + token, AUTH_SUCCESS)
            yield stream
    except ConnectionRefusedError:
        raise CqlError("does not answer yet") from None
    except ssl.SSLCertVerificationError as error:
        raise CqlError(f"its certificate is not right: {error.verify_message}") from None
    except OSError as error:
        raise CqlError(error.strerror or str(error)) from None


def query(stream, statement, consistency=ONE):
    """The rows of the answer, each a list of bytes or None."""
    statement = statement.encode()
    body = struct.pack(">i", len(statement)) + statement + struct.pack(">HB", consistency, SKIP_METADATA)
    result = Reader(expect(stream, QUERY, body, RESULT))
    if result.number() != 2:
        return []
    _flags, columns, rows = result.number(), result.number(), result.number()
    return [[result.value() for _ in range(columns)] for _ in range(rows)]


def expect(stream, opcode, body, wanted):
    stream.sendall(struct.pack(">BBHBi", 4, 0, 0, opcode, len(body)) + body)
    _version, _flags, _stream, answer, length = struct.unpack(">BBHBi", receive(stream, 9))
    body = receive(stream, length)
    if answer == ERROR:
        raise CqlError(body[6:].decode(errors="replace"))
    if answer != wanted:
        raise CqlError(f"answer 0x{answer:02x} to 0x{opcode:02x}: is this the Cassandra that was started here?")
    return body


def receive(stream, length):
    data = b""
    while len(data) < length:
        more = stream.recv(length - len(data))
        if not more:
            raise CqlError("the connection was closed")
        data += more
    return data


def text(value):
    return struct.pack(">H", len(value)) + value.encode()


class Reader:
    """Takes one value after another."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def number(self):
        (value,) = struct.unpack_from(">i", self.data, self.at)
        self.at += 4
        return value

    def value(self):
        length = self.number()
        if length < 0:
            return None
        self.at += length
        return self.data[self.at - length : self.at]
