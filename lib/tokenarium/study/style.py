"""The one look of all figures: sizes, a colour-blind-safe colour per method, intervals, the paper's own figures."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import matplotlib as mpl
import seaborn as sns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

# Widths of a figure in inches, in one column of a two-column page and over both.
COLUMN, PAGE = 3.4, 7.0

# Okabe-Ito, then seaborn's colour-blind palette for what comes after.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#999999")
METHOD_COLOURS = {
    "ToMe": "#0072B2",
    "PiToMe": "#D55E00",
    "Token Transforming": "#009E73",
    "R0": "#009E73",
    "random prune": "#999999",
    "random merge": "#666666",
    "CLS top-k": "#E69F00",
    "EViT": "#CC79A7",
    "energy prune": "#56B4E9",
    "inverse energy": "#000000",
}


def use_style() -> None:
    """Set matplotlib and seaborn to the suite's style; text stays text in svg files."""
    sns.set_theme(context="notebook", style="whitegrid", palette=PALETTE)
    mpl.rcParams.update(
        {
            "figure.figsize": (PAGE, 4.0),
            "figure.dpi": 100,
            "savefig.bbox": "tight",
            "svg.fonttype": "none",
            "svg.hashsalt": "tokenarium",  # the same figure is the same file
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
            "image.cmap": "viridis",
        }
    )


def method_colour(label: str) -> str | None:
    """Colour of the method that `label` names, alone or before " " or ","; None if it names none of ours."""
    for name in sorted(METHOD_COLOURS, key=len, reverse=True):
        if label == name or label.startswith((f"{name} ", f"{name},")):
            return METHOD_COLOURS[name]
    return None


def colour(method: str) -> str:
    """One colour per method everywhere; a method without an entry gets a fixed one by its name."""
    return method_colour(method) or PALETTE[hashlib.sha256(method.encode()).digest()[0] % len(PALETTE)]


def interval_line(
    axes: Axes,
    x: Sequence[float],
    value: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    label: str,
    **style: object,
) -> None:
    """A line through `value` with its interval as a band, in the colour of the method that `label` names."""
    style = {"color": colour(label), "marker": "o", "markersize": 4} | style
    axes.plot(x, value, label=label, **style)
    axes.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)


def paper_marks(axes: Axes, x: Sequence[float], y: Sequence[float]) -> None:
    """Crosses where the paper's own figures lie, to be told from what was measured here."""
    axes.plot(x, y, "x", color="black", markersize=9, label="the paper's figure", zorder=4)
