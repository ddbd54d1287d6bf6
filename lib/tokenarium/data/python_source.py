"""Source code of Python 3.11's standard library (PSF licence), from the Debian package `libpython3.11-stdlib`.

A row is a file, its id the path below lib/python3.11 ("asyncio/events.py").
"""

from collections.abc import Mapping
from pathlib import Path

from tokenarium.data import text
from tokenarium.data.sources import Archive, Asset

_FOLDER = "usr/lib/python3.11/"


def load(root: Path | str, split: str | None = None) -> list[dict[str, str]]:
    """Files {"id", "text"} in the order of their paths, of one split or all; see `text.load`."""
    return text.load(root, DATASET.name, "python", split)


def _normalise(members: Mapping[str, Path], output: Path) -> None:
    files = ((name.removeprefix(_FOLDER), path.read_text(encoding="utf-8")) for name, path in members.items())
    text.write(output, {"python": ((name, source) for name, source in files if source.strip())})


DATASET = Asset(
    name="python-source",
    packages=(
        Archive(
            "apt",
            "libpython3.11-stdlib",
            "3.11.2-6+deb12u9",
            "2af32b5337556a39b0207b3ed21c2b1c02252290dcdf5a5dd253bfe3eb29a6e6",
            r"usr/lib/python3\.11/(?!_sysconfigdata).*\.py",
        ),
    ),
    normalise=_normalise,
    files={
        "python.jsonl": "79714227b4858044f4ca9f7da26258f852ccff234695e4a45bac6a0519442bdd",
        text.MANIFEST: "16a3f8967a0dfadfbf3cc2a1700064d1e1643fdb5746793fce962005f190e32a",
    },
)
