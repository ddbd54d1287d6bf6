"""The fixed cost of a notebook, with an ordinary and with a warm kernel: `make bench`.

The notebook only imports torch, transformers, matplotlib, seaborn and pandas. Each round runs it through papermill once
with either kernel, in turns, so that whatever else the machine does falls on both. The fork server is the benchmark's
own and ends with it; the first warm run, which waits for its imports, is timed apart. Nothing else is written.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import nbformat
import numpy as np
import papermill
from nbformat.v4 import new_code_cell, new_notebook
from rich.console import Console
from rich.table import Table

from tokenarium.measure.bootstrap import Interval, bootstrap
from tokenarium.run.execute import warm_kernels
from tokenarium.run.warm import client, identity, provisioner

IMPORTS = "import torch, transformers\nimport matplotlib.pyplot as plt\nimport seaborn as sns\nimport pandas as pd"
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
ROUNDS = 7


class NoColdKernel(logging.Handler):
    """Stops the benchmark when a kernel that should be warm is not."""

    def emit(self, record: logging.LogRecord) -> None:
        """Raise RuntimeError with the reason."""
        raise RuntimeError(record.getMessage())


def seconds(notebook: Path, warm: bool) -> float:
    """Wall time of one run of `notebook` through papermill, with a warm or an ordinary kernel."""
    start = time.perf_counter()
    with warm_kernels() if warm else nullcontext():
        papermill.execute_notebook(
            str(notebook), str(notebook.with_suffix(".out.ipynb")), kernel_name="python3", progress_bar=False
        )
    return time.perf_counter() - start


def measure(folder: Path, rounds: int = ROUNDS) -> tuple[float, np.ndarray]:
    """Seconds of the first warm run, and (rounds, 2) seconds of ordinary and warm runs.

    Raises RuntimeError when a warm kernel cannot be had.
    """
    notebook = folder / "imports.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(IMPORTS)], metadata={"kernelspec": KERNEL}), notebook)
    first = seconds(notebook, warm=True)
    return first, np.array([[seconds(notebook, warm=False), seconds(notebook, warm=True)] for _ in range(rounds)])


def median(samples: np.ndarray) -> Interval:
    """Median with its bootstrap interval."""
    return bootstrap(samples, statistic=lambda resampled: np.median(resampled, axis=1), over="rounds")


def main() -> None:
    """Time both kernels and print one table."""
    with warm_kernels() as installed:
        if not installed:
            sys.exit("the package is not installed: make setup")
    logging.getLogger(provisioner.__name__).addHandler(NoColdKernel())
    with tempfile.TemporaryDirectory(prefix="tk-") as folder:
        os.environ["XDG_RUNTIME_DIR"] = folder
        try:
            first, times = measure(Path(folder))
        finally:
            client.retire(identity.runtime_folder())
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("kernel", "seconds", "times as long as warm"):
        table.add_column(column, justify="left" if column == "kernel" else "right")
    table.add_row("ordinary", _short(median(times[:, 0])), _short(median(times[:, 0] / times[:, 1])))
    table.add_row("warm", _short(median(times[:, 1])), "")
    table.add_row("warm, the first", f"{first:.3g}", "")
    console = Console()
    console.print(table)
    console.print(f"\nmedians over {len(times)} rounds with 95 % intervals; the first starts the fork server")


def _short(interval: Interval) -> str:
    return f"{interval.value:.3g} [{interval.low:.3g}, {interval.high:.3g}]"


if __name__ == "__main__":
    main()
