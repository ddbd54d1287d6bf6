"""A parallel run from beginning to end: decide, start, commit, report.

The driver decides about a stage when all its upstream is done, as `dvc repro` does, so a stage that its rerun upstream
left unchanged is skipped. It alone talks to DVC, one stage at a time, while workers run the commands of others.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from tokenarium.errors import TokenariumError
from tokenarium.run.parallel.executors import Executor, RayExecutor, local_node
from tokenarium.run.parallel.history import estimates, record_durations
from tokenarium.run.parallel.scheduler import NOTHING, Job, Node, Scheduler, simulate
from tokenarium.run.parallel.stages import Stages
from tokenarium.run.parallel.view import View, duration
from tokenarium.run.parallel.worker import Outcome
from tokenarium.run.resources import Resources

ONE_CORE = Resources(cpus=1, memory_gb=0)
TICK = 0.25  # seconds between two looks at Ctrl-C
TAIL = 15  # lines of a failed stage's log that are shown


@dataclass
class Plan:
    """Stages of a run by what is known of them before it starts, in the order of `dvc repro`.

    `stale` run for sure; `perhaps` come after them and run unless those leave what they read unchanged; `fresh` have
    nothing to do.
    """

    stale: list[str] = field(default_factory=list)
    perhaps: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)


@dataclass
class Summary:
    """What became of the stages: names, and for a failed one why."""

    ran: list[str] = field(default_factory=list)
    restored: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


def run(
    tree: Path,
    targets: Sequence[str],
    jobs: int,
    *,
    needs: Callable[[str], Resources] = lambda stage: ONE_CORE,
    alone: Sequence[str] = (),
    address: str | None = None,
    environment: Mapping[str, str] | None = None,
    executor: Executor | None = None,
    view: View | None = None,
) -> Summary:
    """Bring DVC stages up to date, at most `jobs` at a time; `targets` and `alone` as for `Stages`.

    `needs` says what a stage asks of its machine; `environment` replaces variables for the commands. An `executor`
    that is handed in is opened, but left open. Goes on past failures. Raises TokenariumError at the end when a stage
    failed, and at once when another run goes on in this checkout; KeyboardInterrupt after Ctrl-C or SIGTERM, when
    everything that ran has ended.
    """
    with _alone_in(tree), contextlib.chdir(tree), contextlib.closing(Stages(tree, targets, alone)) as stages:
        plan = make_plan(stages)
        jobs_of = _jobs(tree, stages, plan, needs)
        owned = executor or RayExecutor(address)
        with view or View() as view:
            driver = _Driver(tree, stages, plan, view, environment or {})
            try:
                if plan.stale:
                    # Nothing starts Ray when there is nothing to run.
                    nodes = owned.open()
                    driver.go(Scheduler(jobs_of, nodes, jobs), owned)
                else:
                    driver.summary.unchanged = list(plan.fresh)
            finally:
                if executor is None:
                    owned.close()
            stages.sort_lock_file()
        _report(tree, driver.summary, view)
        return driver.summary


def show_plan(
    tree: Path,
    targets: Sequence[str],
    jobs: int,
    *,
    needs: Callable[[str], Resources] = lambda stage: ONE_CORE,
    alone: Sequence[str] = (),
    address: str | None = None,
    view: View | None = None,
) -> Plan:
    """Print what `run` would do and how long it should take, by past runs; runs and changes nothing."""
    view = view or View()
    with contextlib.chdir(tree), contextlib.closing(Stages(tree, targets, alone)) as stages:
        plan = make_plan(stages)
        found = _jobs(tree, stages, plan, needs)
        _, guessed = estimates(tree, stages.names)
    nodes = [local_node()]
    if address is not None:
        with contextlib.closing(RayExecutor(address)) as executor:
            nodes = executor.open()
    waiting = set(plan.stale) | set(plan.perhaps)
    names = [job for job in found if job.name in waiting]
    for job in names:
        what = "runs" if job.name in plan.stale else "may run"
        about = f"about {duration(job.seconds)}{' (a guess)' if job.name in guessed else ''}"
        view.line(f"{what:<9}{job.name}  {about}, {_amount(job.needs)}")
    for name in Scheduler(found, nodes, jobs).unfit():
        if name in waiting:
            view.line(_too_much(name, next(job.needs for job in names if job.name == name), nodes), "red")
    total = sum(job.seconds for job in names)
    view.line(
        f"{len(plan.stale)} stages run, {len(plan.perhaps)} after them may, {len(plan.fresh)} are up to date; "
        f"about {duration(simulate(found, nodes, jobs))} with -j {jobs}, {duration(total)} one at a time"
    )
    return plan


def make_plan(stages: Stages) -> Plan:
    """Which stages are stale now, which may become so when those have run, and which will not."""
    plan = Plan()
    waiting: set[str] = set()
    for name in stages.names:
        if stages.upstream[name] & waiting:
            plan.perhaps.append(name)
        elif stages.changed(name):
            plan.stale.append(name)
        else:
            plan.fresh.append(name)
            continue
        waiting.add(name)
    return plan


def _jobs(tree: Path, stages: Stages, plan: Plan, needs: Callable[[str], Resources]) -> list[Job]:
    """All stages as the scheduler's jobs; a stage with nothing to do takes no time and no room."""
    seconds, _ = estimates(tree, stages.names)
    fresh = set(plan.fresh)
    return [
        Job(name, stages.upstream[name], NOTHING, 0.0)
        if name in fresh
        else Job(name, stages.upstream[name], needs(name), seconds[name])
        for name in stages.names
    ]


class _Driver:
    def __init__(self, tree: Path, stages: Stages, plan: Plan, view: View, environment: Mapping[str, str]):
        self.tree, self.stages, self.view, self.environment = tree, stages, view, environment
        self.stale, self.fresh = set(plan.stale), set(plan.fresh)
        self.summary = Summary()

    def go(self, scheduler: Scheduler, executor: Executor) -> None:
        self.scheduler, self.executor = scheduler, executor
        with _interrupts() as interrupted:
            for name in scheduler.unfit():
                if name not in self.fresh and name not in scheduler.dropped:
                    self._fail(name, _too_much(name, scheduler.jobs[name].needs, list(scheduler.nodes.values())))
            try:
                while not scheduler.over and not interrupted():
                    # Free slots are filled before outputs are committed: workers should not wait for DVC.
                    if not self._start_one():
                        self._end(executor.wait(TICK))
            except BaseException:
                executor.stop()
                raise
            if interrupted():
                self._stop()
                raise KeyboardInterrupt

    def _start_one(self) -> bool:
        """Decide about what waits for that, then start one stage; False when there is nothing to start."""
        for name in list(self.scheduler.undecided):
            self._decide(name)
        started = self.scheduler.start(time.monotonic())
        if started is None:
            return False
        name, node = started
        log = self.tree / ".tokenarium" / "logs" / f"{name.replace('/', '-')}.log"
        needs = self.scheduler.jobs[name].needs
        try:
            task = self.stages.begin(name, log, lambda given: self._environment(given, needs))
        except TokenariumError as error:
            self._fail(name, str(error))
            return True
        if task is None:
            self.scheduler.settle(name)
            self.summary.restored.append(name)
            self.view.done += 1
            self.view.ended(name, "cached")
        else:
            self.executor.start(task, needs, self.scheduler.nodes[node])
            self._tell()
            self.view.started(name)
        return True

    def _decide(self, name: str) -> None:
        try:
            stale = name in self.stale or (name not in self.fresh and self.stages.changed(name))
        except TokenariumError as error:
            self._fail(name, str(error))
            return
        if stale:
            self.scheduler.admit(name)
        else:
            self.scheduler.settle(name)
            self.summary.unchanged.append(name)

    def _end(self, ended: Sequence[tuple[str, Outcome]]) -> None:
        errors = {name: outcome.error for name, outcome in ended if outcome.error is not None}
        done = [name for name, _ in ended if name not in errors]
        if done:
            errors |= self.stages.finish(done)
        for name, outcome in ended:
            if name in errors:
                self.stages.abandon(name)
                self._fail(name, errors[name])
                continue
            self.scheduler.settle(name)
            self.summary.ran.append(name)
            self.view.done += 1
            self._tell()
            self.view.ended(name, "done", outcome.seconds, style="green")
        record_durations(self.tree, {name: outcome.seconds for name, outcome in ended if name not in errors})

    def _fail(self, name: str, why: str) -> None:
        lost = self.scheduler.drop(name)
        self.summary.failed[name] = why
        self.summary.skipped += lost
        self.view.failed += 1
        self._tell()
        self.view.ended(name, "failed", detail=why, style="red")

    def _stop(self) -> None:
        """Keep what is finished, end what runs."""
        self._end(self.executor.wait(0))
        if self.scheduler.running:
            self.view.line(f"interrupted: ending {', '.join(sorted(self.scheduler.running))}", "yellow")
        self.executor.stop()
        for name in list(self.scheduler.running):
            self.stages.abandon(name)
        self.stages.sort_lock_file()

    def _tell(self) -> None:
        state, view = self.scheduler, self.view
        view.waiting = len(state.jobs) - len(state.settled) - len(state.dropped) - len(state.running)
        view.expect(state.forecast(time.monotonic()))

    def _environment(self, given: dict[str, str], needs: Resources) -> dict[str, str]:
        return {**given, **self.environment, "OMP_NUM_THREADS": str(max(1, int(needs.cpus)))}


def _amount(needs: Resources) -> str:
    gpu = f", {needs.gpu_memory_gb:g} GB of GPU memory" if needs.gpu_memory_gb else ""
    return f"{needs.cpus:g} cores, {needs.memory_gb:g} GB of memory{gpu}"


def _too_much(name: str, needs: Resources, nodes: Sequence[Node]) -> str:
    largest = max(nodes, key=lambda node: (node.cpus, node.memory_gb), default=None)
    has = f"the largest machine has {largest}" if largest else "there is no machine"
    return f"{name} asks for {_amount(needs)}, but {has}: lower it under `resources` in params.yaml"


def _report(tree: Path, summary: Summary, view: View) -> None:
    """Say what became of the run; raise TokenariumError when a stage failed."""
    counts = f"{len(summary.ran)} stages ran, {len(summary.unchanged)} were up to date"
    view.line(counts + (f", {len(summary.restored)} came from the cache" if summary.restored else ""))
    if not summary.failed:
        return
    for name, why in summary.failed.items():
        view.line(f"\n{name}: {why}", "red")
        log = Path(".tokenarium", "logs", f"{name.replace('/', '-')}.log")
        if (tree / log).is_file() and not why.startswith(f"{name} asks"):
            lines = (tree / log).read_text(encoding="utf-8", errors="replace").splitlines()
            for line in lines[-TAIL:]:
                view.line(f"  {line}")
            view.line(f"  (all of it: {tree / log})")
    failed = ", ".join(summary.failed)
    skipped = f"; not run, because they come after: {', '.join(summary.skipped)}" if summary.skipped else ""
    raise TokenariumError(f"{len(summary.failed)} of the stages failed: {failed}{skipped}")


@contextlib.contextmanager
def _alone_in(tree: Path) -> Iterator[None]:
    path = tree / ".tokenarium" / "locks" / "repro.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path).acquire(timeout=0):
            yield
    except Timeout:
        raise TokenariumError(f"another parallel run goes on in {tree}: wait for it to end, then run again") from None


@contextlib.contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM only set a flag, so that none falls into the middle of a commit; a second Ctrl-C is raised."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    told = threading.Event()

    def tell(number: int, frame: object) -> None:
        if told.is_set():
            raise KeyboardInterrupt
        told.set()

    before = {number: signal.signal(number, tell) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield told.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
