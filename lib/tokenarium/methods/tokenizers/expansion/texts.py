"""Texts and models of the vocabulary-expansion study by name: those of the suite, or of the Hugging Face hub."""

from collections.abc import Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from tokenarium.data import king_james_bible, libreoffice_help, udhr
from tokenarium.errors import TokenariumError

HELP, DECLARATION, CC100 = "libreoffice-help", "udhr", "statmt/cc100"
_HELD_OUT = 2000  # first lines of CC-100, kept from training


def paragraphs(text: str, language: str, root: Path | str, split: str) -> list[dict[str, str]]:
    """Paragraphs {"id": "<document>#<part>", "text"} of a text in a language; split: see `tokenarium.data.text.SPLITS`.

    text: "libreoffice-help" (codes such as "el"), "udhr" ("ell_monotonic") or the hub's CC-100 ("el"), whose first
    lines are its test split. Raises TokenariumError for another name.
    """
    if text == HELP:
        return libreoffice_help.load(root, language, split)
    if text == DECLARATION:
        return udhr.load(root, language, split)
    if text == CC100:
        return _cc100(language, split)
    raise TokenariumError(f"no text is named {text!r}: there are {HELP}, {DECLARATION} and {CC100}")


def lines(text: str, language: str, root: Path | str, most_bytes: int, seed: int, split: str = "train") -> list[str]:
    """Paragraphs in random order, as many as fit into `most_bytes` of UTF-8."""
    return _within([row["text"] for row in paragraphs(text, language, root, split)], most_bytes, seed)


def documents(text: str, language: str, root: Path | str, count: int, least_bytes: int, seed: int) -> list[str]:
    """The beginnings of up to `count` test documents in random order: whole paragraphs, at least `least_bytes` in all.

    Documents that are shorter are left out. Raises TokenariumError for fewer than two.
    """
    found = []
    for _, rows in groupby(paragraphs(text, language, root, "test"), key=lambda row: row["id"].partition("#")[0]):
        kept: list[str] = []
        for row in rows:
            kept.append(row["text"])
            if len("\n".join(kept).encode()) >= least_bytes:
                found.append("\n".join(kept))
                break
    if len(found) < 2:
        raise TokenariumError(
            f"{text} has {len(found)} test documents of {least_bytes} bytes in {language!r}: lower it"
        )
    order = np.random.default_rng(seed).permutation(len(found))
    return [found[index] for index in order[:count]]


def english(text: str, root: Path | str, most_bytes: int, seed: int) -> list[str]:
    """English of a text (see `paragraphs`) and, where that is the help, as much of the King James Bible."""
    if text == DECLARATION:
        return lines(text, udhr.ENGLISH, root, most_bytes, seed)
    if text != HELP:
        return lines(text, "en", root, most_bytes, seed)
    verses = [row["text"] for row in king_james_bible.load(root, split="train")]
    return lines(text, libreoffice_help.ENGLISH, root, most_bytes // 2, seed) + _within(verses, most_bytes // 2, seed)


def open_model(name: str, root: Path | str, seed: int = 0) -> tuple[Tokenizer, Any, int]:
    """(tokenizer, model, id of the start symbol) of a model of the suite or of the hub ("organisation/model").

    Models of the hub are opened in bfloat16, on the GPU if there is one. "tiny" is a random Llama with a byte alphabet
    and a few merges, to try the wiring.
    """
    from tokenarium.methods.tokenizers.expansion import source_model

    if name == "tiny":
        tokenizer = source_model.train_tokenizer(["a first line of text", "the second line of the text"], 290)
        return tokenizer, source_model.llama(tokenizer, 32, 5, 2, 64, seed), source_model.start_id(tokenizer)
    if "/" in name:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        wrapped = AutoTokenizer.from_pretrained(name)
        model = AutoModelForCausalLM.from_pretrained(name, dtype="bfloat16").to(device())
        return wrapped.backend_tokenizer, model.eval(), wrapped.bos_token_id
    from tokenarium.models import language

    wrapped, model = language.load(Path(root) / "models" / name)
    return wrapped.backend_tokenizer, model, wrapped.bos_token_id


def device() -> str:
    """Where models of profile gpu are: on the GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _within(texts: Sequence[str], most_bytes: int, seed: int) -> list[str]:
    kept, room = [], most_bytes
    for index in np.random.default_rng(seed).permutation(len(texts)):
        room -= len(texts[index].encode())
        if room < 0:
            break
        kept.append(texts[index])
    return kept


def _cc100(language: str, split: str) -> list[dict[str, str]]:
    from datasets import load_dataset

    rows = (row["text"].strip() for row in load_dataset(CC100, lang=language, split="train", streaming=True))
    filled = (row for row in rows if row)
    bounds = {"test": (0, _HELD_OUT), "validation": (_HELD_OUT, 2 * _HELD_OUT)}.get(split, (2 * _HELD_OUT, 40_000))
    return [{"id": f"{index}#1", "text": row} for index, row in enumerate(islice(filled, *bounds))]
