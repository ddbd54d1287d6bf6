"""What `tokenarium repro -j` gains and costs, against plain `dvc repro`: `make bench`.

Three measurements: 24 independent stages that each keep one core busy, with -j 2 against `dvc repro`, Ray's start
included; what a stage costs that does nothing, with both; and a simulated run of a suite of 93 papers on 64 workers,
against what no order of stages could beat. Everything happens in a temporary folder.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import yaml
from rich.console import Console

from tokenarium.run.parallel.driver import run
from tokenarium.run.parallel.executors import RayExecutor
from tokenarium.run.parallel.scheduler import Job, Node, simulate
from tokenarium.run.parallel.view import View
from tokenarium.run.resources import Resources

STAGES = 24
BUSY_SECONDS = 3.0  # of CPU time, in each stage
NOOPS = 40
PAPERS = 93
WORKERS = 64
PARAMS = """\
profile: cpu
seeds: [0]
data: {}
models: {}
recipes: {}
families: {}
experiments: {}
papers: {}
arenas: {}
resources:
  defaults: {cpus: 1, memory_gb: 0.2}
"""


def project(folder: Path, command: str, count: int) -> Path:
    """A DVC project in `folder` of `count` stages work@0, work@1 ..., none of which waits for another."""
    (folder / ".dvc").mkdir(parents=True)
    settings = "[core]\n    no_scm = true\n    analytics = false\n    check_update = false\n"
    (folder / ".dvc" / "config").write_text(settings)
    (folder / "params.yaml").write_text(PARAMS)
    stage = {"cmd": f"{command} && echo ${{item}} > out${{item}}", "outs": ["out${item}"]}
    pipeline = {"stages": {"work": {"foreach": list(range(count)), "do": stage}}}
    (folder / "dvc.yaml").write_text(yaml.safe_dump(pipeline))
    return folder


def seconds(action: Callable[[], object]) -> float:
    """Wall time of a call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def called(tree: Path, *arguments: str) -> float:
    """Wall time of a command of this Python's `dvc` or `tokenarium`. Raises RuntimeError when it fails."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    command = [sys.executable, "-m", *arguments]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return time.perf_counter() - start


def independent_stages(folder: Path, count: int = STAGES, busy: float = BUSY_SECONDS) -> tuple[float, float]:
    """Wall seconds of `dvc repro` and of `tokenarium repro -j 2` on stages that are busy on one core each."""
    spin = f"any(sum(range(10**5)) * (time.process_time() > {busy}) for _ in iter(int, 1))"
    work = f"{sys.executable} -c 'import time; {spin}'"
    plain, parallel = (project(folder / name, work, count) for name in ("plain", "parallel"))
    targets = [f"work@{index}" for index in range(count)]
    return called(plain, "dvc", "repro"), called(parallel, "tokenarium.run.cli", "repro", *targets, "-j", "2")


def cost_of_a_stage(folder: Path, count: int = NOOPS) -> tuple[float, float]:
    """Wall milliseconds for a stage that does nothing, in `dvc repro` and in a parallel run whose Ray has started."""
    from dvc.repo import Repo

    plain, parallel = (project(folder / name, "true", count) for name in ("plain", "parallel"))
    logging.getLogger("dvc").setLevel(logging.WARNING)
    with contextlib.chdir(plain), Repo(str(plain)) as repo:
        alone = seconds(repo.reproduce)
    executor = RayExecutor()
    try:
        executor.open()
        run(project(folder / "warm", "true", 4), (), 2, executor=executor, view=_silent())  # workers start with work
        together = seconds(lambda: run(parallel, (), 2, executor=executor, view=_silent()))
    finally:
        executor.close()
    return 1000 * alone / count, 1000 * together / count


def suite(papers: int = PAPERS, seed: int = 0) -> list[Job]:
    """A graph such as dvc.yaml's, with `papers` papers in 14 families that share 8 data sets and 16 models.

    Seconds are lognormal around 4 minutes for papers and 5 for models; data, verdicts and the report take seconds.
    """
    rng = random.Random(seed)
    one = Resources(cpus=1, memory_gb=3)

    def job(name: str, typical: float, upstream: set[str] = frozenset(), spread: float = 0.7) -> Job:
        return Job(name, frozenset(upstream), one, typical * rng.lognormvariate(0, spread))

    data = [job(f"data@{i}", 10) for i in range(8)]
    models = [job(f"model@{i}", 300, {rng.choice(data).name}, spread=0.4) for i in range(16)]
    jobs, families = [*data, *models], {}
    for index in range(papers):
        reads = {rng.choice(data).name, *(model.name for model in rng.sample(models, rng.randrange(1, 4)))}
        jobs.append(job(f"paper@{index}", 240, reads))
        families.setdefault(rng.randrange(14), set()).add(f"paper@{index}")
        jobs.append(job(f"verdict@{index}", 3, {f"paper@{index}"}))
    jobs += [job(f"arena@{family}", 40, members) for family, members in families.items()]
    told = {each.name for each in jobs if each.name.startswith(("verdict@", "arena@"))}
    return [*jobs, job("report", 10, told)]


def bound(jobs: list[Job], workers: int) -> float:
    """Seconds that no order of stages can beat: the longest chain, or all work shared evenly by the workers."""
    longest: dict[str, float] = {}
    for job in jobs:  # each after its upstream
        longest[job.name] = job.seconds + max((longest[name] for name in job.upstream), default=0.0)
    return max(*longest.values(), sum(job.seconds for job in jobs) / workers)


def excess(workers: int, seed: int = 0) -> float:
    """Time of a simulated run of `suite` on `workers` one-core workers over `bound`."""
    jobs = suite(seed=seed)
    nodes = [Node(f"worker{index}", 1, 4) for index in range(workers)]
    return simulate(jobs, nodes, workers) / bound(jobs, workers)


def _silent() -> View:
    return View(Console(file=io.StringIO()))


def main() -> None:
    """Measure all three and print a line for each."""
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        plain, parallel = independent_stages(Path(folder, "busy"))
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        console.print(
            f"{STAGES} stages of {BUSY_SECONDS:g} s, {cores} cores: dvc repro {plain:.0f} s, "
            f"-j 2 {parallel:.0f} s, {plain / parallel:.2f} times as fast"
        )
        plain, parallel = cost_of_a_stage(Path(folder, "noop"))
        console.print(f"a stage that does nothing: dvc repro {plain:.0f} ms, -j 2 {parallel:.0f} ms")
    jobs = suite()
    took = seconds(lambda: excess(WORKERS))
    console.print(
        f"{PAPERS} papers ({len(jobs)} stages) on {WORKERS} simulated workers: "
        f"{excess(WORKERS):.3f} times the longest chain or the even share; on 8: {excess(8):.3f}; "
        f"the scheduler takes {1e6 * took / len(jobs):.0f} µs a stage"
    )


if __name__ == "__main__":
    main()
