"""How the vision family compares methods: the same images and FLOPs for all, differences paired by image (V4-V6)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenarium.measure import classification
from tokenarium.measure.bootstrap import Interval, bootstrap, bootstrap_columns, paired_bootstrap
from tokenarium.measure.flops import fraction, match_budget
from tokenarium.methods.vision.harness.batches import over_batches
from tokenarium.methods.vision.harness.runner import Reducer, run
from tokenarium.models.vision import Substrate

MEASURES = {
    "top1": "share of images classified correctly",
    "agreement": "share of images classified as by the full model",
    "kl": "KL(full || reduced) of the class probabilities, nats",
    "cls_error": "relative error of the final class-token feature",
}


@dataclass(frozen=True)
class Method:
    """A line of the comparison: a name, how to build the reducer from one real knob, and the knob's range.

    The knob is solved for each budget, so `make` must make the cost a monotone function of it. tolerance: how far, as
    a share of the full cost, the method may miss a budget; more than one point only for methods with few settings.
    """

    name: str
    make: Callable[[float], Reducer]
    low: float
    high: float
    proportional_attention: bool = False
    tolerance: float = 0.01

    def at(self, budget: float, substrate: Substrate) -> Reducer:
        """The reducer whose analytic cost is `budget` of the full model's, to within `tolerance` (V4)."""
        return match_budget(self.make, budget, self.low, self.high, tolerance=self.tolerance, **substrate.shape)


@dataclass(frozen=True)
class Evaluation:
    """Outputs on the fixed list of images. logits: (images, classes) float32; cls_feature: (images, dim) float32."""

    logits: Tensor
    cls_feature: Tensor
    flops: float  # share of the full model's
    final_tokens: int


def evaluate(
    substrate: Substrate,
    reducer: Reducer | None = None,
    proportional_attention: bool = False,
    batch_size: int = 100,
    limit: int | None = None,
) -> Evaluation:
    """Run the first `limit` images of the substrate through its model with `reducer` in every block."""
    reducer = reducer or Reducer()
    batches = substrate.batches(batch_size, limit)
    runs = over_batches(
        lambda pixels: run(substrate.model, pixels, reducer, proportional_attention), batches, substrate.model.device
    )
    shape = substrate.shape
    return Evaluation(
        torch.cat([one.logits for one in runs]).float().cpu(),
        torch.cat([one.cls_feature for one in runs]).float().cpu(),
        fraction(reducer, **shape),
        reducer.lengths(shape["tokens"], shape["num_layers"])[-1],
    )


def measures(reduced: Evaluation, full: Evaluation, labels: Tensor) -> dict[str, NDArray[np.float64]]:
    """Per-image measures V5 of one setting, each (images,) float64, over the images that `reduced` has seen."""
    count = len(reduced.logits)
    full_logits, full_feature = full.logits[:count], full.cls_feature[:count]
    return {
        "top1": _numbers(classification.correct(reduced.logits, labels[:count])),
        "agreement": _numbers(classification.agreement(reduced.logits, full_logits)),
        "kl": _numbers(classification.kl(full_logits, reduced.logits)),
        "cls_error": _numbers(classification.cls_error(full_feature, reduced.cls_feature)),
    }


class Comparison:
    """Methods side by side on the same substrates and images, the full model (the no-op) among them.

    An interval over all seeds averages each image over the seeds first and resamples images; the intervals of the
    single seeds come with it, because a verdict needs the same sign on every one (V6). The full model is recorded as
    method "full" at budget 1.0. `logits` holds what the family's arena reads, by "method|budget|seed".
    """

    def __init__(self, substrates: Sequence[Substrate], resamples: int, batch_size: int):
        self.substrates, self.resamples, self.batch_size = list(substrates), resamples, batch_size
        self.logits: dict[str, NDArray[np.float32 | np.int64]] = {}
        self._cells: dict[tuple[str, float, int], dict[str, NDArray[np.float64]]] = {}
        self._info: dict[tuple[str, float], dict[str, float]] = {}
        self._full: dict[int, Evaluation] = {}
        for substrate in self.substrates:
            self._full[substrate.seed] = evaluate(substrate, batch_size=batch_size)
            self._add("full", 1.0, substrate, self._full[substrate.seed])
            self.logits[f"labels|1.0|{substrate.seed}"] = substrate.labels.numpy()

    def run(
        self,
        settings: Iterable[tuple[Method, float, int | None]],
        progress: Callable[[list], Iterable] = list,
    ) -> None:
        """Evaluate every (method, budget, number of images) on every substrate; None stands for all images."""
        for (method, budget, limit), substrate in progress(list(product(settings, self.substrates))):
            reducer = method.at(budget, substrate)
            one = evaluate(substrate, reducer, method.proportional_attention, self.batch_size, limit)
            self._add(method.name, budget, substrate, one)

    def _add(self, method: str, budget: float, substrate: Substrate, one: Evaluation) -> None:
        self._cells[method, budget, substrate.seed] = measures(one, self._full[substrate.seed], substrate.labels)
        self._info[method, budget] = {"flops": one.flops, "final_tokens": one.final_tokens}
        self.logits[f"{method}|{budget}|{substrate.seed}"] = one.logits.numpy()

    def samples(self, measure: str, method: str, budget: float) -> dict[int, NDArray[np.float64]]:
        """The measure of one setting on every seed: seed -> (images,) float64."""
        found = {
            seed: cell[measure] for (name, at, seed), cell in self._cells.items() if name == method and at == budget
        }
        if not found:
            raise KeyError(f"no evaluation of {method} at {budget}")
        return found

    def interval(
        self, measure: str, method: str, budget: float, scale: float = 1.0
    ) -> tuple[Interval, dict[int, Interval]]:
        """Mean of a measure, times `scale`, with its bootstrap interval: over all seeds, and on each."""
        samples = self.samples(measure, method, budget)
        return mean_over_seeds({seed: scale * values for seed, values in samples.items()}, self.resamples)

    def difference(
        self, measure: str, one: tuple[str, float], other: tuple[str, float], scale: float = 1.0
    ) -> tuple[Interval, dict[int, Interval]]:
        """Mean of `one` minus `other`, times `scale`, paired by image; settings are (method, budget)."""
        a, b = self.samples(measure, *one), self.samples(measure, *other)
        count = min(len(x) for x in (*a.values(), *b.values()))
        a = {seed: scale * values[:count] for seed, values in a.items()}
        b = {seed: scale * values[:count] for seed, values in b.items()}
        return paired_over_seeds(a, b, self.resamples)

    def frame(self, methods: Iterable[str] | None = None, budgets: Iterable[float] | None = None) -> pd.DataFrame:
        """One row per (method, budget): cost, final tokens, and each measure with its interval over all seeds.

        `drop` is the loss of top-1 against the full model in points, paired by image. methods, budgets: the ones to
        show, all if None; the order is that of the runs.
        """
        rows = []
        shown = None if methods is None else set(methods)
        for (method, budget), info in self._info.items():
            if (shown is not None and method not in shown) or (budgets is not None and budget not in budgets):
                continue
            pooled = {measure: _average(self.samples(measure, method, budget)) for measure in MEASURES}
            count = len(pooled["top1"])
            pooled["drop"] = 100 * (_average(self.samples("top1", "full", 1.0))[:count] - pooled["top1"])
            intervals = bootstrap_columns(np.stack(list(pooled.values()), axis=1), self.resamples)
            row: dict[str, float | str] = {"method": method, "budget": budget, "images": count, **info}
            for measure, interval in zip(pooled, intervals, strict=True):
                row |= {measure: interval.value, f"{measure}_low": interval.low, f"{measure}_high": interval.high}
            rows.append(row)
        return pd.DataFrame(rows)


def mean_over_seeds(samples: Mapping[int, NDArray[np.float64]], resamples: int) -> tuple[Interval, dict[int, Interval]]:
    """Mean with its bootstrap interval over images: of all seeds, and of each. samples: seed -> (images,)."""
    seeds = {seed: bootstrap(values, resamples=resamples) for seed, values in samples.items()}
    return _over_seeds(bootstrap(_average(samples), resamples=resamples), len(samples)), seeds


def paired_over_seeds(
    a: Mapping[int, NDArray], b: Mapping[int, NDArray], resamples: int
) -> tuple[Interval, dict[int, Interval]]:
    """Mean of a - b, paired by image: over all seeds, and on each. a, b: seed -> (images,) numbers.

    Raises ValueError when the two do not have the same seeds.
    """
    if a.keys() != b.keys():
        raise ValueError(f"pairs are needed: one ran on the seeds {sorted(a)}, the other on {sorted(b)}")
    seeds = {seed: paired_bootstrap(a[seed], b[seed], resamples) for seed in a}
    return _over_seeds(paired_bootstrap(_average(a), _average(b), resamples), len(a)), seeds


def _average(samples: Mapping[int, NDArray]) -> NDArray[np.float64]:
    return np.mean(list(samples.values()), axis=0)


def _over_seeds(interval: Interval, seeds: int) -> Interval:
    return Interval(
        interval.value, interval.low, interval.high, f"{interval.how}, mean of {seeds} seeds", interval.level
    )


def _numbers(values: Tensor) -> NDArray[np.float64]:
    return values.double().numpy()
