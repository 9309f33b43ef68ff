"""One process that outlives the command which started it: its pid file, its log, its end.

For scripts/cassandra and scripts/cluster. A pid file may be stale and its number may belong to somebody else by now, so
nothing is signalled before its command line was seen to hold the `mark`: an argument that no other process has.
"""

import contextlib
import errno
import fcntl
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

LOG_BYTES = 32 << 20  # A log that is longer is set aside at the next start.
KILL_LIMIT_S = 10  # SIGKILL waits for the disk at worst.


class Failed(Exception):
    """What the user is to read, with how to mend it."""


def say(text):
    print(text, flush=True)


class Process:
    """`name` is for people; `folder` holds `pid` and `log`; `mark` is an argument that names its folder."""

    def __init__(self, name, folder, mark):
        self.name, self.folder, self.mark = name, pathlib.Path(folder), mark
        self.pid_file, self.log_file = self.folder / "pid", self.folder / "log"
        self.child = None

    def pid(self):
        """The process id, or None where it does not run (also where the pid file tells of another process)."""
        if self.child is not None:  # It is ours, and a zombie once it ended, until it is asked for.
            return self.child.pid if self.child.poll() is None else None
        try:
            pid = int(self.pid_file.read_text())
        except (OSError, ValueError):
            return None
        return pid if pid > 0 and self.mark in arguments(pid) else None

    def state(self):
        """running, paused or stopped."""
        pid = self.pid()
        if pid is None:
            return "stopped"
        return "paused" if stat(pid)[0] in "Tt" else "running"

    def resident_mb(self):
        """Memory in use, in MiB."""
        pid = self.pid()
        return int(stat(pid)[21]) * os.sysconf("SC_PAGE_SIZE") >> 20 if pid else 0

    def start(self, command, env=None):
        """Starts it in a session of its own, so that Ctrl-C or the end of the caller's terminal does not reach it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.log_file.exists() and self.log_file.stat().st_size > LOG_BYTES:
            self.log_file.replace(self.folder / "log.old")
        try:
            with open(self.log_file, "ab") as log:
                self.log_begin = log.tell()
                self.child = subprocess.Popen(
                    command,
                    cwd=self.folder,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        except OSError as error:
            raise Failed(f"{self.name}: {command[0]} cannot be started: {error.strerror}") from None
        part = self.folder / "pid.part"
        part.write_text(f"{self.child.pid}\n")
        part.replace(self.pid_file)

    def signal(self, number):
        """Sends a signal if it runs, and says whether."""
        pid = self.pid()
        if pid is None:
            return False
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
        except PermissionError:
            raise Failed(
                f"{self.name} (pid {pid}) belongs to another user: do this as the one who started it"
            ) from None
        return True

    def forget(self):
        """Removes the pid file of a process that is gone."""
        self.pid_file.unlink(missing_ok=True)

    def tail(self, lines=15):
        """The last lines that it logged since this command started it, or at all; without Java's stack frames."""
        try:
            with open(self.log_file, "rb") as log:
                log.seek(max(getattr(self, "log_begin", 0), self.log_file.stat().st_size - 32_000))
                text = log.read().decode(errors="replace").splitlines()
                last = [line for line in text if not line.startswith(("\tat ", "\t... "))][-lines:]
        except OSError:
            last = []
        return "\n".join(f"  | {line[:240]}" for line in last) or "  | (nothing)"


def stop(processes, limit_s):
    """SIGTERM to all at once, SIGKILL to those that are there after `limit_s`. Gives those that had to be killed."""
    asked = [process for process in processes if process.signal(signal.SIGTERM)]
    for process in asked:
        process.signal(signal.SIGCONT)  # A paused one would not see the other signal.
    wait_gone(asked, limit_s, "stopping")
    left = [process for process in asked if process.signal(signal.SIGKILL)]
    if not wait_gone(left, KILL_LIMIT_S, "killing"):
        raise Failed(f"{names(left)} did not end after SIGKILL: the disk or the kernel is stuck")
    for process in processes:
        process.forget()
    return left


def kill(process):
    """SIGKILL, as a crash would."""
    process.signal(signal.SIGKILL)
    if not wait_gone([process], KILL_LIMIT_S, "killing"):
        raise Failed(f"{process.name} did not end after SIGKILL: the disk or the kernel is stuck")
    process.forget()


def resume(process):
    """SIGCONT, and says whether it was needed."""
    paused = process.state() == "paused"
    process.signal(signal.SIGCONT)
    say(f"{process.name}: {'resumed' if paused else 'runs already'}")


def act(process, action, limit_s, bring_up, command):
    """`node N start|stop|kill|pause|resume` of either script. `bring_up()` starts the process and waits until it is
    ready, `command(action)` is how the user says the same."""
    state = process.state()
    if action in ("pause", "resume") and state == "stopped":
        raise Failed(f"{process.name} does not run: `{command('start')}`")
    if action == "start" and state == "paused":
        raise Failed(f"{process.name} is paused: `{command('resume')}`")
    if action == "start":
        if state == "stopped":
            bring_up()
        say(f"{process.name}: {'runs' if state == 'stopped' else 'runs already'}, pid {process.pid()}")
    elif action == "pause":
        process.signal(signal.SIGSTOP)
        say(f"{process.name}: paused (SIGSTOP)")
    elif action == "resume":
        resume(process)
    elif state == "stopped":
        say(f"{process.name}: does not run")
    elif action == "kill":
        kill(process)
        say(f"{process.name}: killed (SIGKILL)")
    else:
        tell_stopped([process], stop([process], limit_s), limit_s)


def tell_stopped(processes, killed, limit_s):
    for process in processes:
        say(f"{process.name}: {f'had to be killed after {limit_s} s' if process in killed else 'stopped'}")


def wait_gone(processes, limit_s, verb):
    def left():
        return [process for process in processes if process.pid() is not None]

    with Progress() as progress:
        begin = time.monotonic()
        while left() and time.monotonic() - begin < limit_s:
            progress.show(f"{verb} {names(left())}")
            time.sleep(0.05)
    return not left()


def names(processes):
    return ", ".join(process.name for process in processes)


class Progress:
    """A line that is written over on a terminal; elsewhere one line each ten seconds."""

    def __init__(self):
        self.terminal, self.begin, self.last, self.shown = sys.stderr.isatty(), time.monotonic(), 0.0, False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.shown and self.terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def show(self, text):
        now = time.monotonic()
        wait = (0.2 if self.shown else 0.5) if self.terminal else 10
        if now - max(self.last, self.begin) < wait:
            return
        self.last, self.shown = now, True
        text = f"{text} … {now - self.begin:.0f} s"
        if self.terminal:
            width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
            print(f"\r\033[K{text[: width - 1]}", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def lock(path):
    """One command at a time changes what belongs to a lock file; another one waits."""
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise Failed(f"{path} cannot be written ({error.strerror}): choose another folder") from None
    with file, Progress() as progress:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                progress.show(f"another command is at work in {folder}: waiting for it")
                time.sleep(0.2)
        yield


def check_free(address, port, what, mend, kind=socket.SOCK_STREAM):
    """Fails with who has the port, and how to mend it."""
    with socket.socket(socket.AF_INET, kind) as probe:
        if kind == socket.SOCK_STREAM:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # Connections that just ended are no obstacle.
        try:
            probe.bind((address, port))
            return
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise Failed(f"{address} is no address of this machine: {mend}") from None
            if error.errno == errno.EACCES:
                raise Failed(f"{address}:{port} ({what}) may only be opened by root: {mend}") from None
            if error.errno != errno.EADDRINUSE:
                raise Failed(f"{address}:{port} ({what}) cannot be opened: {error.strerror}") from None
    raise Failed(f"{address}:{port} ({what}) is in use{holder(port, kind)}: stop that, or {mend}")


def holder(port, kind):
    """Who listens on a port of any address, as far as this user may see."""
    table = "tcp" if kind == socket.SOCK_STREAM else "udp"
    inodes = set()
    for name in (table, f"{table}6"):
        with contextlib.suppress(OSError):
            for line in pathlib.Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
                fields = line.split()
                if int(fields[1].rpartition(":")[2], 16) == port and (table == "udp" or fields[3] == "0A"):
                    inodes.add(f"socket:[{fields[9]}]")
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            for file in os.scandir(f"/proc/{pid}/fd"):
                if os.readlink(file.path) in inodes:
                    words = arguments(int(pid))
                    ours = [
                        word
                        for word in words
                        if word.startswith("-Dcassandra.storagedir=") or word.endswith("node.toml")
                    ]
                    return f" by pid {pid} ({' … '.join([os.path.basename(words[0]), *ours]) if words else '?'})"
    return ""


def arguments(pid):
    """The command line of a process; empty where there is none, or only a zombie. A process that begins (exec) or ends
    (the first of its threads is gone, the others still hold its ports) has none either: that is waited for."""
    words = ""
    for _ in range(200):
        try:
            words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            if words or (stat(pid)[0] in "ZX0" and len(os.listdir(f"/proc/{pid}/task")) == 1):
                break
        except OSError:
            return []
        time.sleep(0.01)
    return words.rstrip("\0").split("\0") if words else []


def stat(pid):
    """The fields of /proc/PID/stat after the name (which may hold spaces); zeros where there is no such process."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["0"] * 50


def run(main):
    """Runs a script's main: what went wrong is told without a traceback, and the exit code says that it did."""
    name = f"scripts/{os.path.basename(sys.argv[0])}"
    try:
        sys.exit(main())
    except Failed as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted; what was started goes on: see `status`, `stop`", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:  # A full disk, a folder that may not be written: the error names it.
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(1)
