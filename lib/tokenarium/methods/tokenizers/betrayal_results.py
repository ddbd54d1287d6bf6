"""Tables, rates and figures from what the phantom-edit experiments recorded."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from tokenarium.measure.bootstrap import Interval, bootstrap
from tokenarium.methods.tokenizers.tokenizer_betrayal import (
    ARTIFACTS,
    OUTCOMES,
    PHANTOM,
    REAL,
    classify_slot,
    clopper_pearson,
)

SEEN_MASS = 0.001  # a class occurs in the injection when a slot has it with this probability on average
OTHER_IDS = 1  # column of the masses
CANONICAL = 0  # row of the masses


def outcome_row(outcomes: Iterable[str]) -> dict[str, float]:
    """Percent of each outcome with its exact interval, as columns of a table, and the number of slots."""
    counts = Counter(outcomes)
    total = sum(counts.values())
    row: dict[str, float] = {"slots": total}
    for name in OUTCOMES:
        rate = clopper_pearson(counts[name], total)
        row |= {f"{name} %": 100 * rate.value, f"{name} %_low": 100 * rate.low, f"{name} %_high": 100 * rate.high}
    return row


def phantom_rate(outcomes: Iterable[str]) -> Interval:
    """Phantoms among the slots that hold a word (phantom, real, copy), exact interval; 0 of 1 where none does."""
    counts = Counter(outcomes)
    return clopper_pearson(counts[PHANTOM], max(1, sum(counts[name] for name in ("copy", PHANTOM, REAL))))


def over_seeds(by_seed: Mapping[int, Interval]) -> Interval:
    """The mean of the seeds' values, from the lowest to the highest end of their intervals."""
    each = list(by_seed.values())
    how = f"mean of {len(each)} seeds, from the lowest to the highest end of their intervals ({each[0].how})"
    mean = float(np.mean([one.value for one in each]))
    return Interval(mean, min(one.low for one in each), max(one.high for one in each), how)


# Injection


def injected_ratio(masses: NDArray[np.float64], missed: NDArray[np.float64], resamples: int) -> Interval:
    """Phantom mass with the other forms over that with the canonical one, to which all that was missed is added.

    masses: (words, forms, 3). missed: (words, forms), what unlikely beginnings could add.
    """
    pairs = np.stack([masses[:, 1:, OTHER_IDS].mean(1), masses[:, CANONICAL, OTHER_IDS] + missed[:, CANONICAL]], axis=1)
    return bootstrap(pairs, lambda s: s[..., 0].mean(1) / s[..., 1].mean(1), resamples, over="words")


def class_masses(
    targets: Sequence[Mapping[str, Any]], seg_masses: Sequence[NDArray[np.float64]]
) -> dict[str, NDArray[np.float64]]:
    """Class -> (words,) phantom mass of a slot, mean of the forms that are not canonical.

    seg_masses: (forms, S) for each target, whose "artifacts" name the class of each segmentation by form.
    """
    found = {name: np.zeros(len(targets)) for name in ARTIFACTS}
    for word, (target, masses) in enumerate(zip(targets, seg_masses, strict=True)):
        for names, row in zip(target["artifacts"][1:], masses[1:], strict=True):
            for name, mass in zip(names, row, strict=True):
                if name:
                    found[name][word] += mass / (len(masses) - 1)
    return found


# Reading


def shares_above(
    kl: Sequence[NDArray[np.float64]], labels: Sequence[Sequence[str]]
) -> tuple[NDArray[np.float64], float]:
    """For each word the share of its alternatives whose KL exceeds the median synonym's: (words,), and that median.

    The last two of every word's KLs are those of its synonym and of a random word.
    """
    if any(list(each[-2:]) != ["synonym", "random word"] for each in labels):
        raise ValueError("the synonym and the random word must come last")
    median = float(np.median([each[-2] for each in kl]))
    return np.array([np.mean(each[:-2] > median) for each in kl]), median


# Self-training


def illusion(measured: Mapping[str, Any]) -> Interval:
    """Phantoms among what a checker of ids takes for edits, all words together; 0 of 1 where there are none."""
    total: Counter[str] = Counter()
    for counts in measured["outcomes"].values():
        total.update(counts)
    return clopper_pearson(total[PHANTOM], max(1, total[PHANTOM] + total[REAL]))


def training_rate(measured: Mapping[str, Any], outcome: str, group: str | None = None) -> Interval:
    """The share of an outcome among all slots, or those of the group "free" or "hard"."""
    groups = [group] if group else list(measured["outcomes"])
    hits = sum(measured["outcomes"][each].get(outcome, 0) for each in groups)
    return clopper_pearson(hits, sum(sum(measured["outcomes"][each].values()) for each in groups))


def anew_rate(measured: Mapping[str, Any]) -> Interval:
    """Phantoms that are left when both texts are encoded anew."""
    return clopper_pearson(measured["anew"].get(PHANTOM, 0), sum(measured["anew"].values()))


def training_frame(seeds: Mapping[int, Mapping[str, Any]]) -> pd.DataFrame:
    """One row a seed, checker and round (0: before), outcomes in percent of the slots, free and hard words apart."""
    rows = []
    for seed, found in seeds.items():
        for checker, rounds in found["rounds"].items():
            for number, measured in enumerate([found["start"], *rounds]):
                row = {"seed": seed, "checker": checker, "round": number, "illusion %": 100 * illusion(measured).value}
                for group in ("free", "hard"):
                    for outcome in OUTCOMES:
                        row[f"{group}: {outcome} %"] = 100 * training_rate(measured, outcome, group).value
                rows.append(row)
    return pd.DataFrame(rows)


def training_classes(seeds: Mapping[int, Mapping[str, Any]]) -> Counter[str]:
    """How often each class occurred, in all tests of all seeds."""
    total: Counter[str] = Counter()
    for found in seeds.values():
        for measured in [found["start"], *(each for rounds in found["rounds"].values() for each in rounds)]:
            total.update(measured["artifacts"])
    return total


# Control


def random_edits(spelled: Sequence[bytes], words: Sequence[Sequence[int]], count: int, seed: int) -> Counter[str]:
    """Outcomes when one id of a word is replaced by a random one: a classifier that sees phantoms there is wrong.

    Draws that happen to spell the same bytes are left out.
    """
    draw = random.Random(seed)
    found: Counter[str] = Counter()
    while sum(found.values()) < count:
        ids = list(draw.choice(words))
        place, other = draw.randrange(len(ids)), draw.randrange(len(spelled))
        if spelled[other] != spelled[ids[place]]:
            found[classify_slot(ids, [*ids[:place], other, *ids[place + 1 :]], spelled)[0]] += 1
    return found


# Figures


def draw_tokens(axes: Axes, rows: Mapping[str, tuple[Sequence[str], Sequence[int], bool]]) -> None:
    """Rows of tokens as boxes with their ids below; label -> (texts, ids, is a phantom). A blank shows as ␣."""
    longest = max(sum(map(len, texts)) for texts, _, _ in rows.values())
    for height, (texts, ids, phantom) in zip(range(len(rows), 0, -1), rows.values(), strict=True):
        place = 0.0
        for text, index in zip(texts, ids, strict=True):
            width = max(len(text), 1)
            colour = "#D55E00" if phantom else "#0072B2"
            axes.add_patch(
                _box(place, height, width, colour)  # a gap shows where the text is cut
            )
            axes.text(place + width / 2, height + 0.1, text.replace(" ", "␣"), ha="center", va="center")
            axes.text(place + width / 2, height - 0.32, str(index), ha="center", fontsize=8, color="0.4")
            place += width
    axes.set(xlim=(-0.2, longest + 0.2), ylim=(0.4, len(rows) + 0.5), yticks=range(len(rows), 0, -1), xticks=[])
    axes.set_yticklabels(list(rows))
    axes.grid(visible=False)


def _box(place: float, height: float, width: float, colour: str):
    from matplotlib.patches import Rectangle

    return Rectangle((place + 0.05, height - 0.1), width - 0.1, 0.4, facecolor=colour, alpha=0.25, edgecolor=colour)
