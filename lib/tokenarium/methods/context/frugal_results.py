"""What the answers under shortened passages say: accuracy, retained shares and savings, with intervals over items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tokenarium.measure.bootstrap import Interval, bootstrap, paired_bootstrap
from tokenarium.methods.context.frugal.arms import WORDS, Arm
from tokenarium.study.experiments import Results

FLOOR = 1.0  # points above chance: a task that is not solved has no share to lose
NEGATIONS = frozenset(["no", "not", "nor", "never", "none", "nothing", "nobody", "neither", "cannot", "without"])


@dataclass(frozen=True)
class Answers:
    """One task of an experiment.

    label: D, Q, R or N. choices: numbers of the options that the accuracy is about; chance: points of guessing.
    """

    results: Results
    name: str
    label: str
    choices: tuple[int, ...]

    @property
    def chance(self) -> float:
        return 100 / len(self.choices)

    @cached_property
    def items(self) -> list[dict]:
        return self.results.record(f"{self.name}-items")

    def arms(self) -> list[str]:
        """All arms that were asked, random ones once for all their seeds."""
        start = f"{self.name}-answers-"
        found = [part.removeprefix(start) for part in self.results.parts if part.startswith(start)]
        return list(dict.fromkeys(_without_seed(each) for each in found if each != "nothing"))

    def _seeds(self, arm: str) -> list[dict[str, NDArray]]:
        start = f"{self.name}-answers-"
        found = [part for part in self.results.parts if part.startswith(start)]
        names = [part for part in found if _without_seed(part.removeprefix(start)) == arm]
        if not names:
            raise KeyError(arm)
        return [self.results.arrays(part) for part in names]

    def _mean(self, arm: str, measure: Callable[[dict[str, NDArray]], NDArray]) -> NDArray[np.float64]:
        return np.mean([measure(each) for each in self._seeds(arm)], axis=0)

    def _gold(self, count: int) -> list[int]:
        return [self.choices.index(item["gold"]) for item in self.items[:count]]

    def accuracy(self, arm: str) -> NDArray[np.float64]:
        """(items,) points, 0 or 100, the mean of the seeds of a random arm."""

        def measure(each: dict[str, NDArray]) -> NDArray:
            scores = self._scores(each)
            return 100.0 * (scores.argmax(axis=1) == self._gold(len(scores)))

        return self._mean(arm, measure)

    def nats(self, arm: str) -> NDArray[np.float64]:
        """(items,) what the passage gives the right answer: of D, nats per token above those without any passage; of
        the others its log-probability among the options."""

        def measure(each: dict[str, NDArray]) -> NDArray:
            scores = self._scores(each)
            if not self._by_gain:
                scores = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
            return scores[np.arange(len(scores)), self._gold(len(scores))]

        return self._mean(arm, measure)

    @property
    def _by_gain(self) -> bool:
        return self.name == "topics"

    def _scores(self, each: dict[str, NDArray]) -> NDArray[np.float64]:
        """(items, choices): nats per token above no passage for the topics, nats of the whole option for the others."""
        if not self._by_gain:
            return each["total"][:, self.choices]
        nothing = self.results.arrays(f"{self.name}-answers-nothing")["mean"]
        return (each["mean"] - nothing[: len(each["mean"])])[:, self.choices]

    def saved(self, arm: str, unit: str = "tokens") -> NDArray[np.float64]:
        """(items,) percent of the passage's tokens, or of its words, that an arm leaves out."""
        full = self.results.arrays(f"{self.name}-answers-full")[unit]
        return self._mean(arm, lambda each: 100 * (1 - each[unit] / full[: len(each[unit])]))

    def scores(self, name: str) -> list[NDArray[np.float32]]:
        """Word scores of the passages that have them."""
        rows = self.results.arrays(f"{self.name}-scores-{name}")["scores"]
        return [row[: len(self.words(number))] for number, row in enumerate(rows)]

    def words(self, item: int) -> list[str]:
        return self.items[item]["passage"].split()

    def chosen(self, arm: Arm) -> list[list[int]]:
        """Places of the words that an arm at equal words keeps of each passage."""
        if arm.unit != WORDS:
            raise ValueError(f"{arm.name}: the tokens of the words are not recorded")
        if arm.mode == "random":
            rows = [np.zeros(len(self.words(number))) for number in range(len(self.items))]
        else:
            rows = self.scores(arm.scores)
        return [arm.kept(row.tolist(), [], number) for number, row in enumerate(rows)]


def _without_seed(arm: str) -> str:
    return arm.rpartition("-")[0] if arm.startswith("random-") else arm


# Intervals over items


def mean(values: NDArray, resamples: int) -> Interval:
    return bootstrap(values, resamples=resamples, over="items")


def gap(a: NDArray, b: NDArray, resamples: int) -> Interval:
    """mean(a) - mean(b) over the items that both have, paired."""
    count = min(len(a), len(b))
    return paired_bootstrap(a[:count], b[:count], resamples=resamples, over="items")


def relative_drop(full: NDArray, short: NDArray, chance: float, resamples: int) -> Interval:
    """(full - short) / (full - chance) of the means, on the items that both have: 1 less the retained share."""
    pairs = _pairs(full, short)
    return bootstrap(pairs, lambda s: _drop(s, chance), resamples=resamples, over="items")


def relative_drop_gap(
    first: tuple[NDArray, NDArray, float], second: tuple[NDArray, NDArray, float], resamples: int, seed: int = 0
) -> Interval:
    """The relative drop of one task less that of another, each (full, short, chance); their items are drawn apart."""
    generator = np.random.default_rng(seed)
    draws, values = [], []
    for full, short, chance in (first, second):
        pairs = _pairs(full, short)
        rows = generator.integers(len(pairs), size=(resamples, len(pairs)))
        draws.append(_drop(pairs[rows], chance))
        values.append(float(_drop(pairs[None], chance)[0]))
    low, high = np.quantile(draws[0] - draws[1], [0.025, 0.975])
    how = f"bootstrap over the items of each task on their own, {resamples} resamples"
    return Interval(values[0] - values[1], low, high, how)


def _pairs(full: NDArray, short: NDArray) -> NDArray[np.float64]:
    count = min(len(full), len(short))
    return np.stack([full[:count], short[:count]], axis=1)


def _drop(samples: NDArray, chance: float) -> NDArray[np.float64]:
    full, short = samples[..., 0].mean(axis=1), samples[..., 1].mean(axis=1)
    return (full - short) / np.maximum(full - chance, FLOOR)


# Text


def rouge_l(candidate: str, reference: str) -> float:
    """F1 of the longest common subsequence of words; 1 where both are empty (Lin 2004, beta = 1)."""
    a, b = candidate.split(), reference.split()
    if not a or not b:
        return float(a == b)
    row = [0] * (len(b) + 1)
    for word in a:
        before = 0
        for place, other in enumerate(b, start=1):
            before, row[place] = row[place], before + 1 if word == other else max(row[place], row[place - 1])
    return 2 * row[-1] / (len(a) + len(b))


def kinds(words: Sequence[str]) -> dict[str, list[int]]:
    """Places of the words that hold a digit, that deny, and that begin with a capital inside of a sentence (names)."""
    found: dict[str, list[int]] = {"numerals": [], "negations": [], "names": []}
    for place, word in enumerate(words):
        plain = word.strip(".,;:!?'\"()[]")
        if any(character.isdigit() for character in word):
            found["numerals"].append(place)
        if plain.lower() in NEGATIONS or plain.lower().endswith("n't"):
            found["negations"].append(place)
        if place and plain[:1].isupper() and words[place - 1][-1] not in ".!?:":
            found["names"].append(place)
    return found


def kept_of_kind(answers: Answers, arm: Arm, kind: str) -> list[tuple[int, int]]:
    """(words of a kind that are kept, words of that kind) in every passage that has some."""
    counts = []
    for number, places in enumerate(answers.chosen(arm)):
        members = set(kinds(answers.words(number))[kind])
        if members:
            counts.append((len(members & set(places)), len(members)))
    return counts


def ratio(counts: Sequence[tuple[int, int]], resamples: int) -> Interval:
    """Sum of the first over the sum of the second numbers, in percent."""
    return bootstrap(
        np.array(counts, dtype=float),
        lambda s: 100 * s[..., 0].sum(axis=1) / s[..., 1].sum(axis=1),
        resamples=resamples,
        over="passages",
    )


def rank_correlation(a: NDArray, b: NDArray) -> float:
    """Spearman's rho of two scores of the same words; 0 where one of them is constant."""
    from scipy.stats import spearmanr

    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(spearmanr(a, b).statistic)
