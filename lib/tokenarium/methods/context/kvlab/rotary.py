"""Turn keys and queries that RoPE has rotated to another position (rotate-half: dims i and i + d/2 are a plane)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def rotate(states: Tensor, steps: Tensor, inverse_frequencies: Tensor) -> Tensor:
    """Move rotated states by a number of positions.

    states: (..., d), as after RoPE. steps: (...) int64, how many positions further (or back). inverse_frequencies:
    (d/2,) radians per position.
    """
    angles = steps[..., None].to(torch.float32) * inverse_frequencies
    cosine, sine = angles.cos(), angles.sin()
    first, second = states.float().chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1).to(states.dtype)


def inverse_frequencies(model: PreTrainedModel) -> Tensor:
    """(d/2,) float32: the frequencies of a model's layers of full attention, radians per position.

    Raises ValueError for a model without rotary embeddings of one of the known names.
    """
    for name in ("full_attention_inv_freq", "inv_freq"):  # Gemma 3 has one for each type of layer, Llama and Qwen one
        for module in model.modules():
            if isinstance(found := getattr(module, name, None), Tensor):
                return found
    raise ValueError(f"{type(model).__name__} has no rotary embedding")
