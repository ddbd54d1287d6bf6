"""Pictures that the notebooks of the family draw the same way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tokenarium.study.style import PAGE, PALETTE, interval_line

MARKERS = "osD^vP*X<>"
GREYS = {"random": "#999999", "grid": "#666666"}


def accuracy_curves(frame: pd.DataFrame, x: str = "budget") -> Figure:
    """Accuracy against budget, a line per method with its interval as a band; "full" and "blind" are grey lines.

    frame: as `Cells.frame` makes it. x: "budget" (tokens left), "vbar" (mean over the layers) or "gflops".
    """
    labels = {
        "budget": "visual tokens",
        "vbar": "visual tokens, mean over the layers",
        "gflops": "GFLOPs of the prompt",
    }
    figure, axes = plt.subplots(figsize=(PAGE, 4.2), layout="constrained")
    for name in ("full", "blind"):
        for row in frame[frame.method == name].itertuples():
            axes.axhline(row.accuracy, color="0.5", linewidth=1)
            axes.text(1.0, row.accuracy, f" {name}", transform=axes.get_yaxis_transform(), va="center", color="0.4")
    curves = frame[~frame.method.isin(["full", "blind"])]
    coloured = 0
    for number, (method, rows) in enumerate(curves.groupby("method", sort=False)):
        rows = rows.sort_values(x)
        colour = GREYS.get(method)
        if colour is None:
            colour, coloured = PALETTE[coloured % (len(PALETTE) - 1)], coloured + 1
        style = {"color": colour, "marker": MARKERS[number % len(MARKERS)]}
        interval_line(axes, rows[x], rows.accuracy, rows.accuracy_low, rows.accuracy_high, method, **style)
    axes.set_xscale("log", base=2)
    ticks = sorted(set(curves[x])) if x == "budget" else None
    if ticks:
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    axes.set(xlabel=labels[x], ylabel="questions answered correctly (%)")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    return figure


def show_patches(
    axes: Axes,
    image: NDArray[np.uint8],
    groups: Mapping[str, tuple[Iterable[int], str]],
    title: str,
    grid: tuple[int, int] = (12, 12),
) -> None:
    """Draw an image faded, and on it the patches of each group framed and tinted; what is in no group stays faded.

    image: (height, width, 3). groups: name -> (patches in raster order, colour).
    """
    rows, columns = grid
    extent = (0, columns, rows, 0)
    axes.imshow(0.35 * (image / 255) + 0.65, extent=extent)
    clear = np.zeros((rows * columns, 1, 1, 1))
    for patches, colour in groups.values():
        for patch in map(int, patches):
            y, x = divmod(patch, columns)
            clear[patch] = 1
            axes.add_patch(plt.Rectangle((x, y), 1, 1, facecolor=colour, edgecolor=colour, alpha=0.3, linewidth=0))
            axes.add_patch(plt.Rectangle((x, y), 1, 1, fill=False, edgecolor=colour, linewidth=1.2))
    mask = clear.reshape(rows, columns).repeat(image.shape[0] // rows, 0).repeat(image.shape[1] // columns, 1)
    axes.imshow(np.dstack([image / 255, mask * 0.75]), extent=extent)
    axes.set_title(title, fontsize="small")
    axes.set(xticks=[], yticks=[], xlim=(0, columns), ylim=(rows, 0))
