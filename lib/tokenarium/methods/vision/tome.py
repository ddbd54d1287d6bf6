"""ToMe: merge the most similar tokens of a ViT by bipartite soft matching (BSM), the shared baseline.

Source: Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023 (arXiv 2210.09461), section 3.

Tie conventions: `argsort` is stable here (the official one is not, so any order of equal similarities is
valid); a token with several equally good partners takes the first one. Compare matchings as sets of (source,
destination).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenarium.methods.vision.harness import Reducer, Reduction, identity_source


class Match(NamedTuple):
    """Edges of a bipartite matching between A (positions 0, 2, 4, ...) and B (positions 1, 3, 5, ...).

    unm_idx: (batch, len(A) - r) int64 rows of A that stay. src_idx: (batch, r) int64 rows of A that leave,
    best edge first. dst_idx: (batch, r) int64 columns of B they go to. Row i is position 2 i, column j is
    position 2 j + 1.
    """

    unm_idx: Tensor
    src_idx: Tensor
    dst_idx: Tensor


class Assignment(NamedTuple):
    """Where each token of a sequence goes: what every merging method boils down to.

    anchor: (batch, kept) int64 positions that survive, in output order. src: (batch, r) int64 positions that
    leave. dst: (batch, r) int64 output rows they join. `anchor` and `src` together hold every position once.
    """

    anchor: Tensor
    src: Tensor
    dst: Tensor


def normalised(metric: Tensor) -> Tensor:
    """L2-normalise over the last dimension, in float32 at least (half precision is raised, float64 kept)."""
    if metric.dtype in (torch.float16, torch.bfloat16):
        metric = metric.float()
    return F.normalize(metric, dim=-1)


def best_edges(scores: Tensor, r: int) -> Match:
    """Give each row its best column and cut the r best rows loose.

    scores: (batch, rows, columns) float similarities. Returns unmerged rows in descending order of their best
    similarity, the r leaving rows in the same order, and the column of each leaving row.
    """
    node_max, node_idx = scores.max(dim=-1)
    edges = node_max.argsort(dim=-1, descending=True, stable=True)
    src = edges[:, :r]
    return Match(edges[:, r:], src, node_idx.gather(1, src))


def protected_count(class_token: bool, distill_token: bool) -> int:
    """Number of leading tokens that never leave. Raises ValueError for a lone distillation token."""
    if distill_token and not class_token:
        raise ValueError("a distillation token sits at position 1, behind a class token: set class_token too")
    return int(class_token) + int(distill_token)


def capped_r(tokens: int, r: int, class_token: bool = True, distill_token: bool = False) -> int:
    """Number of tokens that one matching really removes: at most half of the unprotected ones."""
    return max(0, min(r, (tokens - protected_count(class_token, distill_token)) // 2))


@torch.no_grad()
def bsm_match(metric: Tensor, r: int, class_token: bool = False, distill_token: bool = False) -> Match:
    """Bipartite soft matching: pair r tokens of A with their most similar tokens of B.

    metric: (batch, tokens, dim) float, not normalised (for a ViT: the mean over heads of K). r is capped at
    floor((tokens - protected) / 2); r <= 0 leaves every token unmerged. With a class token, A's row 0 never
    leaves and `unm_idx` is ascending, so it stays first; a distillation token, B's column 0, receives nobody.
    Raises ValueError for a distillation token without a class token. Source: ToMe section 3.
    """
    batch, tokens, _ = metric.shape
    r = capped_r(tokens, r, class_token, distill_token)
    if r == 0:
        everyone = torch.arange((tokens + 1) // 2, device=metric.device).expand(batch, -1)
        return Match(everyone, everyone[:, :0], everyone[:, :0])
    metric = normalised(metric)
    scores = metric[:, ::2] @ metric[:, 1::2].transpose(1, 2)
    if class_token:
        scores[:, 0, :] = -math.inf
    if distill_token:
        scores[:, :, 0] = -math.inf
    unm_idx, src_idx, dst_idx = best_edges(scores, r)
    if class_token:
        unm_idx = unm_idx.sort(dim=1).values
    return Match(unm_idx, src_idx, dst_idx)


def bsm_assignment(match: Match, tokens: int, distill_token: bool = False) -> Assignment:
    """Turn A/B indices into positions, with outputs ordered [unmerged A, all of B].

    With a distillation token the order is [class, distillation, rest of A, rest of B]. Raises ValueError if
    the match is not one of `tokens` tokens.
    """
    unm_idx, src_idx, dst_idx = match
    if unm_idx.shape[1] + src_idx.shape[1] != (tokens + 1) // 2:
        raise ValueError(f"the match has {unm_idx.shape[1] + src_idx.shape[1]} rows in A, not half of {tokens}")
    a = 2 * unm_idx
    b = torch.arange(1, tokens, 2, device=a.device).expand(a.shape[0], -1)
    # the distillation token is never a destination: moving it forward leaves all destination rows alone
    pieces = (a[:, :1], b[:, :1], a[:, 1:], b[:, 1:]) if distill_token else (a, b)
    return Assignment(torch.cat(pieces, dim=1), 2 * src_idx, unm_idx.shape[1] + dst_idx)


def behind_class_token(assignment: Assignment) -> Assignment:
    """Shift an assignment of patch tokens by one position and put the class token, which stays, in front."""
    anchor, src, dst = (index + 1 for index in assignment)
    return Assignment(torch.cat([torch.zeros_like(anchor[:, :1]), anchor], dim=1), src, dst)


def take(x: Tensor, index: Tensor) -> Tensor:
    """Pick tokens: x (batch, tokens, dim), index (batch, picked) int64 -> (batch, picked, dim)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def merge_closures(assignment: Assignment) -> tuple[Callable[..., Tensor], Callable[[Tensor], Tensor]]:
    """Build `merge(x, mode="mean")` and `unmerge(y)` from an assignment.

    merge: (batch, tokens, dim) -> (batch, kept, dim); every anchor is reduced with the tokens that join it,
    by mode "mean", "sum" or "amax". unmerge: (batch, kept, dim) -> (batch, tokens, dim); every output row is
    copied back to all positions it was made of, in the original order (dense tasks). Anything that rides
    along is merged alike.
    """
    anchor, src, dst = assignment

    def merge(x: Tensor, mode: str = "mean") -> Tensor:
        index = dst[..., None].expand(-1, -1, x.shape[-1])
        return take(x, anchor).scatter_reduce(1, index, take(x, src), reduce=mode)

    def unmerge(y: Tensor) -> Tensor:
        own_row = torch.arange(anchor.shape[1], device=anchor.device).expand_as(anchor)
        row = anchor.new_empty(anchor.shape[0], anchor.shape[1] + src.shape[1])
        return take(y, row.scatter(1, anchor, own_row).scatter(1, src, dst))

    return merge, unmerge


def merge_wavg(merge: Callable[..., Tensor], x: Tensor, size: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Merge tokens by their size-weighted mean and add up their sizes.

    x: (batch, tokens, dim) float; size: (batch, tokens, 1) float, ones if None. Returns x (batch, kept, dim)
    and size (batch, kept, 1). Source: ToMe section 3.
    """
    if size is None:
        size = torch.ones_like(x[..., :1])
    total = merge(size, "sum")
    return merge(x * size, "sum") / total, total


def merge_source(merge: Callable[..., Tensor], x: Tensor, source: Tensor | None = None) -> Tensor:
    """Track which original tokens an output is made of: 0/1 (batch, kept, original tokens).

    x: (batch, tokens, dim), read for its shape, dtype and device only. source: what earlier merges returned,
    the identity if None.
    """
    return merge(identity_source(x) if source is None else source, "amax")


def parse_r(num_layers: int, r: int | Sequence[int] | tuple[int, float]) -> list[int]:
    """Number of tokens to merge in each layer.

    r: a constant; a list with one entry a layer (a short one is filled up with zeros); or a tuple (r,
    inflect) for a linear schedule of mean r whose first layer gets int(r (1 - inflect)), so that inflect -1
    decreases from 2 r to 0 and +1 increases from 0 to 2 r. Raises ValueError for a list longer than the
    model.
    """
    if isinstance(r, list):
        if len(r) > num_layers:
            raise ValueError(f"the schedule has {len(r)} entries for {num_layers} layers")
        return r + [0] * (num_layers - len(r))
    mean, inflect = r if isinstance(r, tuple) else (r, 0.0)
    low = int(mean * (1.0 - inflect))
    step = 2 * (mean - low) / (num_layers - 1) if num_layers > 1 else 0.0
    return [int(low + step * layer) for layer in range(num_layers)]


def fractional_r(r: float, num_layers: int) -> list[int]:
    """Spread a real-valued average r evenly over the layers, to match budgets between two integers.

    Layer l gets floor((l + 1) r) - floor(l r); the sum is floor(num_layers r).
    """
    return [math.floor((layer + 1) * r) - math.floor(layer * r) for layer in range(num_layers)]


@dataclass(frozen=True)
class ToMe(Reducer):
    """Merge r[l] tokens in block l by bipartite soft matching on K (see `parse_r` and `fractional_r` for r).

    A block with r 0 is left alone. With `distill_token` position 1 is protected beside the class token.
    """

    r: tuple[int, ...]
    distill_token: bool = False

    def lengths(self, tokens: int, num_layers: int) -> list[int]:
        """Token count after each block. Raises ValueError unless `r` has one entry a layer."""
        if len(self.r) != num_layers:
            raise ValueError(f"r has {len(self.r)} entries for {num_layers} layers")
        lengths = []
        for r in self.r:
            tokens -= capped_r(tokens, r, distill_token=self.distill_token)
            lengths.append(tokens)
        return lengths

    def reduce(self, layer: int, x: Tensor, metric: Tensor, size: Tensor, attention: Tensor | None) -> Reduction:
        """Merge in block `layer`; shapes as in `Reducer.reduce`."""
        tokens = x.shape[1]
        if capped_r(tokens, self.r[layer], distill_token=self.distill_token) == 0:
            return super().reduce(layer, x, metric, size, attention)
        match = bsm_match(metric, self.r[layer], class_token=True, distill_token=self.distill_token)
        return merged(bsm_assignment(match, tokens, self.distill_token), x, size)


def merged(assignment: Assignment, x: Tensor, size: Tensor) -> Reduction:
    """Merge x (batch, tokens, dim) of sizes (batch, tokens, 1) by the size-weighted mean."""
    merge, _ = merge_closures(assignment)
    return Reduction(*merge_wavg(merge, x, size), lambda: merge_source(merge, x))


def random_assignment(batch: int, tokens: int, r: int, generator: torch.Generator) -> Assignment:
    """The control of every matching: r random tokens join random partners among those that stay.

    Drawn on the CPU from `generator`, one draw per row of the batch; survivors stay in their original order.
    Raises ValueError unless 0 <= r < tokens.
    """
    if not 0 <= r < tokens:
        raise ValueError(f"r must be between 0 and {tokens - 1}, got {r}")
    shuffled = torch.rand(batch, tokens, generator=generator).argsort(dim=1)
    dst = torch.randint(tokens - r, (batch, r), generator=generator)
    return Assignment(shuffled[:, r:].sort(dim=1).values, shuffled[:, :r], dst)
