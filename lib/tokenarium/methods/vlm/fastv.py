"""FastV: drop the image tokens that the last token of the prompt looks at least, after the first layers.

Source: "An Image is Worth 1/2 Tokens After Layer 2", arXiv 2403.06764, section 4.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from tokenarium.methods.vlm.harness.account import matched
from tokenarium.methods.vlm.harness.method import Method, Positions
from tokenarium.methods.vlm.harness.views import LayerView


def fastv_select(attention: Tensor, visual: slice, keep: int) -> Tensor:
    """The visual tokens that the last row attends to most: sorted (keep,) int64 among the visual tokens.

    attention: (heads, S, S) or (heads, 1, S) probabilities; averaged over heads.
    """
    scores = attention[:, -1, visual].mean(dim=0)
    return scores.topk(min(keep, len(scores))).indices.sort().values


@dataclass(frozen=True, kw_only=True)
class FastV(Method):
    """Keep `keep` visual tokens from layer `k` on (0-based, so k layers run on all of them); ids stay."""

    keep: int
    k: int = 2
    positions: Positions = "preserve"

    def layers(self, num_layers: int) -> Iterable[int]:
        return (self.k,)

    def after_layer(self, layer: int, view: LayerView) -> Tensor:
        return fastv_select(view.attention([view.last]), view.visual, self.keep)


def fastv_at_vbar(budget: float, num_patches: int, num_layers: int) -> FastV | None:
    """FastV whose mean over the layers is `budget` visual tokens, K = 2 where that can be, else 1; None if neither."""
    for k in (2, 1):
        keep = matched(lambda n: (k * num_patches + (num_layers - k) * n) / num_layers, budget, num_patches)  # noqa: B023
        if keep:
            return FastV(keep=keep, k=k)
    return None
