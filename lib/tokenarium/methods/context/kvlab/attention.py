"""The attention function `kvlab` of transformers: a layer of a kvlab cache attends for itself, all others use sdpa.

transformers hands an attention function no cache, but it updates the layer's cache just before: the layer that was
updated last is remembered, and it is the right one if the keys are its own.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tokenarium.methods.context.kvlab.cache import AttendingLayer

NAME = "kvlab"
_last = threading.local()


def remember(layer: AttendingLayer) -> None:
    """Note the layer that was updated last."""
    _last.layer = layer


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """As transformers' own attention functions: query (B, H, q, d), key and value (B, Hkv, n, d) -> (B, q, H, d).

    Raises ValueError for padded prompts and for logits with a soft cap.
    """
    layer = getattr(_last, "layer", None)
    if layer is None or layer.keys is not key:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    if options.get("softcap") is not None:
        raise ValueError("kvlab does not know attention with a soft cap")
    if query.shape[2] == key.shape[2] and attention_mask is not None and not bool(attention_mask[:, :, -1].all()):
        raise ValueError("kvlab takes no padding: give prompts of one length, or one prompt at a time")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return layer.attend(module, query, scaling).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)  # for layers with a sliding window, and for other caches


def use(model: PreTrainedModel) -> PreTrainedModel:
    """Let a model's layers attend through kvlab; with any other cache it computes what it did with sdpa."""
    model.set_attn_implementation(NAME)
    return model


def attend(query: Tensor, key: Tensor, value: Tensor, scaling: float, mask: Tensor | None = None) -> Tensor:
    """Softmax attention without copying keys and values to the query heads that share them.

    query: (B, H, q, d); key, value: (B, Hkv, n, d). mask: (B or 1, H or Hkv or 1, q, n) bool, True for what is seen, or
    None for all. Returns (B, H, q, d).
    """
    batch, heads, queries, dim = query.shape
    key_heads, stored = key.shape[1], key.shape[2]
    groups = heads // key_heads
    if mask is not None:
        if mask.shape[1] != heads:
            mask = mask[:, :, None].expand(-1, -1, groups, -1, -1)
        mask = mask.reshape(mask.shape[0], -1, groups * queries, stored)
    grouped = query.reshape(batch, key_heads, groups * queries, dim)
    out = nn.functional.scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scaling)
    return out.reshape(batch, heads, queries, dim)


def causal(positions: Tensor, fresh: Tensor) -> Tensor:
    """(B, Hkv, q, n) bool: which stored tokens, at `positions` (B, Hkv, n), new tokens at `fresh` (q,) may see."""
    return positions[:, :, None] <= fresh[:, None]


def full(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Causal attention over all that is stored, whose last tokens are the queries: (B, H, q, d)."""
    if query.shape[2] == key.shape[2] > 1:
        return sdpa_attention_forward(module, query, key, value, None, scaling=scaling)[0].transpose(1, 2)
    mask = None
    if query.shape[2] > 1:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=key.device)
        mask = mask.tril(key.shape[2] - query.shape[2])[None, None]
    return attend(query, key, value, scaling, mask)
