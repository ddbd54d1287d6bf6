"""DVC's pipeline from the command line: here at the committed profile, in a copy of the tree at any other."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tokenarium.errors import TokenariumError
from tokenarium.run.resources import Resources, resources_of
from tokenarium.study.parameters import check_profile, find_entry, load_params

KEPT = (
    "dvc.lock",
    "data",
    "models",
    "experiments",
    "evaluations",
    "reports",
    "verdicts",
)  # a copy's own results stay for the next run


def repro(root: Path, targets: str | Sequence[str] | None = None, profile: str | None = None) -> Path:
    """Bring papers and stages, or everything, up to date with `dvc repro`; returns the tree that holds the results.

    A target is a paper's slug or a DVC stage (`model@minilm-l6`). A paper brings what it needs, its verdict and the
    report with it, but none of the other papers and not the arena.
    At the profile of params.yaml that is `root`. Another profile runs in the copy .tokenarium/<profile>, so that the
    committed results are never overwritten by those of another profile.
    """
    tree, stages, alone = _asked(root, targets, profile)
    if stages or not alone:
        dvc(tree, "repro", *stages)
    if alone:
        dvc(tree, "repro", "--single-item", *alone)
    return tree


def repro_parallel(
    root: Path,
    targets: str | Sequence[str] | None,
    profile: str | None,
    jobs: int,
    address: str | None = None,
    dry: bool = False,
) -> Path:
    """As `repro`, with at most `jobs` stages at a time on Ray, of this machine or of the cluster at `address`.

    `dry` prints the plan and runs nothing.
    """
    from tokenarium.run.parallel import driver

    tree, stages, alone = _asked(root, targets, profile)
    params = load_params(tree)
    gpu = params["profile"] == "gpu"

    def needs(stage: str) -> Resources:
        asked = resources_of(params, stage)
        return asked if gpu else replace(asked, gpu_memory_gb=0)

    act = driver.show_plan if dry else driver.run
    extra = {} if dry else {"environment": _environment()}
    act(tree, stages, jobs, needs=needs, alone=alone, address=address, **extra)
    return tree


def _asked(
    root: Path, targets: str | Sequence[str] | None, profile: str | None
) -> tuple[Path, tuple[str, ...], tuple[str, ...]]:
    """The tree of a profile, the stages that targets name, and those that are brought up to date alone after them."""
    params = load_params(root)
    profile = check_profile(profile or params["profile"])
    targets = [targets] if isinstance(targets, str) else list(targets or [])
    slugs = [target for target in targets if not is_stage(target)]
    for slug in slugs:
        find_entry(params, "papers", slug)
    stages = tuple(target if is_stage(target) else f"verdict@{target}" for target in targets)
    tree = root if profile == params["profile"] else make_copy(root, profile)
    return tree, stages, ("report",) if slugs and "report" not in stages else ()


def is_stage(target: str) -> bool:
    """Whether a target is the name of a DVC stage (`model@minilm-l6`, `report`) and not a paper's slug."""
    return "@" in target or target == "report"


def check(root: Path) -> None:
    """Raise TokenariumError unless the committed results belong to the code, notebooks and parameters as they are.

    Needs neither data nor models: what is missing is taken for what dvc.lock says it was.
    """
    arguments = ("repro", "--dry", "--allow-missing", "--keep-going")
    done = _run_dvc(root, arguments, capture=True)
    # A changed stage whose data are missing is not listed as running: the dry run stumbles over them.
    told = [line for line in done.stdout.splitlines() if re.match("Running stage|ERROR: failed to reproduce", line)]
    if told:
        names = dict.fromkeys(name for line in told for name in re.findall("'(.+?)'", line))
        raise TokenariumError(f"results are out of date: run `dvc repro` and commit ({', '.join(names)})")
    _raise_if_stopped(arguments, done)


def make_copy(root: Path, profile: str) -> Path:
    """A copy of the tree at another profile, with DVC's cache shared. Sources are copied anew, results kept."""
    tree = root / ".tokenarium" / profile
    tree.mkdir(parents=True, exist_ok=True)
    sources = [name for name in source_files(root) if name.split("/")[0] not in KEPT]
    for name in sources:
        target = tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, target)
    for path in sorted(tree.rglob("*")):
        name = path.relative_to(tree).as_posix()
        if path.is_file() and name.split("/")[0] not in (*KEPT, ".dvc", ".tokenarium") and name not in sources:
            path.unlink()
    if not (tree / "dvc.lock").exists() and (root / "dvc.lock").exists():
        shutil.copy2(root / "dvc.lock", tree / "dvc.lock")
    params = (tree / "params.yaml").read_text(encoding="utf-8").splitlines(keepends=True)
    changed = [f"profile: {profile}\n" if line.startswith("profile:") else line for line in params]
    (tree / "params.yaml").write_text("".join(changed), encoding="utf-8")
    (tree / ".dvc").mkdir(exist_ok=True)
    cache = os.path.relpath(root / ".dvc" / "cache", tree / ".dvc")
    (tree / ".dvc" / "config").write_text(
        f"[core]\n    no_scm = true\n    analytics = false\n    check_update = false\n[cache]\n    dir = {cache}\n",
        encoding="utf-8",
    )
    return tree


def source_files(root: Path) -> list[str]:
    """Files of the tree that git tracks or would track, relative to `root`; all but scratch without git."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        raise TokenariumError(f"{root} is no git checkout: clone the repository instead of copying it") from None
    return [name for name in listed if name and (root / name).is_file()]


def dvc(tree: Path, *arguments: str, capture: bool = False) -> str:
    """Run DVC in `tree`, with this Python's own `tokenarium` and `dvc` first on the path; returns captured output.

    Raises TokenariumError when it fails, with its last line if that was captured.
    """
    done = _run_dvc(tree, arguments, capture)
    _raise_if_stopped(arguments, done)
    return done.stdout or ""


def _run_dvc(tree: Path, arguments: Sequence[str], capture: bool) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=tree,
        env=os.environ | _environment(),
        text=True,
        stdout=subprocess.PIPE if capture else None,
        stderr=subprocess.STDOUT if capture else None,
        check=False,
    )


def _environment() -> dict[str, str]:
    """What the stages' commands need besides the environment: this Python's own `tokenarium` first on the path."""
    return {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "DVC_NO_ANALYTICS": "1",
    }


def _raise_if_stopped(arguments: Sequence[str], done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode:
        said = (done.stdout or "").strip().splitlines()
        shown = f": {said[-1]}" if said else "; its last lines say why"
        raise TokenariumError(f"dvc {' '.join(arguments)} stopped{shown}")
