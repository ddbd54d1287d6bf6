"""Steps of a fetch on the terminal; silent where nobody looks."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tokenarium.data.sources import Progress


@contextmanager
def progress_bar(name: str) -> Iterator[Progress]:
    """A bar on stderr that shows the step of `name` under way; without a terminal it shows nothing."""
    if not sys.stderr.isatty():
        yield lambda done, total, what: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Bar(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total, what: bar.update(task, completed=done, total=total, description=f"{name}: {what}")
