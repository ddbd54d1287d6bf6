"""What the experiments on OMP transplants say: bits per byte of every arm with intervals, and what becomes of sums."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata

from tokenarium.measure.bootstrap import Interval, bootstrap
from tokenarium.methods.tokenizers import swaplab

OWN = "original"
FONT_ENDS = 0x2E80  # CJK and what comes after it
Columns = NDArray[np.float64]


@dataclass(frozen=True)
class Arms:
    """Bits of every token: bits[arm][text] (n,), in the new tokenizer's tokens but for the arm OWN.

    num_bytes, own_bytes: text -> the bytes of each token, (n,) int64, of the new and of the base's own tokenizer.
    """

    bits: dict[str, dict[str, NDArray[np.float64]]]
    num_bytes: dict[str, NDArray[np.int64]]
    own_bytes: dict[str, NDArray[np.int64]]
    window: int
    resamples: int

    @property
    def texts(self) -> list[str]:
        return list(self.num_bytes)

    def windows(self, arm: str, texts: Iterable[str]) -> Columns:
        """(windows, 2): bits and bytes of the windows of these texts."""
        lengths = self.own_bytes if arm == OWN else self.num_bytes
        parts = [swaplab.windows(self.bits[arm][text], lengths[text], self.window) for text in texts]
        return np.concatenate([np.stack(part, axis=1) for part in parts])

    def bits_per_byte(self, arm: str, texts: Iterable[str]) -> Interval:
        """Of one arm on these texts together, bootstrap over windows."""
        return swaplab.ratio_interval(*self.windows(arm, texts).T, self.resamples)

    def difference(self, arm: str, other: str, texts: Iterable[str]) -> Interval:
        """Bits per byte of `arm` minus those of `other`, both in the new tokenizer, paired by windows."""
        texts = list(texts)
        one, two = self.windows(arm, texts), self.windows(other, texts)
        return swaplab.ratio_interval(one[:, 0] - two[:, 0], one[:, 1], self.resamples)

    def cost(self, arm: str, texts: Iterable[str], block: int = 256) -> Interval:
        """Bits per byte of `arm` above those of the base with its own tokenizer, paired by blocks of bytes."""
        rows = []
        for text in texts:
            bits, sizes = swaplab.blocks(self.bits[arm][text], self.num_bytes[text], block)
            own, _ = swaplab.blocks(self.bits[OWN][text], self.own_bytes[text], block)
            rows.append(np.stack([bits - own, sizes], axis=1))
        return swaplab.ratio_interval(*np.concatenate(rows).T, self.resamples, over="blocks of bytes")

    def beaten_everywhere(self, arm: str, others: Sequence[str]) -> list[str]:
        """The texts on which `arm` needs fewer bits than each of the others, beyond every paired interval."""
        return [t for t in self.texts if all(self.difference(arm, other, [t]).high < 0 for other in others)]

    def table(self, arms: Mapping[str, str]) -> pd.DataFrame:
        """A row for each text and each of `arms` (arm -> name shown): bits per byte, and the cost of the swap."""
        rows = []
        for text in self.texts:
            for arm, name in arms.items():
                value = self.bits_per_byte(arm, [text])
                row = {"text": text, "arm": name, "bpb": value.value, "bpb_low": value.low, "bpb_high": value.high}
                if arm != OWN:
                    cost = self.cost(arm, [text])
                    row |= {"cost": cost.value, "cost_low": cost.low, "cost_high": cost.high}
                rows.append(row)
        return pd.DataFrame(rows)


def read_arms(grid: Any, baselines: Any, resamples: int) -> Arms:
    """The arms of the experiments omp-grid and omp-baselines (`study.experiment`).

    The random arms have one for each seed and their mean, "normal" and "permuted", in bits.
    """
    setting = grid.arrays("setting")
    names = [name.removesuffix(".bytes") for name in setting if name.endswith(".bytes")]
    texts = sorted(names, key=_order)
    own = [part for part in grid.parts if part.startswith(("omp-", "permuted-"))]
    bits = {part: grid.arrays(part) for part in own} | {part: baselines.arrays(part) for part in baselines.parts}
    for random_arm in ("normal", "permuted"):
        seeds = [arm for arm in bits if arm.startswith(f"{random_arm}-")]
        bits[random_arm] = {text: np.mean([bits[arm][text] for arm in seeds], axis=0) for text in texts}
    return Arms(
        bits,
        {text: setting[f"{text}.bytes"] for text in texts},
        {text: setting[f"{text}.original_bytes"] for text in texts},
        grid.parameters["window"],
        resamples,
    )


def _order(text: str) -> int:
    from_english = ("manual", "kjv", "python", "german", "turkish")
    return from_english.index(text) if text in from_english else len(from_english)


def sparsity_trend(arms: Arms, ks: Sequence[int]) -> Interval:
    """Spearman's correlation of k with the bits per byte of OMP on all texts together, bootstrap over windows."""
    bits = [arms.windows(f"omp-{k}", arms.texts) for k in ks]
    columns = np.column_stack([*(each[:, 0] for each in bits), bits[0][:, 1]])
    order = rankdata(ks) - (len(ks) + 1) / 2

    def spearman(samples: Columns) -> NDArray[np.float64]:
        ranks = rankdata(samples[..., :-1].sum(axis=1) / samples[..., -1:].sum(axis=1), axis=1)
        centred = ranks - ranks.mean(axis=1, keepdims=True)
        return centred @ order / np.sqrt((centred**2).sum(axis=1) * (order**2).sum())

    return bootstrap(columns, spearman, resamples=arms.resamples, over="windows")


def token_losses(arms: Arms, arm: str, setting: Mapping[str, NDArray], texts: Iterable[str]) -> pd.DataFrame:
    """New tokens that occur, one row each: its place among the new tokens, how often, mean bits under `arm`.

    setting: the part "setting" of omp-grid.
    """
    texts = list(texts)
    ids = np.concatenate([setting[f"{text}.ids"] for text in texts])
    bits = np.concatenate([arms.bits[arm][text] for text in texts])
    isnew = np.isin(ids, setting["new"])
    frame = pd.DataFrame({"place": np.searchsorted(setting["new"], ids[isnew]), "bits": bits[isnew]})
    return (
        frame.groupby("place")
        .bits.agg(["size", "mean"])
        .rename(columns={"size": "count", "mean": "bits"})
        .reset_index()
    )


def spearman(x: Sequence[float], y: Sequence[float], resamples: int, over: str = "tokens") -> Interval:
    """Spearman's correlation of two columns with its bootstrap interval."""

    def correlation(samples: Columns) -> NDArray[np.float64]:
        ranks = rankdata(samples, axis=1)
        centred = ranks - ranks.mean(axis=1, keepdims=True)
        one, two = centred[..., 0], centred[..., 1]
        return (one * two).sum(axis=1) / np.sqrt((one**2).sum(axis=1) * (two**2).sum(axis=1))

    return bootstrap(np.column_stack([x, y]), correlation, resamples=resamples, over=over)


def printable(token: str) -> str:
    """A token as a label in a figure: blanks and line ends made visible, signs that the font lacks by their numbers."""
    shown = token.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥").replace("$", r"\$")
    return "".join(sign if ord(sign) < FONT_ENDS or sign == "\ufffd" else f"U+{ord(sign):04X}" for sign in shown)


# Sums


def share(right: NDArray[np.int64], resamples: int) -> Interval:
    """Share of exact sums, bootstrap over sums."""
    return bootstrap(right, resamples=resamples, over="sums")


def sums_by_arm(record: Mapping[str, Sequence[str]]) -> dict[str, NDArray[np.int64]]:
    """Arm -> (n,) int64, 1 where the sum was written exactly. record: the part "sums-<seed>" of omp-numbers."""
    wanted = [line.partition("=")[2] for line in record["sums"]]
    arms = [arm for arm in record if arm != "sums"]
    return {arm: np.array([a == b for a, b in zip(record[arm], wanted, strict=True)], dtype=np.int64) for arm in arms}


def relative_drop(base: NDArray[np.int64], arm: NDArray[np.int64], resamples: int) -> Interval:
    """The share of the base's exact sums that is lost, bootstrap over sums. A base without any counts as having one."""
    least = 1 / len(base)

    def drop(samples: Columns) -> NDArray[np.float64]:
        means = samples.mean(axis=1)
        return (means[:, 0] - means[:, 1]) / np.maximum(means[:, 0], least)

    return bootstrap(np.stack([base, arm], axis=1), drop, resamples=resamples, over="sums")


def text_losses(part: Mapping[str, NDArray], resamples: int, block: int = 256) -> dict[str, Interval]:
    """What the two transplants cost in bits per byte of text, and how far the two costs are apart.

    part: the arrays "bits-<seed>" of omp-numbers. Returns "base" (its bits per byte), "same" and "chunk" (the
    increases), and "gap": |chunk / same - 1|, all by bootstrap over the same blocks of `block` bytes.
    """
    cut = {arm: swaplab.blocks(part[arm], part[f"{arm}.bytes"], block) for arm in ("base", "same", "chunk")}
    sizes = cut["base"][1].astype(np.float64)
    base, same, chunk = (cut[arm][0] for arm in ("base", "same", "chunk"))

    def gap(samples: Columns) -> NDArray[np.float64]:
        total = samples.sum(axis=1)
        return np.abs(total[:, 1] / total[:, 0] - 1)

    return {
        "base": swaplab.ratio_interval(base, sizes, resamples, over="blocks of bytes"),
        "same": swaplab.ratio_interval(same - base, sizes, resamples, over="blocks of bytes"),
        "chunk": swaplab.ratio_interval(chunk - base, sizes, resamples, over="blocks of bytes"),
        "gap": bootstrap(
            np.stack([same - base, chunk - base], axis=1), gap, resamples=resamples, over="blocks of bytes"
        ),
    }
