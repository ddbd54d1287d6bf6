"""Run one paper's notebook through papermill and put its results in their place, whole or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tokenarium.errors import TokenariumError
from tokenarium.files import explained, replace_directory
from tokenarium.run.failures import failed_notebook, forget_failure, record_failure
from tokenarium.study import OUTPUT_VARIABLE
from tokenarium.study.parameters import ARENA, check_profile, find_study, load_params

CELL_LIMIT = {"smoke": 10.0, "cpu": 60.0, "gpu": 1440.0}  # minutes a cell may take; `cell_limit` in params.yaml wins
PROVISIONER = "tokenarium-warm"


def notebook_path(root: Path, params: dict, slug: str) -> Path:
    """The notebook of a paper, or of an arena ("arena/vision"). Raises TokenariumError for an unknown one."""
    section, name = find_study(params, slug)
    folder = "arena" if section == "arenas" else params[section][name]["family"]
    path = root / "notebooks" / folder / f"{name}.ipynb"
    if not path.is_file():
        raise TokenariumError(f"{path.relative_to(root)} is missing: write the notebook of {slug} there")
    return path


def run_study(root: Path, slug: str, profile: str | None = None, cell_limit: float | None = None) -> Path:
    """Execute the notebook of `slug` and return its folder below reports/.

    cell_limit: minutes that a cell may take; without it `cell_limit` of the paper in params.yaml, or CELL_LIMIT.
    A failure leaves the last good results as they are; the notebook up to there is kept in .tokenarium/failed.
    Raises TokenariumError when the notebook fails, ends without study.finish(), or is already running.
    """
    params = load_params(root)
    profile = check_profile(profile or params["profile"])
    notebook = notebook_path(root, params, slug)
    minutes = _cell_limit(params, slug, profile) if cell_limit is None else cell_limit
    scratch = root / ".tokenarium"
    name = slug.replace("/", "-")
    with explained(scratch / "locks"):
        (scratch / "locks").mkdir(parents=True, exist_ok=True)
    lock = FileLock(scratch / "locks" / f"{name}.lock")
    try:
        with lock.acquire(timeout=0):
            return _run(root, notebook, slug, profile, minutes, scratch / "running" / name)
    except Timeout:
        raise TokenariumError(f"{slug} is already running here: wait for it to end, then run it again") from None


def _cell_limit(params: dict, slug: str, profile: str) -> float:
    section, name = find_study(params, slug)
    minutes = params[section][name].get("cell_limit", CELL_LIMIT[profile])
    if type(minutes) not in (int, float) or not minutes > 0:
        raise TokenariumError(f"params.yaml: {section}.{name}.cell_limit must be minutes above 0, got {minutes!r}")
    return minutes


def _run(root: Path, notebook: Path, slug: str, profile: str, minutes: float, work: Path) -> Path:
    shutil.rmtree(work, ignore_errors=True)
    executed = work / "notebook.ipynb"
    results = work / "results"
    with explained(executed):
        work.mkdir(parents=True)
        _papermill(root, notebook, executed, results, slug, profile, minutes)
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
    forget_failure(root, slug)
    return target


@contextmanager
def warm_kernels() -> Iterator[bool]:
    """Have the kernels that Jupyter starts in this block forked; whether the package is installed so that it can be."""
    from jupyter_client.provisioning import KernelProvisionerFactory

    factory = KernelProvisionerFactory.instance()
    installed = bool(entry_points(group=factory.GROUP_NAME, name=PROVISIONER))
    before = factory.default_provisioner_name
    if installed:
        factory.default_provisioner_name = PROVISIONER
    try:
        yield installed
    finally:
        factory.default_provisioner_name = before


def _papermill(
    root: Path, notebook: Path, executed: Path, results: Path, slug: str, profile: str, minutes: float
) -> None:
    # jsonschema, which nbformat imports, would compile a grammar of internationalised addresses for most of a second.
    sys.modules.setdefault("rfc3987_syntax", None)
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from nbformat.reader import NotJSONError

    before = os.environ.get(OUTPUT_VARIABLE)
    os.environ[OUTPUT_VARIABLE] = str(results)
    try:
        with warm_kernels():
            papermill.execute_notebook(
                str(notebook),
                str(executed),
                parameters={"profile": profile},
                kernel_name="python3",
                cwd=str(notebook.parent),
                log_output=False,
                progress_bar=True,
                execution_timeout=60 * minutes,
            )
    except NotJSONError:
        raise TokenariumError(f"{notebook.relative_to(root)} is no notebook: restore it from git") from None
    except papermill.PapermillExecutionError as error:
        traceback = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
        raise _failed(root, slug, executed, error.exec_count, error.ename, error.evalue, traceback) from None
    except DeadKernelError:
        why = "the kernel died: killed from outside, out of memory, or a crash in a library"
        raise _failed(root, slug, executed, _last_cell(executed), "DeadKernelError", why) from None
    except CellTimeoutError:
        why = f"it took longer than {minutes:g} min: raise `cell_limit` of {slug} in params.yaml, or mend the cell"
        raise _failed(root, slug, executed, _last_cell(executed), "CellTimeoutError", why) from None
    finally:
        if before is None:
            os.environ.pop(OUTPUT_VARIABLE, None)
        else:
            os.environ[OUTPUT_VARIABLE] = before


def _failed(
    root: Path, slug: str, executed: Path, cell: int | None, ename: str, evalue: str, traceback: str = ""
) -> TokenariumError:
    """Keep the notebook and a record of the failure, and return the error to be raised."""
    kept = failed_notebook(root, slug)
    with explained(kept):
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(executed, kept)
    failure = record_failure(root, slug, cell, ename, evalue, traceback, kept)
    return TokenariumError(f"{slug} failed at {failure.line()}; the notebook up to there is {failure.notebook}")


def _last_cell(executed: Path) -> int | None:
    """Number of the code cell that ran last, counted as Jupyter counts; papermill does not say which one it was."""
    cells: list[dict[str, Any]] = json.loads(executed.read_text(encoding="utf-8"))["cells"]
    started = [
        bool(cell["metadata"].get("papermill", {}).get("start_time")) for cell in cells if cell["cell_type"] == "code"
    ]
    return sum(started) or None
