"""Run any ViT with a token-reduction method inside its blocks (V3).

A method acts in every block between the attention residual and the MLP, where ToMe (arXiv 2210.09461, section 3)
put it and all later training-free methods keep it:

    x = x + attention(layernorm_before(x));   x = reduce(x);   x = x + mlp(layernorm_after(x))

The loop is written out over the model's own modules, so that every intermediate is in plain sight and any
`transformers` ViTForImageClassification runs unchanged, from the small substrate to the published DeiT checkpoints.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import ViTForImageClassification


class Reduction(NamedTuple):
    """What a reducer returns for one block.

    x: (batch, kept, dim) float. size: (batch, kept, 1) float, how much mass each token carries.
    source: a closure that builds the (batch, kept, tokens) float transport matrix, called only when somebody looks;
    `source()[b, i, j]` is the share of input token j that went into output token i. A merge is a 0/1 partition, a
    pruned token is an empty column.
    """

    x: Tensor
    size: Tensor
    source: Callable[[], Tensor]


@dataclass(frozen=True)
class Reducer:
    """A token-reduction method; its fields are its hyper-parameters. The base class keeps every token.

    Token 0 is the class token: it stays, and stays first.
    """

    needs_attention: ClassVar[bool] = False

    def lengths(self, tokens: int, num_layers: int) -> list[int]:
        """Token count (class token included) after the reduction of each block, for an input of `tokens`."""
        return [tokens] * num_layers

    def reduce(self, layer: int, x: Tensor, metric: Tensor, size: Tensor, attention: Tensor | None) -> Reduction:
        """Reduce the tokens of block `layer`.

        x: (batch, tokens, dim) float after the attention residual. metric: (batch, tokens, head_dim) float, the mean
        over heads of K, unscaled and not normalised. size: (batch, tokens, 1) float. attention: (batch, heads,
        tokens, tokens) float probabilities where the class asks for it with `needs_attention`, else None.
        """
        return Reduction(x, size, lambda: identity_source(x))


def identity_source(x: Tensor) -> Tensor:
    """Transport matrix that leaves every token of `x` (batch, tokens, dim) where it is: (batch, tokens, tokens)."""
    return torch.eye(x.shape[1], dtype=x.dtype, device=x.device).expand(x.shape[0], -1, -1)


@dataclass
class Trace:
    """What one run saw, block by block: the tensors that a notebook draws.

    metric[l]: (batch, tokens_l, head_dim); attention[l]: (batch, heads, tokens_l, tokens_l) or None;
    size[l]: (batch, kept_l, 1); source[l]: (batch, kept_l, tokens_l); inputs[l] and outputs[l]: the tokens before
    and after the reduction.
    """

    metric: list[Tensor] = field(default_factory=list)
    attention: list[Tensor | None] = field(default_factory=list)
    size: list[Tensor] = field(default_factory=list)
    source: list[Tensor] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)

    def total_source(self, layer: int) -> Tensor:
        """Where the mass of the first block's tokens lies after block `layer`: (batch, kept_layer, tokens_0)."""
        total = self.source[0]
        for source in self.source[1 : layer + 1]:
            total = source @ total
        return total


class Run(NamedTuple):
    """Result of `run`: logits (batch, classes) float, class-token feature (batch, dim) float after the last
    LayerNorm, and the trace when it was asked for."""

    logits: Tensor
    cls_feature: Tensor
    trace: Trace | None


@torch.no_grad()
def run(
    model: ViTForImageClassification,
    pixel_values: Tensor,
    reducer: Reducer | None = None,
    proportional_attention: bool = False,
    trace: bool = False,
) -> Run:
    """Classify images with `reducer` acting in every block.

    pixel_values: (batch, channels, height, width) float on the model's device. With `proportional_attention` each
    attention adds log(size) of its keys (ToMe equation 1). Without a reducer the model's own logits come back.
    """
    reducer = reducer or Reducer()
    record = Trace() if trace else None
    x = model.vit.embeddings(pixel_values.to(model.dtype))
    size = torch.ones_like(x[..., :1])
    for layer, block in enumerate(model.vit.layers):
        attended, metric, attention = _attention(
            block, x, size if proportional_attention else None, explicit=reducer.needs_attention or trace
        )
        x = x + attended
        before = x
        x, size, source = reducer.reduce(layer, x, metric, size, attention)
        if record is not None:
            record.metric.append(metric)
            record.attention.append(attention)
            record.size.append(size)
            record.source.append(source())
            record.inputs.append(before)
            record.outputs.append(x)
        x = x + block.mlp(block.layernorm_after(x))
    features = model.vit.layernorm(x)[:, 0]
    return Run(model.classifier(features), features, record)


def _attention(block, x: Tensor, size: Tensor | None, explicit: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Self-attention of one block: output (batch, tokens, dim), metric (batch, tokens, head_dim), probabilities."""
    attention = block.attention
    normed = block.layernorm_before(x)
    heads = (*x.shape[:2], -1, attention.head_dim)
    query, key, value = (
        project(normed).view(heads).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    bias = None if size is None else size.log()[:, None, None, :, 0]
    probabilities = None
    if explicit:
        scores = query @ key.transpose(2, 3) * attention.scaling
        probabilities = (scores if bias is None else scores + bias).softmax(dim=-1)
        mixed = probabilities @ value
    else:
        if bias is not None:
            bias = bias.expand(-1, 1, x.shape[1], -1)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=attention.scaling)
    output = attention.o_proj(mixed.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1))
    return output, key.mean(dim=1), probabilities
