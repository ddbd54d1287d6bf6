"""What is known of a study whose last run failed: .tokenarium/failed/<slug>.ipynb, and a record of why beside it."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from tokenarium.files import write_json


@dataclass(frozen=True)
class Failure:
    """A failed run.

    cell: number of the code cell, as in In [cell], or None. ename, evalue and traceback: the exception, traceback as
    text without colours, empty for a kernel that was killed. when: UTC, ISO 8601. revision: the git commit, or None.
    notebook: the notebook up to the failing cell, relative to the root, or None where it could not be kept.
    """

    slug: str
    cell: int | None
    ename: str
    evalue: str
    traceback: str
    when: str
    revision: str | None
    notebook: str | None

    def line(self) -> str:
        """One line: where and why."""
        where = f"cell {self.cell}" if self.cell else "a cell"
        return f"{where}: {self.ename}: {self.evalue.splitlines()[0] if self.evalue else ''}"


def failed_notebook(root: Path, slug: str) -> Path:
    """Where the notebook of a failed run is kept."""
    return root / ".tokenarium" / "failed" / f"{slug.replace('/', '-')}.ipynb"


def record_failure(
    root: Path, slug: str, cell: int | None, ename: str, evalue: str, traceback: str, notebook: Path | None
) -> Failure:
    """Write the record of a failed run and return it. Raises TokenariumError when it cannot be written."""
    failure = Failure(
        slug=slug,
        cell=cell,
        ename=ename,
        evalue=evalue,
        traceback=traceback,
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        revision=_revision(root),
        notebook=notebook.relative_to(root).as_posix() if notebook else None,
    )
    write_json(failed_notebook(root, slug).with_suffix(".json"), asdict(failure))
    return failure


def last_failure(root: Path, slug: str) -> Failure | None:
    """The failure of the last run of `slug`; None when it went well, or when the record cannot be read."""
    try:
        return Failure(**json.loads(failed_notebook(root, slug).with_suffix(".json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def forget_failure(root: Path, slug: str) -> None:
    """Remove what is kept of a failed run, after one that went well."""
    for suffix in (".ipynb", ".json"):
        failed_notebook(root, slug).with_suffix(suffix).unlink(missing_ok=True)


def _revision(root: Path) -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
