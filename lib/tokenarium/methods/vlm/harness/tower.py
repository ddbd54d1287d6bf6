"""The vision side: what the tower saw of each image, as a method may look at it before the language model begins."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration

from tokenarium.methods.vlm.harness.method import Method

if TYPE_CHECKING:
    from tokenarium.methods.vlm.harness.questions import Question


@dataclass(frozen=True)
class TowerTokens:
    """The tokens of one image inside a tower block. CLS comes first.

    x: (tokens, dim) after the attention residual. key: (tokens, head_dim), the block's keys, mean over heads.
    size: (tokens, 1) float, how many originals each holds. source: (tokens, 1+N) float, which ones.
    """

    x: Tensor
    key: Tensor
    size: Tensor
    source: Tensor


class ImageView:
    """One image after the tower, before the language model. N patches; blocks count from 0, negative ones from the end.

    index: its place in the list of images. question: the question asked, where the method `asks_question`, else None.
    features: (N, dim) of the feature layer, without CLS, the projector's input. cls: (dim,) of the same layer.
    After `in_tower` there are fewer than N features; `size` (n, 1) and `source` (n, N) then say what they hold.
    """

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        hidden_states: Tensor,
        index: int,
        question: Question | None = None,
        size: Tensor | None = None,
        source: Tensor | None = None,
    ):
        self.model, self.index, self.question = model, index, question
        self._hidden_states = hidden_states
        layer = model.config.vision_feature_layer
        self.cls, self.features = hidden_states[layer][0], hidden_states[layer][1:]
        self.size, self.source = size, source

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patches."""
        side = self.model.model.vision_tower.config.image_size // self.model.model.vision_tower.config.patch_size
        return side, side

    @property
    def num_blocks(self) -> int:
        return self.model.model.vision_tower.config.num_hidden_layers

    @property
    def feature_block(self) -> int:
        """The block whose output is the feature: -2 in LLaVA. The same number indexes hidden states and attentions."""
        return self.model.config.vision_feature_layer

    @cached_property
    def projected(self) -> Tensor:
        """The features after the projector, as the language model would read them: (N, llm_dim)."""
        return self.project(self.features)

    def project(self, features: Tensor) -> Tensor:
        """Tower features (n, dim), merged ones too, through the projector: (n, llm_dim)."""
        return self.model.model.multi_modal_projector(features)

    def hidden(self, index: int) -> Tensor:
        """hidden_states[index] of the tower, CLS first: (1+N, dim); 0 is the input of the first block."""
        return self._hidden_states[index]

    def query(self, block: int) -> Tensor:
        """Queries of a block, not scaled: (heads, 1+N, head_dim)."""
        return self._heads(block, "q_proj")

    def key(self, block: int) -> Tensor:
        """Keys of a block: (heads, 1+N, head_dim)."""
        return self._heads(block, "k_proj")

    def value(self, block: int) -> Tensor:
        """Values of a block: (heads, 1+N, head_dim)."""
        return self._heads(block, "v_proj")

    def attention(self, block: int) -> Tensor:
        """Attention probabilities of a block, rows query, columns key: (heads, 1+N, 1+N) float32."""
        scale = self._attention_module(block).scale
        return (self.query(block) @ self.key(block).transpose(1, 2) * scale).softmax(dim=-1, dtype=torch.float32)

    def received(self, block: int) -> Tensor:
        """Attention that each patch gets in a block, mean over heads and all 1+N queries: (N,) float32."""
        return self.attention(block).mean(dim=(0, 1))[1:]

    def cls_attention(self, block: int) -> Tensor:
        """Attention of CLS to each patch: (heads, N) float32."""
        scale = self._attention_module(block).scale
        logits = self.query(block)[:, :1] @ self.key(block).transpose(1, 2) * scale
        return logits.softmax(dim=-1, dtype=torch.float32)[:, 0, 1:]

    def generator(self, seed: int) -> torch.Generator:
        """A random generator of this image's own, the same in every run (CPU)."""
        return torch.Generator().manual_seed(1_000_003 * seed + self.index)

    def _attention_module(self, block: int) -> torch.nn.Module:
        return self.model.model.vision_tower.encoder.layers[block].self_attn

    def _heads(self, block: int, projection: str) -> Tensor:
        if self.source is not None:
            raise ValueError("the blocks of a reduced tower have no common tokens: take what in_tower was given")
        layer = self.model.model.vision_tower.encoder.layers[block]
        before = self._hidden_states[block - 1 if block < 0 else block]
        projected = getattr(layer.self_attn, projection)(layer.layer_norm1(before))
        return projected.view(len(before), -1, layer.self_attn.head_dim).transpose(0, 1)


@torch.no_grad()
def tower_states(model: LlavaForConditionalGeneration, pixel_values: Tensor) -> Tensor:
    """All hidden states of the unchanged tower: (images, blocks + 1, 1+N, dim)."""
    outputs = model.model.vision_tower(pixel_values.to(model.device, model.dtype), output_hidden_states=True)
    return torch.stack(outputs.hidden_states, dim=1)


@torch.no_grad()
def reduced_view(
    model: LlavaForConditionalGeneration, pixel_values: Tensor, method: Method, index: int, question: Question | None
) -> ImageView:
    """The view of one image (1, 3, height, width) after a tower whose blocks the method reduces (`in_tower`)."""
    tower = model.model.vision_tower
    x = tower.pre_layrnorm(tower.embeddings(pixel_values.to(model.device, model.dtype)))[0]
    tokens = TowerTokens(
        x, x.new_empty(0), torch.ones_like(x[:, :1]), torch.eye(len(x), dtype=x.dtype, device=x.device)
    )
    depth = len(tower.encoder.layers) + 1 + model.config.vision_feature_layer  # blocks up to the feature
    for block, layer in enumerate(tower.encoder.layers[:depth], start=1):
        attention, normed = layer.self_attn, layer.layer_norm1(tokens.x)
        query, key, value = (
            project(normed).view(len(normed), -1, attention.head_dim).transpose(0, 1)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        bias = tokens.size.log().T.expand(len(normed), -1)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=attention.scale)
        x = tokens.x + attention.out_proj(mixed.transpose(0, 1).reshape(len(normed), -1))
        tokens = method.in_tower(block, TowerTokens(x, key.mean(dim=0), tokens.size, tokens.source))
        x = tokens.x + layer.mlp(layer.layer_norm2(tokens.x))
        tokens = TowerTokens(x, tokens.key, tokens.size, tokens.source)
    states = tokens.x.expand(len(tower.encoder.layers) + 1, -1, -1)  # the feature layer, whatever index is asked
    return ImageView(model, states, index, question, tokens.size[1:], tokens.source[1:, 1:])
