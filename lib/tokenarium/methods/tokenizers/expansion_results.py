"""Statistics of vocabulary expansion: bits of documents compared between initialisations, with intervals.

`bits` are (documents,) or (seeds, documents): seeds are pooled, their mean is taken for each document.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from tokenarium.measure.bootstrap import RESAMPLES, Interval, bootstrap
from tokenarium.study.experiments import Results

NAMES = {
    "source": "no expansion",
    "random": "Random",
    "global": "mean of all rows",
    "mean": "Mean",
    "mean-official": "Mean (official)",
    "merge": "Merge",
    "align": "Align",
    "focus": "FOCUS-like",
    "shuffled": "Align, shuffled",
}
COLOURS = {
    "source": "#999999",
    "random": "#D55E00",
    "global": "#000000",
    "mean": "#0072B2",
    "mean-official": "#56B4E9",
    "merge": "#CC79A7",
    "align": "#009E73",
    "focus": "#E69F00",
    "shuffled": "#666666",
}


def pooled(bits: ArrayLike) -> NDArray[np.float64]:
    """(documents,) bits, the mean over seeds."""
    bits = np.asarray(bits, dtype=np.float64)
    return bits if bits.ndim == 1 else bits.mean(axis=0)


def per_byte(bits: ArrayLike, num_bytes: ArrayLike, resamples: int = RESAMPLES) -> Interval:
    """Bits (or tokens) per byte of all documents together."""
    return _ratio(lambda a, b: a / b, resamples, pooled(bits), num_bytes)


def percent_below(bits: ArrayLike, reference: ArrayLike, resamples: int = RESAMPLES) -> Interval:
    """By how many percent `bits` lie below the reference on the same documents."""
    return _ratio(lambda a, b: 100 * (1 - a / b), resamples, pooled(bits), pooled(reference))


def percent_above(bits: ArrayLike, reference: ArrayLike, resamples: int = RESAMPLES) -> Interval:
    """By how many percent `bits` lie above the reference on the same documents."""
    return _ratio(lambda a, b: 100 * (a / b - 1), resamples, pooled(bits), pooled(reference))


def difference(bits: ArrayLike, other: ArrayLike, num_bytes: ArrayLike, resamples: int = RESAMPLES) -> Interval:
    """Difference in bits per byte."""
    return _ratio(lambda a, b, n: (a - b) / n, resamples, pooled(bits), pooled(other), num_bytes)


def slope_difference(
    bits: Sequence[ArrayLike],
    other: Sequence[ArrayLike],
    sizes: Sequence[int],
    num_bytes: ArrayLike,
    resamples: int = RESAMPLES,
) -> Interval:
    """How much faster `bits` grow with the number of new tokens than `other`: bits per byte for each tenfold.

    bits, other: one entry for each of `sizes`. A constant reference, as a model that was not expanded, takes no part.
    """
    x = np.log10(np.asarray(sizes, dtype=np.float64))
    weight = (x - x.mean()) / ((x - x.mean()) ** 2).sum()  # least squares
    gap = sum(w * (pooled(a) - pooled(b)) for w, a, b in zip(weight, bits, other, strict=True))
    return _ratio(lambda a, n: a / n, resamples, gap, num_bytes)


def worst(intervals: Sequence[Interval], of: Callable = min) -> Interval:
    """The smallest (or, with max, the largest) of several numbers, and of the ends of their intervals."""
    which = "smallest" if of is min else "largest"
    how = f"{which} of {len(intervals)}, each by {intervals[0].how}"
    return Interval(*(of(getattr(each, end) for each in intervals) for end in ("value", "low", "high")), how)


def _ratio(statistic: Callable, resamples: int, *columns: ArrayLike) -> Interval:
    samples = np.stack([np.asarray(column, dtype=np.float64) for column in columns], axis=1)
    return bootstrap(
        samples,
        lambda drawn: statistic(*(drawn[..., column].mean(axis=-1) for column in range(samples.shape[1]))),
        resamples,
        over="documents",
    )


# Reading the experiments


def start_bits(start: Results, language: str, size: int, method: str) -> NDArray[np.float64]:
    """(seeds, documents) bits before adaptation, all seeds that were run."""
    stem = f"{language}-{size}-{method}-"
    names = [part for part in start.parts if part.startswith(stem) and part.removeprefix(stem).isdigit()]
    return np.stack([start.arrays(name)["bits"] for name in names])


def adapted_bits(
    grid: Results, method: str, size: int, seeds: Sequence[int], percent: int = 100
) -> NDArray[np.float64]:
    """(seeds, looks, documents) bits in the course of adaptation."""
    return np.stack([grid.arrays(f"{percent}-{method}-{size}-{seed}")["bits"] for seed in seeds])


def start_table(start: Results, names: dict[str, str], resamples: int) -> pd.DataFrame:
    """A row for each language, size and initialisation: tokens per byte, bits per byte, change against the source."""
    rows = []
    for language in start.parameters["languages"]:
        counts = start.record(language)
        source = start_bits(start, language, 0, "source")
        for size in (0, *start.parameters["sizes"]):
            for method in ["source"] if size == 0 else start.parameters["methods"]:
                bits = start_bits(start, language, size, method)
                score = per_byte(bits, counts["bytes"], resamples)
                change = percent_above(bits, source, resamples)
                rows.append(
                    {
                        "language": names[language],
                        "new_tokens": size,
                        "initialisation": NAMES[method],
                        "tokens_per_byte": sum(counts["tokens"][str(size)]) / sum(counts["bytes"]),
                        "bpb": score.value,
                        "bpb_low": score.low,
                        "bpb_high": score.high,
                        "percent_over_source": change.value,
                        "percent_over_source_low": change.low,
                        "percent_over_source_high": change.high,
                    }
                )
    return pd.DataFrame(rows)


def grid_table(grid: Results, seeds: Sequence[int], resamples: int) -> pd.DataFrame:
    """A row for each share of the text, size and initialisation: bits per byte before and after, deviation of seeds."""
    p, counts = grid.parameters, grid.record("counts")
    arms = [(100, "source", 0), *((100, method, size) for size in p["sizes"] for method in p["methods"])]
    for percent in p["percents"]:
        arms += [(percent, method, p["focus_size"]) for method in p["percent_methods"]]
    rows = []
    for percent, method, size in arms:
        bits = adapted_bits(grid, method, size, seeds, percent)
        before, after = (per_byte(bits[:, look], counts["bytes"], resamples) for look in (0, -1))
        each = bits[:, -1].sum(axis=-1) / sum(counts["bytes"])
        rows.append(
            {
                "text_percent": percent,
                "new_tokens": size,
                "initialisation": NAMES[method],
                "tokens_per_byte": sum(counts["tokens"][str(size)]) / sum(counts["bytes"]) if percent == 100 else None,
                "bpb_before": before.value,
                "bpb_after": after.value,
                "bpb_after_low": after.low,
                "bpb_after_high": after.high,
                "sd_of_seeds": each.std(ddof=1),
            }
        )
    return pd.DataFrame(rows)


def recipe_table(recipe: Results, seeds: Sequence[int], resamples: int) -> pd.DataFrame:
    """A row for each recipe: steps within the budget, cost of a step against the plain one's, bits per byte."""
    costs, num_bytes = recipe.record("costs"), recipe.record("bytes")
    plain = costs["cost"][f"all-0-{recipe.parameters['blocks'][0]}"]
    rows = []
    for name, steps in costs["steps"].items():
        layers, ahead, block = name.split("-")
        score = per_byte(recipe_bits(recipe, name, seeds), num_bytes, resamples)
        rows.append(
            {
                "layers": {"all": "all", "ends": "2 x 2"}[layers],
                "loss": "next token" if ahead == "0" else "two tokens",
                "block": int(block),
                "step_cost": costs["cost"][name] / plain,
                "steps": steps,
                "bpb": score.value,
                "bpb_low": score.low,
                "bpb_high": score.high,
            }
        )
    return pd.DataFrame(rows)


def recipe_bits(recipe: Results, name: str, seeds: Sequence[int]) -> NDArray[np.float64]:
    """(seeds, documents) bits at the end of a recipe, "<layers>-<extra heads>-<block>"."""
    return np.stack([recipe.arrays(f"{name}-{seed}")["bits"][-1] for seed in seeds])
