"""Baselines that every token-reduction method of the vision family is compared with, at equal ratio.

All reduce the T patch tokens of a block by r = floor(T - T ratio), at most T - 1, in every block or only in
`layers`; the class token stays first. Equal scores are ranked by position (stable sort).
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenarium.methods.vision.harness import Reducer, Reduction, identity_source
from tokenarium.methods.vision.pitome import PiToMe, removed_tokens, seeded_generator
from tokenarium.methods.vision.tome import Assignment, behind_class_token, merged, random_assignment, take


@dataclass(frozen=True)
class RatioReducer(Reducer):
    """Shared budget of the baselines: keep `ratio` of the patches in each of `layers` (None: every block).

    A subclass says in `shorten` how r > 0 tokens go; blocks without a reduction are left alone. Raises
    ValueError unless 0 < ratio <= 1.
    """

    ratio: float
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        removed_tokens(1, self.ratio)  # raises for a ratio out of range

    def removed(self, layer: int, patches: int) -> int:
        """Number of patch tokens that block `layer` drops or merges away."""
        if self.layers is not None and layer not in self.layers:
            return 0
        return max(0, min(removed_tokens(patches, self.ratio), patches - 1))

    def lengths(self, tokens: int, num_layers: int) -> list[int]:
        """Token count after each block."""
        lengths = []
        for layer in range(num_layers):
            tokens -= self.removed(layer, tokens - 1)
            lengths.append(tokens)
        return lengths

    def reduce(self, layer: int, x: Tensor, metric: Tensor, size: Tensor, attention: Tensor | None) -> Reduction:
        """Reduce in block `layer`; shapes as in `Reducer.reduce`."""
        r = self.removed(layer, x.shape[1] - 1)
        if r == 0:
            return super().reduce(layer, x, metric, size, attention)
        return self.shorten(r, layer, x, size, attention)

    def shorten(self, r: int, layer: int, x: Tensor, size: Tensor, attention: Tensor | None) -> Reduction:
        """Take r patch tokens out; shapes as in `Reducer.reduce`."""
        raise NotImplementedError


def pruned(x: Tensor, size: Tensor, keep: Tensor) -> Reduction:
    """Keep the tokens at positions `keep` (batch, kept) int64, in that order; the others' mass is lost."""
    return Reduction(take(x, keep), take(size, keep), lambda: take(identity_source(x), keep))


def class_attention(attention: Tensor) -> Tensor:
    """Attention of the class token to each patch token, mean over heads: (B, H, N, N) float -> (B, N - 1)."""
    return attention[:, :, 0, 1:].mean(dim=1)


def split_by_class_attention(attention: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Positions of the class token and the T - r patches it attends to most, and of the other r.

    attention: (B, H, N, N) float probabilities. Returns keep (B, N - r) and drop (B, r) int64, both
    ascending.
    """
    order = class_attention(attention).argsort(dim=1, descending=True, stable=True) + 1
    keep, drop = order[:, : order.shape[1] - r], order[:, order.shape[1] - r :]
    keep = torch.cat([torch.zeros_like(order[:, :1]), keep], dim=1)
    return keep.sort(dim=1).values, drop.sort(dim=1).values


@dataclass(frozen=True)
class RandomPrune(RatioReducer):
    """Drop random patch tokens; the others keep their order.

    Each row of a batch has a draw of its own, fixed by seed, layer and place in the batch.
    """

    seed: int = 0

    def shorten(self, r: int, layer: int, x: Tensor, size: Tensor, attention: Tensor | None) -> Reduction:
        """Prune r patch tokens; shapes as in `Reducer.reduce`."""
        return pruned(x, size, _random(x, r, self.seed, layer).anchor)


@dataclass(frozen=True)
class RandomMerge(RatioReducer):
    """Merge random patch tokens into random survivors by the size-weighted mean.

    Each row of a batch has a draw of its own, fixed by seed, layer and place in the batch; the same seed
    removes the same tokens as `RandomPrune`.
    """

    seed: int = 0

    def shorten(self, r: int, layer: int, x: Tensor, size: Tensor, attention: Tensor | None) -> Reduction:
        """Merge r patch tokens away; shapes as in `Reducer.reduce`."""
        return merged(_random(x, r, self.seed, layer), x, size)


def _random(x: Tensor, r: int, seed: int, layer: int) -> Assignment:
    drawn = random_assignment(x.shape[0], x.shape[1] - 1, r, seeded_generator(seed, layer))
    return Assignment(*(index.to(x.device) for index in behind_class_token(drawn)))


@dataclass(frozen=True)
class EnergyPrune(PiToMe):
    """Drop the tokens that PiToMe would merge away: what the energy is worth without the merge."""

    def apply(self, assignment: Assignment, x: Tensor, size: Tensor) -> Reduction:
        """Keep the anchors alone; x (batch, tokens, dim), size (batch, tokens, 1)."""
        return pruned(x, size, assignment.anchor)


@dataclass(frozen=True)
class ClsTopK(RatioReducer):
    """Keep the patch tokens that the class token attends to most, in raster order."""

    needs_attention: ClassVar[bool] = True

    def shorten(self, r: int, layer: int, x: Tensor, size: Tensor, attention: Tensor | None) -> Reduction:
        """Prune r patch tokens; shapes as in `Reducer.reduce`."""
        return pruned(x, size, split_by_class_attention(attention, r)[0])


@dataclass(frozen=True)
class EViTFuse(RatioReducer):
    """Prune by class attention and append one token: the mean of the pruned ones weighted by class attention.

    Its size is their total, so mass is conserved, and `source` says where the mass went, not the weights of
    the mean. Later reductions treat it like any other token. A block that drops r tokens is therefore r - 1
    shorter. Source: Liang et al., "Not All Patches Are What You Need" (EViT), ICLR 2022, with weights that
    sum to 1.
    """

    needs_attention: ClassVar[bool] = True

    def lengths(self, tokens: int, num_layers: int) -> list[int]:
        """Token count after each block, the fused token included."""
        lengths = []
        for layer in range(num_layers):
            tokens -= max(0, self.removed(layer, tokens - 1) - 1)
            lengths.append(tokens)
        return lengths

    def shorten(self, r: int, layer: int, x: Tensor, size: Tensor, attention: Tensor | None) -> Reduction:
        """Prune r patch tokens and append their mean; shapes as in `Reducer.reduce`."""
        keep, drop = split_by_class_attention(attention, r)
        weight = class_attention(attention).gather(1, drop - 1)[..., None]
        weight = weight / weight.sum(dim=1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
        fused = (take(x, drop) * weight.to(x.dtype)).sum(dim=1, keepdim=True)

        def append_total(values: Tensor) -> Tensor:
            return torch.cat([take(values, keep), take(values, drop).sum(dim=1, keepdim=True)], dim=1)

        x_kept = torch.cat([take(x, keep), fused], dim=1)
        return Reduction(x_kept, append_total(size), lambda: append_total(identity_source(x)))


@dataclass(frozen=True)
class AveragePool(RatioReducer):
    """Pool fixed rectangles of the patch grid, blind to content; output tokens stay in raster order.

    grid: (rows, columns) of patches in front of block 0. After k reducing blocks each side is round(side
    ratio^(k/2)), at least 1, so the kept ratio is met up to rounding; a side is cut into bands of nearly
    equal width.
    """

    grid: tuple[int, int] = (14, 14)

    def grid_after(self, layer: int) -> tuple[int, int]:
        """Rows and columns left after block `layer`; -1 stands for the input."""
        reductions = sum(self.layers is None or index in self.layers for index in range(layer + 1))
        rows, columns = (max(1, round(side * self.ratio ** (reductions / 2))) for side in self.grid)
        return rows, columns

    def removed(self, layer: int, patches: int) -> int:
        """Number of patches that pooling in block `layer` saves; ValueError if they are not its grid."""
        rows, columns = self.grid_after(layer - 1)
        if patches != rows * columns:
            raise ValueError(f"expected a grid of {rows} x {columns} patches in block {layer}, got {patches}")
        return patches - math.prod(self.grid_after(layer))

    def shorten(self, r: int, layer: int, x: Tensor, size: Tensor, attention: Tensor | None) -> Reduction:
        """Pool the grid by the size-weighted mean; shapes as in `Reducer.reduce`."""
        (rows, columns), (new_rows, new_columns) = self.grid_after(layer - 1), self.grid_after(layer)
        new_row = torch.arange(rows) * new_rows // rows
        new_column = torch.arange(columns) * new_columns // columns
        group = (new_row[:, None] * new_columns + new_column).flatten()
        by_group = group.argsort(stable=True)
        is_first = group[by_group].diff(prepend=torch.tensor([-1])) > 0
        src = by_group[~is_first]
        pooling = behind_class_token(Assignment(by_group[is_first][None], src[None], group[src][None]))
        return merged(Assignment(*(index.to(x.device).expand(x.shape[0], -1) for index in pooling)), x, size)
