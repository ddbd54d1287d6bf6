"""Language models for the harness: the suite's own, any checkpoint of the hub, or a tiny one made here for trials."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tokenarium.methods.context.kvlab.attention import use

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TINY = "tiny"  # stands for a random Llama over bytes, to try the wiring


class Packed(nn.Module):
    """A linear layer without bias whose weights oneDNN has laid out for the CPU: for inference only, and faster."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.register_buffer("weight", linear.weight.detach().to_mkldnn())

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.linear(inputs.to_mkldnn(), self.weight).to_dense()


def pack(model: PreTrainedModel) -> PreTrainedModel:
    """Replace a model's linear layers without bias by `Packed` ones, in place; embeddings stay as they are."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and child.bias is None:
                setattr(module, name, Packed(child))
    return model


def open_model(
    root: Path | str, checkpoint: str, device: str = "cpu", packed: bool = True
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Tokenizer and model of models/<checkpoint>, of the hub, or TINY; it attends through kvlab already.

    The suite's models are float32, those of the hub are bfloat16 on a GPU. packed: lay out the weights of a model in
    models/ for inference on the CPU; such a model cannot be trained, nor differentiated through.
    """
    if checkpoint == TINY:
        tokenizer, model = _tiny()
        return tokenizer, use(model)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    held = Path(root) / "models" / checkpoint
    local = held.is_dir()
    path = held if local else checkpoint
    options = {"local_files_only": local, "use_safetensors": True, "trust_remote_code": False}
    dtype = torch.float32 if local or device == "cpu" else torch.bfloat16
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=local)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, **options).to(device).eval()
    if local and device == "cpu" and packed and torch.backends.mkldnn.is_available():
        pack(model)
    return tokenizer, use(model)


def _tiny() -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={symbol: number for number, symbol in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.4,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return tokenizer, LlamaForCausalLM(config).eval()
