"""Throughput of ToMe's and PiToMe's batched matching against plain loops over images and tokens: `make bench`.

The loops say what the papers say, one token after the other: a token's similarities to all others are one product,
everything else is plain Python. Before anything is timed both sides must give the same result in float64, where no two
scores are too close to be told apart; the timing itself is in float32. Nothing is written.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from tokenarium.measure.bootstrap import Interval, bootstrap
from tokenarium.measure.latency import ratio
from tokenarium.methods.vision.pitome import EnergyMatch, pitome_match, removed_tokens
from tokenarium.methods.vision.tome import bsm_assignment, bsm_match, merge_closures, merge_wavg

SHAPES = (
    (64, 197, 64),
    (8, 577, 1024),
)  # (batch, tokens, dim): keys of a DeiT head, hidden states of a ViT-L at 384 px
KEPT = 0.9  # share of the patches; both methods remove the same number of tokens
MARGIN = 0.9
REPEATS = 9

Pairs = list[set[tuple[int, int]]]  # of each image: (patch that leaves, patch it joins)


def tome_merge(x: Tensor) -> tuple[Tensor, Tensor]:
    """The library's ToMe on x (batch, tokens, dim), class token first: match on x itself and merge.

    Returns tokens (batch, kept, dim) and sizes (batch, kept, 1).
    """
    match = bsm_match(x, removed_tokens(x.shape[1] - 1, KEPT), class_token=True)
    merge, _ = merge_closures(bsm_assignment(match, x.shape[1]))
    return merge_wavg(merge, x)


def tome_merge_by_loops(x: Tensor) -> tuple[Tensor, Tensor]:
    """The same by loops, with the outputs in the same order: what is left of A, then B."""
    r = math.floor((x.shape[1] - 1) - (x.shape[1] - 1) * KEPT)
    merged, sizes = [], []
    for image in x:
        unit = [token / token.norm() for token in image]
        a, b = range(0, len(unit), 2), range(1, len(unit), 2)
        candidates = torch.stack([unit[position] for position in b])
        edges = []
        for position in a[1:]:  # the class token, at position 0, never leaves
            similarity = candidates @ unit[position]
            best = int(similarity.argmax())
            edges.append((float(similarity[best]), position, b[best]))
        edges.sort(key=lambda edge: -edge[0])
        total, size = [token.clone() for token in image], [1.0] * len(unit)
        gone = set()
        for _, position, partner in edges[:r]:
            total[partner] += image[position]
            size[partner] += 1
            gone.add(position)
        left = [position for position in (*a, *b) if position not in gone]
        merged.append(torch.stack([total[position] / size[position] for position in left]))
        sizes.append(torch.tensor([[size[position]] for position in left], dtype=x.dtype))
    return torch.stack(merged), torch.stack(sizes)


def pitome(x: Tensor) -> EnergyMatch:
    """The library's PiToMe matching on x (batch, tokens, dim), class token first: energy, then "protect"."""
    return pitome_match(x, KEPT, MARGIN)


def pitome_by_loops(x: Tensor) -> Pairs:
    """The same by loops: the energy of every patch, their rank, and a partner for every second of the first 2 r."""
    found = []
    for image in x:
        unit = [token / token.norm() for token in image[1:]]
        patches = torch.stack(unit)
        energy = []
        for patch in unit:
            excess = patches @ patch - MARGIN
            energy.append(float(torch.where(excess > 0, excess, excess.expm1()).mean()))
        rank = sorted(range(len(unit)), key=lambda patch: -energy[patch])
        r = math.floor(len(unit) - len(unit) * KEPT)
        leaving, receiving = rank[: 2 * r : 2], rank[1 : 2 * r : 2]
        partners = patches[receiving]
        found.append({(patch, receiving[int((partners @ unit[patch]).argmax())]) for patch in leaving})
    return found


def pairs_of(match: EnergyMatch) -> Pairs:
    """The pairs of a match, without their order."""
    joined = match.b_idx.gather(1, match.dst_idx)
    return [set(zip(a, b, strict=True)) for a, b in zip(match.a_idx.tolist(), joined.tolist(), strict=True)]


class Contest(NamedTuple):
    """A batched function, the loops that do the same, and whether their two results are the same."""

    name: str
    batched: Callable[[Tensor], object]
    loops: Callable[[Tensor], object]
    same: Callable[[object, object], bool]


CONTESTS = (
    Contest(
        "ToMe match + merge",
        tome_merge,
        tome_merge_by_loops,
        lambda one, other: all(torch.allclose(a, b, rtol=0, atol=1e-9) for a, b in zip(one, other, strict=True)),
    ),
    Contest(
        "PiToMe match",
        pitome,
        pitome_by_loops,
        lambda match, pairs: pairs_of(match) == pairs,
    ),
)


def example(batch: int, tokens: int, dim: int) -> Tensor:
    """Random tokens (batch, tokens, dim) float64, the same every time."""
    return torch.randn(batch, tokens, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def milliseconds(function: Callable[[], object], repeats: int = 25, warmup: int = 3) -> Interval:
    """Median time of a call with its bootstrap interval."""
    times = []
    for _ in range(warmup + repeats):
        start = time.perf_counter()
        function()
        times.append(1000 * (time.perf_counter() - start))
    return bootstrap(times[warmup:], statistic=lambda resampled: np.median(resampled, axis=1), over="calls")


def timed(contest: Contest, shape: tuple[int, int, int]) -> tuple[Interval, Interval]:
    """Milliseconds of the batched function at `shape`, and how many times as long the loops take.

    Raises ValueError when the two do not give the same result.
    """
    exact = example(*shape)
    if not contest.same(contest.batched(exact), contest.loops(exact)):
        raise ValueError(f"{contest.name} at {shape}: the batched function and the loops disagree")
    x = exact.float()
    gain = ratio(lambda: contest.loops(x), lambda: contest.batched(x), repeats=REPEATS, warmup=1)
    return milliseconds(lambda: contest.batched(x)), gain


def main() -> None:
    """Check and time every contest at every shape, and print one table."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("function", "shape", "batched, ms", "images/s", "loops / batched"):
        table.add_column(column, justify="left" if column == "function" else "right")
    for shape in SHAPES:
        for contest in CONTESTS:
            quick, gain = timed(contest, shape)
            rate = f"{1000 * shape[0] / quick.value:,.0f}"
            table.add_row(contest.name, "x".join(map(str, shape)), _short(quick), rate, _short(gain))
    console = Console()
    console.print(table)
    console.print(f"\nmedians with 95 % intervals, shape = batch x tokens x dim, {KEPT:.0%} of the patches kept")
    console.print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}")


def _short(interval: Interval) -> str:
    return f"{interval.value:.3g} [{interval.low:.3g}, {interval.high:.3g}]"


if __name__ == "__main__":
    main()
