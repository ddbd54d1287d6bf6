"""Who may start on a GPU now: first come, first served, and small jobs pass where the first loses nothing by it.

The rule. Jobs are taken in the order in which they came; a job whose user holds as many leases as allowed is passed
over and keeps its place. The first job that does not fit is the head: it waits until processes that are on the GPU end.
A later job may pass it on a GPU if it fits there now and if the head would start there at the same moment with or
without it, *in whatever order the processes on that GPU end* and however long the passing job stays. No running times
are guessed, so none can be wrong. (EASY backfilling, Lifka 1995, with this in the place of the users' estimates.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Room:
    """A GPU at one moment, in MiB.

    free: what neither a lease nor another program has. pieces: what each of those gives back when it ends.
    """

    gpu: str
    free: int
    pieces: tuple[int, ...] = ()


@dataclass(frozen=True)
class Job:
    """A job that waits. need: MiB; limit: leases that its user may hold; gpus: where it may run; ticket: its turn."""

    id: str
    ticket: int
    user: str
    need: int
    limit: int
    gpus: tuple[str, ...]


def plan(rooms: Iterable[Room], holding: Mapping[str, int], waiting: Iterable[Job]) -> dict[str, str]:
    """The jobs that may start now, each with its GPU; every process that asks about one moment gets the same answer.

    holding: leases that each user holds. Of the GPUs that a job fits on it gets the one with the most room.
    """
    rooms = {room.gpu: room for room in rooms}
    holding = Counter(holding)
    head: Job | None = None
    started = {}
    for job in sorted(waiting, key=lambda job: (job.ticket, job.id)):
        if holding[job.user] >= job.limit:
            continue
        open_to_it = [
            room
            for room in rooms.values()
            if room.gpu in job.gpus
            and job.need <= room.free
            and (head is None or room.gpu not in head.gpus or job.need <= spare(room, head.need))
        ]
        if open_to_it:
            room = max(open_to_it, key=lambda room: (room.free, room.gpu))
            rooms[room.gpu] = replace(room, free=room.free - job.need, pieces=(*room.pieces, job.need))
            holding[job.user] += 1
            started[job.id] = room.gpu
        elif head is None:
            head = job
    return started


def spare(room: Room, need: int) -> int:
    """MiB of the room that a job of `need` MiB, which does not fit yet, leaves over at the moment when it starts.

    The least over all orders in which the processes there may end; all that is free where it never fits. Something of
    this size that stays for good does not delay the job.
    """
    gap = need - room.free
    sums = 1  # bit s: some of the pieces together give back s MiB
    for piece in room.pieces:
        sums |= sums << piece
    enough = sums >> gap
    return (enough & -enough).bit_length() - 1 if enough else room.free
