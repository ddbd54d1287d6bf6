"""Tables of what the experiments on mixtures found, with intervals over mixtures and seeds."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
from numpy.typing import NDArray

from tokenarium.measure.bootstrap import Interval, bootstrap
from tokenarium.study.experiments import Results


def grid_rows(results: Results) -> pd.DataFrame:
    """All rows of an experiment on controlled mixtures, one per attack, with set, seed and mixture."""
    found = []
    for part in results.parts:
        if not part.startswith("library-"):
            record = results.record(part)
            about = {"set": record["set"], "seed": record["seed"], "mixture": record["mixture"]}
            found += [about | {"truth": record["truth"]} | row for row in record["rows"]]
    return pd.DataFrame(found)


def over_mixtures(
    values: pd.Series, resamples: int, statistic: Callable[[NDArray], NDArray] | None = None
) -> tuple[Interval, dict[int, Interval]]:
    """Mean (or another statistic) over all mixtures with its bootstrap interval, and the same for each seed.

    A seed with a single mixture has no interval of its own.
    values: indexed by (seed, mixture).
    """

    def interval(part: pd.Series) -> Interval:
        return bootstrap(part.to_numpy(), statistic, resamples=resamples, over="mixtures")

    by_seed = {int(seed): part for seed, part in values.groupby(level="seed")}
    return interval(values), {seed: interval(part) for seed, part in by_seed.items() if len(part) > 1}


def real_shares(results: Results) -> pd.DataFrame:
    """A row for every share that was inferred: tokenizer, seed, category, group, share.

    never_seen: merges of the run that occur in no category; inequalities: how many its program needed.
    """
    groups = {category: group for group, members in results.parameters["groups"].items() for category in members}
    rows = []
    for part in (part for part in results.parts if part != "shared-merges"):
        name, start, seed = part.rsplit("-", 2)
        found = results.record(part)
        about = {
            "tokenizer": name if start == "0" else f"{name} from {int(start):,}",
            "seed": int(seed),
            "never_seen": found["never_seen"],
            "inequalities": found["constraints"],
        }
        for category, share in zip(found["categories"], found["shares"], strict=True):
            rows.append(about | {"category": category, "group": groups[category], "share": share})
    return pd.DataFrame(rows)


def readable(symbol: bytes) -> str:
    """A symbol for a label: its text with blanks shown, or its bytes in hexadecimal where they are no characters."""
    try:
        text = symbol.decode()
    except UnicodeDecodeError:
        return symbol.hex(" ").upper()
    return "".join({" ": "␣", "\n": "↵", "\t": "→"}.get(character, character) for character in text)
