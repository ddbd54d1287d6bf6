"""What choosing visual tokens costs at the size of LLaVA, against plain loops and against one layer of a 7B model.

The loops say what the papers say, one token after the other. Before anything is timed both sides must choose the same.
A selection that takes longer than a layer of the language model would be no saving. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from tokenarium.measure.bootstrap import Interval
from tokenarium.measure.latency import ratio
from tokenarium.methods.vlm.fastv import fastv_select
from tokenarium.methods.vlm.hiprune import hiprune_select
from tokenarium.methods.vlm.visionzip import contextual_tokens, dominant_tokens

REPEATS = 5


class Sizes(NamedTuple):
    """images, patches of a row, tower heads and width, width and inner width of the language model, tokens kept."""

    images: int = 8
    width: int = 24
    heads: int = 16
    tower_dim: int = 1024
    dim: int = 4096
    inner: int = 11008
    keep: int = 64


class Inputs(NamedTuple):
    """Of every image, N patches: scores (2, N) below 1, attention (heads, N) rows, keys (N, 64), features (N, dim)."""

    scores: Tensor
    attention: Tensor
    keys: Tensor
    features: Tensor


class Contest(NamedTuple):
    """A function of the library and loops that do the same for one image; both return what they choose or make."""

    name: str
    quick: Callable[[Inputs, Sizes], Tensor]
    loops: Callable[[Inputs, Sizes], Tensor]


def inputs(sizes: Sizes) -> list[Inputs]:
    """Random inputs of every image, the same every time."""
    generator, total = torch.Generator().manual_seed(0), sizes.width**2
    made = []
    for _ in range(sizes.images):
        scores, attention = (
            torch.rand(2, total, generator=generator),
            torch.rand(sizes.heads, total, generator=generator),
        )
        keys, features = (torch.randn(total, dim, generator=generator) for dim in (64, sizes.tower_dim))
        made.append(Inputs(scores, attention, keys, features))
    return made


def hiprune_by_loops(one: Inputs, sizes: Sizes) -> Tensor:
    """Anchors, neighbours and registers with lists and sets; the mask (N,)."""
    obj, deep = one.scores.tolist()
    total = len(obj)
    kept = set(sorted(range(total), key=lambda j: -obj[j])[: round(sizes.keep * 0.3 / 5)])
    for anchor in tuple(kept):
        kept |= {max(0, min(total - 1, anchor + step)) for step in (-1, 1, -sizes.width, sizes.width)}
    for patch in sorted(range(total), key=lambda j: -deep[j]):
        if len(kept) == sizes.keep:
            break
        kept.add(patch)
    return torch.tensor([patch in kept for patch in range(total)])


def fastv_by_loops(one: Inputs, sizes: Sizes) -> Tensor:
    """The mean over heads of every token, and the best of them."""
    heads = one.attention.tolist()
    means = [sum(head[token] for head in heads) / len(heads) for token in range(len(heads[0]))]
    return torch.tensor(sorted(sorted(range(len(means)), key=lambda token: -means[token])[: sizes.keep]))


def visionzip(one: Inputs, sizes: Sizes) -> Tensor:
    """Dominant tokens, then contextual ones of the rest: (keep, dim)."""
    count = round(sizes.keep * 54 / 64)
    chosen = dominant_tokens(one.attention, count)
    rest = torch.ones(len(one.keys), dtype=torch.bool).index_fill(0, chosen, False).nonzero()[:, 0]
    merged, _, _ = contextual_tokens(one.keys[rest], one.features[rest], sizes.keep - count)
    return torch.cat((one.features[chosen], merged))


def visionzip_by_loops(one: Inputs, sizes: Sizes) -> Tensor:
    """The same, each token left compared with one target after the other."""
    count, heads = round(sizes.keep * 54 / 64), one.attention.tolist()
    sums = [sum(head[token] for head in heads) for token in range(len(heads[0]))]
    chosen = sorted(sorted(range(len(sums)), key=lambda token: -sums[token])[:count])
    rest = [token for token in range(len(sums)) if token not in chosen]
    number = sizes.keep - count
    targets = rest[:: max(1, len(rest) // number)][:number]
    unit = [key / key.norm() for key in one.keys]
    members: dict[int, list[int]] = {target: [] for target in targets}
    for token in rest:
        if token not in members:
            members[max(targets, key=lambda target: float(unit[token] @ unit[target]))].append(token)
    merged = [
        one.features[target] + (sum(one.features[token] for token in group) / len(group) if group else 0)
        for target, group in members.items()
    ]
    return torch.stack([one.features[token] for token in chosen] + merged)


CONTESTS = (
    Contest("HiPrune", lambda one, s: hiprune_select(*one.scores, s.keep, 0.3, s.width)[3], hiprune_by_loops),
    Contest("FastV", lambda one, s: fastv_select(one.attention[:, None], slice(None), s.keep), fastv_by_loops),
    Contest("VisionZip", visionzip, visionzip_by_loops),
)


def layer(sizes: Sizes) -> Callable[[], Tensor]:
    """One layer of the language model on the visual tokens of one image."""
    config = LlamaConfig(
        hidden_size=sizes.dim, intermediate_size=sizes.inner, num_attention_heads=max(1, sizes.dim // 128)
    )
    config._attn_implementation = "sdpa"  # a layer without its model
    module, x = LlamaDecoderLayer(config, 0).eval(), torch.zeros(1, sizes.width**2, sizes.dim)
    angles = LlamaRotaryEmbedding(config)(x, torch.arange(sizes.width**2)[None])
    return lambda: module(x, position_embeddings=angles)


def timed(contest: Contest, sizes: Sizes, one_layer: Callable[[], Tensor]) -> tuple[Interval, Interval]:
    """How many times as long the loops take, and the selection of one image as a share of one layer.

    Raises ValueError when the function and the loops do not give the same result.
    """
    images = inputs(sizes)
    for one in images:
        if not torch.allclose(contest.quick(one, sizes).double(), contest.loops(one, sizes).double(), atol=1e-4):
            raise ValueError(f"{contest.name} at {sizes}: the function and the loops disagree")
    quick = [lambda one=one: contest.quick(one, sizes) for one in images]
    slow = [lambda one=one: contest.loops(one, sizes) for one in images]
    gain = ratio(lambda: [call() for call in slow], lambda: [call() for call in quick], repeats=REPEATS, warmup=1)
    return gain, ratio(quick[0], one_layer, repeats=3, warmup=1)  # a layer takes seconds


@torch.no_grad()
def main(sizes: Sizes | None = None) -> None:
    """Check and time every selection, and print one table."""
    sizes = sizes or Sizes()
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("selection", "loops / function", "share of one layer"):
        table.add_column(column, justify="left" if column == "selection" else "right")
    one_layer = layer(sizes)
    for contest in CONTESTS:
        gain, share = timed(contest, sizes, one_layer)
        table.add_row(contest.name, *(f"{x.value:.3g} [{x.low:.3g}, {x.high:.3g}]" for x in (gain, share)))
    console = Console()
    console.print(table)
    console.print(f"\nmedians with 95 % intervals, {sizes.images} images of {sizes.width**2} tokens, {sizes.keep} kept")


if __name__ == "__main__":
    main()
