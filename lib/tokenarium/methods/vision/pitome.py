"""PiToMe: merge only tokens of high energy, those deep inside large clusters, and protect the others.

Source: Tran et al., "Accelerating Transformers with Spectrum-Preserving Token Merging", NeurIPS 2024
(arXiv 2405.16148). Where the paper and its published code disagree, the code is the default.

The published code's sort is unstable; sorts are stable here, so tokens of equal energy keep their order.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import BertModel

from tokenarium.methods.vision.harness import Reducer, Reduction
from tokenarium.methods.vision.tome import (
    Assignment,
    behind_class_token,
    best_edges,
    bsm_assignment,
    bsm_match,
    capped_r,
    merge_closures,
    merge_wavg,
    merged,
    normalised,
    random_assignment,
    take,
)

EnergyForm = Literal["code", "paper"]
Mode = Literal["protect", "bsm"]
Order = Literal["protect-all", "bsm-all", "deit-order", "mae-order", "clip-order"]
TextMethod = Literal["none", "pitome", "tome", "random"]

CLIP_LAST_TOME_LAYER = 12


class EnergyMatch(NamedTuple):
    """Tokens in order of energy and the pairs to merge; all values but `dst_idx` are patch positions.

    Patch positions count from 0 after a class token has been dropped: add 1 for positions in the full
    sequence. order: (batch, patches) int64 by descending energy. a_idx: (batch, r) int64 patches that leave.
    b_idx: (batch, r) int64 patches that may receive, in mode "bsm" (batch, patches // 2). dst_idx: (batch, r)
    int64 column of b_idx that each a_idx joins: the pairs are (a_idx[b, i], b_idx[b, dst_idx[b, i]]).
    """

    order: Tensor
    a_idx: Tensor
    b_idx: Tensor
    dst_idx: Tensor


def removed_tokens(tokens: int, ratio: float) -> int:
    """Number of tokens that a kept ratio q removes, floor(T - T q). Raises ValueError unless 0 < q <= 1."""
    if not 0 < ratio <= 1:
        raise ValueError(f"the kept ratio must be in (0, 1], got {ratio}")
    return math.floor(tokens - tokens * ratio)


def mergeable_pairs(tokens: int, ratio: float) -> int:
    """`removed_tokens`, each of which needs a partner. Raises ValueError if that is more than half."""
    r = removed_tokens(tokens, ratio)
    if 2 * r > tokens:
        raise ValueError(f"ratio {ratio} removes {r} of {tokens} tokens, more than half; keep at least 0.5")
    return r


def energy(metric_normalised: Tensor, margin: float, alpha: float = 1.0, form: EnergyForm = "code") -> Tensor:
    """Mean similarity of each token to all tokens, itself included, beyond a soft margin.

    metric_normalised: (batch, tokens, dim) float of unit length. Returns (batch, tokens) in its dtype. Below
    the margin a similarity s counts alpha (exp(s - margin) - 1); above it s - margin in the published code
    ("code") and s in the paper's equation ("paper").
    """
    excess = metric_normalised @ metric_normalised.transpose(1, 2) - margin
    if form == "code":
        return F.elu(excess, alpha).mean(dim=-1)
    if form == "paper":
        return torch.where(excess >= 0, excess + margin, alpha * torch.expm1(excess)).mean(dim=-1)
    raise ValueError(f"energy form must be 'code' or 'paper', got {form!r}")


def _match_within(metric: Tensor, order: Tensor, a_idx: Tensor, b_idx: Tensor) -> EnergyMatch:
    """Let every token of A join its most similar token of B."""
    scores = take(metric, a_idx) @ take(metric, b_idx).transpose(1, 2)
    return EnergyMatch(order, a_idx, b_idx, scores.argmax(dim=-1) if a_idx.shape[1] else a_idx)


@torch.no_grad()
def pitome_match(
    metric: Tensor,
    ratio: float,
    margin: float,
    alpha: float = 1.0,
    class_token: bool = True,
    mode: Mode = "protect",
    form: EnergyForm = "code",
    inverse: bool = False,
) -> EnergyMatch:
    """Choose r = floor(T - T ratio) of T patch tokens and their partners by energy.

    metric: (batch, tokens, dim) float, not normalised; with `class_token` its first token is dropped and all
    indices are patch positions. "protect": of the 2 r patches of highest energy every second one, by rank,
    leaves for its most similar neighbour among the others; the remaining patches are protected. "bsm": all
    patches are split by rank and the r best edges merge, which is bipartite soft matching on the sequence
    sorted by energy. `inverse` sorts by ascending energy (control; it bites in "protect", where the rank
    decides who is merged at all). ratio 1 gives empty a_idx and dst_idx. Raises ValueError if more than half
    of the patches would leave.
    """
    metric = normalised(metric[:, 1:] if class_token else metric)
    r = mergeable_pairs(metric.shape[1], ratio)
    order = energy(metric, margin, alpha, form).argsort(dim=1, descending=not inverse, stable=True)
    if mode == "protect":
        return _match_within(metric, order, order[:, : 2 * r : 2], order[:, 1 : 2 * r : 2])
    if mode != "bsm":
        raise ValueError(f"mode must be 'protect' or 'bsm', got {mode!r}")
    a_idx, b_idx = order[:, ::2], order[:, 1::2]
    if r == 0:
        return EnergyMatch(order, a_idx[:, :0], b_idx, a_idx[:, :0])
    _, src, dst = best_edges(take(metric, a_idx) @ take(metric, b_idx).transpose(1, 2), r)
    return EnergyMatch(order, a_idx.gather(1, src), b_idx, dst)


def pitome_assignment(match: EnergyMatch, class_token: bool = True) -> Assignment:
    """Positions and output rows of a match: [class token, protected or unmerged by energy rank, B]."""
    order, a_idx, b_idx, dst_idx = match
    involved = torch.zeros_like(order).scatter(1, a_idx, 1).scatter(1, b_idx, 1)
    untouched = order.shape[1] - a_idx.shape[1] - b_idx.shape[1]
    rank = involved.gather(1, order).argsort(dim=1, stable=True)[:, :untouched]
    assignment = Assignment(torch.cat([order.gather(1, rank), b_idx], dim=1), a_idx, untouched + dst_idx)
    return behind_class_token(assignment) if class_token else assignment


def margin_schedule(num_layers: int, start: float = 0.9) -> list[float]:
    """Margin of each layer, start - start l / L; published with 0.9 (AugReg, CLIP) and 0.75 (DeiT, MAE)."""
    return [start - start * layer / num_layers for layer in range(num_layers)]


def order_modes(order: Order, num_layers: int) -> list[str]:
    """Matching used in each block: "protect", "bsm" or "tome" (plain bipartite soft matching, no energy).

    deit-order: "bsm" in the first ceil(L / 2) blocks, then "protect"; mae-order: the reverse; clip-order:
    "tome" up to layer index 12, then "protect"; protect-all and bsm-all: one mode. Raises ValueError for
    another name.
    """
    first = math.ceil(num_layers / 2)
    schedules = {
        "protect-all": (num_layers, "protect", "protect"),
        "bsm-all": (num_layers, "bsm", "bsm"),
        "deit-order": (first, "bsm", "protect"),
        "mae-order": (first, "protect", "bsm"),
        "clip-order": (CLIP_LAST_TOME_LAYER + 1, "tome", "protect"),
    }
    if order not in schedules:
        raise ValueError(f"order must be one of {', '.join(schedules)}, got {order!r}")
    switch, before, after = schedules[order]
    return [before if layer < switch else after for layer in range(num_layers)]


@dataclass(frozen=True)
class PiToMe(Reducer):
    """Energy-based merging that keeps `ratio` of the patch tokens in every block.

    ratio: kept share q, 0.5 <= q <= 1. margin: first value of the schedule, or its only value with
    `constant_margin`. alpha: depth of the energy below the margin. order: which matching in which block, see
    `order_modes`; the "tome" blocks of clip-order take floor of the ratio of all tokens, class token
    included, like the published code. num_layers: of the model, for margin and order. form: see `energy`.
    metric: "keys", or "hidden" to match on the tokens themselves as the CLIP path does. inverse: merge the
    lowest energies (control, meant for protect-all). layers: indices of the blocks that reduce, every block
    if None. Raises ValueError for values outside these.
    """

    ratio: float
    margin: float = 0.9
    constant_margin: bool = False
    alpha: float = 1.0
    order: Order = "protect-all"
    num_layers: int = 12
    form: EnergyForm = "code"
    metric: Literal["keys", "hidden"] = "keys"
    inverse: bool = False
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        removed_tokens(1, self.ratio)  # raises for a ratio out of range
        order_modes(self.order, self.num_layers)  # raises for an unknown order
        if self.form not in ("code", "paper"):
            raise ValueError(f"energy form must be 'code' or 'paper', got {self.form!r}")
        if self.metric not in ("keys", "hidden"):
            raise ValueError(f"metric must be 'keys' or 'hidden', got {self.metric!r}")

    def lengths(self, tokens: int, num_layers: int) -> list[int]:
        """Token count after each block.

        Raises ValueError if the model has another number of layers, or if more than half of the patches would
        go.
        """
        if num_layers != self.num_layers:
            raise ValueError(f"PiToMe was set up for {self.num_layers} layers, the model has {num_layers}")
        lengths = []
        for layer in range(num_layers):
            tokens -= self._removed(layer, tokens)
            lengths.append(tokens)
        return lengths

    def reduce(self, layer: int, x: Tensor, metric: Tensor, size: Tensor, attention: Tensor | None) -> Reduction:
        """Merge in block `layer`; shapes as in `Reducer.reduce`."""
        if self._removed(layer, x.shape[1]) == 0:
            return super().reduce(layer, x, metric, size, attention)
        return self.apply(self.assignment(layer, x, metric), x, size)

    def apply(self, assignment: Assignment, x: Tensor, size: Tensor) -> Reduction:
        """Merge by the size-weighted mean; x (batch, tokens, dim), size (batch, tokens, 1)."""
        return merged(assignment, x, size)

    def assignment(self, layer: int, x: Tensor, metric: Tensor) -> Assignment:
        """Who joins whom in block `layer`, in full-sequence positions; shapes as in `Reducer.reduce`."""
        metric = x if self.metric == "hidden" else metric
        mode = order_modes(self.order, self.num_layers)[layer]
        if mode == "tome":
            match = bsm_match(metric, self._removed(layer, x.shape[1]), class_token=True)
            return bsm_assignment(match, x.shape[1])
        margin = self.margin if self.constant_margin else margin_schedule(self.num_layers, self.margin)[layer]
        match = pitome_match(metric, self.ratio, margin, self.alpha, True, mode, self.form, self.inverse)
        return pitome_assignment(match)

    def _removed(self, layer: int, tokens: int) -> int:
        if not 0 <= layer < self.num_layers:
            raise ValueError(f"PiToMe was set up for {self.num_layers} layers, got layer index {layer}")
        if self.layers is not None and layer not in self.layers:
            return 0
        if order_modes(self.order, self.num_layers)[layer] == "tome":
            return capped_r(tokens, removed_tokens(tokens, self.ratio))
        return mergeable_pairs(tokens - 1, self.ratio)


def text_margin_schedule(num_layers: int) -> list[float]:
    """Margin of each text layer, 0.9 - 0.25 l / L."""
    return [0.9 - 0.25 * layer / num_layers for layer in range(num_layers)]


def text_energy(metric_normalised: Tensor, margin: float) -> Tensor:
    """Mean Gaussian density of each token's cosine distances to all tokens, itself included.

    The kernel's width is sigma = 1 - margin.
    metric_normalised: (batch, tokens, dim) float of unit length. Returns (batch, tokens) in its dtype. Raises
    ValueError unless margin < 1.
    """
    if not margin < 1:
        raise ValueError(f"the margin must be below 1, got {margin}")
    sigma = 1 - margin
    distance = 1 - metric_normalised @ metric_normalised.transpose(1, 2)
    return torch.exp(-0.5 * (distance / sigma) ** 2).mean(dim=-1) / (sigma * math.sqrt(2 * math.pi))


@torch.no_grad()
def pitome_text_match(metric: Tensor, ratio: float, margin: float, class_token: bool = True) -> EnergyMatch:
    """Text matching: the r tokens of highest energy leave for their most similar among the next r.

    metric: (batch, tokens, dim) float, not normalised (for BERT: the sum over heads of K). With `class_token`
    the first token is dropped, so it neither leaves nor receives, nor counts in T of r = floor(T - T ratio);
    indices are then positions behind it. Raises ValueError if more than half of the tokens would leave.
    """
    metric = normalised(metric[:, 1:] if class_token else metric)
    r = mergeable_pairs(metric.shape[1], ratio)
    order = text_energy(metric, margin).argsort(dim=1, descending=True, stable=True)
    return _match_within(metric, order, order[:, :r], order[:, r : 2 * r])


class TextEncoding(NamedTuple):
    """What `encode_text` returns.

    last_hidden_state: (batch, kept, dim) float. attention_mask: (batch, kept), dtype of the input mask, 1
    where a real token takes part. size: (batch, kept) float, the number of real input tokens in each output;
    the mean-pooled embedding weighted like the unmerged one is (last_hidden_state * size[..., None]).sum(1) /
    size.sum(1)[:, None].
    """

    last_hidden_state: Tensor
    attention_mask: Tensor
    size: Tensor


@torch.no_grad()
def encode_text(
    model: BertModel,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    ratio: float = 1.0,
    method: TextMethod = "pitome",
    merge_layers: int = 3,
    seed: int = 0,
    token_type_ids: Tensor | None = None,
) -> TextEncoding:
    """Encode text, merging tokens between attention (after its LayerNorm) and feed-forward.

    input_ids: (batch, tokens) int64 with [CLS] first; attention_mask: (batch, tokens) int, all ones if None.
    Each of the first `merge_layers` layers removes floor(T - T ratio) of its T tokens behind [CLS], whatever
    the method: "pitome", "tome" (bipartite soft matching on the same metric), "random" (seeded by `seed` and
    the layer), or "none".

    Where the sources are silent: [CLS] is excluded and stays first; [SEP] is a token like any other; merged
    tokens are plain means, since sizes are reset in each layer, and no log-size enters the attention. The
    sizes returned do add up over the layers, for pooling. Masks merge by maximum. Padding takes part in the
    matching: batch texts of equal length. Raises ValueError for an unknown method, a decoder, or a model in
    training mode (dropout).
    """
    if model.training or model.config.is_decoder:
        raise ValueError("encode_text needs a bidirectional encoder in eval mode: call model.eval()")
    assign = _text_matcher(method, ratio, model.config.num_hidden_layers, seed)
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    x = model.embeddings(input_ids=input_ids, token_type_ids=token_type_ids)
    size = mask.to(x.dtype)
    for index, layer in enumerate(model.encoder.layer):
        x, metric = _text_attention(layer.attention, x, mask)
        assignment = assign(index, metric) if index < merge_layers else None
        if assignment is not None:
            merge, _ = merge_closures(assignment)
            x, _ = merge_wavg(merge, x)
            mask = merge(mask[..., None], "amax")[..., 0]
            size = merge(size[..., None], "sum")[..., 0]
        x = layer.feed_forward_chunk(x)
    return TextEncoding(x, mask, size)


def _text_matcher(
    method: TextMethod, ratio: float, num_layers: int, seed: int
) -> Callable[[int, Tensor], Assignment | None]:
    """Matching of one method: (layer, metric (batch, tokens, head_dim)) -> assignment, None to keep all."""
    if method not in ("none", "pitome", "tome", "random"):
        raise ValueError(f"method must be 'none', 'pitome', 'tome' or 'random', got {method!r}")
    margins = text_margin_schedule(num_layers)

    def assign(layer: int, metric: Tensor) -> Assignment | None:
        batch, tokens, _ = metric.shape
        r = mergeable_pairs(tokens - 1, ratio)
        if method == "none" or r == 0:
            return None
        if method == "pitome":
            return pitome_assignment(pitome_text_match(metric, ratio, margins[layer]))
        if method == "tome":
            return bsm_assignment(bsm_match(metric, r, class_token=True), tokens)
        drawn = behind_class_token(random_assignment(batch, tokens - 1, r, seeded_generator(seed, layer)))
        return Assignment(*(index.to(metric.device) for index in drawn))

    return assign


def seeded_generator(seed: int, layer: int) -> torch.Generator:
    """A fresh CPU generator for one layer: a draw depends on seed and layer, on nothing that ran before."""
    return torch.Generator().manual_seed(1_000_003 * seed + layer)


def _text_attention(attention, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """One BERT attention sublayer: its output after the LayerNorm, and the sum over heads of K."""
    module = attention.self
    heads = (*x.shape[:2], -1, module.attention_head_size)
    query, key, value = (project(x).view(heads).transpose(1, 2) for project in (module.query, module.key, module.value))
    allowed = mask[:, None, None, :].bool()
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, scale=module.scaling)
    return attention.output(mixed.transpose(1, 2).reshape(x.shape), x), key.sum(dim=1)


def token_graph(metric: Tensor) -> Tensor:
    """Graph W_ij = max(0, cos(m_i, m_j)) with self-loops: (..., tokens, dim) -> (..., tokens, tokens)."""
    metric = normalised(metric)
    return (metric @ metric.transpose(-1, -2)).clamp(min=0)


def laplacian_spectrum(weights: Tensor) -> Tensor:
    """Eigenvalues of the normalised Laplacian I - D^-1/2 W D^-1/2, ascending.

    weights: (..., nodes, nodes) float, symmetric and not negative. Returns (..., nodes) in its dtype, solved
    in float64. A node without any edge counts as eigenvalue 0.
    """
    exact = weights.double()
    degree = exact.sum(dim=-1)
    scale = torch.where(degree > 0, degree, torch.inf).rsqrt()
    laplacian = torch.diag_embed((degree > 0).double()) - scale[..., :, None] * exact * scale[..., None, :]
    return torch.linalg.eigvalsh(laplacian).to(weights.dtype)


def lifted_graph(weights: Tensor, source: Tensor) -> Tensor:
    """Coarsen a graph to groups of nodes and lift it back to all nodes: W averaged over group pairs.

    weights: (..., nodes, nodes) float. source: (..., groups, nodes), 1 where a node belongs to a group, as
    `merge_source` returns it. Returns (..., nodes, nodes). Raises ValueError if a node is not in exactly one
    group.
    """
    if not (((source == 0) | (source == 1)).all() and (source.sum(dim=-2) == 1).all()):
        raise ValueError("source must put every node into exactly one group (a pruning method has no lifted graph)")
    member = source.to(weights.dtype)
    share = member / member.sum(dim=-1, keepdim=True)
    coarse = share @ weights @ share.transpose(-1, -2)
    return member.transpose(-1, -2) @ coarse @ member


def spectral_distance(weights: Tensor, source: Tensor) -> Tensor:
    """Sum over i of |lambda_i - lambda'_i| between a token graph and its lifted merged graph: (...,).

    weights and source as in `lifted_graph`. Zero means that the merge kept the whole spectrum. Definition:
    Jin, Loukas and JaJa, "Graph Coarsening with Preserved Spectral Properties", 2020, as the paper uses it.
    """
    difference = laplacian_spectrum(weights) - laplacian_spectrum(lifted_graph(weights, source))
    return difference.abs().sum(dim=-1)
