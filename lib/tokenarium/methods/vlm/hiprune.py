"""HiPrune: object tokens from a middle layer of the vision encoder, their neighbours, global tokens from a deep one.

Source: arXiv 2508.00553, section 4, with the conventions of the published code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tokenarium.methods.vlm.harness.method import Method
from tokenarium.methods.vlm.harness.tower import ImageView


def hiprune_select(
    a_obj: Tensor, a_deep: Tensor, budget: int, alpha: float = 0.1, width: int = 24
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Choose exactly `budget` of N patches: anchors, their buffers, registers.

    a_obj, a_deep: (N,) float attention that each patch receives in the object layer and in the deep layer, all below 1.
    width: patches per row. Python's round (halves to even) gives round(budget * alpha / 5) anchors. Buffers are the
    four neighbours by index: left and right wrap to the next row at the image's border, and what falls outside is
    clamped to the first or last patch. Registers fill what is left, with 1 subtracted from the scores of those chosen.
    Where anchors and buffers alone exceed the budget, which the defaults cannot, the least attended buffers go.

    Returns sorted int64 (anchors, buffers without anchors, registers) and keep_mask (N,) bool.
    Raises ValueError unless 1 <= budget <= N and 0 <= alpha <= 1.
    """
    total = len(a_obj)
    if not 1 <= budget <= total:
        raise ValueError(f"budget must be between 1 and {total}, got {budget}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be between 0 and 1, got {alpha}")
    anchors = a_obj.topk(num_anchors(budget, alpha)).indices
    steps = torch.tensor([-1, 1, -width, width], device=anchors.device)
    buffers = (anchors[:, None] + steps).flatten().clamp(0, total - 1).unique()
    buffers = buffers[~torch.isin(buffers, anchors)]
    room = budget - len(anchors)
    if len(buffers) > room:
        buffers = buffers[a_obj[buffers].topk(room).indices]
    registers, keep = fill_with_registers(torch.cat((anchors, buffers)), a_deep, budget)
    return anchors.sort().values, buffers.sort().values, registers, keep


def num_anchors(budget: int, alpha: float) -> int:
    """How many anchors a budget allows: one fifth of its share alpha, since each brings four buffers."""
    return round(budget * alpha / 5)


def fill_with_registers(chosen: Tensor, a_deep: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    """The patches with most deep attention besides those `chosen`, up to `budget` in all.

    Returns the registers, sorted int64, and the mask (N,) of everything that is kept.
    """
    keep = torch.zeros(len(a_deep), dtype=torch.bool, device=a_deep.device).index_fill(0, chosen, True)
    registers = (a_deep - keep.to(a_deep.dtype)).topk(budget - int(keep.sum())).indices.sort().values
    return registers, keep.index_fill(0, registers, True)


def top_patches(scores: Tensor, share: float = 0.1) -> Tensor:
    """The `share` of patches with the highest scores (N,): (round(share * N),) int64, sorted."""
    return scores.topk(round(share * len(scores))).indices.sort().values


def overlap(patches: Tensor, objects: Tensor) -> float:
    """Intersection over union of a set of patches (n,) with a mask (N,) bool."""
    mask = torch.zeros_like(objects).index_fill(0, patches, True)
    return float((mask & objects).sum() / (mask | objects).sum())


def dispersion(patches: Tensor, width: int) -> float:
    """Mean distance between two different patches (n,), in patches."""
    places = torch.stack((patches // width, patches % width), dim=1).double()
    return float(torch.pdist(places).mean())


@dataclass(frozen=True, kw_only=True)
class HiPrune(Method):
    """HiPrune at a budget, and its ablations.

    object_layer: l_obj, counted from 1. tokens: "all"; "no-buffers"; "anchors" or "registers" spend the whole budget on
    the top of the object or the deep layer. anchors_from, registers_from: where the two scores come from.
    """

    budget: int
    alpha: float = 0.1
    object_layer: int = 9
    tokens: Literal["all", "no-buffers", "anchors", "registers"] = "all"
    anchors_from: Literal["object", "deep"] = "object"
    registers_from: Literal["object", "deep"] = "deep"

    def select(self, image: ImageView) -> Tensor:
        *_, keep = self.parts(image)
        return keep.nonzero()[:, 0]

    def parts(self, image: ImageView) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Anchors, buffers, registers and the mask of all that is kept, as `hiprune_select` gives them."""
        scores = {"object": self.object_layer - 1, "deep": image.feature_block}
        a_obj, a_deep = (image.received(scores[name]) for name in (self.anchors_from, self.registers_from))
        none = torch.zeros(0, dtype=torch.int64, device=a_obj.device)
        if self.tokens == "all":
            return hiprune_select(a_obj, a_deep, self.budget, self.alpha, image.grid[1])
        if self.tokens == "registers":
            return none, none, *fill_with_registers(none, a_deep, self.budget)
        count = self.budget if self.tokens == "anchors" else num_anchors(self.budget, self.alpha)
        anchors = a_obj.topk(count).indices.sort().values
        return anchors, none, *fill_with_registers(anchors, a_deep, self.budget)
