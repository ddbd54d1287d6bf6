"""The family's arena: per-image results of all papers, side by side on the same models, images and budgets."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from tokenarium.errors import TokenariumError
from tokenarium.measure import classification
from tokenarium.measure.bootstrap import Interval, bootstrap_columns
from tokenarium.methods.vision.harness.evaluation import mean_over_seeds, paired_over_seeds

SAME = 1e-4  # largest difference of a logit between two runs of the same method in two papers
MEASURES = ("top1", "agreement", "kl")


def metric_key(method: str) -> str:
    """A method's name as part of a metric's name: "ToMe + prop" -> "tome_prop"."""
    return re.sub(r"[^a-z0-9]+", "_", method.lower()).strip("_")


def load_field(folder: Path, resamples: int) -> Field:
    """Read evaluations/<family>: one results.safetensors per paper, tensors named "method|budget|seed".

    Raises TokenariumError when there is none, and when two papers disagree on labels, on the full model or on a method
    that both evaluated: then they did not run on the same harness.
    """
    files = sorted(folder.glob("*/results.safetensors"))
    if not files:
        raise TokenariumError(f"{folder} holds no results: run the family's papers first (`dvc repro`)")
    results: dict[tuple[str, float, int], NDArray] = {}
    papers: dict[str, set[str]] = defaultdict(set)
    for file in files:
        slug = file.parent.name
        for name, values in load_file(file).items():
            method, budget, seed = name.split("|")
            key = (method, float(budget), int(seed))
            if key in results:
                _check_same(key, results[key], values, slug)
            if key not in results or len(values) > len(results[key]):
                results[key] = values
            papers[method].add(slug)
    return Field(results, papers, resamples)


def _check_same(key: tuple[str, float, int], one: NDArray, other: NDArray, slug: str) -> None:
    count = min(len(one), len(other))
    if one.shape[1:] != other.shape[1:] or not np.allclose(one[:count], other[:count], rtol=0, atol=SAME):
        method, budget, seed = key
        raise TokenariumError(
            f"{slug} has other results for {method} at {budget:g}, seed {seed} than another paper: "
            "rerun both with `dvc repro`, or give its variant a name of its own"
        )


class Field:
    """All methods of a family with their per-image measures."""

    def __init__(self, results: dict[tuple[str, float, int], NDArray], papers: dict[str, set[str]], resamples: int):
        self.resamples, self._papers = resamples, papers
        self._cells: dict[tuple[str, float], dict[int, dict[str, NDArray[np.float64]]]] = defaultdict(dict)
        for (method, budget, seed), logits in results.items():
            if method == "labels":
                continue
            count = len(logits)
            reduced, full = (torch.from_numpy(x[:count]) for x in (logits, results["full", 1.0, seed]))
            labels = torch.from_numpy(results["labels", 1.0, seed][:count])
            self._cells[method, budget][seed] = {
                "top1": classification.correct(reduced, labels).numpy(),
                "agreement": classification.agreement(reduced, full).numpy(),
                "kl": classification.kl(full, reduced).numpy(),
            }

    def methods(self, budget: float) -> list[str]:
        """Methods that ran at `budget`."""
        return [method for method, at in self._cells if at == budget]

    def samples(self, measure: str, method: str, budget: float) -> dict[int, NDArray[np.float64]]:
        """The measure of one setting on every seed: seed -> (images,) float64."""
        return {seed: cell[measure] for seed, cell in self._cells[method, budget].items()}

    def interval(self, measure: str, method: str, budget: float) -> tuple[Interval, dict[int, Interval]]:
        """Mean of a measure with its bootstrap interval: over all seeds, and on each."""
        return mean_over_seeds(self.samples(measure, method, budget), self.resamples)

    def entries(self) -> pd.DataFrame:
        """One row per method: who evaluated it, at how many budgets, on how many seeds."""
        rows = []
        for method in sorted({method for method, _ in self._cells} - {"full"}):
            budgets = [budget for name, budget in self._cells if name == method]
            seeds = {seed for budget in budgets for seed in self._cells[method, budget]}
            papers = ", ".join(sorted(self._papers[method]))
            rows.append({"method": method, "papers": papers, "budgets": len(budgets), "seeds": len(seeds)})
        return pd.DataFrame(rows)

    def frame(self) -> pd.DataFrame:
        """One row per (method, budget): nominal cost and each measure with its interval over all seeds."""
        rows = []
        for (method, budget), cells in sorted(self._cells.items()):
            columns = np.stack([np.mean([cell[m] for cell in cells.values()], axis=0) for m in MEASURES], axis=1)
            row = {"method": method, "budget": budget, "flops": budget, "images": len(columns)}
            for measure, interval in zip(MEASURES, bootstrap_columns(columns, self.resamples), strict=True):
                row |= {measure: interval.value, f"{measure}_low": interval.low, f"{measure}_high": interval.high}
            rows.append(row)
        return pd.DataFrame(rows)

    def ranking(self, budget: float) -> pd.DataFrame:
        """Methods at `budget` by rising KL, each with its paired difference to the next (negative: it is closer).

        Compared on the first images, as many as every method at this budget has seen. The difference is settled when
        its interval lies below 0 and it has the same sign on every seed (V6).
        """
        samples = {method: self.samples("kl", method, budget) for method in self.methods(budget)}
        count = min((len(values) for one in samples.values() for values in one.values()), default=0)
        samples = {method: {seed: x[:count] for seed, x in one.items()} for method, one in samples.items()}
        mean = {method: np.mean(list(one.values())) for method, one in samples.items()}
        order = sorted(mean, key=mean.__getitem__)
        rows = []
        for rank, method in enumerate(order, start=1):
            row = {"budget": budget, "rank": rank, "method": method, "images": count, "kl": mean[method]}
            if rank < len(order):
                pooled, seeds = paired_over_seeds(samples[method], samples[order[rank]], self.resamples)
                same_sign = all(interval.value < 0 for interval in seeds.values())
                row |= {"to_next": pooled.value, "to_next_low": pooled.low, "to_next_high": pooled.high}
                row |= {"settled": "yes" if pooled.high < 0 and same_sign else "no"}
            rows.append(row)
        return pd.DataFrame(rows)
