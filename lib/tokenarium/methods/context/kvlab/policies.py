"""What to keep of a cache: policies as small classes with one method, and the baselines of the family.

An eviction policy scores stored tokens; the lowest are dropped for good. A selection policy drops nothing and says, for
each query, which of the earlier tokens it may see. Budgets count tokens per key head, sinks and recent ones included.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tokenarium.methods.context.kvlab.observation import Observation


@dataclass(frozen=True)
class EvictionPolicy:
    """Scores tokens; keeps the first `sinks`, the last `recent` (a share of the budget below 1) and the best others.

    decoding: whether it goes on after the prompt, one token out for each new one; otherwise new tokens are kept.
    renumber: whether what is kept gets the positions 0, 1, ... of the cache in place of those of the text.
    """

    sinks: int = 0
    recent: float = 0
    decoding: bool = True
    renumber: bool = False

    def score(self, seen: Observation) -> Tensor:
        """(B, Hkv, n) float: how much each stored token is worth; called for the prompt and for each step after it."""
        raise NotImplementedError

    def rank(self, score: Tensor, positions: Tensor, total: int, budget: int) -> Tensor:
        """(B, Hkv, n): the scores, infinite for sinks and recent ones of a text of `total` tokens."""
        recent = int(self.recent * budget) if self.recent < 1 else int(self.recent)
        recent = min(recent, budget - min(self.sinks, budget))
        protected = positions >= total - recent
        if self.sinks:
            protected |= positions < self.sinks
        return score.float().masked_fill(protected, torch.inf)

    def keep(self, score: Tensor, positions: Tensor, total: int, budget: int) -> Tensor:
        """(B, Hkv, budget) int64: slots to keep, in the order of the text. Raises ValueError for a budget below 1."""
        if budget < 1:
            raise ValueError(f"a budget must be at least 1 token, got {budget}")
        best = self.rank(score, positions, total, budget).topk(min(budget, score.shape[-1]), dim=-1).indices
        return best.gather(-1, positions.gather(-1, best).argsort(dim=-1))


@dataclass(frozen=True)
class SelectionPolicy:
    """Says what each new query sees of the tokens stored before it; new tokens always see each other causally."""

    def select(self, seen: Observation, budget: int) -> Tensor:
        """(B, H or Hkv, q, past) bool. Called only if past > budget and budget >= 1."""
        raise NotImplementedError


Policy = EvictionPolicy | SelectionPolicy


@dataclass(frozen=True)
class Window(EvictionPolicy):
    """The last tokens, without sinks."""

    def score(self, seen: Observation) -> Tensor:
        return seen.positions.float()


@dataclass(frozen=True)
class StreamingLLM(EvictionPolicy):
    """The first four tokens and the last ones (Xiao et al. 2023, who renumber; here only on request)."""

    sinks: int = 4

    def score(self, seen: Observation) -> Tensor:
        return seen.positions.float()


@dataclass(frozen=True)
class Random(EvictionPolicy):
    """The first four tokens and others drawn alike, for each key head anew."""

    sinks: int = 4
    seed: int = 0

    def score(self, seen: Observation) -> Tensor:
        drawn = generator(seen, self.seed).random((*seen.score.shape[:2], len(seen.fresh)), dtype=np.float32)
        drawn = torch.from_numpy(drawn).to(seen.key.device)
        order = (seen.positions - seen.fresh[0]).clamp(min=0)  # of the new tokens, in whatever slot they are
        return torch.where(seen.is_new, drawn.gather(-1, order), seen.score)


@dataclass(frozen=True)
class H2O(EvictionPolicy):
    """Attention received, summed over all queries; half of the budget is for the last tokens (Zhang et al. 2023)."""

    recent: float = 0.5

    def score(self, seen: Observation) -> Tensor:
        return seen.score + seen.per_key_head(seen.attention_received())


@dataclass(frozen=True)
class SnapKV(EvictionPolicy):
    """Attention from the last `window` queries of the prompt, smoothed along the text (Li et al. 2024); prompt only."""

    window: int = 32
    kernel: int = 5
    decoding: bool = False

    def score(self, seen: Observation) -> Tensor:
        window = min(self.window, seen.query.shape[2])
        received = seen.probabilities(slice(-window, None))[..., :-window].mean(dim=2)
        smooth = nn.functional.avg_pool1d(received, self.kernel, stride=1, padding=self.kernel // 2)
        return nn.functional.pad(seen.per_key_head(smooth), (0, window))

    def rank(self, score: Tensor, positions: Tensor, total: int, budget: int) -> Tensor:
        return score.masked_fill(positions >= total - min(self.window, budget), torch.inf)


@dataclass(frozen=True)
class TOVA(EvictionPolicy):
    """Attention of the last query, over all heads of the layer, so that all keep the same tokens (Oren et al. 2024)."""

    def score(self, seen: Observation) -> Tensor:
        score = seen.probabilities(slice(-1, None))[:, :, 0].mean(dim=1, keepdim=True)
        return score.expand(-1, seen.key.shape[1], -1)


@dataclass(frozen=True)
class KNorm(EvictionPolicy):
    """Keys of small norm are kept (Devoto et al. 2024); no queries needed."""

    def score(self, seen: Observation) -> Tensor:
        return -seen.key.float().norm(dim=-1)


@dataclass(frozen=True)
class ObservedAttention(EvictionPolicy):
    """Attention received, over the number of queries that could give it (H2O as kvpress has it; no window)."""

    decoding: bool = False

    def score(self, seen: Observation) -> Tensor:
        could = (seen.fresh[-1] + 1 - seen.positions).float()
        return seen.per_key_head(seen.attention_received()) / could


@dataclass(frozen=True)
class Oracle(SelectionPolicy):
    """The tokens of highest exact attention, for each query and head: what any choice of this size could know."""

    def select(self, seen: Observation, budget: int) -> Tensor:
        return top(seen.logits()[..., : seen.past], budget)


@dataclass(frozen=True)
class Replay(SelectionPolicy):
    """Masks all but given tokens of a prompt of `tokens`: `kept[layer]` (B, Hkv, m) int64, as an eviction would drop
    them. For the proof that gather equals mask, and for what-if questions; the budget plays no part."""

    kept: tuple[Tensor | None, ...] = ()
    tokens: int = 0

    def select(self, seen: Observation, budget: int) -> Tensor:
        kept = self.kept[seen.layer]
        mask = torch.zeros(*kept.shape[:2], seen.past, dtype=torch.bool, device=kept.device)
        mask.scatter_(-1, kept, True)
        mask[..., self.tokens :] = True
        return mask[:, :, None].expand(-1, -1, seen.query.shape[2], -1)


def top(scores: Tensor, budget: int) -> Tensor:
    """bool, shaped as scores (..., n): the `budget` highest of the last axis."""
    chosen = scores.topk(min(budget, scores.shape[-1]), dim=-1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, chosen, True)


def generator(seen: Observation, seed: int) -> np.random.Generator:
    """The random numbers of a seed at this layer and step: the same in every cache and on every device."""
    return np.random.default_rng((seed, seen.layer, seen.step))
