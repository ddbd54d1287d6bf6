"""What the two experiments found, put together: token counts by language, and statistics over draws of text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from tokenarium.measure.bootstrap import LEVEL, RESAMPLES, Interval, bootstrap
from tokenarium.methods.tokenizers import premiums
from tokenarium.methods.tokenizers import tokenizer_inequities as inequities
from tokenarium.methods.tokenizers.inequities import sources
from tokenarium.study.experiments import Results

FIRST = 256  # tokens of the smallest vocabulary


@dataclass(frozen=True)
class Field:
    """Token counts of every tokenizer that was trained, from the results of `premium-bpe` and `premium-others`."""

    bpe: Results
    others: Results
    seeds: Sequence[int]

    @cached_property
    def features(self) -> dict[str, dict[str, dict[str, float]]]:
        """Text -> language -> lines, bytes, characters, whitespace_share, word_length."""
        return self.bpe.record("features")

    @cached_property
    def languages(self) -> list[str]:
        return sorted(self.bpe.parameters["languages"])

    def feature(self, name: str, text: str) -> NDArray[np.float64]:
        """(languages,) one feature of an evaluation text."""
        return np.array([self.features[text][each][name] for each in self.languages], dtype=np.float64)

    def byte_premium(self, text: str) -> NDArray[np.float64]:
        """(languages,) bytes for one byte of English."""
        return self.feature("bytes", text) / self.features[text][sources.ENGLISH]["bytes"]

    @cached_property
    def _parts(self) -> dict[str, dict[str, NDArray]]:
        return {name: self.bpe.arrays(name) for name in self.bpe.parts if name != "features"}

    def part(self, language: str, seed: int, rule: str = sources.SCALED) -> dict[str, NDArray]:
        """What was measured with one tokenizer; see the experiment."""
        return self._parts[f"{rule}-{language}-{seed}"]

    def counts(self, text: str, sizes: ArrayLike, seed: int, rule: str = sources.SCALED) -> NDArray[np.int64]:
        """(languages,) CTC with one size of vocabulary for all, or (languages, sizes).

        Where a language's text gave fewer merges than a size needs, all that it gave are used.
        """
        curves = [self.part(each, seed, rule)[text] for each in self.languages]
        return np.stack([each[np.minimum(np.asarray(sizes) - FIRST, len(each) - 1)] for each in curves]).astype(int)

    def similarity(self, text: str, seed: int) -> NDArray[np.float64]:
        """(languages,) likeness of the text trained on to an evaluation text."""
        return np.array([self.part(each, seed)[f"similarity_{text}"].item() for each in self.languages])

    @cached_property
    def bridged_languages(self) -> list[str]:
        """The languages that SuperBPE was trained for."""
        return list(self.others.parameters["bridged"])

    def bridged(self, text: str, seed: int, transition: int = 0) -> NDArray[np.int64]:
        """(bridged languages,) CTC of SuperBPE with a transition of `transitions`."""
        return np.array(
            [self.others.arrays(f"super-{each}-{seed}")[text][transition] for each in self.bridged_languages]
        )

    def unigram(self, text: str, size: int) -> NDArray[np.int64]:
        """(languages,) CTC of Unigram with a size of `unigram_sizes`."""
        place = list(self.others.parameters["unigram_sizes"]).index(size)
        return np.array([self.others.arrays(f"unigram-{each}")[text][place] for each in self.languages])

    def optimum(self, seed: int) -> "Optimum":
        """Fits on the FITTED text, and the vocabulary that each language needs for the median CTC at `target_size`."""
        p = self.bpe.parameters
        counts = self.counts(sources.FITTED, p["sizes"], seed)
        laws = [inequities.fit_powerlaw(p["sizes"], each) for each in counts]
        target = float(np.median(self.counts(sources.FITTED, p["target_size"], seed)))
        sizes = inequities.optimal_sizes(laws, target, p["smallest"], p["largest"])
        return Optimum(laws, target, sizes, round(float(sizes.mean())))

    def regression(self, seed: int | None) -> inequities.Rows:
        """Rows (size of vocabulary x text) of log CTC with what could explain it; seed None: means over the draws."""
        seeds = self.seeds if seed is None else [seed]
        sizes = np.array(self.bpe.parameters["sizes"])
        texts = (sources.TEST, sources.OUTSIDE)

        def by_text(of: Callable[[str], ArrayLike]) -> NDArray[np.float64]:
            """(languages, texts x sizes) of a number per language and text."""
            return np.concatenate([np.repeat(np.asarray(of(text))[:, None], len(sizes), axis=1) for text in texts], 1)

        y = np.mean([np.concatenate([np.log(self.counts(t, sizes, s)) for t in texts], 1) for s in seeds], axis=0)
        columns = {
            "log vocabulary": np.tile(np.log(sizes), len(texts))[None],
            "whitespace share": by_text(lambda text: self.feature("whitespace_share", text)),
            "log word length": by_text(lambda text: np.log(self.feature("word_length", text))),
            "log byte premium": by_text(lambda text: np.log(self.byte_premium(text))),
            "similarity": by_text(lambda text: np.mean([self.similarity(text, s) for s in seeds], axis=0)),
            "outside": np.repeat([float(text == sources.OUTSIDE) for text in texts], len(sizes))[None],
        }
        return inequities.design(y, columns)


@dataclass(frozen=True)
class Optimum:
    """laws: a fit per language. sizes: (languages,) the vocabulary of each. equal: the same for all, of that total."""

    laws: list[inequities.PowerLaw]
    target: float
    sizes: NDArray[np.int64]
    equal: int


def over_seeds(
    samples: Mapping[int, ArrayLike], statistic: Callable[[NDArray], NDArray], resamples: int = RESAMPLES
) -> tuple[Interval, dict[int, Interval]]:
    """A statistic over languages, of the mean over draws of text and of each draw: bootstraps over languages.

    samples: seed -> (languages,) or (languages, k) counts; statistic: of (resamples, languages[, k]).
    """
    arrays = {seed: np.asarray(each, dtype=np.float64) for seed, each in samples.items()}
    pooled = np.mean(list(arrays.values()), axis=0)
    each = {seed: bootstrap(array, statistic, resamples, over="languages") for seed, array in arrays.items()}
    return bootstrap(pooled, statistic, resamples, over="languages"), each


def pooled(seeds: Mapping[int, Interval], how: str) -> Interval:
    """The mean over draws of text, from the lowest to the highest end of their intervals."""
    value = float(np.mean([each.value for each in seeds.values()]))
    return Interval(value, min(each.low for each in seeds.values()), max(each.high for each in seeds.values()), how)


def permuted_gap(matrix: NDArray[np.int64], resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """By how much the CV of CTC is larger when the optimal sizes are dealt out to the languages at random.

    matrix: (languages, sizes) CTC of each language at the size of each; the diagonal has everyone's own.
    """
    generator = np.random.default_rng(seed)
    languages = np.arange(len(matrix))
    draws = np.array([premiums.cv(matrix[languages, generator.permutation(languages)]) for _ in range(resamples)])
    gaps = draws - premiums.cv(np.diagonal(matrix))
    low, high = np.quantile(gaps, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(gaps.mean()), low, high, f"{resamples} random permutations of the sizes")


def table_row(algorithm: str, rule: str, languages: Sequence[str], ctc: Mapping[str, NDArray]) -> dict[str, object]:
    """A row of the main table: ctc: text -> (languages,) counts."""
    row: dict[str, object] = {"algorithm": algorithm, "vocabulary": rule, "languages": len(languages)}
    for text, counts in ctc.items():
        worst = languages[int(np.argmax(counts))]
        row |= {f"mean CTC, {text}": counts.mean(), f"CV, {text}": float(premiums.cv(counts))}
        row |= {f"max/min, {text}": float(premiums.max_over_min(counts))}
        row |= {f"far above, {text}": float(premiums.share_far_above(counts)), f"worst, {text}": worst}
    return row


def frame(rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    return pd.DataFrame(list(rows))


# Statistics of two columns, (resamples, languages, 2)


def cv_ratio(samples: NDArray) -> NDArray[np.float64]:
    """The CV of the first column by that of the second."""
    return premiums.cv(samples[..., 0]) / premiums.cv(samples[..., 1])


def cv_change(samples: NDArray) -> NDArray[np.float64]:
    """The CV of the first column less that of the second."""
    return premiums.cv(samples[..., 0]) - premiums.cv(samples[..., 1])


def mean_gain(samples: NDArray) -> NDArray[np.float64]:
    """By which share the mean of the first column is below that of the second."""
    return 1 - samples[..., 0].mean(axis=-1) / samples[..., 1].mean(axis=-1)


def regression_table(rows: inequities.Rows, terms: Mapping[str, Sequence[str]], resamples: int) -> pd.DataFrame:
    """A line per term: its columns' partial R^2 with interval, and p with languages as clusters."""
    lines = []
    for term, names in terms.items():
        r2 = inequities.partial_r2_interval(rows, names, resamples=resamples)
        found = {"term": term, "partial R2": r2.value, "partial R2_low": r2.low, "partial R2_high": r2.high}
        lines.append(found | {"p": inequities.cluster_p(rows, names)})
    return pd.DataFrame(lines)


def pair_correlation(a: NDArray, b: NDArray, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Pearson's r of two (languages, languages) matrices off their diagonals, bootstrap over languages.

    Resamples on which it is not defined, of too few different languages, are left out.
    """
    off = ~np.eye(len(a), dtype=bool)
    x, y = a[off], b[off]

    def r(weights: NDArray[np.float64]) -> float:
        mean_x, mean_y = (np.average(each, weights=weights) for each in (x, y))
        covariance = (weights * (x - mean_x) * (y - mean_y)).sum()
        return covariance / np.sqrt((weights * (x - mean_x) ** 2).sum() * (weights * (y - mean_y) ** 2).sum())

    value = float(r(np.ones(len(x))))
    drawn = inequities.language_draws(len(a), resamples, seed)
    # A pair counts as often as both of its ends; a resample of one language has no pair.
    weights = (np.outer(draw, draw)[off] for draw in drawn if draw.max() < len(a))
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = np.array([r(each.astype(float)) for each in weights])
    draws = draws[np.isfinite(draws)]
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    how = f"bootstrap over {len(a)} languages, {len(draws)} of {resamples} resamples defined"
    return Interval(value, min(low, value), max(high, value), how)
