"""Controlled mixtures at every cell of the grid: categories, steps, kinds and sizes of attack data, omissions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenarium.data import (
    debian_reference_translated,
    hub,
    king_james_bible,
    libreoffice_help,
    licences,
    man_pages,
    python_source,
)
from tokenarium.methods.tokenizers import bpe, data_mixture_inference, mixtures
from tokenarium.methods.tokenizers.bpe import Bpe
from tokenarium.study.experiments import Experiment

SOURCES = {
    module.DATASET.name: module
    for module in (
        debian_reference_translated,
        king_james_bible,
        libreoffice_help,
        licences,
        man_pages,
        python_source,
    )
}


HUB = "hub"
HUB_BYTES = 2_000_000_000  # of each category that comes from the hub: 10^9, as in the paper, in each half


@cache
def chunks(root: Path, category: str) -> tuple[str, ...]:
    """The chunks of a category: "licences"; "libreoffice-help:de" for one language of a corpus; or, from the hub,
    "hub:<repository>:<files>:<column>".
    """
    name, _, language = category.partition(":")
    if name == HUB:
        return tuple(mixtures.cut(hub.stream_texts(*language.split(":"), HUB_BYTES)))
    rows = SOURCES[name].load(root, language) if language else SOURCES[name].load(root)
    return tuple(mixtures.cut(row["text"] for row in rows))


@dataclass
class Setting:
    """The categories of one set, dealt into halves by one seed; what the attacks of several mixtures share is kept."""

    root: Path
    name: str
    categories: Sequence[str]
    others: Sequence[str]  # the same categories from another corpus, or none
    seed: int
    _samples: dict[tuple[str, str, int], mixtures.Sample] = field(default_factory=dict, repr=False)

    def half(self, category: str, which: str) -> list[str]:
        """Half "A" or "B" of a category's chunks."""
        return mixtures.halves(chunks(self.root, category), self.seed)[which == "B"]

    def halves(self, which: str) -> list[list[str]]:
        """The chunks of every category from half "A" or "B", or all of the "other" corpus."""
        if which == "other":
            return [list(chunks(self.root, category)) for category in self.others]
        return [self.half(category, which) for category in self.categories]

    def samples(self, which: str, num_bytes: int) -> list[mixtures.Sample]:
        """The attacker's words of every category, from as many bytes or as there are."""
        key = which, num_bytes
        if key not in self._samples:
            taken = (mixtures.take(half, num_bytes) for half in self.halves(which))
            self._samples[key] = [mixtures.Sample.of(texts, bpe.digit_words()) for texts in taken]
        return self._samples[key]


def run(experiment: Experiment) -> None:
    """One record for each set, seed and mixture: the true shares, and a row for each attack and baseline."""
    p = experiment.parameters
    for name, seed in experiment.progress(list(product(p.sets, experiment.seeds)), "sets x seeds"):
        setting = Setting(experiment.root, name, p.sets[name], p.others.get(name, []), seed)
        texts = [mixtures.take(half[::-1], p.baseline_bytes) for half in setting.halves("B")]
        library = None
        if p.library:
            arrays = experiment.arrays(
                f"library-{name}-{seed}", lambda s=setting, t=texts: vars(trained_library(s, t, p))
            )
            library = mixtures.EfficiencyLibrary(**arrays)
        for index in range(p.mixtures):
            truth = drawn_mixture(len(setting.categories), seed, index)

            def rows(name=name, seed=seed, index=index, setting=setting, truth=truth, library=library, texts=texts):
                found = [row for case in omissions(p) for row in attacked(setting, truth, p, *case)]
                if library:
                    found += baselines(setting, truth, library, texts, p)
                return {"set": name, "seed": seed, "mixture": index, "truth": truth.tolist(), "rows": found}

            experiment.record(f"{name}-{seed}-{index}", rows)


def drawn_mixture(n: int, seed: int, index: int) -> NDArray[np.float64]:
    """The shares of mixture `index` of a seed."""
    return data_mixture_inference.random_mixture(n, np.random.default_rng([seed, index]))


def omissions(p: Mapping[str, Any]) -> list[tuple[float, int]]:
    """(mass, number) of categories that the attacker does not know: every mass on one and on two of them."""
    return [(mass, number) for mass in p["omitted_masses"] for number in ((1, 2) if mass else (0,))]


def trained(setting: Setting, truth: NDArray[np.float64], p: Mapping[str, Any], mass: float, number: int) -> Bpe:
    """A tokenizer of the A halves in these shares, which together leave `mass` to the first `number` of `extra`."""
    extra = p["extra"][:number]
    training = [*setting.halves("A"), *(setting.half(category, "A") for category in extra)]
    shares = [*((1 - mass) * truth), *[mass / max(number, 1)] * number]
    steps = max([*p["steps"], p["baseline_steps"]])
    return bpe.train(mixtures.mix(training, shares, p["train_bytes"]), 256 + steps, bpe.digit_words())


def attacked(
    setting: Setting, truth: NDArray[np.float64], p: Mapping[str, Any], mass: float = 0.0, number: int = 0
) -> Iterator[dict[str, Any]]:
    """The program's result from every kind of attack data at every number of steps.

    The shares to recover are those among the categories that the attacker knows.
    """
    merges = trained(setting, truth, p, mass, number).merges
    for which, num_bytes in p["attacks"]:
        samples = setting.samples(which, num_bytes)
        replay = bpe.replay(merges, [sample.words for sample in samples])
        about = {"attack": which, "sample_bytes": num_bytes, "mass": mass, "omitted": number}
        for steps in p["steps"]:
            yield about | {"steps": steps, "method": "LP"} | mixtures.attack(replay, samples, steps).against(truth)
        if setting.name in p["without_pair_slack"]:
            estimate = mixtures.attack(replay, samples, p["baseline_steps"], pair_slack=False)
            yield about | {"steps": p["baseline_steps"], "method": "LP without v_p"} | estimate.against(truth)


def trained_library(
    setting: Setting, texts: Sequence[Sequence[str]], p: Mapping[str, Any]
) -> mixtures.EfficiencyLibrary:
    """The attacker's own tokenizers, trained on the B halves and measured on `texts`."""
    return mixtures.efficiency_library(
        setting.halves("B"),
        texts,
        256 + p["baseline_steps"],
        p["train_bytes"],
        p["library"],
        bpe.digit_words(),
        seed=1000 + setting.seed,
    )


def baselines(
    setting: Setting,
    truth: NDArray[np.float64],
    library: mixtures.EfficiencyLibrary,
    texts: Sequence[Sequence[str]],
    p: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """What vocabulary, efficiency and guessing say about the same tokenizer, with the B halves' `texts`."""
    about = {
        "attack": "B",
        "sample_bytes": p["baseline_bytes"],
        "mass": 0.0,
        "omitted": 0,
        "steps": p["baseline_steps"],
    }
    known = trained(setting, truth, p, 0.0, 0).truncate(256 + p["baseline_steps"])
    for method, shares in mixtures.baseline_shares(known, texts, library).items():
        yield about | {"method": method} | mixtures.Estimate(shares).against(truth)
    for method, value in mixtures.guesses(truth, seed=0).items():
        yield about | {"method": method, "log_mse": value}
