"""What every method of the family is compared with: no image, chance, an even grid, the patches that CLS looks at."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenarium.methods.vlm.harness.method import Method
from tokenarium.methods.vlm.harness.tower import ImageView


@dataclass(frozen=True, kw_only=True)
class Blind(Method):
    """No visual token at all."""

    def select(self, image: ImageView) -> Tensor:
        return torch.zeros(0, dtype=torch.int64)


@dataclass(frozen=True, kw_only=True)
class Random(Method):
    """`budget` patches by chance, in raster order; each image has its own draw, the same at every run."""

    budget: int
    seed: int = 0

    def select(self, image: ImageView) -> Tensor:
        order = torch.randperm(len(image.features), generator=image.generator(self.seed))
        return order[: self.budget].sort().values


@dataclass(frozen=True, kw_only=True)
class Grid(Method):
    """`budget` patches spread evenly over the image."""

    budget: int

    def select(self, image: ImageView) -> Tensor:
        return even_grid(*image.grid, self.budget)


@dataclass(frozen=True, kw_only=True)
class ClsTopK(Method):
    """The patches that CLS attends to most at the feature layer, mean over heads (FasterVLM, arXiv 2412.01818)."""

    budget: int

    def select(self, image: ImageView) -> Tensor:
        scores = image.cls_attention(image.feature_block).mean(dim=0)
        return scores.topk(min(self.budget, len(scores))).indices.sort().values


def even_grid(height: int, width: int, count: int) -> Tensor:
    """`count` of height x width patches on a rectangle, spread as evenly as can be: (count,) int64, raster.

    Where no rectangle of more than one row and column has `count` points, every (height * width / count)-th patch.
    """
    shapes = [(rows, count // rows) for rows in range(1, height + 1) if count % rows == 0 and count // rows <= width]
    rows, columns = min(shapes, key=lambda shape: abs(shape[0] / height - shape[1] / width), default=(1, count))
    if count > 1 and min(rows, columns) == 1:
        return ((torch.arange(count) + 0.5) * height * width / count).floor().long()
    down = ((torch.arange(rows) + 0.5) * height / rows).floor().long()
    across = ((torch.arange(columns) + 0.5) * width / columns).floor().long()
    return (down[:, None] * width + across).flatten()
