"""Licence texts and notices: 35 MB of legal English in short documents, many of them close to one another.

Sources: ScanCode's licence database (CC-BY-4.0), PyPI wheel `licensedcode-data`, and Debian's common licences,
package `base-files`. A row is one text without its YAML header, its id "<licence>#<file>"; splits are made by licence,
which keeps most variants of a text on one side. Equal texts (but for blanks) are kept once, short ones not at all.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from tokenarium.data import text
from tokenarium.data.sources import Archive, Asset

SHORTEST = 200  # characters

_HEADER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_VARIANT = re.compile(r"_(?:\d+|or_|and_|with_).*")


def load(root: Path | str, split: str | None = None) -> list[dict[str, str]]:
    """Texts {"id", "text"} in the order of their ids, of one split or all; see `text.load`."""
    return text.load(root, DATASET.name, "en", split)


def licence_of(name: str) -> str:
    """The licence that a file of the database is about: gpl-2.0_17.RULE and gpl-2.0_or_mit_3.RULE are on gpl-2.0."""
    return _VARIANT.sub("", name.rpartition(".")[0]).lower()


def _texts(members: Mapping[str, Path]) -> Iterator[tuple[str, str]]:
    for path in members.values():
        name = path.name
        key = licence_of(name) if path.suffix in {".LICENSE", ".RULE"} else name.lower()
        content = _HEADER.sub("", path.read_text(encoding="utf-8", errors="replace")).strip()
        if len(content) >= SHORTEST:
            yield f"{key}#{name}", content


def _normalise(members: Mapping[str, Path], output: Path) -> None:
    kept, seen = [], set()
    for identifier, content in sorted(_texts(members)):
        words = " ".join(content.split())
        if words not in seen:
            seen.add(words)
            kept.append((identifier, content))
    text.write(output, {"en": kept})


DATASET = Asset(
    name="licences",
    packages=(
        Archive(
            "pip",
            "licensedcode-data",
            "32.1.0",
            "ad18b19d26f7bb2a41fa2dcd99197d536fd5b270cd715e58de677bba98154762",
            r"licensedcode/data/(?:licenses/.*\.LICENSE|rules/.*\.RULE)",
        ),
        Archive(
            "apt",
            "base-files",
            "12.4+deb12u15",
            "284b70cdd1f7548f6e784e72b69e666e6a52d9a55a40c166a5c3fcb99af7a6ef",
            r"usr/share/common-licenses/.*",
        ),
    ),
    normalise=_normalise,
    files={
        "en.jsonl": "31179d0a5fd456f9d6936c68fc0edaee971f0b99ca45fef50d18a01eacde17c7",
        text.MANIFEST: "91d35a8b464d4bd6976a4aa341be407c120d96d625b63dd318169fd659175f06",
    },
)
