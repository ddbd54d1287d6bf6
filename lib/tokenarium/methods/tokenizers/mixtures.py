"""Controlled mixtures: tokenizers trained on known shares of categories, and how well an attack recovers the shares.

A category is a list of chunks of text of about CHUNK_BYTES, shuffled by a seed and dealt into two halves: A trains the
tokenizers, B is for an attacker who has other text of the same kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer

from tokenarium.methods.tokenizers import bpe, data_mixture_inference
from tokenarium.methods.tokenizers.bpe import Bpe, Replay

CHUNK_BYTES = 2_000
RANDOM_GUESSES = 200


def cut(texts: Iterable[str], chunk_bytes: int = CHUNK_BYTES) -> list[str]:
    """Whole lines joined to chunks of at least `chunk_bytes` bytes of UTF-8; only the last may be shorter."""
    chunks, lines, size = [], [], 0
    for text in texts:
        for line in f"{text}\n".splitlines(keepends=True):
            lines.append(line)
            size += len(line.encode())
            if size >= chunk_bytes:
                chunks.append("".join(lines))
                lines, size = [], 0
    return [*chunks, "".join(lines)] if lines else chunks


def halves(chunks: Sequence[str], seed: int) -> tuple[list[str], list[str]]:
    """The chunks shuffled and dealt by turns to A and B."""
    order = np.random.default_rng(seed).permutation(len(chunks))
    return [chunks[index] for index in order[::2]], [chunks[index] for index in order[1::2]]


def take(chunks: Sequence[str], num_bytes: float, repeat: bool = False) -> list[str]:
    """The first chunks with `num_bytes` bytes in all, the last one cut to fit.

    repeat: start again where there are too few, as the authors do for training. Raises ValueError without any text.
    """
    if not any(chunks):
        raise ValueError("there is no text to take from")
    taken: list[str] = []
    left = round(num_bytes)
    while left > 0:
        for chunk in chunks:
            encoded = chunk.encode()[:left]
            left -= len(encoded)
            taken.append(encoded.decode(errors="ignore"))
            if left <= 0:
                break
        if not repeat:
            break
    return taken


def mix(categories: Sequence[Sequence[str]], shares: Sequence[float], num_bytes: int) -> list[str]:
    """Training text that holds each category with its share of `num_bytes`, in bytes of UTF-8."""
    parts = [take(chunks, share * num_bytes, repeat=True) for chunks, share in zip(categories, shares, strict=True)]
    return [text for part in parts for text in part]


@dataclass(frozen=True)
class Sample:
    """What the attacker has of one category: its words, counted, and its size in bytes."""

    words: Counter[bytes]
    num_bytes: int

    @classmethod
    def of(cls, texts: Sequence[str], pre_tokenizer: PreTokenizer, normalizer: Normalizer | None = None) -> Sample:
        words = bpe.count_words(texts, pre_tokenizer, normalizer)
        return cls(words, sum(len(word) * count for word, count in words.items()))


@dataclass(frozen=True)
class Estimate:
    """Shares that an attack found, and what is left to say about its program."""

    shares: NDArray[np.float64]
    objective: float = 0.0
    constraints: int = 0
    rounds: int = 0

    def against(self, truth: NDArray[np.float64]) -> dict[str, object]:
        """The errors against the true shares, and all numbers as JSON knows them."""
        return {
            "shares": self.shares.tolist(),
            "log_mse": data_mixture_inference.log_mse(self.shares, truth),
            "max_error": float(np.abs(self.shares - truth).max()),
            "largest_found": bool(self.shares.argmax() == truth.argmax()),
            "objective": self.objective,
            "constraints": self.constraints,
            "rounds": self.rounds,
        }


def attack(replay: Replay, samples: Sequence[Sample], steps: int, pair_slack: bool = True, start: int = 0) -> Estimate:
    """Byte shares by the linear program over `steps` merges, the first ones or those from merge `start` on."""
    denoms = replay.num_pairs_at_start
    part = replay.rest(start).first(steps) if start else replay.first(steps)
    found = data_mixture_inference.infer(part, denoms, pair_slack=pair_slack)
    shares = data_mixture_inference.byte_shares(found.alpha, [sample.num_bytes for sample in samples], denoms)
    return Estimate(shares, found.objective, len(found.steps), found.rounds)


def guesses(truth: NDArray[np.float64], seed: int) -> dict[str, float]:
    """log10 MSE of equal shares, and the mean of it over many random mixtures."""
    generator = np.random.default_rng(seed)
    drawn = [data_mixture_inference.random_mixture(len(truth), generator) for _ in range(RANDOM_GUESSES)]
    equal = np.full(len(truth), 1 / len(truth))
    return {
        "uniform": data_mixture_inference.log_mse(equal, truth),
        "random": float(np.mean([data_mixture_inference.log_mse(each, truth) for each in drawn])),
    }


# The baselines read the vocabulary and how well it compresses, not the order of merges


def token_counts(trained: Bpe, categories: Sequence[Sequence[str]]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """How often each token that a merge made occurs in each category (V - 256, n), and bytes per token (n,)."""
    tokenizer = trained.tokenizer()
    counts = np.stack([_counts(tokenizer, texts, len(trained.vocabulary)) for texts in categories], axis=1)
    num_bytes = np.array([sum(len(text.encode()) for text in texts) for texts in categories])
    return counts[256:], num_bytes / counts.sum(axis=0)


def _counts(tokenizer: Tokenizer, texts: Sequence[str], vocab_size: int) -> NDArray[np.int64]:
    ids = (encoding.ids for encoding in tokenizer.encode_batch(list(texts)))
    return sum((np.bincount(each, minlength=vocab_size) for each in ids), np.zeros(vocab_size, dtype=np.int64))


@dataclass(frozen=True)
class EfficiencyLibrary:
    """Bytes per token of tokenizers that the attacker has trained.

    single: (n, n), row i of the tokenizer trained on category i alone, on each category; known: (K, n) of tokenizers
    trained on random mixtures, whose `shares` are (K, n).
    """

    single: NDArray[np.float64]
    known: NDArray[np.float64]
    shares: NDArray[np.float64]


def efficiency_library(
    training: Sequence[Sequence[str]],
    samples: Sequence[Sequence[str]],
    vocab_size: int,
    num_bytes: int,
    mixtures: int,
    pre_tokenizer: PreTokenizer,
    seed: int,
) -> EfficiencyLibrary:
    """Train a tokenizer on each category and on `mixtures` random mixtures; measure bytes per token on the samples."""
    n = len(training)
    generator = np.random.default_rng(seed)
    shares = np.array([data_mixture_inference.random_mixture(n, generator) for _ in range(mixtures)])

    def efficiency(weights: Sequence[float]) -> NDArray[np.float64]:
        return token_counts(bpe.train(mix(training, weights, num_bytes), vocab_size, pre_tokenizer), samples)[1]

    single = np.array([efficiency(row) for row in np.eye(n)])
    return EfficiencyLibrary(single, np.array([efficiency(row) for row in shares]), shares)


def baseline_shares(
    trained: Bpe, samples: Sequence[Sequence[str]], library: EfficiencyLibrary
) -> dict[str, NDArray[np.float64]]:
    """What TC and both readings of TEE say about a tokenizer."""
    counts, efficiency = token_counts(trained, samples)
    return {
        "TC": data_mixture_inference.token_shares(counts),
        "TEE": data_mixture_inference.efficiency_shares(efficiency, library.single),
        "TEE, nearest": data_mixture_inference.nearest_shares(efficiency, library.known, library.shares),
    }
