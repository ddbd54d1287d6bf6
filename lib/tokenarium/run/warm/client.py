"""Find or start the fork server and ask it for a kernel."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from tokenarium.run.warm import ColdKernel, identity

ANSWER_SECONDS = 300.0  # the first answer waits for the server's imports
SERVER = ("-m", "tokenarium.run.warm.server")
LAUNCHER = ("-m", "ipykernel_launcher", "-f")


class WarmProcess:
    """A forked kernel as subprocess.Popen would show it; the fork server is its parent and tells its exit status.

    The process id stays taken until the status has been read, also when the kernel is gone.
    """

    stdin = stdout = stderr = None

    def __init__(self, pid: int, pidfd: int, connection: socket.socket):
        self.pid, self.returncode = pid, None
        self._pidfd, self._connection = pidfd, connection

    def fileno(self) -> int:
        """A descriptor that can be read when the kernel has ended; -1 once the status is known."""
        return self._pidfd if self.returncode is None else -1

    def poll(self) -> int | None:
        """Exit status, -N for signal N; None while it runs; 255 when the fork server died before it could tell."""
        return self.wait(0) if self.returncode is None else self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for the end, at most `timeout` seconds; as `poll`."""
        if self.returncode is None:
            ended = select.poll()
            ended.register(self._pidfd, select.POLLIN)
            if ended.poll(None if timeout is None else 1000 * timeout):
                self.returncode = self._status()
                os.close(self._pidfd)
                self._connection.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal to the kernel alone, not to its process group."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)

    def _status(self) -> int:
        self._connection.settimeout(5)
        try:
            return json.loads(self._connection.recv(1024))["status"]
        except (OSError, ValueError, KeyError):
            return 255


def ask(
    command: Sequence[str],
    env: Mapping[str, str],
    cwd: str | None = None,
    stdin: Any = None,
    stdout: Any = None,
    stderr: Any = None,
    **others: Any,
) -> socket.socket:
    """Send the fork server the request for a kernel; the answer comes on the socket that is returned, see `answer`.

    Takes what subprocess.Popen would get. Raises ColdKernel for anything that only a process of its own can have.
    """
    if identity.switched_off():
        raise ColdKernel(f"{identity.SWITCH}=off")
    if not hasattr(os, "pidfd_open") or not sys.platform.startswith("linux"):
        raise ColdKernel("this system has no pidfd")
    plain = tuple(command[:4]) == (sys.executable, *LAUNCHER) and len(command) > 4
    if not plain or not all(argument.startswith("--") for argument in command[5:]):
        raise ColdKernel(f"{' '.join(command)} is not this Python's plain kernel")
    if others := [name for name, value in others.items() if value]:
        raise ColdKernel(f"a kernel with {', '.join(others)} is a process of its own")
    if any(not os.path.isabs(entry) for entry in env.get("PYTHONPATH", "/").split(os.pathsep)):
        raise ColdKernel("PYTHONPATH depends on the working directory")
    request = {
        "arguments": list(command[3:]),
        "cwd": os.path.abspath(cwd or "."),
        "env": {**env, "JPY_PARENT_PID": str(os.getpid())},
        "umask": _umask(),
    }
    with contextlib.ExitStack() as stack:
        streams = [_descriptor(stack, stream, default) for stream, default in ((stdout, 1), (stderr, 2))]
        try:
            connection = _connect(env)
            connection.settimeout(10)
            message = json.dumps(request).encode() + b"\n"
            sent = socket.send_fds(connection, [message], streams)
            connection.sendall(message[sent:])
            return connection
        except (OSError, subprocess.SubprocessError) as error:
            raise ColdKernel(f"no fork server: {error}") from None


def answer(connection: socket.socket) -> WarmProcess:
    """The kernel that was asked for. Raises ColdKernel with the server's reason when there is none."""
    try:
        message, descriptors, _, _ = socket.recv_fds(connection, 65536, 1)
        reply = json.loads(message)
        if "pid" in reply:
            return WarmProcess(reply["pid"], descriptors[0], connection)
        reason = reply["cold"]
    except (OSError, ValueError, LookupError):
        reason = "the fork server ended"
    connection.close()
    raise ColdKernel(reason)


def retire(folder: Path, pattern: str = "*") -> None:
    """Ask fork servers to end as soon as their kernels have ended; those with a socket of this name below `folder`."""
    for path in folder.glob(f"{pattern}.socket"):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            connection.sendall(b'{"retire": true}\n')


def _connect(env: Mapping[str, str]) -> socket.socket:
    folder, place = identity.runtime_folder(), identity.place()
    path = folder / f"{place}-{identity.code(env)}.socket"
    with FileLock(folder / f"{place}.lock", timeout=20):
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            path.unlink(missing_ok=True)
            retire(folder, f"{place}-*")  # one at a time: it holds hundreds of megabytes
            _start(path, env)
            connection.connect(str(path))
    return connection


def _start(path: Path, env: Mapping[str, str]) -> None:
    """Start a server on a socket that listens already: who connects waits for its imports."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(64)
        subprocess.run(
            [sys.executable, *SERVER, str(listener.fileno()), str(path)],
            cwd="/",
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[listener.fileno()],
            start_new_session=True,
            timeout=60,
            check=True,
        )


def _descriptor(stack: contextlib.ExitStack, stream: Any, default: int) -> int:
    if stream == subprocess.DEVNULL:
        return stack.enter_context(open(os.devnull, "w")).fileno()
    if stream == subprocess.PIPE or stream == subprocess.STDOUT:
        raise ColdKernel("its output goes to a pipe of its own")
    number = default if stream is None else stream if isinstance(stream, int) else stream.fileno()
    try:
        os.fstat(number)
    except OSError:
        return stack.enter_context(open(os.devnull, "w")).fileno()
    return number


def _umask() -> int:
    status = Path("/proc/self/status").read_text()
    return next((int(line.split()[1], 8) for line in status.splitlines() if line.startswith("Umask:")), 0o022)
