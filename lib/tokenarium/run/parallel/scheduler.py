"""Which stage starts next, and where: longest critical path first, packed by cores, memory and GPU memory.

Knows neither Ray nor DVC nor a clock: times are seconds that the caller hands in, so the same class drives a run,
forecasts its end and plans a dry run.
"""

from __future__ import annotations

import copy
import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass

from tokenarium.run.resources import Resources

NOTHING = Resources(cpus=0, memory_gb=0)
ROUNDING = 1e-9  # what sums of fractions may be off by


@dataclass(frozen=True)
class Node:
    """A machine: cores, memory in GB, and the memory of each of its GPUs in GB."""

    name: str
    cpus: float
    memory_gb: float
    gpus: tuple[float, ...] = ()

    def __str__(self) -> str:
        gpus = f", {len(self.gpus)} GPUs of {min(self.gpus):.3g} GB" if self.gpus else ", no GPU"
        return f"{self.cpus:g} cores, {self.memory_gb:.3g} GB of memory{gpus}"


@dataclass(frozen=True)
class Job:
    """A stage of the graph: what it waits for, what it needs, and how many seconds it is expected to take."""

    name: str
    upstream: frozenset[str] = frozenset()
    needs: Resources = NOTHING
    seconds: float = 0.0


class _Room:
    """What is free on a node; a job holds cores, memory and shares of GPUs."""

    def __init__(self, node: Node):
        self.cpus, self.memory, self.gpus, self.sizes = node.cpus, node.memory_gb, list(node.gpus), node.gpus

    def shares(self, needs: Resources) -> dict[int, float] | None:
        """GPU memory to take from each device, {} without a GPU; None when the job does not fit."""
        if needs.cpus > self.cpus + ROUNDING or needs.memory_gb > self.memory + ROUNDING:
            return None
        if not needs.gpu_memory_gb:
            return {}
        asked = needs.gpu_memory_gb - ROUNDING
        roomy = [device for device, free in enumerate(self.gpus) if free >= asked]
        if roomy:
            return {min(roomy, key=lambda device: self.gpus[device]): needs.gpu_memory_gb}
        if any(size >= asked for size in self.sizes):
            return None  # one device is enough, when it is free
        whole = [device for device, free in enumerate(self.gpus) if free >= self.sizes[device] - ROUNDING]
        count = math.ceil(asked / min(self.sizes)) if self.sizes else 1
        return {device: self.sizes[device] for device in whole[:count]} if len(whole) >= count else None

    def copy(self) -> _Room:
        room = copy.copy(self)
        room.gpus = list(self.gpus)
        return room

    def take(self, needs: Resources, shares: dict[int, float], sign: int = 1) -> None:
        self.cpus -= sign * needs.cpus
        self.memory -= sign * needs.memory_gb
        for device, share in shares.items():
            self.gpus[device] -= sign * share


@dataclass
class _Running:
    node: str
    shares: dict[int, float]
    since: float


class Scheduler:
    """The state of a run: which jobs are blocked, undecided, ready, running, settled (done or not needed) or dropped.

    A job whose upstream is settled is undecided until `admit` (it must run) or `settle` (nothing to do). At most
    `slots` jobs run at a time. The ready job with the longest chain of expected seconds below it goes first; smaller
    ones pass it only where they do not delay it. Raises ValueError for a job named twice, an unknown upstream, a
    circle, or slots < 1.
    """

    def __init__(self, jobs: Iterable[Job], nodes: Iterable[Node], slots: int):
        if slots < 1:
            raise ValueError(f"slots must be at least 1, got {slots}")
        self.slots = slots
        self.nodes = {node.name: node for node in nodes}
        self.jobs: dict[str, Job] = {}
        for job in jobs:
            if job.name in self.jobs:
                raise ValueError(f"{job.name} is there twice")
            self.jobs[job.name] = job
        self.downstream: dict[str, list[str]] = {name: [] for name in self.jobs}
        for job in self.jobs.values():
            for name in sorted(job.upstream):
                if name not in self.jobs:
                    raise ValueError(f"{job.name} waits for {name}, which is no job")
                self.downstream[name].append(job.name)
        self._waits = {name: len(job.upstream) for name, job in self.jobs.items()}
        self.chain = self._chains()
        self._rooms = {name: _Room(node) for name, node in self.nodes.items()}
        self.undecided = [name for name, waits in self._waits.items() if not waits]
        self.ready: list[str] = []
        self.running: dict[str, _Running] = {}
        self.settled: set[str] = set()
        self.dropped: set[str] = set()

    def _chains(self) -> dict[str, float]:
        """Seconds from each job's start to the end of the longest chain below it."""
        waits, order = dict(self._waits), [name for name, waits in self._waits.items() if not waits]
        for name in order:
            for below in self.downstream[name]:
                waits[below] -= 1
                if not waits[below]:
                    order.append(below)
        if len(order) < len(self.jobs):
            raise ValueError(f"{', '.join(sorted(set(self.jobs) - set(order)))} wait for one another in a circle")
        chain: dict[str, float] = {}
        for name in reversed(order):
            chain[name] = self.jobs[name].seconds + max((chain[below] for below in self.downstream[name]), default=0.0)
        return chain

    @property
    def over(self) -> bool:
        """Whether every job is settled or dropped."""
        return len(self.settled) + len(self.dropped) == len(self.jobs)

    def unfit(self) -> list[str]:
        """Jobs that ask for more than any node has, even when it is empty."""
        rooms = [_Room(node) for node in self.nodes.values()]
        return [name for name, job in self.jobs.items() if all(room.shares(job.needs) is None for room in rooms)]

    def admit(self, name: str) -> None:
        """An undecided job must run."""
        self.undecided.remove(name)
        self.ready.append(name)

    def settle(self, name: str) -> None:
        """A running job is done, or an undecided one has nothing to do: what waited for it alone becomes undecided."""
        self._leave(name)
        self.settled.add(name)
        for below in self.downstream[name]:
            self._waits[below] -= 1
            if not self._waits[below] and below not in self.dropped:
                self.undecided.append(below)

    def drop(self, name: str) -> list[str]:
        """A job failed: it and all below it will not run. Returns those below that were not dropped before."""
        self._leave(name)
        self.dropped.add(name)
        below, lost = list(self.downstream[name]), []
        for each in below:
            if each not in self.dropped:
                self.dropped.add(each)
                lost.append(each)
                below += self.downstream[each]
        return lost

    def start(self, now: float) -> tuple[str, str] | None:
        """Let the next ready job run; returns its name and its node's, or None when none may start now."""
        if len(self.running) >= self.slots:
            return None
        held: tuple[str, float, _Room, Job] | None = None
        for name in sorted(self.ready, key=lambda name: (-self.chain[name], name)):
            job = self.jobs[name]
            places = [
                (room.cpus - job.needs.cpus, node, shares)
                for node, room in self._rooms.items()
                if (shares := room.shares(job.needs)) is not None and self._harmless(job, shares, node, held, now)
            ]
            if places:
                _, node, shares = min(places, key=lambda place: place[:2])
                self._rooms[node].take(job.needs, shares)
                self.ready.remove(name)
                self.running[name] = _Running(node, shares, now)
                return name, node
            if held is None:
                held = self._reserve(job, now)
        return None

    def _reserve(self, job: Job, now: float) -> tuple[str, float, _Room, Job] | None:
        """The node where `job` fits first as running jobs end, when that is, and what is free there then."""
        best = None
        for name, room in self._rooms.items():
            room = room.copy()
            ends = sorted(
                (max(now, run.since + self.jobs[each].seconds), each)
                for each, run in self.running.items()
                if run.node == name
            )
            for end, each in ends:
                room.take(self.jobs[each].needs, self.running[each].shares, sign=-1)
                if room.shares(job.needs) is not None:
                    if best is None or end < best[1]:
                        best = (name, end, room, job)
                    break
        return best

    def _clone(self) -> Scheduler:
        """A copy whose state moves on by itself; jobs, nodes and chains are shared."""
        state = copy.copy(self)
        state._waits, state._rooms = dict(self._waits), {name: room.copy() for name, room in self._rooms.items()}
        state.undecided, state.ready, state.running = list(self.undecided), list(self.ready), dict(self.running)
        state.settled, state.dropped = set(self.settled), set(self.dropped)
        return state

    @staticmethod
    def _harmless(
        job: Job, shares: dict[int, float], node: str, held: tuple[str, float, _Room, Job] | None, now: float
    ) -> bool:
        """Whether starting `job` on `node` leaves the reservation `held` as early as it is."""
        if held is None or node != held[0] or now + job.seconds <= held[1]:
            return True
        room = held[2].copy()
        room.take(job.needs, shares)
        return min(room.gpus, default=0.0) > -ROUNDING and room.shares(held[3].needs) is not None

    def _leave(self, name: str) -> None:
        run = self.running.pop(name, None)
        if run:
            self._rooms[run.node].take(self.jobs[name].needs, run.shares, sign=-1)
        for names in (self.undecided, self.ready):
            if name in names:
                names.remove(name)

    def forecast(self, now: float) -> float:
        """Seconds until everything is settled, if each job takes what is expected of it and none fails.

        A running job that has outrun its expectation is taken to end now. The state is not changed.
        """
        state = self._clone()
        clock = now
        ends = [(max(now, run.since + self.jobs[name].seconds), name) for name, run in state.running.items()]
        heapq.heapify(ends)
        while True:
            for name in list(state.undecided):
                state.admit(name)
            while started := state.start(clock):
                heapq.heappush(ends, (clock + self.jobs[started[0]].seconds, started[0]))
            if not ends:
                return clock - now
            clock, name = heapq.heappop(ends)
            state.settle(name)


def simulate(jobs: Iterable[Job], nodes: Iterable[Node], slots: int) -> float:
    """Seconds that a run of all jobs takes on a clock of its own; jobs that fit nowhere are left out, and all below."""
    state = Scheduler(jobs, nodes, slots)
    for name in state.unfit():
        if name not in state.dropped:
            state.drop(name)
    return state.forecast(0.0)
