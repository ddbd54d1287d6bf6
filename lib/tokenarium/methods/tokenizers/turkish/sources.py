"""Texts and tokenizers by name: those of the suite, or of the Hugging Face hub."""

import random
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from tokenarium.data import turkish_text
from tokenarium.data.tokenizers import NAMES, load_tokenizer
from tokenarium.errors import TokenariumError

TR_MMLU = "alibayram/yapay_zeka_turkce_mmlu_model_cevaplari"


def open_text(name: str, root: Path | str, characters: int, seed: int) -> list[str]:
    """Paragraphs of a text, at most `characters` of them in all.

    "turkish-text": the declaration, then paragraphs of the help drawn without replacement. TR_MMLU: its questions and
    options in order. Raises TokenariumError for another name.
    """
    if name == TR_MMLU:
        return _first(_questions(), characters)
    if name != turkish_text.DATASET.name:
        raise TokenariumError(f"no Turkish text is named {name!r}: there are {turkish_text.DATASET.name} and {TR_MMLU}")
    rows = turkish_text.load(root)
    declaration = [row["text"] for row in rows if row["id"].startswith("udhr#")]
    rest = [row["text"] for row in rows if not row["id"].startswith("udhr#")]
    random.Random(seed).shuffle(rest)
    return _first([*declaration, *rest], characters)


def open_tokenizer(name: str, root: Path | str) -> Tokenizer:
    """A tokenizer of the suite, or that of the hub's model `name` ("organisation/model")."""
    return load_tokenizer(name, root) if name in NAMES or "/" not in name else Tokenizer.from_pretrained(name)


def _first(paragraphs: Sequence[str], characters: int) -> list[str]:
    kept, room = [], characters
    for paragraph in paragraphs:
        room -= len(paragraph)
        if room < 0:
            break
        kept.append(paragraph)
    return kept


def _questions() -> list[str]:
    from datasets import load_dataset

    rows = load_dataset(TR_MMLU, split="train")
    return [line for row in rows for line in (row["soru"], *map(str, row["secenekler"]))]
