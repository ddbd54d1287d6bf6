"""What TokenAdapt's experiments share: models and tokenizers, features of strings, the arms' rows for new tokens."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from tokenarium.data.tokenizers import NAMES, load_tokenizer, token_bytes
from tokenarium.errors import TokenariumError
from tokenarium.methods.tokenizers import swaplab, tokenadapt
from tokenarium.models import language, minilm
from tokenarium.study.experiments import Results, open_results
from tokenarium.study.parameters import load_params

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TINY = "tiny"
SPELLING = "spelling"
SPELLING_DIM = 384
MOST_NEIGHBOURS = 8


# Opening


def open_tokenizer(name: str, root: Path) -> Tokenizer:
    """A tokenizer of the suite, or that of the hub's model `name` ("organisation/model")."""
    return load_tokenizer(name, root) if name in NAMES or "/" not in name else Tokenizer.from_pretrained(name)


def open_model(name: str, root: Path, vocab_size: int, seed: int, dtype: str) -> PreTrainedModel:
    """The base model: "models/<name>" of the suite, a model of the hub, or "tiny", random with `vocab_size` rows."""
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    if name == TINY:
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        )
        return LlamaForCausalLM(config).eval()
    if name.startswith("models/"):
        return language.load(root / name)[1]
    model = AutoModelForCausalLM.from_pretrained(name, dtype=getattr(torch, dtype))
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


class Made:
    """What the earlier experiments made: the texts, the trained tokenizers, and the features of strings."""

    def __init__(self, root: Path, profile: str):
        self._root, self._params, self._profile = root, load_params(root), profile
        self._tokenizers = self._results("tokenadapt-tokenizers")
        self.texts: dict[str, str] = self._tokenizers.record("texts")
        self.pool: list[str] = self._tokenizers.record("pool")

    def _results(self, name: str) -> Results:
        return open_results(self._root, self._params, name, self._profile)

    def tokenizer(self, name: str) -> Tokenizer:
        """A tokenizer that was trained there, else one of the suite or the hub."""
        part = f"tokenizer-{name}"
        if part in self._tokenizers.parts:
            return Tokenizer.from_str(json.dumps(self._tokenizers.record(part)))
        return open_tokenizer(name, self._root)

    def features(self) -> Features:
        """Raises TokenariumError when they were not made at this profile."""
        made = self._results("tokenadapt-features")
        parts = [part for part in made.parts if part.startswith("phi-")]
        vectors = np.concatenate([made.arrays(part)["vectors"] for part in parts])
        return Features(made.parameters, vectors, made.arrays("places"))


@dataclass(frozen=True)
class Features:
    """Features of distinct strings, (M, D), and where each string of "old" and of each target has its own."""

    parameters: Mapping[str, Any]
    vectors: NDArray[np.float32]
    places: Mapping[str, NDArray[np.int64]]

    def shuffled(self, seed: int) -> Features:
        """The same features dealt out at random among the distinct strings."""
        order = np.random.default_rng(seed).permutation(len(self.vectors))
        return Features(self.parameters, self.vectors[order], self.places)

    def of(self, name: str) -> NDArray[np.float32]:
        """(n, D) of "old" or of a target."""
        return self.vectors[self.places[name]]


# Features of strings


def decoded(tokenizer: Tokenizer) -> list[str]:
    """The text of every id alone; bytes that are no whole UTF-8 become U+FFFD, special tokens stand for themselves."""
    found = token_bytes(tokenizer)
    return [
        (tokenizer.id_to_token(index) or "") if token is None else token.decode("utf-8", "replace")
        for index, token in enumerate(found)
    ]


def spelling(strings: Sequence[str]) -> NDArray[np.float32]:
    """Features (n, SPELLING_DIM) that know nothing but the letters: counts of hashed runs of three characters."""
    found = np.zeros((len(strings), SPELLING_DIM), dtype=np.float32)
    for row, string in zip(found, strings, strict=True):
        framed = f"\x02{string}\x03"
        for start in range(max(len(framed) - 2, 1)):
            row[zlib.crc32(framed[start : start + 3].encode("utf-8", "surrogatepass")) % SPELLING_DIM] += 1
    return found


class Encoder:
    """The auxiliary encoder φ: mean of the last hidden states of a string, or "spelling"."""

    def __init__(self, name: str, root: Path):
        self._model = None
        if name == SPELLING:
            return
        if name.startswith("models/"):
            self._tokenizer, self._model = minilm.load(root / name)
        else:
            from transformers import AutoModel, AutoTokenizer

            self._tokenizer = AutoTokenizer.from_pretrained(name)
            self._model = AutoModel.from_pretrained(name).eval()

    def distinct(self, strings: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
        """Strings that the encoder tells apart (it may know neither case nor blanks), and each string's place there."""
        keys = strings
        if self._model is not None:
            keys = [tuple(ids) for ids in self._tokenizer(list(strings), truncation=True, max_length=256)["input_ids"]]
        places: dict[Any, int] = {}
        firsts = []
        for key, string in zip(keys, strings, strict=True):
            if key not in places:
                places[key] = len(firsts)
                firsts.append(string)
        return firsts, np.array([places[key] for key in keys], dtype=np.int64)

    def __call__(self, strings: Sequence[str], batch_size: int = 256) -> NDArray[np.float32]:
        """Features (n, D)."""
        if self._model is None:
            return spelling(strings)
        order = sorted(range(len(strings)), key=lambda index: len(strings[index]))  # little padding
        found = None
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            vectors = minilm.embed(self._tokenizer, self._model, [strings[index] for index in part]).numpy()
            found = np.empty((len(strings), vectors.shape[1]), dtype=np.float32) if found is None else found
            found[part] = vectors
        return found


# Targets and arms


@dataclass(frozen=True)
class Target:
    """A new tokenizer as it is put on the base model: which tokens get rows, and which of them are new.

    kept: (V',) ids with rows. shared: (new ids, old ids), by bytes. fresh: (U,) ids without an old row, with their
    decoded `strings` and `pieces`, the old ids of these strings. As in the paper's code, a token that is a part of a
    character decodes to U+FFFD, and its pieces are those of that sign.
    """

    tokenizer: Tokenizer
    kept: NDArray[np.int64]
    shared: tuple[NDArray[np.int64], NDArray[np.int64]]
    fresh: NDArray[np.int64]
    strings: list[str]
    pieces: list[list[int]]

    @classmethod
    def of(cls, old: Tokenizer, new: Tokenizer, texts: Sequence[str]) -> Target:
        """texts: those to be scored; only what occurs in them, all bytes and all shared tokens get rows."""
        shared = swaplab.match(old, new)
        kept = swaplab.restricted(new, texts, shared[0])
        fresh = swaplab.fresh(kept, shared)
        texts_of_ids = decoded(new)
        strings = [texts_of_ids[index] for index in fresh]
        pieces = [old.encode(string, add_special_tokens=False).ids for string in strings]
        return cls(new, kept, shared, fresh, strings, pieces)


@dataclass
class Rows:
    """The arms' rows for one target's new tokens.

    old_strings: the text of each old id. phi_old: (V, D), phi_new: (U, D) features.
    """

    target: Target
    old: Tokenizer
    old_strings: Sequence[str]
    phi_old: NDArray[np.float32]
    phi_new: NDArray[np.float32]
    texts: Sequence[str] = ()  # for Align
    _near: tuple[NDArray[np.int64], NDArray[np.float32]] | None = field(default=None, init=False, repr=False)

    def neighbours(self, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Old ids (U, k) of the nearest strings and their cosines."""
        if self._near is None:
            self._near = tokenadapt.nearest(self.phi_new, self.phi_old, max(k, MOST_NEIGHBOURS))
        return self._near[0][:, :k], self._near[1][:, :k]

    def lengths(self, token: int) -> tuple[list[int], int]:
        """Characters of the pieces of the new token number `token`, and its own."""
        return [len(self.old_strings[piece]) for piece in self.target.pieces[token]], len(self.target.strings[token])

    def adapt(self, old_rows: Tensor, tau: float, lam: float, k: int) -> Tensor:
        """TokenAdapt's rows (U, d) from the old ones (V, d)."""
        held = old_rows.float().cpu().numpy()
        near, similar = self.neighbours(k)
        made = np.empty((len(self.target.fresh), held.shape[1]), dtype=np.float32)
        for token, parts in enumerate(self.target.pieces):
            piece_lens, full_len = self.lengths(token)
            made[token] = tokenadapt.tokenadapt_row(
                self.phi_new[token],
                self.phi_old[parts],
                piece_lens,
                full_len,
                held[parts],
                similar[token],
                held[near[token]],
                tau,
                lam,
            )
        return torch.from_numpy(made).to(old_rows)

    def make(self, arm: Mapping[str, Any], old_rows: Tensor) -> Tensor:
        """The new rows (U, d) of an arm {"kind", ...}; kind "adapt" takes tau, lam and k."""
        kind, count = arm.get("kind", "adapt"), len(self.target.fresh)
        if kind == "adapt":
            return self.adapt(old_rows, arm["tau"], arm["lam"], arm["k"])
        if kind == "retok":
            return swaplab.piece_mean(old_rows, self.target.pieces)
        if kind == "align":
            return align(old_rows, self.old, self.target, self.texts)
        if kind == "mean":
            return swaplab.mean(old_rows, count)
        if kind == "random":
            return scalar_normal(old_rows, count, arm["seed"])
        raise TokenariumError(f"no arm is of the kind '{kind}': there are adapt, retok, align, mean and random")


def scalar_normal(rows: Tensor, count: int, seed: int) -> Tensor:
    """(count, d): normal, with the mean and standard deviation of all numbers of the old rows; TokenAdapt's start."""
    noise = torch.randn(count, rows.shape[1], generator=torch.Generator().manual_seed(seed))
    return (rows.float().mean().cpu() + noise * rows.float().std().cpu()).to(rows)


def align(old_rows: Tensor, old: Tokenizer, target: Target, texts: Sequence[str]) -> Tensor:
    """Align (arXiv 2406.11477): a new token's row is the mean of its old pieces' means as text shows them.

    Both tokenizers cut the texts; each time a new token occurs, the old tokens inside its bytes, or around them, are
    one reading of it, and readings are weighed by how often they occur. Tokens that never occur keep the plain mean.
    """
    readings: dict[int, Counter[tuple[int, ...]]] = {}
    old_bytes, new_bytes = token_bytes(old), token_bytes(target.tokenizer)
    for text in texts:
        ids, lengths = swaplab.encode(old, text, old_bytes)
        new_ids, new_lengths = swaplab.encode(target.tokenizer, text, new_bytes)
        ends, new_ends = np.cumsum(lengths), np.cumsum(new_lengths)
        if not len(ends) or ends[-1] != new_ends[-1]:  # one of them normalises or drops something
            continue
        starts, new_starts = ends - lengths, new_ends - new_lengths
        for token in np.flatnonzero(np.isin(new_ids, target.fresh)):
            begin, end = new_starts[token], new_ends[token]
            first, last = np.searchsorted(starts, begin), np.searchsorted(ends, end, side="right")
            reading = tuple(ids[first:last].tolist())
            if not reading:  # inside one old token, or across the border of two: the former is around it
                around = int(np.searchsorted(ends, begin, side="right"))
                reading = (int(ids[around]),) if starts[around] <= begin and ends[around] >= end else ()
            if reading:
                readings.setdefault(int(new_ids[token]), Counter())[reading] += 1
    made = swaplab.piece_mean(old_rows, target.pieces)
    for place, index in enumerate(target.fresh.tolist()):
        if index in readings:
            counts = readings[index]
            means = torch.stack([old_rows[list(reading)].mean(dim=0) for reading in counts])
            weights = torch.tensor(list(counts.values())).to(means) / counts.total()
            made[place] = weights @ means
    return made
