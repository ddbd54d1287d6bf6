"""What a lease costs: nothing without a GPU, and little with one, beside many others. The GPU here is a stand-in.

To ask in vain is what a process that waits does twice a second, and to come and go besides: it locks the directory,
reads every file, asks for the free memory and plans the queue. Nothing is written outside a temporary folder.
"""

from __future__ import annotations

import os
import platform
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from tokenarium.errors import TokenariumError
from tokenarium.measure.bootstrap import Interval, bootstrap
from tokenarium.run import gpu
from tokenarium.run.gpu.lease import Leases
from tokenarium.run.gpu.nvml import Gpu

WAITING = (0, 10, 50)  # other processes in the queue
REPEATS = 40
CALLS = 1000  # of what is too quick to be timed once


class StandIn:
    """One empty GPU of 80,000 MiB."""

    def gpus(self) -> list[Gpu]:
        return [Gpu("GPU-a", "a stand-in", 80_000, 80_000)]


def microseconds(function: Callable[[], object], calls: int = 1) -> Interval:
    """Median time of a call with its bootstrap interval; `calls` calls are timed together."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(calls):
            function()
        times.append(1e6 * (time.perf_counter() - start) / calls)
    return bootstrap(times, statistic=lambda resampled: np.median(resampled, axis=1), over="calls")


def without_a_gpu(profile: str) -> Interval:
    """A study that is opened on a machine without a GPU."""
    nodes, gpu.NODES = gpu.NODES, ("/dev/none", "/dev/no-other")
    try:
        return microseconds(lambda: gpu.reserve({}, "paper@tiny", profile), CALLS)
    finally:
        gpu.NODES = nodes


def waiters(leases: Leases, count: int) -> list[int]:
    """Processes that wait for more than is free; returns their ids when all stand in the queue."""
    children = []
    for number in range(count):
        child = os.fork()
        if child == 0:
            try:
                leases.take(f"job{number}", 79_999, say=lambda line: None, poll=3600)
            finally:
                os._exit(1)
        children.append(child)
    while len(leases.records()) < count + 1:
        time.sleep(0.05)
    return children


def looks(count: int) -> tuple[Interval, Interval]:
    """A small lease taken and given back, and a large one asked for in vain, while `count` processes wait.

    The small one passes them: what is held gives back one MiB more than the first of them needs.
    """
    with tempfile.TemporaryDirectory() as folder:
        leases = Leases(Path(folder), StandIn(), "anna", limit=1000)
        with leases.take("holder", 70_000):
            children = waiters(leases, count)
            try:
                return microseconds(lambda: leases.take("small", 1).release()), microseconds(lambda: look(leases))
            finally:
                for child in children:
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)


def look(leases: Leases) -> None:
    """One turn of a process that waits, with coming and giving up."""
    try:
        leases.take("large", 75_000, say=lambda line: None, timeout=0)
    except TokenariumError:
        return
    raise AssertionError("there is no room for it")


def main() -> None:
    """Time everything and print one table."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("what", "microseconds"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for profile in ("cpu", "gpu"):
        table.add_row(f"no GPU, profile {profile}", _short(without_a_gpu(profile)))
    for count in WAITING:
        taken, looked = looks(count)
        table.add_row(f"lease taken and given back, {count} waiting", _short(taken))
        table.add_row(f"asked, looked and gave up, {count} waiting", _short(looked))
    console = Console()
    console.print(table)
    console.print(f"\nmedians with 95 % intervals of {REPEATS} repeats; {platform.machine()}")


def _short(interval: Interval) -> str:
    return f"{interval.value:,.3g} [{interval.low:,.3g}, {interval.high:,.3g}]"


if __name__ == "__main__":
    main()
