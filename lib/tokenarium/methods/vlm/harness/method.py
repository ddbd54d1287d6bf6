"""What a method of the family is: a dataclass of its hyper-parameters whose few hooks say what to drop.

A method never sees a batch, a mask or a rotary embedding: each hook gets one image or one question, and returns
what is left of the visual tokens. The runner does the rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tokenarium.methods.vlm.harness.account import Shape
    from tokenarium.methods.vlm.harness.tower import ImageView, TowerTokens
    from tokenarium.methods.vlm.harness.views import LayerView, NeuronView

Positions = Literal["compact", "preserve"]


@dataclass(frozen=True)
class Visual:
    """The visual tokens that enter the language model, when a method does more than choose among the patches.

    tokens: (n, dim) float of the language model's width (`image.project` maps tower features there). patches: (n,)
    int64, the patch that each token stands for: it decides positions and recall; -1 for a token that is none, such as
    CLS. source: (n, N) float, the share of every patch in every token, for drawings; None: one patch each.
    positions: (n,) or (n, K) numbers, ids counted from the start of the image, for positions "preserve" alone; with K
    of them the rotary frequencies are cut into K equal blocks from the highest on, block j turned by id j. None: the
    patches. unmerge: (N,) int64, the token that stands at each patch: every layer's attention then runs over all N
    positions and is averaged back, "preserve" alone.
    """

    tokens: Tensor
    patches: Tensor
    source: Tensor | None = None
    positions: Tensor | None = None
    unmerge: Tensor | None = None


@dataclass(frozen=True)
class Cut:
    """What is left of the visual tokens after a layer of the language model.

    keep: (m,) int64 among the tokens there now, in their new order; None keeps all. tokens: (m, dim) float hidden
    states in place of those at `keep`, for a merge; `keep` then names the token each one stands for. positions: as in
    Visual, but counted from the start of the sequence. source: (m, n) float, shares of the tokens there now, a merge's.
    hide: (sequence,) bool, tokens that stay but that no other token sees in later layers (before anything is dropped).
    zero: (n,) bool, visual tokens whose keys and values of this layer are set to zero once the prompt has been read.
    """

    keep: Tensor | None = None
    tokens: Tensor | None = None
    positions: Tensor | None = None
    source: Tensor | None = None
    hide: Tensor | None = None
    zero: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to spend fewer visual tokens. The base class keeps all of them and changes nothing.

    positions: what a token's id is after others have gone; "compact" counts those that are there, in every layer anew,
    "preserve" leaves each its own. Override what the method needs and nothing else.
    """

    asks_question: ClassVar[bool] = False  # `select` looks at `image.question`; otherwise it runs once per image

    positions: Positions = "compact"

    def select(self, image: ImageView) -> Tensor | Visual:
        """What enters the language model: (n,) int64 patches in the order wanted, or a Visual."""
        return torch.arange(len(image.features), device=image.features.device)

    def layers(self, num_layers: int) -> Iterable[int]:
        """After which layers of the language model `after_layer` is asked, counted from 1."""
        return ()

    def after_layer(self, layer: int, view: LayerView) -> Tensor | Cut | None:
        """What is left after `layer` layers have run: (m,) int64 among the visual tokens, a Cut, or None for all.

        Seen from the prompt alone: the answer is decoded with what was chosen here.
        """

    def neurons(self, layer: int, activations: Tensor, view: NeuronView) -> Tensor:
        """The input of the down projection in the MLP of layer `layer` (from 1): (rows, d_ff), changed or not.

        Asked only where a class overrides it: for the prompt, then for every token of the answer.
        """
        return activations

    def in_tower(self, block: int, tokens: TowerTokens) -> TowerTokens:
        """Reduce the tokens of tower block `block` (from 1), between its attention and its MLP.

        Asked only where a class overrides it; the attention then adds log(size) of its keys.
        """
        return tokens

    def overhead_flops(self, shape: Shape) -> float:
        """The method's own floating-point operations for one question, where they are worth counting."""
        return 0.0

    def overrides(self, hook: str) -> bool:
        """Whether the method's class has a `hook` of its own."""
        return getattr(type(self), hook) is not getattr(Method, hook)
