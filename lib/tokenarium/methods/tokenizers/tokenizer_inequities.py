"""Crosslingual tokenizer inequities: monolingual tokenizers, their token premiums, and what could even them out.

One tokenizer per language, trained on text of the same size or of the same content; its corpus token count (CTC) on
parallel text; the whole curve of CTC against the size of the vocabulary out of one encoding; a power law through it
and the vocabulary that each language needs for the same CTC; a regression of log CTC on what could explain it.

Source: Arnett et al. 2025, "Explaining and Mitigating Crosslingual Tokenizer Inequities" (arXiv 2510.21909). The form
of the fit and the target are not visible in what we have of the paper; those here are readings.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tokenarium.measure.bootstrap import LEVEL, RESAMPLES, Interval
from tokenarium.methods.tokenizers import bpe
from tokenarium.methods.tokenizers.premiums import byte_premium as byte_premium
from tokenarium.methods.tokenizers.premiums import corpus_token_count as corpus_token_count

UNKNOWN = "<unk>"
LONGEST_PIECE = 48  # bytes, 16 characters of three: the library's 16 would be 5 of those


# Training text


def sample_documents(rows: Iterable[Mapping[str, str]], num_bytes: int, seed: int) -> list[str]:
    """Paragraphs of whole documents, in an order drawn by `seed`, until they hold `num_bytes` of UTF-8.

    rows: {"id": "<document>#<part>", "text"}. The order depends on the names of documents alone, so that languages
    draw the same ones. Raises ValueError where there is less text.
    """
    documents: dict[str, list[str]] = {}
    for row in rows:
        documents.setdefault(row["id"].partition("#")[0], []).append(row["text"])
    order = sorted(documents, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    kept, room = [], num_bytes
    for text in (text for name in order for text in documents[name]):
        if room <= 0:
            return kept
        kept.append(text)
        room -= len(text.encode())
    if room > 0:
        raise ValueError(f"{num_bytes} bytes of text were asked for, {num_bytes - room} are there")
    return kept


# Tokenizers


def prefix(model: bpe.Bpe, vocab_size: int) -> bpe.Bpe:
    """The BPE that training stopped at `vocab_size` tokens would have given: the merges up to its last token.

    Raises ValueError unless 256 <= vocab_size <= the vocabulary's size.
    """
    if not 256 <= vocab_size <= len(model.vocabulary):
        raise ValueError(f"vocab_size must be between 256 and {len(model.vocabulary)}, got {vocab_size}")
    return bpe.Bpe(model.merges[: _merges_needed(model)[vocab_size - 256]], model.pre_tokenizer)


def _merges_needed(model: bpe.Bpe) -> NDArray[np.int64]:
    """(tokens - 255,) merges that make a vocabulary of 256, 257, ... A merge may make a token that is there already."""
    first: dict[bytes, int] = {}
    for index, (left, right) in enumerate(model.merges):
        first.setdefault(left + right, index)
    return np.array([0, *(first[token] + 1 for token in model.vocabulary[256:])], dtype=np.int64)


class CountCurve:
    """CTC of a text with the first 256, 257, ... tokens of a BPE, from one encoding.

    A token of the whole vocabulary is a tree of merges; with fewer merges it falls apart into the subtrees that are
    left. So CTC is the number of bytes less the merges that are there and are used.
    """

    def __init__(self, model: bpe.Bpe):
        rank = bpe.ranks(model.merges)
        made = _last_pairs(model.merges, rank)
        index = {token: place for place, token in enumerate(model.vocabulary)}
        time: dict[bytes, int] = {}
        for token in sorted(made, key=len):
            time[token] = max(rank[made[token]], *(time.get(part, 0) for part in made[token]))
        self._longest_first = [
            (index[token], time[token] + 1, *(index[part] for part in made[token]))
            for token in sorted(made, key=len, reverse=True)
        ]
        self._needed = _merges_needed(model)
        self._num_merges = len(model.merges)
        self._lengths = np.array([len(token) for token in model.vocabulary])
        self._tokenizer = model.tokenizer()

    def __call__(self, lines: Sequence[str]) -> NDArray[np.int64]:
        """(tokens - 255,) CTC of the lines at every size of the vocabulary."""
        counts = _uses(self._tokenizer, lines, len(self._lengths))
        num_bytes = int((counts * self._lengths).sum())
        joined = np.zeros(self._num_merges + 1, dtype=np.int64)  # at i + 1: joins by merge i
        uses = counts.tolist()
        for token, time, left, right in self._longest_first:
            if uses[token]:
                joined[time] += uses[token]
                uses[left] += uses[token]
                uses[right] += uses[token]
        return num_bytes - joined.cumsum()[self._needed]


def count_curve(model: bpe.Bpe, lines: Sequence[str]) -> NDArray[np.int64]:
    """(tokens - 255,) CTC of the lines with the first 256, 257, ... tokens of a BPE; see `CountCurve`."""
    return CountCurve(model)(lines)


def _uses(tokenizer: Tokenizer, lines: Sequence[str], size: int) -> NDArray[np.int64]:
    """(size,) how often each id occurs."""
    encodings = tokenizer.encode_batch_fast(list(lines), add_special_tokens=False)
    ids = [index for encoding in encodings for index in encoding.ids]
    return np.bincount(np.array(ids, dtype=np.int64), minlength=size)


def _last_pairs(merges: Sequence[bpe.Pair], rank: Mapping[bpe.Pair, int]) -> dict[bytes, bpe.Pair]:
    """Token -> the pair that encoding makes it of; of several ways, the one that encoding the token alone takes."""
    ways: dict[bytes, list[bpe.Pair]] = {}
    for pair in merges:
        ways.setdefault(pair[0] + pair[1], []).append(pair)
    return {token: pairs[0] if len(pairs) == 1 else _reached(token, pairs, rank) for token, pairs in ways.items()}


def _reached(token: bytes, pairs: Sequence[bpe.Pair], rank: Mapping[bpe.Pair, int]) -> bpe.Pair:
    symbols = [token[place : place + 1] for place in range(len(token))]
    while len(symbols) > 2:
        best = min(pairwise(symbols), key=lambda pair: rank.get(pair, len(rank)))
        if best not in rank:
            return pairs[0]
        place = next(place for place, pair in enumerate(pairwise(symbols)) if pair == best)
        symbols[place : place + 2] = [best[0] + best[1]]
    return (symbols[0], symbols[1])


def used_once(model: bpe.Bpe, texts: Sequence[str]) -> float:
    """The share of a BPE's merged tokens that encoding `texts` uses at most once: what it has learnt by heart."""
    uses = _uses(model.tokenizer(), texts, len(model.vocabulary))
    return float((uses[256:] <= 1).mean())


def train_unigram(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level Unigram LM with `vocab_size` tokens besides the unknown one, pre-tokenized as the BPE is.

    Every byte is a token, so that nothing is unknown.
    """
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = bpe.gpt2_words()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size + 1,
        special_tokens=[UNKNOWN],
        unk_token=UNKNOWN,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_piece_length=LONGEST_PIECE,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


# The vocabulary that a language needs


class PowerLaw(NamedTuple):
    """CTC(V) = a V^-b + c."""

    a: float
    b: float
    c: float

    def __call__(self, vocab_size: ArrayLike) -> NDArray[np.float64]:
        return self.a * np.asarray(vocab_size, dtype=np.float64) ** -self.b + self.c


def fit_powerlaw(sizes: ArrayLike, counts: ArrayLike) -> PowerLaw:
    """Least squares of the *relative* residuals, with a and c not negative.

    For a given exponent the rest is linear; so one search over b in [0.01, 3] finds the fit. sizes, counts: (n,), n at
    least 3. Raises ValueError for fewer points or numbers that are not positive.
    """
    sizes, counts = np.asarray(sizes, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    if len(sizes) != len(counts) or len(sizes) < 3:
        raise ValueError(f"a power law with a floor needs at least 3 points, got {len(sizes)} and {len(counts)}")
    if (sizes <= 0).any() or (counts <= 0).any():
        raise ValueError("sizes and counts must be positive")
    unit = sizes.min()

    def solve(b: float) -> tuple[NDArray[np.float64], float]:
        design = np.stack([(sizes / unit) ** -b, np.ones_like(sizes)], axis=1) / counts[:, None]
        return optimize.nnls(design, np.ones_like(counts))

    grid = np.geomspace(0.01, 3, 60)
    best = int(np.argmin([solve(b)[1] for b in grid]))
    bounds = (grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)])
    b = float(optimize.minimize_scalar(lambda b: solve(b)[1], bounds=bounds, method="bounded").x)
    a, c = solve(b)[0]
    return PowerLaw(float(a * unit**b), b, float(c))


def invert_powerlaw(a: float, b: float, c: float, target: float) -> float:
    """The V at which a V^-b + c is `target`: ((target - c) / a)^(-1/b). Infinite where the target is not above c."""
    if target <= c:
        return math.inf
    return float(((target - c) / a) ** (-1 / b))


def optimal_sizes(laws: Sequence[PowerLaw], target: float, smallest: int, largest: int) -> NDArray[np.int64]:
    """(languages,) the vocabulary at which each law reaches the target, rounded and clipped."""
    wanted = [invert_powerlaw(*law, target) for law in laws]
    return np.clip(wanted, smallest, largest).round().astype(np.int64)


# What could explain a premium


def whitespace_share(lines: Sequence[str]) -> float:
    """The share of characters that are whitespace."""
    text = "".join(lines)
    return sum(character.isspace() for character in text) / len(text)


def mean_word_length(lines: Sequence[str]) -> float:
    """Characters of what stands between whitespace, on average; long where a script puts no blanks between words."""
    words = [word for line in lines for word in line.split()]
    return sum(map(len, words)) / len(words)


def trigrams(lines: Iterable[str]) -> Counter[str]:
    """How often each sequence of three characters occurs within lines."""
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update(map("".join, zip(line, line[1:], line[2:], strict=False)))
    return counts


def similarity(a: Mapping[str, int], b: Mapping[str, int]) -> float:
    """1 - the Jensen-Shannon divergence, in bits, of two distributions given as counts: 1 if equal, 0 if disjoint."""
    total_a, total_b = sum(a.values()), sum(b.values())
    divergence = 0.0
    for key in a.keys() | b.keys():
        p, q = a.get(key, 0) / total_a, b.get(key, 0) / total_b
        middle = (p + q) / 2
        divergence += sum(x * math.log2(x / middle) for x in (p, q) if x) / 2
    return 1 - divergence


# Regression with languages as clusters


class Rows(NamedTuple):
    """What a regression is run on: y (languages, rows) and the columns x (languages, rows, columns), by name."""

    y: NDArray[np.float64]
    x: NDArray[np.float64]
    names: list[str]

    def places(self, names: Sequence[str]) -> list[int]:
        return [self.names.index(name) for name in names]


def design(y: ArrayLike, columns: Mapping[str, ArrayLike]) -> Rows:
    """Columns of any shape that broadcasts to y's (languages, rows), standardised; a constant comes first."""
    y = np.asarray(y, dtype=np.float64)
    spread = {name: np.broadcast_to(np.asarray(each, dtype=np.float64), y.shape) for name, each in columns.items()}
    x = [np.ones_like(y), *((each - each.mean()) / each.std() for each in spread.values())]
    return Rows(y, np.stack(x, axis=-1), ["constant", *columns])


def partial_r2(rows: Rows, names: Sequence[str], weights: ArrayLike | None = None) -> NDArray[np.float64]:
    """The share of the variance which the other columns leave that these explain: 1 - SSE(all) / SSE(the others).

    weights: (draws, languages) how often each language counts; without them all once. Returns (draws,).
    """
    weights = np.ones((1, len(rows.y))) if weights is None else np.asarray(weights, dtype=np.float64)
    left_out = rows.places(names)
    others = [place for place in range(len(rows.names)) if place not in left_out]
    return 1 - _sse(rows, list(range(len(rows.names))), weights) / _sse(rows, others, weights)


def _sse(rows: Rows, places: list[int], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """(draws,) squared error of the least squares fit on some columns, languages weighted."""
    x, y = rows.x[:, :, places], rows.y
    xx = np.einsum("lrj,lrk->ljk", x, x)
    xy = np.einsum("lrj,lr->lj", x, y)
    sums = np.tensordot(weights, xx, axes=1), weights @ xy
    # The pseudo-inverse, because a resample may hold too few languages to tell two columns apart.
    beta = (np.linalg.pinv(sums[0], hermitian=True) @ sums[1][..., None])[..., 0]
    return weights @ (y * y).sum(axis=1) - (beta * sums[1]).sum(axis=1)


def language_draws(languages: int, resamples: int = RESAMPLES, seed: int = 0) -> NDArray[np.int64]:
    """(resamples, languages) how often each language is in a bootstrap resample of them."""
    generator = np.random.default_rng(seed)
    picks = generator.integers(languages, size=(resamples, languages))
    return np.stack([np.bincount(pick, minlength=languages) for pick in picks])


def partial_r2_interval(
    rows: Rows, names: Sequence[str], minus: Sequence[str] = (), resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Partial R^2 of some columns, or its lead over that of others, with the bootstrap over languages."""
    draws = language_draws(len(rows.y), resamples, seed)

    def statistic(weights: NDArray | None) -> NDArray[np.float64]:
        found = partial_r2(rows, names, weights)
        return found - partial_r2(rows, minus, weights) if minus else found

    low, high = np.quantile(statistic(draws), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    value = float(statistic(None)[0])
    how = f"bootstrap over {len(rows.y)} languages, {resamples} resamples"
    return Interval(value, min(low, value), max(high, value), how)


def cluster_p(rows: Rows, names: Sequence[str]) -> float:
    """p of the hypothesis that these columns have no coefficient: Wald's test with languages as clusters.

    Rows of one language are not independent, so the covariance is the sandwich summed by language (with the usual
    correction for few clusters), and F has as many degrees of freedom below as there are languages, less one.
    """
    languages, per_language, columns = rows.x.shape
    flat = rows.x.reshape(-1, columns)
    bread = np.linalg.inv(flat.T @ flat)
    beta = bread @ flat.T @ rows.y.ravel()
    residuals = rows.y - rows.x @ beta
    scores = np.einsum("lrk,lr->lk", rows.x, residuals)
    n = languages * per_language
    correction = languages / (languages - 1) * (n - 1) / (n - columns)
    covariance = correction * bread @ (scores.T @ scores) @ bread
    places = rows.places(names)
    some = beta[places]
    wald = some @ np.linalg.solve(covariance[np.ix_(places, places)], some) / len(places)
    return float(stats.f.sf(wald, len(places), languages - 1))
