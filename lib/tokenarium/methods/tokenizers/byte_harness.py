"""What the byte-probability experiments share: models with their codecs, and passages and words to continue."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, normalizers, pre_tokenizers

from tokenarium.data import debian_reference, king_james_bible, python_source
from tokenarium.data.tokenizers import token_bytes
from tokenarium.methods.tokenizers import bpe
from tokenarium.methods.tokenizers.tree_logits import LanguageModel
from tokenarium.methods.tokenizers.valid_encodings import LOOK_AHEAD, Codec
from tokenarium.models import language

DOMAINS = ("manual", "bible", "python")
_RANDOM = re.compile(r"random-(\d+)")
_WORD = re.compile(r"[A-Za-z]+")


def open_model(name: str, root: Path, texts: Sequence[str]) -> LanguageModel:
    """A model of the suite (models/<name>), of the hub, or "random-<n>": an untrained Llama with a BPE of n tokens.

    The random one learns its merges from `texts`; it stands in for a real one where only the wiring is tried.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    if match := _RANDOM.fullmatch(name):
        merges = bpe.train(texts, int(match[1]))
        start = len(merges.vocabulary)
        torch.manual_seed(start)
        config = LlamaConfig(
            vocab_size=start + 1,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=1024,
            bos_token_id=start,
            eos_token_id=None,
        )
        return LanguageModel(
            LlamaForCausalLM(config).eval(), Codec(merges.tokenizer(), [*merges.vocabulary, None]), start
        )
    place = root / "models" / name
    if place.is_dir():
        tokenizer, model = language.load(place)
    else:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForCausalLM.from_pretrained(name, dtype="auto").eval()
    backend = _plain(tokenizer.backend_tokenizer)
    # GPT-2's pieces look ahead; a BPE over whole texts does not.
    probes = LOOK_AHEAD if b"ByteLevel" in _state(backend.pre_tokenizer) else ("",)
    return LanguageModel(model, Codec(backend, token_bytes(backend), probes), tokenizer.bos_token_id)


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    """Without the blank that SentencePiece tokenizers such as Llama 2's put before a text."""
    if b"Prepend" in _state(tokenizer.normalizer):
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
    if b"Metaspace" in _state(tokenizer.pre_tokenizer):
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    return tokenizer


def _state(part: Any) -> bytes:
    """A part of a tokenizer as its JSON, empty where there is none."""
    return part.__getstate__() if part is not None else b""


def documents(root: Path, domain: str) -> list[str]:
    """ASCII texts of one of DOMAINS: sections of a manual, chapters of the King James Bible, Python's own modules."""
    if domain == "manual":
        texts = _joined(debian_reference.load(root), "\n")
    elif domain == "bible":
        texts = _joined(king_james_bible.load(root), " ")
    elif domain == "python":
        texts = [row["text"] for row in python_source.load(root)]
    else:
        raise ValueError(f"domain must be one of {', '.join(DOMAINS)}, got {domain!r}")
    return [text for text in texts if text.isascii()]


def _joined(rows: Sequence[Mapping[str, str]], between: str) -> list[str]:
    """The texts of each document (what stands before "#" in an id), joined."""
    groups = groupby(rows, key=lambda row: row["id"].partition("#")[0])
    return [between.join(row["text"] for row in group) for _, group in groups]


@dataclass(frozen=True)
class Passage:
    """Bytes to be predicted, after those that are given."""

    data: bytes
    start: int


def passages(texts: Sequence[str], count: int, given: int, scored: int, seed: int) -> list[Passage]:
    """One passage from each of `count` texts drawn at random: `given` bytes from a random blank on, then `scored`.

    Raises ValueError if too few texts are long enough.
    """
    draw = random.Random(seed)
    found = []
    for text in draw.sample(texts, len(texts)):
        starts = [match.end() for match in re.finditer(r"\s", text) if match.end() <= len(text) - given - scored]
        if starts and len(found) < count:
            start = draw.choice(starts)
            found.append(Passage(text[start : start + given + scored].encode(), given))
    if len(found) < count:
        raise ValueError(f"{count} passages are asked for, only {len(found)} texts have {given + scored} bytes")
    return found


def word_cuts(texts: Sequence[str], count: int, given: int, seed: int) -> list[Passage]:
    """Prompts cut inside a word, at least one byte after its beginning and two before its end; `data` ends with it.

    One from each of `count` texts drawn at random: a word drawn alike among those that begin at least `given` bytes
    after the text does, cut at a place drawn alike. The prompt holds about `given` bytes, from a blank on.
    """
    draw = random.Random(seed)
    found = []
    for text in draw.sample(texts, len(texts)):
        words = [match.span() for match in _WORD.finditer(text, given) if len(match[0]) >= 3]
        words = [(start, end) for start, end in words if not text[start - 1].isalnum()]
        if words and len(found) < count:
            start, end = draw.choice(words)
            blank = re.compile(r"\s").search(text, start - given)
            first = blank.end() if blank and blank.end() < start else start - given
            cut = draw.randint(start + 1, end - 2)
            found.append(Passage(text[first:end].encode(), cut - first))
    if len(found) < count:
        raise ValueError(f"{count} words are asked for, only {len(found)} texts are long enough")
    return found
