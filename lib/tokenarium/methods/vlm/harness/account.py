"""What a reduced prompt costs, and how methods are put on one budget (H2, H4, H9).

Pre-LLM methods carry B tokens through every layer. Methods inside the language model start with all: their nominal
budget is what is left after the last cut, and their mean over the layers, vbar, is what makes them comparable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from transformers import LlavaForConditionalGeneration

BUDGETS = (96, 48, 32, 16, 8)  # of 144 patches: the shares that the literature reports on 576


@dataclass(frozen=True)
class Shape:
    """Sizes of a model that the account asks for. layer_parameters: weights of the matrix products in one layer."""

    num_layers: int
    dim: int  # of all attention heads together
    layer_parameters: int
    num_patches: int
    tower_dim: int
    projector_parameters: int

    @classmethod
    def of(cls, model: LlavaForConditionalGeneration) -> Shape:
        layers = model.model.language_model.layers
        attention = layers[0].self_attn
        vision = model.config.vision_config
        return cls(
            num_layers=len(layers),
            dim=attention.q_proj.out_features,
            layer_parameters=sum(weight.numel() for weight in layers[0].parameters() if weight.ndim == 2),
            num_patches=(vision.image_size // vision.patch_size) ** 2,
            tower_dim=vision.hidden_size,
            projector_parameters=sum(w.numel() for w in model.model.multi_modal_projector.parameters() if w.ndim == 2),
        )


def prefill_flops(rows: ArrayLike, shape: Shape, attended: ArrayLike | None = None) -> NDArray[np.float64]:
    """Floating-point operations of reading a prompt, sum over layers of 2 s P + 4 s^2 d (H4).

    rows: (..., layers), tokens s in each layer. attended: the same for the attention where it runs over more tokens
    than the layer's matrices, as with virtual unmerging; the rows by default. Returns (...,).
    """
    rows = np.asarray(rows, dtype=np.float64)
    attended = rows if attended is None else np.asarray(attended, dtype=np.float64)
    return (2 * rows * shape.layer_parameters + 4 * attended**2 * shape.dim).sum(axis=-1)


def vbar(visual: ArrayLike) -> NDArray[np.float64]:
    """Mean over the layers of the visual tokens present: (..., layers) counts to (...,)."""
    return np.asarray(visual, dtype=np.float64).mean(axis=-1)


def matched(mean_tokens: Callable[[int], float], target: float, largest: int, tolerance: float = 0.02) -> int | None:
    """The whole number n, at most `largest`, at which `mean_tokens(n)`, a rising function, comes closest to `target`.

    None where even that misses the target by more than `tolerance` of it (H9: "n/a").
    """
    low, high = 0, largest
    while low < high:
        middle = (low + high) // 2
        if mean_tokens(middle) < target:
            low = middle + 1
        else:
            high = middle
    best = min((n for n in (low - 1, low) if n >= 0), key=lambda n: abs(mean_tokens(n) - target))
    return best if abs(mean_tokens(best) - target) <= tolerance * target else None
