"""Gaps in source code to be filled in: which ones, and by which model."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from numpy.typing import NDArray

from tokenarium.methods.tokenizers import fim
from tokenarium.methods.tokenizers.tree_logits import LanguageModel
from tokenarium.methods.tokenizers.valid_encodings import Codec


@dataclass(frozen=True)
class Gap:
    """One held-out question: what stands before and after, and the middle that is missing."""

    prefix: str
    middle: str
    suffix: str


def gaps(form: fim.Format, texts: Sequence[str], count: int, lengths: Sequence[int], seed: int) -> list[Gap]:
    """Gaps that begin inside a token of the window's own encoding, one a window, between two letters.

    lengths: fewest and most bytes of a middle, drawn alike. A quarter of the window at least stands before.
    """
    draw = random.Random(seed)
    found: list[Gap] = []
    for text in draw.sample(texts, len(texts)):
        length = draw.randint(*lengths)
        cuts = [cut for cut in _inner_cuts(form, text) if len(text) // 4 < cut <= len(text) - length]
        if cuts and len(found) < count:
            cut = draw.choice(cuts)
            found.append(Gap(text[:cut], text[cut : cut + length], text[cut + length :]))
    return found


def _inner_cuts(form: fim.Format, text: str) -> list[int]:
    cuts, place = [], 0
    for index in form.encode(text):
        size = len(form.token_bytes[index] or b"")
        cuts += [cut for cut in range(place + 1, place + size) if text[cut - 1].isalpha() and text[cut].isalpha()]
        place += size
    return cuts


def seeded(weights: Mapping[str, NDArray], form: fim.Format, shape: Mapping[str, int]) -> LanguageModel:
    """A trained fill-in-the-middle model from its saved weights (name -> NumPy array)."""
    model = fim.build(len(form.token_bytes), shape, seed=0)
    model.load_state_dict({name: torch.from_numpy(each) for name, each in weights.items()}, strict=False)
    return LanguageModel(model.eval(), Codec(form.tokenizer, form.token_bytes), form.sentinel("prefix"))
