"""Cells of several model seeds side by side: accuracies and differences with paired, stratified intervals (H4 to H6).

An interval over all seeds averages every question over the seeds first and resamples questions; those of the single
seeds come with it, because a verdict needs the same sign on every one. Questions are resampled within their families,
so that every resample has as many of each, and all statistics use the same resamples: everything is paired.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tokenarium.measure.bootstrap import LEVEL, Interval
from tokenarium.methods.vlm.harness.cells import QUESTIONS, cell_name
from tokenarium.study.experiments import Results

if TYPE_CHECKING:
    from tokenarium.study.study import Study

Both = tuple[Interval, dict[int, Interval]]
FULL, BLIND = "full", "blind"
CHUNK = 1000  # resamples drawn at once
DIGITS = 9  # kept: thirds of seeds that should cancel leave less than this


@lru_cache(maxsize=6)
def stratified_counts(families: tuple[str, ...], resamples: int, seed: int = 0) -> NDArray[np.float64]:
    """How often each question is drawn in each resample, within its family: (resamples, Q) float64.

    families: of every question. Rows sum to Q, and over the questions of a family to how many it has.
    """
    generator = np.random.default_rng(seed)
    names = np.array(families)
    counts = np.zeros((resamples, len(names)), dtype=np.float64)
    for family in sorted(set(families)):
        places = np.flatnonzero(names == family)
        for start in range(0, resamples, CHUNK):
            rows = min(CHUNK, resamples - start)
            drawn = generator.integers(len(places), size=(rows, len(places)))
            flat = np.bincount((drawn + np.arange(rows)[:, None] * len(places)).ravel(), minlength=drawn.size)
            counts[start : start + rows, places] = flat.reshape(drawn.shape)
    counts.setflags(write=False)
    return counts


def at_share(budget: int, num_patches: int) -> str:
    """How a metric's name says its budget at every size of image, in per cent: 48 of 144 is `at33`, 8 is `at6`."""
    return f"at{round(100 * budget / num_patches)}"


class Cells:
    """Every cell of every model seed, by part name.

    Names are "full", "blind", "hiprune_b48"; a method whose draws are parts of their own ("random-0_b48",
    "random-1_b48") is read by its plain name ("random_b48"): the mean of its draws.

    families: (Q,) str; relevant: (Q, N) bool. results: model seed -> results of the experiments that made its cells.
    Raises ValueError when the seeds were not asked the same questions.
    """

    def __init__(self, results: Mapping[int, Sequence[Results]], resamples: int, prefix: str = ""):
        self.resamples = resamples
        self._parts: dict[tuple[int, str], Results] = {}
        self._loaded: dict[tuple[int, str], dict[str, NDArray]] = {}
        asked: list[dict[str, NDArray]] = []
        for seed, stages in results.items():
            for stage in stages:
                for part in stage.parts:
                    if part.startswith(prefix):
                        name = part.removeprefix(prefix)
                        if name == QUESTIONS:
                            asked.append(stage.arrays(part))
                        self._parts[seed, name] = stage
        if not asked:
            raise ValueError("no experiment has cells: was it run?")
        if any(not np.array_equal(each[key], asked[0][key]) for each in asked for key in ("family", "relevant")):
            raise ValueError("the cells do not answer the same questions")
        self._prefix = prefix
        self.seeds = sorted({seed for seed, _ in self._parts})
        self.families = np.array([bytes(row).rstrip(b"\0").decode() for row in asked[0]["family"]])
        self.relevant = asked[0]["relevant"]

    def __contains__(self, name: str) -> bool:
        return bool(self._draws(self.seeds[0], name))

    def samples(self, measure: str, name: str) -> dict[int, NDArray[np.float64]]:
        """A measure of one cell for every question, on every seed: seed -> (Q,).

        measure: correct, log_probability, gflops; vbar, mean visual tokens over the layers; recall, the share of the
        relevant patches that are kept, NaN where there are none; tokens, visual tokens in the last layer.
        """
        return {seed: self._mean_of_draws(measure, name, seed) for seed in self.seeds}

    def kept(self, name: str) -> dict[int, NDArray[np.bool_]]:
        """Patches kept at the end, on every seed: seed -> (Q, N); of the first draw."""
        return {seed: self._cell(seed, self._need(seed, name)[0])["kept"] for seed in self.seeds}

    def statistic(
        self,
        function: Callable[..., NDArray],
        names: Sequence[str],
        measure: str = "correct",
        families: Iterable[str] | None = None,
        where: NDArray[np.bool_] | None = None,
    ) -> Both:
        """Interval of `function` of the means of `measure` in each of the cells `names`, over all seeds and on each.

        function: takes one (resamples,) array per name. families, where: the questions that count, all if None.
        """
        per_name = [self.samples(measure, name) for name in names]
        pooled = [np.mean([one[seed] for seed in self.seeds], axis=0) for one in per_name]
        seeds = {
            seed: self._interval(function, [one[seed] for one in per_name], families, where) for seed in self.seeds
        }
        return self._interval(function, pooled, families, where, len(self.seeds)), seeds

    def mean(self, name: str, measure: str = "correct", scale: float = 100.0, **which: object) -> Both:
        """Mean of a measure; accuracy in per cent by default."""
        return self.statistic(lambda a: scale * a, [name], measure, **which)

    def difference(self, one: str, other: str, measure: str = "correct", scale: float = 100.0, **which: object) -> Both:
        """Mean of `one` minus `other`, paired by question; points of accuracy by default."""
        return self.statistic(lambda a, b: scale * (a - b), [one, other], measure, **which)

    def relative(self, name: str, **which: object) -> Both:
        """Rel: accuracy as a share of the full model's."""
        return self.statistic(_ratio, [name, FULL], **which)

    def retention(self, name: str, **which: object) -> Both:
        """NR: what is left of the full model's gain over the blind one; 0 where it gains nothing, as when untrained."""
        return self.statistic(lambda a, full, blind: _ratio(a - blind, full - blind), [name, FULL, BLIND], **which)

    def contrast(self, terms: Mapping[str, float], scale: float = 100.0, **which: object) -> Both:
        """A sum of accuracies with coefficients, for differences of differences: {"a_b8": 1, "f_b8": -1, ...}."""
        weights = list(terms.values())
        return self.statistic(
            lambda *means: scale * sum(w * m for w, m in zip(weights, means, strict=True)), list(terms), **which
        )

    def probability(self, terms: Mapping[str, float], **which: object) -> Both:
        """Share of the resamples in which `contrast(terms)` is above 0."""
        weights = list(terms.values())

        def share(values: list[NDArray], seeds: int) -> Interval:
            draws = self._draws_of(values, which.get("families"), which.get("where"))[1]
            positive = float((sum(w * d for w, d in zip(weights, draws, strict=True)).round(DIGITS) > 0).mean())
            return Interval(positive, positive, positive, f"share of {self.resamples} resamples, {seeds} seeds", 1.0)

        per_name = [self.samples("correct", name) for name in terms]
        pooled = [np.mean([one[seed] for seed in self.seeds], axis=0) for one in per_name]
        return share(pooled, len(self.seeds)), {seed: share([one[seed] for one in per_name], 1) for seed in self.seeds}

    def gate(self, least: int) -> dict[str, Both]:
        """The numbers of gate G0 (H6), in points: metric name -> interval. least: the smallest budget of all.

        A claims file asks full_accuracy.min_value >= 80, full_minus_blind.min_value >= 25 and
        full_minus_random_least.min_value >= 10.
        """
        return {
            "full_accuracy": self.mean(FULL),
            "full_minus_blind": self.difference(FULL, BLIND),
            "full_minus_random_least": self.difference(FULL, cell_name("random", least)),
        }

    def frame(self, names: Mapping[str, tuple[str, int | None]]) -> pd.DataFrame:
        """The family's main table: one row per cell, all seeds together.

        names: part name -> (method as shown, budget). Columns: method, budget, vbar, gflops, accuracy with its interval
        and NR with its interval, the accuracy of every family, and recall of the relevant patches, all but vbar, gflops
        and NR in per cent.
        """
        rows = []
        some = self.relevant.any(axis=1)
        for name, (method, budget) in names.items():
            accuracy, nr = self.mean(name)[0], self.retention(name)[0]
            row: dict[str, object] = {"method": method, "budget": budget}
            row |= {
                measure: float(np.mean(list(self.samples(measure, name).values()))) for measure in ("vbar", "gflops")
            }
            row |= {"accuracy": accuracy.value, "accuracy_low": accuracy.low, "accuracy_high": accuracy.high}
            row |= {"NR": nr.value, "NR_low": nr.low, "NR_high": nr.high}
            correct = np.mean(list(self.samples("correct", name).values()), axis=0)
            row |= {family: 100 * correct[self.families == family].mean() for family in dict.fromkeys(self.families)}
            recall = np.mean(list(self.samples("recall", name).values()), axis=0)
            row["recall"] = 100 * recall[some].mean() if some.any() else np.nan
            rows.append(row)
        return pd.DataFrame(rows)

    def hand_over(self, study: Study, names: Mapping[str, tuple[str, int | None]]) -> None:
        """Give the family's arena what it needs of some cells; names: part name -> (method as shown, budget).

        Evaluations "<method>|<budget>|<seed>|<measure>", each (Q,) or (Q, ...), of correct, visual, kept and gflops.
        """
        for name, (method, budget) in names.items():
            for seed in self.seeds:
                for draw, part in enumerate(self._need(seed, name)):
                    for measure in ("correct", "visual", "kept", "gflops"):
                        label = method if draw == 0 else f"{method} #{draw}"
                        study.evaluation(f"{label}|{budget}|{seed}|{measure}", self._cell(seed, part)[measure])

    # Reading

    def _draws(self, seed: int, name: str) -> list[str]:
        if (seed, name) in self._parts:
            return [name]
        method, separator, budget = name.rpartition("_b")
        pattern = re.compile(rf"{re.escape(method)}-\d+{re.escape(separator + budget)}")
        return sorted(part for at, part in self._parts if at == seed and pattern.fullmatch(part))

    def _need(self, seed: int, name: str) -> list[str]:
        draws = self._draws(seed, name)
        if not draws:
            raise KeyError(f"no cell {name} of seed {seed}")
        return draws

    def _cell(self, seed: int, part: str) -> dict[str, NDArray]:
        if (seed, part) not in self._loaded:
            self._loaded[seed, part] = self._parts[seed, part].arrays(f"{self._prefix}{part}")
        return self._loaded[seed, part]

    def _mean_of_draws(self, measure: str, name: str, seed: int) -> NDArray[np.float64]:
        found = [self._measure(self._cell(seed, part), measure) for part in self._need(seed, name)]
        return np.mean(found, axis=0)

    def _measure(self, cell: Mapping[str, NDArray], measure: str) -> NDArray[np.float64]:
        if measure == "vbar":
            return cell["visual"].mean(axis=1, dtype=np.float64)
        if measure == "tokens":
            return cell["visual"][:, -1].astype(np.float64)
        if measure == "recall":
            total = self.relevant.sum(axis=1)
            found = (cell["kept"] & self.relevant).sum(axis=1)
            return np.divide(found, total, out=np.full(len(total), np.nan), where=total > 0)
        return cell[measure].astype(np.float64)

    def _interval(
        self,
        function: Callable[..., NDArray],
        values: list[NDArray],
        families: Iterable[str] | None,
        where: NDArray[np.bool_] | None,
        seeds: int = 1,
    ) -> Interval:
        means, draws = self._draws_of(values, families, where)
        value = round(float(function(*(np.array([mean]) for mean in means))[0]), DIGITS)
        low, high = np.quantile(function(*draws), [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).round(DIGITS)
        count = int(self._which(values, families, where).sum())
        how = f"paired bootstrap over {count} questions within families, {self.resamples} resamples"
        # A statistic that is no mean may lie outside of its own percentiles on a few questions.
        return Interval(
            value, min(low, value), max(high, value), how + (f", mean of {seeds} seeds" if seeds > 1 else "")
        )

    def _which(
        self, values: list[NDArray], families: Iterable[str] | None, where: NDArray[np.bool_] | None
    ) -> NDArray[np.bool_]:
        which = np.ones(len(self.families), dtype=bool) if families is None else np.isin(self.families, list(families))
        which = which if where is None else which & where
        return which & np.isfinite(np.sum(values, axis=0))

    def _draws_of(
        self, values: list[NDArray], families: Iterable[str] | None, where: NDArray[np.bool_] | None
    ) -> tuple[list[float], list[NDArray]]:
        which = self._which(values, families, where)
        if not which.any():
            raise ValueError("no question is left to count")
        counts = stratified_counts(tuple(self.families[which].tolist()), self.resamples)
        columns = np.stack([value[which] for value in values], axis=1)
        draws = counts @ columns / len(columns)
        return columns.mean(axis=0).tolist(), list(draws.T)


def _ratio(part: NDArray, whole: NDArray) -> NDArray:
    """part / whole, and 0 where whole is 0."""
    return np.divide(part, whole, out=np.zeros_like(whole), where=whole != 0)
