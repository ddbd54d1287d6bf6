"""Intervals: no number is reported without one.

Two sources of uncertainty are kept apart. Which images happened to be in the test set: the (paired)
percentile bootstrap over images. Which weights training happened to find: a t interval over seeds.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

RESAMPLES = 10_000
LEVEL = 0.95
# Numbers held at once while resampling: 2 million float64 are 16 MB.
CHUNK = 2_000_000


@dataclass(frozen=True)
class Interval:
    """A number and how sure we are of it.

    `low` and `high` bound `value` at confidence `level`; `how` says in words where they come from. Raises
    ValueError when one of the numbers is NaN or infinite, or when `low` lies above `high`.
    """

    value: float
    low: float
    high: float
    how: str
    level: float = LEVEL

    def __post_init__(self):
        for name in ("value", "low", "high", "level"):
            number = float(getattr(self, name))
            if not np.isfinite(number):
                raise ValueError(f"{name} is {number}, a finite number is needed")
            object.__setattr__(self, name, number)
        if self.low > self.high:
            raise ValueError(f"low ({self.low:g}) is above high ({self.high:g})")

    @classmethod
    def exact(cls, value: float, how: str = "exact") -> "Interval":
        """A number without uncertainty, such as a count of tokens: low = value = high."""
        return cls(value, value, value, how, level=1.0)

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"

    def to_dict(self) -> dict[str, Any]:
        return {"value": self.value, "low": self.low, "high": self.high, "how": self.how, "level": self.level}


def bootstrap(
    samples: ArrayLike,
    statistic: Callable[[NDArray], NDArray] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
    over: str = "images",
) -> Interval:
    """Percentile bootstrap of a statistic of `samples`, by default the mean.

    samples: (n,), or (n, k) for a statistic of several columns whose rows belong together. statistic: takes
    (resamples, n) or (resamples, n, k) and returns (resamples,), for example a ratio of means,
    `lambda s: s[..., 0].mean(1) / s[..., 1].mean(1)`. over: what a sample is, for the interval's words. The
    same n, resamples and seed draw the same resamples, so that two statistics can be compared. Raises
    ValueError for fewer than 2 samples, for NaN or infinity in the samples, and when the statistic is not
    finite on some resample.
    """
    samples = _checked("samples", samples, ndim=(1, 2))
    how = f"bootstrap over {len(samples)} {over}, {resamples} resamples"
    if statistic is None:
        if samples.ndim == 2:
            raise ValueError("samples of several columns need a statistic; bootstrap_columns gives one mean each")
        return _column_means(samples[:, None], resamples, seed, level, how)[0]
    value = _statistic(statistic, samples[None])
    draws = np.concatenate([_statistic(statistic, samples[rows]) for rows in _rows(samples, resamples, seed)])
    return _percentiles(value[0], draws, level, how)


def bootstrap_columns(
    samples: ArrayLike, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL, over: str = "images"
) -> list[Interval]:
    """Percentile bootstrap of the mean of every column of `samples` (n, k), all on the same resamples.

    One pass for a whole table: the resamples become an (r, n) matrix of counts, and the means one matrix
    product. Raises ValueError as `bootstrap` does.
    """
    samples = _checked("samples", samples, ndim=(2,))
    return _column_means(
        samples, resamples, seed, level, f"bootstrap over {len(samples)} {over}, {resamples} resamples"
    )


def paired_bootstrap(
    a: ArrayLike,
    b: ArrayLike,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
    over: str = "images",
) -> Interval:
    """Percentile bootstrap of mean(a) - mean(b).

    a, b: (n,), where a[i] and b[i] were measured on the same image. Raises ValueError for different lengths,
    fewer than 2 pairs, NaN or infinity.
    """
    a, b = _checked("a", a, ndim=(1,)), _checked("b", b, ndim=(1,))
    if len(a) != len(b):
        raise ValueError(f"pairs are needed: a has {len(a)} samples, b has {len(b)}")
    how = f"paired bootstrap over {len(a)} {over}, {resamples} resamples"
    return _column_means((a - b)[:, None], resamples, seed, level, how)[0]


def across_seeds(values: Mapping[int, float] | Sequence[float], level: float = LEVEL) -> Interval:
    """Mean of one number per training seed with its Student t interval.

    Raises ValueError for fewer than 3 seeds, NaN or infinity.
    """
    numbers = _checked("values", list(values.values() if isinstance(values, Mapping) else values), ndim=(1,))
    n = len(numbers)
    if n < 3:
        raise ValueError(f"an interval over seeds needs at least 3 of them, got {n}")
    mean = numbers.mean()
    half = special.stdtrit(n - 1, (1 + level) / 2) * numbers.std(ddof=1) / np.sqrt(n)
    return Interval(mean, mean - half, mean + half, f"t interval over {n} seeds", level)


def _checked(name: str, values: ArrayLike, ndim: tuple[int, ...]) -> NDArray[np.float64]:
    """`values` (a torch tensor on any device, too) as finite float64 with at least two entries."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    array = np.asarray(values, dtype=np.float64)
    if array.ndim not in ndim:
        raise ValueError(f"{name} must have {' or '.join(map(str, ndim))} dimensions, got shape {array.shape}")
    if len(array) < 2:
        raise ValueError(f"{name} must hold at least 2 values, got {len(array)}")
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        index = ", ".join(map(str, bad[0]))
        raise ValueError(f"{name}[{index}] is {array[tuple(bad[0])]}, finite numbers are needed")
    return array


def _rows(samples: NDArray, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Row numbers drawn with replacement, (chunk, n) at a time, `resamples` in all."""
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    generator = np.random.default_rng(seed)
    n = len(samples)
    chunk = max(1, CHUNK // samples.size)
    for start in range(0, resamples, chunk):
        yield generator.integers(n, size=(min(chunk, resamples - start), n))


def _column_means(samples: NDArray, resamples: int, seed: int, level: float, how: str) -> list[Interval]:
    # Measured from the first row, constant columns resample to exactly themselves.
    origin = samples[0]
    centred = samples - origin
    n = len(samples)
    means = []
    for rows in _rows(samples[:, :1], resamples, seed):
        offsets = np.arange(len(rows))[:, None] * n
        counts = np.bincount((rows + offsets).ravel(), minlength=rows.size).reshape(rows.shape)
        means.append(counts.astype(np.float64) @ centred / n)
    draws = np.concatenate(means) + origin
    values = centred.mean(axis=0) + origin
    return [_percentiles(value, column, level, how) for value, column in zip(values, draws.T, strict=True)]


def _statistic(statistic: Callable[[NDArray], NDArray], resampled: NDArray) -> NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        result = np.asarray(statistic(resampled), dtype=np.float64)
    if result.shape != resampled.shape[:1]:
        raise ValueError(f"statistic must return one number per resample, got {result.shape} for {resampled.shape}")
    if not np.isfinite(result).all():
        raise ValueError("statistic is not finite on every resample: does it divide by a count that can be zero?")
    return result


def _percentiles(value: float, draws: NDArray, level: float, how: str) -> Interval:
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, low, high, how, level)
