"""Rows of kvlab as a table: one row per prompt, protocol, method and budget, and comparisons paired over prompts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tokenarium.measure.bootstrap import Interval, bootstrap, paired_bootstrap

if TYPE_CHECKING:
    import pandas as pd

    from tokenarium.study.experiments import Results

FULL = "full"
OVER = "prompts"


def frame(experiments: Iterable[Results], parts: Sequence[str] = ("T",)) -> pd.DataFrame:
    """All rows of the parts whose names begin with one of `parts`, as kvlab's `Row` has them, and nll = -logprob."""
    import pandas as pd

    rows = [
        row
        for results in experiments
        for part in results.parts
        if part.startswith(tuple(parts))
        for row in results.record(part)
    ]
    table = pd.DataFrame(rows)
    return table.assign(nll=-table.logprob.astype(float))


def values(
    table: pd.DataFrame, task: str, protocol: str, method: str | Sequence[str], budget: int | None, metric: str
) -> pd.Series:
    """One number per prompt, by prompt; `budget` None or method "full" is the whole cache. Of several methods, such as
    one on several seeds, the mean.

    Raises KeyError where the table has no such row, or two of one prompt.
    """
    if not isinstance(method, str):
        return sum(values(table, task, protocol, each, budget, metric) for each in method) / len(method)
    rows = table[(table.task == task) & (table.protocol == protocol) & (table.method == method)]
    if method != FULL and budget is not None:
        rows = rows[rows.budget == budget]
    found = rows.set_index("prompt")[metric].astype(float).sort_index()
    if found.empty or found.index.has_duplicates or found.isna().any():
        raise KeyError(
            f"{len(found)} rows of {metric} for {task}, {protocol}, {method}, {budget}: one a prompt is needed"
        )
    return found


def compare(
    table: pd.DataFrame,
    task: str,
    protocol: str,
    budget: int | None,
    metric: str,
    method: str | Sequence[str],
    other: str | Sequence[str] = FULL,
    resamples: int = 10_000,
) -> Interval:
    """The mean of `method` minus that of `other` on the prompts that both have, with a paired bootstrap over them."""
    a = values(table, task, protocol, method, budget, metric)
    b = values(table, task, protocol, other, budget, metric)
    both = a.index.intersection(b.index)
    return paired_bootstrap(a[both], b[both], resamples=resamples, over=OVER)


def mean(
    table: pd.DataFrame, task: str, protocol: str, budget: int | None, metric: str, method: str, resamples: int = 10_000
) -> Interval:
    """The mean of a method over prompts, with a bootstrap over them."""
    return bootstrap(values(table, task, protocol, method, budget, metric), resamples=resamples, over=OVER)


def curve(
    table: pd.DataFrame, task: str, protocol: str, metric: str, method: str, resamples: int = 10_000
) -> dict[str, np.ndarray]:
    """A method against its budgets, for a figure: budget, value, low, high, each (k,)."""
    rows = table[(table.task == task) & (table.protocol == protocol) & (table.method == method)]
    budgets = sorted(rows.budget.unique())
    found = [mean(table, task, protocol, budget, metric, method, resamples) for budget in budgets]
    return {
        "budget": np.array(budgets),
        "value": np.array([each.value for each in found]),
        "low": np.array([each.low for each in found]),
        "high": np.array([each.high for each in found]),
    }


def summary(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Means over prompts: a row per task, protocol and method, a column per budget; only of tasks with the metric."""
    rows = table.dropna(subset=[metric])
    rows = rows.assign(**{metric: rows[metric].astype(float)})
    return rows.pivot_table(index=["task", "protocol", "method"], columns="budget", values=metric, aggfunc="mean")
