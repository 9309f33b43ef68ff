"""Nodes of one process under callgrind, and what it counts."""

import os
import random
import signal
import socket
import subprocess
import time

from callgrind import Counts

START_LIMIT_S = 120
END_LIMIT_S = 20
# What an idle second costs, from this time on after the start: until then maps and plans change.
SETTLE_S = 2
LOOK_S = 3
SETTINGS = {
    # One thread does what a node does: how threads wake each other is no part of what is counted.
    "TOKIO_WORKER_THREADS": "1",
    "ROOST_CLUSTER__SLOTS": "64",
    # Under valgrind, on a busy machine, a node is slow; that is no reason to act.
    "ROOST_TIMING__REPLICA_TIMEOUT_MS": "20000",
    "ROOST_LIMITS__REQUEST_MS": "60000",
    "ROOST_LIMITS__IDLE_S": "3600",
    "ROOST_NODE__WATCHDOG_MS": "0",
    # Publishers are no subscribers, and nobody is told who comes.
    "ROOST_NAMESPACES__DEFAULT__PUBLISH": "any",
    "ROOST_NAMESPACES__DEFAULT__PRESENCE": "false",
    "ROOST_NAMESPACES__SMALL__PUBLISH": "any",
    "ROOST_NAMESPACES__SMALL__PRESENCE": "false",
    "ROOST_NAMESPACES__SMALL__COMPRESS": "true",
    "ROOST_LIMITS__OPERATIONS_PER_S": "1000000",
    "ROOST_LIMITS__OPERATIONS_BURST": "1000000",
    "ROOST_LIMITS__NEW_GROUPS_PER_S": "100000",
    "ROOST_LIMITS__PUBLISH_BYTES_PER_S": "1000000000",
    "ROOST_LOG": "error",
    "NO_COLOR": "1",
}
# Waiting shall cost little: few partitions, and nodes that say little to each other while nothing happens.
SELDOM = {
    "ROOST_CLUSTER__SLOTS": "6",
    "ROOST_TIMING__GOSSIP_INTERVAL_MS": "2000",
    "ROOST_TIMING__KEEP_ALIVE_MS": "1000",
    "ROOST_TIMING__STALE_AFTER_MS": "5000",
    "ROOST_TIMING__STEWARD_INTERVAL_MS": "2000",
}


class Failed(Exception):
    """What the user is to read, with how to mend it."""


class Nodes:
    """`roost dev` under callgrind, in a folder of its own. It ends with the `with` that holds it."""

    def __init__(self, roost, count, folder, settings, secure=False):
        settings = settings | certificate(folder) if secure else settings
        self.folder, self.dumps, self.log = folder, 0, folder / "log"
        self.ports = free_ports(count)
        # Pipes in the folder, so that they go with it.
        self.prefix = f"--vgdb-prefix={folder}/vgdb"
        callgrind = ["valgrind", "--tool=callgrind", "--collect-systime=yes", self.prefix]
        callgrind += [f"--callgrind-out-file={folder}/counts"]
        dev = ["dev", "--nodes", count, "--port", self.ports[0], "--data", folder / "data"]
        others = {name: value for name, value in os.environ.items() if not name.startswith("ROOST_")}
        try:
            with open(self.log, "wb") as log:
                self.process = subprocess.Popen(
                    [*callgrind, roost, *map(str, dev)],
                    env=others | SETTINGS | settings,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
        except FileNotFoundError:
            raise Failed("valgrind is missing: scripts/setup installs it") from None

    def __enter__(self):
        try:
            until = time.monotonic() + START_LIMIT_S
            while b"\na token" not in self.log.read_bytes():
                if self.process.poll() is not None or time.monotonic() > until:
                    raise Failed(f"the nodes do not start under valgrind:\n{self.log.read_text()[-3000:]}")
                time.sleep(0.05)
            time.sleep(SETTLE_S)
            self.idle, seconds = self.during(lambda: time.sleep(LOOK_S))
            self.idle = [value / seconds for value in self.idle.values()]
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(END_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def during(self, play):
        """What was counted while this was played, and how many seconds it took."""
        self.counts()
        begin = time.monotonic()
        play()
        seconds = time.monotonic() - begin
        return self.counts(), seconds

    def counts(self):
        """What was counted since the last time."""
        self.dumps += 1
        file = self.folder / f"counts.{self.dumps}"
        ask = ["vgdb", self.prefix, f"--pid={self.process.pid}", "dump"]
        said = subprocess.run(ask, capture_output=True, text=True, check=False)
        if not file.exists():
            log = self.log.read_text()[-3000:]
            raise Failed(f"callgrind does not say what it counted: {said.stdout}{said.stderr}\n{log}")
        return Counts(file)


def certificate(folder):
    """Makes one, and gives the settings that name it."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "60"]
    made += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-out", cert, "-keyout", key]
    try:
        subprocess.run(list(map(str, made)), check=True, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        raise Failed(f"openssl makes no certificate: {error}") from None
    return {"ROOST_NODE__HTTP_TLS_CERT": str(cert), "ROOST_NODE__HTTP_TLS_KEY": str(key)}


def free_ports(count):
    """Ports in a row that nobody has at the moment."""
    while True:
        first = random.randrange(10_000, 30_000)
        sockets = []
        try:
            for port in range(first, first + count):
                sockets.append(socket.create_server(("127.0.0.1", port)))
        except OSError:
            continue
        finally:
            for each in sockets:
                each.close()
        return range(first, first + count)
