"""Token premiums: what the same content costs in different languages, counted in tokens.

Everything is counted on parallel text, line by line and without special tokens. Tokens per *byte* would hide what UTF-8
costs a script; the byte premium is kept apart for that.

Sources: Petrov et al. 2023 (premiums); Arnett et al. 2024 (byte premiums); Arnett et al. 2025, arXiv 2510.21909 (CTC).
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tokenizers import Tokenizer

from tokenarium.measure.bootstrap import RESAMPLES, Interval, bootstrap

FAR_ABOVE = 1.5  # times the median: what counts as far above it


def line_token_counts(tokenizer: Tokenizer, lines: Sequence[str]) -> NDArray[np.int64]:
    """(lines,) tokens of each line, without special tokens."""
    encodings = tokenizer.encode_batch_fast(list(lines), add_special_tokens=False)
    return np.array([len(encoding) for encoding in encodings], dtype=np.int64)


def corpus_token_count(tokenizer: Tokenizer, lines: list[str]) -> int:
    """CTC: the tokens of all lines, each encoded by itself, without special tokens."""
    return int(line_token_counts(tokenizer, lines).sum())


def line_bytes(lines: Sequence[str]) -> NDArray[np.int64]:
    """(lines,) UTF-8 bytes of each line."""
    return np.array([len(line.encode()) for line in lines], dtype=np.int64)


def byte_premium(a: list[str], b: list[str]) -> float:
    """UTF-8 bytes of `a` for one byte of the parallel `b`. Raises ValueError where `b` holds no byte."""
    denominator = int(line_bytes(b).sum())
    if denominator == 0:
        raise ValueError("a byte premium needs text to compare with: b is empty")
    return int(line_bytes(a).sum()) / denominator


# Spread over languages


def cv(counts: ArrayLike) -> NDArray[np.float64]:
    """Coefficient of variation along the last axis: standard deviation (n - 1) by mean."""
    counts = np.asarray(counts, dtype=np.float64)
    return counts.std(axis=-1, ddof=1) / counts.mean(axis=-1)


def max_over_min(counts: ArrayLike) -> NDArray[np.float64]:
    """The largest by the smallest along the last axis."""
    counts = np.asarray(counts, dtype=np.float64)
    return counts.max(axis=-1) / counts.min(axis=-1)


def share_far_above(counts: ArrayLike) -> NDArray[np.float64]:
    """The share above 1.5 times the median, along the last axis."""
    counts = np.asarray(counts, dtype=np.float64)
    return (counts > FAR_ABOVE * np.median(counts, axis=-1, keepdims=True)).mean(axis=-1)


def spread_interval(
    counts: ArrayLike, statistic: Callable[..., NDArray] = cv, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """A statistic of one count per language with its bootstrap over languages."""
    return bootstrap(counts, statistic, resamples, seed, over="languages")


def premium_intervals(
    counts: Mapping[str, ArrayLike], reference: str, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Interval]:
    """Language -> its tokens for one token of the reference, with bootstrap intervals over parallel lines.

    counts: language -> (lines,) tokens; the n-th line says the same in all. Raises ValueError for other lengths.
    """
    lengths = {len(np.asarray(each)) for each in counts.values()}
    if len(lengths) != 1:
        raise ValueError(f"parallel lines are as many in every language, got {sorted(lengths)}")
    found = {}
    for language, each in counts.items():
        pair = np.stack([np.asarray(each), np.asarray(counts[reference])], axis=1)

        def ratio(samples: NDArray[np.float64]) -> NDArray[np.float64]:
            sums = samples.sum(axis=1)
            return sums[:, 0] / sums[:, 1]

        found[language] = bootstrap(pair, ratio, resamples, seed, over="lines")
    return found
