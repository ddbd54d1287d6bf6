"""Tokenizers of language models side by side: the same texts through all of them, counted in tokens.

Parallel text in many languages gives premiums; English prose, code and legal text give tokens per byte. Paragraphs are
encoded one by one, without special tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tokenarium.data import libreoffice_help, licences, python_source, udhr
from tokenarium.data.tokenizers import token_bytes, vocabulary_size
from tokenarium.errors import TokenariumError
from tokenarium.measure.bootstrap import RESAMPLES, Interval, bootstrap, paired_bootstrap
from tokenarium.methods.tokenizers import premiums

ENGLISH = "en-US"
TURKISH = "reports/turkish-standards/tables/standards.csv"
LANGUAGES = {
    "ca": "Catalan",
    "cs": "Czech",
    "da": "Danish",
    "de": "German",
    "dz": "Dzongkha",
    "el": "Greek",
    "en-US": "English",
    "es": "Spanish",
    "et": "Estonian",
    "eu": "Basque",
    "fi": "Finnish",
    "fr": "French",
    "gl": "Galician",
    "hi": "Hindi",
    "hu": "Hungarian",
    "id": "Indonesian",
    "it": "Italian",
    "ja": "Japanese",
    "km": "Khmer",
    "ko": "Korean",
    "nl": "Dutch",
    "om": "Oromo",
    "pl": "Polish",
    "pt": "Portuguese",
    "pt-BR": "Portuguese (Br.)",
    "ru": "Russian",
    "sl": "Slovenian",
    "sv": "Swedish",
    "tr": "Turkish",
    "vi": "Vietnamese",
    "zh-CN": "Chinese (simpl.)",
    "zh-TW": "Chinese (trad.)",
}


@dataclass(frozen=True)
class Texts:
    """help: language -> aligned paragraphs. declarations: code -> preamble and articles. others: name -> documents."""

    help: dict[str, list[str]]
    declarations: dict[str, list[str]]
    others: dict[str, list[str]]


def open_texts(
    root: Path | str, languages: Sequence[str], paragraphs: int, declarations: int, other_bytes: int
) -> Texts:
    """The texts of the suite below the repository root.

    paragraphs: of the help, at most, of those that all languages have. declarations: how many languages of the
    Universal Declaration, English first, composed (Unicode NFC): a few are stored decomposed, the help is not.
    other_bytes: of code and of legal text, test split, whole documents.
    """
    helps = libreoffice_help.parallel(root, list(languages))
    # Evenly spread over the pages of the help, which differ in subject.
    total = len(helps[ENGLISH])
    kept = np.unique(np.linspace(0, total - 1, min(paragraphs, total)).round().astype(int))
    codes = sorted(udhr.manifest(root), key=lambda code: (code != udhr.ENGLISH, code))[:declarations]
    others = {"code": python_source.load(root, "test"), "legal": licences.load(root, "test")}
    return Texts(
        {language: [lines[index] for index in kept] for language, lines in helps.items()},
        {code: [normalize("NFC", part) for part in parts] for code, parts in udhr.parallel(root, codes).items()},
        {name: _first(_spread(rows), other_bytes) for name, rows in others.items()},
    )


def declaration_names(root: Path | str) -> dict[str, str]:
    """Code -> the language's name in English."""
    return {code: about["name"] for code, about in udhr.manifest(root).items()}


def _spread(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Texts in an order that has nothing to do with their names: every 7th, then those after them."""
    return [row["text"] for start in range(7) for row in rows[start::7]]


def _first(texts: Iterable[str], num_bytes: int) -> list[str]:
    kept, room = [], num_bytes
    for text in texts:
        if room <= 0:
            break
        kept.append(text)
        room -= len(text.encode())
    return kept


# Counting


@dataclass(frozen=True)
class Entry:
    """One tokenizer on all texts.

    help: language -> (paragraphs,) tokens. declarations: code -> tokens. others: name -> (documents,) tokens.
    """

    name: str
    vocabulary: int
    help: dict[str, NDArray[np.int64]]
    declarations: dict[str, int]
    others: dict[str, NDArray[np.int64]]

    @cached_property
    def premiums(self) -> dict[str, float]:
        """Language of the help -> tokens for one token of English."""
        return {each: tokens.sum() / self.help[ENGLISH].sum() for each, tokens in self.help.items()}

    @cached_property
    def declaration_premiums(self) -> dict[str, float]:
        """Code of a declaration -> tokens for one token of English."""
        return {code: tokens / self.declarations[udhr.ENGLISH] for code, tokens in self.declarations.items()}


def enter(name: str, tokenizer: Tokenizer, texts: Texts) -> Entry:
    """Run a tokenizer over all texts."""

    def total(lines: list[str]) -> int:
        return premiums.corpus_token_count(tokenizer, lines)

    def each(parts: Mapping[str, list[str]]) -> dict[str, NDArray[np.int64]]:
        return {part: premiums.line_token_counts(tokenizer, lines) for part, lines in parts.items()}

    declared = {code: total(lines) for code, lines in texts.declarations.items()}
    return Entry(name, vocabulary_size(tokenizer), each(texts.help), declared, each(texts.others))


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    """What each token of `text` stands for; bytes that are no whole character as "<E8><AA>", special tokens by name."""
    known = token_bytes(tokenizer)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return [_readable(known[index]) if known[index] is not None else tokenizer.id_to_token(index) for index in ids]


def _readable(piece: bytes) -> str:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "".join(f"<{byte:02X}>" for byte in piece)


# Numbers with intervals


def metric_key(name: str) -> str:
    """A tokenizer's name as part of a metric's name."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def tokens_per_byte(counts: NDArray[np.int64], lines: Sequence[str], resamples: int = RESAMPLES) -> Interval:
    """Tokens by UTF-8 bytes of a text, bootstrap over its documents or lines."""
    samples = np.stack([counts, premiums.line_bytes(lines)], axis=1)

    def ratio(resampled: NDArray[np.float64]) -> NDArray[np.float64]:
        sums = resampled.sum(axis=1)
        return sums[:, 0] / sums[:, 1]

    return bootstrap(samples, ratio, resamples, over="documents")


def premium_spread(entry: Entry, statistic: Callable[[NDArray], NDArray], resamples: int = RESAMPLES) -> Interval:
    """A statistic of a tokenizer's premiums over the languages of the help but English, bootstrap over languages."""
    values = [premium for language, premium in entry.premiums.items() if language != ENGLISH]
    return bootstrap(values, statistic, resamples, over="languages")


def field_table(entries: Sequence[Entry], texts: Texts, resamples: int = RESAMPLES) -> pd.DataFrame:
    """A row per tokenizer: tokens per byte of English, code and legal text, and premiums over languages."""
    rows = []
    for entry in entries:
        row: dict[str, object] = {"tokenizer": entry.name, "vocabulary": entry.vocabulary}
        measured = {"English": tokens_per_byte(entry.help[ENGLISH], texts.help[ENGLISH], resamples)}
        measured |= {name: tokens_per_byte(entry.others[name], texts.others[name], resamples) for name in texts.others}
        columns = {f"tokens/byte, {name}": interval for name, interval in measured.items()}
        columns["mean premium"] = premium_spread(entry, lambda values: values.mean(axis=-1), resamples)
        columns["CV of premiums"] = premium_spread(entry, premiums.cv, resamples)
        for name, interval in columns.items():
            row |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
        worst = max(entry.premiums, key=entry.premiums.__getitem__)
        row |= {"largest": entry.premiums[worst], "of": LANGUAGES[worst]}
        declared = np.array(list(entry.declaration_premiums.values()))
        row |= {"declarations, median": float(np.median(declared)), "declarations, largest": declared.max()}
        rows.append(row | {"declarations, above 2": float((declared > 2).mean())})
    return pd.DataFrame(rows)


def ranking(entries: Sequence[Entry], resamples: int = RESAMPLES) -> pd.DataFrame:
    """Tokenizers by tokens per paragraph of the help, mean over languages, each with its paired lead to the next.

    The lead is in tokens per paragraph; negative: fewer. It is settled where its interval lies below 0.
    """
    lines = {entry.name: np.mean(list(entry.help.values()), axis=0) for entry in entries}
    order = sorted(lines, key=lambda name: lines[name].mean())
    rows = []
    for rank, name in enumerate(order, start=1):
        row = {"rank": rank, "tokenizer": name, "tokens per paragraph": lines[name].mean()}
        if rank < len(order):
            lead = paired_bootstrap(lines[name], lines[order[rank]], resamples, over="paragraphs")
            row |= {"to next": lead.value, "to next_low": lead.low, "to next_high": lead.high}
            row["settled"] = "yes" if lead.high < 0 else "no"
        rows.append(row)
    return pd.DataFrame(rows)


def turkish_table(root: Path | str, names: Sequence[str]) -> pd.DataFrame:
    """%TR and %Pure by the independent analyser, and boundary F1, of these tokenizers, as turkish-standards has them.

    Raises TokenariumError where that study has not run.
    """
    path = Path(root) / TURKISH
    if not path.is_file():
        raise TokenariumError(f"{path} is missing: run `dvc repro paper@turkish-standards`")
    table = pd.read_csv(path).set_index("tokenizer")
    columns = {
        "%TR independent": "%TR",
        "%Pure independent": "%Pure",
        "F1": "boundary F1",
        "tokens/char": "tokens/char",
    }
    found = table.loc[[name for name in names if name in table.index], list(columns)].rename(columns=columns)
    return found.sort_values("boundary F1", ascending=False).reset_index()
