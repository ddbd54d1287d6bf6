"""Keyformer: keep the recent tokens and the key tokens, scored with Gumbel noise in the logits.

Source: Adnan et al. 2024, arXiv 2403.09054, section 3 and algorithm 1; the released code differs where said below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tokenarium.methods.context.kvlab import EvictionPolicy, Observation, generator

Noise = Literal["gumbel", "gaussian", "constant", "none"]
EULER = 0.5772156649015329  # the mean of a standard Gumbel variable; its variance is pi^2 / 6


def attention_with_noise(logits: Tensor, noise: Tensor | float, tau: float) -> Tensor:
    """What each key gets from all queries under the softmax of (logits + noise) / tau, summed over the queries.

    logits: (..., q, n) float32, -inf where a key is not seen. noise: the same shape, or one number. Returns (..., n).
    """
    return ((logits + noise) / tau).softmax(dim=-1).sum(dim=-2)


def temperature(step: int, steps: int, start: float = 1.0, end: float = 2.0) -> float:
    """tau at a decode step: from `start` in the prompt (step 0) to `end` at the last of `steps` new tokens."""
    return start + min(step, steps) * (end - start) / steps


def keyformer_step(
    logits: Tensor,
    prev_score: Tensor | None,
    prev_mask: Tensor | None,
    budget: tuple[int, int],
    tau: float,
    gumbel: Tensor,
    official_offbyone: bool = False,
) -> tuple[Tensor, Tensor]:
    """One step of algorithm 1 with masks in place of a shrinking cache, and with the noise given.

    logits: (H, q, n) float32, scaled; later keys are hidden from each of the last q tokens. prev_score: (H, m), m <= n,
    and prev_mask: (H, n) bool, what the step before returned (None in the prompt). budget: recent tokens w, and key
    tokens. gumbel: (H, q, n). Returns the score (H, n), 0 for tokens that are dropped, and the mask (H, n + 1) of what
    the coming token and those after it may see, itself included.
    official_offbyone: as the released code, whose last w columns of the mask hold the coming token, while the
    candidates end before the last w tokens: the token that leaves the window is in neither set and is always lost.
    Raises ValueError for a budget without room for a recent token.
    """
    recent, keys = budget
    if recent < 1 or keys < 0:
        raise ValueError(f"a budget needs at least one recent token and no negative number of keys, got {budget}")
    heads, queries, count = logits.shape
    later = (
        torch.arange(count, device=logits.device) > torch.arange(count - queries, count, device=logits.device)[:, None]
    )
    hidden = later.expand(heads, -1, -1)
    if prev_mask is not None:
        hidden = hidden | ~prev_mask[:, None, :count].bool()
    score = attention_with_noise(logits.float().masked_fill(hidden, -torch.inf), gumbel.float(), tau)
    if prev_score is not None:
        score = score + torch.nn.functional.pad(prev_score, (0, count - prev_score.shape[-1]))

    mask = torch.zeros(heads, count + 1, dtype=torch.bool, device=logits.device)
    mask[:, count:] = True
    mask[:, max(0, count + (1 if official_offbyone else 0) - recent) :] = True
    candidates = score[:, : max(0, count - recent)].clone()
    if prev_mask is not None:
        candidates = candidates.masked_fill(~prev_mask[:, : candidates.shape[-1]].bool(), -torch.inf)
    best = candidates.topk(min(keys, candidates.shape[-1]), dim=-1)
    mask.scatter_(-1, best.indices, best.values > -torch.inf)
    return score * mask[:, :count], mask


def draw(kind: Noise, random: np.random.Generator, shape: tuple[int, ...]) -> Tensor | float:
    """Noise for the logits, float32: Gumbel(0, 1), a Gaussian or a constant of its mean and variance, or none."""
    if kind == "gumbel":
        # 1 - u lies in (0, 1]; the least float32 of it is 2^-24, so that no logarithm is infinite but that of 0.
        uniform = torch.from_numpy(1 - random.random(shape, dtype=np.float32))
        return -(-uniform.log()).clamp(min=2**-26).log()
    if kind == "gaussian":
        # Box and Muller's pairs: NumPy draws uniform numbers far faster than normal ones.
        half = -(-int(np.prod(shape)) // 2)
        radius, angle = torch.from_numpy(random.random((2, half), dtype=np.float32))
        radius, angle = (-2 * (1 - radius).log()).sqrt(), 2 * torch.pi * angle
        normal = torch.cat([radius * angle.cos(), radius * angle.sin()])[: int(np.prod(shape))].reshape(shape)
        return normal * (np.pi / 6**0.5) + EULER
    return EULER if kind == "constant" else 0.0


@dataclass(frozen=True)
class Keyformer(EvictionPolicy):
    """Keyformer as a policy of kvlab; query heads that share a key head share the mean of their scores.

    recent: share of the budget for the last tokens. noise, seed: of the logits, for each query and key anew, or once
    per key where `per_token`. steps: new tokens over which tau goes from `start` to `end`.
    """

    recent: float = 0.3
    noise: Noise = "gumbel"
    seed: int = 0
    per_token: bool = False
    start: float = 1.0
    end: float = 2.0
    steps: int = 128

    def score(self, seen: Observation) -> Tensor:
        tau, random = temperature(seen.step, self.steps, self.start, self.end), generator(seen, self.seed)
        batch, heads, count = *seen.query.shape[:2], seen.key.shape[2]
        received = torch.zeros(batch, heads, count, device=seen.key.device)
        once = draw(self.noise, random, (batch, heads, 1, count)) if self.per_token else None
        for rows in seen.blocks():
            noise = draw(self.noise, random, (batch, heads, rows.stop - rows.start, count)) if once is None else once
            if isinstance(noise, Tensor):
                noise = noise.to(seen.key.device)
            received += attention_with_noise(seen.logits(rows), noise, tau)
        return seen.score + seen.per_key_head(received)
