"""What the experiments on dynamic tokenization say, with intervals over passages and prompts.

Seeds are pooled: a passage counts with the share of heads (and languages) that recognise it, a prompt with its bits'
mean over the models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tokenarium.measure.bootstrap import RESAMPLES, Interval, bootstrap
from tokenarium.study.experiments import Results

Seeds = dict[int, Interval]


@dataclass(frozen=True)
class Heads:
    """Classifiers by seed: which passages each arm recognises."""

    results: Mapping[int, Results]
    languages: Sequence[str]
    resamples: int = RESAMPLES

    def correct(self, arm: str, percent: int, languages: Sequence[str] = ()) -> dict[int, NDArray[np.float64]]:
        """For each seed and passage the share of languages in which it is recognised, (passages,)."""
        return {
            seed: np.mean(
                [each.arrays(f"{seed}-{arm}")[f"{name}-{percent}"] for name in languages or self.languages], axis=0
            )
            for seed, each in self.results.items()
        }

    def accuracy(self, arm: str, percent: int, languages: Sequence[str] = ()) -> Interval:
        """Share of passages recognised, mean of seeds and languages."""
        return self._mean(np.mean(list(self.correct(arm, percent, languages).values()), axis=0))

    def difference(
        self, arm: str, percent: int, other: str, other_percent: int, languages: Sequence[str] = ()
    ) -> tuple[Interval, Seeds]:
        """Accuracy of an arm at a level minus that of another, on the same passages: pooled, and of each seed."""
        first, second = self.correct(arm, percent, languages), self.correct(other, other_percent, languages)
        apart = {seed: first[seed] - second[seed] for seed in first}
        pooled = self._mean(np.mean(list(apart.values()), axis=0))
        return pooled, {seed: self._mean(each) for seed, each in apart.items()}

    def over_majority(self, arm: str, percent: int) -> tuple[Interval, Seeds]:
        """Accuracy minus that of always naming the section with most training passages."""
        labels = next(iter(self.results.values())).arrays("labels")
        named = labels["labels"] == np.bincount(labels["train_labels"]).argmax()
        apart = {seed: each - named for seed, each in self.correct(arm, percent).items()}
        pooled = self._mean(np.mean(list(apart.values()), axis=0))
        return pooled, {seed: self._mean(each) for seed, each in apart.items()}

    def tokens(self, language: str, percent: int) -> NDArray[np.int64]:
        """Tokens of each passage, cut to what the classifier reads, (passages,)."""
        return next(iter(self.results.values())).arrays("tokens")[f"{language}-{percent}"]

    def reduction(self, percent: int, languages: Sequence[str] = ()) -> Interval:
        """How much shorter passages are than without merges: mean over languages of 1 - tokens / tokens."""
        columns = [self.tokens(name, each) for name in languages or self.languages for each in (percent, 0)]
        return bootstrap(np.stack(columns, axis=-1), _mean_reduction, self.resamples, over="passages")

    def _mean(self, values: NDArray) -> Interval:
        return bootstrap(values, resamples=self.resamples, over="passages")


def _mean_reduction(drawn: NDArray) -> NDArray:
    sums = drawn.sum(axis=1)
    return (1 - sums[:, 0::2] / sums[:, 1::2]).mean(axis=1)


@dataclass(frozen=True)
class Costs:
    """Bits of continuations after merged contexts, by arm and budget."""

    bits: Callable[[int, str, str], NDArray[np.float64]]  # seed, arm, budget -> (prompts,)
    seeds: Sequence[int]
    bytes: ArrayLike
    resamples: int = RESAMPLES

    def per_byte(self, arm: str, budget: str) -> Interval:
        """Bits per byte, mean of the seeds."""
        return ratio(np.mean([self.bits(seed, arm, budget) for seed in self.seeds], axis=0), self.bytes, self.resamples)

    def cost(self, arm: str, budget: str, than: tuple[str, str] = ("original", "0")) -> tuple[Interval, Seeds]:
        """Bits of an arm by those of another minus 1, same prompts: of the seeds' mean, and of each seed."""

        def apart(seeds: Sequence[int]) -> Interval:
            made, other = (
                np.mean([self.bits(seed, *which) for seed in seeds], axis=0) for which in ((arm, budget), than)
            )
            found = ratio(made, other, self.resamples)
            return Interval(found.value - 1, found.low - 1, found.high - 1, found.how)

        return apart(self.seeds), {seed: apart([seed]) for seed in self.seeds}


def ratio(above: ArrayLike, below: ArrayLike, resamples: int = RESAMPLES, over: str = "prompts") -> Interval:
    """Sum of one number by the sum of another, resampled together."""
    columns = np.stack([np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)], axis=-1)
    return bootstrap(columns, lambda drawn: drawn[..., 0].sum(1) / drawn[..., 1].sum(1), resamples, over=over)


def spread(tokens: Sequence[ArrayLike], before: Sequence[ArrayLike] = (), resamples: int = RESAMPLES) -> Interval:
    """Standard deviation over languages of the mean tokens of a passage; minus that of `before`, if it is given.

    tokens, before: one (passages,) for each language, aligned.
    """
    count = len(tokens)

    def statistic(drawn: NDArray) -> NDArray:
        means = drawn.mean(axis=1)
        after = means[:, :count].std(axis=1)
        return after - means[:, count:].std(axis=1) if len(before) else after

    return bootstrap(
        np.stack([*map(np.asarray, tokens), *map(np.asarray, before)], -1), statistic, resamples, over="passages"
    )


def share_of_first(lengths: NDArray[np.floating], share: float) -> float:
    """Which part of the whole reduction the first `share` of the merges gives. lengths: after 0, 1, 2, ... merges."""
    merges = share * (len(lengths) - 1)
    reached = np.interp(merges, np.arange(len(lengths)), lengths)
    return float((lengths[0] - reached) / (lengths[0] - lengths[-1]))


def matches(exact: NDArray, other: NDArray) -> NDArray[np.int64]:
    """How many tokens two continuations share before they first differ, (prompts,). exact, other: (prompts, tokens)."""
    differs = exact != other
    return np.where(differs.any(axis=1), differs.argmax(axis=1), exact.shape[1])
