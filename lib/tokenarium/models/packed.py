"""Linear layers laid out once for the CPU by oneDNN: the same float32 products, sooner."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Packed(nn.Module):
    """A linear layer without bias, for inference on the CPU alone."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.register_buffer("weight", linear.weight.detach().to_mkldnn())

    def forward(self, inputs: Tensor) -> Tensor:
        return F.linear(inputs.to_mkldnn(), self.weight).to_dense()


def pack(model: PreTrainedModel) -> None:
    """Replace the linear layers without bias of the model's body by `Packed` ones, in place; nothing happens elsewhere
    than on a CPU with oneDNN, and the embeddings stay as they are."""
    if model.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return
    for module in list(model.base_model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and child.bias is None:
                setattr(module, name, Packed(child))
