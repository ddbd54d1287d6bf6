"""Pictures that several notebooks draw the same way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tokenarium.study.style import colour, interval_line, method_colour

AXIS_LABELS = {
    "top1": "top-1 accuracy (%)",
    "drop": "loss of top-1 accuracy (points)",
    "agreement": "agreement with the full model (%)",
    "kl": "KL(full || reduced), nats",
    "cls_error": "relative error of the CLS feature",
}
PERCENT = ("top1", "agreement")
MARKERS = "os^DvPX*<>"  # tell methods apart that share a colour


def budget_curves(frame: pd.DataFrame, measures: Sequence[str], dashed: str = "+ prop") -> Figure:
    """One panel per measure against FLOPs, a line per method with its interval as a band.

    frame: columns method, flops, and measure, measure_low, measure_high for each measure. Methods whose name contains
    `dashed` share colour and marker of their plain form; variants that share a colour have markers of their own. KL is
    drawn on a logarithmic axis. The full model is a grey line.
    """
    figure, panels = plt.subplots(1, len(measures), figsize=(4.6 * len(measures), 4.2), squeeze=False)
    reduced = frame[frame.method != "full"]
    plain_name = {method: method.replace(f" {dashed}", "") for method in reduced.method.unique()}
    markers = _markers(plain_name.values())
    for axes, measure in zip(panels[0], measures, strict=True):
        factor = 100 if measure in PERCENT else 1
        for method, rows in reduced.groupby("method", sort=False):
            rows = rows.sort_values("flops")
            plain = plain_name[method]
            value, low, high = (factor * rows[f"{measure}{end}"] for end in ("", "_low", "_high"))
            style = {"linestyle": "--" if plain != method else "-", "color": colour(plain), "marker": markers[plain]}
            interval_line(axes, 100 * rows.flops, value, low, high, method, **style)
        full = frame.loc[frame.method == "full", measure]
        if measure != "kl" and len(full):
            axes.axhline(factor * full.iloc[0], color="0.5", linewidth=1)
        if measure == "kl":
            axes.set_yscale("log")
        axes.set(xlabel="FLOPs (% of the full model)", ylabel=AXIS_LABELS.get(measure, measure))
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=4, fontsize="small")
    figure.tight_layout()
    return figure


def _markers(methods: Iterable[str]) -> dict[str, str]:
    """A marker for each method, another one wherever the colour is taken already."""
    markers: dict[str, str] = {}
    used: Counter[str] = Counter()
    for method in methods:
        if method not in markers:
            markers[method] = MARKERS[used[colour(method)] % len(MARKERS)]
            used[colour(method)] += 1
    return markers


def show_groups(axes: Axes, image: np.ndarray, source: np.ndarray, grid: int, title: str) -> None:
    """Draw an image with the patches of each merged token in one colour; a token of a single patch is left clear.

    image: (height, width) grey levels. source: (tokens, patches) mass of each patch in each token, class token left
    out of both. Patches whose mass is gone (pruned) are black; a patch split over tokens takes its largest share.
    """
    owner = source.argmax(axis=0).reshape(grid, grid)
    lost = source.sum(axis=0).reshape(grid, grid) < 0.5
    members = np.bincount(owner.ravel()[~lost.ravel()], minlength=source.shape[0])
    colours = np.array(sns.color_palette("husl", 24))[np.arange(source.shape[0]) * 7 % 24]
    overlay = np.zeros((grid, grid, 4))
    overlay[..., :3] = colours[owner]
    overlay[..., 3] = np.where(members[owner] > 1, 0.65, 0.0)
    overlay[lost] = (0, 0, 0, 1)
    extent = (0, grid, grid, 0)
    axes.imshow(image, cmap="gray", extent=extent)
    axes.imshow(overlay, extent=extent, interpolation="nearest")
    kept = int((members > 0).sum())
    axes.set_title(f"{title}\n{kept} tokens", fontsize="small")
    axes.set(xticks=[], yticks=[])


def interval_rows(
    values: Mapping[str, tuple[float, float, float]], xlabel: str, reference: float | None = None, log: bool = False
) -> Figure:
    """One row per label: a point with its interval, in the colour of the method that the label names.

    values: label -> (value, low, high), drawn from top to bottom. Rows that are no methods are all dark grey.
    reference: a grey vertical line.
    """
    figure, axes = plt.subplots(figsize=(7, 0.36 * len(values) + 1.2))
    methods = any(method_colour(label) for label in values)
    for row, (label, (value, low, high)) in enumerate(reversed(values.items())):
        shade = colour(label) if methods else "0.2"
        axes.errorbar(value, row, xerr=[[value - low], [high - value]], fmt="o", color=shade, capsize=3)
    axes.set_yticks(range(len(values)), list(reversed(values)))
    if reference is not None:
        axes.axvline(reference, color="0.5", linewidth=1)
    if log:
        axes.set_xscale("log")
    axes.set_xlabel(xlabel)
    figure.tight_layout()
    return figure
