"""Run one paper's notebook through papermill and put its results in their place, whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from tokenarium.errors import TokenariumError
from tokenarium.files import replace_directory
from tokenarium.study import OUTPUT_VARIABLE
from tokenarium.study.parameters import ARENA, check_profile, find_study, load_params


def notebook_path(root: Path, params: dict, slug: str) -> Path:
    """The notebook of a paper, or of an arena ("arena/vision"). Raises TokenariumError for an unknown one."""
    section, name = find_study(params, slug)
    folder = "arena" if section == "arenas" else params[section][name]["family"]
    path = root / "notebooks" / folder / f"{name}.ipynb"
    if not path.is_file():
        raise TokenariumError(f"{path.relative_to(root)} is missing: write the notebook of {slug} there")
    return path


def run_study(root: Path, slug: str, profile: str | None = None) -> Path:
    """Execute the notebook of `slug` and return its folder below reports/.

    A failure leaves the last good results as they are and the notebook, up to the failing cell, in .tokenarium/failed.
    Raises TokenariumError when the notebook fails, ends without study.finish(), or is already running.
    """
    params = load_params(root)
    profile = check_profile(profile or params["profile"])
    notebook = notebook_path(root, params, slug)
    scratch = root / ".tokenarium"
    name = slug.replace("/", "-")
    (scratch / "locks").mkdir(parents=True, exist_ok=True)
    lock = FileLock(scratch / "locks" / f"{name}.lock")
    try:
        with lock.acquire(timeout=0):
            return _run(root, notebook, slug, profile, scratch / "running" / name)
    except Timeout:
        raise TokenariumError(f"{slug} is already running here: wait for it to end, then run it again") from None


def _run(root: Path, notebook: Path, slug: str, profile: str, work: Path) -> Path:
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    executed = work / "notebook.ipynb"
    results = work / "results"
    _papermill(root, notebook, executed, results, slug, profile)
    if not (results / "evidence.json").is_file():
        raise TokenariumError(f"{notebook.relative_to(root)} ended without study.finish(): make it the last cell")
    shutil.move(executed, results / "notebook.ipynb")
    evaluations = results / "evaluations"
    if slug.startswith(ARENA):
        shutil.rmtree(evaluations)
    else:
        replace_directory(evaluations, root / "evaluations" / notebook.parent.name / slug)
    target = root / "reports" / slug
    replace_directory(results, target)
    shutil.rmtree(work)
    return target


def _papermill(root: Path, notebook: Path, executed: Path, results: Path, slug: str, profile: str) -> None:
    import papermill
    from nbclient.exceptions import DeadKernelError
    from nbformat.reader import NotJSONError

    before = os.environ.get(OUTPUT_VARIABLE)
    os.environ[OUTPUT_VARIABLE] = str(results)
    try:
        papermill.execute_notebook(
            str(notebook),
            str(executed),
            parameters={"profile": profile},
            kernel_name="python3",
            cwd=str(notebook.parent),
            log_output=False,
            progress_bar=True,
        )
    except NotJSONError:
        raise TokenariumError(f"{notebook.relative_to(root)} is no notebook: restore it from git") from None
    except (papermill.PapermillExecutionError, DeadKernelError) as error:
        failed = root / ".tokenarium" / "failed" / f"{slug.replace('/', '-')}.ipynb"
        failed.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(executed, failed)
        raise TokenariumError(
            f"{slug} failed at {_what_failed(error)}; the notebook up to there is {failed.relative_to(root)}"
        ) from None
    finally:
        if before is None:
            os.environ.pop(OUTPUT_VARIABLE, None)
        else:
            os.environ[OUTPUT_VARIABLE] = before


def _what_failed(error: Exception) -> str:
    name, value = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", str(error))
    cell = getattr(error, "exec_count", None)
    where = f"cell {cell}" if cell else "a cell"
    return f"{where}: {name}: {value.splitlines()[0] if value else ''}"
