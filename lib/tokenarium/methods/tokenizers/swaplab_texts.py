"""Texts of tokenizer transplants: five for evaluation, from documents held out, and a pool of what is not."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenarium.data import debian_reference_translated, king_james_bible, python_source, turkish_text
from tokenarium.data.text import split_of

NAMES = ("manual", "kjv", "python", "german", "turkish")
EXCERPT = 1500  # bytes of one document in an evaluation text, about


@dataclass(frozen=True)
class Texts:
    """evaluation: name -> a text of about the bytes asked for. pool: name -> texts of other documents."""

    evaluation: dict[str, str]
    pool: dict[str, list[str]]


def texts(
    root: Path | str, bytes_per_text: int, pool_bytes: int = 0, seed: int = 0, names: Sequence[str] = NAMES
) -> Texts:
    """Evaluation texts and a pool, of documents in an order drawn by `seed`.

    "manual": the English Debian Reference; "kjv": the King James Bible; "python": Python's own library; "german": the
    German Debian Reference; "turkish": the Universal Declaration and LibreOffice's help. An evaluation text is made of
    the first whole lines of test documents, up to EXCERPT bytes of each, at most `bytes_per_text` in all; the pool of
    whole documents that are not test documents, at most `pool_bytes` for each name.
    Raises TokenariumError if a data set was not fetched, KeyError for another name.
    """
    documents = {name: _documents(_ROWS[name](root)) for name in names}
    held, rest = {}, {}
    for name, found in documents.items():
        order = sorted(found)
        random.Random(seed).shuffle(order)
        tested = [found[each] for each in order if split_of(each) == "test"]
        held[name] = "\n\n".join(_first(tested, bytes_per_text))
        rest[name] = _whole([found[each] for each in order if split_of(each) != "test"], pool_bytes)
    return Texts(held, rest)


def _documents(rows: Iterable[dict[str, str]]) -> dict[str, str]:
    parts: dict[str, list[str]] = {}
    for row in rows:
        parts.setdefault(row["id"].partition("#")[0], []).append(row["text"])
    return {name: "\n".join(lines) for name, lines in parts.items()}


def _first(documents: Iterable[str], room: int) -> list[str]:
    excerpts = []
    least = room // 10
    for document in documents:
        excerpt = _lines(document, min(EXCERPT, room))
        if excerpt:
            excerpts.append(excerpt)
            room -= len(excerpt.encode()) + 2  # the blank line between two excerpts
        if room <= least:
            break
    return excerpts


def _lines(document: str, room: int) -> str:
    kept = []
    for line in document.split("\n"):
        room -= len(line.encode()) + 1
        if room < -1:
            break
        kept.append(line)
    return "\n".join(kept).strip("\n")


def _whole(documents: Iterable[str], room: int) -> list[str]:
    kept = []
    for document in documents:
        if len(document.encode()) <= room:
            kept.append(document)
            room -= len(document.encode())
    return kept


_ROWS = {
    "manual": lambda root: debian_reference_translated.load(root, "en"),
    "kjv": king_james_bible.load,
    "python": python_source.load,
    "german": lambda root: debian_reference_translated.load(root, "de"),
    "turkish": turkish_text.load,
}
