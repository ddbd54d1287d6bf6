"""The arena of tokenizer transplants: bits of the same texts under every way to make new rows, side by side.

A panel holds what may be compared: one model, one new tokenizer, the same texts. Arms are paired unit by unit, where a
unit is a block of 256 bytes, or a document.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors.numpy import load_file

from tokenarium.errors import TokenariumError
from tokenarium.measure.bootstrap import Interval
from tokenarium.methods.tokenizers import swaplab
from tokenarium.study.experiments import Results

OWN = "own tokenizer"
BLOCK = 256
FLIPS = 10_000
SAME = 1e-3  # bits of a token between two runs of the same arm
EVALUATIONS = "evaluations/tokenizers/omp-transplant/results.safetensors"
SECONDS = "lib/tokenarium/methods/tokenizers/transplant_seconds.csv"
Bits = NDArray[np.float64]

# What the experiments call an arm, and what it is called here.
NAMES = {
    "original": OWN,
    "retok": "mean of pieces",
    "pieces": "mean of pieces",
    "normal": "normal",
    "zero": "zero",
    "mean": "mean row",
    "align": "Align",
    "focus": "FOCUS-like",
    "local": "TokenAdapt, local",
    "global": "TokenAdapt, global",
    "hybrid": "TokenAdapt",
    "shuffled0": "TokenAdapt, shuffled",
    "omp": "OMP, encoder",
    "omp-donor": "OMP, donor",
    "neighbours": "neighbours, donor",
    "neighbours-donor": "neighbours, donor",
    "linear": "linear map, donor",
    "linear-donor": "linear map, donor",
    "procrustes": "Procrustes, donor",
    "permuted": "OMP, donor, permuted",
}
STYLES = {  # colour and marker
    "normal": ("#999999", "x"),
    "mean row": ("#000000", "x"),
    "mean of pieces": ("#009E73", "o"),
    "Align": ("#56B4E9", "o"),
    "Merge": ("#0072B2", "o"),
    "Align, shuffled": ("#999999", "o"),
    "FOCUS-like": ("#E69F00", "o"),
    "TokenAdapt": ("#CC79A7", "o"),
    "TokenAdapt, local": ("#CC79A7", "<"),
    "TokenAdapt, global": ("#CC79A7", ">"),
    "TokenAdapt, shuffled": ("#999999", ">"),
    "OMP, encoder": ("#D55E00", "o"),
    "OMP, donor": ("#D55E00", "s"),
    "neighbours, donor": ("#0072B2", "s"),
    "linear map, donor": ("#56B4E9", "s"),
    "hypernet": ("#D55E00", "D"),
    "FVT": ("#009E73", "o"),
    "copy + random": ("#56B4E9", "x"),
    "global mean": ("#000000", "x"),
    "shuffled forms": ("#999999", "D"),
}


@dataclass(frozen=True)
class Panel:
    """Bits of every unit under each arm, (units,), and the units' bytes. groups: the text of each unit.

    own: bits of the units under the model with its own tokenizer, the measure of all costs.
    """

    bits: Mapping[str, Bits]
    num_bytes: NDArray[np.int64]
    own: Bits
    groups: NDArray[np.str_]
    resamples: int
    over: str = "blocks of bytes"

    def __post_init__(self):
        for name, values in {**self.bits, OWN: self.own}.items():
            if values.shape != self.num_bytes.shape or len(self.groups) != len(values):
                raise ValueError(f"{name} has {len(values)} units, the texts have {len(self.num_bytes)}")

    @property
    def texts(self) -> list[str]:
        return list(dict.fromkeys(self.groups.tolist()))

    def only(self, text: str) -> Panel:
        """The units of one text."""
        held = self.groups == text
        bits = {arm: values[held] for arm, values in self.bits.items()}
        return Panel(bits, self.num_bytes[held], self.own[held], self.groups[held], self.resamples, self.over)

    def with_arms(self, arms: Iterable[str]) -> Panel:
        """These arms alone."""
        bits = {arm: self.bits[arm] for arm in arms}
        return Panel(bits, self.num_bytes, self.own, self.groups, self.resamples, self.over)

    def cost(self, arm: str) -> Interval:
        """Bits per byte above the model with its own tokenizer, paired by units."""
        return self._per_byte(self.bits[arm] - self.own)

    def bits_per_byte(self, arm: str) -> Interval:
        """Of one arm, or of OWN."""
        return self._per_byte(self.own if arm == OWN else self.bits[arm])

    def difference(self, arm: str, other: str) -> Interval:
        """Bits per byte of one arm minus those of another, paired by units."""
        return self._per_byte(self.bits[arm] - self.bits[other])

    def order(self) -> list[str]:
        """Arms from the fewest bits to the most; equal ones by name."""
        return sorted(self.bits, key=lambda arm: (self.bits[arm].sum(), arm))

    def _per_byte(self, bits: Bits) -> Interval:
        return swaplab.ratio_interval(bits, self.num_bytes, self.resamples, over=self.over)


def pooled(panels: Sequence[Panel]) -> Panel:
    """All panels at once: the same texts and arms, the mean bits of a unit over the panels.

    Raises ValueError where units differ. Arms that not every panel has are left out.
    """
    first = panels[0]
    for panel in panels[1:]:
        if not np.array_equal(panel.num_bytes, first.num_bytes) or not np.array_equal(panel.groups, first.groups):
            raise ValueError("panels can be pooled where they hold the same units of the same texts")
    shared = [arm for arm in first.bits if all(arm in panel.bits for panel in panels)]
    bits = {arm: np.mean([panel.bits[arm] for panel in panels], axis=0) for arm in shared}
    own = np.mean([panel.own for panel in panels], axis=0)
    return Panel(bits, first.num_bytes, own, first.groups, first.resamples, first.over)


def ranking(panel: Panel) -> pd.DataFrame:
    """A row for each arm, the best first: its cost, and its lead over the next with a paired interval and test.

    `to next` is in bits per byte, negative: fewer. `p` is that of a test by random signs, two-sided; `settled`: the
    interval of the lead lies below 0 and p below 0.05. No correction is made for the number of lines.
    """
    order, rows = panel.order(), []
    for rank, arm in enumerate(order, start=1):
        cost = panel.cost(arm)
        row: dict[str, object] = {"rank": rank, "arm": arm, "cost": cost.value}
        row |= {"cost_low": cost.low, "cost_high": cost.high}
        if rank < len(order):
            lead, p = panel.difference(arm, order[rank]), sign_test(panel.bits[arm] - panel.bits[order[rank]])
            row |= {"to next": lead.value, "to next_low": lead.low, "to next_high": lead.high, "p": p}
            row["settled"] = "yes" if lead.high < 0 and p < 0.05 else "no"
        rows.append(row)
    return pd.DataFrame(rows)


def winners(panel: Panel) -> pd.DataFrame:
    """A row for each text: the best arm, those that the text cannot tell from it, and its lead over the runner-up."""
    rows = []
    for text in panel.texts:
        part = panel.only(text)
        best, second = part.order()[:2]
        level = [arm for arm in part.order()[1:] if part.difference(best, arm).high >= 0]
        lead, cost = part.difference(best, second), part.cost(best)
        row = {"text": text, "best": best, "cost": cost.value, "cost_low": cost.low, "cost_high": cost.high}
        row |= {"runner-up": second, "lead": lead.value, "lead_low": lead.low, "lead_high": lead.high}
        rows.append(row | {"not told from the best": ", ".join(level) or "none"})
    return pd.DataFrame(rows)


def costs(panel: Panel) -> pd.DataFrame:
    """A row for each arm and text, and one for all texts: bits per byte above the own tokenizer."""
    rows = []
    for text in [*panel.texts, "all"]:
        part = panel if text == "all" else panel.only(text)
        for arm in panel.order():
            cost = part.cost(arm)
            rows.append({"text": text, "arm": arm, "cost": cost.value, "cost_low": cost.low, "cost_high": cost.high})
    return pd.DataFrame(rows)


def sign_test(differences: Bits, flips: int = FLIPS, seed: int = 0) -> float:
    """Two-sided p that paired differences (n,) have no direction, by random signs; 1 where all are 0."""
    differences = np.asarray(differences, dtype=np.float64)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(flips, len(differences)))
    drawn = np.abs(signs @ differences)
    observed = abs(differences.sum()) * (1 - 1e-12)
    return float((1 + (drawn >= observed).sum()) / (1 + flips))


def metric_key(name: str) -> str:
    """An arm's name as part of a metric's name."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


# Reading what the papers and the arena's own experiments left


def open_pairs(experiments: Sequence[Results], resamples: int) -> dict[str, Panel]:
    """The pairs of TokenAdapt's experiments, all arms of theirs and of the arena's own: target -> panel.

    experiments: those of TokenAdapt, one of which has the "original", then the arena's. Seeds of a random arm are
    pooled. Raises TokenariumError where two of them ran the same arm and differ.
    """
    bits: dict[str, dict[str, dict[str, Bits]]] = {}
    lengths: dict[str, dict[str, NDArray]] = {}
    own = {}
    for results in experiments:
        for part in results.parts:
            target, _, arm = part.partition(".")
            if arm == "text":
                found = results.arrays(part)
                lengths[target] = {name[: -len(".bytes")]: found[name] for name in found if name.endswith(".bytes")}
            elif part == "original":
                own = results.arrays(part)
            elif arm and arm not in ("rows", "tokens"):
                found, known = results.arrays(part), bits.setdefault(target, {}).get(arm)
                _check_same(f"{part} of {results.name}", known, found)
                bits[target][arm] = known or found
    texts = sorted(own, key=_order)
    panels = {}
    for target in sorted(bits):
        whole = {arm: found for arm, found in bits[target].items() if set(found) == set(texts)}
        arms = {arm: _blocks(found, lengths[target], texts)[0] for arm, found in whole.items()}
        own_blocks, sizes, groups = _blocks(own, lengths["original"], texts)
        panels[target] = Panel(_pooled_seeds(arms), sizes, own_blocks, groups, resamples)
    return panels


def open_donor(root: Path, resamples: int) -> Panel:
    """What the study omp-transplant left: one donor's tokenizer, that study's own texts.

    Raises TokenariumError where it has not run.
    """
    path = root / EVALUATIONS
    if not path.is_file():
        raise TokenariumError(f"{path} is missing: run `dvc repro paper@omp-transplant`")
    found = load_file(path)
    by_arm: dict[str, dict[str, NDArray]] = {}
    for name, values in found.items():
        arm, text = name.split("/")
        by_arm.setdefault(arm, {})[text] = values
    lengths, own_lengths, own = by_arm.pop("bytes"), by_arm.pop("own-bytes"), by_arm.pop("original")
    texts = sorted(lengths, key=_order)
    own_blocks, sizes, groups = _blocks(own, own_lengths, texts)
    seeds = re.compile(r"(normal|permuted)-\d+")
    arms = {arm: _blocks(bits, lengths, texts)[0] for arm, bits in by_arm.items() if not seeds.fullmatch(arm)}
    return Panel(arms, sizes, own_blocks, groups, resamples)


def open_languages(start: Results, resamples: int) -> dict[str, dict[int, Panel]]:
    """Vocabulary expansion: language -> new tokens -> panel, whose units are documents."""
    found: dict[str, dict[int, Panel]] = {}
    for language in start.parameters["languages"]:
        sizes = np.array(start.record(language)["bytes"])
        own = start.arrays(f"{language}-0-source-0")["bits"]
        groups = np.full(len(sizes), language)
        for size in start.parameters["sizes"]:
            stem = f"{language}-{size}-"
            parts = [part.removeprefix(stem).rpartition("-") for part in start.parts if part.startswith(stem)]
            arms: dict[str, list[Bits]] = {}
            for arm, _, seed in parts:
                arms.setdefault(arm, []).append(start.arrays(f"{stem}{arm}-{seed}")["bits"])
            bits = {arm: np.mean(seeds, axis=0) for arm, seeds in arms.items()}
            found.setdefault(language, {})[size] = Panel(bits, sizes, own, groups, resamples, "documents")
    return found


def open_hypernet(zero_shot: Results, resamples: int) -> dict[str, Panel]:
    """ZeTT's targets on its own tiny model: target -> panel, whose units are documents; seeds are pooled."""
    sizes = np.array(zero_shot.record("tokens")["bytes"])
    seeds = zero_shot.parameters["model_seeds"]

    def mean(target: str) -> dict[str, Bits]:
        found = [zero_shot.arrays(f"documents-{seed}-{target}") for seed in seeds]
        return {arm: np.mean([each[arm] for each in found], axis=0) for arm in found[0]}

    own = mean("original")["original"]
    stem = f"documents-{seeds[0]}-"
    targets = [part.removeprefix(stem) for part in zero_shot.parts if part.startswith(stem)]
    groups = np.full(len(sizes), "documents")
    return {
        target: Panel(mean(target), sizes, own, groups, resamples, "documents")
        for target in targets
        if target != "original"
    }


def named(panel: Panel, names: Mapping[str, str] = NAMES) -> Panel:
    """The arms that have a name, under it."""
    return Panel(
        {names[arm]: bits for arm, bits in panel.bits.items() if arm in names},
        panel.num_bytes,
        panel.own,
        panel.groups,
        panel.resamples,
        panel.over,
    )


def seconds(root: Path) -> pd.DataFrame:
    """What `python -m benchmarks.transplants` measured once: pair, arm, seconds with interval, and on what machine.

    Raises TokenariumError where the file is missing.
    """
    path = root / SECONDS
    if not path.is_file():
        raise TokenariumError(f"{path} is missing: run `python -m benchmarks.transplants --save`")
    return pd.read_csv(path)


def _blocks(
    bits: Mapping[str, Bits], lengths: Mapping[str, NDArray], texts: Sequence[str]
) -> tuple[Bits, NDArray[np.int64], NDArray[np.str_]]:
    found = [swaplab.blocks(bits[text], lengths[text], BLOCK) for text in texts]
    groups = np.repeat(texts, [len(sizes) for _, sizes in found])
    return np.concatenate([each for each, _ in found]), np.concatenate([sizes for _, sizes in found]), groups


def _pooled_seeds(arms: Mapping[str, Bits]) -> dict[str, Bits]:
    seeds = [arm for arm in arms if re.fullmatch(r"normal\d+", arm)]
    kept = {arm: bits for arm, bits in arms.items() if arm not in seeds}
    return kept | ({"normal": np.mean([arms[arm] for arm in seeds], axis=0)} if seeds else {})


def _check_same(what: str, one: Mapping[str, Bits] | None, other: Mapping[str, Bits]) -> None:
    for text in sorted(set(one or ()) & set(other)):
        if one[text].shape != other[text].shape or np.abs(one[text] - other[text]).max() > SAME:
            raise TokenariumError(f"{what} gives other bits on {text} than another experiment: rerun both")


def _order(text: str) -> int:
    from_english = ("manual", "kjv", "python", "german", "turkish")
    return from_english.index(text) if text in from_english else len(from_english)
