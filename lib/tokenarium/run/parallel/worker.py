"""The commands of one stage, run where Ray put them, in a process group that never outlives its worker."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

GRACE = 5.0  # seconds that an interrupted command has to leave by itself
TICK = 0.2  # Ray's cancel is noticed between two waits
GRANTED = ("CUDA_VISIBLE_DEVICES",)  # what Ray tells a worker about the devices that it may use


@dataclass(frozen=True)
class Task:
    """Commands of a stage, as argument lists, with the folder and environment that DVC gives them, and their log."""

    name: str
    commands: tuple[tuple[str, ...], ...]
    folder: str
    environment: dict[str, str]
    log: str


@dataclass(frozen=True)
class Outcome:
    """How a stage's commands ended: seconds, and one line that says what went wrong, or None."""

    seconds: float
    error: str | None = None


def run(task: Task, gpus: bool = False) -> Outcome:
    """Run the commands one after the other until one fails; what they print goes to the log.

    An interrupt (Ctrl-C, Ray's cancel) goes on to the process group of the command, which is killed when it stays
    longer than GRACE, and is raised again.
    """
    environment = dict(task.environment)
    if gpus:
        environment |= {name: os.environ[name] for name in GRANTED if name in os.environ}
    started = time.monotonic()
    Path(task.log).parent.mkdir(parents=True, exist_ok=True)
    with open(task.log, "wb") as log:
        for command in task.commands:
            code = _run(command, task.folder, environment, log)
            if code:
                return Outcome(time.monotonic() - started, f"`{command[-1]}` {_said(code)}")
    return Outcome(time.monotonic() - started)


def _run(command: tuple[str, ...], folder: str, environment: dict[str, str], log) -> int:
    # Ray blocks SIGINT in its workers, and a child inherits that.
    before = signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    with _guarded(process.pid):
        try:
            while True:
                try:
                    return process.wait(TICK)
                except subprocess.TimeoutExpired:
                    continue
        except BaseException:
            _stop(process)
            raise


@contextmanager
def _guarded(group: int) -> Iterator[None]:
    """Have `group` killed as soon as this process is gone, however it goes: the guard reads a pipe that then ends.

    The guard is no child of this process, because a Ray worker that loses its Ray kills its children before it leaves.
    """
    with subprocess.Popen(
        ["/bin/sh", "-c", 'exec 3<&0; { read -r _ <&3 || kill -9 "-$0"; } &', str(group)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as guard:
        try:
            yield
        finally:
            with suppress(BrokenPipeError):
                guard.stdin.write(b"done\n")
                guard.stdin.flush()


def _stop(process: subprocess.Popen) -> None:
    _signal(process.pid, signal.SIGINT)
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    finally:
        _signal(process.pid, signal.SIGKILL)  # and what the command left behind
        process.wait()


def _signal(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _said(code: int) -> str:
    if code > 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
