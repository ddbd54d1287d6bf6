"""How long each initialisation takes to make the rows of arena@transplant: `python -m benchmarks.transplants --save`.

The arena shows these seconds beside the bits. They are a measurement of one machine at one time, so they stand in a
file of their own beside the arena's code, and no verdict rests on them. Timed are the rows alone: models, tokenizers
and texts are open, and nothing of an earlier arm is kept. What the arms that need features of strings have to make
first is a line of its own, from a sample of the strings.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich.console import Console

from tokenarium.files import write_whole
from tokenarium.methods.tokenizers import tokenadapt_lab as lab
from tokenarium.methods.tokenizers.experiments.transplant_arms import Maker, open_makers
from tokenarium.study.experiments import open_results
from tokenarium.study.parameters import load_params, project_root, study_parameters
from tokenarium.study.provenance import provenance

PLACE = Path("lib", "tokenarium", "methods", "tokenizers", "transplant_seconds.csv")
REPEATS = 3
LONG = 2.0  # seconds; what takes longer is timed once
STRINGS = 1000  # whose features are timed
DEFAULT = {"kind": "adapt", "tau": 0.30001, "lam": 0.3, "k": 3}
TOKENADAPT = {"retok": {"kind": "retok"}, "align": {"kind": "align"}, "hybrid": DEFAULT} | {
    name: {**DEFAULT, "lam": lam} for name, lam in (("local", 0.0), ("global", 1.0))
}


def forget(maker: Maker) -> None:
    """Drop what the maker keeps from one arm to the next, but for the donor's rows, which are read from disk."""
    maker._paths.clear()
    maker.lab_rows._near = None
    for name in ("focus", "pooled", "_encoder"):
        maker.__dict__.pop(name, None)


def timed(work: Callable[[], object], before: Callable[[], object]) -> list[float]:
    """Seconds of `work`, each time after `before`."""
    found: list[float] = []
    while len(found) < REPEATS and sum(found) < LONG:
        before()
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return found


def measure(root: Path, profile: str) -> pd.DataFrame:
    """A row for each pair and arm: median, least and most seconds, how often timed, new tokens, machine, threads."""
    params = load_params(root)
    parameters = study_parameters(params, "experiments", "transplant-field", profile)
    makers = open_makers(root, profile, parameters, params["seeds"][0])
    machine = {
        "processor": provenance(root)["processor"],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    rows = []

    def add(pair: str, arm: str, found: list[float], tokens: int) -> None:
        row = {"pair": pair, "arm": arm, "seconds": np.median(found), "least": min(found), "most": max(found)}
        rows.append(row | {"times": len(found), "new_tokens": tokens, **machine})

    features = open_results(root, params, "tokenadapt-features", profile).parameters
    encoder = lab.Encoder(features["encoder"], root)
    for name, maker in makers.items():
        field = {arm: settings for arm, settings in parameters.arms.items() if arm in parameters.runs[name]}
        field = {arm: settings for arm, settings in field.items() if arm not in ("normal1", "normal2")}
        if maker.donor is not None:
            maker._donor  # noqa: B018 (opened, not timed)
        for arm, settings in {**TOKENADAPT, **field}.items():
            found = timed(lambda m=maker, s=settings: m.rows(s), lambda m=maker: forget(m))
            add(name, arm.removesuffix("0"), found, len(maker.target.fresh))
        strings = [*lab.decoded(maker.lab_rows.old), *maker.target.strings]
        sample = [strings[index] for index in np.random.default_rng(0).permutation(len(strings))[:STRINGS]]
        found = timed(lambda s=sample: encoder(s), lambda: None)
        add(name, "features", [each * len(strings) / len(sample) for each in found], len(maker.target.fresh))
    return pd.DataFrame(rows)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and with --save write the file that the arena shows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transplants")
    parser.add_argument("--save", action="store_true", help=f"write {PLACE}")
    asked = parser.parse_args(arguments)
    root = project_root(None)
    table = measure(root, load_params(root)["profile"])
    Console().print(table.to_string(index=False))
    if asked.save:
        with write_whole(root / PLACE) as file:
            table.to_csv(file, index=False, lineterminator="\n", float_format="%.4g")


if __name__ == "__main__":
    main()
