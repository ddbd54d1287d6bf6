"""Tables and intervals from what the byte-probability experiments recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from tokenarium.measure.bootstrap import Interval, bootstrap, bootstrap_columns

METHODS = ("naive", "healing", "exact")
COMPLETERS = ("naive", "random healing", "healing", "healing to the blank", "exact")


def midword_frame(prompts: Mapping[str, Sequence[Mapping[str, Any]]]) -> pd.DataFrame:
    """One row a prompt: domain, distance, tokens, bits of the rest by method, hits and completions in percent, cost."""
    rows = []
    for domain, records in prompts.items():
        for record in records:
            row = {key: record[key] for key in ("distance", "tokens", "leak", "runs", "bytes")} | {"domain": domain}
            row |= {f"bits {name}": record["bits"][name] for name in METHODS}
            row |= {f"next {name}": 100.0 * (record["next"][name] == record["rest"][0]) for name in METHODS}
            row |= {f"word {name}": 100.0 * (record["made"][name] == record["rest"]) for name in COMPLETERS}
            rows.append(row)
    return pd.DataFrame(rows)


def interval_table(frame: pd.DataFrame, by: str, columns: Mapping[str, str], resamples: int, over: str) -> pd.DataFrame:
    """Means with their bootstrap intervals, one row for each value of `by` and one for all together.

    columns: column -> its label.
    """
    rows = []
    groups = [*frame.groupby(by, sort=False), ("all", frame)]
    for name, group in groups:
        row: dict[str, Any] = {by: name, over: len(group)}
        found = bootstrap_columns(group[list(columns)].to_numpy(dtype=float), resamples, over=over)
        for label, interval in zip(columns.values(), found, strict=True):
            row |= {label: interval.value, f"{label}_low": interval.low, f"{label}_high": interval.high}
        rows.append(row)
    return pd.DataFrame(rows)


def ratio(above: ArrayLike, below: ArrayLike, resamples: int, over: str) -> Interval:
    """sum(above) / sum(below) with its bootstrap over pairs."""
    pairs = np.stack([np.asarray(above, dtype=float), np.asarray(below, dtype=float)], axis=1)
    return bootstrap(pairs, lambda s: s[..., 0].sum(axis=1) / s[..., 1].sum(axis=1), resamples, over=over)


def fim_frame(
    gaps: Sequence[Mapping[str, str]],
    made: Mapping[int, Sequence[Mapping[str, Any]]],
) -> pd.DataFrame:
    """One row a seed, gap and method: exact match and edit similarity in percent, where the cut was.

    made: seed -> records of the experiment, in the order of the gaps.
    """
    rows = []
    for seed, records in made.items():
        for number, (gap, record) in enumerate(zip(gaps, records, strict=True)):
            truth = gap["middle"].encode()
            for method, text in record["made"].items():
                answer = text.encode("latin-1")
                rows.append(
                    {"seed": seed, "gap": number, "method": method, "exact match": 100.0 * (answer == truth)}
                    | {"edit similarity": 100 * similarity(answer, truth)}
                    | {key: record[key] for key in ("distance", "tokens")}
                )
    return pd.DataFrame(rows)


def similarity(one: bytes, other: bytes) -> float:
    """1 - edit distance (Levenshtein) / length of the longer; 1 for two empty strings."""
    if not one and not other:
        return 1.0
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        last, row = row, [i]
        for j, b in enumerate(other, 1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (a != b)))
    return 1 - row[-1] / max(len(one), len(other))


def per_gap(frame: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Mean over seeds: gaps as rows, methods as columns."""
    return frame.pivot_table(index="gap", columns="method", values=measure, sort=False)


def mixture_logp(logp: Sequence[NDArray[np.float64]], weights: Sequence[float]) -> NDArray[np.float64]:
    """log of the weighted mean of the models' probabilities of each byte; weights sum to 1."""
    return np.logaddexp.reduce([each + np.log(weight) for each, weight in zip(logp, weights, strict=True)])


def bits_per_byte(logp: NDArray[np.float64]) -> NDArray[np.float64]:
    """(passages, bytes) natural log probabilities -> (passages,) bits a byte."""
    return -logp.mean(axis=1) / np.log(2)


def gain_over_best(single: Sequence[ArrayLike], mixed: ArrayLike, resamples: int, over: str = "passages") -> Interval:
    """Bits per byte that the mixture saves against the model that is best on the same resample of passages."""
    samples = np.stack([*map(np.asarray, single), np.asarray(mixed)], axis=1)
    return bootstrap(
        samples, lambda s: s[..., :-1].mean(axis=1).min(axis=-1) - s[..., -1].mean(axis=1), resamples, over=over
    )
