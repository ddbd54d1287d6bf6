"""VisionZip: the patches that CLS looks at, and a few tokens that sum up the rest.

Source: arXiv 2412.04467, section 3. A contextual token is its target plus the mean of those assigned to it, as in the
published code: a sum, whose norm is about twice a token's, and not an average.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenarium.methods.vlm.harness.method import Method, Visual
from tokenarium.methods.vlm.harness.tower import ImageView


def dominant_tokens(cls_attention: Tensor, count: int) -> Tensor:
    """The `count` patches with most CLS attention, summed over heads: sorted int64. cls_attention: (heads, N)."""
    scores = cls_attention.sum(dim=0)
    return scores.topk(min(count, len(scores))).indices.sort().values


def contextual_tokens(metric: Tensor, features: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sum the tokens that are left into `count` contextual ones.

    metric: (M, head_dim) and features: (M, dim) of the tokens left, raster order. Targets stand at 0, step, 2 step ...
    with step = max(1, M // count), the first `count`; where M is smaller than `count` there are M. Every other token
    goes to its most similar target. Returns (c, dim) tokens, (c,) targets, (M,) the target's number for each token.
    """
    left = len(metric)
    targets = torch.arange(0, left, max(1, left // count) if count else 1, device=metric.device)[:count]
    if not len(targets):
        return features[:0], targets, targets.new_zeros(left)
    normed = F.normalize(metric.float(), dim=-1)
    assigned = (normed @ normed[targets].T).argmax(dim=1)
    assigned[targets] = torch.arange(len(targets), device=metric.device)
    members = F.one_hot(assigned, len(targets)).T.to(features.dtype)
    members[torch.arange(len(targets)), targets] = 0
    means = members @ features / members.sum(dim=1, keepdim=True).clamp(min=1)
    return features[targets] + means, targets, assigned


@dataclass(frozen=True, kw_only=True)
class VisionZip(Method):
    """`budget` tokens, of which round(54/64 budget) are dominant. include_cls: CLS is one of these, as published."""

    budget: int
    include_cls: bool = True

    def select(self, image: ImageView) -> Visual:
        block, total = image.feature_block, len(image.features)
        num_dominant = round(self.budget * 54 / 64)
        chosen = dominant_tokens(image.cls_attention(block), num_dominant - self.include_cls)
        left = torch.ones(total, dtype=torch.bool, device=chosen.device)
        left[chosen] = False
        rest = left.nonzero()[:, 0]
        metric = image.key(block).mean(dim=0)[1:][rest]
        extra, targets, assigned = contextual_tokens(metric, image.features[rest], self.budget - num_dominant)
        features = torch.cat((image.features[chosen], extra))
        patches = torch.cat((chosen, rest[targets]))
        source = F.one_hot(patches, total).float()
        if len(targets):
            source[len(chosen) + assigned, rest] = 1
        if self.include_cls:
            features = torch.cat((image.cls[None], features))
            patches = torch.cat((patches.new_full((1,), -1), patches))
            source = F.pad(source, (0, 0, 1, 0))
        return Visual(image.project(features), patches, source)
