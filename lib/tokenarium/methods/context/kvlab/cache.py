"""Caches that hold less than the whole text, or show less of it, for `model.generate` and for the harness.

`EvictingCache` gathers the keys and values that a policy keeps and forgets the others; while decoding, a new token
takes the place of the dropped one, so that nothing is copied. `SelectingCache` keeps everything and masks. Both leave
layers with a sliding window as they are. The model must attend through kvlab (`attention.use`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    DYNAMIC_LAYER_TYPE_MAPPING,
    Cache,
    DynamicLayer,
    get_layer_types_and_kwargs,
)

from tokenarium.methods.context.kvlab import attention
from tokenarium.methods.context.kvlab.observation import Observation
from tokenarium.methods.context.kvlab.policies import EvictionPolicy, SelectionPolicy
from tokenarium.methods.context.kvlab.rotary import inverse_frequencies, rotate

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class AttendingLayer(DynamicLayer):
    """A layer of a cache that attends for itself. seen: tokens that went through it; step: forward passes so far."""

    def __init__(self, index: int = 0):
        super().__init__()
        self.index = index
        self.seen = 0
        self.step = -1  # of the forward pass that is going on

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.fresh = torch.arange(self.seen, self.seen + key_states.shape[-2], device=self.device)
        self.seen += key_states.shape[-2]
        self.step += 1
        self.add(key_states, value_states)
        attention.remember(self)
        return self.keys, self.values

    def add(self, key: Tensor, value: Tensor) -> None:
        """Store the keys and values (B, Hkv, q, d) of new tokens."""
        self.keys = torch.cat([self.keys, key], dim=-2) if self.keys.numel() else key
        self.values = torch.cat([self.values, value], dim=-2) if self.values.numel() else value

    def attend(self, module: nn.Module, query: Tensor, scaling: float) -> Tensor:
        """(B, H, q, d): what the new tokens read from the layer."""
        return attention.full(module, query, self.keys, self.values, scaling)

    def get_seq_length(self) -> int:
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        stored = self.stored()
        return stored + query_length, self.seen - stored

    def stored(self) -> int:
        """Tokens per key head that the layer holds."""
        return self.keys.shape[-2] if self.is_initialized and self.keys.numel() else 0

    def crop(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove)
        self.seen -= abs(tokens_to_remove)

    def reset(self) -> None:
        super().reset()
        self.__init__(self.index)


class EvictingLayer(AttendingLayer):
    """Keeps at most `budget` tokens per key head (a share of the prompt below 1), chosen by the policy.

    positions: (B, Hkv, n) int64, places in the text; scores: (B, Hkv, n) float32, the policy's; free: (B, Hkv) int64,
    the slot of the token that was dropped last, or None if there is no gap. evicting: False to only store what comes.
    """

    is_croppable = False

    def __init__(
        self,
        index: int,
        policy: EvictionPolicy,
        budget: float,
        shared: dict[str, Any],
        frequencies: Callable[[], Tensor] | None = None,
    ):
        super().__init__(index)
        if budget <= 0:
            raise ValueError(f"a budget must be positive, got {budget}")
        self.policy, self.shared, self.frequencies = policy, shared, frequencies
        self.share = budget
        self.budget = budget if budget < 1 else int(budget)
        self.memory: dict[str, Any] = {}
        self.evicting = True
        self.positions: Tensor | None = None
        self.scores: Tensor | None = None
        self.free: Tensor | None = None

    def add(self, key: Tensor, value: Tensor) -> None:
        if self.positions is None:
            self.positions = self.fresh.expand(*key.shape[:2], -1)
            self.scores = torch.zeros(key.shape[:3], dtype=torch.float32, device=key.device)
            self.keys, self.values = key, value
            if self.budget < 1:
                self.budget = max(1, int(self.budget * key.shape[2]))
            return
        if self.policy.renumber:
            key = rotate(key, self._shift(), self.frequencies())
        if self.free is not None and key.shape[2] == 1:
            slot = self.free[..., None]
            at = slot[..., None].expand_as(key)
            self.keys.scatter_(2, at, key)
            self.values.scatter_(2, at, value)
            self.positions.scatter_(2, slot, self.seen - 1)
            self.scores.scatter_(2, slot, 0.0)
            return
        self._close_gap()
        super().add(key, value)
        self.positions = torch.cat([self.positions, self.fresh.expand(*key.shape[:2], -1)], dim=-1)
        self.scores = torch.nn.functional.pad(self.scores, (0, key.shape[2]))

    def attend(self, module: nn.Module, query: Tensor, scaling: float) -> Tensor:
        if self.step == 0:
            out = attention.full(module, query, self.keys, self.values, scaling)
        else:
            if self.policy.renumber:
                query = rotate(query, self._shift(before=False), self.frequencies())
            mask = attention.causal(self.positions, self.fresh) if query.shape[2] > 1 else None
            out = attention.attend(query, self.keys, self.values, scaling, mask)
        if self.evicting and (self.step == 0 or self.policy.decoding):
            self.observe(query, scaling)
        return out

    def observe(self, query: Tensor, scaling: float) -> None:
        """Let the policy score what is stored, and drop what is beyond the budget."""
        seen = Observation(
            self.index,
            query,
            self.keys,
            self.values,
            scaling,
            self.positions,
            self.fresh,
            self.scores,
            self.step,
            self.memory,
            self.shared,
        )
        self.evict(self.policy.score(seen).float())

    def evict(self, scores: Tensor) -> None:
        """Drop the lowest of the scores (B, Hkv, n) down to the budget."""
        self.scores = scores
        stored = self.keys.shape[2]
        if stored <= self.budget:
            return
        if stored == self.budget + 1 and self.step > 0 and not self.policy.renumber:
            self.scores = scores.contiguous()
            self.positions = self.positions.contiguous()
            self.free = self.policy.rank(self.scores, self.positions, self.seen, self.budget).argmin(dim=-1)
            return
        kept = self.policy.keep(scores, self.positions, self.seen, self.budget)
        ranks = torch.arange(stored, device=kept.device).expand(*kept.shape[:2], -1) if self.policy.renumber else None
        self.gather(kept)
        if ranks is not None:
            steps = ranks[..., : self.budget] - ranks.gather(-1, kept)
            self.keys = rotate(self.keys, steps, self.frequencies())

    def gather(self, kept: Tensor) -> None:
        """Keep the slots (B, Hkv, m) int64 and forget the rest."""
        wide = kept[..., None].expand(-1, -1, -1, self.keys.shape[-1])
        self.keys, self.values = self.keys.gather(2, wide), self.values.gather(2, wide)
        self.positions, self.scores = self.positions.gather(2, kept), self.scores.gather(2, kept)
        self.free = None

    def stored(self) -> int:
        return super().stored() - (self.free is not None)

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove:
            raise ValueError("a cache that has dropped tokens cannot go back")

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._each(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._each(lambda tensor: tensor[indices.to(tensor.device)])

    def reset(self) -> None:
        DynamicLayer.reset(self)
        self.__init__(self.index, self.policy, self.share, self.shared, self.frequencies)

    def _each(self, change: Callable[[Tensor], Tensor]) -> None:
        for name in ("keys", "values", "positions", "scores", "free"):
            if getattr(self, name) is not None:
                setattr(self, name, change(getattr(self, name)))

    def _close_gap(self) -> None:
        if self.free is not None:
            slots = torch.arange(self.keys.shape[2], device=self.device).expand(*self.free.shape, -1)
            self.gather(slots[slots != self.free[..., None]].reshape(*self.free.shape, -1))

    def _shift(self, before: bool = True) -> Tensor:
        """From the places of the new tokens in the text to those in the cache, the same for all of them."""
        new = len(self.fresh)
        return torch.tensor(self.keys.shape[2] - (0 if before else new) - (self.seen - new), device=self.device)


class SelectingLayer(AttendingLayer):
    """Keeps all and shows each query `budget` of the tokens stored before it (a share of them below 1).

    policy: None shows all. attended: for each forward pass but the first, the mean number of earlier tokens seen.
    """

    def __init__(self, index: int, policy: SelectionPolicy | None, budget: float, shared: dict[str, Any]):
        super().__init__(index)
        self.policy, self.budget, self.shared = policy, budget, shared
        self.memory: dict[str, Any] = {}
        self.attended: list[float] = []

    def attend(self, module: nn.Module, query: Tensor, scaling: float) -> Tensor:
        past = self.keys.shape[2] - query.shape[2]
        budget = int(self.budget * past) if self.budget < 1 else int(self.budget)
        if past and (self.policy is None or past <= budget):
            self.attended.append(float(past))
        if self.policy is None or past <= budget or not past:
            return attention.full(module, query, self.keys, self.values, scaling)
        batch, key_heads, stored = self.keys.shape[:3]
        positions = torch.arange(stored, device=self.device).expand(batch, key_heads, -1)
        empty = torch.zeros(1, device=self.device).expand(batch, key_heads, stored)
        seen = Observation(
            self.index,
            query,
            self.keys,
            self.values,
            scaling,
            positions,
            self.fresh,
            empty,
            self.step,
            self.memory,
            self.shared,
        )
        mask = self.policy.select(seen, max(1, budget))
        self.attended.append(float(mask.float().mean()) * past)
        own = torch.ones(query.shape[2], query.shape[2], dtype=torch.bool, device=self.device).tril()
        mask = torch.cat([mask, own.expand(*mask.shape[:3], -1)], dim=-1)
        return attention.attend(query, self.keys, self.values, scaling, mask)

    def reset(self) -> None:
        DynamicLayer.reset(self)
        self.__init__(self.index, self.policy, self.budget, self.shared)


class WholeSlidingLayer(AttendingLayer):
    """A layer with a sliding window that keeps all tokens, so that the harness can go back; transformers' mask hides
    those beyond the window."""

    is_sliding = True

    def __init__(self, index: int = 0, sliding_window: int = 0):
        super().__init__(index)
        self.sliding_window = sliding_window

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys, values = super().update(key_states, value_states)
        attention.remember(None)
        return keys, values

    def reset(self) -> None:
        DynamicLayer.reset(self)
        self.__init__(self.index, self.sliding_window)


class CompressedCache(Cache):
    """The layers of a model's text decoder: those of full attention made by `make(index)`, the others as usual."""

    def __init__(self, model: PreTrainedModel, make: Callable[[int], AttendingLayer], whole: bool = False):
        if model.config._attn_implementation != attention.NAME:
            raise ValueError("the model does not attend through kvlab yet: call kvlab.use(model) first")
        types, options = get_layer_types_and_kwargs(model.config.get_text_config(decoder=True))
        layers = []
        for index, (kind, option) in enumerate(zip(types, options, strict=True)):
            if kind == "full_attention":
                layers.append(make(index))
            elif kind == "sliding_attention" and whole:
                layers.append(WholeSlidingLayer(index, **option))
            else:
                layers.append(DYNAMIC_LAYER_TYPE_MAPPING[kind](**option))
        super().__init__(layers=layers)

    @property
    def compressed(self) -> list[AttendingLayer]:
        """The layers of full attention, which alone count for budgets."""
        return [layer for layer in self.layers if not getattr(layer, "is_sliding", False)]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.layers[layer_idx].get_seq_length()

    def stored(self) -> float:
        """Tokens per key head and compressed layer, on average."""
        return sum(layer.stored() for layer in self.compressed) / len(self.compressed)

    def nbytes(self) -> int:
        """Bytes of keys and values in all layers."""
        tensors = [each for layer in self.layers if layer.is_initialized for each in (layer.keys, layer.values)]
        return sum(each.nbytes for each in tensors)


class EvictingCache(CompressedCache):
    """Keeps `budget` tokens per key head: `model.generate(..., past_key_values=EvictingCache(model, H2O(), 0.25))`.

    budget: a number of tokens, or a share of the prompt below 1. Prompts in one batch must have one length.
    """

    def __init__(self, model: PreTrainedModel, policy: EvictionPolicy, budget: float, whole: bool = False):
        shared: dict[str, Any] = {}
        frequencies = inverse_frequencies(model) if policy.renumber else None
        super().__init__(model, lambda index: EvictingLayer(index, policy, budget, shared, lambda: frequencies), whole)

    def join(self, others: Sequence[EvictingCache]) -> EvictingCache:
        """Put other caches of the same sizes behind this one as more prompts of one batch, to be read and not evicted.

        They may come from other policies, if they agree on renumbering. What the others hold is not changed.
        """
        for number, layer in enumerate(self.layers):
            same = [layer, *(other.layers[number] for other in others)]
            names = (
                ("keys", "values", "positions", "scores") if isinstance(layer, EvictingLayer) else ("keys", "values")
            )
            for name in names:
                setattr(layer, name, torch.cat([getattr(each, name) for each in same]))
        return self.evicting(False)

    def evicting(self, on: bool) -> EvictingCache:
        """Whether what comes from now on is scored and may push others out."""
        for layer in self.compressed:
            layer.evicting = on
        return self


class SelectingCache(CompressedCache):
    """Keeps all and lets each query see `budget` of the earlier tokens (a share below 1); policy None shows all."""

    def __init__(
        self, model: PreTrainedModel, policy: SelectionPolicy | None = None, budget: float = 1, whole: bool = False
    ):
        shared: dict[str, Any] = {}
        super().__init__(model, lambda index: SelectingLayer(index, policy, budget, shared), whole)

    def attended(self) -> float:
        """Earlier tokens that a query saw, over layers and forward passes after the first, on average."""
        passes = [count for layer in self.compressed for count in layer.attended]
        return sum(passes) / len(passes) if passes else 0.0
