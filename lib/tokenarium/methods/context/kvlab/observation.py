"""What a policy sees of one layer in a forward pass: queries, keys, values, and attention as far as it asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

ROWS = 128  # queries whose attention is held at once


@dataclass(frozen=True)
class Observation:
    """One layer in one forward pass: B prompts, H query heads, Hkv key heads, q new tokens among n stored ones.

    query: (B, H, q, d) and key, value: (B, Hkv, n, d), after RoPE. scaling: of the logits. positions: (B, Hkv, n)
    int64, where each stored token stood in the text, so that slots may be in any order; fresh: (q,) int64, the places
    of the new tokens. score: (B, Hkv, n) float32, what the policy gave before (0 for new tokens). step: 0 for the
    prompt, then the number of the forward pass. memory: the policy's own, of this layer and cache; shared: of the
    cache. computed: what was computed once for all policies that see the same tensors.
    """

    layer: int
    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float
    positions: Tensor
    fresh: Tensor
    score: Tensor
    step: int = 0
    memory: dict[str, Any] = field(default_factory=dict, repr=False)
    shared: dict[str, Any] = field(default_factory=dict, repr=False)
    computed: dict[Any, Tensor] = field(default_factory=dict, repr=False)

    @property
    def groups(self) -> int:
        """Query heads per key head."""
        return self.query.shape[1] // self.key.shape[1]

    @property
    def past(self) -> int:
        """Tokens stored before this forward pass; in a cache that drops nothing they come first."""
        return self.key.shape[2] - self.query.shape[2]

    @property
    def is_new(self) -> Tensor:
        """(B, Hkv, n) bool: the tokens of this forward pass."""
        return self.positions >= self.fresh[0]

    def only(self, **changes: Any) -> Observation:
        """The same tensors for another policy: its score, memory, shared. What was computed is kept."""
        return replace(self, **changes)

    def logits(self, rows: slice = slice(None), hidden: float = -torch.inf) -> Tensor:
        """(B, H, r, n) float32: scaled logits of some of the queries, `hidden` where a key comes after its query."""
        query = self.query[:, :, rows].float()
        batch, heads, count, dim = query.shape
        grouped = query.reshape(batch, self.key.shape[1], self.groups * count, dim)
        logits = (grouped @ self.key.float().mT) * self.scaling
        logits = logits.reshape(batch, self.key.shape[1], self.groups, count, -1)
        if self.query.shape[2] > 1:
            later = self.positions[:, :, None, None] > self.fresh[rows][:, None]
            logits = logits.masked_fill(later, hidden)
        return logits.reshape(batch, heads, count, -1)

    def probabilities(self, rows: slice = slice(None)) -> Tensor:
        """(B, H, r, n) float32: the attention of some of the queries."""
        return self._once(("probabilities", rows.start, rows.stop), lambda: self.logits(rows).softmax(dim=-1))

    def blocks(self) -> Iterator[slice]:
        """The queries in pieces, for sums over all of them that need not hold (q, n) numbers per head."""
        count = self.query.shape[2]
        return (slice(start, min(start + ROWS, count)) for start in range(0, count, ROWS))

    def attention_received(self) -> Tensor:
        """(B, H, n) float32: the attention that each stored token gets from all queries of the pass, summed."""
        return self._once(
            "received", lambda: sum(self.logits(rows).softmax(dim=-1).sum(dim=2) for rows in self.blocks())
        )

    def per_key_head(self, values: Tensor) -> Tensor:
        """(B, H, ...) -> (B, Hkv, ...): the mean over the query heads that share a key head."""
        return values.unflatten(1, (self.key.shape[1], self.groups)).mean(dim=2)

    def _once(self, name: Any, make: Callable[[], Tensor]) -> Tensor:
        if name not in self.computed:
            self.computed[name] = make()
        return self.computed[name]
