"""FrugalPrompt: keep the words of a prompt that an encoder's attribution finds most salient, in their order.

Source: arXiv 2510.16439; the attributions are GlobEnc (Modarressi et al. 2022) and DecompX (Modarressi et al. 2023),
for an encoder of post-LayerNorm BERT layers.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import BertModel

MODES = ("top", "bottom", "random")


def frugalize(words: Sequence[str], scores: Sequence[float], pct: float, mode: str = "top", seed: int = 0) -> list[str]:
    """The share `pct` (percent) of the words, in their order. Arguments and errors as for `keep_indices`."""
    if len(words) != len(scores):
        raise ValueError(f"{len(words)} words have {len(scores)} scores")
    return [words[index] for index in keep_indices(scores, pct, mode, seed)]


def keep_indices(scores: Sequence[float], pct: float, mode: str = "top", seed: int = 0) -> list[int]:
    """Which words stay: int(round(n * pct / 100)) of them, ascending. Python rounds halves to even.

    scores: one float32 number a word. mode: "top", the first in stable descending order (of equals the earlier);
    "bottom", the last in that same order; "random", drawn by `seed`. Raises ValueError for another mode, a share
    outside 0 to 100 and scores that are NaN.
    """
    return sorted(_order(scores, mode, seed)[: _keep(len(scores), pct)])


def keep_within(
    scores: Sequence[float], costs: Sequence[int], budget: int, mode: str = "top", seed: int = 0
) -> list[int]:
    """The same order of words, but taken while their costs (tokens of the language model) fit the budget, ascending.

    A word that does not fit is passed over and the next one tried: every mode comes equally close to the budget.
    """
    if len(costs) != len(scores):
        raise ValueError(f"{len(scores)} words have {len(costs)} costs")
    kept, left = [], budget
    for index in _order(scores, mode, seed):
        if costs[index] <= left:
            kept.append(index)
            left -= costs[index]
    return sorted(kept)


def _keep(count: int, pct: float) -> int:
    if not 0 <= pct <= 100:
        raise ValueError(f"the share of words is a number from 0 to 100, got {pct}")
    return round(count * pct / 100)


def _order(scores: Sequence[float], mode: str, seed: int) -> list[int]:
    """All places, the ones to keep first."""
    if mode not in MODES:
        raise ValueError(f"mode is one of {', '.join(MODES)}, got {mode!r}")
    if mode == "random":
        order = list(range(len(scores)))
        random.Random(seed).shuffle(order)
        return order
    values = torch.tensor(list(scores), dtype=torch.float32)
    if values.isnan().any():
        raise ValueError("scores hold NaN")
    order = values.argsort(descending=True, stable=True).tolist()
    return order if mode == "top" else order[::-1]


# From sub-words to words


def min_max(scores: Tensor) -> Tensor:
    """Scores (n,) scaled to [0, 1]; zeros where all are equal."""
    if not scores.numel():
        return scores
    low, high = scores.min(), scores.max()
    return (scores - low) / (high - low) if high > low else torch.zeros_like(scores)


def sum_words(scores: Tensor, owners: Sequence[int | None], count: int) -> Tensor:
    """Sub-word scores (n,) summed over words: (count,). owners: the word of each sub-word, None for special tokens."""
    found = scores.new_zeros(count)
    for score, owner in zip(scores, owners, strict=True):
        if owner is not None:
            found[owner] += score
    return found


def join_pieces(pieces: Sequence[str], owners: Sequence[int], official_truncation: bool = False) -> list[str]:
    """Words joined of their sub-words (BERT's, with their "##").

    official_truncation: the released code joins inside an array of strings whose width is that of the longest sub-word,
    so a longer word loses its end. Raises ValueError where a word begins with a continuation.
    """
    words: list[str] = []
    last = None
    for piece, owner in zip(pieces, owners, strict=True):
        if owner == last:
            words[-1] += piece.removeprefix("##")
        elif piece.startswith("##") and len(piece) > 2:
            raise ValueError(f"{piece!r} begins a word")
        else:
            words.append(piece)
        last = owner
    if official_truncation and words:
        width = max(len(piece.removeprefix("##")) for piece in pieces)
        words = [word[:width] for word in words]
    return words


# Attention, gathered once for all attributions


class Trace:
    """What one sentence did in a BERT encoder: every layer's inputs, attention and true sums before its LayerNorms.

    hidden: the input of each layer and the output of the last, (s, d). attention: (heads, s, s) for each layer.
    sums1, sums2: (s, d), what each layer's two LayerNorms were given. inner: (s, f), before each layer's activation.
    """

    def __init__(self, model: BertModel, input_ids: Tensor):
        self.model, self.input_ids = model, input_ids
        self.hidden, self.attention, self.sums1, self.sums2, self.inner = [], [], [], [], []
        state = model.embeddings(input_ids=input_ids[None])[0]
        for layer in model.encoder.layer:
            self.hidden.append(state)
            own, out, wide, narrow = layer.attention.self, layer.attention.output, layer.intermediate, layer.output
            heads = own.num_attention_heads
            query, key, value = (_heads(linear(state), heads) for linear in (own.query, own.key, own.value))
            attention = (query @ key.mT / query.shape[-1] ** 0.5).softmax(dim=-1)
            mixed = (attention @ value).transpose(0, 1).flatten(1)
            before = out.dense(mixed) + state
            state = out.LayerNorm(before)
            inner = wide.dense(state)
            after = narrow.dense(wide.intermediate_act_fn(inner)) + state
            state = narrow.LayerNorm(after)
            self.attention.append(attention)
            self.sums1.append(before)
            self.sums2.append(after)
            self.inner.append(inner)
        self.hidden.append(state)


def _heads(states: Tensor, heads: int) -> Tensor:
    """(s, d) -> (heads, s, d / heads)."""
    return states.unflatten(-1, (heads, -1)).transpose(0, 1)


# GlobEnc


def ln_decompose(u: Tensor, pre_ln_sum: Tensor, gamma: Tensor, eps: float) -> Tensor:
    """The part of LayerNorm's output that each component of its input stands for; beta is left out.

    u: (i, j, d), components j of position i. pre_ln_sum: (i, d), the true input. gamma: (d,). Each component is centred
    on its own and divided by the standard deviation of the true input, so that the parts add up to the output less beta
    wherever the components add up to the input.
    """
    deviation = (pre_ln_sum.var(dim=-1, unbiased=False) + eps).sqrt()
    return (u - u.mean(dim=-1, keepdim=True)) / deviation[:, None, None] * gamma


def globenc_norms(trace: Trace) -> Tensor:
    """(layers, s, s): how much of each layer's output i comes from its input j, as a norm.

    The value bias is dropped, and the feed-forward block counts through its residual and its share in the second sum.
    """
    layers = []
    for number, layer in enumerate(trace.model.encoder.layer):
        state, attention = trace.hidden[number], trace.attention[number]
        own, out, narrow = layer.attention.self, layer.attention.output, layer.output
        value = torch.einsum("jd,hed->hje", state, own.value.weight.unflatten(0, (own.num_attention_heads, -1)))
        moved = torch.einsum("hje,dhe->hjd", value, out.dense.weight.unflatten(1, (own.num_attention_heads, -1)))
        u = torch.einsum("hij,hjd->ijd", attention, moved)
        u = u + torch.diag_embed(state.T).permute(1, 2, 0)
        u = ln_decompose(u, trace.sums1[number], out.LayerNorm.weight, out.LayerNorm.eps)
        u = ln_decompose(u, trace.sums2[number], narrow.LayerNorm.weight, narrow.LayerNorm.eps)
        layers.append(u.norm(dim=-1))
    return torch.stack(layers)


def rollout_matrix(layers: Tensor) -> Tensor:
    """N_L ... N_2 N_1 of (layers, s, s), without normalising rows and without adding the identity."""
    product = layers[0]
    for layer in layers[1:]:
        product = layer @ product
    return product


def globenc_rollout(layers: Tensor) -> Tensor:
    """Saliency (s,) of every input for the first position: its row of the rollout of (layers, s, s) over its top."""
    row = rollout_matrix(layers)[0]
    return row / row.max()


# DecompX


def spread_bias(parts: Tensor, bias: Tensor, eps: float = 1e-12) -> Tensor:
    """Parts (..., k, d) with the bias (d,) shared out among the k in proportion to |part . bias| ("absdot")."""
    weights = (parts @ bias).abs()
    weights = weights / (weights.sum(dim=-1, keepdim=True) + eps)
    return parts + weights[..., None] * bias


def decompx(trace: Trace, pooler: torch.nn.Linear, classifier: torch.nn.Linear) -> Tensor:
    """What each input token contributes to each logit: (s, labels); summed over the tokens it is the logits.

    Vectors v (i, k, d), the part of position i that stems from input k, go through every layer: attention is frozen,
    activations are replaced by their slope from the origin, each bias is spread over k. pooler: (d -> d) with tanh,
    classifier: (d -> labels), on the first position.
    """
    size, dim = trace.hidden[0].shape
    v = torch.zeros(size, size, dim)
    v[range(size), range(size)] = trace.hidden[0]
    for number, layer in enumerate(trace.model.encoder.layer):
        own, out, wide, narrow = layer.attention.self, layer.attention.output, layer.intermediate, layer.output
        value = spread_bias(v @ own.value.weight.T, own.value.bias).unflatten(-1, (own.num_attention_heads, -1))
        mixed = torch.einsum("hij,jkhe->ikhe", trace.attention[number], value).flatten(2)
        v = spread_bias(mixed @ out.dense.weight.T, out.dense.bias) + v
        v = _layer_norm(v, trace.sums1[number], out.LayerNorm)
        inner = spread_bias(v @ wide.dense.weight.T, wide.dense.bias)
        inner = inner * _slope(wide.intermediate_act_fn, trace.inner[number])[:, None]
        v = spread_bias(inner @ narrow.dense.weight.T, narrow.dense.bias) + v
        v = _layer_norm(v, trace.sums2[number], narrow.LayerNorm)
    first = spread_bias(v[0] @ pooler.weight.T, pooler.bias)
    first = first * _slope(torch.tanh, first.sum(dim=0))
    return spread_bias(first @ classifier.weight.T, classifier.bias)


def _layer_norm(parts: Tensor, true_sum: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
    return spread_bias(ln_decompose(parts, true_sum, norm.weight, norm.eps), norm.bias)


def _slope(activation: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """activation(x) / x, and 0 at 0, where a function through the origin passes nothing on."""
    return torch.where(at == 0, 0.0, activation(at) / torch.where(at == 0, 1.0, at))


# Weights of sentences


def lexrank(similarity: Tensor, steps: int = 200) -> Tensor:
    """Weights (n,) of n sentences, of mean 1: the stationary distribution of a walk along their similarities.

    similarity: (n, n), not negative, with ones on its diagonal (continuous LexRank, Erkan and Radev 2004, without
    damping).
    """
    walk = similarity / similarity.sum(dim=1, keepdim=True)
    weights = torch.full((len(walk),), 1.0 / len(walk), dtype=walk.dtype)
    for _ in range(steps):
        weights = weights @ walk
    return weights / weights.mean()
