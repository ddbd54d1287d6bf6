"""The texts that tokenizers are trained and compared on, by name: those of the suite, or of the Hugging Face hub."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from unicodedata import normalize

from tokenarium.data import libreoffice_help, udhr
from tokenarium.data.text import split_of
from tokenarium.errors import TokenariumError
from tokenarium.methods.tokenizers.tokenizer_inequities import byte_premium, sample_documents

ENGLISH = "en-US"
SCALED, UNSCALED = "scaled", "unscaled"  # text of the same content, or of the same bytes
FITTED, TEST, OUTSIDE = "validation", "test", "outside"
FLORES = "openlanguagedata/flores_plus"
SCRIPTS = {
    "dz": "Tibetan",
    "el": "Greek",
    "hi": "Devanagari",
    "ja": "Kana and Han",
    "km": "Khmer",
    "ko": "Hangul",
    "ru": "Cyrillic",
    "zh-CN": "Han",
    "zh-TW": "Han",
}

Parallel = dict[str, list[str]]


def script(language: str) -> str:
    """The script of a language of the help."""
    return SCRIPTS.get(language, "Latin")


def open_evaluations(root: Path | str, p: Mapping[str, Any]) -> dict[str, Parallel]:
    """The parallel texts: FITTED, help pages that the power laws are fitted on; TEST, others; OUTSIDE, no help.

    p: `languages` (language of the help -> its code outside), `outside` (a text's name), `paragraphs` (at most).
    """
    languages = dict(sorted(p["languages"].items()))
    outside = open_outside(p["outside"], root, languages)
    return open_help(root, languages, p["paragraphs"]) | {OUTSIDE: outside}


def byte_premiums(texts: Parallel) -> dict[str, float]:
    """Language -> bytes for one byte of English."""
    return {language: byte_premium(lines, texts[ENGLISH]) for language, lines in texts.items()}


def training_bytes(rule: str, premium: float, train_bytes: int) -> int:
    """How much text a language is given: SCALED by its byte premium, or UNSCALED."""
    return round(train_bytes * premium) if rule == SCALED else train_bytes


def open_training(root: Path | str, language: str, num_bytes: int, seed: int) -> list[str]:
    """Paragraphs of the training split of the help, whole pages drawn by `seed`, `num_bytes` in all.

    Raises TokenariumError where the language has less.
    """
    try:
        return sample_documents(libreoffice_help.load(root, language, "train"), num_bytes, seed)
    except ValueError as error:
        raise TokenariumError(f"the help in {language!r} is too short: {error}; lower train_bytes") from None


def open_help(root: Path | str, languages: Iterable[str], at_most: int) -> dict[str, Parallel]:
    """Split -> language -> the paragraphs of the help that all the languages have, the first `at_most` of the split."""
    rows = {each: {row["id"]: row["text"] for row in libreoffice_help.load(root, each)} for each in languages}
    common = set.intersection(*(set(found) for found in rows.values()))
    order: dict[str, list[str]] = {split: [] for split in (FITTED, TEST)}
    for identifier in (each for each in next(iter(rows.values())) if each in common):
        order.get(split_of(identifier), []).append(identifier)
    return {
        split: {language: [found[each] for each in identifiers[:at_most]] for language, found in rows.items()}
        for split, identifiers in order.items()
    }


def open_outside(name: str, root: Path | str, languages: Mapping[str, str]) -> Parallel:
    """Language -> parallel text of another kind: "udhr", articles cut into lines, or FLORES+ from the hub.

    languages: language of the help -> its code there. Texts are composed (Unicode NFC) as the help is; the
    declaration's Vietnamese, for one, is stored decomposed. Raises TokenariumError for another name.
    """
    if name == FLORES:
        from datasets import load_dataset

        found = {code: load_dataset(FLORES, code, split="devtest")["text"] for code in languages.values()}
        return {each: [normalize("NFC", line) for line in found[code]] for each, code in languages.items()}
    if name != udhr.DATASET.name:
        raise TokenariumError(f"no parallel text is named {name!r}: there are {udhr.DATASET.name} and {FLORES}")
    found = udhr.parallel(root, list(languages.values()))
    return {
        each: [line for text in found[code] for line in normalize("NFC", text).split("\n")]
        for each, code in languages.items()
    }
