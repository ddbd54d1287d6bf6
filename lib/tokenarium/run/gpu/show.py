"""`tokenarium gpu`: who holds GPU memory on this machine and who waits for it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tokenarium.run.gpu import NODES
from tokenarium.run.gpu.lease import Leases, Record, duration, gigabytes, rooms
from tokenarium.run.gpu.nvml import Gpu


def show_gpus(leases: Leases | None = None, console: Console | None = None) -> None:
    """Print the GPUs with what is left of each, the leases on them, and the queue in its order.

    leases: the machine's by default. Raises TokenariumError when there is a GPU but its driver does not answer.
    """
    console = console or Console()
    if leases is None and not any(map(os.path.exists, NODES)):
        console.print("No GPU here.")
        return
    leases = leases or Leases()
    records, gpus = leases.records(), leases.nvml.gpus()
    console.print(_gpus(gpus, records))
    if not records:
        console.print("Nobody holds a lease.")
        return
    console.print()
    console.print(_leases(records, gpus))


def _gpus(gpus: Sequence[Gpu], records: Sequence[Record]) -> Table:
    table = _table("GPU", "name", "total", "leased", "other programs", "free for leases")
    for index, (gpu, room) in enumerate(zip(gpus, rooms(records, gpus), strict=True)):
        leased = sum(record.need for record in records if record.gpu == gpu.uuid)
        others = sum(room.pieces) - leased
        sizes = (gigabytes(size) for size in (gpu.total, leased, others, room.free))
        table.add_row(str(index), Text(gpu.name), *sizes)
    return table


def _leases(records: Sequence[Record], gpus: Sequence[Gpu]) -> Table:
    index = {gpu.uuid: str(place) for place, gpu in enumerate(gpus)}
    table = _table("state", "study", "user", "process", "memory", "for")
    held = [record for record in records if record.gpu]
    waiting = [record for record in records if not record.gpu]
    states = [f"holds GPU {index.get(record.gpu, record.gpu)}" for record in held]
    states += [f"waits, {place}. in the queue" for place in range(1, len(waiting) + 1)]
    for state, record in zip(states, [*held, *waiting], strict=True):
        since = duration(time.time() - record.since)
        row = (state, record.study, record.user, str(record.pid), gigabytes(record.need), since)
        table.add_row(*map(Text, row))  # Text: what others wrote is no markup
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column)
    return table
