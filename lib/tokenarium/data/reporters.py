"""Citations of American law: reporters, statutes and law journals with their variations, and abbreviated case names.

Source: Free Law Project, reporters-db (BSD-2-Clause), PyPI wheel `reporters-db`. Its four files are kept as they are.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from shutil import copyfile
from typing import Any

from tokenarium.data.sources import Asset, Package
from tokenarium.errors import TokenariumError

NAMES = ("reporters", "laws", "journals", "case_name_abbreviations")

_DIGESTS = {
    "reporters": "d1dee4057eaf051b3737c720fd0c58cd436f74b69286f521c3601d6aa4d332f1",
    "laws": "cba1f8f2225a27600b4906c0ed6cb5ede00fbba0983538845e628f77fb0fce69",
    "journals": "acad477ad889f745afe09a738e0c0091fdb59ab05a40d0bf55deba9c0ae2d10f",
    "case_name_abbreviations": "db011754f0cb7950a6939b19f845f6a47bf3afa2e346692b79cf79adcb76b718",
}


def load(root: Path | str) -> dict[str, dict[str, list[Any]]]:
    """NAMES -> citation -> its entries.

    An entry is a mapping with "name" and "variations" (a list, or in "reporters" a mapping whose keys are the
    variations); for abbreviated case names it is the word that is abbreviated.
    Raises TokenariumError if the data set was not fetched.
    """
    folder = Path(root) / "data" / DATASET.name
    if not folder.is_dir():
        raise TokenariumError(f"{folder} is missing: run `tokenarium data {DATASET.name}`")
    return {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in NAMES}


def _normalise(members: Mapping[str, Path], output: Path) -> None:
    for name in NAMES:
        copyfile(members[_member(name)], output / f"{name}.json")


def _member(name: str) -> str:
    return f"reporters_db/data/{name}.json"


DATASET = Asset(
    name="reporters",
    packages=(Package("pip", "reporters-db", "3.2.67", {_member(name): _DIGESTS[name] for name in NAMES}),),
    normalise=_normalise,
    files={f"{name}.json": _DIGESTS[name] for name in NAMES},
)
