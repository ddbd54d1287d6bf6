"""What a method sees of one question inside the language model."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenarium.methods.vlm.harness.questions import Question

Rows = slice | Tensor | list[int]


@dataclass
class Memory:
    """What a method keeps of one question from layer to layer.

    per_token: tensors whose first axis is the visual tokens; a cut takes the same rows of them. other: anything else.
    """

    per_token: dict[str, Tensor] = field(default_factory=dict)
    other: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class NeuronView:
    """Where the rows of `Method.neurons` lie. decoding: they are one token of the answer, and the slices are empty."""

    system: slice
    visual: slice
    text: slice
    cue: slice
    memory: Memory
    decoding: bool


class LayerView:
    """One question after a layer of the language model; S rows: system prompt, n visual tokens, text.

    hidden: (S, dim), the layer's output. attn_in, attn_out, mlp_in, mlp_out: (S, dim), the normed input of each module
    and what it adds to the residual. query: (heads, S, head_dim), key, value: (kv_heads, S, head_dim), query and key
    turned to their positions. positions: (S, K) ids in this layer. patches: (n,) int64 and source: (n, N) or None, what
    the visual tokens stand for. system, visual, text, cue: slices of rows; text is all after the image, cue included.
    memory: this question's own, from layer to layer. question: the question itself.
    """

    def __init__(
        self,
        model: Any,
        layer: int,
        tensors: dict[str, Tensor],
        parts: dict[str, slice],
        question: Question,
        memory: Memory,
        rotate: Any,
        hidden_keys: Tensor | None,
    ):
        self.layer, self.question, self.memory = layer, question, memory
        self.hidden: Tensor = tensors["hidden"]
        self.attn_in, self.attn_out = tensors["attn_in"], tensors["attn_out"]
        self.mlp_in, self.mlp_out = tensors["mlp_in"], tensors["mlp_out"]
        self.query, self.key, self.value = tensors["query"], tensors["key"], tensors["value"]
        self.positions, self.patches, self.source = tensors["positions"], tensors["patches"], tensors.get("source")
        self.system, self.visual, self.text, self.cue = (parts[name] for name in ("system", "visual", "text", "cue"))
        self._layers = model.model.language_model.layers
        self._rotate, self._hidden_keys = rotate, hidden_keys

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    @property
    def last(self) -> int:
        """The row of the last token of the prompt."""
        return len(self.hidden) - 1

    def logits(self, rows: Rows = slice(None)) -> Tensor:
        """This layer's attention logits of some query rows: (heads, rows, S) float32, scaled, -inf where masked."""
        return self._logits(self.query, self.key, rows, self._layers[self.layer - 1].self_attn.scaling)

    def attention(self, rows: Rows = slice(None)) -> Tensor:
        """This layer's attention probabilities of some query rows: (heads, rows, S) float32."""
        return self.logits(rows).softmax(dim=-1)

    def next_attention(self, rows: Rows = slice(None)) -> Tensor:
        """What the next layer's attention would be at the present rows and positions: (heads, rows, S) float32.

        Raises ValueError after the last layer.
        """
        query, key = self.next_query_key
        return self._logits(query, key, rows, self._next.self_attn.scaling).softmax(dim=-1)

    @cached_property
    def next_query_key(self) -> tuple[Tensor, Tensor]:
        """The next layer's queries (heads, S, head_dim) and keys (kv_heads, S, head_dim) of `hidden`, both turned."""
        attention, normed = self._next.self_attn, self._next.input_layernorm(self.hidden)
        query, key = (
            project(normed).view(len(normed), -1, attention.head_dim).transpose(0, 1)
            for project in (attention.q_proj, attention.k_proj)
        )
        query, key = self._rotate(query[None], key[None], self.positions[None])
        return query[0], key[0]

    @cached_property
    def activations(self) -> Tensor:
        """The input of this layer's down projection: (S, d_ff)."""
        mlp = self._layers[self.layer - 1].mlp
        return mlp.act_fn(mlp.gate_proj(self.mlp_in)) * mlp.up_proj(self.mlp_in)

    @property
    def _next(self) -> torch.nn.Module:
        if self.layer >= self.num_layers:
            raise ValueError(f"there is no layer after layer {self.layer}")
        return self._layers[self.layer]

    def _logits(self, query: Tensor, key: Tensor, rows: Rows, scaling: float) -> Tensor:
        length = key.shape[1]
        key = key.repeat_interleave(query.shape[0] // key.shape[0], dim=0)
        seen = torch.ones(length, length, dtype=torch.bool, device=key.device).tril()
        if self._hidden_keys is not None:
            seen &= ~self._hidden_keys | torch.eye(length, dtype=torch.bool, device=key.device)
        logits = (query[:, rows] @ key.transpose(1, 2)).float() * scaling
        return logits.masked_fill(~seen[rows], -torch.inf)


def merged(shares: Tensor, tokens: Tensor) -> Tensor:
    """Weighted means of tokens: shares (m, n) of tokens (n, dim), each row divided by its sum. Returns (m, dim)."""
    return F.normalize(shares.to(tokens.dtype), p=1, dim=1) @ tokens
