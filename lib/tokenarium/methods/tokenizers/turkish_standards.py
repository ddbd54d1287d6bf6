"""Turkish standards: the share of a tokenizer's types that are Turkish words (%TR) or single morphemes (%Pure).

Source: Bayram et al., "Tokenization Standards for Linguistic Integrity: Turkish as a Benchmark", 2025 (arXiv
2502.07057). The published scripts divide by token types where the paper's example divides by running tokens; the
scripts are the default here. Their oracles are web services (ITU), so an open analyser stands in for them.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import pairwise, permutations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from tokenizers import Tokenizer

from tokenarium.measure.bootstrap import LEVEL, RESAMPLES, Interval, bootstrap
from tokenarium.methods.tokenizers.turkish.analyser import Analyser
from tokenarium.methods.tokenizers.turkish.hybrid import Hybrid
from tokenarium.methods.tokenizers.turkish.letters import capitalised, has_letter, lower

Pieces = Callable[[str], list[tuple[Hashable, int]]]

CHARACTERS = 1_605_376  # of TR-MMLU, the text of the published table
MOST_PERMUTED = 9
_CARRIER = "a "
_WORD = re.compile(r"[^\W\d_]+")


class Verdict(NamedTuple):
    """What the oracles say of a key."""

    turkish: bool
    pure: bool


# The measure


def key_verdicts(
    id_strings: Iterable[str],
    whitelist: set[str],
    is_word: Callable[[str], bool],
    roots_of: Callable[[str], set[str]],
) -> dict[str, Verdict]:
    """The keys that the published scripts count, each with its verdict.

    id_strings: what ids stand for, each decoded alone, blanks kept. A string that is in the whitelist as it stands is
    a key and Turkish; the others are joined, split at blanks, and each word is a key that `is_word` judges. A key is
    pure if it is in the whitelist or a root of *any* word that was asked about: the roots are pooled.
    """
    types = set(id_strings)
    listed = types & whitelist
    asked = {word for string in types - listed for word in string.split()}
    roots = set().union(*map(roots_of, sorted(asked)))
    return {
        key: Verdict(key in listed or is_word(key), key in whitelist or key in roots) for key in sorted(listed | asked)
    }


def token_standards(
    id_strings: list[str],
    whitelist: set[str],
    is_word: Callable[[str], bool],
    roots_of: Callable[[str], set[str]],
) -> dict[str, float]:
    """%TR and %Pure as the published scripts count them; see `key_verdicts`.

    Returns unique, turkish and pure (numbers of keys) and turkish_pct and pure_pct, shares in [0, 1] rounded to four
    decimals (0 where there is no key).
    """
    verdicts = key_verdicts(id_strings, whitelist, is_word, roots_of).values()
    unique = len(verdicts)
    turkish, pure = (sum(each) for each in zip(*verdicts, strict=True)) if unique else (0, 0)
    return {
        "unique": unique,
        "turkish": turkish,
        "turkish_pct": round(turkish / unique, 4) if unique else 0.0,
        "pure": pure,
        "pure_pct": round(pure / unique, 4) if unique else 0.0,
    }


def word_list(roots: Iterable[str], suffixes: Iterable[str]) -> set[str]:
    """Every root and suffix that holds a letter, in lower case and capitalised; markers such as "<pad>" left out."""
    kept = {word for word in (*roots, *suffixes) if has_letter(word) and not word.startswith(("<", "special_"))}
    return kept | {capitalised(word) for word in kept}


@dataclass(frozen=True)
class Independent:
    """Verdicts that no tokenizer's word list enters: the analyser's own, and suffixes that it finds in a text.

    A type is Turkish if it has a reading or is such a suffix; pure if a reading of it has one surface, or so.
    """

    analyser: Analyser
    suffixes: frozenset[str]

    @classmethod
    def of(cls, analyser: Analyser, words: Iterable[str]) -> "Independent":
        """words: of the text whose suffixes count."""
        found = (surfaces for word in words for surfaces in analyser.segmentations(word))
        return cls(analyser, frozenset(suffix for surfaces in found for suffix in surfaces[1:]))

    def verdict(self, word: str) -> Verdict:
        """word: in lower case, without blanks around it."""
        if word in self.suffixes:
            return Verdict(True, True)
        readings = self.analyser.analyses(word)
        return Verdict(bool(readings), any(len(reading.surfaces) == 1 for reading in readings))


# Tokenizers at work on a text


@dataclass(frozen=True)
class Usage:
    """What a tokenizer made of a text.

    per_paragraph: (paragraphs,) tokens. alone: how often each token occurs, under what it stands for by itself (bytes
    that are no text as U+FFFD). surfaces: the same under what it stands for in the text. boundaries: word -> places
    inside it where a token begins.
    """

    name: str
    vocabulary: int
    per_paragraph: NDArray[np.int64]
    alone: Mapping[str, int]
    surfaces: Mapping[str, int]
    boundaries: Mapping[str, frozenset[int]]

    @property
    def lettered(self) -> dict[str, int]:
        """The surfaces that hold a letter, in lower case and without blanks around them, and how often they occur."""
        found: Counter[str] = Counter()
        for surface, count in self.surfaces.items():
            if has_letter(surface):
                found[lower(surface).strip()] += count
        return dict(sorted(found.items()))


def usage(
    name: str,
    vocabulary: int,
    paragraphs: Sequence[str],
    words: Iterable[str],
    pieces: Pieces,
    alone: Callable[[Any], str] = str,
    surface: Callable[[Any], str] | None = None,
) -> Usage:
    """Run a tokenizer over a text and over words, each of these as it stands within a sentence.

    pieces: text -> (token, place where it begins) for each. alone: what a token stands for by itself. surface: what it
    stands for in its text, if that is another matter.
    """
    counts: Counter[Hashable] = Counter()
    lengths = []
    for paragraph in paragraphs:
        found = [token for token, _ in pieces(paragraph)]
        counts.update(found)
        lengths.append(len(found))
    by_alone: Counter[str] = Counter()
    by_surface: Counter[str] = Counter()
    for token, count in counts.items():
        by_alone[alone(token)] += count
        by_surface[(surface or alone)(token)] += count
    inside = {}
    for word in words:
        starts = {start - len(_CARRIER) for _, start in pieces(_CARRIER + word)}
        inside[word] = frozenset(start for start in starts if 0 < start < len(word))
    return Usage(name, vocabulary, np.array(lengths), dict(by_alone), dict(by_surface), inside)


def library_pieces(tokenizer: Tokenizer) -> Pieces:
    """The tokens of a tokenizer of the `tokenizers` library as ids, without special ones."""

    def pieces(text: str) -> list[tuple[int, int]]:
        encoding = tokenizer.encode(text, add_special_tokens=False)
        return [(index, start) for index, (start, _) in zip(encoding.ids, encoding.offsets, strict=True)]

    return pieces


def tokens_per_word(pieces: Pieces, text: str) -> NDArray[np.int64]:
    """How many tokens begin in each word of `text.split(" ")`, (words,).

    A token that begins with the blank before a word is that word's.
    """
    ends = np.cumsum([len(word) + 1 for word in text.split(" ")]) - 1
    starts = [start for _, start in pieces(text)]
    return np.bincount(np.searchsorted(ends, starts, side="right"), minlength=len(ends))


def hybrid_usage(hybrid: Hybrid, paragraphs: Sequence[str], words: Iterable[str]) -> Usage:
    """The hybrid tokenizer over a text: alone, an id stands for the first surface that its dictionary has for it."""
    return usage(
        "hybrid",
        len(hybrid.first_surface),
        paragraphs,
        words,
        lambda text: [((piece.id, piece.surface), piece.start) for piece in hybrid.pieces(text)],
        alone=lambda token: hybrid.first_surface[token[0]],
        surface=lambda token: token[1],
    )


def characters(text: str) -> list[tuple[str, int]]:
    """Null tokenizer: every character."""
    return [(character, place) for place, character in enumerate(text)]


def whitespace_words(text: str) -> list[tuple[str, int]]:
    """Null tokenizer: whatever stands between blanks."""
    found, place = [], 0
    for word in text.split(" "):
        if word:
            found.append((word, place))
        place += len(word) + 1
    return found


class RandomMerges:
    """Null tokenizer: BPE on characters, but each merge is drawn uniformly among the pairs that are frequent.

    Words are what stands between blanks, the blank in front of them. Where no frequent pair is left, it stops.
    """

    def __init__(self, paragraphs: Iterable[str], num_merges: int, least: int, seed: int):
        """least: how often a pair must occur to be drawn."""
        counts = Counter(word for paragraph in paragraphs for word, _ in _blanked(paragraph))
        self._rank = _random_merges([(list(word), count) for word, count in counts.items()], num_merges, least, seed)
        self.vocabulary = len({character for word in counts for character in word}) + len(self._rank)
        self._known: dict[str, list[str]] = {}

    def __call__(self, text: str) -> list[tuple[str, int]]:
        found = []
        for word, place in _blanked(text):
            if word not in self._known:
                self._known[word] = self._split(word)
            for piece in self._known[word]:
                # A blank in front belongs to the token, but the token begins after it.
                found.append((piece, place + (piece[0] == " " and len(piece) > 1)))
                place += len(piece)
        return found

    def _split(self, word: str) -> list[str]:
        symbols = list(word)
        while len(symbols) > 1:
            best = min(pairwise(symbols), key=lambda pair: self._rank.get(pair, len(self._rank)))
            if best not in self._rank:
                break
            symbols = _merge(symbols, best)
        return symbols


def _blanked(text: str) -> list[tuple[str, int]]:
    return [(text[place - 1 : place] + word, place - bool(place)) for word, place in whitespace_words(text)]


def _merge(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    out, index = [], 0
    while index < len(symbols):
        if tuple(symbols[index : index + 2]) == pair:
            out.append(pair[0] + pair[1])
            index += 2
        else:
            out.append(symbols[index])
            index += 1
    return out


def _random_merges(
    words: list[tuple[list[str], int]], num_merges: int, least: int, seed: int
) -> dict[tuple[str, str], int]:
    generator = random.Random(seed)
    counts: Counter[tuple[str, str]] = Counter()
    holders: dict[tuple[str, str], dict[int, None]] = {}
    frequent: list[tuple[str, str]] = []
    place: dict[tuple[str, str], int] = {}

    def change(pair: tuple[str, str], by: int) -> None:
        counts[pair] += by
        if counts[pair] >= least and pair not in place:
            place[pair] = len(frequent)
            frequent.append(pair)
        elif counts[pair] < least and pair in place:  # the last one takes its place
            last = frequent.pop()
            hole = place.pop(pair)
            if last != pair:
                frequent[hole], place[last] = last, hole

    for index, (symbols, count) in enumerate(words):
        for pair in pairwise(symbols):
            change(pair, count)
            holders.setdefault(pair, {})[index] = None
    rank: dict[tuple[str, str], int] = {}
    while frequent and len(rank) < num_merges:
        pair = frequent[generator.randrange(len(frequent))]
        rank[pair] = len(rank)
        for index in holders.pop(pair):
            symbols, count = words[index]
            merged = _merge(symbols, pair)
            for old in pairwise(symbols):
                change(old, -count)
            for new in pairwise(merged):
                change(new, count)
                holders.setdefault(new, {})[index] = None
            words[index] = (merged, count)
    return rank


# Morpheme boundaries


def boundaries_of(surfaces: Sequence[str]) -> frozenset[int]:
    """The places inside a word where its second and later surfaces begin."""
    return frozenset(np.cumsum([len(surface) for surface in surfaces[:-1]]).tolist())


def boundary_counts(found: frozenset[int], readings: Iterable[frozenset[int]]) -> tuple[int, int, int]:
    """(right, wrong, missed) boundaries against the closest reading: fewest wrong and missed, then most right.

    Raises ValueError without a reading.
    """
    counts = [(len(found & gold), len(found - gold), len(gold - found)) for gold in readings]
    if not counts:
        raise ValueError("boundaries need at least one reading of the word")
    return min(counts, key=lambda count: (count[1] + count[2], -count[0]))


def precision_recall_f1(counts: ArrayLike) -> NDArray[np.float64]:
    """(..., 3) right, wrong, missed, summed over words -> (..., 3) precision, recall, F1; 0 where nothing is right."""
    right, wrong, missed = np.moveaxis(np.asarray(counts, dtype=np.float64), -1, 0)
    some = np.maximum(right, 1)
    shares = right / (some + wrong), right / (some + missed), 2 * right / (2 * some + wrong + missed)
    return np.stack(shares, axis=-1)


# Correlations of few models


def published() -> pd.DataFrame:
    """The published table, one model a row: TR-MMLU accuracy, parameters, vocabulary, tokens, %TR, %Pure.

    mmlu, tr_percent, ...: the paper's table (NaN for those that only the repository's later CSV has). later_*: that
    CSV, which disagrees. notebook: 1 for the four models of the published correlation.
    """
    source = resources.files("tokenarium.methods.tokenizers.turkish") / "published_standards.csv"
    with source.open(encoding="utf-8") as file:
        return pd.read_csv(file).assign(tokens_per_character=lambda table: table.tokens / CHARACTERS)


def pearson(x: ArrayLike, y: ArrayLike) -> NDArray[np.float64]:
    """Correlation along the last axis; NaN where one side is constant."""
    x, y = (np.asarray(each, dtype=np.float64) for each in (x, y))
    x, y = (each - each.mean(axis=-1, keepdims=True) for each in (x, y))
    with np.errstate(divide="ignore", invalid="ignore"):
        return (x * y).sum(-1) / np.sqrt((x * x).sum(-1) * (y * y).sum(-1))


def permutation_p(x: ArrayLike, y: ArrayLike) -> float:
    """Exact two-sided p of Pearson's r: the share of all orders of y with |r| at least as large.

    Raises ValueError for more than nine pairs (9! orders).
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(x) > MOST_PERMUTED:
        raise ValueError(f"all orders of {len(x)} are too many: give at most {MOST_PERMUTED} pairs")
    orders = np.array(list(permutations(range(len(y)))))
    return float((np.abs(pearson(x, y[orders])) >= abs(pearson(x, y)) - 1e-12).mean())


def leave_one_out(x: ArrayLike, y: ArrayLike) -> tuple[float, float]:
    """Smallest and largest Pearson r when one pair is left out."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    found = [float(pearson(np.delete(x, i), np.delete(y, i))) for i in range(len(x))]
    return min(found), max(found)


def correlation_interval(
    x: ArrayLike, y: ArrayLike, minus: ArrayLike | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Pearson's r(x, y), or r(x, y) - r(minus, y), with its percentile bootstrap over models.

    Resamples on which a correlation is not defined, because all models are the same one, are left out.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    other = None if minus is None else np.asarray(minus, dtype=np.float64)
    rows = np.random.default_rng(seed).integers(len(x), size=(resamples, len(x)))

    def statistic(pick: Any) -> NDArray[np.float64]:
        r = pearson(x[pick], y[pick])
        return r if other is None else r - pearson(other[pick], y[pick])

    draws = statistic(rows)
    kept = draws[np.isfinite(draws)]
    low, high = np.quantile(kept, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    how = f"bootstrap over {len(x)} models, {len(kept)} of {resamples} resamples defined"
    return Interval(float(statistic(np.arange(len(x)))), min(low, high), max(low, high), how)


def audit(table: pd.DataFrame, predictors: Sequence[str], resamples: int = RESAMPLES) -> pd.DataFrame:
    """Each predictor's correlation with `mmlu` over the models that have both: r, its interval, p, range, Spearman."""
    rows = []
    for predictor in predictors:
        known = table.dropna(subset=[predictor, "mmlu"])
        x, y = known[predictor].to_numpy(), known.mmlu.to_numpy()
        r = correlation_interval(x, y, resamples=resamples)
        low, high = leave_one_out(x, y)
        rows.append(
            {"predictor": predictor, "n": len(known), "r": r.value, "r_low": r.low, "r_high": r.high}
            | {"p": permutation_p(x, y), "leave one out from": low, "to": high, "Spearman": spearman(x, y)}
        )
    return pd.DataFrame(rows)


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's rank correlation."""
    return float(pearson(stats.rankdata(x), stats.rankdata(y)))


# Shares and leads with intervals


def lead_over(
    one: tuple[int, int],
    others: Sequence[tuple[int, int]],
    reference: Callable[..., NDArray[np.float64]],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Points by which a share exceeds the `reference` (np.max, np.median) of other shares.

    Shares are (hits, types). Bootstrap over types, each tokenizer's its own: of hits this is a binomial draw.
    """
    generator = np.random.default_rng(seed)
    hits, types = np.array([one, *others]).T
    shares = hits / types
    draws = generator.binomial(types, shares, size=(resamples, len(types))) / types
    value = 100 * (shares[0] - reference(shares[1:], axis=0))
    low, high = np.quantile(100 * (draws[:, 0] - reference(draws[:, 1:], axis=1)), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, low, high, f"bootstrap over types, {resamples} resamples")


# All of it for one tokenizer


@dataclass(frozen=True)
class Score:
    """What the measures say of one tokenizer. Verdicts are by type; `gold` words are those that can be read."""

    usage: Usage
    official: Mapping[str, Verdict]
    independent: Mapping[str, Verdict]
    boundaries: NDArray[np.int64]

    def hits(self, oracle: str, what: str) -> tuple[int, int]:
        """(types that are `what`, types); oracle: "official" or "independent", what: "turkish" or "pure"."""
        verdicts = getattr(self, oracle).values()
        return sum(getattr(verdict, what) for verdict in verdicts), len(verdicts)

    def running(self, what: str) -> float:
        """The share of running tokens with a letter that are `what` by the independent oracle."""
        lettered = self.usage.lettered
        hits = sum(count for word, count in lettered.items() if getattr(self.independent[word], what))
        return hits / sum(lettered.values())

    @property
    def mean_length(self) -> float:
        """Characters of a type with a letter, blanks around it not counted."""
        return float(np.mean([len(word) for word in self.independent]))

    def row(self, characters: int) -> dict[str, Any]:
        """The main table's row; shares in percent. characters: of the text."""
        percent = {
            f"{label} {short}": 100 * np.divide(*self.hits(oracle, what))
            for label, what in (("%TR", "turkish"), ("%Pure", "pure"))
            for short, oracle in (("official", "official"), ("independent", "independent"))
        }
        precision, recall, f1 = precision_recall_f1(self.boundaries.sum(axis=0))
        return {
            "tokenizer": self.usage.name,
            "vocabulary": self.usage.vocabulary,
            "tokens/char": self.usage.per_paragraph.sum() / characters,
            "types": len(self.independent),
            "type length": self.mean_length,
            **percent,
            "%TR running": 100 * self.running("turkish"),
            "%Pure running": 100 * self.running("pure"),
            "precision": precision,
            "recall": recall,
            "F1": f1,
        }


def score(
    used: Usage, whitelist: set[str], independent: Independent, gold: Mapping[str, Sequence[frozenset[int]]]
) -> Score:
    """Apply every measure. gold: word -> the boundaries of its readings; only types with a letter are judged."""
    analyser = independent.analyser
    lettered = [string for string in used.alone if has_letter(string)]
    return Score(
        used,
        key_verdicts(lettered, whitelist, analyser.is_word, analyser.roots),
        {word: independent.verdict(word) for word in used.lettered},
        np.array([boundary_counts(used.boundaries[word], readings) for word, readings in gold.items()]),
    )


def frequent_words(paragraphs: Iterable[str]) -> list[str]:
    """The words (runs of letters) that occur in lower case, the most frequent first, then in order of the alphabet."""
    counts = Counter(word for paragraph in paragraphs for word in _WORD.findall(paragraph) if word == lower(word))
    return sorted(counts, key=lambda word: (-counts[word], word))


def gold_boundaries(analyser: Analyser, words: Iterable[str]) -> dict[str, list[frozenset[int]]]:
    """Word -> the boundaries of each of its readings, for words of at least two letters that have one."""
    found = {
        word: [boundaries_of(surfaces) for surfaces in analyser.segmentations(word)] for word in words if len(word) > 1
    }
    return {word: readings for word, readings in found.items() if readings}


def rank_agreement(
    used: Mapping[str, Usage], table: pd.DataFrame, shared: Mapping[str, str], resamples: int = RESAMPLES
) -> Interval:
    """Spearman's correlation of our token counts with the published ones, bootstrap over our paragraphs.

    shared: model of the table -> name of our tokenizer. Texts are fixed, so counts rank as tokens per character do.
    """
    published_ranks = stats.rankdata(table.set_index("model").loc[list(shared), "tokens"])
    samples = np.stack([used[name].per_paragraph for name in shared.values()], axis=1)

    def statistic(resampled: NDArray[np.float64]) -> NDArray[np.float64]:
        return pearson(stats.rankdata(resampled.sum(axis=1), axis=-1), published_ranks)

    return bootstrap(samples, statistic, resamples, over="paragraphs")


def f1_lead(one: Score, others: Sequence[Score], resamples: int = RESAMPLES) -> Interval:
    """Boundary F1 of `one` minus the best of the others on the same resample of words."""
    samples = np.concatenate([each.boundaries for each in (one, *others)], axis=1)

    def statistic(resampled: NDArray[np.float64]) -> NDArray[np.float64]:
        counts = resampled.sum(axis=1).reshape(len(resampled), -1, 3)
        f1 = precision_recall_f1(counts)[..., 2]
        return f1[:, 0] - f1[:, 1:].max(axis=1)

    return bootstrap(samples, statistic, resamples, over="words")
