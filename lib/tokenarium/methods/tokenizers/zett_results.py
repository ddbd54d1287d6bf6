"""What the experiments on ZeTT say: shares of the loss that a method leaves, with intervals over documents.

g of a method is (its bits - the original's) / (FVT's bits - the original's), all on the same documents, so that 0 is
the original model and 1 is FVT, the mean of the pieces' rows. Where several seeds are pooled, a document counts with
the mean of its bits over the seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tokenarium.measure.bootstrap import RESAMPLES, Interval, bootstrap
from tokenarium.study.experiments import Results

Bits = NDArray[np.float64]
OVER = "documents"


def share_of_loss(method: ArrayLike, fvt: ArrayLike, original: ArrayLike, resamples: int = RESAMPLES) -> Interval:
    """g of a method from bits by document, each (documents,), resampled together.

    Raises ValueError where FVT loses nothing on some resample.
    """
    columns = np.stack([np.asarray(method), np.asarray(fvt), np.asarray(original)], axis=-1)
    return bootstrap(columns, _share, resamples, over=OVER)


def mean_share_of_loss(
    methods: Sequence[ArrayLike], fvts: Sequence[ArrayLike], original: ArrayLike, resamples: int = RESAMPLES
) -> Interval:
    """The mean of g over several targets, documents resampled once for all of them."""
    columns = np.stack([*map(np.asarray, methods), *map(np.asarray, fvts), np.asarray(original)], axis=-1)
    count = len(methods)

    def statistic(resampled: NDArray) -> NDArray:
        shares = [_share(resampled[..., [place, count + place, -1]]) for place in range(count)]
        return np.mean(shares, axis=0)

    return bootstrap(columns, statistic, resamples, over=OVER)


def ratio(above: ArrayLike, below: ArrayLike, resamples: int = RESAMPLES) -> Interval:
    """Sum over documents of one number by the sum of another: bits per byte, or one length by another."""
    columns = np.stack([np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)], axis=-1)
    return bootstrap(columns, lambda drawn: drawn[..., 0].sum(1) / drawn[..., 1].sum(1), resamples, over=OVER)


def with_seeds(
    seeds: Sequence[int], make: Callable[[Callable[[Mapping[int, Bits]], Bits]], Interval]
) -> tuple[Interval, dict[int, Interval]]:
    """The interval of the seeds' mean, and one for each seed.

    make: is given a function that picks from bits by seed, the mean first and then each seed's own.
    """
    pooled = make(lambda by_seed: np.mean([by_seed[seed] for seed in seeds], axis=0))
    return pooled, {seed: make(lambda by_seed, seed=seed: by_seed[seed]) for seed in seeds}


@dataclass(frozen=True)
class Bench:
    """The zero-shot experiment, read by target and method."""

    results: Results
    seeds: Sequence[int]
    resamples: int = RESAMPLES

    @property
    def bytes(self) -> NDArray[np.int64]:
        return np.array(self.results.record("tokens")["bytes"])

    def tokens(self, target: str) -> NDArray[np.int64]:
        """Tokens of each document; "original" is a target, too."""
        return np.array(self.results.record("tokens")["tokens"][target])

    def bits(self, target: str, method: str) -> dict[int, Bits]:
        """Bits of each document by seed; the original's do not depend on the target."""
        target = "original" if method == "original" else target
        return {seed: self.results.arrays(f"documents-{seed}-{target}")[method] for seed in self.seeds}

    def per_byte(self, target: str, method: str) -> Interval:
        """Bits per byte, mean of the seeds."""
        bits = self.bits(target, method)
        return ratio(np.mean(list(bits.values()), axis=0), self.bytes, self.resamples)

    def share(self, target: str, method: str) -> tuple[Interval, dict[int, Interval]]:
        """g, of the seeds' mean and of each seed."""
        found = [self.bits(target, each) for each in (method, "FVT", "original")]
        return with_seeds(self.seeds, lambda pick: share_of_loss(*map(pick, found), self.resamples))

    def length(self, target: str) -> Interval:
        """Tokens of a target by the original's."""
        return ratio(self.tokens(target), self.tokens("original"), self.resamples)

    def curve(self, target: str) -> tuple[list[int], list[tuple[Interval, dict[int, Interval]]]]:
        """Steps of the hypernetwork's second stage, and g after each on every second document."""
        curves = {seed: self.results.arrays(f"curve-{seed}-{target}") for seed in self.seeds}
        steps = sorted(map(int, curves[self.seeds[0]]))
        fvt, original = ({s: b[::2] for s, b in self.bits(target, each).items()} for each in ("FVT", "original"))
        shares = []
        for step in steps:
            found = {seed: curve[str(step)] for seed, curve in curves.items()}
            shares.append(
                with_seeds(
                    self.seeds,
                    lambda pick, found=found: share_of_loss(pick(found), pick(fvt), pick(original), self.resamples),
                )
            )
        return steps, shares


def _share(drawn: NDArray) -> NDArray:
    method, fvt, original = np.moveaxis(drawn.sum(axis=1), -1, 0)
    return (method - original) / (fvt - original)
