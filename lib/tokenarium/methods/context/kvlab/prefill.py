"""One pass over a prompt, shared by all policies: queries, keys and values of every layer, and caches cut from them.

Attention is causal, so that the pass over context and question holds the pass over the context alone: protocol A takes
the first tokens of it, protocol B all. The recorded tensors are never changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tokenarium.methods.context.kvlab import attention
from tokenarium.methods.context.kvlab.cache import (
    AttendingLayer,
    CompressedCache,
    EvictingCache,
    SelectingCache,
)
from tokenarium.methods.context.kvlab.observation import Observation
from tokenarium.methods.context.kvlab.policies import EvictionPolicy, SelectionPolicy

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class _RecordingLayer(AttendingLayer):
    def attend(self, module: nn.Module, query: Tensor, scaling: float) -> Tensor:
        self.query, self.scaling = query, scaling
        return super().attend(module, query, scaling)


@dataclass
class Prefill:
    """What a model computed for prompts of one length: ids (B, n) int64, and by layer keys, values (B, Hkv, n, d), and
    in layers of full attention queries (B, H, n, d), after RoPE; `scalings` of the logits."""

    model: PreTrainedModel = field(repr=False)
    ids: Tensor
    keys: list[Tensor] = field(repr=False)
    values: list[Tensor] = field(repr=False)
    queries: list[Tensor | None] = field(repr=False)
    scalings: list[float | None] = field(repr=False)
    computed: dict[tuple[int, int], dict[Any, Tensor]] = field(default_factory=dict, repr=False)

    @property
    def layers(self) -> list[int]:
        """The layers of full attention."""
        return [index for index, query in enumerate(self.queries) if query is not None]

    def observe(self, layer: int, tokens: int | None = None) -> Observation:
        """What a policy sees of a layer after the first `tokens` of the prompt (all of them by default)."""
        tokens = self.ids.shape[1] if tokens is None else tokens
        key = self.keys[layer][:, :, :tokens]
        fresh = torch.arange(tokens, device=key.device)
        return Observation(
            layer,
            self.queries[layer][:, :, :tokens],
            key,
            self.values[layer][:, :, :tokens],
            self.scalings[layer],
            fresh.expand(*key.shape[:2], -1),
            fresh,
            torch.zeros(key.shape[:3], device=key.device),
        )

    def scores(self, policies: dict[str, EvictionPolicy], tokens: int | None = None) -> dict[str, list[Scored]]:
        """The scores of the prompt by every policy, in the order of `layers`; attention is computed once for all."""
        found: dict[str, list[Scored]] = {name: [] for name in policies}
        shared: dict[str, dict] = {name: {} for name in policies}
        for layer in self.layers:
            seen = self.observe(layer, tokens)
            for name, policy in policies.items():
                memory: dict[str, Any] = {}
                scores = policy.score(seen.only(memory=memory, shared=shared[name])).float()
                found[name].append(Scored(scores, memory, shared[name]))
        return found

    def evicting(
        self, policy: EvictionPolicy, budget: float, scores: Sequence[Scored], tokens: int | None = None
    ) -> EvictingCache:
        """A cache that has read the first `tokens` and kept `budget` of them, without a pass over the model."""
        tokens = self.ids.shape[1] if tokens is None else tokens
        cache = EvictingCache(self.model, policy, budget, whole=True)
        for layer, scored in zip(cache.compressed, scores, strict=True):
            self._store(layer, tokens)
            layer.memory, layer.shared = dict(scored.memory), dict(scored.shared)
            layer.evict(scored.scores)
        return self._fill(cache, tokens)

    def selecting(
        self, policy: SelectionPolicy | None = None, budget: float = 1, tokens: int | None = None
    ) -> SelectingCache:
        """A cache of all of the first `tokens`, which later queries see through the policy (None: all)."""
        tokens = self.ids.shape[1] if tokens is None else tokens
        cache = SelectingCache(self.model, policy, budget, whole=True)
        for layer in cache.compressed:
            self._store(layer, tokens)
        return self._fill(cache, tokens)

    def _fill(self, cache: CompressedCache, tokens: int) -> Any:
        for layer in cache.layers:
            if layer not in cache.compressed:
                layer.index = cache.layers.index(layer)
                self._store(layer, tokens)
        return cache

    def _store(self, layer: AttendingLayer, tokens: int) -> None:
        layer.update(self.keys[layer.index][:, :, :tokens], self.values[layer.index][:, :, :tokens])


@dataclass(frozen=True)
class Scored:
    """A policy's scores of a prompt in one layer, (B, Hkv, n) float32, and what it remembers."""

    scores: Tensor = field(repr=False)
    memory: dict[str, Any] = field(default_factory=dict, repr=False)
    shared: dict[str, Any] = field(default_factory=dict, repr=False)


@torch.inference_mode()
def prefill(model: PreTrainedModel, ids: Tensor) -> Prefill:
    """Read prompts (B, n) int64 once, all of one length. The model must attend through kvlab (`attention.use`)."""
    cache = CompressedCache(model, _RecordingLayer, whole=True)
    body = model.get_decoder()
    body(input_ids=ids.to(model.device), past_key_values=cache, use_cache=True)
    attention.remember(None)
    return Prefill(
        model,
        ids,
        [layer.keys for layer in cache.layers],
        [layer.values for layer in cache.layers],
        [getattr(layer, "query", None) for layer in cache.layers],
        [getattr(layer, "scaling", None) for layer in cache.layers],
    )
