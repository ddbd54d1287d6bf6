"""Corpora as lines of JSON, one file a language: {"id": "<document>#<part>", "text": str}, and a manifest.

Splits are made by document, from its name alone, so that a document is on the same side in every language, and
nothing has to be stored. A corpus has its own module with `load` (and `parallel` where languages are aligned).
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tokenarium.errors import TokenariumError
from tokenarium.files import sha256, write_json, write_whole

SPLITS = ("train", "validation", "test")
MANIFEST = "manifest.json"


def split_of(identifier: str) -> str:
    """The split of a document, or of a part of it: about 80 % "train", 10 % "validation", 10 % "test"."""
    document = identifier.partition("#")[0]
    slot = int(hashlib.sha256(document.encode()).hexdigest()[:8], 16) % 10
    return {0: "test", 1: "validation"}.get(slot, "train")


def manifest(root: Path | str, name: str) -> dict[str, dict]:
    """What a corpus holds by language: file, paragraphs, UTF-8 bytes of text in all and by split, SHA-256 of the file.

    Raises TokenariumError if it was not fetched.
    """
    path = Path(root) / "data" / name / MANIFEST
    if not path.is_file():
        raise TokenariumError(f"{path} is missing: run `tokenarium data {name}`")
    return json.loads(path.read_text(encoding="utf-8"))


def load(root: Path | str, name: str, language: str, split: str | None = None) -> list[dict[str, str]]:
    """Paragraphs of a corpus in one language, in the order of its documents; of all splits without `split`.

    Raises TokenariumError if the corpus was not fetched or lacks the language, ValueError for another split.
    """
    if split not in (None, *SPLITS):
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    held = manifest(root, name)
    if language not in held:
        raise TokenariumError(f"{name} has no language {language!r}: there are {', '.join(held)}")
    with open(Path(root) / "data" / name / held[language]["file"], encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [row for row in rows if split is None or split_of(row["id"]) == split]


def parallel(root: Path | str, name: str, languages: Sequence[str], split: str | None = None) -> dict[str, list[str]]:
    """Texts that all these languages have, aligned: the n-th of each says the same. Raises what `load` raises."""
    texts = {language: {row["id"]: row["text"] for row in load(root, name, language, split)} for language in languages}
    common = set.intersection(*(set(found) for found in texts.values()))
    order = [identifier for identifier in next(iter(texts.values())) if identifier in common]
    return {language: [found[identifier] for identifier in order] for language, found in texts.items()}


def write(output: Path, texts: Mapping[str, Iterable[tuple[str, str]]]) -> None:
    """Write <language>.jsonl for the (id, text) pairs of every language, and the manifest."""
    held = {}
    for language, pairs in texts.items():
        path = output / f"{language}.jsonl"
        counts = dict.fromkeys(SPLITS, 0)
        paragraphs = 0
        with write_whole(path) as file:
            for identifier, text in pairs:
                file.write(json.dumps({"id": identifier, "text": text}, ensure_ascii=False) + "\n")
                counts[split_of(identifier)] += len(text.encode())
                paragraphs += 1
        held[language] = {
            "file": path.name,
            "paragraphs": paragraphs,
            "bytes": sum(counts.values()),
            "bytes_by_split": counts,
            "sha256": sha256(path),
        }
    write_json(output / MANIFEST, held)
