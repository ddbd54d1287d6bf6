"""Draws the texts, trains the fresh tokenizers, and counts what super-tokens save."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tokenarium.data import (
    debian_reference_translated,
    king_james_bible,
    libreoffice_help,
    man_pages,
    python_source,
)
from tokenarium.data.tokenizers import token_bytes
from tokenarium.errors import TokenariumError
from tokenarium.methods.tokenizers import bpe, swaplab, swaplab_texts, tokenadapt
from tokenarium.study.experiments import Experiment

SUITE = "suite"  # the texts of `swaplab_texts`


def run(experiment: Experiment) -> None:
    p, root = experiment.parameters, experiment.root
    experiment.record("texts", lambda: evaluation_texts(p, root, experiment.seeds[0]))
    experiment.record("pool", lambda: _pool(p, root, experiment.seeds[0]))
    texts, held_out = training_texts(root, p.training_bytes), _held_out(root, p.count_bytes)
    for name, recipe in experiment.progress(p.trained.items(), "tokenizers", total=len(p.trained)):
        tokenizer = _train(experiment, name, recipe, texts)
        experiment.arrays(f"counts-{name}", lambda tokenizer=tokenizer: _counts(tokenizer, held_out))
        experiment.arrays(f"lengths-{name}", lambda tokenizer=tokenizer: _lengths(tokenizer))


def evaluation_texts(p: Mapping[str, Any], root: Path, seed: int) -> dict[str, str]:
    """Held-out texts by name: those of the suite, or the beginning of a hub data set's subsets."""
    if p["texts"] == SUITE:
        return swaplab_texts.texts(root, p["bytes_per_text"], seed=seed, names=p["text_names"]).evaluation
    from datasets import load_dataset

    found = {}
    for name in p["text_names"]:
        rows = load_dataset(p["texts"], name, split="train")
        column = next(key for key, feature in rows.features.items() if getattr(feature, "dtype", "") == "string")
        beginning = "\n\n".join(rows[: min(len(rows), 100)][column]).encode()[: p["bytes_per_text"]]
        found[name] = beginning.decode("utf-8", "ignore")
    return found


def training_texts(root: Path, num_bytes: int) -> dict[str, list[str]]:
    """Training texts by language, at most `num_bytes` of each source; no test documents."""
    sources = {
        "english": (
            libreoffice_help.load(root, split="train"),
            man_pages.load(root, "train"),
            king_james_bible.load(root, "train"),
        ),
        "python": (python_source.load(root, "train"),),
        "german": (libreoffice_help.load(root, "de", "train"),),
    }
    return {name: [text for rows in each for text in _first(rows, num_bytes)] for name, each in sources.items()}


def train_tokenizer(kind: str, texts: Sequence[str], vocab_size: int, seed: int) -> Tokenizer:
    """A fresh tokenizer: "bpe" (GPT-2's words), "super" (random chunks) or "superbpe" (words for three quarters)."""
    if kind == "bpe":
        return bpe.train(texts, vocab_size).tokenizer()
    if kind == "super":
        return tokenadapt.train_supertokens(texts, vocab_size, seed)
    if kind == "superbpe":
        return bpe.train_super(texts, vocab_size, 256 + 3 * (vocab_size - 256) // 4).tokenizer()
    raise TokenariumError(f"no tokenizer is trained by '{kind}': there are bpe, super and superbpe")


def _train(experiment: Experiment, name: str, recipe: Mapping[str, Any], texts: Mapping[str, list[str]]) -> Tokenizer:
    def train() -> dict[str, Any]:
        wanted = [text for language in recipe["texts"] for text in texts[language]]
        vocab_size, seed = experiment.parameters.vocab_size, recipe.get("seed", 0)
        return json.loads(train_tokenizer(recipe["kind"], wanted, vocab_size, seed).to_str())

    return Tokenizer.from_str(json.dumps(experiment.record(f"tokenizer-{name}", train)))


def _pool(p: Mapping[str, Any], root: Path, seed: int) -> list[str]:
    """Text of the kinds that are scored, from other documents."""
    if p["texts"] != SUITE:
        return []
    pool = swaplab_texts.texts(root, p["bytes_per_text"], p["pool_bytes"], seed, p["text_names"]).pool
    return [text for texts in pool.values() for text in texts]


def _held_out(root: Path, num_bytes: int) -> dict[str, list[str]]:
    """English by source, at most so many bytes of each: another source than all training text, then the same ones."""
    return {
        "Debian Reference": _first(debian_reference_translated.load(root, "en"), num_bytes),
        "King James Bible": _first(king_james_bible.load(root, "test"), num_bytes),
        "LibreOffice help": _first(libreoffice_help.load(root, split="test"), num_bytes),
    }


def _first(rows: Sequence[Mapping[str, str]], room: int) -> list[str]:
    kept = []
    for row in rows:
        room -= len(row["text"].encode())
        if room < 0:
            break
        kept.append(row["text"])
    return kept


def _counts(tokenizer: Tokenizer, held_out: Mapping[str, list[str]]) -> dict[str, NDArray[np.float64]]:
    """Tokens in each block of 256 bytes, by source; a token counts for a block by the share of its bytes there."""
    spelled = token_bytes(tokenizer)
    found = {}
    for name, paragraphs in held_out.items():
        lengths = np.concatenate([swaplab.encode(tokenizer, text, spelled)[1] for text in paragraphs])
        tokens, num_bytes = swaplab.blocks(np.ones(len(lengths)), lengths)
        found[name] = tokens[num_bytes == num_bytes[0]]
    return found


def _lengths(tokenizer: Tokenizer) -> dict[str, NDArray[np.int64]]:
    """Bytes of every token of the vocabulary, and the blanks inside it, those at its ends not counted."""
    tokens = [token or b"" for token in token_bytes(tokenizer)]
    return {
        "bytes": np.array([len(token) for token in tokens], dtype=np.int64),
        "blanks": np.array([token.strip().count(b" ") for token in tokens], dtype=np.int64),
    }
